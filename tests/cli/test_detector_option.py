"""--detector: each detector's faces are a space of their own, and a head finds its own again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache.faces import blazeface, named
from embedcache.spec import Spec
from embedcache.store.cache import Cache
from embedcache.store.faces import Faces
from tests import stand_in

Run = Callable[..., tuple[int, str, str]]


class OneSquare(stand_in.Detector):
    """Finds one square face on every photo, under BlazeFace's digest."""

    document = blazeface.DOCUMENT
    digest = blazeface.digest()

    def detect(self, pictures: Sequence[Image.Image]) -> Faces:
        n = len(pictures)
        return Faces(
            offsets=np.arange(n + 1, dtype=np.int64),
            box=np.tile(np.array([(4, 4, 40, 40)], np.float32), (n, 1)),
            probability=np.full(n, 0.9, np.float32),
            landmark=np.zeros((n, 5, 2), np.float32),
        )


@pytest.fixture
def square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        named, "load", lambda name, device="cpu": OneSquare() if name == "blazeface" else Two()
    )


class Two(stand_in.Detector):
    """MTCNN's stand-in."""


def test_faces_of_two_detectors_are_two_spaces_and_a_head_finds_its_own(
    run: Run, tiny_weights: Path, make_photos: Any, tmp_path: Path, square: None
) -> None:
    photos, cache = make_photos(40), tmp_path / "c"
    name = f"local-dir:{tiny_weights}@face"
    words = ("extract", photos, "--cache", cache, "--backbone", name, "--json")
    for _ in range(2):  # the second run recalls both specs and computes nothing
        for detector in ("blazeface", "mtcnn"):
            status, out, err = run(*words, "--detector", detector)
            assert status == 0, err
        assert json.loads(out)["spaces"][0]["wanted"] == 40
    assert json.loads(out)["spaces"][0]["embedded"] == 0

    opened = Cache.open(cache)
    specs: list[Spec] = [space.spec for space in opened.spaces()]
    assert len({spec.digest for spec in specs}) == 2
    assert {named.name_of(spec.face.detector) for spec in specs if spec.face} == {
        "mtcnn",
        "blazeface",
    }
    status, out, _ = run("info", cache, "--json")
    documents = [faces["document"]["detector"] for faces in json.loads(out)["faces"]]
    assert "blazeface-1" in documents
    assert "blazeface-1" in run("info", cache)[1]

    [own] = [s.digest for s in specs if s.face and s.face.detector == blazeface.digest()]
    status, _, err = run("extract", photos, "--cache", cache, "--backbone", name, "--detector", "x")
    assert status == 2
    assert "blazeface" in err

    new = make_photos(4, "new", size=(100, 84))
    ids = [f"p{i:03}.jpg" for i in range(40)]
    sheet = tmp_path / "labels.csv"
    sheet.write_text("photo_id,score\n" + "".join(f"{one},{i}\n" for i, one in enumerate(ids)))
    head = tmp_path / "head"
    fit = ("fit-head", "--cache", cache, "--labels", sheet, "--target", "score", "--head", "ridge")
    chosen = f"local-dir:tiny@face#{own[:8]}"
    status, _, err = run(*fit, "--backbone", chosen, "--out", head)
    assert status == 0, err
    out_file = tmp_path / "p.csv"
    status, out, err = run("predict", head, new, "--cache", cache, "--out", out_file, "--json")
    assert status == 0, err
    assert json.loads(out)["predicted"] == 4


def test_a_detector_without_a_face_crop_is_a_mistake(
    run: Run, tiny_weights: Path, make_photos: Any, tmp_path: Path
) -> None:
    words = ("extract", make_photos(2), "--cache", tmp_path / "c")
    status, _, err = run(
        *words, "--backbone", f"local-dir:{tiny_weights}", "--detector", "blazeface"
    )
    assert (status, err.count("\n")) == (1, 1)
    assert "no backbone here takes one: end its name in @face" in err
