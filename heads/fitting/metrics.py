"""Figures of merit for predictions: numpy only, each weighted, each equal to scikit-learn's.

Throughout, `truth` and `prediction` have shape (n,) and `weight` is (n,) and non-negative, or None
for equal weights. A figure that is not defined for its input (one class only, a constant truth) is
NaN, never an exception: the caller prints it as missing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_TINY = float(np.finfo(np.float64).eps)
_FLAT = float(np.finfo(np.float32).eps)
_NOTHING = 1e-18  # its square is still a 32-bit float


def mean(values: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Weighted mean of (n,) values; NaN when no row weighs anything."""
    values = np.asarray(values, np.float64)
    weight = _weight(weight, values.size)
    total = weight.sum()
    return float(values @ weight / total) if total > 0 else float("nan")


def squared_error(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """(truth - prediction)² per row."""
    gap = np.asarray(truth, np.float64) - np.asarray(prediction, np.float64)
    return np.asarray(gap * gap)


def row_log_loss(truth: ArrayLike, probability: ArrayLike) -> Floats:
    """-log of the probability given to the truth, per row.

    truth: 0 or 1 (or a ratio between) with probability (n,) of class 1; or class numbers with
        probability (n, classes). Probabilities are kept a rounding error away from 0 and 1.
    """
    probability = np.clip(np.asarray(probability, np.float64), _TINY, 1 - _TINY)
    if probability.ndim == 2:
        rows = np.arange(len(probability))
        total = probability.sum(1)
        return np.asarray(-np.log(probability[rows, np.asarray(truth, np.int64)] / total))
    truth = np.asarray(truth, np.float64)
    return np.asarray(-(truth * np.log(probability) + (1 - truth) * np.log1p(-probability)))


def row_hit(truth: ArrayLike, probability: ArrayLike) -> Floats:
    """1.0 where the likelier class is the true one, else 0.0 (a tie falls to the first class)."""
    probability = np.asarray(probability, np.float64)
    guess = probability.argmax(1) if probability.ndim == 2 else probability > 0.5
    return np.asarray(np.asarray(truth) == guess, np.float64)


def mse(truth: ArrayLike, prediction: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Weighted mean squared error."""
    return mean(squared_error(truth, prediction), weight)


def log_loss(truth: ArrayLike, probability: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Weighted mean of `row_log_loss`."""
    return mean(row_log_loss(truth, probability), weight)


def accuracy(truth: ArrayLike, probability: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Weighted share of rows whose likelier class is the true one."""
    return mean(row_hit(truth, probability), weight)


def r2(truth: ArrayLike, prediction: ArrayLike, weight: ArrayLike | None = None) -> float:
    """1 - MSE / variance of the truth, both weighted; NaN for a truth that is `flat`."""
    if flat(truth, weight):
        return float("nan")
    truth = np.asarray(truth, np.float64)
    spread = mean((truth - mean(truth, weight)) ** 2, weight)
    return 1 - mse(truth, prediction, weight) / spread


def flat(truth: ArrayLike, weight: ArrayLike | None = None) -> bool:
    """Whether a target is constant, or moves less than the float32 of a head can follow."""
    truth = np.asarray(truth, np.float64)
    middle = mean(truth, weight)
    spread = mean((truth - middle) ** 2, weight) ** 0.5
    return not spread > max(_FLAT * abs(middle), _NOTHING)


def rank_correlation(
    truth: ArrayLike, prediction: ArrayLike, weight: ArrayLike | None = None
) -> float:
    """Spearman's correlation, ties at their mean rank; a weight counts as so many equal rows."""
    truth, prediction = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    weight = _weight(weight, truth.size)
    first, second = ranks(truth, weight), ranks(prediction, weight)
    first, second = first - mean(first, weight), second - mean(second, weight)
    spread = float(np.sqrt((weight @ first**2) * (weight @ second**2)))
    return float(weight @ (first * second)) / spread if spread > 0 else float("nan")


def absolute_error(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """|truth - prediction| per row."""
    return np.abs(np.asarray(truth, np.float64) - np.asarray(prediction, np.float64))


def auc(truth: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the ROC curve: how often a positive row outscores a negative one."""
    truth, score = np.asarray(truth, np.float64), np.asarray(score, np.float64)
    weight = _weight(weight, truth.size)
    positive, negative = weight * (truth == 1), weight * (truth == 0)
    if not positive.sum() > 0 or not negative.sum() > 0:
        return float("nan")
    _, place = np.unique(score, return_inverse=True)
    lost = np.bincount(place, negative)
    below = np.cumsum(lost) - lost / 2
    return float(positive @ below[place] / (positive.sum() * negative.sum()))


@dataclass(frozen=True, slots=True)
class Reliability:
    """How predicted values compare with what was seen, bin by bin (empty bins left out).

    predicted, observed, share: (bins,) weighted means and the share of the weight in each bin.
    error: the expected calibration error, sum of share x |predicted - observed|.
    """

    predicted: Floats
    observed: Floats
    share: Floats
    error: float


def reliability(
    truth: ArrayLike, prediction: ArrayLike, weight: ArrayLike | None = None, *, bins: int = 10
) -> Reliability:
    """Compare predictions in [0, 1] with the truth in `bins` bins of equal width."""
    truth, prediction = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    weight = _weight(weight, truth.size)
    place = np.clip((prediction * bins).astype(np.int64), 0, bins - 1)
    total = np.bincount(place, weight, bins)
    kept = total > 0
    predicted = np.asarray(np.bincount(place, weight * prediction, bins)[kept] / total[kept])
    observed = np.asarray(np.bincount(place, weight * truth, bins)[kept] / total[kept])
    share = np.asarray(total[kept] / max(total.sum(), _TINY), np.float64)
    return Reliability(predicted, observed, share, float(share @ np.abs(predicted - observed)))


def noise_floor(ratio: ArrayLike, count: ArrayLike) -> float:
    """The weighted MSE that a perfect predictor would still show, because counts are finite.

    ratio: successes / count per row; count: the number of trials, which is also the row's weight.
    Assumes that each row's trials are independent with one probability p: the ratio then has
    variance p(1-p)/count, of which ratio x (1 - ratio) / (count - 1) is an unbiased estimate.
    Rows with one trial carry no estimate of their own variance; they are given the p(1-p) of
    the others on average (weighted by count). NaN when no row has two trials.
    """
    one_trial, several, seen = noise_terms(ratio, count).T
    if not several.any():
        return float("nan")
    return float(one_trial.sum() / several.sum() * seen.sum() / np.sum(count))


def noise_terms(ratio: ArrayLike, count: ArrayLike) -> Floats:
    """What each row adds to the noise floor (n, 3): p(1-p), or 0 for fewer than two trials;
    whether it has two trials; whether it has any."""
    ratio, count = np.asarray(ratio, np.float64), np.asarray(count, np.float64)
    several = count > 1
    one_trial = ratio * (1 - ratio) * count / np.where(several, count - 1, 1)
    return np.column_stack([np.where(several, one_trial, 0.0), several, count > 0]).astype(float)


def explainable_share(constant: float, error: float, floor: float) -> float:
    """Share of the variance above the noise floor that a predictor explains.

    1 is all that can be explained, 0 is the constant; NaN when nothing is left to explain.
    """
    room = constant - floor
    return (constant - error) / room if room > 0 else float("nan")


def _weight(weight: ArrayLike | None, n: int) -> Floats:
    return np.ones(n) if weight is None else np.asarray(weight, np.float64)


def ranks(values: Floats, weight: ArrayLike | None = None) -> Floats:
    """Mean rank per row when row i stands for weight[i] equal rows."""
    _, place = np.unique(values, return_inverse=True)
    total = np.bincount(place, weight)
    return np.asarray((np.cumsum(total) - total / 2)[place])
