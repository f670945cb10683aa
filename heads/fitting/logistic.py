"""Logistic regression with an L2 penalty: Newton's method, several strengths in lock step.

It minimises what scikit-learn's `LogisticRegression` does, C x sum of weight x log-loss plus half
the squared coefficients, weights scaled to a mean of 1 and the intercepts free, and ends closer to
the minimum (tested to 1e-6). Four things differ. Rows are read a block at a time, so that they need
not fit in memory. The regressions of all strengths, and of vectors standardised in two ways, are
columns of the same products (`newton`): a dozen or two passes over the rows serve all of them.
Slopes are eased in coordinates in which the rows' second moments are diagonal, found once for all
strengths. And where there are fewer rows than floats, which is where the best coefficients are a
sum of rows, they are sought among these: n numbers for n rows, whatever the number of floats.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.dataset.rows import Part
from heads.fitting.linear import Linear
from heads.fitting.log_loss import Rows
from heads.fitting.newton import Numbers, minimise
from heads.head import Standard

STRENGTHS = tuple(float(10 ** (k / 2)) for k in range(-10, 3))
Floats = NDArray[np.float64]
_STRENGTHS_AT_ONCE = 5  # those far beyond dev's best are the slowest to solve, for nothing
_ROUGH = 1e-5  # the slope, in round coordinates, at which dev judges a strength
_EXACT = 1e-9


@dataclass(frozen=True, slots=True)
class Search:
    """The strengths that were tried, and the best of them as far as dev can tell it from others.

    dev: its log-loss there. curve: strength and log-loss of each. seconds: its share of a search
    for several standards.
    """

    rows: Rows
    part: Part
    standard: Standard
    theta: Floats
    strength: float
    dev: float
    curve: tuple[tuple[float, float], ...]
    seconds: float

    def exact(self) -> Linear:
        """The regression of the best strength, solved to the rounding of float32 coefficients."""
        began = time.perf_counter()
        column = Columns(self.rows, [self.standard], [self.strength])
        with self.rows.in_threads():
            theta = minimise(column, self.theta[None], tolerance=_EXACT, exact=True)
        if self.rows.link == "softmax":  # what is added to all intercepts changes no probability
            theta[..., -1] -= theta[..., -1].mean()
        dev = self.rows.dev_figures(self.part, theta, [self.standard])[0]
        layer = self.rows.layer(theta[0])
        seconds = self.seconds + time.perf_counter() - began
        return Linear(layer, self.rows.link, self.strength, dev, self.curve, seconds)


class Losses:
    """The losses of train rows by several standards of one mean, whose rows are read once.

    outputs: 1 for two classes, else the number of classes; one without a train row gets a
        probability of about zero.
    memory_bytes: standardised rows are kept only if they and the rows as read take less.
    """

    def __init__(self, train: Part, outputs: int, memory_bytes: int | None = None) -> None:
        self.train, self.outputs, self.memory_bytes = train, outputs, memory_bytes

    def rows(self, standard: Standard) -> Rows:
        """The rows by one standard."""
        return Rows(self.train, standard, self.outputs, self.memory_bytes)

    def by(self, standards: Sequence[Standard]) -> Iterator[tuple[Rows, Sequence[Standard]]]:
        """Rows, and the standards whose regressions are columns of products with them."""
        first = self.rows(standards[0])
        if first.basis is None:
            yield first, standards
            return
        yield first, standards[:1]
        for other in standards[1:]:
            yield self.rows(other), [other]


def logistic(
    train: Part,
    dev: Part,
    standard: Standard,
    *,
    outputs: int,
    strengths: tuple[float, ...] = STRENGTHS,
    memory_bytes: int | None = None,
) -> Linear:
    """The regression whose strength C has the least dev log-loss; see `Losses` and `search`."""
    losses = Losses(train, outputs, memory_bytes)
    return search(losses, dev, [standard], strengths=strengths)[0].exact()


def search(
    losses: Losses,
    dev: Part,
    standards: Sequence[Standard],
    *,
    strengths: tuple[float, ...] = STRENGTHS,
    tick: Callable[[], None] = lambda: None,
) -> list[Search]:
    """Try strengths C by each standard, and keep the one with the least dev log-loss.

    strengths: tried from the most regularised on, as many at once as there is memory for, each from
        the last solution before them, until dev is clearly past its best by every standard.
    tick: called after each strength of each standard.
    """
    found: list[Search] = []
    for rows, some in losses.by(standards):
        began = time.perf_counter()
        scores: list[list[tuple[float, float]]] = [[] for _ in some]
        thetas: list[list[Floats]] = [[] for _ in some]
        start = [rows.constant()] * len(some)
        size = min(_STRENGTHS_AT_ONCE, rows.columns(losses.memory_bytes) // len(some))
        for group in _groups(strengths, max(1, size)):
            pairs = [(k, strength) for k in range(len(some)) for strength in group]
            columns = Columns(rows, [some[k] for k, _ in pairs], [one for _, one in pairs])
            theta = np.stack([start[k] for k, _ in pairs])
            rows.find_frames(some)
            with rows.in_threads():
                theta = minimise(columns, theta, tolerance=_ROUGH, exact=False)
            figures = rows.dev_figures(dev, theta, [some[k] for k, _ in pairs])
            for (k, strength), score, one in zip(pairs, figures, theta, strict=True):
                scores[k].append((strength, score))
                thetas[k].append(one)
                start[k] = one
                tick()
            if all(map(_past, scores)):
                break
        seconds = (time.perf_counter() - began) / len(some)
        for standard, tried, solved in zip(some, scores, thetas, strict=True):
            best = min(range(len(tried)), key=lambda place: tried[place][1])
            strength, score = tried[best]
            found.append(
                Search(rows, dev, standard, solved[best], strength, score, tuple(tried), seconds)
            )
    return found


def _groups(strengths: Sequence[float], size: int) -> list[Sequence[float]]:
    return [strengths[start : start + size] for start in range(0, len(strengths), size)]


def _past(scores: Sequence[tuple[float, float]]) -> bool:
    """Whether dev is clearly past its best; the first ones may all be the constant's figures."""
    seen = [score for _, score in scores]
    return len(seen) > 3 and min(seen[-3:]) > 1.02 * min(seen)


