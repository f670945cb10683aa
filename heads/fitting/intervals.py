"""Bootstrap intervals that resample whole groups, so that one person is never counted as many.

Every figure of one fit uses the same resamples, so that two rows of a table can be compared pair by
pair. Intervals are 95 % percentile intervals.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class Difference:
    """first - second on the same resamples; p is two-sided, 1 / resamples at the least."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Resamples of the groups of n rows, drawn anew (and alike) at each use.

    groups: int (n,), any numbers. With fewer than two groups every interval is NaN.
    """

    groups: NDArray[np.int64]
    resamples: int = 2000
    seed: int = 0

    def counts(self) -> Iterator[NDArray[np.float64]]:
        """Blocks (some resamples, number of groups): how often each group was drawn."""
        n = int(self._place().max(initial=-1)) + 1
        source = np.random.default_rng(self.seed)
        step = max(1, _CHUNK_CELLS // max(n, 1))
        for start in range(0, self.resamples, step):
            rows = min(step, self.resamples - start)
            drawn = source.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
            yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float)

    def means(self, values: Floats, weight: Floats | None) -> Floats:
        """Weighted means of the columns of `values` (n, k), one row per resample (resamples, k)."""
        place = self._place()
        n = int(place.max(initial=-1)) + 1
        weight = np.ones(len(place)) if weight is None else weight
        held = np.column_stack([values * weight[:, None], weight])
        sums = np.stack([np.bincount(place, column, n) for column in held.T], 1)
        totals = np.concatenate([block @ sums for block in self.counts()])
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(totals[:, :-1] / totals[:, -1:])

    def each(self, figure: Callable[[Floats], float]) -> Floats:
        """`figure(draws per row)` for each resample, for figures that are no weighted mean."""
        place = self._place()
        return np.array([figure(row[place]) for block in self.counts() for row in block])

    def _place(self) -> NDArray[np.int64]:
        return np.unique(self.groups, return_inverse=True)[1].astype(np.int64)


def interval(drawn: Floats, *, groups: int) -> tuple[float, float]:
    """The percentile interval of resampled figures; undefined ones are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if groups < 2 or not drawn.size:
        return float("nan"), float("nan")
    edge = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [edge, 1 - edge])
    return float(low), float(high)


def difference(value: float, drawn: Floats, *, groups: int) -> Difference:
    """The paired comparison of two figures from the resamples of their difference."""
    low, high = interval(drawn, groups=groups)
    drawn = drawn[np.isfinite(drawn)]
    if groups < 2 or not drawn.size:
        return Difference(value, low, high, float("nan"))
    tail = min((drawn <= 0).mean(), (drawn >= 0).mean())
    return Difference(value, low, high, float(min(1.0, max(2 * tail, 1 / drawn.size))))
