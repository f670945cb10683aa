"""The disk is full, or read-only, or not ours: one clear message, and nothing is lost."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.spec import foreign
from embedcache.store import shard
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.stores import DETECTOR, faces_of, fill, model, photos

SPEC = foreign("net", 8)


class FullDisk:
    """Refuses the n-th write or sync, and all that follow, until there is room again."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = 1 << 60
        self.error = errno.ENOSPC
        for name in ("write_all", "write_at", "sync"):
            patch.setattr(disk, name, self._guarded(getattr(disk, name)))
        patch.setattr(disk, "sync_folder", lambda path: None)

    def _guarded(self, real: Any) -> Any:
        def guarded(*arguments: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(self.error, os.strerror(self.error))
            if real.__name__ != "sync":
                real(*arguments)

        return guarded


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(monkeypatch)


def run(path: Path) -> None:
    """What an extraction does: everything that is missing."""
    cache = Cache.open(path, create=True)
    cache.record_photos("folder", ["a", "b"], photos(1, 2))
    space = cache.space(SPEC, create=True)
    space.salvage()
    missing = [n for n in range(6) if space.status(photos(n))[0] != 1]
    with space.writer(n_rows=len(missing), name="net", about={}) as writer:
        for n in missing:
            writer.add(photos(n), model(photos(n)))
        writer.fail(photos(77), ["no face"])
    cache.face_space(DETECTOR, create=True).salvage()
    with cache.face_space(DETECTOR, create=True).writer(n_rows=2, about={}) as faces:
        faces.add(photos(1, 2), faces_of([1, 2]))
    if not (path / "refs" / "r.json").exists():
        write_ref(cache, "r")


def test_a_full_disk_at_any_write_loses_nothing(
    tmp_path: Path, full: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two rows to a chunk, two chunks to a shard, and the disk asked after each: a long append.
    monkeypatch.setattr(shard, "CHUNK_BYTES", 64)
    monkeypatch.setattr(shard, "CHUNKS_PER_SHARD", 2)
    monkeypatch.setattr(shard, "SYNC_CHUNKS", 1)
    n = 0
    while True:
        path = tmp_path / str(n)
        cache = Cache.open(path, create=True)
        fill(cache.space(SPEC, create=True), photos(100))
        full.left = n
        told = ""
        try:
            run(path)
        except CacheError as error:
            told = str(error)
        if not told:
            break
        assert "the disk is full: make room, then rerun the command" in told
        full.left = 1 << 60
        assert (cache.space(SPEC).read(photos(100))[0] == model(photos(100))).all()
        if n % 3 == 0:
            findings = verify(path).findings  # nothing but drafts that wait for salvage
            assert all("left by a process that has ended" in f.problem for f in findings), findings
            run(path)
            wanted = photos(*range(6), 100)
            assert (cache.space(SPEC).read(wanted)[0] == model(wanted)).all()
            assert verify(path).clean
        n += 1
    assert n > 60


def test_a_disk_that_is_full_while_hashing_lags_behind_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "CHUNK_BYTES", 64)
    hash_chunk, may_hash = shard.RowStream._hash_chunk, threading.Event()
    write_at = disk.write_at

    def lagging(*arguments: Any) -> None:
        may_hash.wait(10)
        hash_chunk(*arguments)

    def full_for_the_index(*arguments: Any) -> None:
        if threading.current_thread().name.startswith("embedcache-seal"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_at(*arguments)

    monkeypatch.setattr(shard.RowStream, "_hash_chunk", lagging)
    monkeypatch.setattr(disk, "write_at", full_for_the_index)
    space = Cache.open(tmp_path / "a", create=True).space(SPEC, create=True)
    writer = space.writer(n_rows=6, name="net", about={})
    writer.add(photos(*range(6)), model(photos(*range(6))))
    threading.Timer(0.2, may_hash.set).start()
    with pytest.raises(CacheError, match="the disk is full"):
        writer.commit()


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.EROFS, "it is read-only"), (errno.EACCES, "permission"), (errno.EDQUOT, "quota")],
)
def test_a_cache_that_cannot_be_written_says_why(
    tmp_path: Path, full: FullDisk, number: int, message: str
) -> None:
    cache = Cache.open(tmp_path / "a", create=True)
    space = cache.space(SPEC, create=True)
    fill(space, photos(1))
    cache.record_photos("folder", ["a"], photos(1))
    other = Cache.open(tmp_path / "b", create=True)
    fill(other.space(SPEC, create=True), photos(2))
    full.error = number
    attempts: list[Callable[[], object]] = [
        lambda: fill(space, photos(2)),
        lambda: cache.record_photos("folder", ["b"], photos(2)),
        lambda: cache.space(foreign("other", 3), create=True),
        lambda: write_ref(cache, "r"),
        lambda: merge(cache, [other]),
        lambda: forget(cache, ["a"]),
        lambda: Cache.open(tmp_path / "new", create=True),
    ]
    for attempt in attempts:
        full.left = 0
        with pytest.raises(CacheError, match=message):
            attempt()
        full.left = 1 << 60
        assert (cache.vectors("net", ["a"])[0] == model(photos(1))).all()


def test_a_full_disk_while_compacting_keeps_every_row(tmp_path: Path, full: FullDisk) -> None:
    cache = Cache.open(tmp_path / "a", create=True)
    space = cache.space(SPEC, create=True)
    for n in range(4):
        fill(space, photos(n))
    for n in range(0, 60, 3):
        full.left = n
        try:
            compact(cache)
        except CacheError:
            pass
        else:
            break
        finally:
            full.left = 1 << 60
        assert (space.read(photos(*range(4)))[0] == model(photos(*range(4)))).all()
    assert len(space.segments()) == 1


def test_a_read_only_cache_is_read(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "a", create=True)
    space = cache.space(SPEC, create=True)
    fill(space, photos(1))
    draft = space.writer(n_rows=3, name="net", about={})
    draft.add(photos(2), model(photos(2)))
    draft.abandon()
    folders = [cache.path, *(p for p in cache.path.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        again = Cache.open(cache.path).space(SPEC)
        assert (again.read(photos(1))[0] == model(photos(1))).all()
        if os.geteuid() != 0:  # nothing is read-only to root
            assert again.salvage() == 0
            with pytest.raises(CacheError, match="permission is denied"):
                fill(again, photos(3))
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.mark.parametrize("number", [errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_only_a_write_can_meet_is_never_called_reading(tmp_path: Path, number: int) -> None:
    with pytest.raises(CacheError, match=f"^cannot write to {tmp_path}: "):  # noqa: SIM117
        with disk.plain_errors("read", tmp_path):
            raise OSError(number, os.strerror(number))
    with pytest.raises(CacheError, match=f"^cannot read {tmp_path}: permission"):  # noqa: SIM117
        with disk.plain_errors("read", tmp_path):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
