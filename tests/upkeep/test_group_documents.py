"""The zarr.json of a folder of the cache: where it can be proven, `verify --repair` puts it back.

A space's folder is named after the digest of its document, so the name proves what that was.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.backbones import spec_memo
from embedcache.backbones.spec_memo import remember
from embedcache.spec import FaceCrop, PooledLayer, Spec
from embedcache.store.cache import Cache
from embedcache.store.layout import face_digest
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.preprocessings import INCEPTION
from tests.stores import DETECTOR, fill, model, photos
from tests.upkeep.caches import SPEC, make

NUMBERS = (1, 2, 3, 4)
COMPUTED = Spec(
    kind="computed",
    architecture="inception_v3.tf_in1k",
    dim=8,
    arguments='{"num_classes":0}',
    weights="0123456789abcdef" * 4,
    preprocessing=INCEPTION,
    face=FaceCrop(detector=face_digest(DETECTOR), select="only", margin=0.2),
    layer=PooledLayer(path="blocks.5", pooling="avg_nchw"),
)
GROUPS = (
    "zarr.json",
    "spaces/zarr.json",
    "faces/zarr.json",
    "photos/zarr.json",
    "photos/segments/zarr.json",
    f"spaces/{SPEC.digest}/zarr.json",
    f"spaces/{SPEC.digest}/segments/zarr.json",
    f"spaces/{COMPUTED.digest}/zarr.json",
    f"faces/{face_digest(DETECTOR)}/zarr.json",
    f"faces/{face_digest(DETECTOR)}/segments/zarr.json",
)


def made(path: Path) -> Cache:
    """A cache with an imported and a computed space, faces and ids, all pinned by a ref."""
    cache = make(path, *NUMBERS)
    fill(cache.space(COMPUTED, create=True), photos(*NUMBERS))
    write_ref(cache, "r")
    return cache


def flip(path: Path, at: int, bits: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= bits
    path.write_bytes(raw)


def check_all_is_there(root: Path) -> None:
    assert verify(root).clean, str(verify(root))
    for ref in (None, "r"):
        cache = Cache.open(root, ref=ref)
        for spec in (SPEC, COMPUTED):
            read, found = cache.space(spec).read(photos(*NUMBERS))
            assert found.all()
            assert (read == model(photos(*NUMBERS))).all()
        [faces] = cache.face_spaces()
        assert faces.counts_of(photos(*NUMBERS)).tolist() == [n % 3 for n in NUMBERS]
        assert len(cache.photo_table()) == len(NUMBERS)


@pytest.mark.parametrize("name", GROUPS)
def test_one_wrong_byte_of_a_group_document_costs_no_row(name: str, tmp_path: Path) -> None:
    root = made(tmp_path / "a").path
    whole = (root / name).read_bytes()
    for k, bits in enumerate((0x01, 0x04, 0x20, 0x80, 0x5A)):
        at = k * (len(whole) - 1) // 4 - (3 if k == 4 else 0)
        flip(root / name, at, bits)
        [before] = verify(root).findings
        [done] = verify(root, repair=True).findings
        assert (before.path, before.lost_rows, before.mendable) == (name, 0, True), before
        assert (done.path, done.lost_rows, done.moved) == (name, 0, "rewritten"), done
        assert (root / name).read_bytes() == whole
    check_all_is_there(root)


@pytest.mark.parametrize("name", GROUPS[5:9:2])
def test_any_byte_of_a_spaces_document_may_be_wrong(name: str, tmp_path: Path) -> None:
    """Names of keys, quotes, brackets, digits and the space between."""
    root = made(tmp_path / "a").path
    whole = (root / name).read_bytes()
    for at in range(0, len(whole), 17):
        flip(root / name, at, 1 << at % 7)
        [done] = verify(root, repair=True).findings
        assert (done.lost_rows, done.moved) == (0, "rewritten"), at
        assert (root / name).read_bytes() == whole


def in_another_layout(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text())))


@pytest.mark.parametrize("damage", [in_another_layout, Path.unlink])
def test_a_document_that_something_else_says_too_costs_no_row(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    """The document of imported vectors follows from their name and size."""
    root = made(tmp_path / "a").path
    damage(root / GROUPS[5])
    [done] = verify(root, repair=True).findings
    assert (done.lost_rows, done.moved) == (0, "rewritten")
    check_all_is_there(root)


def test_a_lost_document_of_a_backbone_that_ran_here_costs_no_row(tmp_path: Path) -> None:
    """A run remembers the specs of its backbones."""
    cache = made(tmp_path / "a")
    weights = tmp_path / "weights"
    weights.write_bytes(b"")
    os.utime(weights, (0, 0))
    remember(cache.local / spec_memo.FILE, {"name": "n"}, COMPUTED, [weights])
    (cache.path / GROUPS[7]).write_bytes(b"")
    [done] = verify(cache.path, repair=True).findings
    assert (done.lost_rows, done.moved) == (0, "rewritten")
    check_all_is_there(cache.path)


def test_a_space_whose_document_nothing_proves_is_set_aside_and_named(tmp_path: Path) -> None:
    root = made(tmp_path / "a").path
    (root / GROUPS[7]).write_bytes(b"")
    [done] = [found for found in verify(root, repair=True).findings if found.lost_rows]
    assert (done.lost_rows, done.moved[:8]) == (len(NUMBERS), "damaged/")


def test_a_space_without_a_folder_of_segments_stays_a_space(tmp_path: Path) -> None:
    root = made(tmp_path / "a").path
    shutil.rmtree(root / "spaces" / COMPUTED.digest / "segments")
    assert verify(root).findings
    done = verify(root, repair=True)
    moved = {found.moved for found in done.findings if found.path.startswith("spaces")}
    assert moved == {"made anew", "rewritten"}
    assert Cache.open(root).space(COMPUTED).digests().shape == (0, 32)
