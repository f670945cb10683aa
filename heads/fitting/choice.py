"""Which head to take: the one rule that fits, studies and pages share."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from heads.fitting.intervals import Sample

Floats = NDArray[np.float64]


def errors(n: float, sample: Sample) -> float:
    """n standard errors, as many as Student's t makes of them for so few effective groups."""
    return float(stats.t.isf(stats.norm.sf(n), max(sample.n_effective - 1, 0.5)))


def simplest(scores: Mapping[str, Floats], sample: Sample) -> str:
    """The simplest head within one paired standard error of the lowest dev figure.

    scores: per head, simplest first, the dev loss of each row (n,). sample: the dev rows; its
        groups count once, or its rows where they are all of one group. The error is taken as wide
        as Student's t makes it for so few; where there is none, nothing but the simplest is sure.
    """
    if sample.n_groups < 2:
        sample = Sample(sample.weight, np.arange(len(sample.groups)))
    losses = {name: sample.mean(rows) for name, rows in scores.items()}
    finite = {name: loss for name, loss in losses.items() if np.isfinite(loss)}
    if not finite:
        return next(iter(scores))
    lowest = min(finite, key=lambda name: finite[name])
    reach = errors(1, sample)
    for name in finite:
        gap = scores[name] - scores[lowest]
        error = sample.error(gap - sample.mean(gap))
        # A millionth of the loss: heads that say the same are the same.
        room = max(reach * error if np.isfinite(error) else np.inf, 1e-6 * abs(finite[lowest]))
        if finite[name] - finite[lowest] <= room:
            return name
    return lowest
