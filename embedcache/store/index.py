"""Where each content digest lies: sorted digests, searched by their first eight bytes.

A `Table` is derived from committed segments and can be rebuilt from them at any time. It decides
where to look; the segment itself, with its checksums, decides what is there.
"""

import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.spec import Json, canonical_json
from embedcache.store.checksums import crc32c

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

VERSION = 2
MAX_HEADER_BYTES = 64 << 20


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
        parts: Sequence[tuple[int, U8, int]],
        *,
        renumbered: I64,
        dead: Callable[[U8], NDArray[np.bool_]] | None = None,
    ) -> "Table":
        """This table with more segments: (number, digests (n, 32), how many are good) each.

        renumbered: the new number of each segment that the table knows. dead: which of some digests
        are left out. Of several rows with one digest a good one wins, then the lowest segment, then
        the lowest row.
        """
        digests, segment, row, ok = (
            [self.digests],
            [renumbered[self.segment]],
            [self.row],
            [self.ok],
        )
        for number, more, n_ok in parts:
            rows = np.arange(len(more), dtype=np.uint32)
            if dead is not None:
                rows = rows[~dead(more)]
                more = more[rows]
            digests.append(more)
            segment.append(np.full(len(more), number))
            row.append(rows)
            ok.append(rows < n_ok)
        return _sorted(
            np.concatenate(digests),
            np.concatenate(segment).astype(np.uint32),
            np.concatenate(row),
            np.concatenate(ok),
        )

    def without(self, dead: NDArray[np.bool_]) -> "Table":
        """This table without some of its entries, (n,)."""
        if not dead.any():
            return self
        stay = ~dead
        return Table(
            self.keys[stay], self.digests[stay], self.segment[stay], self.row[stay], self.ok[stay]
        )

    def save(
        self,
        path: Path,
        segments: Sequence[str],
        *,
        tombstones: Sequence[str],
        lifts: Sequence[str],
    ) -> None:
        """Write the table to a file, with the manifest digests of the segments that it covers.

        tombstones, lifts: the names of those by which dead entries were left out.
        """
        header: Json = {
            "version": VERSION,
            "rows": len(self.keys),
            "segments": [*segments],
            "tombstones": [*tombstones],
            "lifts": [*lifts],
        }
        first = canonical_json(header)
        arrays = [self.digests, self.segment, self.row, self.ok]
        parts = [struct.pack("<QI", len(first), crc32c(first)), first]
        for array in arrays:
            raw = np.ascontiguousarray(array)
            parts += [raw.tobytes(), struct.pack("<I", crc32c(raw))]
        disk.replace(path, b"".join(parts))

    @classmethod
    def load(cls, path: Path) -> "Saved | None":
        """Map a file that `save` wrote; None where it is not whole."""
        try:
            with os.fdopen(disk.open_plain(str(path)), "rb") as file:
                raw = np.memmap(file, dtype=np.uint8, mode="r")
            length, crc = struct.unpack("<QI", raw[:12].tobytes())
            first = raw[12 : 12 + min(length, MAX_HEADER_BYTES)].tobytes()
            if crc32c(first) != crc:
                return None
            header = json.loads(first)
            if header["version"] != VERSION:
                return None
            n, at, arrays = int(header["rows"]), 12 + len(first), []
            for width in (32, 4, 4, 1):
                array = raw[at : at + n * width]
                at += n * width + 4
                if crc32c(array) != int.from_bytes(raw[at - 4 : at].tobytes(), "little"):
                    return None
                arrays.append(array)
        except (OSError, ValueError, KeyError, TypeError, struct.error, Damaged):
            return None
        digests, segment, row, ok = arrays
        digests = digests.reshape(n, 32)
        table = cls(
            _keys(digests), digests, segment.view("<u4"), row.view("<u4"), ok.view(np.bool_)
        )
        return Saved(
            table, *([str(name) for name in header[k]] for k in ("segments", "tombstones", "lifts"))
        )

    def find(self, digests: U8) -> I64:
        """Position of each of (n, 32) digests in the table, -1 where it is absent."""
        if not len(self.keys) or not len(digests):
            return np.full(len(digests), -1, dtype=np.int64)
        wanted = _keys(digests)
        order = np.argsort(wanted)  # neighbours share cache lines: three times faster at 1e7
        at = np.empty(len(wanted), dtype=np.int64)
        at[order] = np.searchsorted(self.keys, wanted[order])
        last = len(self.keys) - 1
        found = np.full(len(wanted), -1, dtype=np.int64)
        pending = np.flatnonzero((at <= last) & (self.keys[np.minimum(at, last)] == wanted))
        while len(pending):
            here = at[pending]
            equal = (self.digests[here] == digests[pending]).all(axis=1)
            found[pending[equal]] = here[equal]
            pending = pending[~equal]
            at[pending] += 1
            more = np.minimum(at[pending], last)
            pending = pending[(at[pending] <= last) & (self.keys[more] == wanted[pending])]
        return found


@dataclass(frozen=True, slots=True)
class Saved:
    """A table from a file, and what `Table.save` was given with it."""

    table: Table
    segments: list[str]
    tombstones: list[str]
    lifts: list[str]


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
    return np.ascontiguousarray(digests[:, :8]).view(">u8").astype(np.uint64).reshape(-1)


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
