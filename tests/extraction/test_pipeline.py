"""Inside a run: lanes, trials, compiling, short memory, and where the time went."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from embedcache.backbones.forward import Network
from embedcache.backbones.loading import Backbone
from embedcache.extraction import pace
from embedcache.extraction.clock import Clock
from embedcache.extraction.engine import Compiled
from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.store.faces import Faces
from tests import stand_in
from tests.stand_in import counts, vectors

MakePhotos = Callable[..., Path]


def test_every_lane_takes_part_and_the_vectors_are_those_of_one(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos = Photos.read(make_photos(40))
    used: list[str] = []

    def slowly(_: int) -> None:
        used.append(threading.current_thread().name)
        time.sleep(0.02)

    cache = Cache.open(tmp_path / "c", create=True)
    model = stand_in.backbone(before=slowly, n_lanes=3)
    assert counts(extract(photos, cache, backbone=model, batch_size=4)) == (40, 0, 40, 0)
    assert set(used) == {"lane-0", "lane-1", "lane-2"}
    alone = Cache.open(tmp_path / "alone", create=True)
    extract(photos, alone, backbone=stand_in.backbone())
    np.testing.assert_array_equal(vectors(cache, photos), vectors(alone, photos))


def test_a_long_run_tries_batch_sizes_on_real_photos_and_wastes_none(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "CPU_SIZES", (1, 2, 5))
    photos = Photos.read(make_photos(150))
    sizes: list[int] = []

    def work(n: int) -> None:
        sizes.append(n)
        time.sleep(0.01 + 0.004 * max(0, n - 2) ** 2)  # a batch of 2 is by far the best

    cache = Cache.open(tmp_path / "c", create=True)
    found = extract(photos, cache, backbone=stand_in.backbone(before=work)).spaces[0]
    assert sizes[:6] == [1, 2, 5, 1, 2, 5]
    assert set(sizes[6:]) == {2}
    assert sum(sizes) == 150
    assert (found.embedded, found.batch_size) == (150, 2)
    assert found.model_photos_per_second == pytest.approx(200, rel=0.6)


class CompiledStandIn:
    """A stand-in whose compiled form is what a test says; `used` counts photos by form."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray], *, pause: float) -> None:
        self.used = {"plain": 0, "compiled": 0}
        self._model = stand_in.backbone()
        self._change, self._pause = change, pause
        network = Network(
            lanes=(self._plain,), compiler="inductor", compiled=lambda n: (self._compiled,)
        )
        self.backbone = replace(self._model, open=lambda: network)

    def _plain(self, pixels: np.ndarray) -> np.ndarray:
        self.used["plain"] += len(pixels)
        time.sleep(0.02)
        return self._model.forward(pixels)

    def _compiled(self, pixels: np.ndarray) -> np.ndarray:
        self.used["compiled"] += len(pixels)
        time.sleep(self._pause)
        return self._change(self._model.forward(pixels))


def fail_to_compile(_: np.ndarray) -> np.ndarray:
    raise RuntimeError("no compiler\nand more")


@pytest.mark.parametrize(
    ("change", "pause", "logged"),
    [
        (lambda v: v * np.float32(1 + 1e-6), 0.0, "instead of"),
        (lambda v: v * np.float32(1.01), 0.0, "not used, vectors differ"),
        (lambda v: v, 0.06, "not used, no faster"),
        (fail_to_compile, 0.0, "cannot be compiled here (no compiler); continuing without"),
    ],
)
def test_a_network_is_compiled_only_if_that_is_faster_and_the_same(
    make_photos: MakePhotos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[np.ndarray], np.ndarray],
    pause: float,
    logged: str,
) -> None:
    monkeypatch.setattr(pace, "CPU_SIZES", (4,))
    photos = Photos.read(make_photos(99))
    cache, lines = Cache.open(tmp_path / "c", create=True), list[str]()
    model = CompiledStandIn(change, pause=pause)
    found = extract(
        photos, cache, backbone=model.backbone, compiling="on", log=lines.append
    ).spaces[0]
    assert found.embedded == 99
    assert found.compiled == (logged == "instead of")
    assert logged in lines[-1]
    # the last, short batch is padded with one photo
    used = 99 - 8 + 1 if found.compiled else 0
    checked = 4 if change is fail_to_compile else 12
    assert model.used["compiled"] == used + checked
    alone = Cache.open(tmp_path / "alone", create=True)
    extract(photos, alone, backbone=stand_in.backbone())
    np.testing.assert_allclose(vectors(cache, photos), vectors(alone, photos), rtol=1e-5)


