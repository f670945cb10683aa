"""Members of a team: caches with vectors of a small network."""

from collections.abc import Callable

import numpy as np

from embedcache.spec import Preprocessing, Spec
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests.stores import model, photos

SPEC = Spec(
    kind="computed",
    architecture="net",
    dim=8,
    weights="0" * 64,
    preprocessing=Preprocessing(
        size=(8, 8),
        resize="squash",
        crop_fraction=1.0,
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        decode="1",
    ),
)


Make = Callable[..., Cache]


def intact(cache: Cache) -> bool:
    """Whether verify finds nothing but what an interrupted pull has left to resume."""
    report = verify(cache)
    return all(found.path.startswith("local/incoming/") for found in report.findings)


def held(cache: Cache, n: int = 40) -> set[int]:
    """The photos below n that have a vector in the cache; each is checked against the model."""
    everything = photos(*range(n))
    rows, found = Cache.open(cache.path).space(SPEC).read(everything)
    assert (rows[found] == model(everything, 8)[found]).all()
    return set(np.flatnonzero(found).tolist())
