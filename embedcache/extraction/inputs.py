"""The pixels of photos as backbones see them, for looking at; nothing is stored."""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from embedcache.backbones.loading import Backbone
from embedcache.extraction.clock import Clock
from embedcache.extraction.face_finder import FaceFinder, detector_of
from embedcache.extraction.plan import Plan
from embedcache.extraction.prefetch import prepare
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache

U8 = npt.NDArray[np.uint8]


def inputs(
    photos: Photos, places: Sequence[int], digests: U8, cache: Cache, backbones: Sequence[Backbone]
) -> Iterator[tuple[int, dict[int, U8] | str]]:
    """The input of each network for some of the photos, one photo after the other.

    places: k positions in `photos`.  digests: (k, 32), their contents; another content is refused.
    A face crop is that of the boxes that the cache holds.
    Yields (position, by network as `leaders_of` numbers them uint8 (h, w, 3)), or (position, why
    one network has none).
    """
    shape = len(places), len(backbones)
    counts = np.ones(shape[0], np.int64)
    plan = Plan(digests, np.array(places, np.int64), counts, np.ones(shape, bool))
    clock = Clock()
    finder = FaceFinder(cache, "cpu", detector_of(None, backbones))
    jobs = plan.jobs(photos, backbones, finder)
    for place, job in zip(places, jobs, strict=True):
        if job.refused:
            yield place, job.refused[0][1]
        elif job.detect:
            yield place, "the cache holds no faces of it"
        else:
            ready = prepare(job, clock)
            yield place, ready.reason if ready.reason else cast(dict[int, U8], ready.pixels)
