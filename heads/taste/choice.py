"""The hyper-parameters of a taste, chosen on dev photos: rank, strength, and the penalties.

Each viewer is judged as somebody who has rated 5, 20, 50 or all of the train photos that they have,
so that the penalties suit a viewer with few ratings as well.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import LabelsError
from heads.taste.learning import Common, Moments, Rows, directions_by, fit_common, frame_of
from heads.taste.ratings import Ratings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FEW = (5, 20, 50)
RANKS = (1, 2, 4, 8)
STRENGTHS = (20.0, 60.0, 180.0, 540.0)
BIAS_PENALTIES = (0.3, 1.0, 3.0, 10.0)
SLOPE_PENALTIES = (3.0, 10.0, 30.0, 100.0)
TASTE_PENALTIES = (0.5, 1.0, 2.0, 4.0, 8.0)
_FIRST = np.array([3.0, 10.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What dev chose, and what was learned with it.

    frame: (2 + k, 2 + m), makes a viewer's features of `common.features`.  penalty: (2 + k,).
    bias_penalty: of a model with biases alone.  dev: mean squared errors by what was tried.
    """

    common: Common
    frame: Floats
    penalty: Floats
    bias_penalty: float
    rank: int
    strength: float
    dev: dict[str, float]

    def owned(self, rows: Rows, n_raters: int) -> Floats:
        """What each viewer owns (v, 2 + k) by some ratings, in the unit of the ratings."""
        moments = Moments.of(rows, self.common, n_raters).seen_by(self.frame)
        return moments.owned(self.penalty) * self.common.unit

    def predict(self, owned: Floats, rows: Rows) -> Floats:
        """Predictions of ratings (m,)."""
        features = self.common.features[rows.photo] @ self.frame.T
        personal = np.einsum("mp,mp->m", features, owned[rows.rater])
        return np.asarray(self.common.score[rows.photo] + personal)


def turns(rows: Rows, *, seed: int) -> Ints:
    """The place of each rating (m,) among its rater's, in a random order: 0, 1, 2, ..."""
    order = np.random.default_rng(seed).permutation(len(rows.rater))
    order = order[np.argsort(rows.rater[order], kind="stable")]
    sorted_raters = rows.rater[order]
    begins = np.searchsorted(sorted_raters, sorted_raters, side="left")
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order)) - begins
    return found


def learn(ratings: Ratings, train: Rows, dev: Rows, *, seed: int) -> Learned:
    """Learn from the ratings of train photos, and choose on those of dev photos.

    LabelsError where there is no rating of either.
    """
    if not (len(train.value) and len(dev.value)):
        raise LabelsError(
            "too few ratings: without those of the viewers that are judged, no rating of train "
            "photos, or none of dev photos, is left"
        )
    common = fit_common(ratings, train, dev)
    judge = _Judge(common, train, dev, len(ratings.raters), seed)
    whole = judge.moments[-1]
    none = np.zeros((0, common.basis.shape[0]))
    tried: dict[tuple[int, float], tuple[float, Floats, float]] = {}
    loss, penalty = judge.best(none, [(_FIRST[0], s) for s in (*SLOPE_PENALTIES, 1e9)])
    tried[0, 0.0] = loss, none, penalty[1]
    for rank in RANKS:
        if rank > min(common.basis.shape[0], len(ratings.raters) - 1):
            break
        found = directions_by(whole, rank, STRENGTHS, _FIRST, seed=seed)
        for strength, directions in zip(STRENGTHS, found, strict=True):
            loss, penalty = judge.best(directions, [(*_FIRST, t) for t in TASTE_PENALTIES])
            tried[rank, strength] = loss, directions, penalty[2]
    best = min(tried, key=lambda one: tried[one][0])
    directions = tried[best][1]
    tastes = tuple(sorted({tried[best][2], 2 * tried[best][2]})) if best[0] else (1.0,)
    grid = list(itertools.product(BIAS_PENALTIES, (*SLOPE_PENALTIES, 1e9), tastes))
    loss, chosen = judge.best(directions, grid)
    alone = [(b, 1e9) for b in BIAS_PENALTIES]
    bias_loss, bias = judge.best(none, alone)
    unit = common.unit**2
    return Learned(
        common=common,
        frame=frame_of(directions),
        penalty=_whole(chosen, len(directions)),
        bias_penalty=bias[0],
        rank=best[0],
        strength=best[1],
        dev={
            "common": judge.common * unit,
            "common + bias": bias_loss * unit,
            "taste": loss * unit,
        }
        | {f"rank {rank}, strength {s:g}": tried[rank, s][0] * unit for rank, s in tried},
    )


def _whole(penalty: tuple[float, ...], rank: int) -> Floats:
    """The penalty of each number: bias, slope, and the same for every taste."""
    return np.append(penalty[:2], np.full(rank, penalty[2] if rank else 1.0))


class _Judge:
    """Mean squared errors on dev photos, of viewers with few and with all ratings."""

    def __init__(self, common: Common, train: Rows, dev: Rows, n_raters: int, seed: int) -> None:
        turn = turns(train, seed=seed)
        parts = [*(train.take(turn < few) for few in FEW), train]
        self.moments = [Moments.of(part, common, n_raters) for part in parts]
        self._features = common.features[dev.photo]
        self._residual = (dev.value - common.score[dev.photo]) / common.unit
        count = np.bincount(dev.rater, minlength=n_raters)
        self._share = 1 / (count[dev.rater] * (count > 0).sum())  # every viewer counts the same
        self._rater = dev.rater
        self.common = float(self._share @ self._residual**2)

    def best(
        self, directions: Floats, penalties: Sequence[tuple[float, ...]]
    ) -> tuple[float, tuple[float, ...]]:
        """The lowest loss, and the penalty that has it."""
        frame = frame_of(directions)
        seen = [moments.seen_by(frame) for moments in self.moments]
        features = self._features @ frame.T

        def loss(penalty: tuple[float, ...]) -> float:
            own = _whole(penalty, len(directions))
            losses = []
            for moments in seen:
                personal = np.einsum("mp,mp->m", features, moments.owned(own)[self._rater])
                losses.append(float(self._share @ (self._residual - personal) ** 2))
            return float(np.mean(losses))

        losses = [loss(penalty) for penalty in penalties]
        place = int(np.argmin(losses))
        return losses[place], penalties[place]
