"""MTCNN in batches: facenet-pytorch's P-, R- and O-network with our own driver.

The boxes equal those of `MTCNN(keep_all=True).detect(one photo)`; docs/decisions/022 compares them
on real photos. The arithmetic follows the package step by step, with three differences:

- Every resize is an average over windows of pixels (torch's "area"). One integral image per photo
  gives the sums over windows exactly, so the whole pyramid and all candidate crops cost a few
  gathers instead of one pass over the photo per level.
- Levels of equal size from many photos go through the P-network together, and candidates of all
  photos go through the R- and O-networks together. Memory is laid out channels last.
- A candidate whose clipped box is empty is dropped. The package fails there.

Boxes and suppression stay on the CPU; pixels go to `device` as float32.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

from embedcache.errors import WeightsError
from embedcache.machine import arithmetic
from embedcache.spec import digest_of_weights

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]
Network = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]

CELL, STRIDE = 12, 2  # a P-network cell sees 12 x 12 pixels, one every 2
_CELL_PIXELS = 90_000  # per P-network pass: more would not fit into the processor's cache
_CROPS = {24: 256, 48: 64}  # candidates per R- and O-network pass, for the same reason
_ON_CUDA = 32  # times as much there, where each pass costs its launches


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


class Networks:
    """The three networks on one device.

    cell_pixels: of one P-network pass.  n_crops: candidates of one R- and O-network pass, by size.
    """

    def __init__(self, device: str) -> None:
        try:
            from facenet_pytorch.models import mtcnn as package
        except (ImportError, KeyError) as error:  # KeyError: an earlier import failed half-way
            raise WeightsError(
                "face detection needs the package facenet-pytorch, which brings its networks' "
                f"weights, and it cannot be imported ({error}). "
                "Run 'pip install --no-deps facenet-pytorch==2.6.0'."
            ) from None
        self.device = torch.device(device)
        times = _ON_CUDA if self.device.type == "cuda" else 1
        self.cell_pixels = times * _CELL_PIXELS
        self.n_crops = {size: times * n for size, n in _CROPS.items()}
        self.weights: dict[str, str] = {}
        data = Path(package.__file__).parent.parent / "data"
        self.pnet: Network = partial(_pnet, self._load(package.PNet, data / "pnet.pt"))
        self.rnet: Network = self._load(package.RNet, data / "rnet.pt")
        self.onet: Network = self._load(package.ONet, data / "onet.pt")

    def _load(self, network: type[torch.nn.Module], path: Path) -> torch.nn.Module:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            module = network(pretrained=False)
            module.load_state_dict(state)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"the face detector's weights cannot be read from {path}: {error}. "
                "Run 'pip install --force-reinstall --no-deps facenet-pytorch==2.6.0'."
            ) from error
        self.weights[path.stem] = digest_of_weights(state)
        return module.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def run(self, network: Network, pixels: F32) -> tuple[F32, ...]:
        """Outputs for pixels (n, h, w, 3)."""
        if not len(pixels):  # the package's networks refuse an empty batch
            one = np.zeros((1, *pixels.shape[1:]), np.float32)
            return tuple(out[:0] for out in self.run(network, one))
        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
            with self._exact():
                outputs = network(inputs)
            return tuple(out.cpu().numpy() for out in outputs)

    def _exact(self) -> AbstractContextManager[None]:
        """Full float32 on a CUDA device too, whatever network runs beside."""
        if self.device.type != "cuda":
            return nullcontext()
        return arithmetic(tf32=False)


def _pnet(network: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The P-network with its pooling as maxima of slices: the same values at a fifth of the time.

    torch's own max_pool2d took longer than the convolution before it (docs/decisions/022).
    """
    x = _pool(network.prelu1(network.conv1(pixels)))
    x = network.prelu3(network.conv3(network.prelu2(network.conv2(x))))
    return network.conv4_2(x), network.softmax4_1(network.conv4_1(x))


