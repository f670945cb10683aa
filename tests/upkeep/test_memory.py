"""What this machine remembers of photos holds none that was forgotten, whoever was killed where."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedcache.alike.originals import paths_of
from embedcache.extraction.run import extract
from embedcache.extraction.upgrade import upgrade
from embedcache.photos.memo import MEMO, DigestMemo
from embedcache.photos.table import Photos
from embedcache.sharing.joining import ROWS, compact_remote
from embedcache.sharing.memo import Memo
from embedcache.sharing.share import open_copy, pull, push
from embedcache.store import memory
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import stand_in
from tests.stores import photos
from tests.upkeep.caches import SPEC, make


def everything_in(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_what_is_remembered_of_a_remote_is_not_kept_beside_a_forget(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    memo = Memo(cache.remembered("remotes/0123"))

    def fetch() -> bytes:
        forget(cache, ["p1"])
        return photos(1).tobytes()

    assert memo.get("column", fetch) == photos(1).tobytes()
    assert photos(1).tobytes() not in everything_in(cache.path)
    assert Memo(cache.remembered("remotes/0123")).get("b", lambda: b"b") == b"b"
    assert Memo(cache.remembered("remotes/0123")).get("b", lambda: b"c") == b"b"


def folder_of(path: Path, n: int) -> Photos:
    path.mkdir()
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
        os.utime(path / f"{i}.png", (1e9, 1e9))
    return Photos.read(path)


@pytest.mark.parametrize("amid", [False, True])
def test_the_memo_of_files_holds_no_forgotten_photo(tmp_path: Path, amid: bool) -> None:
    found, cache = folder_of(tmp_path / "photos", 3), Cache.open(tmp_path / "c", create=True)
    digests = found.digests().value
    cache.record_photos(found.scope, found.ids, digests)
    seen: list[int] = []

    class Late(Cache):
        """Forgets while the memo is about to be written."""

        def dead_pairs(self, scope: str, ids: Sequence[str], digests: np.ndarray) -> np.ndarray:
            told = super().dead_pairs(scope, ids, digests)
            if amid and not seen:
                seen.append(1)
                forget(Cache.open(cache.path), ["1.png"])
            return told

    if not amid:
        forget(cache, ["1.png"])
    again = found.digests(Late(cache.path))
    assert (again.value == digests).all()
    names = [name for name, _ in DigestMemo(cache.remembered(MEMO)).files()]
    assert not [name for name in names if name.endswith("1.png")]
    assert len(names) == (0 if amid else 2)
    assert digests[1].tobytes() not in everything_in(cache.path)
    assert found.digests(cache).n_read == (3 if amid else 1)


def test_nothing_is_carried_over_while_a_forget_stands_behind_its_tombstone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, cache = folder_of(tmp_path / "photos", 3), Cache.open(tmp_path / "c", create=True)
    digests = found.digests(cache).value
    cache.record_photos(found.scope, found.ids, digests)
    assert digests[1].tobytes() in everything_in(cache.path / "local")
    waiting = iter([True])

    def stand(path: Path) -> None:
        if next(waiting, False):  # all others look, and write, before this one deletes
            found.digests(Cache.open(path))
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(memory, "delete_outdated", stand)
    run_and_die(lambda: forget(cache, ["1.png"]))
    monkeypatch.undo()
    report = verify(cache)
    assert "is remembered from before photos were forgotten" in str(report)
    assert not report.clean
    [left] = [one.path for one in report.findings if one.path.startswith("local/")]
    assert digests[1].tobytes() not in everything_in(cache.remembered(""))
    assert Path(left).name != cache.remembered("").name
    compact(cache)
    assert digests[1].tobytes() not in everything_in(cache.path)
    assert verify(cache).clean


def run_and_die(what: Callable[[], object]) -> None:
    """Run something in a process of its own, which must be killed meanwhile."""
    if not (child := os.fork()):
        what()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


WAYS: dict[str, Callable[[Cache], object]] = {
    "compact": compact,
    "merge": lambda cache: merge(cache, [make(cache.path.parent / "x", 7)]),
    "pull": lambda cache: pull(shared_by(cache), cache),
    "push": lambda cache: push(cache, (cache.path.parent / "remote").as_uri()),
    "repair": lambda cache: verify(cache, repair=True),
    "forget": lambda cache: forget(cache, ["p2"]),
    "ref": lambda cache: write_ref(cache, "paper"),
}


def shared_by(cache: Cache) -> str:
    push(make(cache.path.parent / "y", 8), (cache.path.parent / "remote").as_uri())
    return (cache.path.parent / "remote").as_uri()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("version", ["now", "before"])
def test_what_was_remembered_before_a_forget_goes_with_the_next_command(
    tmp_path: Path, way: str, version: str
) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    old = cache.local if version == "before" else cache.remembered("")
    forget(cache, ["p1"])
    files = [old / MEMO, old / "index" / f"{SPEC.digest}.table", old / "remotes/0/1", old / ".x"]
    files[3] = old / "alike" / f"{SPEC.digest}.groups"
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photos(1).tobytes())
    assert not verify(cache).clean
    WAYS[way](cache)
    assert photos(1).tobytes() not in everything_in(cache.path)
    assert verify(cache).clean, str(verify(cache))


def test_no_column_of_a_remote_is_kept_before_its_tombstones_are_known(tmp_path: Path) -> None:
    mine, other = make(tmp_path / "a", 9), make(tmp_path / "b", 1, 2)
    remote = (tmp_path / "remote").as_uri()
    push(other, remote)
    forget(other, ["p1"])
    push(other, remote)  # no purge: the row lies there still
    for dead in (None, other.history.dead()):
        copy = open_copy(remote, mine)
        copy.segments.dead = dead
        spaces = [space for root in ROWS for space in copy.spaces(root).values()]
        for space, name in [(one, name) for one in spaces for name in one.segments]:
            segment = copy.segments.one(space, name)
            assert segment is not None
            copy.segments.column(segment, "digest")
            copy.segments.column(segment, "status")
    assert photos(1).tobytes() not in everything_in(mine.path)
    assert [*mine.remembered("remotes").glob("*/*")]


@pytest.mark.parametrize("way", ["paths_of", "upgrade"])
def test_no_command_that_reads_photos_remembers_a_forgotten_one(tmp_path: Path, way: str) -> None:
    found, cache = folder_of(tmp_path / "photos", 3), Cache.open(tmp_path / "c", create=True)
    extract(found, cache, backbone=stand_in.backbone("old"))
    digests = found.digests().value
    forget(cache, ["1.png"])
    if way == "paths_of":
        paths_of(cache, found)
    else:
        upgrade(cache, old="old", new=stand_in.backbone("new"), photos=found)  # type: ignore[arg-type]
    assert digests[2].tobytes() in cache.remembered(MEMO).read_bytes()
    assert digests[1].tobytes() not in everything_in(cache.path)


def test_a_compact_of_a_remote_remembers_no_photo_that_was_forgotten_here(tmp_path: Path) -> None:
    mine, other = make(tmp_path / "a", 1, 2), make(tmp_path / "b", 3)
    remote = (tmp_path / "remote").as_uri()
    push(mine, remote)
    push(other, remote)
    forget(mine, ["p1"])
    compact_remote(remote, mine)
    assert photos(1).tobytes() not in everything_in(mine.path)
