"""A backbone and a detector that cost nothing, for tests of the code around them."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from embedcache.backbones.forward import Forward, Network
from embedcache.backbones.loading import Backbone, decoding
from embedcache.backbones.resize import pack, resized
from embedcache.extraction.outcome import Extraction
from embedcache.photos.resampling import Uncut
from embedcache.photos.table import Photos
from embedcache.spec import FaceCrop, Json, Preprocessing, Spec, canonical_json
from embedcache.store.cache import Cache
from embedcache.store.faces import Faces

SIZE = 16


def backbone(
    name: str = "stand-in",
    *,
    dim: int = 8,
    face: bool = False,
    before: Callable[[int], None] = lambda n: None,
    n_lanes: int = 1,
    compiler: str = "",
    before_compiled: Callable[[int], None] = lambda n: None,
    precision: str = "float32",
    resizes: bool = False,
) -> Backbone:
    """A backbone whose vectors are a fixed linear map of the pixels.

    before: sees the size of every batch of the plain form; a pause in it makes that form slower.
    compiler: gives the network a compiled form, which refuses any batch but its own size;
        `before_compiled` sees the sizes that it gets.
    resizes: as a CUDA device's lanes do, and so named.
    """
    spec = Spec(
        kind="computed",
        architecture=name,
        dim=dim,
        weights=hashlib.sha256(name.encode()).hexdigest(),
        preprocessing=Preprocessing(
            size=(SIZE, SIZE),
            resize="squash",
            crop_fraction=1.0,
            interpolation="bilinear",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            decode=decoding("full"),
        ),
        face=FaceCrop(detector=Detector().digest, select="only", margin=0.0) if face else None,
        precision=precision,
    )
    weights = np.random.default_rng(len(name)).standard_normal((SIZE * SIZE * 3, dim))

    def vectors_of(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        rows = pixels.reshape(len(pixels), -1).astype(np.float64) / 255
        # Row by row: BLAS gives a row other last bits in a batch of another size.
        return np.stack([row @ weights for row in rows]).astype(np.float32)

    def forward(pixels: Any) -> npt.NDArray[np.float32]:
        before(len(pixels))
        return vectors_of(np.stack([cut(one) for one in pixels]) if resizes else pixels)

    def compiled(n_batch: int) -> tuple[Forward, ...]:
        def of_one_size(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            if len(pixels) != n_batch:
                raise RuntimeError(f"got {list(pixels.shape)}, expecting [{n_batch},...]")
            before_compiled(n_batch)
            return vectors_of(pixels)

        return (of_one_size,) * n_lanes

    network = Network(
        lanes=(forward,) * n_lanes, resizes=resizes, compiler=compiler, compiled=compiled
    )
    return Backbone(name=name, place=name, spec=spec, open=lambda: network)


def cut(photo: npt.NDArray[np.uint8] | Uncut) -> npt.NDArray[np.uint8]:
    """A photo as the network takes it, resized as a device does where it is not yet."""
    if not isinstance(photo, Uncut):
        return photo
    packed = pack([photo], torch.empty(photo.nbytes, dtype=torch.uint8))
    small: npt.NDArray[np.uint8] = resized(packed, [photo], (SIZE, SIZE))[0].numpy()
    return small


class Detector:
    """Finds as many faces as the photo's first pixel says: its red value modulo 3."""

    document: dict[str, Json] = {"detector": "stand-in"}  # noqa: RUF012
    digest = hashlib.sha256(canonical_json({"detector": "stand-in"})).hexdigest()

    def __init__(self) -> None:
        self.n_seen = 0

    def detect(self, pictures: Sequence[Image.Image]) -> Faces:
        self.n_seen += len(pictures)
        counts = [self.count(picture) for picture in pictures]
        n = sum(counts)
        return Faces(
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            box=np.tile(np.array([2, 3, 20, 24], np.float32), (n, 1)),
            probability=np.full(n, 0.99, np.float32),
            landmark=np.zeros((n, 5, 2), np.float32),
        )

    @staticmethod
    def count(picture: Image.Image) -> int:
        return int(np.asarray(picture)[0, 0, 0]) % 3


def counts(found: Extraction) -> tuple[int, int, int, int]:
    """Photos wanted, present, embedded and failed."""
    space = found.spaces[0]
    return space.wanted, space.hit, space.embedded, space.failed


def vectors(cache: Cache, photos: Photos, name: str = "stand-in") -> npt.NDArray[np.float32]:
    """The vectors of all photos, float32 (n, dim)."""
    values, found = cache.vectors(name, list(photos.ids), scope=photos.scope)
    assert found.all()
    return values
