"""The first part of a pipeline: photos wait here for their faces, and leave as crops."""

from collections.abc import Sequence
from dataclasses import replace

from embedcache.backbones.loading import Backbone, leaders_of
from embedcache.extraction.batches import Batches
from embedcache.extraction.clock import Clock
from embedcache.extraction.face_finder import FaceFinder, boxes_for
from embedcache.extraction.plan import need
from embedcache.extraction.prefetch import Ready, cut
from embedcache.extraction.sink import Sinks
from embedcache.store.faces import Faces

DETECT_PIXELS = 48_000_000


class Detection:
    """Photos that wait for their faces. Crops go to `batches`, failures and faces to `sinks`."""

    def __init__(
        self,
        finder: FaceFinder,
        backbones: Sequence[Backbone],
        *,
        batches: Batches,
        sinks: Sinks,
        clock: Clock,
    ) -> None:
        self._finder = finder
        self._backbones = backbones
        self._leaders = leaders_of(backbones)
        self._batches = batches
        self._sinks = sinks
        self._clock = clock
        self._waiting: list[Ready] = []
        self._n_pixels = 0

    @property
    def waiting(self) -> int:
        """Photos that wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether enough photos wait to be searched together."""
        return len(self._waiting) >= self._finder.together or self._n_pixels >= DETECT_PIXELS

    def put(self, ready: Ready) -> None:
        """Add one decoded photo."""
        assert ready.image is not None
        self._waiting.append(ready)
        self._n_pixels += ready.image.width * ready.image.height

    def take(self) -> list[Ready]:
        """All photos that wait."""
        taken, self._waiting, self._n_pixels = self._waiting, [], 0
        return taken

    def find(self, photos: Sequence[Ready]) -> Faces:
        """The faces of photos; runs on a lane."""
        with self._clock.step("detect"):
            return self._finder.detect([r.image for r in photos if r.image is not None])

    def deliver(self, photos: Sequence[Ready], faces: Faces) -> None:
        """Keep the faces, and cut out for each network the one that its spec chooses."""
        self._sinks.add_faces([ready.job for ready in photos], faces)
        for i, ready in enumerate(photos):
            assert ready.image is not None
            for b in ready.job.detect:
                face = self._backbones[b].spec.face
                assert face is not None
                boxes = boxes_for(face, faces, i)
                if isinstance(boxes, str):
                    for one in ready.job.wanted:
                        if self._leaders[one] == b:
                            self._sinks.fail(ready.job, one, boxes)
                else:
                    wanted = replace(need(b, self._backbones[b]), boxes=boxes)
                    self._batches.put(ready.job, b, cut(ready.image, wanted))
