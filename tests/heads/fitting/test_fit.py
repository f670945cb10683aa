"""A whole fit: the contract's document, no leak from the test rows, an answer to odd input."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import heads
from benchmarks import null
from embedcache.errors import InputError, LabelsError
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import Dataset, Part
from heads.fitting.judge import predict_test
from heads.fitting.protocol import FC_NAMES, Protocol, protocol_of

Sample = Callable[..., Dataset]
QUICK: dict[str, Any] = {"epochs": 3, "hidden": 8, "resamples": 200, "learning_rates": (1e-3, 1e-2)}


def test_the_document_has_the_contracts_keys_and_is_json(sample: Sample) -> None:
    fit = heads.fit(sample(), **QUICK)
    found = json.loads(json.dumps(fit.document(), allow_nan=False))
    assert {"task", "target", "n", "noise_floor", "seconds", "rows"} <= found.keys()
    assert found["n"].keys() == {"train", "dev", "test"}
    assert [row["head"] for row in found["rows"]] == ["const", "ridge", "0fc", "1fc", "2fc"]
    keys = {"head", "metric", "value", "low", "high", "dev", "learning_rate", "epoch", "seconds"}
    assert all(keys <= row.keys() and row["metric"] == "mse" for row in found["rows"])
    assert all(row["low"] <= row["value"] <= row["high"] for row in found["rows"])
    ridge = found["rows"][1]
    for name in ("explainable_share", "r2", "rank_correlation"):
        assert 0.3 < ridge[f"{name}_low"] < ridge[name] < ridge[f"{name}_high"] <= 1.3
    assert ridge["value"] > found["noise_floor"] > 0
    assert "noise floor" in str(fit)


def test_a_binary_task_has_accuracy_and_log_loss_rows(sample: Sample) -> None:
    fit = heads.fit(sample(task="binary"), heads=["logistic"], **QUICK)
    rows = fit.document()["rows"]
    assert [(row["head"], row["metric"]) for row in rows] == [
        ("const", "accuracy"),
        ("const", "log_loss"),
        ("logistic", "accuracy"),
        ("logistic", "log_loss"),
    ]
    assert rows[3]["auc"] > 0.9
    assert rows[3]["versus"] is None
    assert rows[1]["versus"]["head"] == "logistic"
    assert rows[1]["versus"]["p"] < 0.05


def test_several_classes_and_several_targets_each_get_their_rows(sample: Sample) -> None:
    classes = heads.fit(sample(task="classes"), **QUICK)
    assert classes.heads["1fc"].predict(np.zeros((2, 12), np.float32)).shape == (2, 3)
    assert classes.dataset.classes == ("cat", "dog", "owl")
    best = {row.head: row.value for row in classes.rows if row.metric == "accuracy"}
    assert best["2fc"] > best["const"] + 0.2
    one = sample(task="real")
    both = np.stack([one.targets, -3 * one.targets], 1)
    joint = heads.fit(from_arrays(one.vectors[np.arange(300)], both), **QUICK)
    assert joint.heads["2fc"].predict(np.zeros((2, 12), np.float32)).shape == (2, 2)
    assert {row.target for row in joint.rows} == {"target0", "target1"}
    assert all(row.extra["r2"] > 0.6 for row in joint.rows if row.head != "const")


def test_only_judge_looks_at_the_test_rows_and_only_once(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[list[str]] = []
    part = Dataset.part

    def watched(self: Dataset, name: str) -> Part:
        if name == "test":
            looked.append([frame.name for frame in traceback.extract_stack()])
        return part(self, name)

    monkeypatch.setattr(Dataset, "part", watched)
    heads.fit(sample(), **QUICK)
    assert len(looked) == 1
    assert looked[0][-2] == predict_test.__name__


@pytest.mark.parametrize("task", ["ratio", "binary", "classes"])
@pytest.mark.parametrize("name", ["warm", "paper"])
def test_heads_are_bit_identical_when_every_test_row_is_corrupted(
    sample: Sample, task: str, name: str
) -> None:
    data = replace(sample(task=task), by={"half": ("a", "b") * 150})
    inside = data.subset == 2
    vectors = np.array(data.vectors[np.arange(300)])
    vectors[inside] = 1e3
    turned = np.where(inside, 1 - data.targets, data.targets).clip(0)
    half = tuple("c" if lost else was for lost, was in zip(inside, data.by["half"], strict=True))
    other = replace(data, targets=turned, vectors=vectors, by={"half": half})
    chosen = protocol_of({"epochs": 3, "hidden": 8}, name=name)
    first, second = (heads.fit(one, protocol=chosen, resamples=20) for one in (data, other))
    assert first.best == second.best
    for key, head in first.heads.items():
        mine, theirs = head.standard, second.heads[key].standard
        pairs = [(mine.mean, theirs.mean), (mine.scale, theirs.scale)]
        for one, two in zip(head.layers, second.heads[key].layers, strict=True):
            pairs += [(one.weight, two.weight), (one.bias, two.bias)]
        assert all(one.tobytes() == two.tobytes() for one, two in pairs)
    found = [
        [(row.head, row.dev, row.learning_rate, row.epoch, row.same_as) for row in fit.rows
         if row.head in fit.heads]
        for fit in (first, second)
    ]  # fmt: skip
    assert repr(found[0]) == repr(found[1])
    assert [row.value for row in first.rows] != [row.value for row in second.rows]


def test_heads_start_at_the_baseline_so_that_dev_never_says_worse(sample: Sample) -> None:
    fit = heads.fit(sample(task="binary", noise=2.0), **QUICK)
    dev = {row.head: row.dev for row in fit.rows if row.metric == "log_loss"}
    assert all(dev[name] <= dev["logistic"] + 1e-6 for name in ("0fc", "1fc", "2fc"))


@pytest.mark.parametrize("task", ["regression", "binary"])
def test_labels_of_pure_noise_do_not_beat_the_constant(task: str) -> None:
    names = ["0fc", "1fc", "2fc"]
    beaten = dict.fromkeys([*names, "ridge" if task == "regression" else "logistic"], 0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.random(200) if task == "regression" else rng.integers(0, 2, 200)
        data = from_arrays(rng.normal(size=(200, 10)), labels, task=task, seed=seed)
        fit = heads.fit(data, seed=seed, start="constant", margin=0.0, **QUICK)
        for name in beaten:
            beaten[name] += fit.compare(name, "const").high < 0
    # An interval of 95 % lies wholly below zero by chance in one of forty.
    assert max(beaten.values()) <= 2


def test_two_whole_fits_with_one_seed_agree_bit_for_bit_on_all_cores(sample: Sample) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for task in ("ratio", "binary"):
            data = sample(n=900, dim=64, task=task)
            first, second = (heads.fit(data, dropout=0.1, **QUICK) for _ in range(2))
            documents = [fit.document() for fit in (first, second)]
            for document in documents:
                del document["seconds"]
                for row in document["rows"]:
                    del row["seconds"]
            assert documents[0] == documents[1]
            for name, head in first.heads.items():
                for one, two in zip(head.layers, second.heads[name].layers, strict=True):
                    assert (one.weight == two.weight).all()
                    assert (one.bias == two.bias).all()
    finally:
        torch.set_num_threads(threads)


def test_standardisation_knows_the_train_rows_only(sample: Sample) -> None:
    data = sample()
    vectors = np.array(data.vectors[np.arange(300)])
    train = vectors[data.subset == 0].astype(np.float64)
    vectors[data.subset != 0] += 100
    fit = heads.fit(replace(data, vectors=vectors), heads=["ridge"], **QUICK)
    for head in fit.heads.values():
        assert head.standard.mean == pytest.approx(train.mean(0), abs=1e-6)
        assert head.standard.scale == pytest.approx(train.std(0), rel=1e-6)


def test_constant_labels_give_zero_error_and_no_nan_in_the_table() -> None:
    rng = np.random.default_rng(0)
    data = from_arrays(rng.normal(size=(100, 4)), np.full(100, 7.0), task="regression")
    fit = heads.fit(data, **QUICK)
    assert all(row.value == pytest.approx(0, abs=1e-6) for row in fit.rows)
    assert all(math.isnan(row.extra["r2"]) for row in fit.rows)
    json.dumps(fit.document(), allow_nan=False)
    assert "nan" not in str(fit)


@pytest.mark.parametrize("n", [1, 3])
def test_a_handful_of_photos_is_refused_as_too_few(n: int) -> None:
    data = from_arrays(np.eye(n), np.arange(n))
    with pytest.raises(LabelsError, match=f"{n} labelled photos make .* too few"):
        heads.fit(data, **QUICK)


def test_few_photos_with_a_given_split_are_fitted_without_intervals() -> None:
    vectors = np.arange(12.0).reshape(6, 2)
    data = from_arrays(vectors, np.linspace(0, 1, 6), subset=[0, 0, 0, 0, 1, 2], groups=range(6))
    fit = heads.fit(data, **QUICK)
    assert all(math.isfinite(row.value) and math.isnan(row.low) for row in fit.rows)
    json.dumps(fit.document(), allow_nan=False)


def test_one_class_in_train_is_refused() -> None:
    labels = ["F"] * 8 + ["M"] * 2
    subset = [0] * 8 + [1, 2]
    data = from_arrays(np.eye(10), labels, subset=subset)
    with pytest.raises(LabelsError, match="all 8 train rows are 'F'"):
        heads.fit(data, **QUICK)


@pytest.mark.parametrize("n", [1, 4, 5])
def test_a_class_of_a_few_test_rows_is_noted(n: int) -> None:
    labels = np.array(["a", "b"] * 100, dtype="U4")
    labels[160:] = ["rare"] * n + ["a"] * (40 - n)
    labels[:10] = labels[120:124] = "rare"
    subset = np.repeat([0, 1, 2], [120, 40, 40])
    vectors = np.random.default_rng(0).normal(size=(200, 4))
    found = heads.fit(from_arrays(vectors, labels, subset=subset), heads="logistic")
    noted = [note for note in found.notes if "'rare'" in note]
    assert len(noted) == (n < 5)
    assert all(f"{n} of class 'rare'" in note for note in noted)


def test_few_rows_are_said_in_one_line() -> None:
    labels = np.array(["a", "b", "c", "d"])[np.arange(60) % 4]
    subset = np.repeat([0, 1, 2], [36, 12, 12])
    vectors = np.random.default_rng(0).normal(size=(60, 4))
    data = from_arrays(vectors, labels, subset=subset, groups=range(60))
    notes = heads.fit(data, heads="logistic").notes
    [few] = [note for note in notes if "row" in note]
    assert few == (
        "few rows: 12 dev rows choose; 12 test rows judge, 3 of class 'a', 3 of class 'b', 3 of "
        "class 'c', 3 of class 'd'. The choice may be luck, intervals may be too narrow, and how "
        "often a class is right is hardly known: label more photos, or use `folds`"
    )


def test_few_effective_rows_of_many_are_said_in_one_line() -> None:
    groups = np.r_[np.arange(100), np.repeat(np.arange(100, 110), 10)]
    subset = np.repeat([0, 1, 2], [60, 40, 100])
    rng = np.random.default_rng(0)
    data = from_arrays(
        rng.normal(size=(200, 4)), rng.normal(size=200), subset=subset, groups=groups
    )
    notes = heads.fit(data, heads="ridge", **QUICK).notes
    [few] = [note for note in notes if "few rows" in note]
    assert few.startswith("few rows: 100 test rows judge, which count as 10. Intervals may be too")


@pytest.mark.parametrize(("side", "name"), [(0, "train"), (1, "dev"), (2, "test")])
def test_weights_that_are_zero_on_one_side_are_refused(
    sample: Sample, side: int, name: str
) -> None:
    data = sample()
    weights = np.where(data.subset == side, 0.0, 1.0)
    with pytest.raises(LabelsError, match=f"all weights of the {name} rows are zero"):
        heads.fit(replace(data, weights=weights), **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ["svm"]}, "unknown head 'svm'"),
        ({"heads": ["logistic"]}, "a regression task has no head logistic"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"learning_rates": [-1.0]}, "learning rates must be above zero"),
        ({"learning_rates": []}, "learning rates must be above zero"),
        ({"learning_rates": [0.1, 0.1]}, "given twice"),
        ({"optimizer": "lion"}, "one of adam, sgd"),
        ({"dropout": 1.0}, "dropout must be 0 or more"),
        ({"weight_decay": -1.0}, "weight_decay must be 0"),
        ({"patience": 0}, "patience must be 1"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"epoch": 3}, "no option 'epoch'; it has epochs"),
        ({"hidden": "wide"}, "hidden must be a whole number; got 'wide'"),
        ({"start": "middle"}, "one of constant, linear"),
    ],
)
def test_a_wrong_option_is_refused(sample: Sample, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        heads.fit(sample(), **options)


def test_the_binomial_loss_needs_counts(sample: Sample) -> None:
    with pytest.raises(InputError, match="the counts they come from"):
        heads.fit(sample(task="real"), loss="binomial")


def test_a_diverging_rate_is_noted(sample: Sample) -> None:
    fit = heads.fit(
        sample(task="real"), heads=["0fc"], optimizer="sgd", learning_rates=(1e-3, 1e12), epochs=3
    )
    assert fit.notes == ("0fc: learning rate 1e+12 diverged",)
    assert all(math.isfinite(row.value) for row in fit.rows)


def test_a_protocol_prints_as_json() -> None:
    found = Protocol().document()
    assert found["batch_size"] == 256
    assert found["epochs"] == 20
    json.dumps(found)


def test_importing_heads_loads_no_torch_and_no_backbone_library() -> None:
    code = "import sys, heads, heads.dataset, heads.predict; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "timm", "facenet_pytorch", "torchvision"} & set(loaded)


def test_with_dev_only_no_test_row_is_looked_at(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    part = Dataset.part

    def watched(self: Dataset, name: str) -> Part:
        assert name != "test"
        return part(self, name)

    monkeypatch.setattr(Dataset, "part", watched)
    fit = heads.fit(sample(), dev_only=True, **QUICK)
    assert all(row["value"] is None and row["dev"] is not None for row in fit.document()["rows"])
    assert fit.noise_floor != fit.noise_floor
    with pytest.raises(InputError, match="dev rows only"):
        fit.compare("ridge", "const")
    fit.save(tmp_path / "out")
    assert not (tmp_path / "out" / "ridge" / "predictions.csv").exists()
    assert heads.load(tmp_path / "out").name == fit.best


def test_the_link_follows_from_what_the_target_is_not_from_the_train_rows() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random(200)
    targets[190:] = 7.0  # all of them outside train
    subset = np.repeat([0, 1, 2], [140, 30, 30])
    data = from_arrays(rng.normal(size=(200, 5)), targets, subset=subset, groups=range(200))
    fit = heads.fit(data, heads=["0fc"], **QUICK)
    assert fit.heads["0fc"].link == "identity"
    ratios = from_arrays(rng.normal(size=(200, 5)), rng.random(200), groups=range(200))
    assert heads.fit(ratios, heads=["0fc"], **QUICK).heads["0fc"].link == "sigmoid"


@pytest.mark.parametrize(
    ("task", "start", "said"),
    [
        ("ratio", "linear", "ridge via sigmoid"),
        ("ratio", "constant", "const"),
        ("real", "linear", "ridge"),
        ("binary", "linear", "logistic"),
        ("classes", "constant", "const"),
    ],
)
@pytest.mark.parametrize("folds", [None, 3])
def test_a_head_that_never_left_its_start_is_called_what_it_is(
    sample: Sample, task: str, start: str, said: str, folds: int | None
) -> None:
    fit = heads.fit(
        sample(n=150, task=task), heads=["1fc"], margin=1e6, start=start, folds=folds, **QUICK
    )
    metric = "log_loss" if fit.dataset.classes else "mse"
    rows = {row["head"]: row for row in fit.document()["rows"] if row["metric"] == metric}
    row = rows["1fc"]
    assert (row["same_as"], row["epoch"], row["versus"]) == (said, 0, None)
    if "via" in said:  # bent by the sigmoid, the line has figures of its own, which are not shown
        assert f"{row['value']:.4f}" != f"{rows['ridge']['value']:.4f}"
    else:
        assert row["value"] == pytest.approx(rows[said]["value"], rel=1e-4)
    line = next(line for line in str(fit).splitlines() if line.startswith("1fc"))
    assert f"= {said} " in line
    assert f"{row['value']:.4f}" not in line.removesuffix(f"{row['dev']:.4f}")
    assert fit.best != "1fc"


def test_a_start_that_the_sigmoid_improves_is_still_no_head_of_its_own() -> None:
    """At 62 rows ridge leaves 0 to 1, and its line through a sigmoid does not."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(62, 32)).astype(np.float32)
        votes = rng.integers(5, 40, 62)
        ratio = rng.binomial(votes, 1 / (1 + np.exp(-vectors @ rng.normal(size=32) / 3))) / votes
        data = from_arrays(vectors, ratio, weights=votes, groups=range(62), seed=seed)
        fit = heads.fit(data, heads=["0fc"], folds=3, margin=1e6, dev_only=True, **QUICK)
        assert fit.best in ("const", "ridge")


