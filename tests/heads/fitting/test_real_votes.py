"""On real votes the FC heads are at or about ridge's error, and gender is predicted."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import heads
from heads.dataset.arrays import from_arrays


@pytest.mark.real
def test_heads_on_facenet_vectors_reach_the_published_figures(real_data: Path) -> None:
    folder = real_data / "mebeauty"
    folder = folder if folder.is_dir() else real_data / "data" / "mebeauty"
    with (folder / "facenet512_ids.csv").open() as file:
        ids = [row["user_id"] for row in csv.DictReader(file)]
    with (folder / "users.csv").open() as file:
        gender = {row["user_id"]: row["gender"] for row in csv.DictReader(file)}
    votes: dict[str, list[int]] = defaultdict(list)
    with (folder / "swipes.csv").open() as file:
        for row in csv.DictReader(file):
            votes[row["recipient_id"]].append(int(row["liked"]))
    kept = [place for place, name in enumerate(ids) if votes[name]]
    vectors = np.load(folder / "facenet512.npy")[kept]
    names = [ids[place] for place in kept]
    ratio = [float(np.mean(votes[name])) for name in names]
    count = [len(votes[name]) for name in names]
    like = heads.fit(from_arrays(vectors, ratio, weights=count, ids=names, groups=names))
    error = {row.head: row.value for row in like.rows}
    # 280 dev rows choose and 290 test rows judge: single rows differ by luck, the best one less so.
    assert all(error[name] < 1.05 * error["ridge"] for name in ("0fc", "1fc", "2fc"))
    assert error[like.best] < error["ridge"]
    assert error["ridge"] < 0.6 * error["const"]
    assert 0.008 < like.noise_floor < 0.0095
    labels = [gender[name] for name in names]
    gender_fit = heads.fit(from_arrays(vectors, labels, ids=names, groups=names))
    right = {row.head: row.value for row in gender_fit.rows if row.metric == "accuracy"}
    assert right["2fc"] > 0.94 > right["logistic"]
