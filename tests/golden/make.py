"""Wrote the golden store of format 1, once, when format 1 was the newest; never to be run again.

Tests take its photos from here, and `make_2` begins with it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache.spec import Json, foreign
from embedcache.store.cache import Cache
from embedcache.store.faces import Faces
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref

SPEC = foreign("golden", 6)
DETECTOR: dict[str, Json] = {"name": "golden detector", "thresholds": [0.5, 0.25]}


def contents(*numbers: int) -> NDArray[np.uint8]:
    """Content digest of photo n: 32 bytes, all n."""
    return np.repeat(np.array(numbers, np.uint8)[:, None], 32, axis=1)


def vectors(*numbers: int) -> NDArray[np.float32]:
    """Vector of photo n: n, n + 1/8, n + 2/8 and so on."""
    return (np.array(numbers)[:, None] + np.arange(6) / 8).astype(np.float32)


def main(path: Path) -> None:
    cache = Cache.open(path, create=True)
    space = cache.space(SPEC, create=True)
    with space.writer(n_rows=5, name="golden", about={"device": "none"}) as writer:
        writer.add(contents(1, 2, 3), vectors(1, 2, 3))
        writer.fail(contents(4, 5), ["no face", "größer als erlaubt"])
    with space.writer(n_rows=3, name="golden", about={}) as writer:
        writer.add(contents(6, 7), vectors(6, 7))
    numbers = np.arange(45, dtype=np.float32)
    faces = Faces(
        np.array([0, 1, 1, 3]),
        numbers[:12].reshape(3, 4),
        numbers[12:15] / np.float32(64),
        numbers[15:].reshape(3, 5, 2),
    )
    with cache.face_space(DETECTOR, create=True).writer(n_rows=3, about={}) as face_writer:
        face_writer.add(contents(1, 2, 3), faces)
    cache.record_photos("golden folder", ["a.jpg", "b.jpg", "ü.jpg"], contents(1, 2, 3))
    cache.record_photos("golden folder", ["a.jpg", "x.jpg"], contents(6, 7))
    write_ref(cache, "pinned")
    forget(cache, ["x.jpg"])
