"""Pixels on processors: one integral image a photo, with numpy; any network's device.

Every resize of the detector is an average over windows of pixels (torch's "area"). The integral
image gives the sums over windows exactly, so the whole pyramid and all candidate crops cost a few
gathers instead of one pass over the photo per level.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedcache.faces.networks import Networks
from embedcache.faces.pixels import CELL, F32, I64, STRIDE, Cells, Level, in_bands

U32 = NDArray[np.uint32]


class HostPixels:
    """The photos of one batch as integral images.

    Levels of equal size from many photos go through the P-network together, and candidates of all
    photos go through the R- and O-networks together. Memory is laid out channels last.
    """

    def __init__(self, photos: Sequence[Image.Image], networks: Networks) -> None:
        self.sizes: I64 = np.array([photo.size for photo in photos], np.int64).reshape(-1, 2)
        self._networks = networks
        self._integrals = [Integral(packed(photo)) for photo in photos]

    def cells(self, levels: list[Level], threshold: float) -> Cells:
        """P-network cells of all levels whose score is at least the threshold."""
        alike: dict[tuple[int, int, int], list[int]] = {}
        for i, level in enumerate(levels):
            alike.setdefault((level.number, level.height, level.width), []).append(i)
        parts = []
        for (_, height, width), those in alike.items():
            together = max(1, self._networks.cell_pixels // (height * width))
            for start in range(0, len(those), together):
                some = those[start : start + together]
                pixels = np.empty((len(some), height, width, 3), np.float32)
                for i, out in zip(some, pixels, strict=True):
                    self._integrals[levels[i].photo].level(out)
                for row, *found in self._cells(levels[some[0]], pixels, threshold):
                    parts.append((np.asarray(some, np.int64)[row], *found))
        return Cells(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _cells(
        self, level: Level, pixels: F32, threshold: float
    ) -> list[tuple[I64, I64, I64, F32, F32]]:
        """Row of `pixels`, y, x, score and shift of the cells, band by band."""
        found = []
        networks = self._networks
        for first, end in in_bands(level, networks.cell_pixels // len(pixels)):
            row, y, x, score, shift = networks.propose(pixels[:, first:end], threshold)
            found.append((row, y + first // STRIDE, x, score, shift))
        return found

    def look(self, photo: I64, corners: I64, size: int) -> tuple[F32, ...]:
        """Outputs of the R-network (size 24) or O-network (48) for parts of photos."""
        outputs = []
        n_most = self._networks.n_crops[size]
        for start in range(0, max(1, len(corners)), n_most):
            some = slice(start, start + n_most)
            pixels = np.empty((len(corners[some]), size, size, 3), np.float32)
            for first, end in runs_of(photo[some]):
                integral = self._integrals[photo[some][first]]
                integral.crops(corners[some][first:end], pixels[first:end])
            outputs.append(self._networks.run(self._networks.by_size[size], pixels))
        return tuple(np.concatenate(column) for column in zip(*outputs, strict=True))


def packed(photo: Image.Image) -> U32:
    """(h, w), red in the lowest byte: Pillow's own layout, so a plain copy."""
    raw = photo.convert("RGB").tobytes("raw", "RGBX")
    return np.frombuffer(raw, "<u4").reshape(photo.height, photo.width)


def runs_of(values: I64) -> list[tuple[int, int]]:
    """First row and past-the-end row of each run of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=-1)).tolist()
    return list(pairwise([*starts, len(values)])) if starts else []


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
        """Averages from packed sums, divided in torch's order and scaled to about [-1, 1].

        rows, columns: pixels along the sides of the windows, (..., h, 1, 1) and (..., w, 1). The
            three channels of a row are divided together: an inner loop of 3 took twice as long.
        """
        mask = (1 << self.bits) - 1
        field = sums[0] & mask
        out[..., 0] = field
        np.right_shift(sums[0], self.bits, out=field)
        field &= mask
        out[..., 1] = field
        out[..., 2] = np.right_shift(sums[0], 42, out=field) if self.bits == 21 else sums[1]
        flat = out.reshape(*out.shape[:-2], 3 * out.shape[-2])
        flat /= rows.astype(np.float32)[..., 0]
        flat /= np.repeat(columns.astype(np.float32)[..., 0], 3, axis=-1)
        flat -= np.float32(127.5)
        flat *= np.float32(0.0078125)


def _prefix(photo: U32, fields: dict[int, int]) -> I64:
    """Sums of all words above and to the left, (height + 1, width + 1).

    fields: channel -> the bit where its field begins.
    """
    height, width = photo.shape
    sums = np.empty((height + 1, width + 1), np.int64)
    sums[0] = 0
    sums[:, 0] = 0
    inside = sums[1:, 1:]
    step = max(1, 12_000 // width)  # rows that fit into the cache; all at once takes 4 x as long
    for start in range(0, height, step):
        pixels = photo[start : start + step].astype(np.int64)
        words, field = np.zeros_like(pixels), np.empty_like(pixels)
        for channel, bit in fields.items():
            np.bitwise_and(pixels, 0xFF << 8 * channel, out=field)
            if bit >= 8 * channel:
                field <<= bit - 8 * channel
            else:
                field >>= 8 * channel - bit
            words |= field
        np.cumsum(words, axis=1, out=inside[start : start + step])
    for row in range(1, height + 1):  # twice as fast as cumsum along the columns
        sums[row] += sums[row - 1]
    return sums


def _windows(n: int | I64, size: int) -> tuple[I64, I64]:
    """First pixel and past-the-end pixel of each of `size` windows over n pixels (torch's)."""
    i = np.arange(size, dtype=np.int64)
    return i * n // size, ((i + 1) * n + size - 1) // size
