"""Calibration as a line: truth against prediction, slope 1 and intercept 0 where it is perfect.

For numbers it is the weighted least-squares line; for probabilities the logistic regression of the
truth on the prediction's logit, as in Cox (1958). Errors are over groups (a sandwich), intervals
Student's t.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from heads.fitting.intervals import Sample

Floats = NDArray[np.float64]
_STEPS = 50
_EDGE = 1e-6
_HARDLY = 0.02  # of the target's spread, or in logits


@dataclass(frozen=True, slots=True)
class Line:
    """slope and intercept with their 95 % intervals (low, high); NaN where they do not exist."""

    slope: tuple[float, float, float]
    intercept: tuple[float, float, float]


_NONE = (float("nan"),) * 3


def line(
    sample: Sample,
    truth: Floats,
    prediction: Floats,
    constant: Floats,
    *,
    chance: bool,
    widened: float = 1.0,
) -> Line:
    """The calibration line of predictions (n,), which are probabilities where `chance`.

    truth: numbers, or 0 and 1 (or ratios) where `chance`. constant (n,): what the constant head
    says; where it differs from fold to fold, by that much truth and prediction are both moved.
    A prediction that hardly moves has no line. widened: see `intervals.widening`.
    """
    x, base = prediction, constant
    if chance:
        x, base = (logit(np.clip(value, _EDGE, 1 - _EDGE)) for value in (x, base))
    offset = base - sample.mean(base) if np.ptp(base) > 0 else np.zeros(len(x))
    x = x - offset
    spread = sample.mean((x - sample.mean(x)) ** 2) ** 0.5
    least = _HARDLY if chance else _HARDLY * sample.mean((truth - sample.mean(truth)) ** 2) ** 0.5
    if sample.n_groups < 3 or not spread > least:
        return Line(_NONE, _NONE)
    middle = sample.mean(x) if not chance else 0.0
    design = np.column_stack([np.ones(len(x)), x - middle])
    mass = sample.mass
    if not chance:
        truth, offset = truth - offset, np.zeros(len(x))
    beta = np.array([0.0, 1.0]) if chance else np.zeros(2)
    for _ in range(_STEPS if chance else 1):
        seen = expit(design @ beta + offset) if chance else design @ beta
        bend = mass * (seen * (1 - seen) if chance else 1.0)
        hessian = design.T @ (design * bend[:, None])
        if np.linalg.cond(hessian) > 1e12:
            return Line(_NONE, _NONE)  # classes that the prediction separates have no such line
        step = np.linalg.solve(hessian, design.T @ (mass * (truth - seen)))
        beta = beta + step
        if np.abs(step).max() < 1e-9:
            break
    else:
        if chance:
            return Line(_NONE, _NONE)
    seen = expit(design @ beta + offset) if chance else design @ beta
    # The influence of a row on beta; `error` divides by the total mass.
    influence = ((truth - seen)[:, None] * design) @ np.linalg.inv(hessian) * mass.sum()
    if not chance:
        influence = influence @ np.array([[1.0, 0.0], [-middle, 1.0]])
        beta = beta - np.array([middle * beta[1], 0.0])
    errors = [widened * sample.reach * sample.error(influence[:, k]) for k in range(2)]
    intercept, slope = (
        (float(b), float(b - e), float(b + e)) for b, e in zip(beta, errors, strict=True)
    )
    return Line(slope, intercept)
