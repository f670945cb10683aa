"""A file of a segment as it arrives: its digest and, for a shard, its rows, in one pass.

Every block is checked between the network and the disk, while it is in the processor's cache, so
that a segment need not be read again before it is accepted.
"""

from hashlib import sha256

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from embedcache.store.checksums import CRC_BYTES, crc_of_rows
from embedcache.store.manifest import Manifest
from embedcache.store.shard import NOT_FINITE

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]


class Screen:
    """Computes the digest of a file from its blocks, in order.

    problem: why a shard is refused although its digest is right; "" where it is not.
    row_crcs: the CRC32C of each good row of a shard, in order, to compare with the segment's.
    """

    problem = ""

    def __init__(self) -> None:
        self._digest = sha256()

    def update(self, block: memoryview) -> None:
        self._digest.update(block)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    @property
    def row_crcs(self) -> U32:
        return np.empty(0, np.uint32)


class ShardScreen(Screen):
    """Checks shard file `shard` too: the CRC of every chunk, and that every good row is finite.

    Holds at most one row from one block to the next.
    """

    def __init__(self, manifest: Manifest, shard: int) -> None:
        super().__init__()
        assert manifest.geometry is not None
        self._cut = cut = manifest.geometry
        self._chunk_crcs = np.frombuffer(manifest.chunk_crcs, "<u4")
        self._chunk = shard * cut.chunks_per_shard
        self._index = cut.index(cut.filled(shard, manifest.n_ok))
        self._end = self._chunk + cut.filled(shard, manifest.n_ok)
        self._n_ok = manifest.n_ok
        self._row = 0  # within the chunk
        self._crc = 0  # of the chunk so far
        self._rest = b""
        self._row_crcs: list[U32] = []

    @property
    def row_crcs(self) -> U32:
        return np.concatenate(self._row_crcs) if self._row_crcs else super().row_crcs

    def update(self, block: memoryview) -> None:
        super().update(block)
        left = np.frombuffer(block, np.uint8)
        if self._rest:
            lacking = self._wanted()[0] - len(self._rest)
            item, left = self._rest + left[:lacking].tobytes(), left[lacking:]
            self._rest = b""
            if len(item) < self._wanted()[0]:
                self._rest = item
                return
            self._take(np.frombuffer(item, np.uint8))
        while len(left):
            size, most = self._wanted()
            n_items = min(most, len(left) // size)
            if not n_items:
                self._rest = left.tobytes()
                return
            self._take(left[: n_items * size])
            left = left[n_items * size :]

    def _wanted(self) -> tuple[int, int]:
        """The size of the next item (a row, a chunk's CRC, the index), and how many follow."""
        if self._chunk == self._end:
            return len(self._index), 1
        rows_left = self._cut.rows_per_chunk - self._row
        return (self._cut.row_bytes, rows_left) if rows_left else (CRC_BYTES, 1)

    def _take(self, raw: U8) -> None:
        if self._chunk == self._end:
            if raw.tobytes() != self._index:
                self.problem = self.problem or "its index is wrong"
        elif self._row < self._cut.rows_per_chunk:
            self._take_rows(raw.reshape(-1, self._cut.row_bytes))
        else:
            known = int(self._chunk_crcs[self._chunk])
            if self._crc != known or raw.tobytes() != known.to_bytes(CRC_BYTES, "little"):
                self.problem = self.problem or f"chunk {self._chunk} fails its CRC32C"
            self._chunk, self._row, self._crc = self._chunk + 1, 0, 0

    def _take_rows(self, rows: U8) -> None:
        self._crc = google_crc32c.extend(self._crc, rows)
        first = self._chunk * self._cut.rows_per_chunk + self._row
        self._row += len(rows)
        good = rows[: max(0, self._n_ok - first)]  # the last chunk is padded with NaN
        self._row_crcs.append(crc_of_rows(good))
        if not np.isfinite(good.view(self._cut.dtype)).all():
            self.problem = self.problem or f"chunk {self._chunk} holds {NOT_FINITE}"
