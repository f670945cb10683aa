"""The study on the command line: from photos and a swipe log to the page, twice."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import cli
from embedcache.store.cache import Cache
from heads.labels.simulate import TRUTH
from tests.heads.study import studies

Run = Callable[..., tuple[int, str, str]]


def test_a_study_on_the_command_line_goes_from_the_log_to_the_page(
    make_photos: Callable[..., Path],
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_photos(60)
    ids = [f"u{i:03}" for i in range(60)]
    rng = np.random.default_rng(0)
    pl.DataFrame(
        {
            "user_id": ids,
            "gender": ["F", "M"] * 30,
            "photo": [f"photos/p{i:03}.jpg" for i in range(60)],
        }
    ).write_csv(tmp_path / "users.csv")
    pl.DataFrame(
        {
            "sender_id": [f"s{i % 12}" for i in range(720)],
            "sender_gender": ["M", "F"] * 360,
            "recipient_id": [ids[i // 12] for i in range(720)],
            "liked": rng.integers(0, 2, 720),
        }
    ).write_csv(tmp_path / "swipes.csv")
    toml = tmp_path / "study.toml"
    toml.write_text(
        'users = "users.csv"\nswipes = "swipes.csv"\nheads = ["ridge"]\n'
        '[[target]]\ncolumn = "like_ratio"\nweight = "swipes"\n[[subset]]\nname = "ALL"\n'
        f'[[backbone]]\nname = "local-dir:{tiny_weights}"\nlabel = "tiny"\n'
    )
    out = tmp_path / "out"

    def study(*words: str) -> dict[str, object]:
        monkeypatch.setattr(sys, "argv", ["embedcache", "study", str(toml), *words, "--json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    first = study("--out", str(out), "--link")
    assert Path(str(first["report"])) == out / "report.html"
    rows = first["rows"]
    assert isinstance(rows, list)
    assert {row["head"] for row in rows} == {"const", "ridge", "dev's choice"}
    assert all(str(row["ref"]).startswith("as-of-") for row in rows)
    assert list((out / "thumbnails").iterdir())
    explained = (out / "report.html").read_text()
    again = study("--out", str(out), "--no-photos")
    assert (first["fits_reused"], again["fits_reused"]) == (0, 1)
    assert "data:image/jpeg" not in (out / "report.html").read_text()
    assert again["rows"] == rows
    # Noise of random weights: the constant may be the best, of which there is no picture.
    assert ("Two pictures" in explained) != ("No pictures of why here: a const" in explained)


def test_pictures_of_why_are_drawn_once_and_can_be_left_out(
    run: Run, make_photos: Callable[..., Path], tiny_weights: Path, tmp_path: Path
) -> None:
    """Of a label that the vectors know, so that the best head is no constant."""
    make_photos(60)
    name = f"local-dir:{tiny_weights}"
    ids = [f"p{i:03}.jpg" for i in range(60)]
    assert (
        run("extract", tmp_path / "photos", "--cache", tmp_path / "c", "--backbone", name)[0] == 0
    )
    vectors, _ = Cache.open(tmp_path / "c").vectors("local-dir:tiny", ids)
    score = vectors @ np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[2][0]
    table = {"photo_id": ids, "photo": [f"photos/{i}" for i in ids], "score": score.tolist()}
    pl.DataFrame(table).write_csv(tmp_path / "labels.csv")
    toml = tmp_path / "study.toml"
    toml.write_text(
        'labels = "labels.csv"\nheads = ["ridge"]\n[[target]]\ncolumn = "score"\n'
        f'[[backbone]]\nname = "{name}"\nlabel = "tiny"\n'
    )
    words = ("study", toml, "--out", tmp_path / "out", "--cache", tmp_path / "c")
    status, _, err = run(*words)
    assert status == 0, err
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("Two pictures: a test photo") == 6
    assert str(tiny_weights) not in page
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "fits").glob("why-*.jpg")}
    assert len(kept) == 6
    assert run(*words)[0] == 0
    assert (tmp_path / "out" / "report.html").read_text().count("Two pictures: a test photo") == 6
    assert kept == {p: p.stat().st_mtime_ns for p in kept}
    assert run(*words, "--no-explain")[0] == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Two pictures" not in page
    assert "Pictures of why are left out: the study was run without them" in page


PLANTED = """
labels = "labels.csv"
heads = ["ridge"]
[[target]]
column = "like_ratio"
[[backbone]]
name = "whole"
label = "Inception"
"""


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A cache with all vectors, a study that names them, and users.csv with the photos' paths."""
    studies.planted(tmp_path, n=120)
    (tmp_path / "study.toml").write_text(PLANTED)
    return tmp_path


def labels(folder: Path, **columns: object) -> None:
    users = pl.read_csv(folder / "users.csv").rename({TRUTH: "like_ratio"})
    users.drop("photo").with_columns(**columns).write_csv(folder / "labels.csv")  # type: ignore[arg-type]


