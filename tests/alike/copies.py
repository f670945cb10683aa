"""Photos and copies of them, as people make them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def make(folder: Path, n: int, *, seed: int = 0) -> list[Path]:
    """n photos, every one different: shapes on a gradient, saved as a camera would."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        size = (int(rng.integers(120, 200)), int(rng.integers(120, 200)))
        coarse = rng.integers(0, 256, (int(rng.integers(3, 9)), int(rng.integers(3, 9)), 3))
        picture = Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        path = folder / f"p{i:03}.jpg"
        picture.save(path, quality=92)
        made.append(path)
    return made


def recompressed(path: Path, out: Path) -> None:
    Image.open(path).save(out, quality=60)


def resized(path: Path, out: Path) -> None:
    image = Image.open(path)
    size = (round(image.width * 0.8), round(image.height * 0.8))
    image.resize(size, Image.Resampling.BICUBIC).save(out, quality=85)


def cropped(path: Path, out: Path) -> None:
    image = Image.open(path)
    across, down = round(image.width * 0.05), round(image.height * 0.05)
    box = (across, down, image.width - across, image.height - down)
    image.crop(box).save(out, quality=85)


PLANTED: dict[str, Callable[[Path, Path], None]] = {
    "recompressed": recompressed,
    "resized": resized,
    "cropped": cropped,
}


def plant(photos: list[Path], folder: Path) -> dict[str, str]:
    """Copies of photos in `folder`, changed in turn; {file name of the copy: of its original}."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for i, path in enumerate(photos):
        name, change = list(PLANTED.items())[i % len(PLANTED)]
        change(path, folder / f"{name}-{path.name}")
        found[f"{name}-{path.name}"] = path.name
    return found
