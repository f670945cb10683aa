"""The bytes of one matrix of rows as a sharded Zarr v3 array.

A shard file is its chunks one after the other, each `rows_per_chunk` whole rows and their CRC32C,
then an index of (offset, size) pairs and the index's own CRC32C. Because no codec compresses, every
position is known in advance: `RowStream` writes rows as they come, and `read_chunk` fetches them
with one positioned read, checked, without going through zarr.
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.spec import Stored
from embedcache.store.checksums import CRC_BYTES, U32, crc32c, crc_of_rows

Rows = NDArray[Any]
"""(k, dim): float32 of vectors, or uint8 of pixels (`Geometry.stored`)."""
I64 = NDArray[np.int64]

CHUNK_BYTES = 2 << 20
CHUNKS_PER_SHARD = 32
# Whoever appends fast has the disk begin early: then the wait at the end of a segment is short.
SYNC_CHUNKS = 8
# A chunk is read whole, under its one CRC, once this part of its rows is wanted; below it, rows are
# read one by one under theirs.
WHOLE_CHUNK_SHARE = 1 / 8
SINGLE_ROW_BYTES = 1 << 16  # a row of so many bytes is read by itself at the speed of a chunk
NOT_FINITE = "NaN or infinite values, which embedcache never writes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How a matrix of `dim` columns is cut: rows to a chunk, chunks to a shard file.

    stored: the type of its numbers.
    """

    dim: int
    rows_per_chunk: int
    chunks_per_shard: int
    stored: Stored = "float32"

    @classmethod
    def plan(cls, *, dim: int, n_rows: int, stored: Stored = "float32") -> Self:
        """Chunks of about 2 MiB that waste little when `n_rows` rows are written.

        Zarr stores edge chunks whole, so ten rows get a chunk of ten rows.
        """
        most = max(1, CHUNK_BYTES // (np.dtype(stored).itemsize * dim))
        n_chunks = -(-max(1, n_rows) // most)
        return cls(
            dim=dim,
            rows_per_chunk=-(-max(1, n_rows) // n_chunks),
            chunks_per_shard=min(CHUNKS_PER_SHARD, n_chunks),
            stored=stored,
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored numbers, little-endian."""
        return np.dtype(self.stored).newbyteorder("<")

    def rows(self, n: int) -> Rows:
        """Memory for n rows, not set."""
        return np.empty((n, self.dim), dtype=self.dtype)

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * self.dim

    @property
    def chunk_bytes(self) -> int:
        """A stored chunk: its rows and their CRC."""
        return self.rows_per_chunk * self.row_bytes + CRC_BYTES

    @property
    def rows_per_shard(self) -> int:
        return self.rows_per_chunk * self.chunks_per_shard

    def n_chunks(self, n_rows: int) -> int:
        return -(-n_rows // self.rows_per_chunk)

    def n_shards(self, n_rows: int) -> int:
        return -(-n_rows // self.rows_per_shard)

    def filled(self, shard: int, n_rows: int) -> int:
        """Chunks that shard file `shard` holds when the matrix has `n_rows` stored rows."""
        return min(self.chunks_per_shard, self.n_chunks(n_rows) - shard * self.chunks_per_shard)

    @lru_cache(maxsize=256)  # noqa: B019 - a geometry is a small frozen value
    def index(self, filled: int) -> bytes:
        """The index at the end of a shard file that holds `filled` chunks, with its CRC."""
        entries = np.full((self.chunks_per_shard, 2), 0xFFFF_FFFF_FFFF_FFFF, dtype="<u8")
        entries[:filled, 0] = np.arange(filled, dtype=np.uint64) * np.uint64(self.chunk_bytes)
        entries[:filled, 1] = self.chunk_bytes
        return entries.tobytes() + struct.pack("<I", crc32c(entries.tobytes()))

    def shard_bytes(self, filled: int) -> int:
        return filled * self.chunk_bytes + self.chunks_per_shard * 16 + CRC_BYTES


class RowStream:
    """Writes a matrix row by row into shard files, each `.partial` until it is complete.

    Rows are in the file as soon as `add` returns (a killed process loses none) and durable after
    `sync`. Beside the caller's thread, one hashes the chunks and one waits for the disk and gives
    complete shards their names.
    """

    def __init__(self, folder: Path, geometry: Geometry) -> None:
        self.geometry = geometry
        self.n_rows = 0
        self._folder = folder
        self._fd = -1
        self._chunk_crc = 0
        self._chunk_crcs: list[int] = []
        self._hash = sha256()
        self._block = bytearray()  # the hashing thread's, to read a chunk into
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="embedcache-hash")
        self._sealing = ThreadPoolExecutor(1, thread_name_prefix="embedcache-seal")
        self._tasks: list[Future[None]] = []
        self._sealed: dict[str, tuple[int, hashlib._Hash]] = {}

    def add(self, rows: Rows) -> U32:
        """Write (k, dim) C-contiguous little-endian rows; returns the CRC32C of each."""
        cut = self.geometry
        crcs = crc_of_rows(rows)
        done = 0
        while done < len(rows):
            if self._fd < 0:
                self._open()
            chunk, row = divmod(self.n_rows % cut.rows_per_shard, cut.rows_per_chunk)
            block = rows[done : done + cut.rows_per_chunk - row]
            offset = chunk * cut.chunk_bytes + row * cut.row_bytes
            disk.write_at(self._fd, block.data, offset)
            self._chunk_crc = google_crc32c.extend(self._chunk_crc, block)
            self.n_rows += len(block)
            done += len(block)
            if row + len(block) == cut.rows_per_chunk:
                self._end_chunk(chunk)
        return crcs

    def sync(self) -> None:
        """Make all rows so far durable, those of shards that are still being sealed too."""
        if self._fd >= 0:
            disk.sync(self._fd)
        for task in self._tasks:
            task.result()
        self._tasks.clear()

    def end(self) -> None:
        """No more rows: fill up the last chunk, and begin to seal its shard."""
        n_rows = self.n_rows
        if short := -n_rows % self.geometry.rows_per_chunk:
            padding = np.nan if self.geometry.stored == "float32" else 0
            self.add(np.full((short, self.geometry.dim), padding, dtype=self.geometry.dtype))
            self.n_rows = n_rows
        if self._fd >= 0:
            self._seal()

    def finish(self) -> tuple[dict[str, tuple[int, str]], list[int]]:
        """After `end`, wait for the last shard: {file: (size, sha256)}, the CRC of every chunk."""
        for task in self._tasks:
            task.result()
        self.close()
        files = {name: (size, digest.hexdigest()) for name, (size, digest) in self._sealed.items()}
        return files, self._chunk_crcs

    def close(self) -> None:
        """Let go of the files, complete or not."""
        self._hashing.shutdown()
        self._sealing.shutdown()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()
        name = shard_name(self.n_rows // self.geometry.rows_per_shard)
        path = self._folder / f"{name}.partial"
        disk.make_folder(path.parent, below=self._folder.parent, durable=False)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def _end_chunk(self, chunk: int) -> None:
        cut = self.geometry
        tail = struct.pack("<I", self._chunk_crc)
        disk.write_at(self._fd, tail, (chunk + 1) * cut.chunk_bytes - CRC_BYTES)
        self._chunk_crcs.append(self._chunk_crc)
        self._chunk_crc = 0
        offset = chunk * cut.chunk_bytes
        self._tasks.append(self._hashing.submit(self._hash_chunk, self._fd, self._hash, offset))
        if chunk + 1 == cut.chunks_per_shard:
            self._seal()
        elif (chunk + 1) % SYNC_CHUNKS == 0:
            self._tasks.append(self._sealing.submit(disk.sync, self._fd))

    def _seal(self) -> None:
        cut = self.geometry
        shard = (self.n_rows - 1) // cut.rows_per_shard
        filled = len(self._chunk_crcs) - shard * cut.chunks_per_shard
        fd, self._fd = self._fd, -1
        digest, self._hash = self._hash, sha256()
        self._sealed[shard_name(shard)] = cut.shard_bytes(filled), digest
        hashed = self._hashing.submit(digest.update, cut.index(filled))
        self._tasks.append(self._sealing.submit(self._seal_file, fd, shard, filled, hashed))

    def _hash_chunk(self, fd: int, digest: "hashlib._Hash", offset: int) -> None:
        # One piece of memory again and again: a new one is handed over by the system page by page.
        self._block = self._block or bytearray(self.geometry.chunk_bytes)
        if os.preadv(fd, [self._block], offset) != len(self._block):
            raise Damaged(f"a shard of {self._folder} became shorter while it was written")
        digest.update(self._block)

    def _seal_file(self, fd: int, shard: int, filled: int, hashed: Future[None]) -> None:
        path = self._folder / shard_name(shard)
        try:
            disk.write_at(fd, self.geometry.index(filled), filled * self.geometry.chunk_bytes)
            disk.sync(fd)
        finally:
            wait([hashed])  # who hashes reads from this file
            os.close(fd)
        path.with_name(f"{path.name}.partial").rename(path)
        disk.sync_folder(path.parent)


def shard_name(shard: int) -> str:
    """Where shard file `shard` of a matrix lies under the array's folder."""
    return f"c/{shard}/0"


def open_shard(folder: Path, shard: int, *, geometry: Geometry, n_rows: int) -> int:
    """Open a complete shard file for reading, its size and index checked."""
    name = shard_name(shard)
    filled = geometry.filled(shard, n_rows)
    fd = disk.open_inside(folder, name)
    size, expected = os.fstat(fd).st_size, geometry.shard_bytes(filled)
    index = geometry.index(filled)
    if size != expected or os.pread(fd, len(index), size - len(index)) != index:
        os.close(fd)
        raise Damaged(
            f"{folder / name}: its index or its size ({size:,} bytes, {expected:,} expected) is "
            "wrong"
        )
    return fd


def split_by_chunk(
    geometry: Geometry, rows: I64, slots: I64
) -> tuple[list[tuple[int, I64, I64]], tuple[I64, I64]]:
    """Cut wanted rows (and where they go) into whole chunks to read and single rows to read.

    Returns [(chunk, rows within it, slots)] in file order, and (rows, slots) of the rest.
    """
    if geometry.row_bytes >= SINGLE_ROW_BYTES and geometry.stored == "uint8":
        return [], (rows, slots)
    least = WHOLE_CHUNK_SHARE * geometry.rows_per_chunk
    if len(rows) < least or np.bincount(rows // geometry.rows_per_chunk).max() < least:
        return [], (rows, slots)
    order = np.argsort(rows, kind="stable")
    rows, slots = rows[order], slots[order]
    chunk_of = rows // geometry.rows_per_chunk
    cuts = np.flatnonzero(chunk_of[1:] != chunk_of[:-1]) + 1
    starts = np.concatenate(([0], cuts))
    counts = np.concatenate((cuts, [len(rows)])) - starts
    dense = counts >= least
    single = np.repeat(~dense, counts)
    whole = []
    for start, count in zip(starts[dense].tolist(), counts[dense].tolist(), strict=True):
        chunk, part = int(chunk_of[start]), slice(start, start + count)
        whole.append((chunk, rows[part] - chunk * geometry.rows_per_chunk, slots[part]))
    return whole, (rows[single], slots[single])


def read_single_rows(
    fds: Sequence[int], rows: I64, slots: I64, *, geometry: Geometry, out: Rows, row_crcs: U32
) -> None:
    """Fetch rows of the matrix one by one into `out[slots]`, each under its own CRC.

    fds: the shard file of each row. row_crcs: of each row. Whether the numbers are finite is left
    to the caller, who can ask once for many. Raises Damaged for a wrong CRC or a short file.
    """
    chunk, row = np.divmod(rows % geometry.rows_per_shard, geometry.rows_per_chunk)
    offsets = chunk * geometry.chunk_bytes + row * geometry.row_bytes
    size, preadv, value = geometry.row_bytes, os.preadv, google_crc32c.value
    for fd, offset, slot, crc in zip(
        fds, offsets.tolist(), slots.tolist(), row_crcs.tolist(), strict=True
    ):
        target = out[slot]
        if preadv(fd, [target], offset) != size:
            raise Damaged("it is shorter than it was")
        if value(target) != crc:
            raise Damaged(f"a row at byte {offset:,} fails its CRC32C")


def read_chunk(
    fd: int,
    chunk: int,
    rows: I64,
    slots: I64,
    *,
    geometry: Geometry,
    out: Rows,
    chunk_crc: int,
    scratch: Rows,
) -> None:
    """Fetch `rows` of chunk `chunk` of the matrix into `out[slots]`, verified.

    rows: ascending positions within the chunk; slots: as many rows of `out`.
    out: (n, dim) C-contiguous, of the geometry's type. scratch: a chunk's rows, to work in.
    chunk_crc: of the whole chunk, from the manifest.
    Raises Damaged for a wrong CRC, a short file, or a row that is not finite.
    """
    base = (chunk % geometry.chunks_per_shard) * geometry.chunk_bytes
    run = slice(int(rows[0]), int(rows[-1]) + 1)
    in_a_row = run.stop - run.start == len(rows) and bool((np.diff(rows) == 1).all())
    in_place = (
        in_a_row and len(rows) == geometry.rows_per_chunk and bool((np.diff(slots) == 1).all())
    )
    block = out[slots[0] : slots[0] + len(slots)] if in_place else scratch
    tail = bytearray(CRC_BYTES)
    if os.preadv(fd, [block.data, tail], base) != geometry.chunk_bytes:
        raise Damaged("it is shorter than it was")
    found = google_crc32c.value(block)
    if found != chunk_crc or found != int.from_bytes(tail, "little"):
        raise Damaged(f"chunk {chunk} fails its CRC32C")
    if not np.isfinite(block[run]).all():
        raise Damaged(f"chunk {chunk} holds {NOT_FINITE}")
    if not in_place:
        out[slots] = block[run] if in_a_row else block[rows]