def _pool(x: torch.Tensor) -> torch.Tensor:
    """max_pool2d(x, 2, 2, ceil_mode=True)."""
    for axis in (2, 3):
        even = x.shape[axis] // 2 * 2
        before = (slice(None),) * axis
        last = x.narrow(axis, even, x.shape[axis] - even)
        x = torch.maximum(x[(*before, slice(0, even, 2))], x[(*before, slice(1, even, 2))])
        if last.shape[axis]:
            x = torch.cat([x, last], axis)
    return x


def find(
    photos: Sequence[U32], networks: Networks, settings: Settings, pool: ThreadPoolExecutor
) -> list[Found]:
    """Find the faces in photos that fit into memory together.

    photos: (h, w) of any sizes, red in the lowest byte, then green and blue.
    """
    integrals = list(pool.map(Integral, photos))
    boxes = _propose(integrals, networks, settings, pool)
    boxes = _refine(integrals, boxes, networks, settings, pool)
    return _output(integrals, boxes, networks, settings, pool)


class Integral:
    """Sums over any window of a photo, in four look-ups.

    Three channels share one 64-bit word, 21 bits each. Words are summed modulo 2**64, so a
    difference of prefix sums is correct as long as each channel's sum over the window fits its
    bits (8,224 pixels). Larger photos, whose windows may be larger, use two words of 32-bit fields.
    """

    def __init__(self, photo: U32) -> None:
        self.height, self.width = photo.shape
        shorter = min(self.height, self.width)
        largest = max(
            (shorter / CELL + 2) ** 2,  # the pyramid's last level
            (self.height / 24 + 2) * (self.width / 24 + 2),  # an R-network crop of it all
        )
        if 255 * largest < 1 << 21:
            self.bits = 21
            self.words = [_prefix(photo, {0: 0, 1: 21, 2: 42})]
        else:
            self.bits = 32
            self.words = [_prefix(photo, {0: 0, 1: 32}), _prefix(photo, {2: 0})]

    def level(self, out: F32) -> None:
        """Fill out, (height, width, 3), with the whole photo at that size."""
        top, bottom = _windows(self.height, out.shape[0])
        left, right = _windows(self.width, out.shape[1])
        sums = []
        for word in self.words:
            rows = word.take(bottom, 0)
            rows -= word.take(top, 0)
            columns = rows.take(right, 1)
            columns -= rows.take(left, 1)
            sums.append(columns)
        self._means(sums, (bottom - top)[:, None, None], (right - left)[:, None], out)

    def crops(self, boxes: I64, out: F32) -> None:
        """Fill out, (k, size, size, 3), with parts of the photo at that size.

        boxes: (k, 4) left, top, right, bottom, inside the photo and not empty.
        """
        size = out.shape[1]
        top, bottom = _windows((boxes[:, 3] - boxes[:, 1])[:, None], size)
        left, right = _windows((boxes[:, 2] - boxes[:, 0])[:, None], size)
        area = (bottom - top)[:, :, None, None], (right - left)[:, None, :, None]
        stride = self.width + 1
        top = ((top + boxes[:, 1, None]) * stride)[:, :, None]
        bottom = ((bottom + boxes[:, 1, None]) * stride)[:, :, None]
        left = (left + boxes[:, 0, None])[:, None, :]
        right = (right + boxes[:, 0, None])[:, None, :]
        sums = []
        for word in self.words:
            flat = word.reshape(-1)
            total = flat.take(bottom + right)
            total -= flat.take(bottom + left)
            total -= flat.take(top + right)
            total += flat.take(top + left)
            sums.append(total)
        self._means(sums, *area, out)

    def _means(self, sums: list[I64], rows: I64, columns: I64, out: F32) -> None:
        """Averages from packed sums, divided in torch's order and scaled to about [-1, 1]."""
        mask = (1 << self.bits) - 1
        out[..., 0] = sums[0] & mask
        out[..., 1] = sums[0] >> self.bits & mask
        out[..., 2] = sums[0] >> 42 if self.bits == 21 else sums[1]
        out /= rows.astype(np.float32)
        out /= columns.astype(np.float32)
        out -= np.float32(127.5)
        out *= np.float32(0.0078125)


