"""Faces of photos: from the cache where they were detected before, else by detecting them now."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedcache.extraction.provenance import about
from embedcache.extraction.sink import Sink, Writer
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.store.faces import Faces
from embedcache.store.space import FaceSpace

if TYPE_CHECKING:
    from embedcache.faces.detector import Detector


F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


class FaceFinder:
    """The detector and the faces that the cache knows; neither is loaded until it is needed."""

    def __init__(self, cache: Cache, device: str) -> None:
        self._cache = cache
        self._device = device
        self.sink: Sink[Faces] = Sink(self._begin)

    @cached_property
    def detector(self) -> "Detector":
        from embedcache.faces.detector import Detector

        return Detector(self._where)

    @cached_property
    def _where(self) -> str:
        from embedcache.backbones.forward import devices

        return str(devices(self._device)[0])

    def _begin(self, n_rows: int) -> Writer[Faces]:
        return self._space.writer(n_rows=n_rows, about=about(self._where))

    @cached_property
    def _space(self) -> FaceSpace:
        space = self._cache.face_space(self.detector.document, create=True)
        space.salvage()
        return space

    def digest(self) -> str:
        """The detector's digest, which is part of the spec of a face crop."""
        return self.detector.digest

    def detect(self, pictures: Sequence[Image.Image]) -> Faces:
        """Faces of upright RGB photos, as `Detector.detect`."""
        return self.detector.detect(pictures)

    def known(self, digests: U8) -> list[F32 | str | None]:
        """What the cache says of each photo: its only box, a reason, or None when undetected.

        digests: uint8 (n, 32).
        """
        status = self._space.status(digests)
        answers: list[F32 | str | None] = [None] * len(digests)
        there = np.flatnonzero(status == OK)
        faces, _ = self._space.read(digests[there])
        for row, i in enumerate(there):
            answers[i] = only_face(faces, row)
        return answers


def only_face(faces: Faces, i: int) -> F32 | str:
    """The one box of photo i, float32 (4,), or the reason why there is not exactly one."""
    n = int(faces.counts[i])
    if n == 1:
        box: F32 = faces.box[faces.offsets[i]]
        return box
    return "no_face" if n == 0 else "several_faces"