def test_a_short_run_is_never_compiled(make_photos: MakePhotos, tmp_path: Path) -> None:
    model = CompiledStandIn(fail_to_compile, pause=0)
    cache = Cache.open(tmp_path / "c", create=True)
    found = extract(Photos.read(make_photos(9)), cache, backbone=model.backbone)
    assert (found.spaces[0].compiled, model.used["compiled"]) == (False, 0)


def test_detection_goes_on_one_by_one_where_memory_is_short(
    make_photos: MakePhotos,
    tmp_path: Path,
    detector: stand_in.Detector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    photos = Photos.read(make_photos(24))
    whole = extract(photos, Cache.open(tmp_path / "c", create=True), backbone=one_face())
    plain = detector.detect

    def small(pictures: Sequence[Image.Image]) -> Faces:
        if len(pictures) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(pictures)

    monkeypatch.setattr(detector, "detect", small)
    found = extract(photos, Cache.open(tmp_path / "d", create=True), backbone=one_face())
    assert counts(found) == counts(whole)
    assert found.spaces[0].failures == whole.spaces[0].failures


def one_face() -> Backbone:
    return stand_in.backbone("faces", face=True)


def test_where_the_time_went_adds_up(make_photos: MakePhotos, tmp_path: Path) -> None:
    photos = Photos.read(make_photos(8))
    found = extract(
        photos,
        Cache.open(tmp_path / "c", create=True),
        backbone=stand_in.backbone(before=lambda n: time.sleep(0.3)),
    )
    space = found.spaces[0]
    assert sum(space.shares.values()) == pytest.approx(1, abs=0.01)
    assert space.model_photos_per_second is not None
    assert 0 < space.model_photos_per_second <= 8 / 0.3
    assert set(space.document()) >= {
        "backbone",
        "spec",
        "dim",
        "wanted",
        "hit",
        "embedded",
        "failed",
        "seconds",
        "photos_per_second",
        "model_photos_per_second",
        "bottleneck",
        "shares",
    }


def test_running_out_of_device_memory_halves_the_batch(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    import torch

    sizes: list[int] = []

    def small_device(n: int) -> None:
        sizes.append(n)
        if n > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    photos = Photos.read(make_photos(20))
    cache = Cache.open(tmp_path / "c", create=True)
    found = extract(photos, cache, backbone=stand_in.backbone(before=small_device), batch_size=12)
    assert counts(found) == (20, 0, 20, 0)
    assert sizes[:3] == [12, 6, 3]
    assert max(sizes[7:]) <= 3
    whole = Cache.open(tmp_path / "whole", create=True)
    extract(photos, whole, backbone=stand_in.backbone())
    np.testing.assert_array_equal(vectors(cache, photos), vectors(whole, photos))


@pytest.mark.parametrize(
    ("seconds", "step"),
    [
        ({"forward": 9, "decode": 12, "idle": 1}, "forward"),
        ({"forward": 3, "detect": 5, "idle": 4}, "detect"),
        ({"forward": 3, "decode": 8, "read": 2, "idle": 5}, "decode"),
        ({"forward": 3, "decode": 2, "read": 8, "idle": 5}, "read"),
        ({"read": 1, "write": 2}, "read"),
    ],
)
def test_the_bottleneck_is_what_the_network_waits_for(seconds: dict[str, int], step: str) -> None:
    clock = Clock()
    for name, spent in seconds.items():
        clock.add(name, spent)
    assert clock.bottleneck() == step


def test_the_number_of_workers_that_was_asked_for_stays(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "CPU_SIZES", (1,))
    photos = Photos.read(make_photos(40))
    model = stand_in.backbone(before=lambda n: time.sleep(0.01))
    cache = Cache.open(tmp_path / "c", create=True)
    assert extract(photos, cache, backbone=model, workers=5).spaces[0].workers == 5
    found = Cache.open(tmp_path / "own", create=True)
    assert extract(photos, found, backbone=model).spaces[0].workers <= 4


def test_a_compiled_form_that_breaks_on_every_lane_is_reported_once(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "CPU_SIZES", (4,))
    calls: list[int] = []

    def breaks(pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        if len(calls) > 1:  # it compiles, and fails wherever it runs again
            raise RuntimeError("illegal instruction")
        return stand_in.backbone().forward(pixels)

    model = stand_in.backbone(before=lambda n: time.sleep(0.01), n_lanes=3)
    network = replace(model.open(), compiler="inductor", compiled=lambda n: (breaks,) * 3)
    lines: list[str] = []
    found = extract(
        Photos.read(make_photos(250)),
        Cache.open(tmp_path / "c", create=True),
        backbone=replace(model, open=lambda: network),
        compiling="on",
        log=lines.append,
    ).spaces[0]
    assert (found.embedded, found.compiled) == (250, False)
    assert len(calls) == 4
    assert [line for line in lines if "illegal instruction" in line] == lines[1:]


@pytest.mark.parametrize("compiling", ["on", "auto", "off"])
def test_faces_found_during_a_trial_start_no_second_trial(
    make_photos: MakePhotos,
    tmp_path: Path,
    detector: stand_in.Detector,
    monkeypatch: pytest.MonkeyPatch,
    compiling: Literal["on", "auto", "off"],
) -> None:
    monkeypatch.setattr(pace, "CPU_SIZES", (4, 8))
    monkeypatch.setattr(pace, "PATIENCE", 1)
    monkeypatch.setattr(pace, "pays_to_compile", lambda *_: True)
    monkeypatch.setattr(detector, "count", lambda picture: 1)
    plain = detector.detect

    def slowly(pictures: Sequence[Image.Image]) -> Faces:
        time.sleep(0.05)  # so that several detections wait when a trial drains the lanes
        return plain(pictures)

    monkeypatch.setattr(detector, "detect", slowly)
    sizes: list[int] = []

    def work(n: int) -> None:
        sizes.append(n)
        time.sleep(0.004)  # the larger batch is the better one

    n = 200
    photos, cache = Photos.read(make_photos(n)), Cache.open(tmp_path / "c", create=True)
    model = stand_in.backbone("faces", face=True, n_lanes=2, compiler="inductor", before=work)
    found = extract(photos, cache, backbone=model, compiling=compiling).spaces[0]
    assert (found.embedded, found.batch_size) == (n, 8)
    assert found.compiled == (compiling != "off")
    # Each trial is one batch on each of two lanes; both sizes, then both again.
    assert sizes[:8] == [4, 4, 8, 8, 4, 4, 8, 8]
    alone = Cache.open(tmp_path / "alone", create=True)
    extract(photos, alone, backbone=stand_in.backbone("faces", face=True))
    assert (vectors(cache, photos, "faces") == vectors(alone, photos, "faces")).all()


def test_a_compiled_network_takes_batches_of_any_size() -> None:
    model = stand_in.backbone(compiler="inductor", n_lanes=2)
    network = model.open()
    pixels = np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3), np.uint8)
    form = Compiled(network.compiled(8), 8)
    for n in (1, 7, 8, 9, 16, 21):
        for lane in range(3):
            found = form.forward(lane, [*pixels[:n]])
            np.testing.assert_array_equal(found, network.lanes[0](pixels[:n]))


def test_compiling_is_done_in_a_short_run_if_that_was_asked_for(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos = Photos.read(make_photos(40))
    model = stand_in.backbone(compiler="inductor", before=lambda n: time.sleep(0.01))
    modes: dict[Literal["on", "auto", "off"], bool] = {"on": True, "auto": False, "off": False}
    for compiling, compiled in modes.items():
        cache = Cache.open(tmp_path / compiling, create=True)
        found = extract(photos, cache, backbone=model, compiling=compiling).spaces[0]
        assert (found.embedded, found.compiled) == (40, compiled)
    lines: list[str] = []
    few = Photos(photos.ids[:9], photos.paths[:9], photos.scope)
    cache = Cache.open(tmp_path / "few", create=True)
    found = extract(few, cache, backbone=model, compiling="on", log=lines.append).spaces[0]
    assert (found.embedded, found.compiled) == (9, False)
    assert lines == ["stand-in is not compiled: 9 photos are too few; a trial needs 16"]


def test_a_compiled_form_that_runs_out_of_memory_gives_way_to_the_plain_one(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    import torch

    calls: list[int] = []

    def short_of_memory(n: int) -> None:
        calls.append(n)
        if len(calls) > 4:  # after the passes that compile, time and compare
            raise torch.OutOfMemoryError("out of memory")

    model = stand_in.backbone(
        compiler="inductor",
        before=lambda n: time.sleep(0.01),
        before_compiled=short_of_memory,
    )
    photos, cache = Photos.read(make_photos(50)), Cache.open(tmp_path / "c", create=True)
    found = extract(photos, cache, backbone=model, compiling="on", batch_size=8).spaces[0]
    assert (found.embedded, found.compiled, found.batch_size) == (50, False, 4)
    alone = Cache.open(tmp_path / "alone", create=True)
    extract(photos, alone, backbone=stand_in.backbone())
    np.testing.assert_array_equal(vectors(cache, photos), vectors(alone, photos))
