"""Logistic regression with an L2 penalty: scipy's L-BFGS over blocks of rows.

It minimises what scikit-learn's `LogisticRegression` does, C x sum of weight x log-loss plus half
the squared coefficients, weights scaled to a mean of 1 and the intercepts free, and ends closer to
the minimum (tested to 1e-6). Three things differ. Rows are read a block at a time, so that they
need not fit in memory. Coefficients are sought in the coordinates in which the loss at its most
curved is round: L-BFGS then needs a dozen passes over the rows where it would need hundreds. And
where there are fewer rows than floats, which is where the best coefficients are a sum of rows, they
are sought among these: n numbers for n rows, whatever the number of floats.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, eigh, solve_triangular
from scipy.optimize import minimize
from scipy.special import expit

from heads.dataset.rows import Part
from heads.fitting.linear import Linear, figure
from heads.head import Layer, Link, Standard

STRENGTHS = tuple(float(10 ** (k / 2)) for k in range(-10, 3))
Floats = NDArray[np.float64]
Block = tuple[NDArray[np.int64], NDArray[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class Search:
    """The strengths that were tried, and the best of them as far as dev can tell it from others.

    dev: its log-loss there. curve: strength and log-loss of each.
    """

    loss: "Loss"
    part: Part
    outputs: int
    theta: Floats
    strength: float
    dev: float
    curve: tuple[tuple[float, float], ...]
    seconds: float

    def exact(self) -> Linear:
        """The regression of the best strength, solved to the rounding of float32 coefficients."""
        began = time.perf_counter()
        theta = self.loss.minimum(self.theta, self.strength, exact=True)
        layer = self.loss.layer(theta, self.outputs)
        link = _link(self.outputs)
        dev = self.loss.dev_figure(self.part, layer, link)
        seconds = self.seconds + time.perf_counter() - began
        return Linear(layer, link, self.strength, dev, self.curve, seconds)


class Losses:
    """The losses of train rows by several standards of one mean, whose rows are read once.

    outputs: 1 for two classes, else the number of classes; one without a train row gets a
        probability of about zero.
    memory_bytes: standardised rows are kept only if they and the rows as read take less.
    """

    def __init__(self, train: Part, outputs: int, memory_bytes: int | None = None) -> None:
        self.train, self.outputs, self.memory_bytes = train, outputs, memory_bytes
        self._first: Loss | None = None

    def by(self, standard: Standard) -> "Loss":
        """The loss of rows by this standard."""
        if self._first is None or self._first.basis is not None:
            self._first = Loss(self.train, standard, self.outputs, self.memory_bytes)
        return self._first.rescaled(standard)


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
    return search(losses, dev, standard, strengths=strengths).exact()


def search(
    losses: Losses,
    dev: Part,
    standard: Standard,
    *,
    strengths: tuple[float, ...] = STRENGTHS,
    tick: Callable[[], None] = lambda: None,
) -> Search:
    """Try strengths C, and keep the one with the least dev log-loss.

    strengths: tried from the most regularised on, each from the last one's solution, until dev is
        clearly past its best.
    tick: called after each strength.
    """
    began = time.perf_counter()
    loss, outputs = losses.by(standard), losses.outputs
    scores: list[tuple[float, float]] = []
    theta = np.zeros((loss.outputs, loss.width + 1))
    best, best_theta = math.inf, theta
    for strength in strengths:
        theta = loss.minimum(theta, strength, exact=False)
        score = loss.dev_figure(dev, loss.layer(theta, outputs), _link(outputs))
        scores.append((strength, score))
        tick()
        if score < best:
            best, best_theta, chosen = score, theta, strength
        # Clearly, because under the strongest penalties every figure is the constant's.
        elif len(scores) > 3 and min(score for _, score in scores[-3:]) > 1.02 * best:
            break
    seconds = time.perf_counter() - began
    return Search(loss, dev, outputs, best_theta, chosen, best, tuple(scores), seconds)


def _link(outputs: int) -> Link:
    return "sigmoid" if outputs == 1 else "softmax"


class Loss:
    """The mean weighted log-loss of the training rows, its slope, and its minimum under a penalty.

    theta: (outputs, width + 1), coefficients and then the intercept. width: floats of a vector, or
        the coordinates along which fewer rows than that lie.
    present: the classes with a train row; the others have no line in theta.
    """

    def __init__(
        self, train: Part, standard: Standard, outputs: int, memory_bytes: int | None
    ) -> None:
        self.begin(train, standard, outputs)
        n, limit = len(train), memory_bytes or 1 << 62
        self.held: list[Block] | None = None
        if 2 * 4 * n * self.dim <= limit:
            self.held = list(self._read())
        if n < self.dim and 4 * 8 * n * self.dim <= limit:
            self.held = self._turn()
        self.width = self.dim if self.basis is None else self.basis.shape[1]
        self.gram = self._gram() if self.width <= n else None

    def begin(self, train: Part, standard: Standard, outputs: int) -> None:
        """What does not depend on where the rows lie."""
        self.train, self.standard, self.share = train, standard, train.share
        self.dim = len(standard.mean)
        truth = train.targets[:, 0].astype(np.int64)
        self.present = np.array([0]) if outputs == 1 else np.unique(truth)
        self.outputs = len(self.present)
        self.truth = truth if outputs == 1 else np.searchsorted(self.present, truth)
        # What each float's coefficient is multiplied with where rows are by another scale.
        self.ratio: Floats | None = None
        # Floats of a vector per coordinate, (dim, coordinates); None where both are the same.
        self.basis: Floats | None = None

    def rescaled(self, standard: Standard) -> "Loss":
        """The loss by a standard with another scale, of the same rows, in float64's rounding."""
        if standard is self.standard:
            return self
        found = copy(self)
        found.standard = standard
        found.ratio = ratio = self.standard.scale.astype(np.float64) / standard.scale
        found.gram = None if self.gram is None else self.gram * ratio * ratio[:, None]
        return found

    def _turn(self) -> "list[Block]":
        """The rows in coordinates along which they lie, at most one per row; sets `basis`.

        The axes are at right angles, so that a penalty on coefficients is the same in both.
        """
        rows = np.empty((len(self.train), self.dim))
        for places, block in self.blocks():
            rows[places] = block
        values, axes = eigh(rows @ rows.T, driver="evd", check_finite=False)
        kept = values > 1e-12 * values[-1]
        lengths = np.sqrt(values[kept])
        self.basis = rows.T @ (axes[:, kept] / lengths)
        turned = axes[:, kept] * lengths
        return [(places, turned[places]) for places, _ in self.blocks()]

    def _read(self) -> Iterator["Block"]:
        for places, block in self.train.blocks():
            yield places, self.standard.apply(block)

    def blocks(self) -> Iterable["Block"]:
        """Standardised rows, in their coordinates, from memory or read again."""
        return self._read() if self.held is None else self.held

    def _gram(self) -> Floats:
        """The rows' second moments, by which the loss curves at the most."""
        total = np.zeros((self.width, self.width))
        for places, block in self.blocks():
            rows = block * np.sqrt(self.share[places])[:, None]
            total += rows.T @ rows
        return total

    def minimum(self, theta: Floats, strength: float, *, exact: bool) -> Floats:
        """The theta of least loss, from a first guess on. strength: scikit-learn's C.

        exact: to the rounding of float32 coefficients; else to what dev can distinguish.
        """
        penalty = 1 / (strength * len(self.train))
        frame = self.frame(penalty)

        def look(flat: Floats) -> tuple[float, Floats]:
            turned = flat.reshape(theta.shape)
            weight = frame.straight(turned[:, :-1])
            value, slope = self.value(
                np.column_stack([weight, turned[:, -1]]), np.float64 if exact else np.float32
            )
            value += 0.5 * penalty * float((weight * weight).sum())
            slope[:, :-1] = frame.slope(slope[:, :-1] + penalty * weight)
            return value, slope.ravel()

        first = np.column_stack([frame.turned(theta[:, :-1]), theta[:, -1]])
        # A loss from float32 products does not resolve steps below 1e-7.
        options = {"gtol": 1e-9, "ftol": 0.0} if exact else {"gtol": 1e-5, "ftol": 1e-7}
        options |= {"maxiter": 1000, "maxls": 50}
        found = minimize(look, first.ravel(), jac=True, method="L-BFGS-B", options=options)
        turned = found.x.reshape(theta.shape)
        return np.column_stack([frame.straight(turned[:, :-1]), turned[:, -1]])

    def frame(self, penalty: float) -> "Frame":
        """The coordinates in which the loss at its most curved is round."""
        if self.gram is None:
            return Frame()
        curve = (0.25 if self.outputs == 1 else 0.5) * self.gram
        np.fill_diagonal(curve, curve.diagonal() + penalty)
        return _Triangular(cholesky(curve, overwrite_a=True, check_finite=False))

    def layer(self, theta: Floats, outputs: int) -> Layer:
        """Theta as a head's layer, with lines for all classes."""
        weight, bias = np.zeros((1, outputs, self.dim)), np.full((1, outputs), -30.0)
        found = theta[:, :-1] if self.basis is None else theta[:, :-1] @ self.basis.T
        weight[0, self.present], bias[0, self.present] = found, theta[:, -1]
        return Layer(weight.astype(np.float32), bias.astype(np.float32))

    def value(self, theta: Floats, precision: type[np.floating[Any]]) -> tuple[float, Floats]:
        """The mean loss at theta and its slope, without a penalty.

        precision: of the two products with each block; the sums are in float64.
        """
        total, slope = 0.0, np.zeros_like(theta)
        weight = theta[:, :-1] if self.ratio is None else theta[:, :-1] * self.ratio
        weight = weight.astype(precision)
        for places, block in self.blocks():
            rows = block.astype(precision, copy=False)
            seen = (rows @ weight.T).astype(np.float64) + theta[:, -1]
            truth, share = self.truth[places], self.share[places]
            if self.outputs == 1:
                one = seen[:, 0]
                total += float(share @ (np.logaddexp(0, one) - truth * one))
                gap = (expit(one) - truth)[:, None]
            else:
                seen -= seen.max(1, keepdims=True)
                gap = np.exp(seen)
                whole = gap.sum(1)
                here = np.arange(len(rows)), truth
                total += float(share @ (np.log(whole) - seen[here]))
                gap /= whole[:, None]
                gap[here] -= 1
            gap *= share[:, None]
            slope[:, :-1] += gap.T.astype(precision) @ rows
            slope[:, -1] += gap.sum(0)
        if self.ratio is not None:
            slope[:, :-1] *= self.ratio
        return total, slope

    def dev_figure(self, dev: Part, layer: Layer, link: Link) -> float:
        """The log-loss of the dev rows."""
        outputs = np.empty((len(dev), layer.bias.shape[1]))
        for places, block in dev.blocks():
            outputs[places] = self.standard.apply(block) @ layer.weight[0].T + layer.bias[0]
        return figure(dev, outputs, link)


class Frame:
    """Coordinates for coefficients (outputs, width); these are the coefficients themselves."""

    def turned(self, weight: Floats) -> Floats:
        """Coefficients in these coordinates."""
        return weight

    def straight(self, turned: Floats) -> Floats:
        """The coefficients again."""
        return turned

    def slope(self, slope: Floats) -> Floats:
        """A slope by coefficients as one by these coordinates."""
        return slope


class _Triangular(Frame):
    """Coordinates root @ weight, of a root that is upper triangular."""

    def __init__(self, root: Floats) -> None:
        self._root = root

    def turned(self, weight: Floats) -> Floats:
        return np.asarray(weight @ self._root.T)

    def straight(self, turned: Floats) -> Floats:
        return np.asarray(solve_triangular(self._root, turned.T, check_finite=False).T)

    def slope(self, slope: Floats) -> Floats:
        solved = solve_triangular(self._root, slope.T, trans=1, check_finite=False)
        return np.asarray(solved.T)
