"""Pillow's resize as numbers, so that a device can do it pixel for pixel. No torch.

Pillow resizes an 8-bit picture in two passes: each output pixel is a sum of a few input pixels with
weights of 22 bits, rounded to 8 bits after each pass (src/libImaging/Resample.c). The weights below
are computed in the same order of operations, so they are the same integers.

    kernel(n_in, n_out, start, n, interpolation)    the weights of one axis
    Uncut                                           a photo that is still to be resized and cut
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BITS = 22
"""Weights are in units of 2 ** -BITS."""
KEPT = 4096  # kernels: a collection has few sizes

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Kernel:
    """The weights of one axis: output pixel i is the sum of weight[i, k] * input[first[i] + k].

    first: int64 (n,).  weight: int32 (n, taps), 0 past the end of the input.
    """

    first: NDArray[np.int64]
    weight: NDArray[np.int32]

    @property
    def taps(self) -> int:
        return len(self.weight.T)


@dataclass(frozen=True, slots=True)
class Uncut:
    """A decoded photo, uint8 (h, w, 3), and what is to be made of it.

    across, down: for each axis, the input's pixels, the pixels it is resized to, and the first of
        those that are kept.
    """

    pixels: NDArray[np.uint8]
    across: tuple[int, int, int]
    down: tuple[int, int, int]
    interpolation: str

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes


def _triangle(x: Floats) -> Floats:
    return np.where(x < 1, 1 - x, 0.0)


def _cubic(x: Floats) -> Floats:
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


FILTERS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}
"""Filter of a distance, which is not negative, and its support. Lanczos needs a sine, which not
every C library rounds alike."""


@lru_cache(KEPT)
def kernel(n_in: int, n_out: int, start: int, n: int, interpolation: str) -> Kernel:
    """The weights of the output pixels start to start + n of an axis of n_in, resized to n_out."""
    function, radius = FILTERS[interpolation]
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    support = radius * stretch
    taps = math.ceil(support) * 2 + 1
    centre = (np.arange(start, start + n) + 0.5) * scale
    first = np.maximum(np.trunc(centre - support + 0.5), 0).astype(np.int64)
    last = np.minimum(np.trunc(centre + support + 0.5), n_in).astype(np.int64)
    place = first[:, None] + np.arange(taps)
    distance = np.abs((place - centre[:, None] + 0.5) * (1.0 / stretch))
    weight = np.where(place < last[:, None], function(distance), 0.0)
    total = np.zeros(n)
    for k in range(taps):  # one after the other, as Pillow adds them
        total += weight[:, k]
    weight /= np.where(total == 0, 1.0, total)[:, None]
    return Kernel(first, np.trunc(weight * (1 << BITS) + np.copysign(0.5, weight)).astype(np.int32))
