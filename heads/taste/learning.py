"""The common part and the directions of a taste, by ridge solutions in closed form.

First the common part: a ridge head on each photo's mean rating, in turn with the viewers' biases.
Then the directions, by alternating least squares on what is left: given the directions each
viewer's numbers are a ridge solution, and given these the directions are one. Everything is in
units of `unit`, the spread of what the common part and biases leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, solve

from heads.dataset import split
from heads.dataset.rows import Part
from heads.fitting.linear import Linear, best_scaling, fit_standard, ridge
from heads.head import Standard
from heads.taste.ratings import Ratings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_COMPONENTS = 64  # of the vectors, in which directions are looked for
MOST_MOMENT_BYTES = 1 << 30
FIRST_BIAS = 3.0  # a bias of 0 counts like so many ratings, until dev has chosen
_SETS = 5  # of moments at once: of all ratings, and of a viewer's first few
_ROUNDS, _FIRST_STEPS, _STEPS = 3, 15, 6


@dataclass(frozen=True, slots=True)
class Rows:
    """Some ratings: places of raters and photos, and values, each (m,)."""

    rater: Ints
    photo: Ints
    value: Floats

    @classmethod
    def of(cls, ratings: Ratings, at: NDArray[np.bool_]) -> "Rows":
        return cls(ratings.rater[at], ratings.photo[at], ratings.value[at])

    def take(self, at: NDArray[np.bool_]) -> "Rows":
        return Rows(self.rater[at], self.photo[at], self.value[at])


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The common part. score: float64 (n,), of every photo.  strength: ridge's, chosen on dev.

    features: float64 (n, 2 + m): 1, the spread of the score, and m leading components of the
        vectors in units of their common scale.  basis: (m, d), these components' rows.
    unit: the standard deviation of what score and biases leave of the ratings.
    """

    standard: Standard
    weight: Floats
    bias: float
    strength: float
    score: Floats
    features: Floats
    basis: Floats
    spread: tuple[float, float]
    unit: float


def biases(rows: Rows, score: Floats, n_raters: int, penalty: float) -> Floats:
    """How much higher each rater rates than `score` (n photos,), shrunk to 0: (v,)."""
    gap = rows.value - score[rows.photo]
    count = np.bincount(rows.rater, minlength=n_raters)
    return np.asarray(np.bincount(rows.rater, gap, n_raters) / (count + penalty))


def _ridges(parts: tuple[Part, Part], scalings: Sequence[Standard]) -> list[Linear]:
    return [ridge(*parts, one) for one in scalings]


def fit_common(ratings: Ratings, train: Rows, dev: Rows) -> Common:
    """The ridge head on photos' mean ratings, biases taken out, and the frame of the directions."""
    n_raters = len(ratings.raters)
    score = np.full(len(ratings.vectors), train.value.mean())
    strengths: tuple[float, ...] = ()
    scaling: Standard | None = None
    standard = fit_standard(_part(ratings, train, np.zeros(n_raters)))
    for _ in range(_ROUNDS):
        owned = biases(train, score, n_raters, FIRST_BIAS)
        parts = _part(ratings, train, owned), _part(ratings, dev, owned)
        if scaling is None:
            line, scaling = best_scaling(partial(_ridges, parts), standard)
            strengths = (line.strength,)
        else:
            line = ridge(*parts, scaling, strengths=strengths)
        weight, bias = line.layer.weight[0, 0].astype(np.float64), float(line.layer.bias[0, 0])
        score = scaling.apply(ratings.vectors) @ weight + bias
    assert scaling is not None
    left = train.value - score[train.photo]
    left -= biases(train, score, n_raters, FIRST_BIAS)[train.rater]
    known = np.unique(train.photo)
    middle, scale = float(score[known].mean()), float(score[known].std()) or 1.0
    basis = _components(scaling.apply(ratings.vectors[known]), n_raters)
    parts_of = scaling.apply(ratings.vectors) @ basis.T
    return Common(
        standard=scaling,
        weight=weight,
        bias=bias,
        strength=line.strength,
        score=score,
        features=np.column_stack([np.ones(len(score)), (score - middle) / scale, parts_of]),
        basis=basis,
        spread=(middle, scale),
        unit=float(left.std()) or 1.0,
    )


def _part(ratings: Ratings, rows: Rows, owned: Floats) -> Part:
    """Photos with their mean rating, less the raters' biases; weighted by the ratings."""
    n = len(ratings.vectors)
    count = np.bincount(rows.photo, minlength=n)
    total = np.bincount(rows.photo, rows.value - owned[rows.rater], n)
    known = np.flatnonzero(count)
    return Part(
        vectors=ratings.vectors,
        rows=known,
        order=np.arange(len(known)),
        targets=(total[known] / count[known])[:, None],
        weights=count[known].astype(np.float64),
        groups=known,
    )


