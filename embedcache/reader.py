"""Rows of vector segments, read straight from their shard files, verified, on two threads."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

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


def read_rows(parts: Iterable[Part], out: F32, *, n_rows: int) -> None:
    """Fill rows of `out`, (n, dim) C-contiguous float32, from `parts`; n_rows in all.

    Raises Damaged, with the file's name, for a wrong byte in what is read.
    """
    threaded = n_rows * out.strides[0] >= THREADED_BYTES
    singles = []
    with ThreadPoolExecutor(READ_THREADS) as pool:  # starts no thread before it is given a job
        for segment, columns, rows, slots in parts:
            geometry = segment.manifest.geometry
            assert geometry is not None
            whole, single = split_by_chunk(geometry, rows, slots)
            with _Shards(segment, geometry) as shards:  # a segment at a time: open files are few
                if len(single[0]):
                    with _located(segment.folder):
                        read_single_rows(
                            shards.of_rows(single[0]),
                            *single,
                            geometry=geometry,
                            out=out,
                            row_crcs=columns["row_crc"][single[0]],
                        )
                    singles.append(single[1])
                jobs = _jobs(segment, geometry, whole, shards, out)
                for _ in pool.map(_run, jobs) if threaded else map(_run, jobs):
                    pass
    if singles:
        slots = np.concatenate(singles)
        if not np.isfinite(out if len(slots) == len(out) else out[slots]).all():
            raise Damaged(f"a segment of {segment.folder.parent} holds {NOT_FINITE}")


def _run(job: Callable[[], None]) -> None:
    job()


class _Shards:
    """The open shard files of one segment."""

    def __init__(self, segment: Segment, geometry: Geometry) -> None:
        self._segment = segment
        self._geometry = geometry
        self._open: dict[int, int] = {}

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)

    def fd(self, shard: int) -> int:
        if shard not in self._open:
            folder, n_rows = self._segment.folder, self._segment.manifest.n_ok
            try:
                self._open[shard] = open_shard(
                    folder / "embedding", shard, geometry=self._geometry, n_rows=n_rows
                )
            except FileNotFoundError:
                raise Damaged(f"shard {shard} of segment {folder} is missing") from None
        return self._open[shard]

    def of_rows(self, rows: I64) -> list[int]:
        """The open shard of each row."""
        shards = (rows // self._geometry.rows_per_shard).tolist()
        opened = {shard: self.fd(shard) for shard in set(shards)}
        return [opened[shard] for shard in shards]


def _jobs(
    segment: Segment,
    geometry: Geometry,
    whole: list[tuple[int, I64, I64]],
    shards: _Shards,
    out: F32,
) -> Iterator[Callable[[], None]]:
    """One job for each chunk that is read whole."""
    chunk_crcs = np.frombuffer(segment.manifest.chunk_crcs, "<u4")
    spare: list[F32] = []  # memory to work in, as many pieces as there are threads

    def job(chunk: int, rows: I64, slots: I64, fd: int) -> None:
        try:
            scratch = spare.pop()
        except IndexError:
            scratch = np.empty((geometry.rows_per_chunk, geometry.dim), dtype="<f4")
        with _located(segment.folder):
            read_chunk(
                fd,
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
        yield partial(job, chunk, rows, slots, shards.fd(chunk // geometry.chunks_per_shard))


@contextmanager
def _located(folder: Path) -> Iterator[None]:
    try:
        yield
    except Damaged as error:
        raise Damaged(
            f"{folder / 'embedding'}: {error}. Run 'embedcache verify --repair' on the cache"
        ) from None
