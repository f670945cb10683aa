"""Second moments of rows, X'X, added up block by block.

BLAS adds each block's share to one triangle of the sum in place, while the next block is read and
standardised. `total += rows.T @ rows` writes a square of its own per block, mirrors it and adds it,
which is a quarter of the time for 2048 floats (docs/decisions/109).
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs

Item = TypeVar("Item")


class Moments:
    """The sum of rows.T @ rows over blocks of rows (some, width) of one kind of float."""

    def __init__(self, width: int, kind: type[np.floating[Any]]) -> None:
        self._upper = np.zeros((width, width), kind, order="F")
        [self._add] = get_blas_funcs(["syrk"], [self._upper])

    def add(self, rows: NDArray[Any]) -> None:
        """Add what a block of C-ordered rows gives."""
        self._upper = self._add(1.0, rows.T, beta=1.0, c=self._upper, overwrite_c=True)

    def whole(self) -> NDArray[Any]:
        """The sum, (width, width); nothing can be added afterwards."""
        # C-ordered, it is the lower triangle that was filled.
        found = self._upper.T
        found += np.tril(found, -1).T
        return found


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items in order, each made in a thread while the one before it is used."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, "ahead") as pool:
        waiting = pool.submit(next, source, end)
        while (item := waiting.result()) is not end:
            waiting = pool.submit(next, source, end)
            yield cast(Item, item)
