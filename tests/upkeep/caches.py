"""Small caches to run commands on."""

from pathlib import Path

import numpy as np

from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.space import Space
from tests.stores import DETECTOR, faces_of, fill, photos

SPEC = foreign("net", 8)


def make(path: Path, *numbers: int, segments: int = 2) -> Cache:
    """A cache of photos pN with vectors (in so many segments), faces and ids."""
    cache = Cache.open(path, create=True)
    space = cache.space(SPEC, create=True)
    for part in np.array_split(np.array(numbers), segments):
        fill(space, photos(*part.tolist()))
    with cache.face_space(DETECTOR, create=True).writer(n_rows=9, about={}) as writer:
        writer.add(photos(*numbers), faces_of([n % 3 for n in numbers]))
    cache.record_photos("folder", [f"p{n}" for n in numbers], photos(*numbers))
    return cache


def rows(space: Space) -> int:
    """Stored good rows, each as often as it is stored."""
    return sum(segment.manifest.n_ok for segment in space.segments())
