"""Rows of vector segments, read straight from their shard files, verified, on two threads."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import Damaged
from embedcache.segment import Columns, Segment
from embedcache.shard import Geometry, open_shard, read_chunk, split_by_chunk

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
    with ThreadPoolExecutor(READ_THREADS) as pool:  # starts no thread before it is given a job
        for part in parts:
            with _Shards(part[0]) as shards:  # a segment at a time: open files are few
                jobs = _jobs(part, shards, out)
                if threaded:
                    for _ in pool.map(lambda job: job(), jobs):
                        pass
                else:
                    for job in jobs:
                        job()


class _Shards:
    """The open shard files of one segment."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._open: dict[int, int] = {}

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)

    def fd(self, shard: int, geometry: Geometry) -> int:
        if shard not in self._open:
            folder, n_rows = self._segment.folder, self._segment.manifest.n_ok
            try:
                self._open[shard] = open_shard(
                    folder / "embedding", shard, geometry=geometry, n_rows=n_rows
                )
            except FileNotFoundError:
                raise Damaged(f"shard {shard} of segment {folder} is missing") from None
        return self._open[shard]


def _jobs(part: Part, shards: _Shards, out: F32) -> Iterator[Callable[[], None]]:
    """One job for each chunk that holds wanted rows."""
    segment, columns, rows, slots = part
    geometry = segment.manifest.geometry
    assert geometry is not None
    chunk_crcs = np.frombuffer(segment.manifest.chunk_crcs, "<u4")
    for chunk, within, places in split_by_chunk(geometry, rows, slots):
        first = chunk * geometry.rows_per_chunk
        read = partial(
            read_chunk,
            shards.fd(chunk // geometry.chunks_per_shard, geometry),
            chunk,
            within,
            places,
            geometry=geometry,
            out=out,
            row_crcs=columns["row_crc"][first : first + geometry.rows_per_chunk],
            chunk_crc=int(chunk_crcs[chunk]),
        )
        yield partial(_located, read, segment.folder)


def _located(read: Callable[[], None], folder: Path) -> None:
    try:
        read()
    except Damaged as error:
        raise Damaged(
            f"{folder / 'embedding'}: {error}. Run 'embedcache verify --repair' on the cache"
        ) from None
