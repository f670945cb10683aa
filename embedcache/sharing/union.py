"""The set union, one space at a time: which rows of one side the other side lacks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.store.columns import ABSENT, OK
from embedcache.store.index import Table
from embedcache.store.tombstones import Tombstones, forgotten


@dataclass(frozen=True, slots=True)
class Lacking:
    """What is to move. rows: which entries of the source's table, (n,).

    already_there: good rows that the other side has. withheld: rows of forgotten photos, which
    would have moved.
    """

    rows: NDArray[np.bool_]
    already_there: int
    withheld: int


def lacking(source: Table, status: NDArray[np.uint8], gone: Tombstones) -> Lacking:
    """Compare one side's rows with the other side's `status` of the same digests, (n,).

    A good row moves unless the other side has a good one; a failure moves where nothing is known.
    """
    there = status == OK
    wanted = np.where(source.ok, ~there, status == ABSENT)
    banned = forgotten(source.digests, gone)
    return Lacking(
        rows=wanted & ~banned,
        already_there=int((source.ok & there).sum()),
        withheld=int((banned & wanted).sum()),
    )
