"""The baselines that always stand in the table: constant, ridge and logistic regression.

Each strength is chosen on dev. Both need a dim x dim matrix in memory and never the whole training
set: ridge sums its normal equations block by block, logistic regression its loss and slope. Where
there are fewer rows than floats, both are solved in as many numbers as there are rows. They
equal scikit-learn's `Ridge` and `LogisticRegression` on the same rows, by test.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from heads.dataset.rows import Part
from heads.fitting.metrics import row_log_loss, squared_error
from heads.fitting.moments import Moments, ahead
from heads.head import Layer, Link, Standard, linked

RIDGE_STRENGTHS = tuple(float(10 ** (k / 2)) for k in range(-2, 15))
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Linear:
    """One fitted layer over standardised vectors. strength: ridge's alpha or logistic's C."""

    layer: Layer
    link: Link
    strength: float
    dev: float
    curve: tuple[tuple[float, float], ...]
    seconds: float

    def exact(self) -> "Linear":
        """Itself: see `logistic.Search`, which is not as exact yet."""
        return self


def fit_standard(part: Part) -> Standard:
    """Mean and scale of the training vectors, unweighted, in float64 block by block."""
    n, dim = len(part), part.vectors.shape[1]
    total, square = np.zeros(dim), np.zeros(dim)
    for _, block in part.blocks():
        total += block.sum(0, dtype=np.float64)
    mean = total / n
    for _, block in part.blocks():
        gap = block - mean
        square += np.einsum("ij,ij->j", gap, gap)
    return standard_of(mean, square / n)


def standard_of(mean: Floats, variance: Floats) -> Standard:
    """The standard of vectors with these moments, per float."""
    scale = np.sqrt(variance)
    # A float that hardly moves holds nothing but rounding: leave it as small as it is.
    flat = scale <= 1e-6 * np.maximum(1e-6, np.abs(mean))
    return Standard(mean.astype(np.float32), np.where(flat, 1.0, scale).astype(np.float32))


def centred(standard: Standard, widths: Sequence[int] = ()) -> Standard:
    """The same centre with one scale for all floats, their root mean square.

    Floats that vary more then count for more, which suits vectors whose own scale means something,
    such as those of face networks.
    widths: floats of each backbone, which gets a scale of its own; () for one backbone.
    """
    scale = np.empty_like(standard.scale)
    for first, last in pairwise(accumulate((0, *(widths or (len(scale),))))):
        own = standard.scale[first:last].astype(np.float64)
        scale[first:last] = np.sqrt(np.mean(own**2))
    return Standard(standard.mean, scale)


class Judged(Protocol):
    """A linear head, or what becomes one, that dev has judged."""

    @property
    def dev(self) -> float: ...
    @property
    def seconds(self) -> float: ...
    def exact(self) -> Linear: ...


def best_scaling(
    fit_all: Callable[[Sequence[Standard]], Sequence[Judged]],
    standard: Standard,
    widths: Sequence[int] = (),
) -> tuple[Linear, Standard]:
    """The better on dev of a linear head on standardised and one on centred vectors."""
    scalings = (standard, centred(standard, widths))
    fitted = fit_all(scalings)
    best = min(range(len(fitted)), key=lambda place: fitted[place].dev)
    found = fitted[best].exact()
    others = sum(one.seconds for place, one in enumerate(fitted) if place != best)
    return replace(found, seconds=found.seconds + others), scalings[best]


def constant(train: Part, dev: Part, *, dim: int, link: Link, outputs: int) -> Linear:
    """The weighted mean of the targets, or each class's weighted share; learns nothing else."""
    began = time.perf_counter()
    share = train.share
    if link == "softmax":
        rate = np.bincount(train.targets[:, 0].astype(int), share, outputs)
        bias = np.log(np.clip(rate, 1e-9, 1))
    elif link == "sigmoid":
        rate = np.clip(share @ train.targets, 1e-9, 1 - 1e-9)
        bias = np.log(rate / (1 - rate))
    else:
        bias = share @ train.targets
    layer = as_layer(np.zeros((outputs, dim)), bias)
    score = figure(dev, np.broadcast_to(bias, (len(dev), outputs)), link)
    return Linear(layer, link, float("nan"), score, (), time.perf_counter() - began)


def ridge(
    train: Part,
    dev: Part,
    standard: Standard,
    *,
    strengths: tuple[float, ...] = RIDGE_STRENGTHS,
    known: "Equations | None" = None,
) -> Linear:
    """Weighted least squares with an L2 penalty, the strength with the least dev MSE.

    Minimises sum of weight x (target - prediction)² + strength x |coefficients|², weights scaled
    to a mean of 1, the intercept free.
    known: the normal equations of the train rows by another scale, which are these but for it.
    """
    began = time.perf_counter()
    system = (known or Equations(train)).by(standard)
    solved: list[tuple[float, Floats]] = []
    for strength in sorted(strengths, reverse=True):
        try:
            solved.append((strength, system.solve(strength)))
        except LinAlgError:
            break
    # All strengths are judged in one pass over the dev rows.
    k, share = train.targets.shape[1], dev.share
    stacked = np.concatenate([coefficients for _, coefficients in solved], 1)
    errors = np.zeros(stacked.shape[1])
    for places, block in dev.blocks():
        rows = standard.apply(block) - system.centre
        seen = (rows @ stacked).reshape(-1, len(solved), k) + system.middle
        gap = squared_error(dev.targets[places, None], seen)
        errors += share[places] @ gap.reshape(len(rows), -1)
    scores = errors.reshape(-1, k).mean(1)
    best = int(np.argmin(scores))
    strength, coefficients = solved[best]
    layer = as_layer(coefficients.T, system.middle - system.centre @ coefficients)
    curve = tuple((s, float(score)) for (s, _), score in zip(solved, scores, strict=True))
    seconds = time.perf_counter() - began
    return Linear(layer, "identity", strength, float(scores[best]), curve, seconds)