class Columns:
    """Regressions of one set of rows, each by a standard and a strength (scikit-learn's C).

    theta: (columns, k, width + 1), coefficients and then the intercept. See `newton.Problems`.
    """

    def __init__(
        self, rows: Rows, standards: Sequence[Standard], strengths: Sequence[float]
    ) -> None:
        self.rows = rows
        self.penalty = np.array([1 / (strength * len(rows.train)) for strength in strengths])
        self.ratio = rows.ratios(standards)
        self.kinds = list({id(one): one for one in standards}.values())
        self.kind = np.array([[s is k for k in self.kinds].index(True) for s in standards])
        self.curve = np.ones((len(standards), rows.outputs))
        rows.open(len(standards))

    def _given(self, theta: Floats, which: Numbers) -> Floats:
        """Theta for the rows as they lie in memory."""
        if self.ratio is None:
            return theta
        given = theta.copy()
        given[..., :-1] *= self.ratio[which, None]
        return given

    def _taken(self, slope: Floats, theta: Floats, which: Numbers) -> Floats:
        """A slope by theta as given, as one by theta, with the penalty's."""
        if self.ratio is not None:
            slope[..., :-1] *= self.ratio[which, None]
        slope[..., :-1] += self.penalty[which, None, None] * theta[..., :-1]
        return slope

    def look(self, theta: Floats, which: Numbers, *, exact: bool) -> tuple[Floats, Floats]:
        values, slopes, self.curve[which] = self.rows.look(
            self._given(theta, which), which, exact=exact
        )
        weight = theta[..., :-1]
        values += 0.5 * self.penalty[which] * np.einsum("ckd,ckd->c", weight, weight)
        return values, self._taken(slopes, theta, which)

    def bend(self, direction: Floats, which: Numbers) -> Floats:
        bent = self.rows.bend(self._given(direction, which), which)
        return self._taken(bent, direction, which)

    def ease(self, slope: Floats, which: Numbers) -> Floats:
        found = np.empty_like(slope)
        curve, penalty = self.curve[which], self.penalty[which]

        def by(number: int) -> None:
            mine = self.kind[which] == number
            frame = self.rows.frame(self.kinds[number])
            found[mine, :, :-1] = frame.ease(slope[mine, :, :-1], curve[mine], penalty[mine])

        self.rows.share_out(by, range(len(self.kinds)))
        found[..., -1] = slope[..., -1] / curve.clip(min=1e-9)
        return found
