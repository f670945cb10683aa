"""Decoding and resizing of large and small JPEGs. Run: python benchmarks/decode.py

The benchmark makes its own JPEGs. The first row of each pair is what a plain loop does: Pillow's
full decode, then resize and crop to 299 x 299. Runs alternate and ratios are of medians.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rounds import medians
from embedcache.photos import images
from embedcache.spec import Preprocessing

Pixels = NDArray[np.uint8]
NETWORK = Preprocessing(
    size=(299, 299),
    resize="shortest",
    crop_fraction=0.875,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    decode=images.VERSION,
)
NEED = 341  # floor(299 / 0.875)


def jpeg(width: int, height: int, **options: bool) -> bytes:
    """A photo-like JPEG: smooth structure at several scales, and noise."""
    rng = np.random.default_rng(0)
    picture = np.zeros((height, width, 3))
    for scale in (8, 32, 128, 512):
        small = rng.normal(
            0, 20, (max(2, height * scale // 4096), max(2, width * scale // 4096), 3)
        )
        layer = Image.fromarray(np.clip(small + 128, 0, 255).astype(np.uint8))
        picture += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) - 128.0
    picture += 128 + rng.normal(0, 4, (height, width, 1))
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def full(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return images.resize_crop(image.convert("RGB"), NETWORK)


def reduced(data: bytes) -> Pixels:
    return images.resize_crop(images.decode(data, at_least=NEED), NETWORK)


def repeat(side: Callable[[bytes], Pixels], data: bytes, n: int) -> None:
    for _ in range(n):
        side(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    workers = os.cpu_count() or 1
    cases = {
        "12 megapixels, baseline": (jpeg(4032, 3024), 2),
        "12 megapixels, progressive": (jpeg(4032, 3024, progressive=True), 2),
        "500 x 500": (jpeg(500, 500), 60),
    }
    print(f"decode + resize to 299 x 299, {asked.rounds} rounds, {workers} threads in the last row")
    print(f"{'':28}{'':26}{'ms/photo':>10}{'ratio':>8}")
    with ThreadPoolExecutor(workers) as pool:
        for case, (data, n) in cases.items():
            sides: dict[str, Callable[[], object]] = {
                "Pillow, full decode": partial(repeat, full, data, n),
                "embedcache": partial(repeat, reduced, data, n),
                "embedcache, all threads": partial(
                    lambda photos: list(pool.map(reduced, photos)), [data] * n * workers
                ),
            }
            took = medians(sides, rounds=asked.rounds)
            reference = took["Pillow, full decode"] / n
            for side, seconds in took.items():
                each = seconds / n / (workers if "threads" in side else 1)
                print(f"{case:28}{side:26}{1000 * each:10.2f}{reference / each:7.2f}x")
                case = ""


if __name__ == "__main__":
    main()
