"""Face detection against facenet-pytorch, one photo at a time. Run: python benchmarks/detect.py

Photos are the MEBeauty ones where EMBEDCACHE_REAL_DATA names them, else the embedded example.
Both sides take the same decoded photos; runs alternate (A B A B) and ratios are of their medians.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from embedcache import example, images
from embedcache.faces import Detector


def photos(n: int) -> tuple[str, list[Image.Image]]:
    """Up to n decoded photos of at most a megapixel, and where they are from."""
    if "EMBEDCACHE_REAL_DATA" in os.environ:
        folder = Path(os.environ["EMBEDCACHE_REAL_DATA"]) / "data" / "mebeauty" / "photos"
        found, name = sorted(folder.iterdir()), "MEBeauty"
    else:
        made = example.make(tempfile.mkdtemp(), n_photos=n)
        found, name = sorted((made.folder / "photos").iterdir()), "embedded example"
    decoded = [images.decode(path.read_bytes()) for path in found[:: max(1, len(found) // n)]]
    return name, [photo for photo in decoded if photo.width * photo.height <= 1_000_000][:n]


def overlap(mine: NDArray[np.float32], theirs: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of boxes row by row, both (k, 4)."""
    a, b = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    shared = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(
        1
    )
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    found: NDArray[np.float64] = shared / union
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")  # the package's own
    from facenet_pytorch import MTCNN

    name, some = photos(asked.photos)
    detector, coarse = Detector(), Detector(min_face_size=40)
    package = MTCNN(keep_all=True)
    sides: dict[str, Callable[[], object]] = {
        "facenet-pytorch, one at a time": lambda: [package.detect(photo) for photo in some],
        "embedcache": lambda: detector.detect(some),
        "embedcache, min_face_size=40": lambda: coarse.detect(some),
    }
    for run in sides.values():  # warm
        run()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(asked.rounds):
        for side, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - start)

    print(f"{len(some)} photos ({name}), CPU, {asked.threads} threads, {asked.rounds} rounds\n")
    reference = statistics.median(seconds["facenet-pytorch, one at a time"])
    print(f"{'':32}{'ms/photo':>10}{'photos/s':>10}{'ratio':>8}")
    for side, times in seconds.items():
        median = statistics.median(times)
        each = 1000 * median / len(some)
        print(f"{side:32}{each:10.1f}{len(some) / median:10.1f}{reference / median:7.2f}x")

    found = detector.detect(some)
    expected = [package.detect(photo)[0] for photo in some]
    same = [
        i for i, box in enumerate(expected) if found.counts[i] == (0 if box is None else len(box))
    ]
    both = [overlap(found.of(i).box, expected[i]) for i in same if expected[i] is not None]
    shared = np.concatenate(both) if both else np.ones(1)
    print(
        f"\nsame number of faces: {len(same)} of {len(some)};  matched boxes: {len(shared)}, "
        f"IoU at least 0.95 on {(shared >= 0.95).sum()}, least {shared.min():.4f}"
    )


if __name__ == "__main__":
    main()