def study_of(run: Run, folder: Path) -> tuple[int, str, str]:
    cache = folder / "photos.cache"
    return run("study", folder / "study.toml", "--out", folder / "out", "--cache", cache)


def test_a_study_needs_no_photos_where_the_cache_knows_every_row(run: Run, planted: Path) -> None:
    labels(planted)
    status, out, err = study_of(run, planted)
    assert status == 0, err
    assert "labels.csv has no column 'photo'" in err
    assert "the page shows no photos" in err
    assert "Inception-ridge" in out
    assert "<img" not in (planted / "out" / "report.html").read_text()


def test_a_study_joins_its_rows_by_file_name_as_fit_head_does(run: Run, planted: Path) -> None:
    """The cache calls the photos u0000, u0001 and so on; the table calls them by their files."""
    labels(planted)
    table = pl.read_csv(planted / "labels.csv").rename({"user_id": "photo_id"})
    table = table.with_columns(photo_id=pl.concat_str("photo_id", pl.lit(".jpg")))
    table.write_csv(planted / "labels.csv")
    status, out, err = study_of(run, planted)
    assert status == 0, err
    assert "ids are joined by" in err
    assert "'u0000.jpg' is 'u0000' (120 of 120 rows)" in err
    assert "Inception-ridge" in out


def test_a_study_runs_where_its_photos_are_gone_and_the_cache_knows_every_row(
    run: Run, planted: Path
) -> None:
    labels(planted, photo=pl.concat_str(pl.lit("gone/"), "user_id"))
    status, _, err = study_of(run, planted)
    assert status == 0, err
    assert "none of the photos of labels.csv is here" in err
    assert "the page shows no photos" in err


def test_a_row_that_the_cache_does_not_know_is_left_out_or_embedded(
    run: Run, planted: Path
) -> None:
    ids = pl.when(pl.col("user_id") == "u0003").then(pl.lit("new")).otherwise("user_id")
    labels(planted, user_id=ids)
    status, _, err = study_of(run, planted)
    assert status == 0, err
    assert "1 row of labels.csv left out: the cache does not have these photos" in err
    labels(planted, user_id=ids, photo=pl.concat_str(pl.lit("gone/"), "user_id"))
    status, _, err = study_of(run, planted)
    assert (status, "120 of 120 files not found" in err) == (1, True)


def test_a_backbone_that_the_cache_lacks_needs_the_photos(run: Run, planted: Path) -> None:
    labels(planted)
    (planted / "study.toml").write_text(PLANTED.replace("whole", "inception_v3.tf_in1k"))
    status, _, err = study_of(run, planted)
    assert (status, "has no column 'photo'" in err) == (1, True)


def test_a_folder_of_photos_is_no_place_for_a_page(run: Run, planted: Path) -> None:
    collection = planted / "collection"
    collection.mkdir()
    (planted / "photos").rename(collection / "holiday")
    for out in (collection, collection / "holiday"):
        words = ("study", planted / "study.toml", "--out", out)
        status, _, err = run(*words, "--cache", planted / "photos.cache")
        assert (status, "holds photos: name another folder" in err) == (1, True)
    assert {path.suffix for path in collection.rglob("*.*")} == {".jpg"}


def test_a_target_of_several_classes_is_refused_before_anything_is_fitted(
    run: Run, planted: Path
) -> None:
    labels(planted, tier=pl.Series(["low", "mid", "high"] * 40))
    text = (planted / "study.toml").read_text()
    (planted / "study.toml").write_text(text + '\n[[target]]\ncolumn = "tier"\n')
    status, _, err = study_of(run, planted)
    assert (status, "target 'tier' has 3 classes" in err) == (1, True)
    assert not list((planted / "out").rglob("fits/*"))


def test_a_table_without_a_column_of_photos_shows_those_that_the_cache_was_made_of(
    run: Run, make_photos: Callable[..., Path], tiny_weights: Path, tmp_path: Path
) -> None:
    photos = make_photos(60)
    for path in photos.iterdir():
        os.utime(path, (1, 1))  # files that changed a moment ago are not remembered
    rows = [f"p{i:03}.jpg,{i % 7}" for i in range(60)]
    (tmp_path / "scores.csv").write_text("\n".join(["photo_id,score", *rows]) + "\n")
    backbone, cache = f"local-dir:{tiny_weights}", tmp_path / "a.cache"
    assert run("extract", photos, "--cache", cache, "--backbone", backbone)[0] == 0
    toml = tmp_path / "study.toml"
    toml.write_text(
        'labels = "scores.csv"\nheads = ["ridge"]\n[[target]]\ncolumn = "score"\n'
        f'[[backbone]]\nname = "{backbone}"\nlabel = "tiny"\n'
    )
    words = ("study", toml, "--cache", cache, "--out", tmp_path / "out", "--no-explain")
    status, _, err = run(*words)
    assert status == 0, err
    assert "data:image/jpeg" in (tmp_path / "out" / "report.html").read_text()