class Equations:
    """The normal equations of train rows, summed once for all scales of their floats."""

    def __init__(self, train: Part) -> None:
        self.train = train
        self._first: _Primal | None = None

    def by(self, standard: Standard) -> "_Primal | _Dual":
        """The equations of rows by this standard; all standards have the same mean."""
        if len(self.train) < len(standard.mean):
            return _Dual(self.train, standard)
        if self._first is None:
            self._first = _Primal(self.train, standard)
        return self._first.rescaled(standard)


class _Centred:
    """Training rows around their weighted mean, times the root of their weight (mean 1)."""

    def __init__(self, train: Part, standard: Standard) -> None:
        self.train, self.standard = train, standard
        share = train.share
        self.weights = share * len(train)
        self.middle = share @ train.targets
        self.centre = np.zeros(len(standard.mean))
        for places, block in train.blocks():
            self.centre += share[places] @ standard.apply(block)

    def blocks(self) -> Iterator[tuple[Floats, Floats]]:
        """Rows (some, dim) and targets (some, k), block by block."""
        for places, block in self.train.blocks():
            rows = self.standard.apply(block) - self.centre
            root = np.sqrt(self.weights[places])[:, None]
            rows *= root
            yield rows, (self.train.targets[places] - self.middle) * root


class _Primal(_Centred):
    """X'X b = X'y: a dim x dim system, summed block by block."""

    def __init__(self, train: Part, standard: Standard) -> None:
        super().__init__(train, standard)
        dim = len(self.centre)
        # Targets are further floats of a row, whose products with the others are X'y.
        moments = Moments(dim + train.targets.shape[1], np.float64)
        for rows in ahead(np.concatenate(pair, 1) for pair in self.blocks()):
            moments.add(rows)
        both = moments.whole()
        self.gram, self.cross = both[:dim, :dim], both[:dim, dim:]
        self.diagonal = self.gram.diagonal().copy()

    def rescaled(self, standard: Standard) -> "_Primal":
        """These equations, by another scale of each float."""
        if standard is self.standard:
            return self
        ratio = self.standard.scale.astype(np.float64) / standard.scale
        found = copy(self)
        found.standard, found.centre = standard, self.centre * ratio
        found.gram, found.cross = self.gram * ratio * ratio[:, None], self.cross * ratio[:, None]
        found.diagonal = self.diagonal * ratio * ratio
        return found

    def solve(self, strength: float) -> Floats:
        """Coefficients (dim, k)."""
        return _solved(self.gram, self.diagonal + strength, self.cross)


class _Dual(_Centred):
    """The same solution where there are fewer rows than floats: an n x n system."""

    def __init__(self, train: Part, standard: Standard) -> None:
        super().__init__(train, standard)
        rows, targets = zip(*self.blocks(), strict=True)
        self.rows, self.targets = np.concatenate(rows), np.concatenate(targets)
        self.gram = self.rows @ self.rows.T
        self.diagonal = self.gram.diagonal().copy()

    def solve(self, strength: float) -> Floats:
        """Coefficients (dim, k)."""
        dual = _solved(self.gram, self.diagonal + strength, self.targets)
        return np.asarray(self.rows.T @ dual)


def _solved(gram: Floats, diagonal: Floats, right: Floats) -> Floats:
    """The solution x of gram x = right, gram symmetric and with another diagonal; it is kept.

    `scipy.linalg.solve` also estimates how near to singular it is, for as much time again.
    """
    np.fill_diagonal(gram, diagonal)
    # Symmetric: its transpose is the same matrix in the order that LAPACK factors in place.
    factor = cho_factor(np.array(gram.T, order="F"), overwrite_a=True, check_finite=False)
    return np.asarray(cho_solve(factor, right, check_finite=False))


def figure(part: Part, outputs: Floats, link: Link) -> float:
    """The dev figure that chooses: log-loss for probabilities, else MSE; weighted."""
    if link == "identity":
        return float(part.share @ squared_error(part.targets, outputs).mean(1))
    seen = linked(outputs, link)
    chance = seen if link == "softmax" else seen[:, 0]
    return float(part.share @ row_log_loss(part.targets[:, 0], chance))


def as_layer(weight: Floats, bias: Floats) -> Layer:
    """A layer of one member from weight (outputs, dim) and bias (outputs,)."""
    return Layer(weight[None].astype(np.float32), np.asarray(bias, np.float32)[None])
