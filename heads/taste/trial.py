"""How well a taste predicts viewers and photos that it has not seen, beside what it must beat.

Viewers are dealt to folds. A model learns from the others' ratings of train photos; a viewer of the
fold then shows 0, 5, 20, 50 or all of the ratings that they gave to train photos, and is judged by
those of test photos. So neither photo nor viewer is known to what was learned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.dataset import split
from heads.fitting import intervals
from heads.fitting.intervals import Difference, Sample
from heads.taste.choice import FEW, Learned, learn, turns
from heads.taste.learning import Rows, biases
from heads.taste.ratings import Ratings
from heads.taste.rivals import HEAD_STRENGTHS, Effects, heads_alone, of_others

Floats = NDArray[np.float64]
FOLDS = 5
SHOWN: tuple[int | None, ...] = (0, *FEW, None)
"""How many ratings a viewer shows; None: all."""
TASTE, COMMON, COMMON_BIAS, OWN_HEAD = "taste", "common", "common + bias", "own head"
VIEWER_MEAN, PHOTO_MEAN, BOTH_BIASES = "viewer's mean", "photo's mean", "both biases"
MODELS = (TASTE, COMMON, COMMON_BIAS, OWN_HEAD, VIEWER_MEAN, PHOTO_MEAN, BOTH_BIASES)
SEES_OTHERS = (PHOTO_MEAN, BOTH_BIASES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A mean squared error over viewers, each counted once, and its 95 % interval."""

    value: float
    low: float
    high: float
    n_viewers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Squared errors of n test ratings: per model and per number of ratings shown, (n,) each.

    rater: int64 (n,).  known: int64 (n,), how many ratings of train photos that viewer has.
    """

    errors: dict[tuple[str, int | None], Floats]
    rater: NDArray[np.int64]
    known: NDArray[np.int64]

    def figure(self, model: str, shown: int | None) -> Figure:
        """Of viewers who have at least so many ratings of train photos."""
        at, sample = self._sample(shown)
        errors = self.errors[model, shown][at]
        low, high = intervals.loss_interval(sample, errors)
        return Figure(value=sample.mean(errors), low=low, high=high, n_viewers=sample.n_groups)

    def difference(self, model: str, other: str, shown: int | None) -> Difference:
        """The error of `model` less that of `other`, paired, over the same viewers."""
        at, sample = self._sample(shown)
        first, second = (self.errors[name, shown][at] for name in (model, other))
        return intervals.difference(sample, first, second)

    def _sample(self, shown: int | None) -> tuple[NDArray[np.bool_], Sample]:
        at = self.known >= (shown or 0)
        rater = self.rater[at]
        return at, Sample(1 / np.bincount(rater)[rater] if len(rater) else np.ones(0), rater)


def run(ratings: Ratings, *, seed: int, progress: Callable[[int, int], None]) -> Trial:
    """The trial over all viewers. progress: called with folds done and all folds."""
    n_raters = len(ratings.raters)
    n_folds = min(FOLDS, n_raters)
    fold = np.random.default_rng(seed).permutation(n_raters) % n_folds
    errors: dict[tuple[str, int | None], list[Floats]] = {}
    raters, known = [], []
    for number in range(n_folds):
        progress(number, n_folds + 1)
        mine = fold == number
        asked = _rows(ratings, split.TEST, mine)
        for name, found in _errors(ratings, mine, asked, seed=seed).items():
            errors.setdefault(name, []).append(found)
        count = np.bincount(_rows(ratings, split.TRAIN, mine).rater, minlength=n_raters)
        raters.append(asked.rater)
        known.append(count[asked.rater])
    whole = {name: np.concatenate(found) for name, found in errors.items()}
    return Trial(errors=whole, rater=np.concatenate(raters), known=np.concatenate(known))


def _rows(ratings: Ratings, side: int, raters: NDArray[np.bool_]) -> Rows:
    return Rows.of(ratings, (ratings.side == side) & raters[ratings.rater])


def _errors(
    ratings: Ratings, mine: NDArray[np.bool_], asked: Rows, *, seed: int
) -> dict[tuple[str, int | None], Floats]:
    """Squared errors of `asked` by every model, with what it learned from the other viewers."""
    train, dev = _rows(ratings, split.TRAIN, ~mine), _rows(ratings, split.DEV, ~mine)
    learned = learn(ratings, train, dev, seed=seed)
    rivals = _Rivals(ratings, learned, train, dev, seed)
    shown_by = _rows(ratings, split.TRAIN, mine)
    turn = turns(shown_by, seed=seed)
    common = learned.common.score[asked.photo]
    found = {}
    for shown in SHOWN:
        few = shown_by if shown is None else shown_by.take(turn < shown)
        bias = biases(few, learned.common.score, len(ratings.raters), learned.bias_penalty)
        owned = learned.owned(few, len(ratings.raters))
        predictions = {
            TASTE: learned.predict(owned, asked),
            COMMON: common,
            COMMON_BIAS: common + bias[asked.rater],
            **rivals.predictions(few, asked, shown),
        }
        for name, values in predictions.items():
            found[name, shown] = (asked.value - values) ** 2
    return found


class _Rivals:
    """Means, biases and heads for one viewer, with what the other viewers' ratings tell them."""

    def __init__(
        self, ratings: Ratings, learned: Learned, train: Rows, dev: Rows, seed: int
    ) -> None:
        self._ratings, self._penalty = ratings, learned.bias_penalty
        self._n_photos, self._n_raters = len(ratings.vectors), len(ratings.raters)
        self.effects = Effects.of(train, self._n_photos, self._n_raters, self._penalty)
        self._vectors = learned.common.standard.apply(ratings.vectors).astype(np.float64)
        turn = turns(train, seed=seed)
        self._strength = {
            shown: self._best_strength(train if shown is None else train.take(turn < shown), dev)
            for shown in SHOWN
            if shown != 0
        }
        self._strength[0] = HEAD_STRENGTHS[0]
        test = Rows.of(ratings, ratings.side == split.TEST)
        everyone = Rows.of(ratings, ratings.side == split.TRAIN)
        level = self.effects.mean + self.effects.photo
        self._rater = biases(everyone, level, self._n_raters, self._penalty)
        self._test = test

    def _best_strength(self, few: Rows, dev: Rows) -> float:
        """The strength of one viewer's head with the lowest error on dev photos, of all viewers."""
        seen = self._heads(few, dev, HEAD_STRENGTHS)
        return HEAD_STRENGTHS[int(np.argmin(((dev.value - seen) ** 2).mean(1)))]

    def _heads(self, few: Rows, asked: Rows, strengths: Sequence[float]) -> Floats:
        return heads_alone(
            *(self._vectors, few, asked),
            mean=self.effects.mean,
            penalty=self._penalty,
            strengths=strengths,
        )

    def predictions(self, few: Rows, asked: Rows, shown: int | None) -> dict[str, Floats]:
        """Of `asked` (m,), for viewers who show `few` ratings."""
        effects, n_raters, n = self.effects, self._n_raters, self._n_photos
        mean = np.full(n, effects.mean)
        viewer = effects.mean + biases(few, mean, n_raters, self._penalty)
        test, mine = self._test, np.isin(self._test.rater, np.unique(asked.rater))
        plain = effects.mean + of_others(test, test.value - effects.mean, n, 0.0)[mine]
        debiased = test.value - effects.mean - self._rater[test.rater]
        own = biases(few, effects.mean + effects.photo, n_raters, self._penalty)
        both = effects.mean + of_others(test, debiased, n, 3.0)[mine] + own[asked.rater]
        return {
            OWN_HEAD: self._heads(few, asked, [self._strength[shown]])[0],
            VIEWER_MEAN: viewer[asked.rater],
            PHOTO_MEAN: plain,
            BOTH_BIASES: both,
        }
