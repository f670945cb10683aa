"""MTCNN in batches: facenet-pytorch's P-, R- and O-network with our own driver.

The boxes equal those of `MTCNN(keep_all=True).detect(one photo)`; docs/decisions/022 compares them
on real photos. The arithmetic follows the package step by step, with three differences:

- Every resize comes from sums over windows of an integral image, on processors (`host`) or on a
  CUDA device (`on_device`).
- Levels of many photos go through the P-network together, and candidates of all photos go through
  the R- and O-networks together.
- A candidate whose clipped box is empty is dropped. The package fails there.

Boxes and suppression stay on the CPU on every device. Imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from PIL import Image

from embedcache.deferred import without_compiler
from embedcache.faces.host import HostPixels, runs_of
from embedcache.faces.networks import Networks
from embedcache.faces.on_device import DevicePixels
from embedcache.faces.pixels import CELL, F32, I64, STRIDE, Level, Pixels

with without_compiler():
    import torchvision.ops  # noqa: F401  registers torch.ops.torchvision.nms


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The detector's options besides the weights. The defaults are facenet-pytorch's.

    thresholds: minimum probability after the P-, R- and O-network.
    min_face_size: side of the smallest face to find, in pixels.
    factor: ratio of the scales of two levels of the pyramid.
    """

    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    min_face_size: int = 20
    factor: float = 0.709

    def scales(self, height: int, width: int) -> list[float]:
        """Scales of the pyramid; [] for a photo smaller than a face."""
        found = []
        scale = CELL / self.min_face_size
        side = min(height, width) * scale
        while side >= CELL:
            found.append(scale)
            scale *= self.factor
            side *= self.factor
        return found


@dataclass(frozen=True, slots=True)
class Found:
    """The faces of one photo, largest first: box (k, 4), probability (k,), landmark (k, 5, 2)."""

    box: F32
    probability: F32
    landmark: F32


def find(photos: Sequence[Image.Image], networks: Networks, settings: Settings) -> list[Found]:
    """Find the faces in RGB photos of any sizes that fit into memory together."""
    pixels = (DevicePixels if networks.resident else HostPixels)(photos, networks)
    boxes = _propose(pixels, settings)
    boxes = _refine(pixels, boxes, settings)
    return _output(pixels, boxes, settings)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes of many photos, in the order of the photos.

    photo: (k,) which photo;  box: (k, 4) left, top, right, bottom;  score: (k,).
    """

    photo: I64
    box: F32
    score: F32

    def take(self, rows: I64) -> "Candidates":
        return Candidates(self.photo[rows], self.box[rows], self.score[rows])


def _propose(pixels: Pixels, settings: Settings) -> Candidates:
    """First stage: the P-network over the pyramid."""
    levels = [
        Level(i, number, scale, int(height * scale + 1), int(width * scale + 1))
        for i, (width, height) in enumerate(pixels.sizes.tolist())
        for number, scale in enumerate(settings.scales(height, width))
    ]
    if not levels:
        return Candidates(*_nothing())
    cells = pixels.cells(levels, settings.thresholds[0])
    order = np.argsort(cells.level, kind="stable")  # cells of a level stay in reading order
    level, score, shift = cells.level[order], cells.score[order], cells.shift[order]
    photo = np.array([level.photo for level in levels], np.int64)[level]
    shrunk = np.array([level.scale for level in levels], np.float32)[level, None]
    cell = np.stack([cells.x, cells.y], axis=1)[order].astype(np.float32) * STRIDE
    box = np.concatenate([np.floor((cell + 1) / shrunk), np.floor((cell + CELL) / shrunk)], axis=1)

    kept = _suppress_by_level(box, score, photo, level)
    kept = kept[_suppress(box[kept], score[kept], photo[kept], 0.7)]
    box = box[kept]
    sides = box[:, 2:] - box[:, :2]
    box = box + shift[kept] * np.concatenate([sides, sides], axis=1)
    return Candidates(photo[kept], _square(box), score[kept])


def _nothing() -> tuple[I64, F32, F32]:
    four = np.empty((0, 4), np.float32)
    return np.empty(0, np.int64), four, four[:, 0]


def _refine(pixels: Pixels, found: Candidates, settings: Settings) -> Candidates:
    """Second stage: the R-network over the candidates."""
    found, (shift, scores) = _look(pixels, found, 24)
    passed = scores[:, 1] > np.float32(settings.thresholds[1])
    found = Candidates(found.photo[passed], found.box[passed], scores[passed, 1])
    shift = shift[passed]
    kept = _suppress(found.box, found.score, found.photo, 0.7)
    found, shift = found.take(kept), shift[kept]
    return Candidates(found.photo, _square(_shifted(found.box, shift)), found.score)


def _output(pixels: Pixels, found: Candidates, settings: Settings) -> list[Found]:
    """Third stage: the O-network, landmarks, and the last suppression."""
    found, (shift, points, scores) = _look(pixels, found, 48)
    passed = scores[:, 1] > np.float32(settings.thresholds[2])
    photo, box, score = found.photo[passed], found.box[passed], scores[passed, 1]
    sides = box[:, 2:] - box[:, :2] + 1
    landmark = np.stack(
        [
            sides[:, :1] * points[passed, :5] + box[:, :1] - 1,
            sides[:, 1:] * points[passed, 5:] + box[:, 1:2] - 1,
        ],
        axis=2,
    )
    box = _shifted(box, shift[passed])
    faces = []
    starts = np.searchsorted(photo, np.arange(len(pixels.sizes) + 1))
    for start, end in pairwise(starts):
        rows = start + _suppress_contained(box[start:end], score[start:end], 0.7)
        area = (box[rows, 2] - box[rows, 0]) * (box[rows, 3] - box[rows, 1])
        rows = rows[np.argsort(area)[::-1]]
        faces.append(Found(box[rows], score[rows], landmark[rows]))
    return faces


def _look(pixels: Pixels, found: Candidates, size: int) -> tuple[Candidates, tuple[F32, ...]]:
    """Run a network on the candidates' pixels, without those outside their photo."""
    corners = found.box.astype(np.int64)  # towards zero, as the package truncates
    corners[:, :2] = np.maximum(corners[:, :2], 1) - 1
    corners[:, 2:] = np.minimum(corners[:, 2:], pixels.sizes[found.photo])
    inside = np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(axis=1))
    found = found.take(inside)
    return found, pixels.look(found.photo, corners[inside], size)


