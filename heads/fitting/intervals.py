"""95 % intervals and paired differences for figures on rows that have weights and come in groups.

A group (one person, one photo) counts once: a standard error is the jackknife's, which leaves out
one group at a time (CR3), and Student's t has Kish's effective number of groups less one degrees of
freedom. Losses are judged on the log scale, shares by Wilson's interval, AUC by DeLong's on the
logit. benchmarks/coverage.py measures how often each interval holds the truth, and docs/heads.md
says where none does. CR1, which does not correct for heavy groups, holds it less often
(docs/decisions/084).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from heads.fitting import metrics

Floats = NDArray[np.float64]
LEVEL = 0.95
FEW = 30  # effective groups below which a figure gets a note
WIDEST = 1000.0  # a loss whose interval has ends more than so many-fold apart is not known
_LEAST = 1.5  # effective groups below which there is no spread to speak of
_LEAST_SPREAD = 1e-9  # as a share of the figure: what rounding alone may show
_CHUNK_CELLS = 4_000_000
_KEPT_CELLS = 64_000_000  # of two bytes
_NONE = (float("nan"), float("nan"))
_Z = float(stats.norm.ppf((1 + LEVEL) / 2))


@dataclass(frozen=True, slots=True)
class Difference:
    """first - second on the same rows, its 95 % interval and two-sided p, which is never 0.

    The interval holds 0 wherever p is 0.05 or more. Too few groups have neither: NaN.
    p_adjusted: by Holm's method, for all comparisons of the same table; NaN before that.
    """

    value: float
    low: float
    high: float
    p: float
    p_adjusted: float = float("nan")


@dataclass(frozen=True)
class Sample:
    """The rows that figures are taken over: weight (n,), or None for equal ones, groups (n,)."""

    weight: Floats | None
    groups: NDArray[np.int64]

    @cached_property
    def mass(self) -> Floats:
        """The weights, 1 where there are none."""
        return np.ones(len(self.groups)) if self.weight is None else self.weight

    @cached_property
    def place(self) -> NDArray[np.int64]:
        """The number of each row's group, 0 to n_groups - 1; rows without weight have none (-1)."""
        found = np.full(len(self.groups), -1, np.int64)
        used = self.mass > 0
        found[used] = np.unique(self.groups[used], return_inverse=True)[1]
        return found

    @cached_property
    def n_groups(self) -> int:
        """Groups that weigh anything."""
        return int(self.place.max(initial=-1)) + 1

    def sums(self, values: Floats) -> Floats:
        """Weighted sums of the columns of `values` (n,) or (n, k) per group: (n_groups, ...)."""
        used = self.place >= 0
        columns = values.reshape(len(values), -1)[used] * self.mass[used, None]
        place = self.place[used]
        found = np.stack([np.bincount(place, column, self.n_groups) for column in columns.T], 1)
        return np.asarray(found.reshape(self.n_groups, *values.shape[1:]), np.float64)

    @cached_property
    def n_effective(self) -> float:
        """Kish's effective number of groups: that of equal groups with the same information."""
        return kish(self.group_mass)

    @cached_property
    def n_rows_effective(self) -> float:
        """Kish's effective number of rows, as if each row were a group of its own."""
        return kish(self.mass)

    def mean(self, values: Floats) -> float:
        """The weighted mean."""
        return metrics.mean(values, self.weight)

    @cached_property
    def group_mass(self) -> Floats:
        """The weight of each group (n_groups,)."""
        return self.sums(np.ones(len(self.groups)))

    def error(self, influence: Floats) -> float:
        """The standard error of a figure from its influence per row (weighted mean of 0): CR3."""
        n = self.n_groups
        if n < 2:
            return float("nan")
        total = self.group_mass.sum()
        sums = self.sums(influence) / (total - self.group_mass)
        return float(np.sqrt((n - 1) / n * (sums @ sums)))

    def log_mean(self, scores: Floats) -> tuple[float, Floats, float]:
        """The log of the mean of positive scores; without each group (n_groups,); effective n.

        The effective n is Kish's of the groups' weights, or of their shares of the sum where those
        are more uneven: a mean that hangs on a few large scores is known less well.
        """
        sums = self.sums(scores)
        with np.errstate(divide="ignore", invalid="ignore"):
            without = (sums.sum() - sums) / (self.group_mass.sum() - self.group_mass)
            logs = np.log(without)
        return float(np.log(self.mean(scores))), logs, min(self.n_effective, kish(sums))

    @cached_property
    def reach(self) -> float:
        """Student's t at 97.5 %, for Kish's n less one degrees of freedom."""
        return _reach(self.n_effective) if self.n_groups > 1 else float("nan")


