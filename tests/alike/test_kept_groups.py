"""The groups that are kept beside a cache are those of the vectors that count now."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.alike import groups, linking
from embedcache.alike.groups import alike_contents
from embedcache.alike.linking import Links
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.space import Space
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.verify import verify
from tests.stores import photos

SPEC = foreign("net", 2)
NUMBERS = (1, 2, 3)
APART: dict[int, tuple[float, float]] = {1: (1, 0), 2: (0, 1), 3: (-1, 0)}
ALIKE: dict[int, tuple[float, float]] = {1: (1, 0), 2: (1, 0.001), 3: (-1, 0)}


def write(space: Space, vectors: dict[int, tuple[float, float]]) -> Path:
    with space.writer(n_rows=len(vectors), name="net", about={}) as writer:
        writer.add(photos(*vectors), np.array([*vectors.values()], np.float32))
        return space.segments_folder / str(writer.commit())


def grouped(cache: Cache) -> int:
    """How many photos are in groups."""
    contents = {row.tobytes() for row in photos(*NUMBERS)}
    space = Cache.open(cache.path).space(SPEC)
    return len(alike_contents(cache, space, 0.99, contents=contents).digests)


def made(path: Path) -> Cache:
    cache = Cache.open(path, create=True)
    cache.record_photos("folder", [f"p{n}" for n in NUMBERS], photos(*NUMBERS))
    cache.space(SPEC, create=True)
    return cache


def test_a_repair_that_changes_which_vector_counts_drops_the_kept_groups(tmp_path: Path) -> None:
    cache = made(tmp_path / "a")
    first = write(cache.space(SPEC), APART)
    write(cache.space(SPEC), ALIKE)
    assert grouped(cache) == 0
    shard = first / "embedding/c/0/0"
    raw = bytearray(shard.read_bytes())
    raw[8] ^= 4  # of photo 2, whose other vector counts from now on
    shard.write_bytes(raw)
    verify(cache, repair=True)
    assert grouped(cache) == 2


def test_vectors_that_came_again_as_others_drop_the_kept_groups(tmp_path: Path) -> None:
    cache = made(tmp_path / "a")
    write(cache.space(SPEC), ALIKE)
    assert grouped(cache) == 2
    [file] = (cache.path / "local").rglob("*.groups")
    kept = file.read_bytes()
    forget(cache, ["p2"])
    cache.lift(photos(2), scope="folder", ids=["p2"])
    cache.record_photos("folder", ["p2"], photos(2))
    write(cache.space(SPEC), {2: (0, 1)})
    now = cache.remembered(f"alike/{file.name}")
    now.parent.mkdir(parents=True, exist_ok=True)
    now.write_bytes(kept)  # as of a command that was just writing it
    assert grouped(cache) == 0


def test_groups_stay_kept_while_the_same_vectors_lie_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = made(tmp_path / "a")
    for n, vector in ALIKE.items():
        write(cache.space(SPEC), {n: vector})
    assert grouped(cache) == 2
    compact(cache)
    monkeypatch.setattr(groups, "link", lambda *_, **__: pytest.fail("compared again"))
    assert grouped(cache) == 2


def test_groups_of_vectors_that_changed_while_they_were_compared_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = made(tmp_path / "a")
    first = write(cache.space(SPEC), APART)
    write(cache.space(SPEC), ALIKE)
    link = linking.link

    def meanwhile(*words: Any, **options: Any) -> Links:
        (first / "embedding/c/0/0").write_bytes(b"")
        verify(cache, repair=True)
        return link(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(groups, "link", meanwhile)
        grouped(cache)
    assert not [*(cache.path / "local").rglob("*.groups")]
    assert grouped(cache) == 2
