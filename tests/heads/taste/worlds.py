"""Ratings whose common part, biases and tastes are known."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.dataset import split
from heads.taste.ratings import Ratings

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Simulated:
    """`ratings` by `truth` (v, n) plus noise of `noise`; directions (k, d) of taste are known."""

    ratings: Ratings
    truth: Floats
    directions: Floats
    noise: float


def simulated(
    *,
    n_photos: int = 400,
    n_raters: int = 80,
    dim: int = 20,
    rank: int = 2,
    per_rater: int = 120,
    taste: float = 1.0,
    noise: float = 0.5,
    seed: int = 0,
) -> Simulated:
    """Viewers who share a line through the vectors, and depart from it in `rank` directions."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n_photos, dim)).astype(np.float32)
    common = vectors @ rng.normal(size=dim) / np.sqrt(dim)
    directions = np.linalg.qr(rng.normal(size=(dim, max(rank, 1))))[0].T[:rank]
    own = taste * rng.normal(size=(n_raters, rank))
    truth = 5 + common + rng.normal(size=(n_raters, 1)) + own @ (directions @ vectors.T)
    photo = np.concatenate(
        [rng.choice(n_photos, per_rater, replace=False) for _ in range(n_raters)]
    )
    rater = np.repeat(np.arange(n_raters), per_rater)
    subset = np.full(n_photos, split.TRAIN, np.uint8)
    subset[int(0.7 * n_photos) :] = split.DEV
    subset[int(0.85 * n_photos) :] = split.TEST
    ratings = Ratings(
        vectors=vectors,
        subset=subset,
        raters=tuple(f"r{k:03}" for k in range(n_raters)),
        rater=rater,
        photo=photo.astype(np.int64),
        value=truth[rater, photo] + noise * rng.normal(size=len(photo)),
    )
    return Simulated(ratings.checked(), truth, directions, noise)