def kish(weights: Floats) -> float:
    """(sum of weights)² / sum of squared weights."""
    square = float(weights @ weights)
    return float(weights.sum()) ** 2 / square if square > 0 else 0.0


def loss_interval(sample: Sample, scores: Floats) -> tuple[float, float]:
    """Of the mean of non-negative scores (squared errors, log-losses), on the log scale."""
    if sample.n_groups < 2 or not sample.mean(scores) > 0:
        return _NONE
    middle, without, n = sample.log_mean(scores)
    error = _jackknife(middle, without)
    if error < _LEAST_SPREAD:  # all rows score the same, which says nothing of other rows
        return _NONE
    return _known(_around(middle, error, _reach(n), np.exp))


def mean_interval(sample: Sample, values: Floats) -> tuple[float, float]:
    """Of the mean of any values."""
    mean = sample.mean(values)
    return _around(mean, sample.error(values - mean), sample.reach, float)


def ratio_interval(
    sample: Sample, top: Floats, bottom: Floats, *, widened: float = 1.0
) -> tuple[float, float]:
    """Of mean(top) / mean(bottom), two positive means of the same rows, on the log scale."""
    if sample.n_groups < 2 or not (sample.mean(top) > 0 and sample.mean(bottom) > 0):
        return _NONE
    first, without_first, n_first = sample.log_mean(top)
    second, without_second, n_second = sample.log_mean(bottom)
    middle = first - second
    error = widened * _jackknife(middle, without_first - without_second)
    if error < _LEAST_SPREAD:
        return _NONE
    return _known(_around(middle, error, _reach(min(n_first, n_second)), np.exp))


def share_interval(sample: Sample, hits: Floats) -> tuple[float, float]:
    """Of a share of rows (0 or 1 each): Wilson's, on the effective size. Never of zero width."""
    if sample.n_groups < 2:
        return _NONE
    share = sample.mean(hits)
    return _wilson(share, _effective(sample, hits), _reach(max(sample.n_effective, _LEAST)))


def auc(
    sample: Sample,
    truth: Floats,
    score: Floats,
    fold: NDArray[np.int64] | None = None,
    *,
    widened: float = 1.0,
) -> tuple[float, float, float]:
    """The area under the ROC curve, its interval by DeLong's structural components on the logit.

    An area of 0 or 1, whose logit is infinite, gets Wilson's interval for the rarer class.
    fold (n,): the mean area over folds, see `over_folds`.
    """
    positive = truth == 1
    sides = [Sample(sample.mass * side, sample.groups) for side in (positive, ~positive)]
    n = min(side.n_effective for side in sides)
    reach = _reach(max(n, _LEAST))

    def parts(some: Sample, at: NDArray[np.int64]) -> tuple[float, Floats]:
        area = metrics.auc(truth[at], score[at], some.mass)
        return area, _auc_without_each_group(some, positive[at], score[at])

    area, without = over_folds(sample, parts, fold)
    if sample.n_groups < 2 or not np.isfinite(area) or n < 1:
        return area, *_NONE
    if not 0 < area < 1:
        return area, *_wilson(area, n, reach)
    logit = np.log(area / (1 - area))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = _jackknife(logit, np.log(without / (1 - without)))
    error *= widened
    if not np.isfinite(error) or error == 0:
        return area, *_wilson(area, n, reach)
    ends = _around(logit, error, sample.reach, lambda value: 1 / (1 + np.exp(-value)))
    return area, *ends


