"""A cache and its copies push to one place at once: none writes into what another is sending."""

import errno
import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from embedcache import disk
from embedcache.remotes.folder import LocalFiles
from embedcache.sharing import connecting, sending
from embedcache.sharing.connecting import staging_of
from embedcache.sharing.share import alone, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from tests.sharing.members import Make


def copied(cache: Cache, *words: str) -> Cache:
    """What `cp` with these options makes of a cache."""
    target = cache.path.with_name(f"copy{''.join(words)}")
    subprocess.run(["cp", *words, str(cache.path), str(target)], check=True)
    return Cache.open(target)


@pytest.mark.parametrize("how", ["-r", "-a", "-al"])
def test_a_copy_stages_under_a_name_of_its_own(how: str, make: Make) -> None:
    cache = make("a", [0, 1])
    name = staging_of(cache)
    copy = copied(cache, how)
    # With hard links the time of the one file, which both have, is new for both.
    names = staging_of(cache), staging_of(copy)
    assert len({*names}) == 2
    assert how == "-al" or names[0] == name
    assert all(staging_of(Cache.open(one.path)) == staging_of(one) for one in (cache, copy))


def test_a_cache_that_was_moved_stages_under_its_old_name(tmp_path: Path, make: Make) -> None:
    cache = make("a", [0, 1])
    name = staging_of(cache)
    cache.path.rename(tmp_path / "moved")
    assert staging_of(Cache.open(tmp_path / "moved")) == name
    assert name == staging_of(Cache.open(tmp_path / "moved"))


@pytest.mark.parametrize("place", ["staging", "its folder"])
def test_a_staging_name_that_is_lost_is_made_anew(place: str, make: Make) -> None:
    cache = make("a", [0, 1])
    name = staging_of(cache)
    if place == "staging":
        (cache.local / "staging").write_bytes(b"\xff no name of ours \n")
    else:
        shutil.rmtree(cache.local)
    new = staging_of(cache)
    assert new != name
    assert len(new) == 8
    assert staging_of(Cache.open(cache.path)) == new


def test_a_copy_that_dies_amid_a_file_leaves_the_push_of_the_original_whole(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy opens a file, which empties it, while the original is in the middle of it."""
    folder = tmp_path / "shared"
    push(make("first", [8]), str(folder))
    cache = make("a", list(range(8)))
    staging_of(cache)
    copy = copied(cache, "-r")
    monkeypatch.setattr(sending, "BLOCK_BYTES", 64)
    write = LocalFiles.write
    inside: list[str] = []

    def dies(blocks: Iterator[bytes]) -> Iterator[bytes]:
        yield next(blocks)
        raise KeyboardInterrupt

    def paused(blocks: Iterator[bytes]) -> Iterator[bytes]:
        for _ in range(3):
            yield next(blocks)
        with pytest.raises(KeyboardInterrupt):
            push(copy, str(folder))
        yield from blocks

    def meanwhile(self: LocalFiles, path: str, blocks: Iterator[bytes]) -> None:
        how: Callable[[Iterator[bytes]], Iterator[bytes]] = iter
        if "/embedding/c/" in path:
            inside.append(path)
            how = {1: paused, 2: dies}.get(len(inside), iter)
        write(self, path, how(blocks))

    monkeypatch.setattr(LocalFiles, "write", meanwhile)
    monkeypatch.setattr(LocalFiles, "remove", lambda self, path, ours=None: None)  # as after a kill
    push(cache, str(folder))
    monkeypatch.undo()
    assert len(inside) == 2
    assert not [
        text for text in verify_remote(f"file://{folder}").findings if "was left" not in text
    ]
    push(copy, str(folder))
    assert verify_remote(f"file://{folder}").clean
    assert not [name for name in os.listdir(folder / "spaces") if name.startswith(".")]


UNFIT = {"nothing": None, "an empty file": b"", "other bytes": b"\xff no name of ours \n"}


@pytest.mark.parametrize("before", UNFIT)
@pytest.mark.parametrize("apart", ["processes", "threads"])
def test_two_first_commands_at_once_agree_on_a_mark(
    before: str, apart: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make("a", [0, 1])
    found = UNFIT[before]
    if found is not None:
        (cache.local / "staging").write_bytes(found)
    elsewhere = (
        "import sys\nfrom embedcache.sharing.connecting import staging_of\n"
        "from embedcache.store import Cache\nprint(staging_of(Cache.open(sys.argv[1])))"
    )
    replace, others = disk.replace, list[Future[str]]()

    def process() -> str:
        words = [sys.executable, "-c", elsewhere, str(cache.path)]
        return subprocess.run(
            words, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
        ).stdout.strip()

    with ThreadPoolExecutor(1) as beside:

        def slow(path: Path, data: bytes, **options: bool) -> None:
            """The other one begins after this one found no digits, and before it writes them."""
            if path.name == "staging" and not others:
                task = process if apart == "processes" else lambda: staging_of(cache)
                others.append(beside.submit(task))
                wait(others, timeout=2 if apart == "processes" else 0.3)
            replace(path, data, **options)

        monkeypatch.setattr(disk, "replace", slow)
        mine = staging_of(cache)
    assert [other.result() for other in others] == [mine]
    assert staging_of(Cache.open(cache.path)) == mine


def as_if_read_only(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache on a file system that is mounted read-only, whoever runs the tests."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != cache.path and real(path, mode))

    def refuse(path: Path, *more: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(connecting, "_new_staging_digits", refuse)


def test_a_cache_that_cannot_be_written_stages_under_one_name(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make("a", [0, 1]), make("b", [0, 1])
    for cache in (a, b):
        as_if_read_only(cache, monkeypatch)
        (cache.path / "local" / "staging").unlink(missing_ok=True)
    names = staging_of(a), staging_of(b)
    assert names == (staging_of(Cache.open(a.path)), staging_of(Cache.open(b.path)))
    assert names[0] != names[1]
    with alone(a):
        assert staging_of(a) == names[0]
    monkeypatch.setattr(platform, "node", lambda: "another host")
    assert staging_of(a) != names[0]


def test_pushes_of_a_read_only_cache_that_no_lock_keeps_apart_have_names_of_their_own(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make("a", [0, 1])
    as_if_read_only(cache, monkeypatch)

    def refuse(fd: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert staging_of(cache) != staging_of(cache)
    with alone(cache):
        pass
