"""What one side lacks of what another holds: the set union that merge, pull and push make."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from embedcache.store.columns import ABSENT, OK
from embedcache.store.index import Table

BUCKET_ROWS = 1 << 19  # compared at a time, about: by the first bits of their digests

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Lacking:
    """What is to move.

    rows: for each segment of the giving side, its rows that the taking side lacks, ascending.
    already_there: good rows, each content once, that the taking side holds as good rows.
    withheld: rows, each content once, that would move if they had not been forgotten.
    """

    rows: tuple[I64, ...]
    already_there: int
    withheld: int


def lacking(
    segments: Sequence[tuple[U8, int]],
    *,
    status: Callable[[U8], U8],
    dead: Callable[[U8], Bool],
    wanted: U8 | None = None,
) -> Lacking:
    """Compare two sides: each content moves once, from the first segment that has it.

    segments: of the giving side, in the order in which they count: digests (n, 32), and how many
        of them, the first ones, are good rows; the others are failures.
    status: ABSENT, OK or FAILED at the taking side, for digests (k, 32). A good row moves where
        there is none; a failure only where the photo is unknown.
    dead: which digests were forgotten, by either side.
    wanted: only these contents, (m, 32); None for all.
    """
    total = sum(len(digests) for digests, _ in segments)
    n_buckets = min(256, 1 << max(0, (total // BUCKET_ROWS).bit_length()))
    found: list[list[I64]] = [[] for _ in segments]
    already_there = withheld = 0
    for bucket in range(n_buckets):
        rows_of = [_rows_in(digests, bucket, n_buckets) for digests, _ in segments]
        parts = [
            (number, digests[rows], int(np.searchsorted(rows, n_ok)))
            for number, ((digests, n_ok), rows) in enumerate(zip(segments, rows_of, strict=True))
        ]
        table = Table.empty().extended(parts, renumbered=np.empty(0, np.int64))
        there = status(table.digests)
        moves = np.where(table.ok, there != OK, there == ABSENT)
        already_there += int((table.ok & (there == OK)).sum())
        banned = dead(table.digests)
        withheld += int((banned & moves).sum())
        moves &= ~banned
        if wanted is not None:
            chosen = np.zeros(len(moves), dtype=np.bool_)
            at = table.find(np.ascontiguousarray(wanted, dtype=np.uint8))
            chosen[at[at >= 0]] = True
            moves &= chosen
        order = np.argsort(table.segment[moves], kind="stable")
        owner, row = table.segment[moves][order], table.row[moves][order].astype(np.int64)
        cuts = np.searchsorted(owner, np.arange(len(segments) + 1))
        for mine, rows, (a, b) in zip(found, rows_of, pairwise(cuts), strict=True):
            mine.append(rows[row[a:b]])
    none = np.empty(0, np.int64)
    joined = tuple(np.sort(np.concatenate([none, *some])) for some in found)
    return Lacking(joined, already_there, withheld)


def _rows_in(digests: U8, bucket: int, n_buckets: int) -> I64:
    """The rows whose digests begin with the bits of a bucket, ascending."""
    if n_buckets == 1:
        return np.arange(len(digests))
    return np.flatnonzero(digests[:, 0] // (256 // n_buckets) == bucket)
