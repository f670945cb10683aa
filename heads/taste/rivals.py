"""What a taste is compared with: means, biases, and a head for each viewer alone.

The photo's mean and both biases use other viewers' ratings of the photo that is predicted, which a
new photo does not have. They are shown to say what such ratings are worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.taste.learning import Rows, biases

Floats = NDArray[np.float64]
HEAD_STRENGTHS = tuple(float(10 ** (k / 2)) for k in range(9))
_PHOTO_PENALTY = 3.0  # a photo's effect of 0 counts like so many ratings
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Effects:
    """mean + photo + rater, both effects shrunk to 0."""

    mean: float
    photo: Floats
    rater: Floats

    @classmethod
    def of(cls, rows: Rows, n_photos: int, n_raters: int, penalty: float) -> "Effects":
        mean = float(rows.value.mean())
        rater, photo = np.zeros(n_raters), np.zeros(n_photos)
        count = np.bincount(rows.photo, minlength=n_photos) + _PHOTO_PENALTY
        for _ in range(_ROUNDS):
            rater = biases(rows, mean + photo, n_raters, penalty)
            photo = np.bincount(rows.photo, rows.value - mean - rater[rows.rater], n_photos) / count
        return cls(mean, photo, rater)


def of_others(rows: Rows, values: Floats, n_photos: int, penalty: float) -> Floats:
    """For each rating, the mean of `values` over the other raters of its photo, shrunk to 0."""
    count = np.bincount(rows.photo, minlength=n_photos)[rows.photo] - 1
    total = np.bincount(rows.photo, values, n_photos)[rows.photo] - values
    return np.asarray(total / np.maximum(count + penalty, 1e-9))


def heads_alone(
    vectors: Floats,
    few: Rows,
    asked: Rows,
    *,
    mean: float,
    penalty: float,
    strengths: Sequence[float],
) -> Floats:
    """Predictions of one ridge head per viewer, from that viewer's ratings alone.

    vectors: (n, d), standardised, of all photos; their products are divided by d.
    Returns (strengths, m) for the m ratings of `asked`.
    """
    n_raters = int(max(few.rater.max(initial=-1), asked.rater.max(initial=-1))) + 1
    level = mean + biases(few, np.full(len(vectors), mean), n_raters, penalty)
    found = np.tile(level[asked.rater], (len(strengths), 1))
    by_few, by_asked = _by_rater(few, n_raters), _by_rater(asked, n_raters)
    for known, wanted in zip(by_few, by_asked, strict=True):
        if not (len(known) and len(wanted)):
            continue
        rows = vectors[few.photo[known]]
        spread, axes = np.linalg.eigh(rows @ rows.T / rows.shape[1])
        target = axes.T @ (few.value[known] - level[few.rater[known[0]]])
        kernel = vectors[asked.photo[wanted]] @ (rows.T @ axes) / rows.shape[1]
        for place, strength in enumerate(strengths):
            found[place, wanted] += kernel @ (target / (np.maximum(spread, 0) + strength))
    return np.asarray(found)


def _by_rater(rows: Rows, n_raters: int) -> list[NDArray[np.int64]]:
    """The places of each rater's ratings."""
    order = np.argsort(rows.rater, kind="stable")
    ends = np.searchsorted(rows.rater[order], np.arange(1, n_raters))
    return np.split(order, ends)
