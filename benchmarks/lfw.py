"""Do two photos show one person? FaceNet by the command line on LFW's pairs, and facenet-pytorch.

Run: EMBEDCACHE_REAL_DATA=... python benchmarks/lfw.py [--cache DIR] [--peer]

Accuracy of pairs.csv (fold, a, b, same) by the cosine of two vectors. The threshold of each fold is
the best one of the other folds. With --peer, facenet-pytorch's own path (its MTCNN and crop with
the defaults, photo by photo, the same weights) runs on the same photos.
Published for these weights: 0.9905 over ten folds, each photo embedded twice (mirrored).
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from embedcache.backbones import facenet
from embedcache.store.cache import Cache

NAME = "facenet:casia-webface"
CROPS = ("face", "central-face", "largest-face")
Vectors = Mapping[str, NDArray[np.float32]]


def best_threshold(similarity: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """The threshold with the most right answers; halfway between two similarities."""
    order = np.argsort(similarity)
    found, truth = similarity[order], same[order].astype(int)
    right = truth.sum() + np.concatenate([[0], np.cumsum(1 - 2 * truth)])
    k = int(right.argmax())
    edges = np.concatenate([found[:1] - 1, (found[1:] + found[:-1]) / 2, found[-1:] + 1])
    return float(edges[k])


def accuracy(
    pairs: Sequence[Mapping[str, str]], vectors: Vectors
) -> tuple[int, float, list[float]]:
    """Pairs that have both vectors, the accuracy over them, and that of each fold."""
    both = [pair for pair in pairs if pair["a"] in vectors and pair["b"] in vectors]
    similarity = np.array([float(vectors[p["a"]] @ vectors[p["b"]]) for p in both])
    same = np.array([p["same"] == "1" for p in both])
    fold = np.array([p["fold"] for p in both])
    right = np.zeros(len(both), bool)
    for one in np.unique(fold):
        here = fold == one
        right[here] = (similarity[here] >= best_threshold(similarity[~here], same[~here])) == same[
            here
        ]
    return len(both), float(right.mean()), [float(right[fold == f].mean()) for f in np.unique(fold)]


def ours(photos: Path, names: Sequence[str], cache: Path) -> dict[str, Vectors]:
    """Vectors by crop, from `embedcache extract` on the folder."""
    backbones = [word for crop in CROPS for word in ("--backbone", f"{NAME}@{crop}")]
    command = [sys.executable, "-m", "cli", "extract", str(photos), "--cache", str(cache)]
    subprocess.run([*command, *backbones], check=True, stdout=subprocess.DEVNULL)
    opened = Cache.open(cache)
    found: dict[str, Vectors] = {}
    for crop in CROPS:
        backbone = NAME if crop == "face" else f"{NAME}@{crop}"
        vectors, there = opened.vectors(backbone, list(names))
        rows = zip(names, vectors, there, strict=True)
        found[f"embedcache, @{crop}"] = {name: vector for name, vector, ok in rows if ok}
    return found


def package(photos: Path, names: Sequence[str]) -> Vectors:
    """Vectors by facenet-pytorch's own detection and crop."""
    import torch

    warnings.simplefilter("ignore")  # the package's own
    from facenet_pytorch import MTCNN

    detector = MTCNN()
    network = facenet.load("casia-webface", decode="").model.eval()
    found = {}
    with torch.inference_mode():
        for name in names:
            crop = detector(Image.open(photos / name).convert("RGB"))
            if crop is not None:
                found[name] = network(crop[None])[0].numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="kept between runs; else a temporary one")
    parser.add_argument("--peer", action="store_true")
    asked = parser.parse_args()
    if "EMBEDCACHE_REAL_DATA" not in os.environ:
        print("EMBEDCACHE_REAL_DATA names no folder: nothing to measure")
        return
    folder = Path(os.environ["EMBEDCACHE_REAL_DATA"]) / "data" / "lfw"
    with (folder / "pairs.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))
    names = sorted({pair[side] for pair in pairs for side in "ab"})
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        found = ours(folder / "photos", names, asked.cache or Path(scratch) / "lfw.cache")
    if asked.peer:
        found["facenet-pytorch, its defaults"] = package(folder / "photos", names)
    print(f"LFW, {len(pairs)} pairs, {len(names)} photos, {time.perf_counter() - started:.0f} s\n")
    print(f"{'':32}{'pairs':>8}{'accuracy':>10}   by fold")
    for side, vectors in found.items():
        n, share, folds = accuracy(pairs, vectors)
        each = ", ".join(f"{fold:.4f}" for fold in folds)
        print(f"{side:32}{n:8}{share:10.4f}   {each}")


if __name__ == "__main__":
    main()
