"""A study with single ratings tries one taste per viewer, on all of its backbones alike."""

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedcache.errors import LabelsError
from embedcache.store.cache import Cache
from heads.labels.simulate import TRUTH
from heads.study import report
from heads.study import run as study
from heads.study.design import Study
from heads.study.results import Results
from heads.study.taste_shown import enough, said_of_tastes, table_of_tastes
from heads.study.tastes import KeptTaste
from heads.taste import choice, trial
from heads.taste.ratings import Ratings
from heads.taste.trial import COMMON, COMMON_BIAS, TASTE
from tests.heads.study import studies

VIEWERS = 30


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Fewer folds, ranks and penalties than a study has: a trial then takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "FOLDS", 2)
        patch.setattr(choice, "RANKS", (1,))
        patch.setattr(choice, "STRENGTHS", (60.0,))
        patch.setattr(choice, "BIAS_PENALTIES", (1.0,))
        patch.setattr(choice, "SLOPE_PENALTIES", (10.0,))
        patch.setattr(choice, "TASTE_PENALTIES", (1.0,))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted study with labels.csv, and ratings.csv whose viewers have tastes of their own."""
    folder = tmp_path_factory.mktemp("study")
    cache = studies.planted(folder, n=240)
    users = pl.read_csv(folder / "users.csv").rename({TRUTH: "like_ratio"})
    users.with_columns(person=pl.Series([f"h{i // 2}" for i in range(240)])).write_csv(
        folder / "labels.csv"
    )
    ids = users["user_id"].to_list()
    vectors, found = cache.vectors("net@face", ids)
    vectors = np.where(found[:, None], vectors, 0)
    rng = np.random.default_rng(1)
    vectors = vectors / vectors.std()
    axes = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[2]
    own = rng.normal(0, 1.2, VIEWERS)
    value = 5 + 0.5 * vectors @ axes[0] + rng.normal(0, 1, (VIEWERS, 1))
    value = value + own[:, None] * (vectors @ axes[1])
    value = value + 0.5 * rng.normal(size=value.shape)
    rows = [
        (f"v{viewer:02}", ids[photo], round(float(value[viewer, photo]), 3))
        for viewer in range(VIEWERS)
        for photo in rng.choice(240, 120, replace=False)
    ]
    pl.DataFrame(rows, ["rater_id", "photo_id", "rating"], orient="row").write_csv(
        folder / "ratings.csv"
    )
    return folder


def read(folder: Path, **changes: Any) -> Study:
    document: dict[str, Any] = {
        "labels": "labels.csv",
        "heads": ["ridge"],
        "folds": 0,
        "taste": "ratings.csv",
        "target": [{"column": "like_ratio"}],
        "subset": [{"name": "1BBOX", "faces": 1}],
        "backbone": [{"name": "net@face", "label": "FaceNet"}, {"name": "whole"}],
    }
    return Study.parse(document | changes, folder=folder)


def run(chosen: Study, out: Path, lines: list[str] | None = None) -> Results:
    cache = Cache.open(chosen.folder / "photos.cache")
    say = (lambda line: None) if lines is None else lines.append
    return study.run(chosen, cache, lambda _: None, out, progress=say)


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return run(read(folder), folder / "out")


def test_each_backbone_is_tried_on_the_photos_that_all_have(results: Results) -> None:
    assert [one.backbone for one in results.tastes] == ["FaceNet", "whole"]
    first, second = results.tastes
    assert first.n == second.n
    assert sum(side["photos"] for side in first.n.values()) == 200  # those with one face
    assert first.dropped["photo without a vector"] > 0
    assert first.spec != second.spec


def test_a_planted_taste_is_found_and_said_with_its_interval(results: Results) -> None:
    face = results.tastes[0]
    name = enough(face, COMMON_BIAS)
    assert name in ("5", "20")
    gap = face.row(TASTE, COMMON_BIAS)
    assert gap["by_ratings_interval"][name][1] < 0
    assert gap["by_ratings"]["0"] == 0
    said = said_of_tastes(face)
    assert said.startswith(f"From {name} ratings on, one taste per viewer on FaceNet predicts")
    assert f"{VIEWERS} viewers" in said


def test_without_a_clear_interval_nothing_is_claimed(results: Results) -> None:
    face = results.tastes[0]

    def with_ends(versus: str, ends: dict[str, list[float]]) -> KeptTaste:
        rows = [
            row | {"by_ratings_interval": row["by_ratings_interval"] | ends}
            if row.get("versus") == versus
            else row
            for row in face.rows
        ]
        return KeptTaste(**{
            name: getattr(face, name) for name in face.__struct_fields__
        } | {"rows": tuple(rows)})  # fmt: skip

    wide = with_ends(COMMON_BIAS, {"all": [-0.1, 0.1]})
    assert enough(wide, COMMON_BIAS) == ""
    assert "not shown to be better than the common part with the viewer's bias" in (
        said_of_tastes(wide)
    )
    late = with_ends(COMMON_BIAS, {"20": [-0.1, 0.1], "5": [-2.0, -1.0]})
    assert enough(late, COMMON_BIAS) == "50"  # not from 5 on: 20 is not clear of 0
    unknown = with_ends(COMMON_BIAS, {"all": [None, None]})  # type: ignore[list-item]
    assert enough(unknown, COMMON_BIAS) == ""
    both = with_ends(COMMON, {"all": [-0.1, 0.1]})
    rows = [{**row, "by_ratings_interval": wide.row(TASTE, COMMON_BIAS)["by_ratings_interval"]}
            if row.get("versus") == COMMON_BIAS else row for row in both.rows]  # fmt: skip
    none = KeptTaste(**{
        name: getattr(face, name) for name in face.__struct_fields__
    } | {"rows": tuple(rows)})  # fmt: skip
    assert "do not show" in said_of_tastes(none)


def test_a_second_run_tries_nothing_and_a_changed_rating_is_tried_anew(
    folder: Path, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    real = trial.run

    def counted(*words: Any, **options: Any) -> Any:
        tried.append(1)
        return real(*words, **options)

    monkeypatch.setattr(trial, "run", counted)
    lines: list[str] = []
    again = run(read(folder), folder / "out", lines)
    assert not tried
    assert again.tastes == results.tastes
    assert "a taste per viewer from FaceNet: tried before (1 of 2)" in lines
    text = (folder / "ratings.csv").read_text()
    shuffled = text.splitlines()
    shuffled[1:] = reversed(shuffled[1:])
    try:
        (folder / "ratings.csv").write_text("\n".join(shuffled))
        assert run(read(folder), folder / "out").tastes == results.tastes
        assert not tried
        (folder / "ratings.csv").write_text(text.replace(shuffled[1], "v00,u0001,9.5"))
        run(read(folder), folder / "out")
    finally:
        (folder / "ratings.csv").write_text(text)
    assert len(tried) == 2
    for path in (folder / "out" / "fits").glob("taste-*.json"):
        assert not re.search(r"v\d\d|u\d{4}", path.read_text())  # no viewer and no photo
        path.write_bytes(b"{}")
    tried.clear()
    assert run(read(folder), folder / "out").tastes[0].rows == results.tastes[0].rows
    assert len(tried) == 2


def test_an_interrupted_study_keeps_the_trials_that_are_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = trial.run, []

    def interrupted(*words: Any, **options: Any) -> Any:
        tried.append(1)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return real(*words, **options)

    monkeypatch.setattr(trial, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(read(folder), tmp_path)
    assert len(run(read(folder), tmp_path).tastes) == 2
    assert len(tried) == 3


def test_photos_of_one_person_stand_on_one_side(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, given = trial.run, []

    def seen(ratings: Ratings, **options: Any) -> Any:
        given.append(ratings)
        return real(ratings, **options)

    monkeypatch.setattr(trial, "run", seen)
    run(read(folder, split_by="person"), tmp_path)
    ids = [f"u{i:04d}" for i in range(240)]
    vectors, _ = Cache.open(folder / "photos.cache").vectors("net@face", ids)
    number = {row.tobytes(): i for i, row in enumerate(vectors)}
    sides: dict[int, set[int]] = {}
    for row, side in zip(given[0].vectors, given[0].subset.tolist(), strict=True):
        sides.setdefault(number[row.tobytes()] // 2, set()).add(side)
    assert len(sides) > 100
    assert {len(one) for one in sides.values()} == {1}
    assert set.union(*sides.values()) == {0, 1, 2}


def test_several_backbones_side_by_side_are_tried_as_one(folder: Path, tmp_path: Path) -> None:
    backbone = [{"name": ["whole", "net@face"], "label": "both"}, {"name": "whole"}]
    both, whole = run(read(folder, backbone=backbone), tmp_path).tastes
    assert both.row(TASTE)["by_ratings"]["all"] < whole.row(TASTE)["by_ratings"]["all"]
    assert len(both.spec.split()) == 2


@pytest.mark.parametrize(
    ("taste", "message"),
    [
        ("gone.csv", "gone.csv"),
        ("users.csv", "has no column rater_id, viewer_id"),
        ({"ratings": "ratings.csv", "rating_column": "stars"}, "has no column 'stars'"),
        ({"ratings": "ratings.csv", "rater": "x"}, "rater"),
        (7, "taste"),
    ],
)
def test_a_table_that_cannot_be_used_is_told_before_anything_is_fitted(
    folder: Path, tmp_path: Path, taste: Any, message: str
) -> None:
    with pytest.raises(LabelsError, match=message):
        run(read(folder, taste=taste), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_too_few_ratings_are_left_out_and_the_rest_stands(folder: Path, tmp_path: Path) -> None:
    rows = (folder / "ratings.csv").read_text().splitlines()[:8]
    (tmp_path / "few.csv").write_text("\n".join(rows))
    found = run(read(folder, taste=str(tmp_path / "few.csv")), tmp_path / "out")
    assert not found.tastes
    assert len(found.fits) == 2
    assert "a taste per viewer from FaceNet" in found.skipped


def test_columns_by_name_and_a_swipe_log_are_read(folder: Path, tmp_path: Path) -> None:
    table = pl.read_csv(folder / "ratings.csv")
    swipes = table.select(recipient_id="photo_id", sender_id="rater_id", liked=pl.col("rating") > 5)
    swipes.write_csv(tmp_path / "swipes.csv")
    assert len(run(read(folder, taste=str(tmp_path / "swipes.csv")), tmp_path / "a").tastes) == 2
    odd = table.rename({"rater_id": "who", "photo_id": "what", "rating": "stars"})
    odd.write_csv(tmp_path / "odd.csv")
    named = {"ratings": str(tmp_path / "odd.csv"), "rater_column": "who", "id_column": "what"}
    found = run(read(folder, taste=named | {"rating_column": "stars"}), folder / "out")
    assert found.tastes == run(read(folder), folder / "out").tastes
    written = report._toml(found.study)
    assert '[taste]\nratings = "odd.csv"\nrater_column = "who"' in written


def test_page_tables_and_json_say_the_same(folder: Path, results: Results) -> None:
    written = report.write(results, folder / "page")
    page = unescape(written.page.read_text())
    assert '<section id="taste">' in page
    assert 'href="#taste"' in page
    document = json.loads((folder / "page" / "results.json").read_text())
    for kept, one in zip(results.tastes, document["taste"], strict=True):
        table = table_of_tastes(kept)
        assert table.title in page
        said = said_of_tastes(kept)
        assert one["said"] == said
        assert said in page
        assert said in str(results)
        assert one["rows"][0]["by_ratings"] == kept.row(TASTE)["by_ratings"]
        for cell in table.rows[0][1:]:
            assert cell.text in page
            assert cell.value in one["rows"][0]["by_ratings"].values()
    names = {path.name for path in written.files}
    assert {"tastes_facenet.md", "tastes_whole.csv", "tastes_of_viewers.png"} <= names
    assert 'taste = "ratings.csv"' in page
    assert "embedcache fit-taste --cache photos.cache --backbone net@face" in page
    assert not re.search(r"v\d\d\b|u\d{4}", json.dumps(document))


def test_a_study_without_ratings_says_nothing_of_tastes(folder: Path, tmp_path: Path) -> None:
    found = run(read(folder, taste=None), tmp_path)
    assert found.tastes == ()
    assert 'id="taste"' not in report.write(found, tmp_path / "page").page.read_text()
