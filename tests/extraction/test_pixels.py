"""Kept pixels: a space of bytes that a later network of the same preprocessing reads."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedcache.backbones.loading import Backbone, load
from embedcache.errors import InputError, NoSuchSpace
from embedcache.extraction import prefetch
from embedcache.extraction.run import extract
from embedcache.photos.digests import read_file
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests import stand_in
from tests.kept_pixels import ROW_BYTES, SIZE, flip, kept_in, opened, shard_of

MakePhotos = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The path of every photo that is read."""
    seen: list[str] = []
    read = read_file

    def reading(path: str) -> bytes:
        seen.append(path)
        return read(path)

    monkeypatch.setattr(prefetch, "read_file", reading)
    return seen


def with_preprocessing(backbone: Backbone, **changes: Any) -> Backbone:
    """The same network behind another preprocessing."""
    other = replace(backbone.preprocessing, **changes)
    return replace(backbone, spec=replace(backbone.spec, preprocessing=other))


def test_a_second_network_reads_pixels_and_gives_the_vectors_of_the_photos(
    make_photos: MakePhotos, tmp_path: Path, decoded: list[str]
) -> None:
    photos, cache = Photos.read(make_photos(9)), opened(tmp_path)
    first = extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    assert [(space.dim, space.embedded) for space in first.spaces] == [(8, 9), (ROW_BYTES, 9)]
    assert len(decoded) == 9
    decoded.clear()
    lines: list[str] = []
    second = stand_in.backbone("another", dim=5)
    assert extract(photos, cache, backbone=second, log=lines.append).spaces[0].embedded == 9
    assert decoded == []
    assert any("9 of 9 photos are read as pixels" in line for line in lines)
    plain = opened(tmp_path, "plain")
    extract(photos, plain, backbone=second)
    assert len(decoded) == 9
    ours, theirs = (stand_in.vectors(one, photos, "another") for one in (cache, plain))
    assert ours.tobytes() == theirs.tobytes()
    assert cache.find("another").digest == plain.find("another").digest


def test_a_timm_network_reads_pixels_and_gives_the_vectors_of_the_photos(
    make_photos: MakePhotos, tmp_path: Path, tiny_weights: Path, decoded: list[str]
) -> None:
    photos, cache, plain = Photos.read(make_photos(6)), opened(tmp_path), opened(tmp_path, "plain")
    tiny = load(f"local-dir:{tiny_weights}", device="cpu")
    side = tiny.preprocessing.size[0]
    same = stand_in.backbone()
    extract(photos, plain, backbone=tiny, batch_size=6)
    norm: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    other = replace(
        same, spec=replace(same.spec, preprocessing=replace(tiny.preprocessing, **norm))
    )
    other = replace(other, open=lambda: replace(same.open(), lanes=(_means,)))
    extract(photos, cache, backbone=other, keep_pixels=side)
    decoded.clear()
    extract(photos, cache, backbone=tiny, batch_size=6)
    assert decoded == []
    name = "local-dir:tiny"
    ours, theirs = (stand_in.vectors(one, photos, name) for one in (cache, plain))
    assert ours.tobytes() == theirs.tobytes()


def _means(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.repeat(batch.reshape(len(batch), -1).mean(1, keepdims=True), 8, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resize": "shortest"}, "resize: 'shortest', 'squash'"),
        ({"interpolation": "bicubic"}, "interpolation: 'bicubic', 'bilinear'"),
        ({"crop_fraction": 0.875}, "crop_fraction: 0.875, 1.0"),
        ({"decode": "9-full"}, "decode: '9-full'"),
        ({"size": (SIZE, SIZE + 1)}, f"size: [{SIZE}, {SIZE + 1}], [{SIZE}, {SIZE}]"),
    ],
)
def test_a_network_of_another_preprocessing_decodes_and_says_why(
    make_photos: MakePhotos,
    tmp_path: Path,
    decoded: list[str],
    changes: dict[str, object],
    said: str,
) -> None:
    photos, cache = Photos.read(make_photos(4)), opened(tmp_path)
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    decoded.clear()
    lines: list[str] = []
    other = with_preprocessing(stand_in.backbone("another", dim=5), **changes)
    if "size" in changes:
        other = replace(other, open=lambda: replace(stand_in.backbone().open(), lanes=(_means,)))
        other = replace(other, spec=replace(other.spec, dim=8))
    assert extract(photos, cache, backbone=other, log=lines.append).spaces[0].embedded == 4
    assert len(decoded) == 4
    [line] = [line for line in lines if "pixels" in line]
    assert said in line
    assert "its photos are decoded" in line


