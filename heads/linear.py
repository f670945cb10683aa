"""The baselines that always stand in the table: constant, ridge and logistic regression.

Each strength is chosen on dev, from the strongest on. Ridge solves the normal equations, which are
summed block by block: it needs a dim x dim matrix in memory and never the whole training set. It
equals scikit-learn's `Ridge` on the same rows (tested to 1e-6); logistic is scikit-learn's own.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, solve

from heads.dataset import Part
from heads.head import Layer, Link, Standard, linked
from heads.metrics import row_log_loss, squared_error

RIDGE_STRENGTHS = tuple(float(10 ** (k / 2)) for k in range(-2, 15))
LOGISTIC_STRENGTHS = tuple(float(10 ** (k / 2)) for k in range(-10, 3))
_BLOCK = 8192
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


def fit_standard(part: Part) -> Standard:
    """Mean and scale of the training vectors, unweighted, in float64 block by block."""
    n, dim = len(part), part.vectors.shape[1]
    total, square = np.zeros(dim), np.zeros(dim)
    for start in range(0, n, _BLOCK):
        total += part.read(start, start + _BLOCK).sum(0, dtype=np.float64)
    mean = total / n
    for start in range(0, n, _BLOCK):
        gap = part.read(start, start + _BLOCK) - mean
        square += np.einsum("ij,ij->j", gap, gap)
    scale = np.sqrt(square / n)
    # A float that hardly moves holds nothing but rounding: leave it as small as it is.
    flat = scale <= 1e-6 * np.maximum(1e-6, np.abs(mean))
    return Standard(mean.astype(np.float32), np.where(flat, 1.0, scale).astype(np.float32))


def constant(train: Part, dev: Part, *, dim: int, link: Link, outputs: int) -> Linear:
    """The weighted mean of the targets, or each class's weighted share; learns nothing else."""
    began = time.perf_counter()
    share = _share(train)
    if link == "softmax":
        rate = np.bincount(train.targets[:, 0].astype(int), share, outputs)
        bias = np.log(np.clip(rate, 1e-9, 1))
    elif link == "sigmoid":
        rate = np.clip(share @ train.targets, 1e-9, 1 - 1e-9)
        bias = np.log(rate / (1 - rate))
    else:
        bias = share @ train.targets
    layer = _layer(np.zeros((outputs, dim)), bias)
    figure = _figure(dev, np.broadcast_to(bias, (len(dev), outputs)), link)
    return Linear(layer, link, float("nan"), figure, (), time.perf_counter() - began)


def ridge(
    train: Part,
    dev: Part,
    standard: Standard,
    *,
    strengths: tuple[float, ...] = RIDGE_STRENGTHS,
) -> Linear:
    """Weighted least squares with an L2 penalty, the strength with the least dev MSE.

    Minimises sum of weight x (target - prediction)² + strength x |coefficients|², weights scaled
    to a mean of 1, the intercept free.
    """
    began = time.perf_counter()
    equations = _Dual if len(train) < len(standard.mean) else _Primal
    system = equations(train, standard)
    dev_vectors = [
        standard.apply(dev.read(start, start + _BLOCK)) - system.centre
        for start in range(0, len(dev), _BLOCK)
    ]
    scores: list[tuple[float, float]] = []
    best: tuple[float, float, Floats] | None = None
    for strength in sorted(strengths, reverse=True):
        try:
            coefficients = system.solve(strength)
        except LinAlgError:
            break
        seen = np.concatenate([block @ coefficients for block in dev_vectors]) + system.middle
        score = _figure(dev, seen, "identity")
        scores.append((strength, score))
        if best is None or score < best[0]:
            best = (score, strength, coefficients)
        elif _worsened(scores, best[0]):
            break
    assert best is not None
    score, strength, coefficients = best
    layer = _layer(coefficients.T, system.middle - system.centre @ coefficients)
    return Linear(layer, "identity", strength, score, tuple(scores), time.perf_counter() - began)


