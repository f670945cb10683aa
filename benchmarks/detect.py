"""How fast is face detection, against facenet-pytorch on one photo at a time?

Run: python benchmarks/detect.py [--parity [--slice 1/4] | --compare mebeauty|lfw]

With --parity nothing is timed: every photo goes through both, and each difference is listed.
--slice 1/4 takes a part of the photos; the counts of all parts add up.
With --compare, MTCNN and BlazeFace see every photo of a set: how many faces, and where.

Photos are MEBeauty's if EMBEDCACHE_REAL_DATA is set, otherwise the embedded example's. Both sides
get the same decoded photos; runs alternate (A B A B) and ratios are of medians.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rounds import medians
from embedcache import example
from embedcache.faces import blazeface
from embedcache.faces.detector import Detector
from embedcache.photos import images
from embedcache.store.faces import Faces


def photos(n: int) -> tuple[str, list[Image.Image]]:
    """Up to n decoded photos of at most a megapixel, and the name of their source."""
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


def parity(detector: Detector, package: Any, part: str) -> None:
    """Compare both on all MEBeauty photos, or a part of them, and list every difference."""
    folder = Path(os.environ["EMBEDCACHE_REAL_DATA"]) / "data" / "mebeauty" / "photos"
    number, n_parts = map(int, part.split("/"))
    paths = sorted(folder.iterdir())[number - 1 :: n_parts]
    n_same, n_faces, close, least, furthest = 0, Counter[int](), 0, 1.0, 0.0
    matched = 0
    for start in range(0, len(paths), 16):
        some = [images.decode(path.read_bytes()) for path in paths[start : start + 16]]
        found = detector.detect(some)
        for i, photo in enumerate(some):
            boxes, probabilities = package.detect(photo)
            n = 0 if boxes is None else len(boxes)
            mine = found.of(i)
            n_faces[n] += 1
            if len(mine.box) != n:
                print(f"{paths[start + i].name}: {len(mine.box)} faces, the package {n}")
                continue
            n_same += 1
            if n:
                shared = overlap(mine.box, boxes)
                matched += n
                close += int((shared >= 0.95).sum())
                least = min(least, float(shared.min()))
                apart = np.abs(mine.probability - probabilities.astype(np.float32)).max()
                furthest = max(furthest, float(apart))
                if shared.min() < 0.95:
                    print(f"{paths[start + i].name}: IoU {shared.round(4).tolist()}")
    print(
        f"part {part}: same number of faces on {n_same} of {len(paths)} photos; {matched} matched "
        f"boxes, IoU at least 0.95 on {close}, least {least:.7f}; largest difference in "
        f"probability {furthest:.1e}; the package's faces on a photo: "
        f"{dict(sorted(n_faces.items()))}"
    )


def compare(name: str) -> None:
    """The faces that MTCNN and BlazeFace find on all photos of a set, and their time."""
    folder = Path(os.environ["EMBEDCACHE_REAL_DATA"]) / "data" / name / "photos"
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    detectors: dict[str, Detector | blazeface.BlazeFace] = {
        "mtcnn": Detector(),
        "blazeface": blazeface.BlazeFace(),
    }
    found: dict[str, list[Faces]] = {side: [] for side in detectors}
    seconds = dict.fromkeys(detectors, 0.0)
    for start in range(0, len(paths), 32):
        some = [images.decode(path.read_bytes()) for path in paths[start : start + 32]]
        for side, detector in detectors.items():
            began = time.process_time()
            found[side].append(detector.detect(some))
            seconds[side] += time.process_time() - began
    faces = {side: Faces.concatenate(parts) for side, parts in found.items()}
    print(f"{len(paths)} photos ({name}), processor time on {torch.get_num_threads()} threads\n")
    for side, each in faces.items():
        counts = dict(sorted(Counter(each.counts.clip(0, 3).tolist()).items()))
        one = (each.counts == 1).mean()
        print(f"{side:12}{1000 * seconds[side] / len(paths):8.1f} ms/photo   one face on {one:.4f}")
        print(f"{'':12}photos by faces (3: or more): {counts}")
    mine, theirs = faces["mtcnn"], faces["blazeface"]
    both = np.flatnonzero((mine.counts == 1) & (theirs.counts == 1))
    shared = overlap(theirs.take(both).box, mine.take(both).box)
    sides = [(f.take(both).box[:, 2:] - f.take(both).box[:, :2]) for f in (theirs, mine)]
    wider = np.median(sides[0] / sides[1], axis=0)
    print(
        f"\nthe same number of faces on {(mine.counts == theirs.counts).sum()}; one face by both "
        f"on {len(both)}: IoU median {np.median(shared):.3f}, a twentieth below "
        f"{np.quantile(shared, 0.05):.3f}; BlazeFace's box is {wider[0]:.2f} x as wide and "
        f"{wider[1]:.2f} x as high (medians)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parity", action="store_true")
    parser.add_argument("--slice", default="1/1", metavar="I/N")
    parser.add_argument("--compare", choices=("mebeauty", "lfw"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")  # the package's own
    if asked.compare:
        compare(asked.compare)
        return
    from facenet_pytorch import MTCNN

    package = MTCNN(keep_all=True)
    if asked.parity:
        parity(Detector(), package, asked.slice)
        return
    name, some = photos(asked.photos)
    detector, coarse = Detector(), Detector(min_face_size=40)
    sides: dict[str, Callable[[], object]] = {
        "facenet-pytorch, one at a time": lambda: [package.detect(photo) for photo in some],
        "embedcache": lambda: detector.detect(some),
        "embedcache, min_face_size=40": lambda: coarse.detect(some),
    }
    if not blazeface.missing():
        other = blazeface.BlazeFace()
        sides["embedcache, BlazeFace"] = lambda: other.detect(some)
    for run in sides.values():  # warm
        run()
    took = medians(sides, rounds=asked.rounds)

    print(f"{len(some)} photos ({name}), CPU, {asked.threads} threads, {asked.rounds} rounds\n")
    reference = took["facenet-pytorch, one at a time"]
    print(f"{'':32}{'ms/photo':>10}{'photos/s':>10}{'ratio':>8}")
    for side, median in took.items():
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
