"""Segments and rows on their way in from a remote: checked as they arrive, whole or not at all.

A segment arrives in the cache's `local/incoming/`, where a later run finds what was cut off and
goes on at that byte; it is renamed into its space once every file and every row has been checked.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.remotes.remote import BLOCK_BYTES, SMALL_BYTES, Remote
from embedcache.sharing.screen import Screen, ShardScreen
from embedcache.sharing.shared_copy import Catalogue, Shared, wrong_bytes
from embedcache.store.check import check_segment
from embedcache.store.checksums import CRC_BYTES, crc32c, crc_of_rows
from embedcache.store.manifest import MANIFEST
from embedcache.store.segment import Segment
from embedcache.store.shard import Geometry, shard_name, split_by_chunk

T = TypeVar("T")
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]
Counter = Callable[[int], None]

SHARD = re.compile(r"embedding/c/(\d+)/0")
# The disk begins while a file still comes: then the wait at its end is short.
SYNC_BYTES = 16 << 20
STALE_SECONDS = 7 * 86_400.0


@contextlib.contextmanager
def arriving(
    shared: Shared,
    remote: Remote,
    incoming: Path,
    *,
    fetching: Executor,
    syncing: Executor,
    count: Counter,
) -> Iterator[Segment]:
    """Fetch a whole segment into `incoming`, check it, and hand it over; then it is removed.

    fetching, syncing: threads that take its files, several at once, and that wait for the disk.
    count: told of bytes as they arrive. Raises RemoteError for bytes that are not those of the
    manifest; what did arrive stays for the next attempt, unless it is wrong.
    """
    with _place(incoming, shared.id) as folder:
        files = shared.manifest.files
        jobs = [
            fetching.submit(_fetch, remote, shared, path, folder, syncing, count) for path in files
        ]
        screens = dict(zip(files, _all(jobs), strict=True))
        (folder / MANIFEST).write_bytes(shared.raw)
        segment = Segment.read(str(folder), kind=shared.manifest.kind, space=shared.manifest.space)
        try:
            check_segment(segment, row_crcs=_row_crcs(shared, screens))
        except Damaged as error:
            disk.remove_folder(folder)
            raise Damaged(f"what it holds does not fit together: {error}") from None
        yield segment


def settle(segment: Segment, segments: Path) -> None:
    """Give a segment that has arrived its place among the others, durably."""
    disk.sync_tree(segment.folder)
    try:
        segment.folder.rename(segments / segment.id)
    except OSError:
        if not (segments / segment.id / MANIFEST).exists():  # else another process was first
            raise
    disk.sync_folder(segments)


def clear(incoming: Path) -> None:
    """Remove what has waited for a week: nobody came back for it."""
    with contextlib.suppress(OSError):
        for path in incoming.iterdir():
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def fetch_rows(
    catalogue: Catalogue, shared: Shared, rows: I64, *, pool: Executor, count: Counter
) -> F32:
    """Some good rows of a segment, (len(rows), dim), by the byte ranges that hold them.

    rows: ascending. Where a chunk gives many rows it comes whole, under the manifest's CRC; else
    each row comes alone, under its own. Raises RemoteError for a wrong one.
    """
    cut = shared.manifest.geometry
    assert cut is not None
    out = np.empty((len(rows), cut.dim), dtype="<f4")
    row_crcs = catalogue.column(shared, "row_crc")
    jobs = [
        pool.submit(
            _fetch_range, catalogue.remote, shared, whole, some, slots, row_crcs, out, count
        )
        for whole, some, slots in _ranges(cut, rows)
    ]
    _all(jobs)
    if not np.isfinite(out).all():
        raise Damaged("it holds NaN or infinite values, which embedcache never writes")
    return out


def range_bytes(cut: Geometry, rows: I64) -> int:
    """What `fetch_rows` moves for these rows, columns not counted."""
    return sum(
        cut.chunk_bytes if whole else len(some) * cut.row_bytes
        for whole, some, _ in _ranges(cut, rows)
    )


def _ranges(cut: Geometry, rows: I64) -> Iterator[tuple[bool, I64, I64]]:
    """Requests to make: (whether a whole chunk, the rows it is for, their slots)."""
    whole, (single, slots) = split_by_chunk(cut, rows, np.arange(len(rows)))
    for chunk, within, places in whole:
        yield True, within + chunk * cut.rows_per_chunk, places
    if len(single):
        chunk_of = single // cut.rows_per_chunk
        ends = np.flatnonzero((np.diff(single) != 1) | (np.diff(chunk_of) != 0)) + 1
        for run, places in zip(np.split(single, ends), np.split(slots, ends), strict=True):
            yield False, run, places


def _fetch_range(
    remote: Remote,
    shared: Shared,
    whole: bool,
    rows: I64,
    slots: I64,
    row_crcs: NDArray[np.uint32],
    out: F32,
    count: Counter,
) -> None:
    cut = shared.manifest.geometry
    assert cut is not None
    chunk = int(rows[0]) // cut.rows_per_chunk
    shard, place = divmod(chunk, cut.chunks_per_shard)
    key = f"{shared.key}/embedding/{shard_name(shard)}"
    start, length = place * cut.chunk_bytes, cut.chunk_bytes
    if not whole:
        start += (int(rows[0]) - chunk * cut.rows_per_chunk) * cut.row_bytes
        length = len(rows) * cut.row_bytes
    raw = bytearray()
    for block in remote.blocks(key, start=start, length=length):
        raw += block
        count(len(block))
        if len(raw) > length:
            break
    if len(raw) != length:
        raise wrong_bytes(remote, shared, f"embedding/{shard_name(shard)}")
    if whole:
        body, tail = raw[:-CRC_BYTES], int.from_bytes(raw[-CRC_BYTES:], "little")
        known = int(np.frombuffer(shared.manifest.chunk_crcs, "<u4")[chunk])
        matrix = np.frombuffer(body, dtype="<f4").reshape(cut.rows_per_chunk, cut.dim)
        right = crc32c(bytes(body)) == known == tail
        out[slots] = matrix[rows - chunk * cut.rows_per_chunk]
    else:
        out[slots] = np.frombuffer(raw, dtype="<f4").reshape(len(rows), cut.dim)
        right = True
    # The rows' own CRCs go with the rows into the new segment, so they must hold in any case.
    if not right or not np.array_equal(crc_of_rows(out[slots]), row_crcs[rows]):
        raise wrong_bytes(remote, shared, f"embedding/{shard_name(shard)}")


def _fetch(
    remote: Remote, shared: Shared, path: str, folder: Path, syncing: Executor, count: Counter
) -> Screen:
    """Fetch one file of a segment, or the rest of it, and check its digest."""
    size, digest = shared.manifest.files[path]
    target = folder / path
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # it was fetched before the run was cut; its bytes are looked at again
        target.rename(part)
    for resumed in (part.exists(), False):
        if not resumed:
            part.unlink(missing_ok=True)
        screen = _screen(shared, path)
        whole = _stream(remote, f"{shared.key}/{path}", part, size, syncing, count, screen)
        if whole and screen.digest == digest:
            part.rename(target)
            return screen
        part.unlink()
        if not resumed:
            break
    raise wrong_bytes(remote, shared, path)


def _screen(shared: Shared, path: str) -> Screen:
    shard = SHARD.fullmatch(path)
    return ShardScreen(shared.manifest, int(shard[1])) if shard else Screen()


def _stream(
    remote: Remote,
    key: str,
    part: Path,
    size: int,
    syncing: Executor,
    count: Counter,
    screen: Screen,
) -> bool:
    """Append to `part` what it lacks of an object of `size` bytes, all of which pass `screen`.

    True once the file has its size, and, if it is large, is durable; `settle` sees to small ones.
    False for an object of another size.
    """
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    syncs: list[Future[None]] = []
    try:
        got = 0
        while block := os.pread(fd, BLOCK_BYTES, got):
            screen.update(memoryview(block))
            got += len(block)
        count(got)
        asked = got
        if got < size:
            for block in remote.blocks(key, start=got, length=size - got):
                if got + len(block) > size:
                    return False
                disk.write_at(fd, block, got)
                screen.update(memoryview(block))
                got += len(block)
                count(len(block))
                if got - asked >= SYNC_BYTES:
                    syncs.append(syncing.submit(disk.sync, fd))
                    asked = got
        _all(syncs)
        if size > SMALL_BYTES:
            disk.sync(fd)
        return got == size
    except FileNotFoundError:
        return False
    finally:
        wait(syncs)
        os.close(fd)


def _row_crcs(shared: Shared, screens: dict[str, Screen]) -> U32:
    """The CRC32C of every good row, as they came; Damaged for a shard that was seen to be wrong."""
    cut, found = shared.manifest.geometry, [np.empty(0, np.uint32)]
    for shard in range(cut.n_shards(shared.manifest.n_ok)) if cut else ():
        screen = screens[f"embedding/{shard_name(shard)}"]
        if screen.problem:
            raise Damaged(f"embedding/{shard_name(shard)}: {screen.problem}")
        found.append(screen.row_crcs)
    return np.concatenate(found)


@contextlib.contextmanager
def _place(incoming: Path, segment: str) -> Iterator[Path]:
    """A folder named after the segment for it to arrive in, to this process alone."""
    home = incoming / segment
    home.mkdir(parents=True, exist_ok=True)
    fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process fetches the same: do it beside, with nothing to resume
            home = incoming / f"{segment}-{os.urandom(4).hex()}"
        folder = home / segment
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        shutil.rmtree(home, ignore_errors=True)
    finally:
        os.close(fd)


def _all(jobs: list["Future[T]"]) -> list[T]:
    """The results of all jobs; the first error cancels those that have not begun, and is raised."""
    try:
        return [job.result() for job in jobs]
    finally:
        # Not of those cancelled: nobody tells when the pool was shut down meanwhile.
        wait([job for job in jobs if not job.cancel()])