def logistic(
    train: Part,
    dev: Part,
    standard: Standard,
    *,
    outputs: int,
    strengths: tuple[float, ...] = LOGISTIC_STRENGTHS,
) -> Linear:
    """scikit-learn's logistic regression, the strength C with the least dev log-loss.

    outputs: 1 for two classes, else the number of classes. Strengths are tried from the most
    regularised on, each starting from the last.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    began = time.perf_counter()
    inputs, seen_dev = standard.apply(train.read()), standard.apply(dev.read())
    truth = train.targets[:, 0].astype(np.int64)
    weights = None if train.weights is None else train.weights / train.weights.mean()
    model = LogisticRegression(warm_start=True, max_iter=300)
    link: Link = "sigmoid" if outputs == 1 else "softmax"
    scores: list[tuple[float, float]] = []
    best: tuple[float, float, Layer] | None = None
    for strength in strengths:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            # An unfinished fit at a weak penalty is one that dev will not choose.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(inputs, truth, sample_weight=weights)
        weight, bias = np.zeros((outputs, inputs.shape[1])), np.full(outputs, -30.0)
        rows = [0] if outputs == 1 else model.classes_
        weight[rows], bias[rows] = model.coef_, model.intercept_
        score = _figure(dev, seen_dev @ weight.T + bias, link)
        scores.append((strength, score))
        if best is None or score < best[0]:
            best = (score, strength, _layer(weight, bias))
        elif _worsened(scores, best[0]):
            break
    assert best is not None
    score, strength, layer = best
    return Linear(layer, link, strength, score, tuple(scores), time.perf_counter() - began)


class _Centred:
    """Training rows around their weighted mean, times the root of their weight (mean 1)."""

    def __init__(self, train: Part, standard: Standard) -> None:
        self.train, self.standard = train, standard
        self.weights = _share(train) * len(train)
        self.middle = self.weights @ train.targets / len(train)
        self.centre = np.zeros(len(standard.mean))
        for start in range(0, len(train), _BLOCK):
            block = standard.apply(train.read(start, start + _BLOCK))
            self.centre += self.weights[start : start + _BLOCK] @ block
        self.centre /= len(train)

    def blocks(self) -> Iterator[tuple[Floats, Floats]]:
        """Rows (some, dim) and targets (some, k), block by block."""
        for start in range(0, len(self.train), _BLOCK):
            rows = slice(start, start + _BLOCK)
            block = self.standard.apply(self.train.read(rows.start, rows.stop)) - self.centre
            root = np.sqrt(self.weights[rows])[:, None]
            yield block * root, (self.train.targets[rows] - self.middle) * root


class _Primal(_Centred):
    """X'X b = X'y: a dim x dim system, summed block by block."""

    def __init__(self, train: Part, standard: Standard) -> None:
        super().__init__(train, standard)
        dim = len(self.centre)
        self.gram, self.cross = np.zeros((dim, dim)), np.zeros((dim, train.targets.shape[1]))
        for rows, targets in self.blocks():
            self.gram += rows.T @ rows
            self.cross += rows.T @ targets
        self.diagonal = self.gram.diagonal().copy()

    def solve(self, strength: float) -> Floats:
        """Coefficients (dim, k)."""
        np.fill_diagonal(self.gram, self.diagonal + strength)
        return np.asarray(solve(self.gram, self.cross, assume_a="pos", check_finite=False))


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
        np.fill_diagonal(self.gram, self.diagonal + strength)
        dual = solve(self.gram, self.targets, assume_a="pos", check_finite=False)
        return np.asarray(self.rows.T @ dual)


def _worsened(scores: Sequence[tuple[float, float]], best: float) -> bool:
    """Whether the last three strengths were clearly worse than the best: weaker ones will be too.

    Clearly, because under the strongest penalties every figure is the constant's, give or take.
    """
    return len(scores) > 3 and min(score for _, score in scores[-3:]) > 1.02 * best


def _share(part: Part) -> Floats:
    if part.weights is None or not part.weights.any():
        return np.full(len(part), 1 / len(part))
    return np.asarray(part.weights / part.weights.sum())


def _figure(part: Part, outputs: Floats, link: Link) -> float:
    """The dev figure that chooses: log-loss for probabilities, else MSE; weighted."""
    share = _share(part)
    if link == "identity":
        return float(share @ squared_error(part.targets, outputs).mean(1))
    seen = linked(outputs, link)
    if link == "softmax":
        return float(share @ row_log_loss(part.targets[:, 0], seen))
    return float(share @ row_log_loss(part.targets[:, 0], seen[:, 0]))


def _layer(weight: Floats, bias: Floats) -> Layer:
    return Layer(weight[None].astype(np.float32), np.asarray(bias, np.float32)[None])
