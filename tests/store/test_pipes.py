"""A pipe in the place of a file of a cache keeps no command waiting."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embedcache import disk
from embedcache.alike.groups import alike_contents
from embedcache.errors import EmbedcacheError
from embedcache.photos.memo import MEMO, DigestMemo
from embedcache.sharing.share import pull, push
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.stores import photos
from tests.upkeep.caches import SPEC, make

SECONDS = 60


@pytest.fixture(autouse=True)
def in_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)

    def late(*_: object) -> None:
        raise TimeoutError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    """A pipe that nobody writes to, in place of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def one_of(cache: Cache, pattern: str) -> Path:
    return sorted(cache.path.glob(pattern))[0]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache that has every file that a command reads, and a shared copy of it."""
    cache = make(tmp_path / "cache", 1, 2, 3, 4)
    write_ref(cache, "paper")
    forget(cache, ["p4"])
    push(cache, str(tmp_path / "shared"), with_ids=True)
    compact(cache)
    cache.remember_places({SPEC.digest: "facenet:x"})
    return cache


# What this machine keeps for itself: a pipe is as good as nothing.
KEPT = (
    *("staging", "backbones.json", "specs.json", "push.lock"),
    *("memory/*/digests.npz", "memory/*/.digests.npz.lock", "memory/*/alike/*.groups"),
    *("memory/*/index/*.table", "memory/*/remotes/*/*", "seen/*.json", "alike/*.json"),
)


@pytest.mark.parametrize("name", KEPT)
def test_a_pipe_in_local_is_as_good_as_nothing(name: str, cache: Cache, tmp_path: Path) -> None:
    now = cache.remembered("").relative_to(cache.local)
    absent = name.replace("memory/*", str(now)).replace("*", "0" * 64)
    for path in list(cache.local.glob(name)) or [cache.local / absent]:
        pipe(path)
    shared = str(tmp_path / "shared")
    opened = Cache.open(cache.path)
    opened.places()
    memo = DigestMemo(cache.remembered(MEMO))
    memo.put("/a", 1, 0, bytes(32), 10**18)
    memo.write()
    push(opened, shared)
    pull(shared, opened)
    assert opened.find("net").read(opened.photo_table().digests)[1].any()
    forget(opened, ["p1"])
    compact(opened)
    verify(opened)


def try_all(cache: Cache, shared: Path) -> list[str]:
    """What commands say of a cache with a pipe in it; each ends."""
    commands: list[Callable[[], object]] = [
        lambda: Cache.open(cache.path).vectors("net", ["p1"]),
        lambda: push(Cache.open(cache.path), str(shared)),
        lambda: forget(Cache.open(cache.path), ["p2"]),
        lambda: compact(Cache.open(cache.path)),
        lambda: write_ref(Cache.open(cache.path), "later"),
    ]
    said = []
    for command in commands:
        try:
            command()
        except EmbedcacheError as error:
            said.append(str(error))
    return said


STORED = (
    *("zarr.json", "spaces/zarr.json", "spaces/*/zarr.json", "refs/paper.json"),
    *("removed/*/entry.json", "forgotten/*.json", "photos/segments/*/manifest.json"),
    *("spaces/*/segments/*/manifest.json", "spaces/*/segments/*/digest/c/0/0"),
    *("spaces/*/segments/*/embedding/c/0/0", "spaces/*/segments/*/zarr.json"),
)


@pytest.mark.parametrize("pattern", STORED)
def test_a_pipe_in_the_place_of_a_stored_file_is_damage(
    pattern: str, cache: Cache, tmp_path: Path
) -> None:
    pipe(one_of(cache, pattern))
    assert not verify(cache).clean
    said = try_all(cache, tmp_path / "shared")
    assert all("\n" not in text for text in said)
    verify(cache, repair=True)


def test_a_pipe_in_a_draft_or_among_the_files_of_a_push_is_waited_for_by_nobody(
    cache: Cache, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    segment = cache.space(SPEC).segments()[0]
    draft = segment.folder.with_name("20260101T000000000000-01234567") / "writing"
    draft.mkdir(parents=True)
    pipe(draft / "lease.json")
    pipe(draft / "journal")
    pipe(segment.folder / "notes")
    pipe(shared / "refs" / "later.json")
    try_all(cache, shared)
    verify(cache, repair=True)
    verify(shared)


def test_groups_are_found_beside_a_pipe(cache: Cache) -> None:
    contents = {row.tobytes() for row in photos(1, 2, 3)}
    found = alike_contents(cache, cache.find("net"), 0.0, contents=contents)
    [path] = cache.local.rglob("*.groups")
    pipe(path)
    again = alike_contents(cache, cache.find("net"), 0.0, contents=contents)
    assert again.keys() == found.keys()
