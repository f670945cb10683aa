"""The plan of a run against the same counted photo by photo."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from embedcache.extraction.plan import plan
from embedcache.photos.digests import Digests
from embedcache.photos.table import Photos
from embedcache.spec import foreign
from embedcache.store import index
from embedcache.store.cache import Cache
from embedcache.store.space import Space
from embedcache.store.tombstones import content_mark
from tests.stores import model, photos

REASONS = ["vanished", "unreadable"]


def space_of(cache: Cache, name: str, good: list[int], failed: list[int]) -> Space:
    space = cache.space(foreign(name, 8), create=True)
    for some, lost in ((good[::2], failed), (good[1::2], [])):
        with space.writer(n_rows=len(good) + len(failed), name=name, about={}) as writer:
            writer.add(photos(*some), model(photos(*some)))
            writer.fail(photos(*lost), [f"broken {n % 2}" for n in lost])
    return space


@pytest.mark.parametrize("retry_failed", [False, True])
@pytest.mark.parametrize("block", [3, 1 << 17])
def test_a_plan_is_what_one_would_count_photo_by_photo(
    tmp_path: Path, block: int, retry_failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "BLOCK_ROWS", block)
    rng = np.random.default_rng(6)
    cache = Cache.open(tmp_path / "c", create=True)
    held = [([*range(10)], [20, 21, 22]), ([*range(5, 15)], [2, 23])]
    spaces: list[Space | None] = [
        space_of(cache, f"net {k}", good, failed) for k, (good, failed) in enumerate(held)
    ]
    cache.history.forget(contents=[content_mark(photos(n).tobytes()) for n in (3, 7, 30)])
    forgotten = {3, 7, 30}
    for _ in range(40):
        numbers = rng.integers(0, 40, int(rng.integers(0, 60))).tolist()
        names = tuple(f"p{i}" for i in range(len(numbers)))
        value = photos(*numbers).copy()
        lost = {i: REASONS[i % 2] for i in range(len(numbers)) if rng.random() < 0.1}
        unread = np.array([i for i in range(len(numbers)) if i % 9 == 8 and i not in lost], int)
        value[[*lost, *unread]] = 0
        found, tallies = plan(
            Photos(names, names, "folder"),
            Digests(value, lost, 0, unread),
            [*spaces, None],
            retry_failed=retry_failed,
        )
        missing = {*lost, *unread.tolist()}
        copies = Counter(n for i, n in enumerate(numbers) if i not in missing)
        wanted: dict[int, list[bool]] = {n: [] for n in dict.fromkeys(copies)}
        for k, tally in enumerate(tallies):
            good, failed = held[k] if k < 2 else ([], [])
            again = {*failed} if retry_failed else set[int]()
            reasons = Counter(lost.values())
            for n, many in copies.items():
                gone, there = n in forgotten, n in good
                wanted[n].append(not gone and not there and (n not in failed or n in again))
                if n in failed and not retry_failed and not there:
                    reasons[f"broken {n % 2}"] += many
            assert tally.wanted == len(numbers)
            assert tally.hit == sum(
                m for n, m in copies.items() if n in good and n not in forgotten
            )
            assert tally.forgotten == sum(m for n, m in copies.items() if n in forgotten)
            assert tally.failed == reasons
        some = [n for n, by_space in wanted.items() if any(by_space)]
        first = [
            next(i for i, m in enumerate(numbers) if m == n and i not in missing) for n in some
        ]
        assert found.positions.tolist() == first
        assert found.copies.tolist() == [copies[n] for n in some]
        assert found.wanted.tolist() == [wanted[n] for n in some]
        assert np.array_equal(found.digests, photos(*some))
