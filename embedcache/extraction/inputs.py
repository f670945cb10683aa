"""The pixels of photos as a backbone sees them, for looking at; nothing is stored."""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from embedcache.backbones.loading import Backbone
from embedcache.extraction.clock import Clock
from embedcache.extraction.face_finder import FaceFinder
from embedcache.extraction.plan import Plan
from embedcache.extraction.prefetch import prepare
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache

U8 = npt.NDArray[np.uint8]


def inputs(
    photos: Photos, places: Sequence[int], digests: U8, cache: Cache, *, backbone: Backbone
) -> Iterator[tuple[int, U8 | str]]:
    """The input of the network for some of the photos, one after the other.

    places: k positions in `photos`.  digests: (k, 32), their contents; another content is refused.
    A face crop is that of the boxes that the cache holds.
    Yields (position, uint8 (h, w, 3)), or (position, why there is none).
    """
    n = len(places)
    plan = Plan(digests, np.array(places, np.int64), np.ones(n, np.int64), np.ones((n, 1), bool))
    clock = Clock()
    jobs = plan.jobs(photos, [backbone], FaceFinder(cache, "cpu"))
    for place, job in zip(places, jobs, strict=True):
        if job.refused:
            yield place, job.refused[0][1]
        elif job.detect:
            yield place, "the cache holds no faces of it"
        else:
            ready = prepare(job, clock)
            yield place, ready.reason if ready.reason else cast(U8, ready.pixels[0])
