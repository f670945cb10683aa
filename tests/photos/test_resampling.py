"""Pillow's resize as numbers, against Pillow."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embedcache.photos.resampling import BITS, FILTERS, Kernel, kernel
from embedcache.photos.resizing import stretched

SIZES = [
    ((500, 375), (455, 341)),
    ((120, 160), (160, 160)),
    ((41, 7), (64, 90)),
    ((30, 99), (75, 7)),
]


def along(rows: NDArray[np.uint8], one: Kernel) -> NDArray[np.uint8]:
    """(h, n_in, 3) -> (h, n, 3)."""
    total = np.full((len(rows), len(one.first), 3), 1 << (BITS - 1), np.int64)
    for k in range(one.taps):
        place = np.minimum(one.first + k, rows.shape[1] - 1)
        total += rows[:, place].astype(np.int64) * one.weight[:, k, None]
    found: NDArray[np.uint8] = np.clip(total >> BITS, 0, 255).astype(np.uint8)
    return found


def resize(pixels: NDArray[np.uint8], size: tuple[int, int], name: str) -> NDArray[np.uint8]:
    """Rows first; size: (width, height)."""
    rows = along(pixels, kernel(pixels.shape[1], size[0], 0, size[0], name))
    columns = along(rows.transpose(1, 0, 2), kernel(len(pixels), size[1], 0, size[1], name))
    return columns.transpose(1, 0, 2)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_every_pixel_is_pillows(before: tuple[int, int], after: tuple[int, int], name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (before[1], before[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    found = resize(pixels, after, name)
    np.testing.assert_array_equal(found, np.asarray(stretched(image, after, name)))


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_pillow_takes_either_axis_first_and_we_the_rows(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (before[1], before[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    pillows = np.asarray(image.resize(after, Image.Resampling.BICUBIC)).astype(int)
    ours = np.asarray(stretched(image, after, "bicubic")).astype(int)
    assert np.abs(ours - pillows).mean() < 1  # the same picture, up to what the passes round


def test_a_part_of_an_axis_has_the_weights_of_the_whole() -> None:
    whole, part = kernel(500, 341, 0, 341, "bicubic"), kernel(500, 341, 21, 299, "bicubic")
    np.testing.assert_array_equal(part.first, whole.first[21:320])
    np.testing.assert_array_equal(part.weight, whole.weight[21:320])


def test_a_tall_strip_takes_little_memory() -> None:
    strip = Image.new("RGB", (1, 2_000_000))  # rows first, it would be 299 x 2 million pixels
    assert stretched(strip, (299, 299), "bicubic").size == (299, 299)
