"""A long fit says how far it is, an interrupted study how to go on, and help what a word means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import heads
from embedcache import display
from embedcache.store.cache import Cache
from heads.fitting.result import Fit
from heads.study import run as studies
from heads.study.design import Study
from tests.heads.study.studies import ran
from tests.heads.study.test_run import small

if TYPE_CHECKING:
    from heads.dataset.rows import Dataset
    from tests.heads.conftest import World

Run = Callable[..., tuple[int, str, str]]
QUICK: dict[str, Any] = {"epochs": 3, "hidden": 8, "learning_rates": (1e-3,)}


def counted_into(seen: list[tuple[int, int]]) -> Callable[[int, int], None]:
    return lambda done, n: seen.append((done, n))


@pytest.mark.parametrize("folds", [None, 3])
def test_a_fit_counts_its_epochs_to_the_end(
    sample: Callable[..., Dataset], folds: int | None
) -> None:
    for task in ("ratio", "binary"):
        seen: list[tuple[int, int]] = []
        heads.fit(
            sample(n=90, task=task),
            heads=["1fc"],
            folds=folds,
            patience=None,
            progress=counted_into(seen),
            **QUICK,
        )
        total = 3 * (folds or 1)
        assert seen[0] == (0, total)  # while the linear heads are fitted
        assert seen[-1] == (total, total)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_fit_head_shows_progress_on_stderr(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(display, "QUIET_SECONDS", 0.0)
    quick = ("--labels", world.labels, "--target", "gender", "--epochs", 2, "--hidden", 4)
    words = ("--cache", world.cache.path, "--backbone", "net", *quick, "--out", tmp_path / "h")
    status, out, err = run("fit-head", *words, "--folds", 3, "--json")
    assert status == 0, err
    assert "6 of 6 epochs" in err
    json.loads(out)
    assert "epochs" not in run("fit-head", *words, "-q")[2]


@pytest.mark.parametrize("count", [0, 1, 2, -3])
def test_too_few_folds_get_a_plain_sentence(
    run: Run, world: World, tmp_path: Path, count: int
) -> None:
    words = ("--cache", world.cache.path, "--backbone", "net", "--labels", world.labels)
    status, _, err = run(
        "fit-head", *words, "--target", "gender", "--out", tmp_path / "h", "--folds", count
    )
    assert status == 1
    assert f"{count} folds of 120 groups: use 3 or more folds" in err
    assert "For one split name no folds" in err


def test_an_interrupted_study_says_how_to_go_on_and_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ran()[0]
    cache = Cache.open(folder / "photos.cache")
    asked = small(folder, target=[{"column": "like_ratio"}, {"column": "gender"}])
    lines: list[str] = []
    counted: list[str] = []
    calls = []

    def interrupted(*words: Any, **named: Any) -> Fit:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return heads.fit(*words, **named)

    def counting(what: str) -> Callable[[int, int], None]:
        counted.append(what)
        return lambda _done, _n: None

    monkeypatch.setattr(studies, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        studies.run(
            asked, cache, lambda _: None, tmp_path, progress=lines.append, counting=counting
        )
    assert "1 of 2 fits are kept; the same command goes on from there" in lines
    assert counted[0].startswith("epochs of like_ratio on ALL")
    again: list[str] = []
    made = studies.run(asked, cache, lambda _: None, tmp_path, progress=again.append)
    assert made.reused == 1
    assert "fitted before (1 of 2)" in again[0]
    assert "(2 of 2)" in again[1]


def test_init_without_a_name_writes_study_toml(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run("study", "--init")
    assert (status, out) == (0, "wrote study.toml\n"), err
    assert Study.read("study.toml").target
    assert "study.toml exists" in run("study", "--init")[2]
    Path("mine.csv").write_text("id,stars\na,3\n")
    assert run("study", "mine.toml", "--init", "--labels", "mine.csv")[0] == 0
    assert Study.read("mine.toml").labels == "mine.csv"
    assert "goes with --init" in run("study", "mine.toml", "--labels", "mine.csv")[2]


def test_predictions_say_which_class_they_are_the_probability_of(
    run: Run, world: World, tmp_path: Path
) -> None:
    kind = np.array(["cat", "dog", "owl"])[np.digitize(world.vectors[:, 0], [-0.4, 0.4])]
    other = world.table(user_id=world.ids, kind=kind.tolist())
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"none")
    for target, table, said in (
        ("gender", world.labels, "; column prediction is P(M)"),
        ("kind", other, "; column prediction_cat is P(cat), prediction_dog is P(dog), "),
    ):
        words = ("--cache", world.cache.path, "--backbone", "net", "--labels", table)
        heads_of = ("--target", target, "--out", tmp_path / target, "--head", "logistic")
        assert run("fit-head", *words, *heads_of)[0] == 0
        status, out, err = run(
            "predict", tmp_path / target, photos, "--cache", world.cache.path,
            "--out", tmp_path / "p.csv",
        )  # fmt: skip
        assert status == 0, err
        assert said in out
    status, _, err = run(
        "predict", tmp_path / "kind", photos, "--cache", tmp_path / "new", "--sort",
        "--out", tmp_path / "p.csv",
    )  # fmt: skip
    assert status == 1
    assert "gives 3 scores a photo" in err
    assert not (tmp_path / "new").exists()


def test_help_says_what_heads_and_columns_are(run: Run) -> None:
    text = " ".join(run("fit-head", "--help")[1].split())
    assert "0, 1 or 2 fully connected layers" in text
    assert "Photos per step of the training. [default: 256]" in text
    text = " ".join(run("predict", "--help")[1].split())
    assert "the probability of the second one as prediction" in text
    assert "prediction_CLASS with P(CLASS)" in text
    assert "--sort Write the highest prediction first, and photos without one last." in text
