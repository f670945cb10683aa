"""A ref that lies aside for a moment is never lost there, whoever is killed, and wherever."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.sharing.share import push
from embedcache.store import refs
from embedcache.store.cache import Cache
from embedcache.upkeep import pinning
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import delete_refs, write_ref
from embedcache.upkeep.verify import verify
from tests.stores import fill, photos
from tests.upkeep.caches import SPEC, make


class Killed(BaseException):
    """What no code catches."""


def no_locks(*_: object) -> None:
    """As on some network file systems: deletions then do not take turns."""
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache with a ref `one` that pins what is gone, and that no entry of the log names."""
    monkeypatch.setattr(disk, "maker_is_gone", lambda name: True)  # whoever was killed
    monkeypatch.setattr("fcntl.flock", no_locks)
    cache = make(tmp_path / "a", *range(6), segments=3)
    real = refs.write_ref

    def late(*words: Any, **more: Any) -> str:
        compact(Cache.open(cache.path))
        return real(*words, **more)

    def dies(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(pinning, "_write_ref", late)
        patched.setattr(pinning, "_enter", dies)
        with pytest.raises(Killed):
            write_ref(cache, "one")
    cache = Cache.open(cache.path)
    assert "one" not in cache.history.log().refs
    fill(cache.space(SPEC), photos(7))
    return cache


def killed_with_it_aside(
    cache: Cache,
    deed: Callable[[Cache], object],
    monkeypatch: pytest.MonkeyPatch,
    *,
    dies: bool = True,
) -> None:
    """`deed` has read the dangling ref; a new one takes its place, and counts; `deed` renames it.

    dies: it is killed there.
    """
    path, real, left = cache.path / "refs" / "one.json", Path.rename, [1]

    def rename(self: Path, target: Path) -> Path:
        if self == path and left:
            left.pop()
            write_ref(Cache.open(cache.path), "one")
            found = real(self, target)
            if dies:
                raise Killed
            return found
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        if dies:
            with pytest.raises(Killed):
                deed(cache)
        else:
            deed(cache)
    assert not left


def stands(cache: Path) -> None:
    """The ref reads all that it pins, and nothing is wrong with the cache."""
    found = Cache.open(cache, ref="one").space(SPEC).read(photos(0, 1, 2, 3, 4, 5, 7))[1]
    assert found.all()
    assert [path.name for path in (cache / "refs").iterdir()] == ["one.json"]
    assert verify(cache).clean, str(verify(cache))


DEEDS: dict[str, Callable[[Cache], object]] = {
    "ref": lambda cache: write_ref(Cache.open(cache.path), "one"),
    "delete": lambda cache: delete_refs(Cache.open(cache.path), ["one"]),
    "finish": lambda cache: pinning.finish_ref(cache, "one"),
}
ENDS: dict[str, Callable[[Cache], object]] = {
    "compact": lambda cache: compact(Cache.open(cache.path)),
    "forget": lambda cache: forget(Cache.open(cache.path), ["9" * 64]),
    "repair": lambda cache: verify(cache, repair=True),
    "another ref": lambda cache: write_ref(Cache.open(cache.path), "two"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("deed", DEEDS)
def test_a_ref_that_counts_is_not_lost_by_a_command_that_is_killed_with_it_aside(
    deed: str, end: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_with_it_aside(cache, DEEDS[deed], monkeypatch)
    names = [path.name for path in (cache.path / "refs").iterdir()]
    assert len(names) == 1
    assert names[0].startswith(".one.json.")
    found = Cache.open(cache.path, ref="one").space(SPEC).read(photos(0, 5, 7))[1]
    assert found.all()  # also while it lies there
    report = verify(cache)
    assert "is ref one, put aside by a process that has ended" in str(report)
    assert "was deleted" not in str(report)
    ENDS[end](cache)
    fill(Cache.open(cache.path).space(SPEC), photos(8))
    compact(Cache.open(cache.path))
    if end == "another ref":
        delete_refs(Cache.open(cache.path), ["two"])
    stands(cache.path)


@pytest.mark.parametrize("deed", ["delete", "finish"])
def test_a_command_that_lives_puts_it_back_at_once(
    deed: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    if deed == "delete":  # whoever deletes a name deletes what has it then
        killed_with_it_aside(cache, DEEDS[deed], monkeypatch, dies=False)
        assert not [*(cache.path / "refs").iterdir()]
        return
    killed_with_it_aside(cache, DEEDS[deed], monkeypatch, dies=False)
    stands(cache.path)


def test_a_push_to_a_shared_folder_puts_it_back(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killed_with_it_aside(cache, DEEDS["finish"], monkeypatch)
    push(make(tmp_path / "b", 20, 21), str(cache.path))
    stands(cache.path)


def test_a_ref_that_comes_meanwhile_never_takes_its_place(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_with_it_aside(cache, DEEDS["finish"], monkeypatch)
    fill(Cache.open(cache.path).space(SPEC), photos(9))
    with pytest.raises(CacheError):
        write_ref(Cache.open(cache.path), "one")
    stands(cache.path)


def test_a_deletion_ends_one_that_was_killed_with_the_ref_aside(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_with_it_aside(cache, DEEDS["delete"], monkeypatch)
    assert delete_refs(Cache.open(cache.path), ["one"]).names == ("one",)
    assert not [*(cache.path / "refs").iterdir()]
    assert verify(cache).clean


def test_a_ref_of_which_only_half_was_written_goes(cache: Cache) -> None:
    delete_refs(cache, ["one"])
    half = disk.temporary_beside(cache.path / "refs" / "one.json")
    half.write_bytes(b'{"format": 1')
    compact(Cache.open(cache.path))
    assert not half.exists()


def test_refs_that_go_back_between_two_looks_pin(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie aside while the names are listed, and are back when what lies aside is listed."""
    write_ref(cache, "one")
    held = {segment.id for segment in Cache.open(cache.path).space(SPEC).segments()}
    path = cache.path / "refs" / "one.json"
    real, aside = refs.refs_aside, [path.rename(disk.temporary_beside(path))]

    def late(*words: Any) -> list[refs.Aside]:
        if aside:
            aside.pop().rename(path)
        return real(*words)

    monkeypatch.setattr(refs, "refs_aside", late)
    log = cache.history.log()
    assert refs.pinned_ids(cache.path, cache.space(SPEC).key, log) == held
