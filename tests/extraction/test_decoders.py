"""Children that decode, for lanes that resize: the same vectors, whatever becomes of a child."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache.extraction import decoders
from embedcache.extraction.run import extract
from embedcache.photos.resampling import Uncut
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from tests import stand_in

MakePhotos = Callable[..., Path]
pytestmark = pytest.mark.skipif(not decoders.available(), reason="children need memfd_create")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Two children in every run; their process numbers."""
    monkeypatch.setattr(decoders, "MIN_PHOTOS", 1)
    monkeypatch.setattr(decoders, "processors", lambda: 4)
    monkeypatch.setattr("embedcache.extraction.face_finder.FaceFinder.on_cuda", True)
    started: list[int] = []
    before = subprocess.Popen

    def start(*args: Any, **options: Any) -> Any:
        process = before(*args, **options)
        started.append(process.pid)
        return process

    monkeypatch.setattr("embedcache.extraction.decoders.subprocess.Popen", start)
    yield started
    for number in started:
        assert not Path(f"/proc/{number}").exists()


def wild(folder: Path) -> Path:
    """Photos of many kinds and sizes, some of them broken."""
    names = sorted(folder.iterdir())
    for i, name in enumerate(names):
        if i % 5 == 1:
            Image.open(name).save(name.with_suffix(".png"))
            name.unlink()
        if i % 5 == 2:
            Image.open(name).resize((1200, 100 + i)).save(name)
        if i % 5 == 3:
            Image.open(name).convert("L").resize((40 + i, 90)).save(name)
    names[0].write_bytes(names[0].read_bytes()[:200])
    return folder


def compared(folder: Path, tmp_path: Path, network: Any) -> None:
    """Run with children, and without: the same rows and the same reasons."""
    cache, plain = (Cache.open(tmp_path / name, create=True) for name in ("c", "p"))
    found = extract(folder, cache, backbone=network).spaces[0]
    expected = extract(folder, plain, backbone=stand_in.backbone()).spaces[0]
    assert (found.embedded, found.failures) == (expected.embedded, expected.failures)
    photos = Photos.read(folder)
    each = [one.vectors("stand-in", [*photos.ids], scope=photos.scope) for one in (cache, plain)]
    for one, other in zip(*each, strict=True):
        np.testing.assert_array_equal(one, other)


def test_children_give_the_pixels_that_threads_give(
    make_photos: MakePhotos, tmp_path: Path, children: list[int]
) -> None:
    network = stand_in.backbone(resizes=True)
    (lane,) = network.open().lanes
    uncut: list[bool] = []

    def count(photos: Any) -> Any:
        uncut.extend(isinstance(photo, Uncut) for photo in photos)
        return lane(photos)

    counting = replace(network.open(), lanes=(count,))
    compared(wild(make_photos(150)), tmp_path, replace(network, open=lambda: counting))
    assert len(children) == 4  # two in each run
    assert 0 < sum(uncut) < len(uncut)


def test_a_child_that_is_killed_costs_no_photo(
    make_photos: MakePhotos, tmp_path: Path, children: list[int]
) -> None:
    killed: list[int] = []

    def kill(n: int) -> None:
        if len(children) == 2 and len(killed) < 2:
            os.kill(children[len(killed)], signal.SIGKILL)
            killed.append(n)

    compared(make_photos(300), tmp_path, stand_in.backbone(resizes=True, before=kill))
    assert len(killed) == 2


def test_a_photo_past_a_childs_memory_is_decoded_by_the_parent(
    make_photos: MakePhotos, tmp_path: Path, children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.photos.images.MEMORY_BYTES", 200_000)  # 96 x 80 take 61,440
    folder = make_photos(40)
    Image.open(folder / "p003.jpg").resize((400, 300)).save(folder / "p003.jpg")
    compared(folder, tmp_path, stand_in.backbone(resizes=True))


def test_pixels_past_a_slot_are_decoded_by_the_parent(
    make_photos: MakePhotos, tmp_path: Path, children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "BUNDLE", 900)  # of 23 KB each: more than a slot
    compared(make_photos(900), tmp_path, stand_in.backbone(resizes=True))


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path, make_photos: MakePhotos) -> None:
    code = (
        "import sys, time\n"
        "from embedcache.extraction import decoders\n"
        "with decoders.Decoders(2) as found:\n"
        "    print(*[c.number for c in found.children], flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    numbers = parent.stdout.readline().split()
    assert len(numbers) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 20
    while any(_runs(number) for number in numbers):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(number: str) -> bool:
    """Whether a process is there and no corpse that nobody has asked about."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