def test_other_means_change_nothing_about_the_pixels(
    make_photos: MakePhotos, tmp_path: Path, decoded: list[str]
) -> None:
    photos, cache = Photos.read(make_photos(3)), opened(tmp_path)
    both = [
        stand_in.backbone(),
        with_preprocessing(stand_in.backbone("another"), mean=(0.1, 0.2, 0.3)),
    ]
    found = extract(photos, cache, backbone=both, keep_pixels=SIZE)
    assert [space.backbone for space in found.spaces] == ["stand-in", "another", f"pixels:{SIZE}"]
    assert len(decoded) == 3


def test_two_rules_of_resizing_are_two_spaces(make_photos: MakePhotos, tmp_path: Path) -> None:
    photos, cache = Photos.read(make_photos(3)), opened(tmp_path)
    both = [stand_in.backbone(), with_preprocessing(stand_in.backbone("other"), resize="shortest")]
    extract(photos, cache, backbone=both, keep_pixels=SIZE)
    kept = [space for space in cache.spaces() if space.spec.kind == "pixels"]
    assert len(kept) == 2
    with pytest.raises(NoSuchSpace, match="Name one of"):
        cache.find(f"pixels:{SIZE}", pixels=True)
    assert cache.find(f"pixels:{SIZE}#{kept[0].digest[:8]}", pixels=True) is kept[0]


