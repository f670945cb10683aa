"""Rows going into segments, one after another: a segment is begun when needed, published when full.

A crash costs little because segments are bounded, in rows and in minutes, and because rows that
were synced in an unpublished one are salvaged by the next run.
"""

import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

SEGMENT_ROWS = 16_384
SEGMENT_SECONDS = 300.0
U8 = npt.NDArray[np.uint8]
Rows = TypeVar("Rows")
Rows_in = TypeVar("Rows_in", contravariant=True)


class Writer(Protocol[Rows_in]):
    """What the store's segment writers have in common."""

    def add(self, digests: U8, rows: Rows_in, /) -> None: ...
    def fail(self, digests: U8, reasons: Sequence[str], /) -> None: ...
    def commit(self) -> str | None: ...


class Sink(Generic[Rows]):
    """Takes rows of one space for as long as a run lasts.

    begin: opens a writer for so many rows.
    planned: rows that may still come; it bounds the size of the next segment.
    """

    def __init__(self, begin: Callable[[int], Writer[Rows]]) -> None:
        self.planned = 0
        self._begin = begin
        self._writer: Writer[Rows] | None = None
        self._room = 0
        self._began = 0.0

    def add(self, digests: U8, rows: Rows) -> None:
        """Take k rows; digests: uint8 (k, 32)."""
        if len(digests):
            self._open(len(digests)).add(digests, rows)
            self._count(len(digests))

    def fail(self, digest: bytes, reason: str) -> None:
        """Take one row of the ledger of failures."""
        row = np.frombuffer(digest, np.uint8).reshape(1, 32)
        self._open(1).fail(row, [reason])
        self._count(1)

    def commit(self) -> None:
        """Publish what was taken, if anything."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.commit()

    def _open(self, n: int) -> Writer[Rows]:
        if self._writer is None:
            self._room = max(n, min(self.planned, SEGMENT_ROWS))
            self._writer = self._begin(self._room)
            self._began = time.monotonic()
        return self._writer

    def _count(self, n: int) -> None:
        self._room -= n
        self.planned -= n
        if self._room <= 0 or time.monotonic() - self._began > SEGMENT_SECONDS:
            self.commit()
