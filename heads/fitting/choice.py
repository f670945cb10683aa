"""Which head to take: the one rule that fits, studies and pages share."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from heads.fitting.intervals import Sample

Floats = NDArray[np.float64]


def simplest(scores: Mapping[str, Floats], sample: Sample) -> str:
    """The simplest head within one paired standard error of the lowest dev figure.

    scores: per head, simplest first, the dev loss of each row (n,). sample: the dev rows; its
        groups count once. With one group there is no standard error, and the lowest is taken.
    """
    losses = {name: sample.mean(rows) for name, rows in scores.items()}
    finite = {name: loss for name, loss in losses.items() if np.isfinite(loss)}
    if not finite:
        return next(iter(scores))
    lowest = min(finite, key=lambda name: finite[name])
    for name in finite:
        gap = scores[name] - scores[lowest]
        error = sample.error(gap - sample.mean(gap))
        # A millionth of the loss: heads that say the same are the same.
        room = max(error if np.isfinite(error) else 0.0, 1e-6 * abs(finite[lowest]))
        if finite[name] - finite[lowest] <= room:
            return name
    return lowest
