"""What `compact` says of itself: never more segments than there were, never bytes below zero."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedcache.store.cache import Cache
from embedcache.store.space import Space
from embedcache.upkeep.compaction import Compacted, compact
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.stores import fill, model, photos
from tests.upkeep.caches import SPEC, make


def ids(cache: Cache) -> list[str]:
    return [segment.id for segment in cache.space(SPEC).segments()]


def after_rewriting(monkeypatch: pytest.MonkeyPatch, deed: Callable[[], object]) -> None:
    """Do something once, after `compact` has written its first new segment."""
    rewrite, done = Space.rewrite, list[bool]()

    def then(space: Space, *arguments: Any, **options: Any) -> Any:
        new = rewrite(space, *arguments, **options)
        if not done:
            done.append(True)
            deed()
        return new

    monkeypatch.setattr(Space, "rewrite", then)


def test_a_ref_that_pins_all_meanwhile_leaves_no_segment_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(tmp_path / "a", *range(4))
    before = ids(cache)
    pinned = cache.path / "refs" / "r.json"
    write_ref(cache, "r")
    raw = pinned.read_bytes()
    pinned.unlink()
    after_rewriting(monkeypatch, lambda: pinned.write_bytes(raw))
    told = compact(cache)
    assert ids(cache) == before
    assert (told.before, told.after) == (3, 3)  # with the segment of faces
    assert told.bytes_freed == 0
    assert verify(cache).clean


def test_what_others_write_meanwhile_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(tmp_path / "a", *range(4))
    after_rewriting(monkeypatch, lambda: fill(Cache.open(cache.path).space(SPEC), photos(9)))
    told = compact(cache)
    assert (told.before, told.after) == (3, 2)
    assert told.bytes_freed > 0
    assert len(ids(cache)) == 2


def test_a_segment_that_holds_all_rows_of_others_stays_and_these_go(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", *range(4), segments=1)
    [first] = ids(cache)
    fill(cache.space(SPEC), photos(1, 2))
    told = compact(cache)
    assert (told.before, told.after, told.rows) == (3, 2, 0)
    assert told.bytes_freed > 0
    assert ids(cache) == [first]
    assert (cache.space(SPEC).read(photos(*range(4)))[0] == model(photos(*range(4)))).all()


def test_segments_of_different_names_are_left_as_they_are(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 0, 1, segments=1)
    fill(cache.space(SPEC), photos(2, 3), name="other")
    before = ids(cache)
    told = compact(cache)
    assert (told.before, told.after, told.rows, told.bytes_freed) == (3, 3, 0, 0)
    assert ids(cache) == before


def test_growth_is_called_growth() -> None:
    told = Compacted(before=2, after=1, rows=2, bytes_freed=-1234, pinned=0)
    assert "grew by 1,234 bytes" in str(told)
    assert "-" not in str(told)
