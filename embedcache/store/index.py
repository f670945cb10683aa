"""Where each content digest lies: sorted digests, searched by their first eight bytes.

A `Table` is derived from committed segments and can be rebuilt from them at any time. It decides
where to look; the segment itself, with its checksums, decides what is there.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.spec import Json, canonical_json
from embedcache.store.checksums import CRC_BYTES, crc32c
from embedcache.store.columns import ABSENT, FAILED, OK

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

VERSION = 3
MAX_HEADER_BYTES = 64 << 20
BLOCK_ROWS = 1 << 17  # looked at, or copied, at a time


@dataclass(frozen=True, slots=True)
class Table:
    """One entry per distinct digest, ascending.

    keys: first eight bytes as big-endian numbers, (n,) uint64. digests: (n, 32) uint8.
    segment, row: where it lies, (n,) uint32. ok: False for a row of the failure ledger.
    """

    keys: NDArray[np.uint64]
    digests: U8
    segment: NDArray[np.uint32]
    row: NDArray[np.uint32]
    ok: NDArray[np.bool_]

    @classmethod
    def empty(cls) -> "Table":
        none = np.empty(0, np.uint32)
        return cls(none.astype(np.uint64), np.empty((0, 32), np.uint8), none, none, none == 0)

    def extended(
        self,
        parts: Iterable[tuple[int, U8, int]],
        *,
        renumbered: I64,
        dead: Callable[[U8], NDArray[np.bool_]] | None = None,
        n_rows: int = 0,
    ) -> "Table":
        """This table with more segments: (number, digests (n, 32), how many are good) each.

        renumbered: the new number of each segment that the table knows, -1 for one whose entries
        go. dead: which of some digests are left out. n_rows: how many rows the parts have; where
        that is given they may come one by one, and no more than one is in memory.
        Of several rows with one digest a good one wins, then the lowest segment, then the lowest
        row.
        """
        if not n_rows:
            parts = list(parts)
            n_rows = sum(len(digests) for _, digests, _ in parts)
        return self._with(_gathered(parts, n_rows, dead), renumbered)

    def _with(self, fresh: "Table", renumbered: I64) -> "Table":
        """This table, its segments renumbered, and the entries of another one."""
        if not len(self.keys):
            return fresh
        segment = renumbered.astype(np.int32)[self.segment]
        stay = segment >= 0
        at = self.find(fresh.digests)
        mine = np.flatnonzero(at >= 0)  # entries of the other one that this one has too
        mine = mine[stay[at[mine]]]
        here = at[mine]
        wins = _rank(fresh.ok[mine], fresh.segment[mine], fresh.row[mine]) < _rank(
            self.ok[here], segment[here], self.row[here]
        )
        stay[here[wins]] = False
        lost = np.zeros(len(fresh.keys), np.bool_)
        lost[mine[~wins]] = True
        return _merged(self, np.flatnonzero(stay), segment, fresh.without(lost))

    def without(self, dead: NDArray[np.bool_]) -> "Table":
        """This table without some of its entries, (n,)."""
        if not dead.any():
            return self
        stay = ~dead
        return Table(
            self.keys[stay], self.digests[stay], self.segment[stay], self.row[stay], self.ok[stay]
        )

    def save(self, path: Path, segments: Sequence[str]) -> None:
        """Write the table to a file, with the manifest digests of the segments that it covers."""
        header: Json = {"version": VERSION, "rows": len(self.keys), "segments": [*segments]}
        first = canonical_json(header)
        with disk.replacing(path) as file:
            disk.write_all(file.fileno(), struct.pack("<QI", len(first), crc32c(first)) + first)
            for array in (self.digests, self.segment, self.row, self.ok):
                crc = 0
                for start in range(0, len(array), BLOCK_ROWS):
                    block = np.ascontiguousarray(array[start : start + BLOCK_ROWS])
                    crc = crc32c(block, after=crc)
                    disk.write_all(file.fileno(), block.data if block.size else b"")
                disk.write_all(file.fileno(), struct.pack("<I", crc))

    @classmethod
    def load(cls, path: Path) -> "Saved | None":
        """Map a file that `save` wrote; None where it is not whole.

        Every byte is checked as it is read, so that only what is looked up later is in memory.
        """
        try:
            with os.fdopen(disk.open_plain(str(path)), "rb") as file:
                length, crc = struct.unpack("<QI", file.read(12))
                first = file.read(min(length, MAX_HEADER_BYTES))
                header = json.loads(first) if crc32c(first) == crc else {}
                n, at = int(header["rows"]), 12 + len(first)
                if header["version"] != VERSION or n < 0:
                    return None
                if os.fstat(file.fileno()).st_size != at + n * (32 + 4 + 4 + 1) + 4 * 4:
                    return None
                keys, starts = np.empty(n, np.uint64), []
                for width in (32, 4, 4, 1):
                    starts.append(at)
                    for first_row, block in _checked(file, n, width):
                        if width == 32:
                            keys[first_row : first_row + len(block)] = _keys(block)
                    at += n * width + CRC_BYTES
                raw = np.memmap(file, dtype=np.uint8, mode="r")
        except (OSError, ValueError, KeyError, TypeError, struct.error, Damaged):
            return None
        digests, segment, row, ok = (
            raw[start : start + n * width]
            for start, width in zip(starts, (32, 4, 4, 1), strict=True)
        )
        numbers, rows = (array.view("<u4") for array in (segment, row))
        table = cls(keys, digests.reshape(n, 32), numbers, rows, ok.view(np.bool_))
        return Saved(table, [str(name) for name in header["segments"]])

    def find(self, digests: U8) -> I64:
        """Position of each of (n, 32) digests in the table, -1 where it is absent."""
        found = np.full(len(digests), -1, dtype=np.int64)
        if len(self.keys):
            for start in range(0, len(digests), BLOCK_ROWS):
                self._find(digests[start : start + BLOCK_ROWS], found[start : start + BLOCK_ROWS])
        return found

    def status(self, digests: U8) -> U8:
        """ABSENT, OK or FAILED for each of (n, 32) digests."""
        found = np.empty(len(digests), np.uint8)
        for start in range(0, len(digests), BLOCK_ROWS):
            at = self.find(digests[start : start + BLOCK_ROWS])
            good = self.ok[at] if len(self.ok) else at
            found[start : start + BLOCK_ROWS] = np.where(
                at < 0, np.uint8(ABSENT), np.where(good, np.uint8(OK), np.uint8(FAILED))
            )
        return found

    def _find(self, digests: U8, found: I64) -> None:
        """Set `found` to the position of each digest that is in the table, which has some."""
        wanted = _keys(digests)
        order = np.argsort(wanted)  # neighbours share cache lines: three times faster at 1e7
        wanted = wanted[order]
        at = np.searchsorted(self.keys, wanted)
        last = len(self.keys) - 1
        pending = np.flatnonzero((at <= last) & (self.keys[np.minimum(at, last)] == wanted))
        while len(pending):
            here = at[pending]
            equal = (self.digests[here] == digests[order[pending]]).all(axis=1)
            found[order[pending[equal]]] = here[equal]
            pending = pending[~equal]
            at[pending] += 1
            more = np.minimum(at[pending], last)
            pending = pending[(at[pending] <= last) & (self.keys[more] == wanted[pending])]


@dataclass(frozen=True, slots=True)
class Saved:
    """A table from a file, and what `Table.save` was given with it."""

    table: Table
    segments: list[str]


def distinct(digests: U8) -> tuple[I64, I64]:
    """Each content of (n, 32) digests once: (the first row that has it, how many have it).

    Both are (m,), in the order of the rows.
    """
    keys = _keys(digests)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    del keys
    if not len(again):
        return np.arange(len(digests)), np.ones(len(digests), np.int64)
    if (digests[order[again]] != digests[order[again - 1]]).any():  # one key of several digests
        whole = np.ascontiguousarray(digests).view("V32").reshape(-1)
        _, first, n_rows = np.unique(whole, return_index=True, return_counts=True)
    else:
        begins = np.ones(len(order), np.bool_)
        begins[again] = False
        first, n_rows = order[begins], np.diff(np.flatnonzero(begins), append=len(order))
    order = np.argsort(first)
    return first[order], n_rows[order]


def repeats(digests: U8) -> tuple[I64, I64]:
    """Rows of (n, 32) digests that occur before: (first row with that digest, this row)."""
    words = _words(digests)
    order = np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    same = np.zeros(len(order), dtype=np.bool_)
    same[1:] = (words[order[1:]] == words[order[:-1]]).all(axis=1)
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    return order[starts[same]], order[same]


def _words(digests: U8) -> NDArray[np.uint64]:
    return np.ascontiguousarray(digests).view(">u8").astype(np.uint64)


def _keys(digests: U8) -> NDArray[np.uint64]:
    keys = np.empty(len(digests), np.uint64)
    for start in range(0, len(digests), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        keys[part] = np.ascontiguousarray(digests[part, :8]).view(">u8").reshape(-1)
    return keys


def _checked(file: BinaryIO, n: int, width: int) -> Iterator[tuple[int, U8]]:
    """The next n rows of a file by blocks: (first row, (k, width)); ValueError for a wrong byte."""
    crc = 0
    for start in range(0, n, BLOCK_ROWS):
        raw = file.read(min(BLOCK_ROWS, n - start) * width)
        crc = crc32c(raw, after=crc)
        yield start, np.frombuffer(raw, np.uint8).reshape(-1, width)
    if crc != int.from_bytes(file.read(CRC_BYTES), "little"):
        raise ValueError("a checksum does not fit")


def _gathered(
    parts: Iterable[tuple[int, U8, int]],
    n_rows: int,
    dead: Callable[[U8], NDArray[np.bool_]] | None,
) -> Table:
    """The table of some segments, which have at most n_rows rows together."""
    digests = np.empty((n_rows, 32), np.uint8)
    segment, row = np.empty((2, n_rows), np.uint32)
    ok = np.empty(n_rows, np.bool_)
    n = 0
    for number, some, n_ok in parts:
        rows = np.arange(len(some), dtype=np.uint32)
        if dead is not None:
            rows = rows[~dead(some)]
            some = some[rows]
        into = slice(n, n + len(rows))
        digests[into], segment[into], row[into], ok[into] = some, number, rows, rows < n_ok
        n += len(rows)
    return _sorted(digests[:n], segment[:n], row[:n], ok[:n])


def _rank(ok: NDArray[np.bool_], segment: NDArray[Any], row: NDArray[np.uint32]) -> NDArray[Any]:
    """Of entries with one digest the one of the lowest rank counts."""
    place = segment.astype(np.uint64) << np.uint64(32) | row
    return place | (~ok).astype(np.uint64) << np.uint64(63)


def _merged(mine: Table, stay: I64, segment: NDArray[np.int32], fresh: Table) -> Table:
    """The entries `stay` of a table, with other numbers of segments, and those of another one.

    They have no digest in common.
    """
    places = np.searchsorted(mine.keys[stay], fresh.keys) + np.arange(len(fresh.keys))
    n = len(stay) + len(fresh.keys)
    theirs = np.zeros(n, np.bool_)
    theirs[places] = True
    keys = np.empty(n, np.uint64)
    digests = np.empty((n, 32), np.uint8)
    numbers, row = np.empty((2, n), np.uint32)
    ok = np.empty(n, np.bool_)
    from_mine = from_fresh = 0
    for start in range(0, n, BLOCK_ROWS):
        block = theirs[start : start + BLOCK_ROWS]
        n_fresh = int(block.sum())
        old = stay[from_mine : from_mine + len(block) - n_fresh]
        new = slice(from_fresh, from_fresh + n_fresh)
        for into, there, here in (
            (keys, mine.keys, fresh.keys),
            (digests, mine.digests, fresh.digests),
            (numbers, segment, fresh.segment),
            (row, mine.row, fresh.row),
            (ok, mine.ok, fresh.ok),
        ):
            part = into[start : start + len(block)]
            part[~block], part[block] = there[old], here[new]
        from_mine, from_fresh = from_mine + len(old), from_fresh + n_fresh
    first, last = (np.searchsorted(keys, fresh.keys, side) for side in ("left", "right"))
    if (last - first > 1).any():  # one key of several: their digests decide the order
        return _sorted(digests, numbers, row, ok)
    return Table(keys, digests, numbers, row, ok)


def _sorted(
    digests: U8, segment: NDArray[np.uint32], row: NDArray[np.uint32], ok: NDArray[np.bool_]
) -> Table:
    keys = _keys(digests)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    same = np.zeros(len(keys) + 1, dtype=np.bool_)
    same[1:-1] = keys[1:] == keys[:-1]
    at = np.flatnonzero(same[1:] | same[:-1])  # entries whose key is not theirs alone
    if len(at):
        shared = order[at]
        words = _words(digests[shared])
        ranks = (row[shared], segment[shared], ~ok[shared], *(words[:, i] for i in (3, 2, 1, 0)))
        order[at] = shared[np.lexsort(ranks)]
        first = np.ones(len(order), dtype=np.bool_)
        again = at[1:][(np.diff(at) == 1)]
        first[again] = (digests[order[again]] != digests[order[again - 1]]).any(axis=1)
        order, keys = order[first], keys[first]
    return Table(keys, digests[order], segment[order], row[order], ok[order])
