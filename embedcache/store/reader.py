"""Rows of vector segments, read straight from their shard files, verified, on two threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.store.columns import Columns
from embedcache.store.segment import Segment, advice
from embedcache.store.shard import (
    NOT_FINITE,
    Geometry,
    Rows,
    open_shard,
    read_chunk,
    read_single_rows,
    shard_name,
    split_by_chunk,
)

I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]

# A segment, its columns, some of its good rows, and the rows of the output that they fill.
Part = tuple[Segment, Columns, I64, I64]

READ_THREADS = 2
THREADED_BYTES = 8 << 20
AHEAD = 16  # jobs that wait for a thread
OPEN_FILES = 64


def read_rows(
    parts: Iterable[Part], out: Rows, *, n_rows: int, shards: "OpenShards | None" = None
) -> None:
    """Fill rows of `out`, (n, dim) C-contiguous, of the stored type, from `parts`; n_rows in all.

    shards: keeps files open from one call to the next.
    Raises Damaged, with the file's name, for a wrong byte in what is read.
    """
    singles: list[tuple[Segment, I64]] = []
    jobs = _jobs(parts, out, shards or OpenShards(), singles)
    if n_rows * out.strides[0] >= THREADED_BYTES:
        _run_threaded(jobs)
    else:
        for job in jobs:
            job()
    # Of rows read singly this is asked once for all, not of each.
    slots = np.concatenate([np.empty(0, np.int64), *(slots for _, slots in singles)])
    if np.isfinite(out if len(slots) == len(out) else out[slots]).all():
        return
    for segment, slots in singles:
        with _located(segment):
            if not np.isfinite(out[slots]).all():
                raise Damaged(f"a row holds {NOT_FINITE}")


def read_rows_singly(part: Part, out: Rows) -> None:
    """As `read_rows`, each row under its own CRC, whatever chunks' CRCs and the index say."""
    segment, columns, rows, slots = part
    shards = OpenShards(framed=False)
    _read_singles(segment, rows, slots, columns["row_crc"][rows], shards=shards, out=out)
    if not np.isfinite(out[slots]).all():
        with _located(segment):
            raise Damaged(f"a row holds {NOT_FINITE}")


def read_row(segment: Segment, row: int, *, crc: int, shards: "OpenShards") -> Rows:
    """One good row, (dim,), under its CRC; any thread may ask. Damaged for a wrong byte."""
    geometry = segment.manifest.geometry
    assert geometry is not None
    out = geometry.rows(1)
    at, slots = np.array([row], np.int64), np.zeros(1, np.int64)
    _read_singles(segment, at, slots, np.array([crc], np.uint32), shards=shards, out=out)
    if not np.isfinite(out).all():
        with _located(segment):
            raise Damaged(f"a row holds {NOT_FINITE}")
    found: Rows = out[0]
    return found


class OpenShards:
    """Shard files that are open for reading; those opened last stay open, up to a few.

    A file is closed when nobody holds it any more, so that threads may share this.
    framed: refuse a file whose size or index is wrong.
    """

    def __init__(self, *, framed: bool = True) -> None:
        self._framed = framed
        self._files: dict[tuple[str, int], _File] = {}
        self._lock = Lock()

    def get(self, segment: Segment, shard: int) -> "_File":
        """Shard file `shard` of a segment, checked when it was opened."""
        key = (segment.path, shard)
        file = self._files.get(key)
        if file is None:
            geometry = segment.manifest.geometry
            assert geometry is not None
            folder = segment.folder / "embedding"
            try:
                if self._framed:
                    fd = open_shard(folder, shard, geometry=geometry, n_rows=segment.manifest.n_ok)
                else:
                    fd = disk.open_inside(folder, shard_name(shard))
            except FileNotFoundError:
                raise Damaged(
                    f"{folder / shard_name(shard)} is missing", advice=advice(segment.path)
                ) from None
            with self._lock:
                file = self._files[key] = _File(fd)
                if len(self._files) > OPEN_FILES:
                    del self._files[next(iter(self._files))]
        return file


class _File:
    """A file descriptor that is closed with its last holder."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def _run_threaded(jobs: Iterator[Callable[[], None]]) -> None:
    """Do jobs on threads, a few of them ahead; the first error ends it."""
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(READ_THREADS) as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(job))
                if len(pending) > AHEAD:
                    pending.popleft().result()
            for future in pending:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _jobs(
    parts: Iterable[Part], out: Rows, shards: OpenShards, singles: list[tuple[Segment, I64]]
) -> Iterator[Callable[[], None]]:
    """A job for each chunk that is read whole, and one for all single rows of a segment."""
    for segment, columns, rows, slots in parts:
        geometry = segment.manifest.geometry
        assert geometry is not None
        whole, (rows, slots) = split_by_chunk(geometry, rows, slots)
        if len(rows):
            singles.append((segment, slots))
            row_crcs = columns["row_crc"][rows]  # and not all columns, for as long as a job waits
            yield partial(_read_singles, segment, rows, slots, row_crcs, shards=shards, out=out)
        yield from _chunk_jobs(segment, geometry, whole, shards, out)


def _read_singles(
    segment: Segment, rows: I64, slots: I64, row_crcs: U32, *, shards: OpenShards, out: Rows
) -> None:
    geometry = segment.manifest.geometry
    assert geometry is not None
    numbers = (rows // geometry.rows_per_shard).tolist()
    opened = {number: shards.get(segment, number) for number in set(numbers)}
    with _located(segment):
        read_single_rows(
            [opened[number].fd for number in numbers],
            rows,
            slots,
            geometry=geometry,
            out=out,
            row_crcs=row_crcs,
        )


def _chunk_jobs(
    segment: Segment,
    geometry: Geometry,
    whole: list[tuple[int, I64, I64]],
    shards: OpenShards,
    out: Rows,
) -> Iterator[Callable[[], None]]:
    chunk_crcs = np.frombuffer(segment.manifest.chunk_crcs, "<u4")
    spare: list[Rows] = []  # memory to work in, as many pieces as there are threads

    def job(chunk: int, rows: I64, slots: I64, file: _File) -> None:
        try:
            scratch = spare.pop()
        except IndexError:
            scratch = geometry.rows(geometry.rows_per_chunk)
        with _located(segment):
            read_chunk(
                file.fd,
                chunk,
                rows,
                slots,
                geometry=geometry,
                out=out,
                chunk_crc=int(chunk_crcs[chunk]),
                scratch=scratch,
            )
        spare.append(scratch)

    for chunk, rows, slots in whole:
        file = shards.get(segment, chunk // geometry.chunks_per_shard)
        yield partial(job, chunk, rows, slots, file)


@contextmanager
def _located(segment: Segment) -> Iterator[None]:
    try:
        yield
    except Damaged as error:
        raise Damaged(
            error.found,
            asked=f"{segment.path}/embedding",
            advice=f"Run 'embedcache verify --repair {segment.cache}'",
        ) from None