def _prefix(photo: U32, fields: dict[int, int]) -> I64:
    """Sums of all words above and to the left, (height + 1, width + 1).

    fields: channel -> the bit where its field begins.
    """
    height, width = photo.shape
    sums = np.zeros((height + 1, width + 1), np.int64)
    inside = sums[1:, 1:]
    step = max(1, 12_000 // width)  # rows that fit into the cache; all at once takes 4 x as long
    for start in range(0, height, step):
        pixels = photo[start : start + step].astype(np.int64)
        words = np.zeros_like(pixels)
        for channel, bit in fields.items():
            words |= (pixels >> 8 * channel & 0xFF) << bit
        np.cumsum(words, axis=1, out=inside[start : start + step])
    for row in range(1, height + 1):  # twice as fast as cumsum along the columns
        sums[row] += sums[row - 1]
    return sums


def _windows(n: int | I64, size: int) -> tuple[I64, I64]:
    """First pixel and past-the-end pixel of each of `size` windows over n pixels (torch's)."""
    i = np.arange(size, dtype=np.int64)
    return i * n // size, ((i + 1) * n + size - 1) // size


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


def _propose(
    integrals: list[Integral], networks: Networks, settings: Settings, pool: ThreadPoolExecutor
) -> Candidates:
    """First stage: the P-network over the pyramid."""
    inputs: dict[tuple[int, int, int], list[int]] = {}  # (level, height, width) -> photos
    scales: list[float] = []
    for i, integral in enumerate(integrals):
        here = settings.scales(integral.height, integral.width)
        scales = max(scales, here, key=len)
        for level, scale in enumerate(here):
            size = int(integral.height * scale + 1), int(integral.width * scale + 1)
            inputs.setdefault((level, *size), []).append(i)

    parts = []
    for (level, height, width), alike in inputs.items():
        together = max(1, networks.cell_pixels // (height * width))
        for start in range(0, len(alike), together):
            some = np.asarray(alike[start : start + together])
            pixels = np.empty((len(some), height, width, 3), np.float32)
            list(pool.map(lambda i, out: integrals[i].level(out), some, pixels))
            row, y, x, score, shift = _cells(pixels, networks, settings.thresholds[0])
            shrunk = np.float32(scales[level])
            cell = np.stack([x, y], axis=1).astype(np.float32) * STRIDE
            box = np.concatenate(
                [np.floor((cell + 1) / shrunk), np.floor((cell + CELL) / shrunk)], axis=1
            )
            parts.append((some[row], np.full(len(row), level), box, score, shift))
    if not parts:
        parts = [_nothing()]
    photo, levels, box, score, shift = (np.concatenate(p) for p in zip(*parts, strict=True))

    order = np.lexsort((levels, photo))  # stable: cells stay in reading order
    group = photo * (1 + len(scales)) + levels
    order = order[_suppress(box[order], score[order], group[order], 0.5)]
    order = order[_suppress(box[order], score[order], photo[order], 0.7)]
    box, shift = box[order], shift[order]
    sides = box[:, 2:] - box[:, :2]
    box = box + shift * np.concatenate([sides, sides], axis=1)
    return Candidates(photo[order], _square(box), score[order])


def _nothing() -> tuple[I64, I64, F32, F32, F32]:
    none = np.empty(0, np.int64)
    four = np.empty((0, 4), np.float32)
    return none, none, four, four[:, 0], four


def _cells(pixels: F32, networks: Networks, threshold: float) -> tuple[I64, I64, I64, F32, F32]:
    """Cells of the P-network at or above the threshold: row of `pixels`, y, x, score, shift (k, 4).

    A large level is processed in bands of rows. Cell y sees only the pixel rows 2 y to 2 y + 11, so
    the cells are the same.
    """
    n, height, width, _ = pixels.shape
    cells = (height - 1) // STRIDE - 4
    bands = -(-n * height * width // networks.cell_pixels)
    step = -(-cells // bands)
    parts = []
    for start in range(0, cells, step):
        end = height if start + step >= cells else STRIDE * (start + step - 1) + CELL
        shifts, scores = networks.run(networks.pnet, pixels[:, STRIDE * start : end])
        score = scores[:, 1]
        row, y, x = np.nonzero(score >= np.float32(threshold))
        parts.append((row, y + start, x, score[row, y, x], shifts[row, :, y, x]))
    row, y, x, score, shift = (np.concatenate(column) for column in zip(*parts, strict=True))
    return row, y, x, score, shift


def _refine(
    integrals: list[Integral],
    found: Candidates,
    networks: Networks,
    settings: Settings,
    pool: ThreadPoolExecutor,
) -> Candidates:
    """Second stage: the R-network over the candidates."""
    found, (shift, scores) = _look(integrals, found, 24, networks, networks.rnet, pool)
    passed = scores[:, 1] > np.float32(settings.thresholds[1])
    found = Candidates(found.photo[passed], found.box[passed], scores[passed, 1])
    shift = shift[passed]
    kept = _suppress(found.box, found.score, found.photo, 0.7)
    found, shift = found.take(kept), shift[kept]
    return Candidates(found.photo, _square(_shifted(found.box, shift)), found.score)


def _output(
    integrals: list[Integral],
    found: Candidates,
    networks: Networks,
    settings: Settings,
    pool: ThreadPoolExecutor,
) -> list[Found]:
    """Third stage: the O-network, landmarks, and the last suppression."""
    found, (shift, points, scores) = _look(integrals, found, 48, networks, networks.onet, pool)
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
    starts = np.searchsorted(photo, np.arange(len(integrals) + 1))
    for start, end in pairwise(starts):
        rows = start + _suppress_contained(box[start:end], score[start:end], 0.7)
        area = (box[rows, 2] - box[rows, 0]) * (box[rows, 3] - box[rows, 1])
        rows = rows[np.argsort(area)[::-1]]
        faces.append(Found(box[rows], score[rows], landmark[rows]))
    return faces


def _look(
    integrals: list[Integral],
    found: Candidates,
    size: int,
    networks: Networks,
    network: Network,
    pool: ThreadPoolExecutor,
) -> tuple[Candidates, tuple[F32, ...]]:
    """Run a network on the candidates' pixels, without those outside their photo."""
    edges = np.array([(i.width, i.height) for i in integrals], np.int64).reshape(-1, 2)[found.photo]
    corners = found.box.astype(np.int64)  # towards zero, as the package truncates
    corners[:, :2] = np.maximum(corners[:, :2], 1) - 1
    corners[:, 2:] = np.minimum(corners[:, 2:], edges)
    inside = np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(axis=1))
    found, corners = found.take(inside), corners[inside]

    outputs = []
    for start in range(0, max(1, len(corners)), networks.n_crops[size]):
        some = slice(start, start + networks.n_crops[size])
        pixels = np.empty((len(corners[some]), size, size, 3), np.float32)
        runs = [
            (integrals[found.photo[some][first]], corners[some][first:end], pixels[first:end])
            for first, end in _runs(found.photo[some])
        ]
        list(pool.map(lambda run: run[0].crops(run[1], run[2]), runs))
        outputs.append(networks.run(network, pixels))
    return found, tuple(np.concatenate(column) for column in zip(*outputs, strict=True))


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


def _suppress(box: F32, score: F32, group: I64, overlap: float) -> I64:
    """Rows that survive non-maximum suppression within each group, best first in each group.

    group: ascending.
    """
    boxes, scores = torch.from_numpy(box), torch.from_numpy(score)
    kept = [np.empty(0, np.int64)]
    for start, end in _runs(group):
        if end - start == 1:
            kept.append(np.array([start]))
        else:
            kept.append(start + nms(boxes[start:end], scores[start:end], overlap).numpy())
    return np.concatenate(kept)


def _runs(values: I64) -> list[tuple[int, int]]:
    """First row and past-the-end row of each run of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=-1)).tolist()
    return list(pairwise([*starts, len(values)])) if starts else []


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