def test_a_face_crop_is_not_read_from_kept_pixels(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, cache = Photos.read(make_photos(6)), opened(tmp_path)
    monkeypatch.setattr("embedcache.faces.named.load", lambda *_, **__: stand_in.Detector())
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    face = stand_in.backbone("faces", face=True)
    with pytest.raises(InputError, match="of whole photos only"):
        extract(photos, cache, backbone=face, keep_pixels=SIZE)
    lines: list[str] = []
    found = extract(photos, cache, backbone=face, log=lines.append).spaces[0]
    assert found.embedded + found.failed == 6
    assert any("it takes face crops" in line for line in lines)


def test_a_size_that_no_network_takes_is_refused_and_records_nothing(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos, cache = Photos.read(make_photos(2)), opened(tmp_path)
    with pytest.raises(InputError, match=rf"stand-in takes {SIZE} x {SIZE}; use {SIZE}"):
        extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=299)
    assert not cache.photo_table().ids
    assert not cache.spaces()


def test_a_wrong_byte_costs_a_decode_and_never_gives_a_wrong_vector(
    make_photos: MakePhotos, tmp_path: Path, decoded: list[str]
) -> None:
    photos, cache = Photos.read(make_photos(5)), opened(tmp_path)
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    flip(shard_of(kept_in(cache)), 2 * ROW_BYTES + 7)
    decoded.clear()
    lines: list[str] = []
    cache = Cache.open(cache.path)
    other = stand_in.backbone("another")
    assert extract(photos, cache, backbone=other, log=lines.append).spaces[0].embedded == 5
    assert len(decoded) == 1
    assert any("cannot be read" in line and "verify --repair" in line for line in lines)
    plain = opened(tmp_path, "plain")
    extract(photos, plain, backbone=other)
    ours, theirs = (stand_in.vectors(one, photos, "another") for one in (cache, plain))
    assert ours.tobytes() == theirs.tobytes()
    assert not verify(cache.path).clean
    verify(cache.path, repair=True)
    assert verify(cache.path).clean
    assert kept_in(Cache.open(cache.path)).counts().ok == 4
    found = extract(photos, cache.path, backbone=stand_in.backbone(), keep_pixels=SIZE)
    assert (found.spaces[1].hit, found.spaces[1].embedded) == (4, 1)


@pytest.mark.parametrize("file", ["row_crc/c/0", "digest/c/0/0", "manifest.json"])
def test_damage_beside_the_pixels_stops_no_other_backbone(
    make_photos: MakePhotos, tmp_path: Path, decoded: list[str], file: str
) -> None:
    photos, cache = Photos.read(make_photos(5)), opened(tmp_path)
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    flip(shard_of(kept_in(cache)).parents[3] / file, 9)
    decoded.clear()
    lines: list[str] = []
    other = stand_in.backbone("another")
    found = extract(photos, Cache.open(cache.path), backbone=other, log=lines.append)
    assert found.spaces[0].embedded == 5
    assert len(decoded) == 5
    assert len([line for line in lines if "are decoded: " in line]) == 1
    assert not verify(cache.path).clean


def test_photos_without_pixels_are_decoded(
    make_photos: MakePhotos, tmp_path: Path, decoded: list[str]
) -> None:
    folder, cache = make_photos(4), opened(tmp_path)
    extract(folder, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    make_photos(7)
    decoded.clear()
    extract(folder, cache, backbone=stand_in.backbone("another"))
    assert sorted(Path(path).name for path in decoded) == ["p004.jpg", "p005.jpg", "p006.jpg"]


def test_pixels_are_kept_of_photos_that_have_their_vectors_already(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos, cache = Photos.read(make_photos(3)), opened(tmp_path)
    batches: list[int] = []
    network = stand_in.backbone(before=batches.append)
    extract(photos, cache, backbone=network)
    batches.clear()
    found = extract(photos, cache, backbone=network, keep_pixels=SIZE)
    assert [(space.hit, space.embedded) for space in found.spaces] == [(3, 0), (0, 3)]
    assert batches == []
    assert "3 kept" in str(found)
    assert f"{SIZE} x {SIZE} pixels" in str(found)


def test_a_photo_that_cannot_be_decoded_fails_in_both(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder, cache = make_photos(3), opened(tmp_path)
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    found = extract(folder, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    assert [(space.embedded, space.failed) for space in found.spaces] == [(3, 1), (3, 1)]


def test_a_file_that_has_gone_since_the_plan_still_gets_the_vectors_of_its_pixels(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, cache = Photos.read(make_photos(3)), opened(tmp_path)
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)

    def vanished(path: str) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(prefetch, "read_file", vanished)
    other = with_preprocessing(stand_in.backbone("another"), resize="shortest")
    found = extract(photos, cache, backbone=[stand_in.backbone("third"), other])
    assert [(space.embedded, space.failed) for space in found.spaces] == [(3, 0), (0, 3)]


KILLED = """
    import os, signal, sys
    from embedcache import Cache, extract
    from tests import stand_in

    def killed(now):
        if now.done == 7 and not now.doing:
            os.kill(os.getpid(), signal.SIGKILL)

    extract(
        sys.argv[1], sys.argv[2],
        backbone=stand_in.backbone(), keep_pixels=stand_in.SIZE, workers=1, progress=killed,
    )
"""


def test_a_run_that_was_killed_goes_on_and_keeps_nothing_twice(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder, cache = make_photos(12), tmp_path / "c"
    words = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(cache)]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": root}, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    found = extract(folder, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    assert found.spaces[1].hit == 7
    assert found.spaces[1].embedded == 5
    assert verify(cache).clean
    assert kept_in(Cache.open(cache)).counts().ok == 12