def over_folds(
    sample: Sample,
    parts: Callable[[Sample, NDArray[np.int64]], tuple[float, Floats]],
    fold: NDArray[np.int64] | None,
) -> tuple[float, Floats]:
    """The mean of a figure over folds, each by its weight; the same without each group in turn.

    An order is only one among predictions of the same head. Pooled over heads it is biased: a fold
    that lies high leaves lower rows to learn from, and a constant then seems to know less than
    nothing. parts: of the rows at some places, the figure and its values without each group; folds
    where it is not defined are left out. Groups lie in one fold each.
    """
    fold = np.zeros(len(sample.groups), np.int64) if fold is None else fold
    found: list[tuple[float, float, NDArray[np.int64], Floats]] = []
    for number in np.unique(fold):
        at = np.flatnonzero(fold == number)
        some = Sample(sample.mass[at], sample.groups[at])
        value, without = parts(some, at)
        if np.isfinite(value):
            place = np.unique(sample.place[at][sample.mass[at] > 0])
            found.append((float(some.mass.sum()), value, place, without))
    total = sum(mass for mass, *_ in found)
    if not found:
        return float("nan"), np.full(sample.n_groups, np.nan)
    mean = sum(mass * value for mass, value, *_ in found) / total
    each = np.full(sample.n_groups, mean)
    for mass, value, place, without in found:
        each[place] = mean + mass * (without - value) / total
    return mean, each


def _auc_without_each_group(sample: Sample, positive: NDArray[np.bool_], score: Floats) -> Floats:
    """The area with each group left out in turn (n_groups,)."""
    mass, place, n = sample.mass, sample.place, sample.n_groups
    used = place >= 0
    mine, other = positive & used, ~positive & used
    won = np.zeros(len(score))  # what each row's pairs with the other class add to the area
    won[mine] = mass[mine] * _beaten(score[mine], score[other], mass[other])
    lost = mass[mine].sum() - _beaten(score[other], score[mine], mass[mine])
    won[other] = mass[other] * lost
    both = np.bincount(place[used], won[used], n)  # pairs inside a group are taken away twice
    for group in np.intersect1d(place[mine], place[other]):
        here, there = mine & (place == group), other & (place == group)
        both[group] -= mass[here] @ _beaten(score[here], score[there], mass[there])
    first = mass[mine].sum() - np.bincount(place[mine], mass[mine], n)
    second = mass[other].sum() - np.bincount(place[other], mass[other], n)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((won[mine].sum() - both) / (first * second))


def correlation(
    sample: Sample,
    first: Floats,
    second: Floats,
    fold: NDArray[np.int64] | None = None,
    *,
    widened: float = 1.0,
) -> tuple[float, float, float]:
    """Pearson's correlation and its interval: the jackknife over groups, on Fisher's z scale.

    fold (n,): the mean correlation over folds, see `over_folds`.
    """

    def parts(some: Sample, at: NDArray[np.int64]) -> tuple[float, Floats]:
        if not (np.ptp(first[at]) > 0 and np.ptp(second[at]) > 0):
            return float("nan"), np.empty(0)
        one, other = (v[at] - some.mean(v[at]) for v in (first, second))
        columns = np.column_stack([np.ones(len(one)), one, other, one**2, other**2, one * other])
        sums = some.sums(columns)
        total = sums.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.clip(_correlation(np.vstack([total, total - sums])), -1, 1)
        return float(found[0]), found[1:]

    whole, without = over_folds(sample, parts, fold)
    if sample.n_groups < 3:
        return whole, *_NONE
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.arctanh(np.clip([whole, *without], -1, 1))
    error = widened * _jackknife(z[0], z[1:])
    return whole, *_around(float(z[0]), error, sample.reach, np.tanh)


