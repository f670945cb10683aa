"""Photos with several ids: what is left to other ids, beside others who publish or forget these."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedcache.store import history, photo_ids
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, OK
from embedcache.upkeep.forgetting import forget, forget_forgotten
from embedcache.upkeep.merging import merge
from embedcache.upkeep.verify import verify
from tests.stores import fill, model, photos
from tests.upkeep.caches import SPEC, make


def status(path: Path) -> int:
    """Whether photo 1 has a vector."""
    [found] = Cache.open(path).space(SPEC).status(photos(1)).tolist()
    return int(found)


def twins(path: Path, *more: str) -> Cache:
    """Photos 1 and 2; the first under other ids too."""
    cache = make(path, 1, 2)
    for name in more:
        cache.record_photos("other", [name], photos(1))
    return cache


@pytest.mark.parametrize("moment", ["propose", "enter"])
@pytest.mark.parametrize("asked", ["id", "ids"])
def test_an_id_that_comes_while_another_of_the_photo_is_forgotten_keeps_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, asked: str
) -> None:
    cache = twins(tmp_path / "a", *(["twin"] if asked == "ids" else []))
    real = getattr(history, moment)
    came: list[str] = []

    def comes_first(*given: object) -> object:
        if not came:
            came.append("new")
            Cache.open(cache.path).record_photos("third", ["new"], photos(1))
        return real(*given)

    monkeypatch.setattr(history, moment, comes_first)
    done = forget(cache, ["p1", "twin"] if asked == "ids" else ["p1"])
    assert done.kept == ("new",)
    assert status(cache.path) == OK
    left = Cache.open(cache.path).photo_ids.pairs_of(contents=[photos(1).tobytes()])
    assert left == {("third", "new", photos(1).tobytes())}
    assert verify(cache).clean, str(verify(cache))
    assert not [path.name for path in (cache.path / "forgotten").glob(".*")]


def test_an_id_that_comes_after_the_tombstone_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = twins(tmp_path / "a")
    real = photo_ids.write_pairs

    def forgotten_first(*given: Any, **more: Any) -> str:
        monkeypatch.undo()
        forget(cache, ["p1"])
        return real(*given, **more)

    monkeypatch.setattr(photo_ids, "write_pairs", forgotten_first)
    for name in ("new", "newer"):
        Cache.open(cache.path).record_photos("third", [name], photos(1))
        assert Cache.open(cache.path).photo_ids.pairs_of(contents=[photos(1).tobytes()]) == set()
        assert status(cache.path) == ABSENT
    assert verify(cache).clean, str(verify(cache))


def exchange_by_merge(one: Path, other: Path) -> None:
    merge(Cache.open(one), [Cache.open(other)], with_ids=True)
    merge(Cache.open(other), [Cache.open(one)], with_ids=True)


def exchange_by_files(one: Path, other: Path) -> None:
    """Tombstones alone, as a push and two pulls bring them."""
    for here, there in ((one, other), (other, one)):
        lifts, tombstones = Cache.open(there).history.files()
        Cache.open(here).adopt(lifts=lifts, tombstones=tombstones)


@pytest.mark.parametrize("exchange", [exchange_by_merge, exchange_by_files])
def test_copies_that_forget_an_id_each_leave_no_row(
    tmp_path: Path, exchange: Callable[[Path, Path], None]
) -> None:
    a = twins(tmp_path / "a", "twin").path
    b = Path(shutil.copytree(a, tmp_path / "b"))
    forget(Cache.open(a), ["p1"])
    forget(Cache.open(b), ["twin"])
    assert [status(a), status(b)] == [OK, OK]
    exchange(a, b)
    for path in (a, b):
        assert status(path) == ABSENT
        forget_forgotten(Cache.open(path))
        everything = b"".join(p.read_bytes() for p in path.rglob("*") if p.is_file())
        assert model(photos(1)).tobytes() not in everything
        assert model(photos(2)).tobytes() in everything
        assert verify(path).clean, str(verify(path))
    fill(Cache.open(a).space(SPEC), photos(1))  # and nothing brings it back
    assert status(a) == ABSENT


def test_an_id_that_a_copy_has_alone_keeps_what_both_had(tmp_path: Path) -> None:
    a = twins(tmp_path / "a", "twin").path
    b = Path(shutil.copytree(a, tmp_path / "b"))
    Cache.open(b).record_photos("b", ["only-here"], photos(1))
    forget(Cache.open(a), ["p1"])
    forget(Cache.open(b), ["twin"])
    exchange_by_files(a, b)
    assert [status(a), status(b)] == [OK, OK]
    forget(Cache.open(b), ["only-here"])
    exchange_by_files(a, b)
    assert [status(a), status(b)] == [ABSENT, ABSENT]


@pytest.mark.parametrize("exchange", [exchange_by_merge, exchange_by_files])
def test_an_id_that_came_after_the_list_keeps_its_row_in_an_exchange(
    tmp_path: Path, exchange: Callable[[Path, Path], None]
) -> None:
    a = twins(tmp_path / "a", "twin").path
    b = Path(shutil.copytree(a, tmp_path / "b"))
    forget(Cache.open(a), ["p1"])  # left to twin
    Cache.open(a).record_photos("third", ["later"], photos(1))
    forget(Cache.open(b), ["twin"])  # left to p1
    exchange(a, b)
    forget_forgotten(Cache.open(a))
    assert status(a) == OK
    left = Cache.open(a).photo_ids.pairs_of(contents=[photos(1).tobytes()])
    assert left == {("third", "later", photos(1).tobytes())}
    exchange(b, a)
    assert [status(a), status(b)] == [OK, OK]
    forget(Cache.open(a), ["later"])
    exchange(a, b)
    assert [status(a), status(b)] == [ABSENT, ABSENT]
    assert verify(a).clean, str(verify(a))


def test_what_went_by_its_lists_comes_again_on_purpose_only(tmp_path: Path) -> None:
    a = twins(tmp_path / "a", "twin").path
    b = Path(shutil.copytree(a, tmp_path / "b"))
    forget(Cache.open(a), ["p1"])
    forget(Cache.open(b), ["twin"])
    exchange_by_files(a, b)
    cache = Cache.open(a)
    cache.lift(photos(1), scope="new", ids=["new"])
    cache.record_photos("new", ["new"], photos(1))
    assert status(a) == OK
    exchange_by_files(a, b)
    assert status(b) == OK
    forget(Cache.open(a), ["new"])
    exchange_by_files(a, b)
    assert [status(a), status(b)] == [ABSENT, ABSENT]


@pytest.mark.parametrize("kept", ["in memory", "on disk"])
def test_indexes_follow_lists_that_end_and_lists_that_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    monkeypatch.setattr("embedcache.store.rows.INDEX_SEGMENTS", 1)
    a = twins(tmp_path / "a", "twin").path
    b = Path(shutil.copytree(a, tmp_path / "b"))
    c = Path(shutil.copytree(a, tmp_path / "c"))
    Cache.open(c).record_photos("c", ["c1", "c2"], photos(1, 1))
    forget(Cache.open(a), ["p1"])
    forget(Cache.open(b), ["twin"])
    forget(Cache.open(c), ["c1"])
    reader = Cache.open(a)

    def seen() -> int:
        space = (reader if kept == "in memory" else Cache.open(a)).space(SPEC)
        return int(space.status(photos(1))[0])

    found = [seen()]
    for other in (b, c):
        lifts, tombstones = Cache.open(other).history.files()
        Cache.open(a).adopt(lifts=lifts, tombstones=tombstones)
        found.append(seen())
    assert found == [OK, ABSENT, OK]  # c has it under an id that nobody forgot
