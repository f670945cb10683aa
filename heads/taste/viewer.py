"""A viewer's taste as a head: what one viewer would rate is a linear score of the vector.

So whatever applies heads applies tastes: `predict`, the pictures of why, the checks of specs.
"""

from pathlib import Path

import numpy as np

from embedcache.errors import HeadError
from heads.head import Head, Layer
from heads.saved import MARKER as HEAD_MARKER
from heads.saved import load
from heads.taste.model import Taste
from heads.taste.saved import MARKER, load_taste


def load_for(folder: str | Path, viewer: str | None) -> Head:
    """The head of a folder that `fit-head` wrote, or what `fit-taste` wrote as a viewer's head.

    viewer: a rater id of the taste, or None for what all viewers share. HeadError for a viewer who
    rated nothing in training, and for a viewer where the folder holds a head.
    """
    if (Path(folder) / MARKER).is_file() and not (Path(folder) / HEAD_MARKER).is_file():
        return head_of(load_taste(folder), viewer)
    if viewer is not None:
        raise HeadError(
            f"`viewer` goes with a taste, as 'embedcache fit-taste' writes it: {folder} is none"
        )
    return load(folder)


def head_of(taste: Taste, viewer: str | None = None) -> Head:
    """The head whose predictions are `taste.predict(vectors, viewer)`; HeadError if unknown."""
    owned = np.zeros(1 + len(taste.directions))
    if viewer is not None:
        if viewer not in taste.raters:
            raise HeadError(
                f"viewer {viewer!r} rated nothing in training. Without `viewer` you get what all "
                "viewers share; `heads.load_taste(DIR).adapt` learns a new viewer from ratings"
            )
        owned = taste.owned[taste.raters[viewer]].astype(np.float64)
    weight = taste.weight + owned[1:] @ taste.directions.astype(np.float64)
    bias = taste.bias + owned[0] + owned[1:] @ taste.offsets.astype(np.float64)
    layer = Layer(np.asarray(weight, np.float32)[None, None], np.asarray([[bias]], np.float32))
    card = dict(taste.card) | {"target": "rating"}
    return Head("taste", "identity", taste.standard, (layer,), card)