def _correlation(sums: Floats) -> Floats:
    """Pearson's correlation from sums (n, 6) of 1, x, y, x², y² and xy."""
    n, x, y, xx, yy, xy = sums.T
    return np.asarray((n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y)))


def widening(folds: int | None) -> float:
    """What widens the error of a difference or a correlation that K folds have judged.

    Heads of different folds learn from rows that they share, and from each other's test rows:
    their luck moves all rows at once. Nadeau and Bengio (2003) add n_test / n_train to the 1 / K of
    the variance, and of K folds one tests and K - 2 train. Without it, equal backbones were told
    apart in 7 to 23 % of simulated studies (benchmarks/equal_backbones.py). 1 for one split.
    """
    return 1.0 if folds is None else float(np.sqrt(1 + folds / (folds - 2)))


def difference(
    sample: Sample, first: Floats, second: Floats, *, widened: float = 1.0
) -> Difference:
    """first - second, two scores of the same rows, paired: t over groups.

    p is never below what flipping the signs of all groups could show, 2 to the power 1 - n_groups.
    widened: see `widening`.
    """
    gap = first - second
    value = sample.mean(gap)
    error = widened * sample.error(gap - value)
    reach = sample.reach
    if not np.isfinite(value + error + reach):
        return Difference(value, *_NONE, float("nan"))
    if error <= _LEAST_SPREAD * abs(value):
        if value == 0:  # the same on every row
            return Difference(0.0, 0.0, 0.0, 1.0)
        return Difference(value, *_NONE, _least_p(sample.n_groups))  # no spread, but all one way
    p = 2 * float(stats.t.sf(abs(value) / error, max(sample.n_effective - 1, _LEAST - 1)))
    p = max(p, _least_p(sample.n_groups))
    return _agreeing(value, value - reach * error, value + reach * error, p)


def share_difference(
    sample: Sample, first: Floats, second: Floats, *, widened: float = 1.0
) -> Difference:
    """first - second of two shares of the same rows (0 or 1 each).

    The interval is Agresti and Min's: half a row is added to each of the four outcomes, so that it
    is never of zero width. p is McNemar's, exact, where rows are equal, each is a group of its own
    and nothing is widened; else that of `difference`.
    """
    gap = first - second
    plain = difference(sample, first, second, widened=widened)
    if not np.isfinite(sample.reach):
        return plain
    n = _effective(sample, gap)
    gained, lost = (n * sample.mean((sign * gap > 0).astype(float)) for sign in (1, -1))
    middle = (gained - lost) / (n + 2)
    spread = np.sqrt(max(gained + lost + 1 - (gained - lost) ** 2 / (n + 2), 0)) / (n + 2)
    low, high = middle - _Z * widened * spread, middle + _Z * widened * spread
    p = plain.p
    if widened == 1 and np.ptp(sample.mass) == 0 and sample.n_groups == len(gap):
        better, worse = int((gap > 0).sum()), int((gap < 0).sum())
        p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    elif low <= 0 <= high:  # the interval is another method's: the more careful of the two counts
        p = max(p, 1 - LEVEL)
    return _agreeing(plain.value, float(max(low, -1)), float(min(high, 1)), p)


