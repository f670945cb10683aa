"""Kept pixels: a space of bytes that a later network of the same preprocessing reads."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedcache.backbones.loading import Backbone, load
from embedcache.errors import CacheError, InputError, NoSuchSpace
from embedcache.extraction import prefetch, sink
from embedcache.extraction.forecast import forecast
from embedcache.extraction.run import extract
from embedcache.photos.digests import read_file
from embedcache.photos.table import Photos
from embedcache.spec import Preprocessing, Spec, pixels
from embedcache.store.cache import Cache
from embedcache.store.space import Space
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.exchange import export
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.inventory import summarise
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import stand_in

MakePhotos = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
SIZE = stand_in.SIZE
ROW_BYTES = 3 * SIZE * SIZE


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


def opened(tmp_path: Path, name: str = "c") -> Cache:
    return Cache.open(tmp_path / name, create=True)


def kept_in(cache: Cache) -> Space:
    [space] = [one for one in cache.spaces() if one.spec.kind == "pixels"]
    return space


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


def shard_of(space: Space) -> Path:
    [segment] = space.segments()
    return segment.folder / "embedding" / "c" / "0" / "0"


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


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


def test_segments_are_bounded_in_bytes(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "SEGMENT_BYTES", 4 * ROW_BYTES)
    photos, cache = Photos.read(make_photos(10)), opened(tmp_path)
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    assert [s.manifest.n_rows for s in kept_in(cache).segments()] == [4, 4, 2]
    assert len(cache.find("stand-in").segments()) == 1


def test_too_little_disk_is_said_before_anything_is_written(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, cache = Photos.read(make_photos(3)), opened(tmp_path)
    lines: list[str] = []
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE, log=lines.append)
    assert lines[0] == f"keeping {SIZE} x {SIZE} pixels of 3 photos as pixels:{SIZE}: 0.000 GB"
    other = opened(tmp_path, "other")
    free = SimpleNamespace(free=3 * ROW_BYTES - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    with pytest.raises(CacheError, match="are free for"):
        extract(photos, other, backbone=stand_in.backbone(), keep_pixels=SIZE)
    assert kept_in(other).counts().ok == 0


def test_a_forecast_counts_the_bytes_of_pixels(make_photos: MakePhotos, tmp_path: Path) -> None:
    photos = Photos.read(make_photos(3))
    found = forecast(photos, None, backbone=stand_in.backbone(), keep_pixels=SIZE)
    assert [space.n_bytes for space in found.spaces] == [3 * 8 * 4, 3 * ROW_BYTES]


def test_commands_that_need_vectors_do_not_offer_pixels(
    make_photos: MakePhotos, tmp_path: Path, run: Run
) -> None:
    photos, cache = Photos.read(make_photos(3)), opened(tmp_path)
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    digest = kept_in(cache).digest
    for name in (f"pixels:{SIZE}", digest[:8], f"pixels:{SIZE}#{digest[:8]}"):
        with pytest.raises(NoSuchSpace, match=r"are pixels of photos.*holds stand-in#\w+ \(8-d\)"):
            cache.find(name)
    with pytest.raises(NoSuchSpace, match=r"holds stand-in#\w+ \(8-d\)\. Name"):
        cache.find("nothing")
    words = ("--backbone", f"pixels:{SIZE}", "--json")
    for command in (("similar", cache.path, "p000.jpg"), ("duplicates", cache.path)):
        status, out, err = run(*command, *words)
        assert (status, out) == (1, "")
        assert "are pixels of photos" in err


def test_info_and_export_show_pixels_as_what_they_are(
    make_photos: MakePhotos, tmp_path: Path, run: Run
) -> None:
    photos, cache = Photos.read(make_photos(3)), opened(tmp_path)
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    assert f"pixels:{SIZE}  {SIZE} x {SIZE} pixels  spec" in str(summarise(cache))
    found = export(cache, f"pixels:{SIZE}", tmp_path / "p.npy")
    assert str(found).startswith(f"wrote 3 photos of {SIZE} x {SIZE} pixels to")
    matrix = np.load(tmp_path / "p.npy")
    assert (matrix.shape, matrix.dtype) == ((3, SIZE, SIZE, 3), np.uint8)
    rows, there = kept_in(cache).read(cache.digests_of(photos.ids)[0])
    assert there.all()
    assert np.array_equal(matrix.reshape(3, -1), rows)
    export(cache, f"pixels:{SIZE}", tmp_path / "p.npy")  # replaces its own
    with pytest.raises(InputError, match=r"go into a \.npy file"):
        export(cache, f"pixels:{SIZE}", tmp_path / "p.parquet")
    with pytest.raises(NoSuchSpace, match="are pixels of photos"):
        export(cache, ["stand-in", f"pixels:{SIZE}"], tmp_path / "both.npy")


def test_a_photo_with_pixels_and_no_vector_is_listed_as_lacking_one(
    make_photos: MakePhotos, tmp_path: Path, run: Run
) -> None:
    photos, cache = Photos.read(make_photos(3)), opened(tmp_path)
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    status, _, _ = run("forget", cache.path, "--space", "stand-in")
    assert status == 0
    found = summarise(Cache.open(cache.path), failed=True)
    assert found.photos is not None
    assert len(found.photos) == 3


def test_a_ref_pins_no_pixels_so_that_they_can_be_freed(
    make_photos: MakePhotos, tmp_path: Path, run: Run
) -> None:
    photos, cache = Photos.read(make_photos(3)), opened(tmp_path)
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    write_ref(cache, "then")
    status, _, err = run("forget", cache.path, "--space", f"pixels:{SIZE}")
    assert status == 0, err
    assert kept_in(Cache.open(cache.path)).counts().ok == 0
    assert Cache.open(cache.path, ref="then").find("stand-in").counts().ok == 3


def test_the_pixels_of_a_forgotten_photo_are_gone(make_photos: MakePhotos, tmp_path: Path) -> None:
    photos, cache = Photos.read(make_photos(5)), opened(tmp_path)
    extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    [row] = kept_in(cache).read(cache.digests_of(["p002.jpg"])[0])[0]
    assert row.tobytes() in shard_of(kept_in(cache)).read_bytes()
    forget(cache, ["p002.jpg"])
    files = [path for path in cache.path.rglob("*") if path.is_file()]
    assert not any(row.tobytes() in path.read_bytes() for path in files)
    assert kept_in(Cache.open(cache.path)).counts().ok == 4
    assert verify(cache.path).clean
    found = extract(photos, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    assert [(space.hit, space.forgotten) for space in found.spaces] == [(4, 1)] * 2


def test_compaction_joins_pixels_up_to_a_bound_and_merging_copies_them(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder, cache = make_photos(2), opened(tmp_path)
    for n in (2, 4, 6):
        make_photos(n)
        extract(folder, cache, backbone=stand_in.backbone(), keep_pixels=SIZE)
    before = kept_in(cache).read(kept_in(cache).digests())[0]
    cache = Cache.open(cache.path)
    kept_in(cache).joint_bytes = sum(
        s.manifest.bytes_on_disk for s in kept_in(cache).segments()[:2]
    )
    compact(cache)
    assert sorted(s.manifest.n_rows for s in kept_in(cache).segments()) == [2, 4]
    assert np.array_equal(kept_in(cache).read(kept_in(cache).digests())[0], before)
    other = opened(tmp_path, "other")
    merge(other, [cache])
    assert np.array_equal(kept_in(other).read(kept_in(cache).digests())[0], before)
    assert merge(other, [cache]).rows == 0
    assert verify(other.path).clean


def test_the_command_keeps_pixels_and_reads_them_again(
    make_photos: MakePhotos, tmp_path: Path, tiny_weights: Path, run: Run
) -> None:
    folder = make_photos(4)
    twin = tmp_path / "twin"
    shutil.copytree(tiny_weights, twin)
    config = json.loads((twin / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (twin / "config.json").write_text(json.dumps(config))
    words = ("extract", folder, "--cache", tmp_path / "c", "--device", "cpu")
    first = ("--backbone", f"local-dir:{tiny_weights}")
    status, _, err = run(*words, *first, "--keep-pixels", "100")
    assert status == 1
    assert "--keep-pixels 100" in err
    assert "takes 96 x 96; use 96" in err
    status, out, err = run(*words, *first, "--keep-pixels", "96", "--json")
    assert status == 0, err
    assert [one["embedded"] for one in json.loads(out)["spaces"]] == [4, 4]
    assert "keeping 96 x 96 pixels of 4 photos as pixels:96" in err
    status, _, err = run(*words, "--backbone", f"local-dir:{twin}")
    assert status == 0
    assert "4 of 4 photos are read as pixels from pixels:96 and not decoded" in err
    status, _, err = run(*words, *first, "--keep-pixels", "96", "--ray", "local")
    assert status == 1
    assert "do not go together" in err


INPUT = Preprocessing(
    size=(8, 8),
    resize="squash",
    crop_fraction=1.0,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    decode="1-full",
)


def test_a_spec_of_pixels_is_its_preprocessing_and_nothing_else() -> None:
    spec = pixels(INPUT)
    assert (spec.dim, spec.row_bytes, spec.stored, spec.apart) == (192, 192, "uint8", True)
    assert Spec.parse(spec.document()) == spec
    assert pixels(replace(INPUT, mean=(0.1, 0.1, 0.1))) == spec
    assert pixels(replace(INPUT, interpolation="bicubic")) != spec


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 193},
        {"dim": 191},
        {"precision": "float32"},
        {"weights": "0" * 64},
        {"architecture": "net"},
        {"arguments": '{"a":1}'},
        {"preprocessing": None},
        {"preprocessing": {"size": [8, 8, 3]}},
        {"preprocessing": {"size": [True, 192]}},
        {"preprocessing": {"size": ["8", "8"]}},
        {"preprocessing": {"size": [2048, 8]}},
        {"preprocessing": {"size": [0, 8]}},
        {"preprocessing": {"mean": [0.5, 0.5, 0.5]}},
        {"preprocessing": {"std": [0.5, 0.5, 0.5]}},
        {"face": {"detector": "0" * 64, "select": "only", "margin": 0.0}},
        {"layer": {"path": "a", "pooling": "none", "prefix_tokens": 0}},
    ],
)
def test_a_spec_of_pixels_that_says_more_is_refused(changes: dict[str, object]) -> None:
    document = pixels(INPUT).document()
    inner = changes.get("preprocessing")
    if isinstance(inner, dict):
        assert isinstance(document["preprocessing"], dict)
        changes = {"preprocessing": document["preprocessing"] | inner}
    with pytest.raises(CacheError, match="pixels"):
        Spec.parse(document | changes)
