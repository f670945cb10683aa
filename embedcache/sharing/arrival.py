"""Segments and rows as they arrive from a remote: checked on the way, kept whole or not at all.

A segment arrives in the cache's `local/incoming/`, where a later run resumes an interrupted
transfer at the byte where it stopped. It is renamed into its space once every file and every row
has been checked.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, wait
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged, RemoteError
from embedcache.remotes.remote import BLOCK_BYTES, SMALL_BYTES, Remote, Unreachable
from embedcache.sharing.moved import CountBytes
from embedcache.sharing.screen import Screen, ShardScreen
from embedcache.sharing.segments import RemoteSegment, requiring, wrong_bytes
from embedcache.store.check import check_segment
from embedcache.store.checksums import CRC_BYTES, crc32c, crc_of_rows
from embedcache.store.manifest import MANIFEST
from embedcache.store.segment import Segment
from embedcache.store.shard import Geometry, Rows, shard_name, split_by_chunk

T = TypeVar("T")
I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]

SHARD = re.compile(r"embedding/c/(\d+)/0")
# The disk writes while the rest of a file arrives, so the wait at its end is short.
SYNC_BYTES = 16 << 20
STALE_SECONDS = 7 * 86_400.0


class DeletedHere(Damaged):
    """What had arrived was deleted by another process of this machine."""


@contextlib.contextmanager
def arriving(
    source: RemoteSegment,
    remote: Remote,
    incoming: Path,
    *,
    fetching: Executor,
    syncing: Executor,
    count: CountBytes,
) -> Iterator[Segment]:
    """Fetch a whole segment into `incoming`, check it, yield it, and remove what is left of it.

    fetching, syncing: threads that fetch its files, several at once, and that wait for the disk.
    count: called with the number of bytes that arrived. Raises RemoteError for bytes that do not
    match the manifest. What arrived stays for the next attempt, unless it is wrong.
    """
    with _place(incoming, source.id) as folder:
        files = source.manifest.files
        jobs = [
            fetching.submit(_fetch, remote, source, path, folder, syncing, count) for path in files
        ]
        try:
            screens = dict(zip(files, _all(jobs), strict=True))
            (folder / MANIFEST).write_bytes(source.raw)
        except FileNotFoundError:
            raise DeletedHere("its files here were deleted during the transfer") from None
        segment = Segment.read(str(folder), kind=source.manifest.kind, space=source.manifest.space)
        try:
            check_segment(segment, row_crcs=_row_crcs(source, screens))
        except Damaged as error:
            disk.delete_folder(folder)
            raise Damaged(f"its parts contradict each other: {error.fact}") from None
        yield segment


def clear(incoming: Path) -> None:
    """Remove transfers that nobody has resumed for a week."""
    with contextlib.suppress(OSError):
        for path in incoming.iterdir():
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def fetch_rows(
    remote: Remote,
    source: RemoteSegment,
    rows: I64,
    *,
    row_crcs: U32,
    pool: Executor,
    count: CountBytes,
) -> Rows:
    """Some good rows of a segment, (len(rows), dim), by the byte ranges that hold them.

    rows: ascending. row_crcs: of all good rows of the segment. A chunk with many of the rows is
    fetched whole and checked by the manifest's CRC; other rows are fetched and checked one by one.
    Raises RemoteError for a wrong one.
    """
    cut = source.manifest.geometry
    assert cut is not None
    out = cut.rows(len(rows))
    jobs = [
        pool.submit(_fetch_range, remote, source, whole, some, slots, row_crcs, out, count)
        for whole, some, slots in _ranges(cut, rows)
    ]
    _all(jobs)
    if not np.isfinite(out).all():
        raise Damaged("it holds NaN or infinite values, which embedcache never writes")
    return out


def range_bytes(cut: Geometry, rows: I64) -> int:
    """Bytes that `fetch_rows` moves for these rows, without the columns."""
    return sum(
        cut.chunk_bytes if whole else len(some) * cut.row_bytes
        for whole, some, _ in _ranges(cut, rows)
    )


def _ranges(cut: Geometry, rows: I64) -> Iterator[tuple[bool, I64, I64]]:
    """The requests to make: (whether a whole chunk, the rows it brings, their slots)."""
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
    source: RemoteSegment,
    whole: bool,
    rows: I64,
    slots: I64,
    row_crcs: NDArray[np.uint32],
    out: Rows,
    count: CountBytes,
) -> None:
    cut = source.manifest.geometry
    assert cut is not None
    chunk = int(rows[0]) // cut.rows_per_chunk
    shard, place = divmod(chunk, cut.chunks_per_shard)
    key = f"{source.key}/embedding/{shard_name(shard)}"
    start, length = place * cut.chunk_bytes, cut.chunk_bytes
    if not whole:
        start += (int(rows[0]) - chunk * cut.rows_per_chunk) * cut.row_bytes
        length = len(rows) * cut.row_bytes
    raw = bytearray()
    with requiring(remote, source, f"embedding/{shard_name(shard)}"):
        for block in remote.blocks(key, start=start, length=length):
            raw += block
            count(len(block))
            if len(raw) > length:
                break
    if len(raw) != length:
        raise wrong_bytes(remote, source, f"embedding/{shard_name(shard)}")
    if whole:
        body, tail = raw[:-CRC_BYTES], int.from_bytes(raw[-CRC_BYTES:], "little")
        known = int(np.frombuffer(source.manifest.chunk_crcs, "<u4")[chunk])
        matrix = np.frombuffer(body, dtype=cut.dtype).reshape(cut.rows_per_chunk, cut.dim)
        right = crc32c(bytes(body)) == known == tail
        out[slots] = matrix[rows - chunk * cut.rows_per_chunk]
    else:
        out[slots] = np.frombuffer(raw, dtype=cut.dtype).reshape(len(rows), cut.dim)
        right = True
    # The rows' own CRCs go into the new segment with the rows, so they must match in any case.
    if not right or not np.array_equal(crc_of_rows(out[slots]), row_crcs[rows]):
        raise wrong_bytes(remote, source, f"embedding/{shard_name(shard)}")


def _fetch(
    remote: Remote,
    source: RemoteSegment,
    path: str,
    folder: Path,
    syncing: Executor,
    count: CountBytes,
) -> Screen:
    """Fetch one file of a segment, or the rest of it, and check its digest."""
    target = folder / path
    part = target.with_name(f"{target.name}.part")
    disk.make_folder(target.parent, below=folder, durable=False)
    if target.exists():  # an interrupted run fetched it; its bytes are checked again
        target.rename(part)
    for resumed in (part.exists(), False):
        if not resumed:
            part.unlink(missing_ok=True)
        screen = _screen(source, path)
        whole = _stream(remote, source, path, part, syncing, count, screen)
        if whole and screen.digest == source.manifest.files[path][1]:
            part.rename(target)
            return screen
        part.unlink()
        if not resumed:
            break
    raise wrong_bytes(remote, source, path)


def _screen(source: RemoteSegment, path: str) -> Screen:
    shard = SHARD.fullmatch(path)
    return ShardScreen(source.manifest, int(shard[1])) if shard else Screen()


def _stream(
    remote: Remote,
    source: RemoteSegment,
    path: str,
    part: Path,
    syncing: Executor,
    count: CountBytes,
    screen: Screen,
) -> bool:
    """Append to `part` what it lacks of a file of a segment; all bytes pass `screen`.

    True once the file is complete and, if it is large, durable; publishing syncs small ones.
    False for an object of another size.
    """
    size = source.manifest.files[path][0]
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
            with requiring(remote, source, path):
                for block in remote.blocks(f"{source.key}/{path}", start=got, length=size - got):
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
    finally:
        wait(syncs)
        os.close(fd)


def _row_crcs(source: RemoteSegment, screens: dict[str, Screen]) -> U32:
    """The CRC32C of every good row as it arrived; Damaged for a shard with a fault."""
    cut, found = source.manifest.geometry, [np.empty(0, np.uint32)]
    for shard in range(cut.n_shards(source.manifest.n_ok)) if cut else ():
        screen = screens[f"embedding/{shard_name(shard)}"]
        if screen.problem:
            raise Damaged(f"embedding/{shard_name(shard)}: {screen.problem}")
        found.append(screen.row_crcs)
    return np.concatenate(found)


@contextlib.contextmanager
def _place(incoming: Path, segment: str) -> Iterator[Path]:
    """A folder named after the segment for it to arrive in, used by this process alone."""
    home = incoming / segment
    fd = _locked(home)
    if fd is None:  # another process fetches the same: use another folder, resume nothing
        home = incoming / f"{segment}-{os.urandom(4).hex()}"
        fd = _locked(home)
    try:
        folder = home / segment
        disk.make_folder(folder, below=incoming.parent, durable=False)
        try:
            yield folder
        except (RemoteError, Damaged) as error:
            if not isinstance(error, Unreachable):  # refused: there is nothing to resume
                disk.remove_folder(home)
            raise
        disk.remove_folder(home)
    finally:
        if fd is not None:
            os.close(fd)


def _locked(home: Path) -> int | None:
    """Make a folder for a segment to arrive in, and lock it; None where another process has it."""
    disk.make_folder(home, below=home.parent.parent, durable=False)
    fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _all(jobs: list["Future[T]"]) -> list[T]:
    """The results of all jobs; the first error cancels the jobs that have not begun, and is raised.

    Does not wait for cancelled jobs: a pool that was shut down meanwhile never reports them.
    """
    try:
        return [job.result() for job in jobs]
    finally:
        wait([job for job in jobs if not job.cancel()])
