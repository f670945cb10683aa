"""Rows that a space stores more than once, and by how much they differ."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedcache.store.index import repeats
from embedcache.store.reader import read_rows
from embedcache.store.segment import Segment
from embedcache.store.shard import Rows
from embedcache.upkeep.findings import Report

BLOCK_BYTES = 64 << 20
BLOCK_ROWS = 1024


def compare_duplicates(segments: Sequence[Segment], report: Report, *, values: bool) -> None:
    """Count the good rows that come more than once in `report`; with `values`, compare them."""
    digests = [segment.column("digest")[: segment.manifest.n_ok] for segment in segments]
    if not digests:
        return
    number = np.repeat(np.arange(len(segments)), [len(mine) for mine in digests])
    row = np.concatenate([np.arange(len(mine)) for mine in digests])
    first, again = repeats(np.concatenate(digests))
    report.duplicates += len(again)
    if not values:
        return
    geometry = segments[0].manifest.geometry
    assert geometry is not None
    step = max(1, min(BLOCK_ROWS, BLOCK_BYTES // geometry.row_bytes))
    for start in range(0, len(again), step):
        part = slice(start, start + step)
        ours = _rows_at(segments, number[first[part]], row[first[part]])
        theirs = _rows_at(segments, number[again[part]], row[again[part]])
        distance = np.abs(np.subtract(ours, theirs, dtype=np.float32)).max(axis=1)
        report.differing += int((distance > 0).sum())
        report.largest_difference = max(report.largest_difference, float(distance.max()))


def _rows_at(
    segments: Sequence[Segment], number: NDArray[np.int64], row: NDArray[np.int64]
) -> Rows:
    geometry = segments[int(number[0])].manifest.geometry
    assert geometry is not None
    out = geometry.rows(len(row))
    for one in np.unique(number).tolist():
        slots = np.flatnonzero(number == one)
        columns = {"row_crc": segments[one].column("row_crc")}
        read_rows([(segments[one], columns, row[slots], slots)], out, n_rows=len(slots))
    return out
