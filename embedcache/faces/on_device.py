"""Pixels on a CUDA device: integral images, pyramid and crops as tensors there. Imports torch.

Photos are copied to the device once, as bytes; what comes back are the cells that passed and the
networks' outputs. The work of one batch is launched without waiting: the host waits for the cells
that passed, and for the outputs of each network.

A device wants few passes and few shapes, so levels of nearly equal size share a pass, padded to
one of eight sizes per octave (`_rounded`), and so do the numbers of levels and candidates.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from embedcache.faces.networks import Networks
from embedcache.faces.pixels import F32, I64, STRIDE, Cells, Level, in_bands

# Columns of the table of bands; before them are the place and the stride of the integral image and
# the photo's height and width. A band is a level, or some rows of a large one.
_WIDTH, _FIRST, _ROWS = 5, 6, 7


class DevicePixels:
    """The photos of one batch as integral images on a device.

    Three int32 sums a pixel, modulo 2**32: a difference of them is the sum over a window of up to
    8 million pixels, more than any level or crop of a photo of 4,000 million averages over. Memory
    is some 20 bytes a pixel.
    """

    def __init__(self, photos: Sequence[Image.Image], networks: Networks) -> None:
        self.sizes: I64 = np.array([photo.size for photo in photos], np.int64).reshape(-1, 2)
        self._networks = networks
        self._device = networks.device
        self._start = np.zeros(len(photos), np.int64)  # of each photo's integral image
        self._stride = np.zeros(len(photos), np.int64)
        with torch.inference_mode():
            self._sums = self._integrals(photos)

    def _integrals(self, photos: Sequence[Image.Image]) -> torch.Tensor:
        """Sums of all pixels above and to the left, int32 (places, 3), of one photo after another.

        Each photo has (height + 1) x (width + 1) places, padded to a rounded size.
        """
        alike: dict[tuple[int, int], list[int]] = {}
        for i, (width, height) in enumerate(self.sizes.tolist()):
            alike.setdefault((_rounded(height), _rounded(width)), []).append(i)
        n_pixels = sum(len(those) * height * width for (height, width), those in alike.items())
        n_places = sum(
            len(those) * (height + 1) * (width + 1) for (height, width), those in alike.items()
        )
        on_cuda = self._device.type == "cuda"
        given = torch.empty((n_pixels, 3), dtype=torch.uint8, pin_memory=on_cuda)
        slots = given.numpy()
        start = 0
        for (height, width), those in alike.items():
            for i in those:
                photo = np.asarray(photos[i].convert("RGB"))
                slot = slots[start : start + height * width].reshape(height, width, 3)
                slot[: photo.shape[0], : photo.shape[1]] = photo
                start += height * width
        pixels = given.to(self._device, non_blocking=True)

        sums = torch.zeros((n_places, 3), dtype=torch.int32, device=self._device)
        start = place = 0
        for (height, width), those in alike.items():
            n, each = len(those), (height + 1) * (width + 1)
            some = pixels[start : start + n * height * width].view(n, height, width, 3)
            here = sums[place : place + n * each].view(n, height + 1, width + 1, 3)
            here[:, 1:, 1:] = some
            here.cumsum_(1, dtype=torch.int32).cumsum_(2, dtype=torch.int32)
            self._start[those] = place + each * np.arange(n)
            self._stride[those] = width + 1
            start += n * height * width
            place += n * each
        return sums

    def cells(self, levels: list[Level], threshold: float) -> Cells:
        """P-network cells of all levels whose score is at least the threshold."""
        table, level = self._bands(levels)
        passes, rows = self._passes(table)
        starts = np.cumsum([0, *(n for n, _, _ in passes)])
        maps = []
        with torch.inference_mode():
            bands = self._sent(table[rows])
            for start, (n, height, width) in zip(starts.tolist(), passes, strict=False):
                maps.append(self._look_at(bands[start : start + n], height, width))
            scores = torch.cat([scores.reshape(-1) for _, scores in maps])
            shifts = torch.cat([shifts.permute(0, 2, 3, 1).reshape(-1, 4) for shifts, _ in maps])
            passed = torch.nonzero(scores >= float(np.float32(threshold)))[:, 0]
            place, score, shift = _fetched((passed, scores[passed], shifts[passed]))

        # The place of a cell in all maps tells its pass, and there its band, y and x.
        shape = np.array([scores.shape for _, scores in maps], np.int64)
        ends = shape.prod(axis=1).cumsum()
        which = np.searchsorted(ends, place, side="right")
        _, high, wide = shape[which].T
        place = place - (ends - shape.prod(axis=1))[which]
        band = rows[starts[which] + place // (high * wide)]
        y, x = place // wide % high + table[band, _FIRST] // STRIDE, place % wide
        order = np.argsort(band, kind="stable")
        return Cells(level[band[order]], y[order], x[order], score[order], shift[order])

    def _bands(self, levels: list[Level]) -> tuple[I64, I64]:
        """The table of bands (n + 1, columns), and the level of each; the last band has no rows."""
        photo = np.array([level.photo for level in levels], np.int64)
        size = np.array([(level.height, level.width) for level in levels], np.int64)
        bands = [
            (i, first, end - first)
            for i, level in enumerate(levels)
            for first, end in in_bands(level, self._networks.cell_pixels)
        ]
        level, first, n_rows = np.array([*bands, (0, 0, 0)], np.int64).T
        photo = photo[level]
        places = self._start[photo], self._stride[photo]
        table = np.column_stack([*places, self.sizes[photo, ::-1], size[level], first, n_rows])
        return table, level

    def _passes(self, table: I64) -> tuple[list[tuple[int, int, int]], I64]:
        """Bands that go through the network together: (n, height, width) of each pass.

        Returns the passes, and the rows of the table of one pass after another.
        """
        alike: dict[tuple[int, int], list[int]] = {}
        for row, (width, _, n_rows) in enumerate(table[:-1, _WIDTH:].tolist()):
            alike.setdefault((_rounded(n_rows), _rounded(width)), []).append(row)
        none = len(table) - 1
        passes, rows = [], []
        for (height, width), those in alike.items():
            together = max(1, self._networks.cell_pixels // (height * width))
            for start in range(0, len(those), together):
                some = those[start : start + together]
                n = _rounded(len(some))
                passes.append((n, height, width))
                rows += [*some, *[none] * (n - len(some))]
        return passes, np.array(rows, np.int64)

    def _look_at(
        self, bands: torch.Tensor, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shift (n, 4, cells, cells) and score (n, cells, cells) of bands of one padded size."""
        pixels = self.levels(bands, height, width)
        networks = self._networks
        with networks.exact():
            return networks.padded_pnet(pixels, bands[:, _ROWS], bands[:, _WIDTH])

    def levels(self, bands: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Pixels (n, 3, height, width) of levels from their band's first row on.

        bands: rows of the table. What lies past a level's edge is finite and of no meaning.
        """
        place, stride, photo_height, photo_width, level_height, level_width, first, _ = bands.T
        y = torch.arange(height, device=self._device) + first[:, None]
        x = torch.arange(width, device=self._device)
        rows = _windows(y, photo_height[:, None], level_height[:, None])
        columns = _windows(x, photo_width[:, None], level_width[:, None])
        return self._means(place, stride, rows, columns)

    def look(self, photo: I64, corners: I64, size: int) -> tuple[F32, ...]:
        """Outputs of the R-network (size 24) or O-network (48) for parts of photos."""
        networks = self._networks
        n, n_most = len(photo), networks.n_crops[size]
        n_padded = max(1, n // n_most * n_most + _rounded(n % n_most))
        outputs = []
        with torch.inference_mode():
            parts = self._sent(self.parts(photo, corners, n_padded))
            for start in range(0, n_padded, n_most):
                pixels = self.crops(parts[start : start + n_most], size)
                with networks.exact():
                    outputs.append(networks.by_size[size](pixels))
            return _fetched(torch.cat(column)[:n] for column in zip(*outputs, strict=True))

    def parts(self, photo: I64, corners: I64, n: int) -> I64:
        """The table of n parts of photos: place, stride, height and width; 0 past the last corner.

        photo: (k,), k <= n.  corners: (k, 4) left, top, right, bottom.
        """
        table = np.zeros((n, 4), np.int64)
        left, top, right, bottom = corners.T
        stride = self._stride[photo]
        place = self._start[photo] + top * stride + left
        table[: len(photo)] = np.column_stack([place, stride, bottom - top, right - left])
        return table

    def crops(self, parts: torch.Tensor, size: int) -> torch.Tensor:
        """Pixels (n, 3, size, size) of parts of photos, rows of their table."""
        place, stride, height, width = parts.T
        i = torch.arange(size, device=self._device)
        rows, columns = _windows(i, height[:, None], size), _windows(i, width[:, None], size)
        return self._means(place, stride, rows, columns)

    def _means(
        self,
        place: torch.Tensor,
        stride: torch.Tensor,
        rows: tuple[torch.Tensor, torch.Tensor],
        columns: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Averages (n, 3, h, w) over windows, divided in torch's order, scaled to about [-1, 1].

        place, stride: (n,) first place of each, and places of a row, in the integral images.
        rows, columns: first pixel and past-the-end pixel of the windows, (n, h) and (n, w).
        """
        above, below = ((place[:, None] + y * stride[:, None])[:, :, None] for y in rows)
        left, right = (x[:, None, :] for x in columns)
        total = self._sums[below + right]
        total -= self._sums[below + left]
        total -= self._sums[above + right]
        total += self._sums[above + left]
        means = total.to(torch.float32)
        means /= _count(rows)[:, :, None, None]
        means /= _count(columns)[:, None, :, None]
        means -= 127.5
        means *= 0.0078125
        return means.permute(0, 3, 1, 2)

    def _sent(self, table: I64) -> torch.Tensor:
        """The table on the device; what was launched before is not waited for."""
        return torch.from_numpy(table).to(self._device, non_blocking=True)


def _rounded(n: int) -> int:
    """The next of eight sizes per octave: at most an eighth more."""
    step = 1 << max(0, n.bit_length() - 4)
    return -(-n // step) * step


def _windows(
    i: torch.Tensor, n: torch.Tensor, size: torch.Tensor | int
) -> tuple[torch.Tensor, torch.Tensor]:
    """First pixel and past-the-end pixel of window i of `size` windows over n pixels (torch's).

    A window past the last has no pixels.
    """
    first = torch.div(i * n, size, rounding_mode="floor")
    end = torch.div((i + 1) * n + size - 1, size, rounding_mode="floor")
    return torch.minimum(first, n), torch.minimum(end, n)


def _count(windows: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Pixels along one side of each window, float32; 1 for a window that has none."""
    first, end = windows
    return (end - first).clamp_(min=1).to(torch.float32)


def _fetched(columns: Iterable[torch.Tensor]) -> tuple[NDArray[Any], ...]:
    """Arrays on the host."""
    return tuple(column.cpu().numpy() for column in columns)
