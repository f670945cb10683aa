"""Faces as data: every box, probability and landmark of a photo, and the crop of one box.

All boxes are stored. Which photos count ("exactly one box", the paper's 1BBOX), which face is
cropped and how wide the crop is are decided later, from the stored boxes.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from embedcache.photos import images
from embedcache.spec import Json, Select, canonical_json
from embedcache.store.faces import Faces

if TYPE_CHECKING:
    from embedcache.faces import mtcnn

VERSION = "mtcnn-1"
_BATCH_PIXELS = 8_000_000  # photos detected together; about 25 bytes of memory for each
_ON_CUDA = 4  # times as many there


class Detector:
    """MTCNN on one device.

    document: everything that changes a box: the networks' weights, the settings, the resize kernel
        and the decoding rules. Runs with equal documents share their boxes.
    digest: sha256 of the canonical document, 64 hex digits.
    """

    def __init__(self, device: str = "cpu", *, min_face_size: int = 20) -> None:
        """Load the networks. Raises WeightsError if facenet-pytorch is not installed.

        min_face_size: side of the smallest face to find, in pixels. 20 is the package's default; 40
            takes about half the time and is another detector, with another digest.
        """
        from embedcache.faces import mtcnn, networks, pixels

        if min_face_size < pixels.CELL:
            raise ValueError(f"min_face_size is at least {pixels.CELL}; got {min_face_size}")
        self._settings = mtcnn.Settings(min_face_size=min_face_size)
        self._networks = networks.Networks(device)
        # Two threads that launch on one CUDA device have half the rate of one (decision 105).
        on_cuda = self._networks.device.type == "cuda"
        self._turn: AbstractContextManager[object] = Lock() if on_cuda else nullcontext()
        self.document: dict[str, Json] = {
            "detector": VERSION,
            "decode": images.VERSION,
            "resize": "area",
            "weights": dict(self._networks.weights),
            **json.loads(json.dumps(asdict(self._settings))),
        }

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(canonical_json(self.document)).hexdigest()

    def detect(self, photos: Sequence[Image.Image]) -> Faces:
        """Find all faces in upright RGB photos of any size, the largest of each photo first.

        Boxes are left, top, right, bottom in pixels of the photo and may reach past its edges.
        No photo raises, whatever its shape: it has faces or none.
        """
        sizes = [photo.size for photo in photos]
        if self._networks.device.type == "cuda":
            parts = list(_batches(sizes, _ON_CUDA * _BATCH_PIXELS))
            with self._turn:
                results = [self._find(photos, part) for part in parts]
        else:
            parts, results = self._on_processors(photos, sizes)
        found = dict(zip(chain(*parts), chain(*results), strict=True))
        each = [found[i] for i in range(len(photos))]
        return Faces(
            offsets=np.cumsum([0, *(len(faces.box) for faces in each)], dtype=np.int64),
            box=np.concatenate([np.empty((0, 4), np.float32), *(f.box for f in each)]),
            probability=np.concatenate([np.empty(0, np.float32), *(f.probability for f in each)]),
            landmark=np.concatenate([np.empty((0, 5, 2), np.float32), *(f.landmark for f in each)]),
        )

    def _find(self, photos: Sequence[Image.Image], part: Sequence[int]) -> "list[mtcnn.Found]":
        from embedcache.faces import mtcnn

        return mtcnn.find([photos[i] for i in part], self._networks, self._settings)

    def _on_processors(
        self, photos: Sequence[Image.Image], sizes: Sequence[tuple[int, int]]
    ) -> "tuple[list[list[int]], list[list[mtcnn.Found]]]":
        """Parts of the photos, and the faces of each; as many at a time as torch has threads here.

        Each part has one thread to itself. Threads that share every layer wait for each other after
        each, and took 1.4 x the processor time (docs/decisions/106).
        """
        import torch

        n_threads = torch.get_num_threads()
        if n_threads == 1 or len(photos) < 2:
            parts = list(_batches(sizes, _BATCH_PIXELS))
            return parts, [self._find(photos, part) for part in parts]
        areas = [width * height for width, height in sizes]
        share = sum(areas) // n_threads + max(areas) // 2  # about one part for each thread
        parts = list(_batches(sizes, min(_BATCH_PIXELS, share)))

        def alone(part: Sequence[int]) -> "list[mtcnn.Found]":
            torch.set_num_threads(1)  # of this thread, where torch runs on OpenMP
            return self._find(photos, part)

        try:
            with ThreadPoolExecutor(min(n_threads, len(parts)), "detect") as pool:
                return parts, list(pool.map(alone, parts))
        finally:
            torch.set_num_threads(n_threads)


def _batches(sizes: Sequence[tuple[int, int]], n_most: int) -> Iterator[list[int]]:
    """Photos of n_most pixels at most together; equal sizes are adjacent and share batches."""
    batch: list[int] = []
    held = 0
    for i in sorted(range(len(sizes)), key=sizes.__getitem__):
        n_pixels = sizes[i][0] * sizes[i][1]
        if batch and held + n_pixels > n_most:
            yield batch
            batch, held = [], 0
        batch.append(i)
        held += n_pixels
    if batch:
        yield batch


def choose(boxes: ArrayLike, *, select: Select, size: tuple[int, int]) -> NDArray[np.float32]:
    """The box (4,) that a crop takes among those of a photo, (k, 4) with k >= 1.

    select: "only" needs exactly one;  "largest" is the one of the largest area;  "central" weighs
        area against distance from the photo's middle, as davidsandberg's alignment does: area less
        twice the squared distance, in pixels.
    size: width and height of the photo.
    """
    found: NDArray[np.float32] = np.asarray(boxes, np.float32).reshape(-1, 4)
    if len(found) == 1:
        return found.reshape(4)
    assert select != "only", "photos with several faces have been refused before"
    area = (found[:, 2:] - found[:, :2]).prod(axis=1)
    if select == "central":
        middle = (found[:, :2] + found[:, 2:]) / 2 - np.asarray(size, np.float32) / 2
        area = area - 2 * (middle**2).sum(axis=1)
    return np.asarray(found[area.argmax()])


def crop(
    image: Image.Image,
    box: ArrayLike,
    *,
    margin: float,
    size: tuple[int, int],
    interpolation: str,
) -> NDArray[np.uint8]:
    """Cut one face out and resize it, (height, width, 3).

    This follows facenet-pytorch's `extract_face` for Pillow images: the box grows by `margin` (a
    fraction of its sides, half of it on either side), is clamped to the photo and truncated to
    whole pixels; the rest is stretched to `size`.

    box: left, top, right, bottom in pixels.   size: height, width.
    interpolation: Pillow's filter by name.
    """
    left, top, right, bottom = (float(edge) for edge in np.asarray(box, np.float32))
    across, down = margin * (right - left) / 2, margin * (bottom - top) / 2
    width, height = image.size
    # A box past the edge, or thinner than a pixel, still gives one row of pixels.
    x0 = int(min(max(left - across, 0), width - 1))
    y0 = int(min(max(top - down, 0), height - 1))
    x1 = max(int(min(right + across, width)), x0 + 1)
    y1 = max(int(min(bottom + down, height)), y0 + 1)
    face = image.crop((x0, y0, x1, y1))
    return np.asarray(images.stretched(face, size[::-1], interpolation))