def test_a_constant_start_is_the_constant_at_any_mean() -> None:
    votes = np.full(200, 500.0)
    ratio = np.random.default_rng(0).binomial(500, 0.003, 200) / 500
    data = from_arrays(np.random.default_rng(1).normal(size=(200, 3)), ratio, weights=votes)
    fit = heads.fit(data, heads=["0fc"], start="constant", margin=1e6, **QUICK)
    assert {row.same_as for row in fit.rows if row.head == "0fc"} == {"const"}


def test_a_choice_at_the_edge_of_what_was_tried_is_noted(sample: Sample) -> None:
    fit = heads.fit(sample(), heads=["1fc"], protocol=protocol_of(
        {"epochs": 2, "learning_rates": [1e-5, 1e-2], "hidden": 8}, name="paper"
    ))  # fmt: skip
    assert "1fc: the chosen learning rate, 0.01, is the highest tried" in fit.notes
    assert "1fc: the chosen epoch, 2, is the last: try more `epochs`" in fit.notes


def test_dev_takes_the_better_of_standardised_and_centred_vectors() -> None:
    rng = np.random.default_rng(0)
    scale = np.r_[np.full(4, 1.0), np.full(60, 0.05)]  # what counts varies most
    vectors = rng.normal(size=(400, 64)) * scale
    target = vectors[:, :4] @ np.ones(4) + rng.normal(size=400)
    data = from_arrays(vectors, target, groups=range(400))
    head = heads.fit(data, heads=["ridge"], **QUICK).heads["ridge"]
    assert np.ptp(head.standard.scale) == 0
    # Here what counts varies least, and standardised vectors let it speak.
    flat = from_arrays(vectors, (vectors / scale)[:, 4:] @ np.ones(60), groups=range(400))
    fit = heads.fit(flat, heads=["ridge"], **QUICK)
    assert np.ptp(fit.heads["ridge"].standard.scale) > 0


