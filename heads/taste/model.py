"""A taste: what all viewers share, and how each one departs from it. Numpy only.

    rating(viewer, photo) = common(photo) + bias + slope x spread(photo) + taste . directions(photo)

`common` is a ridge head on the vectors. `spread` is the same score, centred and scaled, so that a
slope says how strongly a viewer follows the others. `directions` are a few linear scores of the
vector, the same for all viewers (the low rank). What a viewer owns are the numbers before them, all
0 for somebody unknown: the common part is then the whole prediction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve

from embedcache.errors import HeadError
from heads.head import Standard

Floats = NDArray[np.float64]
Matrix = NDArray[np.float32]
_BLOCK = 8192
BIAS, SLOPE, FIRST_TASTE = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Taste:
    """A fitted model of ratings. k directions, the first of them the common score's spread.

    standard: of the vectors.  weight: float32 (d,) and bias: the common part.
    directions: float32 (k, d) and offsets (k,), on standardised vectors.
    penalty: float64 (1 + k,), the ridge penalty of each number that a viewer owns.
    owned: float32 (v, 1 + k): bias, slope, tastes.  raters: the row of each viewer in it.
    card: the JSON document that stands beside the weights.
    """

    standard: Standard
    weight: Matrix
    bias: float
    directions: Matrix
    offsets: Matrix
    penalty: Floats
    owned: Matrix
    raters: Mapping[str, int]
    card: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        rank = len(self.directions) - 1
        return f"<Taste: {len(self.raters):,} viewers, rank {rank}, from {self.dim:,} floats>"

    @property
    def dim(self) -> int:
        """Floats per vector."""
        return len(self.weight)

    def predict(self, vectors: NDArray[np.floating[Any]], rater_id: str | None = None) -> Floats:
        """What a viewer would rate the photos of vectors (n, d): float64 (n,).

        A viewer who rated nothing in training, or None, gets the common part. A row with a NaN
        gives NaN. HeadError when the vectors have another length.
        """
        place = None if rater_id is None else self.raters.get(rater_id)
        owned = np.zeros(1 + len(self.directions)) if place is None else self.owned[place]
        common, features = self.scores(vectors)
        return common + features @ owned.astype(np.float64)

    def scores(self, vectors: NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
        """The common part (n,), and what a viewer's numbers are multiplied with (n, 1 + k)."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise HeadError(
                f"this taste takes vectors of {self.dim} floats; got an array of shape "
                f"{vectors.shape}"
            )
        columns = np.vstack([self.weight[None], self.directions]).T.astype(np.float64)
        constants = np.append(self.bias, self.offsets.astype(np.float64))
        found = np.empty((len(vectors), columns.shape[1]))
        for start in range(0, len(vectors), _BLOCK):
            block = vectors[start : start + _BLOCK].astype(np.float32, copy=False)
            found[start : start + _BLOCK] = self.standard.apply(block) @ columns + constants
        return found[:, 0], np.column_stack([np.ones(len(found)), found[:, 1:]])

    def adapt(self, vectors: NDArray[np.floating[Any]], ratings: ArrayLike) -> Floats:
        """What a new viewer owns (1 + k,), from the vectors (n, d) of the photos rated, and (n,).

        Nothing is fitted again: it is one small ridge solution. `common + features @ owned` of
        `scores` are this viewer's predictions.
        """
        common, features = self.scores(vectors)
        return owned_by(features, np.asarray(ratings, np.float64) - common, self.penalty)


def owned_by(features: Floats, residual: Floats, penalty: Floats) -> Floats:
    """The ridge solution (p,) of residual (n,) on features (n, p): the part of one viewer."""
    gram = features.T @ features + np.diag(penalty)
    return np.asarray(solve(gram, features.T @ residual, assume_a="pos", check_finite=False))