def holm(values: Sequence[float]) -> list[float]:
    """Holm-adjusted p values, in the order given; NaN where p is NaN, which counts for nothing."""
    found = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(np.asarray(values)[known], kind="stable")]
    largest = 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(known) - rank) * values[at]))
        found[at] = largest
    return [float(value) for value in found]


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of whole groups, for figures with no interval of their own (explained share).

    They are drawn once for all figures, where how often each has each group takes little memory.
    """

    sample: Sample
    resamples: int = 2000
    seed: int = 0

    def sums(self, values: Floats) -> Iterator[Floats]:
        """Blocks (some resamples, k) of weighted sums of the columns of `values` (n, k)."""
        held = self.sample.sums(values)
        few = self.resamples * len(held) <= _KEPT_CELLS and len(held) <= np.iinfo(np.uint16).max
        for counts in self._kept if few else self._drawn():
            yield counts @ held

    @cached_property
    def _kept(self) -> list[NDArray[np.uint16]]:
        return [counts.astype(np.uint16) for counts in self._drawn()]

    def _drawn(self) -> Iterator[NDArray[np.intp]]:
        """How often each group is in each resample, (some resamples, groups)."""
        n = self.sample.n_groups
        source = np.random.default_rng(self.seed)
        step = max(1, _CHUNK_CELLS // max(n, 1))
        for start in range(0, self.resamples, step):
            rows = min(step, self.resamples - start)
            drawn = source.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
            yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)

    def interval(self, values: Floats, figure: Callable[[Floats], Floats]) -> tuple[float, float]:
        """The percentile interval of figure(sums (resamples, k)) -> (resamples,)."""
        if self.sample.n_groups < 2:
            return _NONE
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = np.concatenate([figure(block) for block in self.sums(values)])
        drawn = drawn[np.isfinite(drawn)]
        if not drawn.size:
            return _NONE
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


def _reach(n: float) -> float:
    """Student's t at 97.5 % for an effective number of groups; NaN where it is hardly above 1."""
    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) if n >= _LEAST else float("nan")


def _agreeing(value: float, low: float, high: float, p: float) -> Difference:
    """A difference whose interval holds 0 where p does not rule it out."""
    if p >= 1 - LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(value, low, high, p)


def _known(ends: tuple[float, float]) -> tuple[float, float]:
    """The ends of an interval of a loss, or NaN where it says no more than that there is one."""
    low, high = ends
    return ends if high <= WIDEST * low else _NONE


def _jackknife(whole: float, without: Floats) -> float:
    """The standard error of a figure from its values without each group."""
    n = len(without)
    if not (np.isfinite(whole) and np.isfinite(without).all()):
        return float("nan")
    return float(np.sqrt((n - 1) / n * np.sum((without - whole) ** 2)))


def _around(
    middle: float, error: float, reach: float, back: Callable[[float], float]
) -> tuple[float, float]:
    """middle -+ t x error, brought back from the scale on which it was taken."""
    spread = reach * error
    if not np.isfinite(spread):
        return _NONE
    with np.errstate(over="ignore"):
        return float(back(middle - spread)), float(back(middle + spread))


def _effective(sample: Sample, values: Floats) -> float:
    """How many independent rows would say as much on the mean of `values`.

    The plain variance over the squared standard error, but no less than the effective number of
    groups (all rows of a group alike) and no more than that of rows (each alone).
    """
    mean = sample.mean(values)
    error, spread = sample.error(values - mean), sample.mean((values - mean) ** 2)
    least, most = sample.n_effective, sample.n_rows_effective
    if not error > 0:
        return least
    return float(np.clip(spread / error**2, min(least, most), most))


def _wilson(share: float, n: float, reach: float) -> tuple[float, float]:
    square = reach**2 / n
    middle = (share + square / 2) / (1 + square)
    spread = reach * np.sqrt(share * (1 - share) / n + square / (4 * n)) / (1 + square)
    return float(max(middle - spread, 0.0)), float(min(middle + spread, 1.0))


def _beaten(values: Floats, others: Floats, mass: Floats) -> Floats:
    """Per value, the mass of the others that are smaller; a tie counts half."""
    order = np.argsort(others, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(mass[order])])
    left = np.searchsorted(others[order], values, side="left")
    right = np.searchsorted(others[order], values, side="right")
    return np.asarray((total[left] + total[right]) / 2)


def _least_p(n_groups: int) -> float:
    return max(2.0 ** (1 - n_groups), float(np.finfo(np.float64).tiny))
