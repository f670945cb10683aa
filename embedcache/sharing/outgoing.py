"""Segments that are made for the way to a shared copy: chosen rows, in a cache of their own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, Damaged
from embedcache.spec import Json, Spec
from embedcache.store.cache import Cache
from embedcache.store.photo_ids import PhotoIds
from embedcache.store.segment import Segment
from embedcache.store.space import FaceSpace, Space

Kind = Spec | Mapping[str, Json] | None  # of vectors, of faces (the detector), of photo ids


class RemovedHere(CacheError):
    """A segment of the cache that was removed while it was sent."""

    def __init__(self, segment: Segment) -> None:
        super().__init__(
            f"segment {segment.id} was compacted or forgotten during the push",
            advice="Rerun the command",
        )


@contextmanager
def outgoing(
    cache: Cache, segment: Segment, rows: NDArray[np.int64], *, kind: Kind, segment_id: str = ""
) -> Iterator[Segment]:
    """A segment of some rows of `segment`, at least one, which is removed again afterwards.

    Raises RemovedHere where `segment` is not there any more.
    """
    folder = cache.local / f"outgoing-{disk.mark_of_process()}"
    try:
        place = Cache.open(folder, create=True)
        target: Space | FaceSpace | PhotoIds
        if isinstance(kind, Spec):
            target = place.space(kind, create=True)
        elif kind is None:
            target = place.photo_ids
        else:
            target = place.face_space(dict(kind), create=True)
        try:
            target.rewrite([(segment, rows)], about=segment.manifest.about, segment_id=segment_id)
        except (FileNotFoundError, Damaged):
            if segment.folder.exists():
                raise
            raise RemovedHere(segment) from None
        [new] = target.segments()
        yield new
    finally:
        disk.remove_folder(folder)
