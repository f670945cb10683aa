"""From photos with several faces to predictions, with a backbone that chooses one of them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from embedcache.extraction.face_finder import FaceFinder
from embedcache.store.cache import Cache
from embedcache.store.faces import Faces
from tests import stand_in

MakePhotos = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
CENTRAL, CORNER = (34.0, 28.0, 60.0, 54.0), (0.0, 0.0, 44.0, 44.0)


class TwoFaces(stand_in.Detector):
    """Finds a large face in the corner of every photo, and a smaller one in its middle."""

    def detect(self, pictures: Sequence[Image.Image]) -> Faces:
        n = len(pictures)
        return Faces(
            offsets=2 * np.arange(n + 1, dtype=np.int64),
            box=np.tile(np.array([CORNER, CENTRAL], np.float32), (n, 1)),
            probability=np.full(2 * n, 0.99, np.float32),
            landmark=np.zeros((2 * n, 5, 2), np.float32),
        )


@pytest.fixture(autouse=True)
def two_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaceFinder, "detector", TwoFaces())


@pytest.mark.parametrize("choice", ["central-face", "largest-face"])
def test_a_head_of_a_chosen_face_goes_from_photos_to_predictions(
    run: Run, tiny_weights: Path, make_photos: MakePhotos, tmp_path: Path, choice: str
) -> None:
    photos, cache, head = make_photos(40), tmp_path / "c", tmp_path / "head"
    name = f"local-dir:{tiny_weights}@{choice}"
    status, out, err = run("extract", photos, "--cache", cache, "--backbone", name, "--json")
    assert status == 0, err
    space = json.loads(out)["spaces"][0]
    assert (space["backbone"], space["embedded"]) == (f"local-dir:tiny@{choice}", 40)

    ids = [f"p{i:03}.jpg" for i in range(40)]
    vectors, found = Cache.open(cache).vectors(name, ids)
    assert found.all()
    table = pl.DataFrame({"photo_id": ids, "score": vectors[:, 0], "bright": ["yes", "no"] * 20})
    table.write_csv(tmp_path / "labels.csv")
    fit = ("fit-head", "--cache", cache, "--labels", tmp_path / "labels.csv", "--target", "score")
    words = ("--backbone", f"local-dir:tiny@{choice}", "--head", "ridge", "--out", head)
    status, _, err = run(*fit, *words)
    assert status == 0, err
    other = "largest-face" if choice == "central-face" else "central-face"
    status, _, err = run(*fit, "--backbone", f"local-dir:tiny@{other}", "--out", tmp_path / "no")
    assert (status, f"it holds local-dir:tiny@{choice}#" in err) == (1, True), err
    faces = ("--faces", 1, "--out", tmp_path / "no")
    status, _, err = run(*fit, "--backbone", f"local-dir:tiny@{choice}", *faces)
    assert (status, "no labelled photo has exactly 1 face(s)" in err) == (1, True), err

    new = make_photos(12, "new", size=(100, 84))
    status, out, err = run(
        "predict", head, new, "--cache", cache, "--out", tmp_path / "p.csv", "--json"
    )
    assert status == 0, err
    assert (json.loads(out)["predicted"], json.loads(out)["missing"]) == (12, {})
    opened = Cache.open(cache)
    [space] = opened.spaces()
    assert space.names == (f"local-dir:tiny@{choice}",)
    fresh, found = opened.vectors(name, [f"p{i:03}.jpg" for i in range(12)], scope=scope_of(opened))
    assert found.all()
    predicted = pl.read_csv(tmp_path / "p.csv")["prediction"].to_numpy()
    assert np.corrcoef(predicted, fresh[:, 0])[0, 1] > 0.5


def scope_of(cache: Cache) -> str:
    """The place of the photos called new."""
    return next(scope for scope in cache.photo_table().scopes if scope.startswith("new-"))


def test_each_choice_sees_the_pixels_of_its_own_face(
    run: Run, tiny_weights: Path, make_photos: MakePhotos, tmp_path: Path
) -> None:
    """Black out all but one face: the choice of that face changes nothing, the other one does."""
    whole, dark, cache = tmp_path / "whole", tmp_path / "dark", tmp_path / "c"
    whole.mkdir()
    dark.mkdir()
    kept = (20, 16, 74, 68)  # the face in the middle and what a crop takes around it
    for path in make_photos(1).iterdir():
        photo = Image.open(path)
        black = Image.new("RGB", photo.size)
        black.paste(photo.crop(kept), kept[:2])
        photo.save(whole / "p.png")  # lossless: what is kept stays equal
        black.save(dark / "p.png")
    names = [f"local-dir:{tiny_weights}@{choice}" for choice in ("central-face", "largest-face")]
    words = [word for name in names for word in ("--backbone", name)]
    for folder in (whole, dark):
        status, _, err = run("extract", folder, "--cache", cache, *words)
        assert status == 0, err
    opened = Cache.open(cache)
    scopes = sorted({*opened.photo_table().scopes})
    same = []
    for name in names:
        one, other = (opened.vectors(name, ["p.png"], scope=scope)[0] for scope in scopes)
        same.append(bool(np.allclose(one, other, atol=1e-4)))
    assert same == [True, False]
