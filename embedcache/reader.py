"""Rows of vector segments, read straight from their shard files, verified, on two threads."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import Damaged
from embedcache.segment import Columns, Segment
from embedcache.shard import (
    NOT_FINITE,
    Geometry,
    open_shard,
    read_chunk,
    read_single_rows,
    split_by_chunk,
)

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

# A segment, its columns, some of its good rows, and the rows of the output that they fill.
Part = tuple[Segment, Columns, I64, I64]

READ_THREADS = 2
THREADED_BYTES = 8 << 20
OPEN_FILES = 64


def read_rows(
    parts: Iterable[Part], out: F32, *, n_rows: int, shards: "OpenShards | None" = None
) -> None:
    """Fill rows of `out`, (n, dim) C-contiguous float32, from `parts`; n_rows in all.

    shards: keeps files open from one call to the next.
    Raises Damaged, with the file's name, for a wrong byte in what is read.
    """
    shards = shards or OpenShards()
    threaded = n_rows * out.strides[0] >= THREADED_BYTES
    singles = []
    with ThreadPoolExecutor(READ_THREADS) as pool:  # starts no thread before it is given a job
        for segment, columns, rows, slots in parts:
            geometry = segment.manifest.geometry
            assert geometry is not None
            whole, (rows, slots) = split_by_chunk(geometry, rows, slots)
            if len(rows):
                numbers = (rows // geometry.rows_per_shard).tolist()
                opened = {number: shards.get(segment, number) for number in set(numbers)}
                with _located(segment.path):
                    read_single_rows(
                        [opened[number].fd for number in numbers],
                        rows,
                        slots,
                        geometry=geometry,
                        out=out,
                        row_crcs=columns["row_crc"][rows],
                    )
                singles.append(slots)
            jobs = _jobs(segment, geometry, whole, shards, out)
            for _ in pool.map(_run, jobs) if threaded else map(_run, jobs):
                pass
    if singles:
        slots = np.concatenate(singles)
        if not np.isfinite(out if len(slots) == len(out) else out[slots]).all():
            raise Damaged(f"a segment beside {segment.path} holds {NOT_FINITE}")


class OpenShards:
    """Shard files that are open for reading; those used last stay open, up to a few.

    A file is closed when nobody holds it any more, so that threads may share this.
    """

    def __init__(self) -> None:
        self._files: dict[tuple[str, int], _File] = {}

    def get(self, segment: Segment, shard: int) -> "_File":
        """Shard file `shard` of a segment, its size and index checked when it was opened."""
        key = (segment.path, shard)
        file = self._files.get(key)
        if file is None:
            geometry = segment.manifest.geometry
            assert geometry is not None
            folder = segment.folder / "embedding"
            try:
                fd = open_shard(folder, shard, geometry=geometry, n_rows=segment.manifest.n_ok)
            except FileNotFoundError:
                raise Damaged(f"shard {shard} of {folder} is missing") from None
            file = self._files[key] = _File(fd)
            if len(self._files) > OPEN_FILES:
                self._files.pop(next(iter(self._files)), None)
        return file


class _File:
    """A file descriptor that is closed with its last holder."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def _run(job: Callable[[], None]) -> None:
    job()


def _jobs(
    segment: Segment,
    geometry: Geometry,
    whole: list[tuple[int, I64, I64]],
    shards: OpenShards,
    out: F32,
) -> Iterator[Callable[[], None]]:
    """One job for each chunk that is read whole."""
    chunk_crcs = np.frombuffer(segment.manifest.chunk_crcs, "<u4")
    spare: list[F32] = []  # memory to work in, as many pieces as there are threads

    def job(chunk: int, rows: I64, slots: I64, file: _File) -> None:
        try:
            scratch = spare.pop()
        except IndexError:
            scratch = np.empty((geometry.rows_per_chunk, geometry.dim), dtype="<f4")
        with _located(segment.path):
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
def _located(segment: str) -> Iterator[None]:
    try:
        yield
    except Damaged as error:
        raise Damaged(
            f"{segment}/embedding: {error}. Run 'embedcache verify --repair' on the cache"
        ) from None