def _components(rows: NDArray[np.float32], n_raters: int) -> Floats:
    """The leading principal components of standardised rows (n, d), scaled as one: (m, d)."""
    n, dim = rows.shape
    room = int((MOST_MOMENT_BYTES / 8 / _SETS / max(n_raters, 1)) ** 0.5) - 2
    most = max(1, min(MOST_COMPONENTS, n - 1, dim, room))
    rows = rows.astype(np.float64)
    if dim <= n:
        _, found = eigh(rows.T @ rows, subset_by_index=(dim - most, dim - 1))
        basis = found.T[::-1]
    else:
        _, found = eigh(rows @ rows.T, subset_by_index=(n - most, n - 1))
        basis = (rows.T @ found).T[::-1]
        basis /= np.maximum(np.linalg.norm(basis, axis=1, keepdims=True), 1e-12)
    return np.asarray(basis / (float((rows @ basis.T).std()) or 1.0))


@dataclass(frozen=True, slots=True)
class Moments:
    """Per rater, features' products (v, p, p) and their products with the residuals (v, p)."""

    gram: Floats
    cross: Floats

    @classmethod
    def of(cls, rows: Rows, common: Common, n_raters: int) -> "Moments":
        """Of ratings, with residuals from the common part in its unit."""
        p = common.features.shape[1]
        found = cls(np.zeros((n_raters, p, p)), np.zeros((n_raters, p)))
        order = np.argsort(rows.rater, kind="stable")
        ends = np.searchsorted(rows.rater[order], np.arange(n_raters + 1))
        residual = (rows.value - common.score[rows.photo]) / common.unit
        for rater in range(n_raters):
            mine = order[ends[rater] : ends[rater + 1]]
            features = common.features[rows.photo[mine]]
            found.gram[rater] = features.T @ features
            found.cross[rater] = features.T @ residual[mine]
        return found

    def seen_by(self, frame: Floats) -> "Moments":
        """The same for features that `frame` (q, p) makes of these."""
        return Moments(np.asarray(frame @ self.gram @ frame.T), self.cross @ frame.T)

    def owned(self, penalty: Floats) -> Floats:
        """Each rater's ridge solution (v, p)."""
        found = np.linalg.solve(self.gram + np.diag(penalty), self.cross[..., None])
        return np.asarray(found[..., 0])


def frame_of(directions: Floats) -> Floats:
    """The frame (2 + k, 2 + m) of bias, slope and k directions (k, m) in the components."""
    rank, n_components = directions.shape
    frame = np.zeros((2 + rank, 2 + n_components))
    frame[0, 0] = frame[1, 1] = 1
    frame[2:, 2:] = directions
    return frame


def directions_by(
    moments: Moments, rank: int, strengths: Sequence[float], penalty: Floats, *, seed: int
) -> list[Floats]:
    """Directions (rank, m) for each strength, scaled so that tastes have a mean square of 1.

    Minimises squared residuals + strength x (|tastes|² + |directions|²) + penalty (bias, slope).
    """
    n_components = moments.cross.shape[1] - 2
    found = np.random.default_rng(seed).normal(size=(rank, n_components)) * 0.1
    scaled = []
    for place, strength in enumerate(sorted(strengths)):
        own = np.append(penalty, np.full(rank, strength))
        for _ in range(_STEPS if place else _FIRST_STEPS):
            owned = moments.seen_by(frame_of(found)).owned(own)
            found = _directions_given(moments, owned, strength)
        owned = moments.seen_by(frame_of(found)).owned(own)[:, 2:]
        scaled.append(_balanced(owned, found))
    return scaled


def _directions_given(moments: Moments, owned: Floats, strength: float) -> Floats:
    """The ridge solution of the directions, given what each rater owns."""
    taste, rank = owned[:, 2:], owned.shape[1] - 2
    n_raters, n_components = len(owned), moments.cross.shape[1] - 2
    left = moments.cross[:, 2:] - np.einsum(
        "ipa,ia->ip", moments.gram[:, 2:, :2], owned[:, :2], optimize=True
    )
    pairs = (taste[:, :, None] * taste[:, None, :]).reshape(n_raters, -1)
    blocks = pairs.T @ moments.gram[:, 2:, 2:].reshape(n_raters, -1)
    size = rank * n_components
    gram = blocks.reshape(rank, rank, n_components, n_components).transpose(0, 2, 1, 3)
    gram = gram.reshape(size, size) + strength * np.eye(size)
    cross = (taste.T @ left).ravel()
    return np.asarray(solve(gram, cross, assume_a="pos", check_finite=False)).reshape(rank, -1)


def _balanced(taste: Floats, directions: Floats) -> Floats:
    """Directions (k, m) whose products are the same, and whose tastes (v, k) have unit squares."""
    triangle = np.linalg.qr(taste, mode="r")
    _, spread, axes = np.linalg.svd(triangle @ directions, full_matrices=False)
    return np.asarray(spread[:, None] * axes / np.sqrt(max(len(taste), 1)))


def dev_and_train(ratings: Ratings) -> tuple[Rows, Rows]:
    """The ratings of train photos and of dev photos."""
    return (
        Rows.of(ratings, ratings.side == split.TRAIN),
        Rows.of(ratings, ratings.side == split.DEV),
    )