def _square(box: F32) -> F32:
    """The square of the longer side around the same centre."""
    sides = box[:, 2:] - box[:, :2]
    longer = sides.max(axis=1, keepdims=True)
    corner = box[:, :2] + sides * np.float32(0.5) - longer * np.float32(0.5)
    squares: F32 = np.concatenate([corner, corner + longer], axis=1)
    return squares


def _shifted(box: F32, shift: F32) -> F32:
    """Corners moved by fractions of the sides, as the R- and O-network state them."""
    sides = box[:, 2:] - box[:, :2] + 1
    moved: F32 = box + shift * np.concatenate([sides, sides], axis=1)
    return moved


def _suppress_by_level(box: F32, score: F32, photo: I64, level: I64) -> I64:
    """Rows that survive non-maximum suppression within each level, best first in each level.

    box: whole numbers.  level: ascending, and with it the photo.

    All levels of a photo are suppressed in one call, side by side: whole numbers below 2**24 move
    without rounding, so the overlaps are the same.
    """
    if not len(box):
        return np.empty(0, np.int64)
    number = level - level[np.searchsorted(photo, photo)]
    apart = np.float64(box.max()) - box.min() + 1
    if np.abs(box).max() + apart * number.max() >= 1 << 24:
        return _suppress(box, score, level, 0.5)
    moved = box + (number * apart).astype(np.float32)[:, None]
    kept = _suppress(moved, score, photo, 0.5)
    return kept[np.argsort(level[kept], kind="stable")]


def _suppress(box: F32, score: F32, group: I64, overlap: float) -> I64:
    """Rows that survive non-maximum suppression within each group, best first in each group.

    group: ascending.
    """
    boxes, scores = torch.from_numpy(box), torch.from_numpy(score)
    kept = [np.empty(0, np.int64)]
    for start, end in runs_of(group):
        if end - start == 1:
            kept.append(np.array([start]))
        else:
            rows = torch.ops.torchvision.nms(boxes[start:end], scores[start:end], overlap)
            kept.append(start + rows.numpy())
    return np.concatenate(kept)


def _suppress_contained(box: F32, score: F32, overlap: float) -> I64:
    """Rows of one photo that survive if overlap is measured against the smaller box."""
    sides = box[:, 2:] - box[:, :2] + 1
    area = sides[:, 0] * sides[:, 1]
    left = np.argsort(score)
    kept = []
    while len(left):
        best, left = left[-1], left[:-1]
        kept.append(best)
        low = np.maximum(box[best, :2], box[left, :2])
        high = np.minimum(box[best, 2:], box[left, 2:])
        shared = np.maximum(0, high - low + 1).prod(axis=1)
        left = left[shared / np.minimum(area[best], area[left]) <= overlap]
    return np.array(kept, np.int64)
