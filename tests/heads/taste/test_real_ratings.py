"""On real ratings a taste beats the common part, also with the viewer's bias."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest

from heads.dataset import split
from heads.taste import trial
from heads.taste.ratings import Ratings


@pytest.mark.real
def test_a_taste_beats_the_common_part_from_20_ratings_on(real_data: Path) -> None:
    folder = real_data / "mebeauty"
    folder = folder if folder.is_dir() else real_data / "data" / "mebeauty"
    with (folder / "facenet512_ids.csv").open() as file:
        place = {row["user_id"]: k for k, row in enumerate(csv.DictReader(file))}
    with (folder / "beauty_ratings.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["user_id"] in place]
    raters = sorted({row["rater_id"] for row in rows})
    groups = np.arange(len(place))
    names = [hashlib.sha256(name.encode()).hexdigest() for name in place]
    ratings = Ratings(
        vectors=np.load(folder / "facenet512.npy"),
        subset=split.by_hash(groups, names, seed=0),
        raters=tuple(raters),
        rater=np.array([raters.index(row["rater_id"]) for row in rows]),
        photo=np.array([place[row["user_id"]] for row in rows]),
        value=np.array([float(row["rating"]) for row in rows]),
    )
    found = trial.run(ratings.checked(), seed=0, progress=lambda done, whole: None)
    for shown in (20, 50, None):
        assert found.difference("taste", "common", shown).high < 0
        assert found.difference("taste", "common + bias", shown).high < 0
        assert found.difference("taste", "own head", shown).high < 0
    newcomer = found.difference("taste", "common", 0)
    assert (newcomer.value, newcomer.high) == (0, 0)
