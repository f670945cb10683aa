"""Rows that a space stores more than once, and by how much they differ."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedcache.store.index import repeats
from embedcache.store.reader import read_rows
from embedcache.store.segment import Segment
from embedcache.upkeep.findings import Report

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
    for start in range(0, len(again) if values else 0, BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        ours = _rows_at(segments, number[first[part]], row[first[part]])
        theirs = _rows_at(segments, number[again[part]], row[again[part]])
        distance = np.abs(ours - theirs).max(axis=1)
        report.differing += int((distance > 0).sum())
        report.largest_difference = max(report.largest_difference, float(distance.max()))


def _rows_at(
    segments: Sequence[Segment], number: NDArray[np.int64], row: NDArray[np.int64]
) -> NDArray[np.float32]:
    geometry = segments[int(number[0])].manifest.geometry
    assert geometry is not None
    out = np.empty((len(row), geometry.dim), dtype="<f4")
    for one in np.unique(number).tolist():
        slots = np.flatnonzero(number == one)
        columns = {"row_crc": segments[one].column("row_crc")}
        read_rows([(segments[one], columns, row[slots], slots)], out, n_rows=len(slots))
    return out
