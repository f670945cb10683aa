"""A fitted taste with its comparison: `fit(ratings)`."""

import time
from collections.abc import Callable

import numpy as np

from heads.taste import trial
from heads.taste.choice import Learned, learn
from heads.taste.learning import dev_and_train
from heads.taste.model import Taste
from heads.taste.ratings import Ratings
from heads.taste.result import TasteFit, plain
from heads.taste.saved import save


def fit(
    ratings: Ratings, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> TasteFit:
    """Compare a taste with simpler models, and learn the one that is kept.

    Dev photos choose rank, strength and penalties; test photos are read once, to judge.
    The same ratings and seed give the same figures. progress: called with parts done and all parts.
    """
    began = time.perf_counter()
    said = progress or (lambda done, whole: None)
    found = trial.run(ratings, seed=seed, progress=said)
    train, dev = dev_and_train(ratings)
    learned = learn(ratings, train, dev, seed=seed)
    said(trial.FOLDS + 1, trial.FOLDS + 1)
    chosen = {
        "rank": learned.rank,
        "strength": learned.strength,
        "ridge_strength": learned.common.strength,
        "penalty": [plain(value) for value in learned.penalty.tolist()],
        "dev": {name: plain(value) for name, value in learned.dev.items()},
        "seed": seed,
    }
    return TasteFit(
        ratings=ratings,
        taste=_taste(ratings, learned),
        trial=found,
        chosen=chosen,
        seconds=time.perf_counter() - began,
        writer=save,
    )


def _taste(ratings: Ratings, learned: Learned) -> Taste:
    """What was learned, as one linear map of the vector per direction."""
    common, (middle, scale) = learned.common, learned.common.spread
    rest = learned.frame[2:, 2:] @ common.basis
    train, _ = dev_and_train(ratings)
    return Taste(
        standard=common.standard,
        weight=common.weight.astype(np.float32),
        bias=common.bias,
        directions=np.vstack([common.weight / scale, rest]).astype(np.float32),
        offsets=np.append((common.bias - middle) / scale, np.zeros(len(rest))).astype(np.float32),
        penalty=learned.penalty,
        owned=learned.owned(train, len(ratings.raters)).astype(np.float32),
        raters={name: place for place, name in enumerate(ratings.raters)},
    )
