"""Several repairs of one damaged cache, at once: what they keep is stored once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedcache.store.cache import Cache
from embedcache.store.manifest import replacement_id
from embedcache.store.segment import Segment
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.stores import model, photos
from tests.upkeep.caches import SPEC, make


def damage_vectors(segment: Segment) -> None:
    """One wrong byte in the first row."""
    path = segment.folder / "embedding" / "c" / "0" / "0"
    raw = bytearray(path.read_bytes())
    raw[0] ^= 1
    path.write_bytes(raw)


def damage_column(segment: Segment) -> None:
    path = segment.folder / "digest" / "c" / "0" / "0"
    raw = bytearray(path.read_bytes())
    raw[7] ^= 1
    path.write_bytes(raw)


def stored(cache: Cache, n_lost: int) -> None:
    """Each row is stored once, in every set of segments, and readable."""
    cache = Cache.open(cache.path)
    for one in cache.sets():
        names = np.concatenate([segment.column("digest") for segment in one.segments()])
        assert len(names) == len({row.tobytes() for row in names}), one.key
    rows, found = cache.space(SPEC).read(photos(1, 2, 3, 4))
    assert found.tolist() == [i >= n_lost for i in range(4)]
    assert (rows[found] == model(photos(1, 2, 3, 4))[found]).all()
    assert verify(cache).clean, str(verify(cache))


def damaged(path: Path, *damages: Callable[[Segment], None], pinned: bool = False) -> Cache:
    """A cache whose segments of vectors, faces and ids are damaged."""
    cache = make(path, 1, 2, 3, 4, segments=1)
    if pinned:
        write_ref(cache, "paper")
    [space], [faces] = cache.spaces(), cache.face_spaces()
    damages[0](space.segments()[0])
    for one in (faces, cache.photo_ids):
        damage_column(one.segments()[0])
    return cache


DAMAGES = (damage_vectors, damage_column)


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_three_repairs_one_inside_the_other_store_each_row_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Segment], None],
    pinned: bool,
) -> None:
    """Each pauses before it publishes what it keeps, and the next one begins."""
    cache = damaged(tmp_path / "a", damage, pinned=pinned)
    waiting = [None, None]

    def pausing(segment: str) -> str:
        if waiting:
            waiting.pop()
            verify(cache.path, repair=True)
        return replacement_id(segment)

    monkeypatch.setattr("embedcache.upkeep.repair.replacement_id", pausing)
    verify(cache.path, repair=True)
    assert not waiting
    stored(cache, n_lost=1 if damage is damage_vectors else 0)
    if pinned:
        at = Cache.open(cache.path, ref="paper").space(SPEC)
        assert at.read(photos(2, 3, 4))[1].all()


@pytest.mark.parametrize("damage", DAMAGES)
def test_three_processes_that_repair_at_once_store_each_row_once(
    tmp_path: Path, damage: Callable[[Segment], None]
) -> None:
    cache = damaged(tmp_path / "a", damage)
    words = [sys.executable, "-m", "embedcache", "verify", "--repair", str(cache.path)]
    here = Path(__file__).parents[2]
    running = [subprocess.Popen(words, stderr=subprocess.PIPE, cwd=here) for _ in range(3)]
    for one in running:
        _, errors = one.communicate(timeout=120)
        assert b"Traceback" not in errors
    stored(cache, n_lost=1 if damage is damage_vectors else 0)
