"""A small study with planted vectors, for the tests of study, tables, figures and page."""

import atexit
import functools
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from embedcache.spec import FaceCrop, Json, Preprocessing, Spec
from embedcache.store.cache import Cache
from embedcache.store.faces import Faces
from heads.labels import simulate
from heads.study import run as study
from heads.study.design import Study
from heads.study.results import Results

DETECTOR: dict[str, Json] = {"network": "planted"}
N = 420


def planted(folder: Path, *, n: int = N) -> Cache:
    """users.csv, swipes.csv and photos in `folder`, and a cache whose vectors know the truth.

    Backbone "whole" sees appeal and gender through noise; "net@face" sees them clearly, on the
    photos with one face (five of six).
    """
    rng = np.random.default_rng(7)
    appeal, gender = rng.normal(0, 1, n), rng.integers(0, 2, n)
    truth = 1 / (1 + np.exp(-(0.8 * appeal - 0.4 + 0.3 * gender)))
    ids = [f"u{i:04d}" for i in range(n)]
    users = pl.DataFrame(
        {
            "user_id": ids,
            "gender": np.array(["F", "M"])[gender],
            "photo": [f"photos/{name}.jpg" for name in ids],
            simulate.TRUTH: truth,
        }
    )
    users.write_csv(folder / "users.csv")
    log = simulate.swipes(pl.DataFrame({"user_id": ids, "probability": truth}), mean_swipes=60)
    log.write_csv(folder / "swipes.csv")
    _paint(folder / "photos", ids, truth, gender)
    contents = np.array([list(hashlib.sha256(name.encode()).digest()) for name in ids], np.uint8)
    cache = Cache.open(folder / "photos.cache", create=True)
    cache.record_photos("users.csv-12345678", ids, contents)
    n_faces = 1 + (np.arange(n) % 6 == 5)
    faces = cache.face_space(DETECTOR, create=True)
    with faces.writer(n_rows=n, about={}) as detected:
        detected.add(contents, _faces(n_faces))
    signal = np.stack([appeal, gender - 0.5], 1) @ rng.normal(0, 1, (2, 24))
    for name, noise in (("whole", 2.5), ("net@face", 0.8)):
        vectors = (signal + noise * rng.normal(0, 1, signal.shape)).astype(np.float32)
        seen = n_faces == 1 if name.endswith("@face") else n_faces > 0
        space = cache.space(_spec(name, detector=faces.digest), create=True)
        with space.writer(n_rows=n, name=name, about={}) as embedded:
            embedded.add(contents[seen], vectors[seen])
            embedded.fail(contents[~seen], ["several_faces"] * int((~seen).sum()))
    return cache


def _spec(name: str, *, detector: str) -> Spec:
    return Spec(
        kind="computed",
        architecture=name,
        dim=24,
        weights="a" * 64,
        preprocessing=Preprocessing(
            size=(32, 32),
            resize="squash",
            crop_fraction=1.0,
            interpolation="bilinear",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            decode="1",
        ),
        face=FaceCrop(detector=detector, select="only", margin=0.0)
        if name.endswith("@face")
        else None,
    )


def _faces(counts: NDArray[np.int64]) -> Faces:
    total = int(counts.sum())
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    box = np.tile(np.array([40, 50, 120, 150], np.float32), (total, 1))
    return Faces(offsets, box, np.ones(total, np.float32), np.zeros((total, 5, 2), np.float32))


def _paint(folder: Path, ids: list[str], truth: Any, gender: Any) -> None:
    folder.mkdir()
    for name, value, kind in zip(ids, truth, gender, strict=True):
        photo = Image.new("RGB", (160, 200), (int(255 * value), 90, 160 if kind else 60))
        ImageDraw.Draw(photo).ellipse((40, 50, 120, 150), fill=(230, int(255 * value), 180))
        photo.save(folder / f"{name}.jpg")


STUDY = """
title = "A planted study"
users = "users.csv"
swipes = "swipes.csv"
report_by = ["gender"]

[[target]]
column = "like_ratio"
weight = "swipes"

[[target]]
column = "gender"

[[subset]]
name = "ALL"

[[subset]]
name = "1BBOX"
faces = 1

[[backbone]]
name = "whole"
label = "Inception"

[[backbone]]
name = "net@face"
label = "FaceNet"

[fit]
epochs = 8
learning_rates = [1e-3, 1e-2]
hidden = 32
"""


@functools.cache
def ran() -> tuple[Path, Results]:
    """The planted study, run once for all tests that only look at it, and its folder."""
    folder = Path(tempfile.mkdtemp(prefix="embedcache-study-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    cache = planted(folder)
    (folder / "study.toml").write_text(STUDY)
    chosen = Study.read(folder / "study.toml")
    return folder, study.run(chosen, cache, lambda _: None, folder / "out")
