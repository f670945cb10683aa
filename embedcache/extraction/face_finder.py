"""Faces of photos: from the cache where they were detected before, else by detecting them now."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedcache.backbones.forward import devices, is_out_of_memory
from embedcache.backbones.loading import Backbone
from embedcache.errors import InputError
from embedcache.extraction.provenance import about
from embedcache.extraction.sink import OpenSegment
from embedcache.spec import FaceCrop
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.store.disposal import noting_aside
from embedcache.store.faces import Faces
from embedcache.store.space import FaceSpace

if TYPE_CHECKING:
    from embedcache.faces.blazeface import BlazeFace
    from embedcache.faces.detector import Detector

DETECT_BATCH, CUDA_DETECT_BATCH = 32, 128
"""Photos that are searched together."""

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]


class FaceFinder:
    """The detector and the faces that the cache knows; neither is loaded until it is needed."""

    def __init__(self, cache: Cache, device: str, name: str = "mtcnn") -> None:
        """name: of the detector, as `faces.named` has them."""
        self._cache = cache
        self._device = device
        self.name = name

    @cached_property
    def detector(self) -> "Detector | BlazeFace":
        from embedcache.faces import named

        return named.load(self.name, self._where)

    @cached_property
    def together(self) -> int:
        """Photos to search together."""
        return CUDA_DETECT_BATCH if self.on_cuda else DETECT_BATCH

    @cached_property
    def on_cuda(self) -> bool:
        """Whether networks run on a CUDA device."""
        return self._where.startswith("cuda")

    @cached_property
    def _where(self) -> str:
        return str(devices(self._device)[0])

    @cached_property
    def _space(self) -> FaceSpace:
        space = self._cache.face_space(self.detector.document, create=True)
        with noting_aside(self._cache.path):
            space.salvage()
        return space

    def begin(self, n_rows: int) -> OpenSegment[Faces]:
        """Open a segment for the faces of n photos."""
        return self._space.writer(n_rows=n_rows, about=about(self._where))

    def digest(self) -> str:
        """The detector's digest, which is part of the spec of a face crop."""
        return self.detector.digest

    def detect(self, pictures: Sequence[Image.Image]) -> Faces:
        """Faces of upright RGB photos; in halves where the device's memory cannot hold them."""
        try:
            return self.detector.detect(pictures)
        except Exception as error:
            if len(pictures) == 1 or not is_out_of_memory(error):
                raise
        half = len(pictures) // 2
        return Faces.concatenate([self.detect(part) for part in (pictures[:half], pictures[half:])])

    def known(self, digests: U8) -> tuple[Faces, Bool]:
        """The faces that the cache holds of n photos, and which photos it holds.

        digests: uint8 (n, 32).
        """
        faces, found = self._space.read(digests)
        return faces, found & (self._space.status(digests) == OK)


def as_sequence(backbone: str | Backbone | Sequence[str | Backbone]) -> list[str | Backbone]:
    """One backbone or several as a list."""
    return [backbone] if isinstance(backbone, str | Backbone) else list(backbone)


def detector_of(asked: str | None, backbones: Iterable[str | Backbone]) -> str:
    """The name of a run's detector: the one asked for, else that of the loaded backbones.

    Raises InputError for a name that is none, and where the loaded ones need another.
    """
    from embedcache.faces import named

    loaded = [one.spec.face for one in backbones if isinstance(one, Backbone)]
    digests = [face.detector for face in loaded if face is not None]
    if asked is None:
        return named.one_of(digests)
    named.check(asked)
    if digests and asked != (needed := named.one_of(digests)):
        raise InputError(f"these backbones need the face detector {needed}, not {asked}")
    return asked


def boxes_for(face: FaceCrop, faces: Faces, i: int) -> F32 | str:
    """The boxes, float32 (k, 4), that a crop of photo i chooses from, or why there is no crop."""
    boxes: F32 = faces.box[faces.offsets[i] : faces.offsets[i + 1]]
    if not len(boxes):
        return "no_face"
    if len(boxes) > 1 and face.select == "only":
        return "several_faces"
    return boxes
