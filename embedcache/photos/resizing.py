"""Decoded photos -> a network's input, with Pillow. No torch."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedcache.photos.resampling import FILTERS, Uncut
from embedcache.spec import Preprocessing

MOST_SIDE = 1024
"""Pixels of the longer side of a photo that a device resizes; sending a larger one takes longer."""
_LONG = 8  # a photo longer than this many times its shorter side is resized in its centre only


def needed_side(preprocessing: Preprocessing) -> int:
    """Pixels of a photo's shorter side that `resize_crop` makes use of."""
    return math.ceil(max(preprocessing.size) / preprocessing.crop_fraction)


def resize_crop(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize and centre-crop as timm's evaluation transform does, pixel for pixel.

    "shortest": the shorter side to floor(size / crop_fraction), then the centre.
    "squash": each side to floor(size / crop_fraction), then the centre; all of the photo when
        crop_fraction is 1.
    A photo more than eight times longer than wide is resized in its central part only: the full
    strip could take any amount of memory, and its ends are cropped away.
    Returns (height, width, 3).
    """
    height, width = preprocessing.size
    size, left, top = _place(image.size, preprocessing)
    if _is_strip(image.size) and preprocessing.resize == "shortest":
        across, down = (old / new for old, new in zip(image.size, size, strict=True))
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return np.asarray(_part(image, box, (width, height), preprocessing.interpolation))
    resized = stretched(image, size, preprocessing.interpolation)
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def can_stay_uncut(size: tuple[int, int], preprocessing: Preprocessing) -> bool:
    """Whether a device may resize photos of (width, height) `size`."""
    small = max(size) <= MOST_SIDE and not _is_strip(size)
    return small and preprocessing.interpolation in FILTERS


def place(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> Uncut:
    """A decoded photo, uint8 (h, w, 3), with what `resize_crop` would make of it."""
    height, width = pixels.shape[:2]
    (across, down), left, top = _place((width, height), preprocessing)
    return Uncut(pixels, (width, across, left), (height, down, top), preprocessing.interpolation)


def stretched(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """Resize to (width, height), rows first but for photos more than eight times higher than wide.

    Pillow before 13 resizes rows first; since then it takes columns first where that is less work,
    and every fourth pixel or so of such a photo is another by one (its pull request 9549). A spec
    may not mean other pixels with another Pillow.
    """
    resample = Image.Resampling[interpolation.upper()]
    tall = image.height > _LONG * image.width  # rows first, these would take any amount of memory
    between = (image.width, size[1]) if tall else (size[0], image.height)
    return image.resize(between, resample).resize(size, resample)


def _part(
    image: Image.Image,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    interpolation: str,
) -> Image.Image:
    """Resize what is inside of a box, rows first, without resizing the rest."""
    resample = Image.Resampling[interpolation.upper()]
    scale = max(1.0, (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
    seen = math.ceil(3 * scale) + 1  # Lanczos, the widest filter, sees 3 pixels
    left, top = (max(0, math.floor(edge) - seen) for edge in box[:2])
    right = min(image.width, math.ceil(box[2]) + seen)
    bottom = min(image.height, math.ceil(box[3]) + seen)
    near = image.crop((left, top, right, bottom))
    rows = near.resize(
        (size[0], near.height), resample, box=(box[0] - left, 0, box[2] - left, near.height)
    )
    return rows.resize(size, resample, box=(0, box[1] - top, size[0], box[3] - top))


def _place(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[tuple[int, int], int, int]:
    """(width, height) to which a photo of `size` is resized, and the left and top of its centre."""
    height, width = preprocessing.size
    target = (
        math.floor(width / preprocessing.crop_fraction),
        math.floor(height / preprocessing.crop_fraction),
    )
    whole = target if preprocessing.resize == "squash" else _cover(size, target)
    return whole, round((whole[0] - width) / 2), round((whole[1] - height) / 2)


def _is_strip(size: tuple[int, int]) -> bool:
    return max(size) > _LONG * min(size)


def _cover(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that covers `target` with the photo's aspect, rounded as timm rounds."""
    width, height = size
    if target[0] == target[1]:
        short = target[0]  # torchvision's Resize truncates, timm's ResizeKeepRatio rounds
        if width <= height:
            return short, int(short * height / width)
        return int(short * width / height), short
    ratio = min(height / target[1], width / target[0])
    return round(width / ratio), round(height / ratio)
