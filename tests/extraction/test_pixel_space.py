"""What a space of kept pixels is: its bounds, and what each command makes of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from embedcache.errors import CacheError, InputError, NoSuchSpace
from embedcache.extraction import sink
from embedcache.extraction.forecast import forecast
from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.exchange import export
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.inventory import summarise
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import stand_in
from tests.kept_pixels import ROW_BYTES, SIZE, kept_in, opened, shard_of

MakePhotos = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]


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
    status, out, err = run("forget", cache.path, "--space", f"pixels:{SIZE}")
    assert status == 0, err
    assert out.startswith(f"removed the pixels of 3 photos, kept as pixels:{SIZE} (spec ")
    assert f"--backbone pixels:{SIZE}', from a copy that has them" in out
    assert "identity" not in run("info", cache.path)[1]
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
