"""fit-head as users call it: every option does what it says, odd input gets one clear message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import heads

if TYPE_CHECKING:
    from tests.heads.conftest import World

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--epochs", 3, "--hidden", 8, "--learning-rate", 1e-3, "--learning-rate", 1e-2)


@pytest.fixture
def fit_head(run: Run, world: World, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """fit_head(*words, labels=PATH): the command on the small world, a quick protocol first."""

    def call(*words: object, labels: Path | None = None) -> tuple[int, str, str]:
        return run(
            *("fit-head", "--cache", world.cache.path, "--backbone", "net"),
            *("--labels", labels or world.labels, "--out", tmp_path / "head", *QUICK, *words),
        )

    return call


def fitted(outcome: tuple[int, str, str]) -> dict[str, Any]:
    status, out, err = outcome
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def refused(outcome: tuple[int, str, str]) -> str:
    status, out, err = outcome
    assert (status, out) == (1, ""), err
    *_, message = err.splitlines()  # before it may stand what was read of the table
    assert message.startswith("error: ")
    assert err.count("error: ") == 1
    return message


def protocol(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "1fc" / "card.json").read_text())
    return dict(card["protocol"])


def test_the_options_of_the_training_reach_it(fit_head: Run, tmp_path: Path) -> None:
    fitted(
        fit_head(
            *("--target", "like_ratio", "--weight", "swipes", "--loss", "binomial"),
            *("--dropout", 0.1, "--weight-decay", 0.01, "--optimizer", "sgd", "--members", 2),
            *("--patience", 0, "--halving-steps", 0, "--products", "bfloat16"),
            *("--start", "constant", "--margin", 0, "--seed", 3),
            *("--batch-size", 32, "--memory-mb", 1, "--device", "cpu", "--json"),
        )
    )
    found = protocol(tmp_path / "head")
    assert found["learning_rates"] == [1e-3, 1e-2]
    del found["learning_rates"]
    assert found == {
        "epochs": 3,
        "batch_size": 32,
        "optimizer": "sgd",
        "seed": 3,
        "members": 2,
        "hidden": 8,
        "loss": "binomial",
        "start": "constant",
        "margin": 0.0,
        "weight_decay": 0.01,
        "dropout": 0.1,
        "patience": None,
        "halving_steps": None,
        "products": "bfloat16",
        "memory_bytes": 1_000_000,
        "device": "cpu",
    }
    head = heads.load(tmp_path / "head" / "2fc")
    assert [layer.weight.shape for layer in head.layers] == [(2, 8, 8), (2, 8, 8), (2, 1, 8)]


def test_errors_by_group_are_in_the_table_and_in_the_document(fit_head: Run) -> None:
    words = ("--target", "like_ratio", "--weight", "swipes", "--by", "gender", "--head", "ridge")
    found = fitted(fit_head(*words, "--json"))["by"]
    assert {(one["column"], one["group"], one["head"]) for one in found} == {
        ("gender", group, head) for group in "FM" for head in ("const", "ridge", "const by gender")
    }
    _, out, _ = fit_head(*words)
    assert "mse for gender F (" in out


def test_several_targets_are_fitted_jointly_and_predicted_by_name(
    fit_head: Run, world: World, tmp_path: Path
) -> None:
    one = world.vectors[:, 0].tolist()
    other = (3 * world.vectors[:, 1] + 20).tolist()
    table = world.table(user_id=world.ids, calm=one, age=other)
    found = fitted(fit_head("--target", "calm", "--target", "age", "--json", labels=table))
    assert found["task"] == "regression"
    error = {(row["head"], row["target"]): row["value"] for row in found["rows"]}
    assert error["ridge", "age"] < 0.1 * error["const", "age"]
    assert error["ridge", "calm"] < 0.1 * error["const", "calm"]
    from heads.predict import predict

    predict(tmp_path / "head", world.ids[:3], world.cache).write(tmp_path / "p.csv")
    seen = pl.read_csv(tmp_path / "p.csv")
    assert seen.columns == ["photo_id", "prediction_calm", "prediction_age"]
    assert seen["prediction_age"].to_list() == pytest.approx(other[:3], abs=1)


def test_several_classes_are_fitted(fit_head: Run, world: World) -> None:
    kind = np.array(["cat", "dog", "owl"])[np.digitize(world.vectors[:, 0], [-0.4, 0.4])]
    table = world.table(user_id=world.ids, kind=kind.tolist())
    found = fitted(fit_head("--target", "kind", "--json", labels=table))
    assert (found["task"], found["classes"]) == ("multiclass", {"cat": 47, "dog": 35, "owl": 38})
    right = {r["head"]: r["value"] for r in found["rows"] if r["metric"] == "accuracy"}
    assert right["logistic"] > right["const"] + 0.2


def test_numbers_can_be_called_classes(fit_head: Run, world: World) -> None:
    stars = np.digitize(world.vectors[:, 0], [-0.4, 0.4]).tolist()
    table = world.table(user_id=world.ids, stars=stars)
    words = ("--target", "stars", "--head", "const", "--json")
    assert fitted(fit_head(*words, labels=table))["task"] == "regression"
    found = fitted(fit_head(*words, "--task", "multiclass", labels=table))
    assert found["classes"] == {"0": 47, "1": 35, "2": 38}


def test_a_stratified_split_gives_a_rare_class_its_share(fit_head: Run, world: World) -> None:
    rare = ["yes" if k % 6 == 0 else "no" for k in range(120)]
    table = world.table(user_id=world.ids, rare=rare)
    words = ("--target", "rare", "--head", "const", "--stratify", "--by", "rare", "--json")
    found = fitted(fit_head(*words, labels=table))
    assert {one["n"] for one in found["by"] if one["group"] == "yes"} == {3}


def test_a_given_split_is_used_and_refused_where_a_person_straddles(
    fit_head: Run, world: World
) -> None:
    side = ["train"] * 80 + ["dev"] * 20 + ["test"] * 20
    person = [str(k // 2) for k in range(120)]
    score = world.vectors[:, 0].tolist()
    table = world.table(user_id=world.ids, score=score, side=side, person=person)
    words = ("--target", "score", "--split-column", "side", "--head", "const", "--json")
    assert fitted(fit_head(*words, labels=table))["n"] == {"train": 80, "dev": 20, "test": 20}
    fitted(fit_head(*words, "--split-by", "person", labels=table))
    side[0] = "test"
    torn = world.table(user_id=world.ids, score=score, side=side, person=person)
    found = refused(fit_head(*words, "--split-by", "person", labels=torn))
    assert "splits 1 group(s) of the same person or the same photo" in found
    assert "u000 (test), u001 (train)" in found


def test_constant_labels_give_a_table_of_zero_errors(fit_head: Run, world: World) -> None:
    table = world.table(user_id=world.ids, score=[0.5] * 120)
    found = fitted(fit_head("--target", "score", "--json", labels=table))
    assert all(row["value"] == pytest.approx(0, abs=1e-6) for row in found["rows"])
    assert all(row["r2"] is None for row in found["rows"])
    status, out, _ = fit_head("--target", "score", labels=table)
    assert (status, "nan" in out.lower()) == (0, False)


def test_a_rate_that_diverges_is_named_and_never_chosen(fit_head: Run, world: World) -> None:
    table = world.table(user_id=world.ids, score=(1e3 * world.vectors[:, 0]).tolist())
    words = ("--target", "score", "--optimizer", "sgd", "--learning-rate", 1e12, "--json")
    found = fitted(fit_head(*words, labels=table))
    assert "1fc: learning rate 1e+12 diverged" in found["notes"]
    assert all(row["value"] is not None for row in found["rows"])
    assert all(row["learning_rate"] != 1e12 for row in found["rows"])


@pytest.mark.parametrize(
    ("columns", "words", "message"),
    [
        ({"y": ["F"] * 120}, (), "same y, 'F'; a classifier needs two classes"),
        ({"y": ["F"] * 119 + [""]}, (), "1 of 120 labelled photos have no usable 'y'"),
        ({"y": ["NaN"] + [0.5] * 119}, (), "no usable 'y' (first: u000 has"),
        ({"y": ["inf"] + [0.5] * 119}, (), "no usable 'y' (first: u000 has"),
        ({"y": range(120), "w": [0] * 120}, ("--weight", "w"), "all weights in 'w' are zero"),
        ({"y": range(120), "w": [-1] * 120}, ("--weight", "w"), "a weight is zero or more"),
        ({"y": range(120)}, ("--target", "y"), "a target is named twice"),
        ({"y": range(120)}, ("--target", "z"), "no column 'z'"),
        ({"y": range(120), "b": ["x"] * 120}, ("--target", "b"), "several targets must all be"),
        ({"y": range(120)}, ("--loss", "binomial"), "the counts they come from"),
        ({"y": range(120)}, ("--dropout", "1"), "dropout must be 0 or more and below 1"),
        ({"y": range(120)}, ("--device", "cuda:99"), "CUDA devices here"),
        ({"y": range(120)}, ("--device", "gpu"), "device must be auto, cpu, cuda or cuda:N"),
        ({"y": range(120)}, ("--by", "hat"), "no column 'hat'"),
    ],
)
def test_what_cannot_be_fitted_gets_one_message(
    fit_head: Run, world: World, columns: dict[str, Any], words: tuple[str, ...], message: str
) -> None:
    table = world.table(user_id=world.ids, **columns)
    assert message in refused(fit_head("--target", "y", *words, labels=table))


@pytest.mark.parametrize("n", [1, 3])
def test_a_handful_of_photos_is_too_few(fit_head: Run, world: World, n: int) -> None:
    table = world.table(user_id=world.ids[:n], y=range(n))
    assert "too few to fit" in refused(fit_head("--target", "y", labels=table))


def test_one_class_in_train_is_refused(fit_head: Run, world: World) -> None:
    side = ["train"] * 100 + ["dev"] * 10 + ["test"] * 10
    table = world.table(user_id=world.ids, y=["a"] * 100 + ["b"] * 20, side=side)
    words = ("--target", "y", "--split-column", "side")
    assert "all 100 train rows are 'a'" in refused(fit_head(*words, labels=table))


def test_dev_only_prints_and_keeps_no_test_figure(fit_head: Run, tmp_path: Path) -> None:
    for folds in ((), ("--folds", 3)):
        words = ("--target", "gender", "--dev-only", *folds)
        rows = fitted(fit_head(*words, "--json"))["rows"]
        assert all(row["value"] is row["low"] is row["versus"] is None for row in rows)
        assert all(row["dev"] is not None for row in rows)
        lines = fit_head(*words)[1].splitlines()
        heads_of = [line.split() for line in lines if line.startswith(("const", "logistic"))]
        assert all(line[2:4] == ["-", "-"] for line in heads_of)
        assert not list((tmp_path / "head").glob("*/predictions.csv"))
