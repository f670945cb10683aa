"""Photos to vectors without a cache: what `extract` would store of them, and nothing is stored."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedcache.backbones.forward import Network
from embedcache.backbones.loading import Backbone, shorter_side
from embedcache.errors import CacheError
from embedcache.extraction.face_finder import FaceFinder, boxes_for, detector_of
from embedcache.extraction.lanes import Lanes
from embedcache.extraction.plan import need
from embedcache.extraction.prefetch import cut
from embedcache.extraction.process import note_networks, refuse_fork
from embedcache.extraction.respec import backbones_of
from embedcache.machine import processors
from embedcache.photos import images
from embedcache.store.cache import Cache
from embedcache.store.space import Space

BATCH = 8
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Photo = Callable[[], Sequence[bytes]]
"""Makes the bytes of one photo, or of several versions of it; it runs on a thread."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """The network of a space, with the detector that its crops need."""

    backbone: Backbone
    faces: FaceFinder

    @classmethod
    def of(cls, cache: Cache, space: Space, *, device: str = "auto") -> "Embedder":
        """Load the network that made a space's vectors.

        Raises CacheError for imported vectors, SpecMismatch where the name stands for another
        network now, WeightsError where the weights are not on this machine.
        """
        name = next(iter(space.names), space.spec.architecture)
        if space.spec.kind == "foreign":
            raise CacheError(f"{name} was imported: no network here gives its vectors")
        refuse_fork()
        (backbone,) = backbones_of(
            [(name, space.spec)],
            cache,
            device=device,
            of="the cache has vectors of",
            advice="Run 'embedcache extract' with the network as it is now first",
        )
        return cls(backbone, FaceFinder(cache, device, detector_of(None, [backbone])))

    def vectors(self, photos: Sequence[Photo]) -> Iterator[tuple[int, list[F32 | str]]]:
        """(position, per version its vector (dim,) or why there is none), in the photos' order."""
        network = self.backbone.open()
        note_networks()
        with ThreadPoolExecutor(processors()) as pool, Lanes.of([network]) as lanes:
            for start in range(0, len(photos), BATCH):
                some = photos[start : start + BATCH]
                prepared = list(pool.map(self._decoded, some))
                flat = self._pixels([one for versions in prepared for one in versions])
                found = _forward(network, lanes, flat)
                for i, versions in enumerate(prepared):
                    yield start + i, [next(found) for _ in versions]

    def _decoded(self, photo: Photo) -> list[U8 | Image.Image | str]:
        """Of each version the input, the whole picture where a face is cut from it, or a reason."""
        wanted = need(0, self.backbone)
        side = shorter_side(self.backbone.preprocessing)
        found: list[U8 | Image.Image | str] = []
        for data in photo():
            try:
                image = images.decode(data, at_least=side)
            except images.DecodeError as error:
                found.append(str(error.reason))
                continue
            found.append(image if wanted.face else cut(image, wanted))
        return found

    def _pixels(self, prepared: list[U8 | Image.Image | str]) -> list[U8 | str]:
        """The input of each; the pictures among them are searched for their faces together."""
        pictures = [one for one in prepared if isinstance(one, Image.Image)]
        crops: list[U8 | str] = []
        face = self.backbone.spec.face
        if pictures and face is not None:
            faces = self.faces.detect(pictures)
            for i, picture in enumerate(pictures):
                boxes = boxes_for(face, faces, i)
                if isinstance(boxes, str):
                    crops.append(boxes)
                else:
                    crops.append(cut(picture, replace(need(0, self.backbone), boxes=boxes)))
        left = iter(crops)
        return [next(left) if isinstance(one, Image.Image) else one for one in prepared]


def _forward(network: Network, lanes: Lanes, inputs: list[U8 | str]) -> Iterator[F32 | str]:
    """The vector of each input, or the reason in its place, in order."""
    pixels = [one for one in inputs if not isinstance(one, str)]
    vectors: list[F32] = []

    def run(batch: U8, lane: int) -> F32:
        return network.lanes[lane % len(network.lanes)](batch)

    for start in range(0, len(pixels), BATCH):
        lanes.make_room()
        batch = np.stack(pixels[start : start + BATCH])
        lanes.submit(partial(run, batch), vectors.extend)
    lanes.drain()
    left = iter(vectors)
    return (one if isinstance(one, str) else next(left) for one in inputs)
