"""A forget, or the deletion of a ref, that is cut off: the next command ends it."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.store import history, proposals, refs
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, OK
from embedcache.upkeep import pinning
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget, forget_forgotten
from embedcache.upkeep.pinning import delete_refs, write_ref
from embedcache.upkeep.verify import verify
from tests.stores import fill, model, photos
from tests.upkeep.caches import SPEC, make

Run = Callable[..., tuple[int, str, str]]


class Killed(BaseException):
    """What no code catches."""


def dies(*_: object) -> NoReturn:
    raise Killed


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process counts as one that has ended."""
    monkeypatch.setattr(disk, "maker_is_gone", lambda name: True)


def both_cut_off(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two forgets, of both ids of photo 1, that look at once and die after their tombstones."""
    real = proposals.enter
    deed = [["twin"], ["p1"]]

    def dies(ready: Sequence[Path]) -> bool:
        deed.pop()
        if deed:  # the other looks before this one has written
            with pytest.raises(Killed):
                forget(Cache.open(cache.path), deed[0])
        real(ready)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(history, "enter", dies)
        with pytest.raises(Killed):
            forget(cache, ["p1"])


@pytest.mark.parametrize("after", ["forgotten", "other", "same"])
def test_both_ids_of_a_photo_forgotten_by_two_that_are_killed_leave_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: None, after: str
) -> None:
    cache = make(tmp_path / "a", *range(6))
    cache.record_photos("folder", ["twin"], photos(1))
    both_cut_off(cache, monkeypatch)
    assert Cache.open(cache.path).space(SPEC).status(photos(1, 2)).tolist() == [ABSENT, OK]
    assert "rows of forgotten photos" in str(verify(cache.path))
    shutil.rmtree(cache.local)  # nothing there decides
    cache = Cache.open(cache.path)
    if after == "forgotten":
        forget_forgotten(cache)
    elif after == "other":
        forget(cache, ["p4"])
    else:
        forget(cache, ["p1", "twin"])
    cache = Cache.open(cache.path)
    assert cache.space(SPEC).status(photos(1, 2)).tolist() == [ABSENT, OK]
    everything = b"".join(p.read_bytes() for p in cache.path.rglob("*") if p.is_file())
    assert model(photos(1)).tobytes() not in everything
    assert verify(cache).clean, str(verify(cache))


def test_a_photo_that_another_id_keeps_is_kept_by_what_ends_a_forget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: None
) -> None:
    cache = make(tmp_path / "a", 1, 2)
    cache.record_photos("folder", ["twin"], photos(1))

    with monkeypatch.context() as patched:
        patched.setattr(history, "enter", dies)
        patched.setattr(history, "drop", lambda ready: None)
        with pytest.raises(Killed):
            forget(cache, ["p1"])
    assert not verify(cache).clean
    forget_forgotten(Cache.open(cache.path))
    assert Cache.open(cache.path).space(SPEC).status(photos(1)).tolist() == [OK]
    assert verify(cache).clean, str(verify(cache))


def test_a_deletion_of_refs_that_is_killed_ends_when_it_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: None
) -> None:
    cache = make(tmp_path / "a", 1, 2)
    for name in ("one", "two", "three"):
        write_ref(cache, name)
    real, left = Path.unlink, [1]

    def dies(self: Path, *, missing_ok: bool = False) -> None:
        if self.name.startswith(".two.json") and left:
            left.pop()
            raise Killed
        real(self, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", dies)
        with pytest.raises(Killed):
            delete_refs(cache, ["one", "two", "three"])
    assert not verify(cache).clean
    assert delete_refs(cache, ["one", "two", "three"]).names == ("one", "two", "three")
    assert not list((cache.path / "refs").iterdir())
    assert verify(cache).clean, str(verify(cache))


def test_a_refs_name_is_used_once(tmp_path: Path, run: Run) -> None:
    cache = make(tmp_path / "a", 1, 2)
    write_ref(cache, "one")
    delete_refs(cache, ["one"])
    write_ref(cache, "one")  # the same segments: the same ref
    delete_refs(cache, ["one"])
    fill(cache.space(SPEC), photos(3))
    with pytest.raises(CacheError, match="had a ref 'one' before, which pinned other segments"):
        write_ref(cache, "one")
    assert not (cache.path / "refs" / "one.json").exists()
    assert write_ref(cache, "two").segments


def test_a_ref_written_again_by_a_process_that_died_is_taken_back_where_it_dangles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(tmp_path / "a", *range(6), segments=3)
    write_ref(cache, "one")
    delete_refs(cache, ["one"])

    def dies(*_: object, **__: object) -> None:
        raise Killed

    real = refs.write_ref

    def late(*words: object, **more: object) -> str:
        compact(Cache.open(cache.path))
        return real(*words, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(pinning, "_write_ref", late)
        patched.setattr(pinning, "withdraw_ref", dies)
        with pytest.raises(Killed):
            write_ref(cache, "one")
    assert (cache.path / "refs" / "one.json").exists()
    with pytest.raises(CacheError, match="had a ref 'one' before"):
        write_ref(Cache.open(cache.path), "one")
    assert not (cache.path / "refs" / "one.json").exists()
    assert verify(cache).clean, str(verify(cache))


def test_an_id_that_is_merely_gone_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: None
) -> None:
    cache = make(tmp_path / "a", *range(4))
    cache.record_photos("other", ["twin"], photos(1))

    with monkeypatch.context() as patched:
        patched.setattr(history, "enter", dies)
        patched.setattr(history, "drop", lambda ready: None)
        with pytest.raises(Killed):
            forget(cache, ["p1"])  # before its tombstone: nothing is forgotten yet
    for segment in cache.photo_segments():
        shutil.rmtree(segment.folder)
    cache = Cache.open(cache.path)
    cache.record_photos("folder", ["p2"], photos(2))
    forget(cache, ["p2"])
    forget_forgotten(Cache.open(cache.path))
    seen = Cache.open(cache.path).space(SPEC).status(photos(0, 1, 2, 3))
    assert seen.tolist() == [OK, OK, ABSENT, OK]


def test_a_ref_that_is_looked_at_under_a_hidden_name_pins_all_the_same(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", *range(6), segments=3)
    write_ref(cache, "one")
    held = {segment.id for segment in cache.space(SPEC).segments()}
    path = cache.path / "refs" / "one.json"
    aside = path.rename(disk.temporary_beside(path))
    compact(Cache.open(cache.path))
    aside.rename(path)
    assert held <= {segment.id for segment in Cache.open(cache.path).space(SPEC).segments()}
    assert verify(cache).clean, str(verify(cache))