@pytest.mark.parametrize("name", ["warm", "paper"])
def test_where_the_truth_is_linear_an_fc_head_is_seldom_best(name: str) -> None:
    """The short form of benchmarks/null.py."""
    best = null.best_heads(12, name=name, n=500, dim=16)
    assert sum(head in FC_NAMES for head in best) <= 3


def test_a_hidden_layer_that_cannot_carry_the_linear_head_is_not_called_that_head() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((600, 12))
    data = from_arrays(vectors, vectors @ rng.standard_normal(12), target="y")
    found = heads.fit(data, heads=["ridge", "1fc"], **(QUICK | {"hidden": 1}))
    rows = {row.head: row for row in found.rows if row.metric == "mse"}
    assert rows["1fc"].value > 2 * rows["ridge"].value
    assert rows["1fc"].same_as is None
    [note] = [note for note in found.notes if "too narrow" in note]
    assert "1fc" in note
    wide = heads.fit(data, heads=["ridge", "1fc"], **(QUICK | {"hidden": 2}))
    assert not [note for note in wide.notes if "too narrow" in note]


def test_fits_that_overlap_in_threads_give_blas_its_threads_back() -> None:
    from threadpoolctl import threadpool_info

    from heads.fitting.threads import threads as without

    def counts() -> list[int]:
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    before = counts()
    first, second = without(), without()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(counts()) == {1}
    second.__exit__(None, None, None)
    assert counts() == before
