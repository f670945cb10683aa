"""Folds: every row tested once by heads that never saw its group. Splits that fool are said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import heads
from embedcache.errors import LabelsError
from heads.dataset import split
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import Dataset
from heads.fitting import intervals, metrics

Sample = Callable[..., Dataset]
QUICK: dict[str, Any] = {"epochs": 3, "hidden": 8, "resamples": 200, "learning_rates": (1e-3, 1e-2)}


def test_by_folds_every_row_is_tested_once_and_chooses_once(sample: Sample) -> None:
    data = sample()
    fit = heads.fit(data, folds=5, **QUICK)
    assert fit.test is not None
    assert sorted(fit.test.ids) == sorted(data.ids)
    assert fit.n == {"train": 180, "dev": 300, "test": 300}
    found = fit.document()
    assert found["folds"] == 5
    assert [row["head"] for row in found["rows"]][-1] == "dev's choice"
    choice = found["rows"][-1]
    assert sum(choice["chosen"].values()) == 5
    assert len(found["rows"][-2]["rounds"]) == 5
    assert choice["low"] < choice["value"] < choice["high"]


def test_a_fold_is_tested_by_heads_that_never_saw_its_groups(sample: Sample) -> None:
    data = sample()
    groups = np.arange(300) // 4
    data = replace(data, groups=groups)
    fold = split.folds(groups, data.ids, 5, seed=0)
    for group in range(75):
        assert len(set(fold[groups == group])) == 1
    assert np.bincount(fold).tolist() == pytest.approx([60] * 5, abs=4)
    whole = heads.fit(data, folds=5, heads=["ridge"], **QUICK)
    assert whole.test is not None
    turned = replace(data, targets=np.where(fold == 2, 1 - data.targets, data.targets))
    other = heads.fit(turned, folds=5, heads=["ridge"], **QUICK)
    assert other.test is not None
    same = {
        name: (whole.test.predictions["ridge"][at], other.test.predictions["ridge"][at])
        for at, name in enumerate(whole.test.ids)
    }
    for row, name in enumerate(data.ids):
        if fold[row] == 2:  # their own labels are changed, and their predictions are not
            assert same[name][0] == same[name][1]


def test_a_split_and_folds_are_judged_by_the_same_code(sample: Sample) -> None:
    data = sample()
    fit = heads.fit(data, folds=4, heads=["ridge"], **QUICK)
    assert fit.test is not None
    row = next(row for row in fit.rows if row.head == "ridge")
    errors = (fit.test.truth - fit.test.predictions["ridge"]) ** 2
    assert row.value == pytest.approx(np.average(errors, weights=fit.test.weight))
    assert data.weights is not None
    assert fit.test.noise_floor == pytest.approx(metrics.noise_floor(data.targets, data.weights))


def test_folds_do_not_depend_on_the_order_of_rows_and_need_enough_groups(sample: Sample) -> None:
    groups, ids = np.arange(40) // 2, [f"p{k}" for k in range(40)]
    order = np.random.default_rng(0).permutation(40)
    fold = split.folds(groups, ids, 5, seed=3)
    turned = split.folds(groups[order], [ids[k] for k in order], 5, seed=3)
    assert (turned == fold[order]).all()
    assert (fold != split.folds(groups, ids, 5, seed=4)).any()
    with pytest.raises(LabelsError, match="5 folds of 2 groups"):
        split.folds(np.repeat([0, 1], 20), ids, 5, seed=0)
    with pytest.raises(LabelsError, match="get no group, because one group holds 36 of 40 rows"):
        split.folds(np.r_[np.zeros(36, np.int64), 1, 2, 3, 4], ids, 5, seed=0)
    given = from_arrays(np.eye(40), np.arange(40.0), subset=[0] * 30 + [1] * 5 + [2] * 5)
    given = replace(given, provenance=replace(given.provenance, split_rule="column side"))
    with pytest.raises(LabelsError, match="split is given by column side, and 5 folds"):
        heads.fit(given, folds=5, **QUICK)


def test_a_head_fitted_by_folds_predicts_the_mean_of_the_k(sample: Sample) -> None:
    data = sample()
    fit = heads.fit(data, folds=4, **QUICK)
    vectors = np.random.default_rng(5).normal(size=(7, 12)).astype(np.float32)
    fold = split.folds(data.groups, data.ids, 4, seed=0)
    singles = [
        heads.fit(data.fold(k, fold, 4), dev_only=True, **QUICK).heads["2fc"].predict(vectors)
        for k in range(4)
    ]
    assert fit.heads["2fc"].predict(vectors) == pytest.approx(np.mean(singles, 0), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"groups": np.r_[np.zeros(60, np.int64), np.arange(1, 241)]}, "one group holds 20 %"),
        ({"subset": np.repeat([0, 1, 2], [280, 10, 10]).astype(np.uint8)}, "10 dev rows choose"),
        ({"subset": np.repeat([0, 1, 2], [280, 10, 10]).astype(np.uint8)}, "10 test rows judge"),
    ],
)
def test_a_misleading_split_is_noted(sample: Sample, change: dict[str, Any], note: str) -> None:
    fit = heads.fit(replace(sample(), **change), heads=["ridge"], **QUICK)
    assert any(note in line for line in fit.notes), fit.notes
    assert note in str(fit)


def test_a_class_without_dev_or_test_rows_is_noted(sample: Sample) -> None:
    data = sample(task="binary")
    lost = (data.targets == 1) & (data.subset == 2)
    subset = np.where(lost, 0, data.subset).astype(np.uint8)
    fit = heads.fit(replace(data, subset=subset), heads=["logistic"], **QUICK)
    assert any(line.startswith("class 'M' has no test row") for line in fit.notes)


def test_few_effective_rows_are_noted_in_the_table(sample: Sample) -> None:
    data = sample(n=300)
    heavy = np.where(np.arange(300) % 50 == 0, 1000.0, 1.0)
    fit = heads.fit(replace(data, weights=heavy, counts=False), heads=["ridge"], **QUICK)
    assert fit.test is not None
    assert fit.test.n_effective < 30
    assert f"which count as {fit.test.n_effective:.0f}. Intervals may be too narrow" in str(fit)
    assert f"(Kish, by group): {fit.test.n_effective:.0f}" in str(fit)


def test_an_explained_share_resamples_constant_error_and_floor_together(sample: Sample) -> None:
    data = sample(n=400)
    fit = heads.fit(data, heads=["ridge"], **QUICK)
    test = fit.test
    assert test is not None
    assert test.weight is not None
    n, found = len(test.ids), []
    order = np.argsort(test.groups, kind="stable")
    truth, weight = test.truth[order], test.weight[order]
    seen = {name: test.predictions[name][order] for name in ("const", "ridge")}
    for drawn in np.random.default_rng(0).integers(0, n, (200, n)):
        error = {
            name: metrics.mse(truth[drawn], p[drawn], weight[drawn]) for name, p in seen.items()
        }
        floor = metrics.noise_floor(truth[drawn], weight[drawn])
        found.append(metrics.explainable_share(error["const"], error["ridge"], floor))
    row = next(row for row in fit.rows if row.head == "ridge")
    ends = [min(float(end), 1.0) for end in np.quantile(found, [0.025, 0.975])]
    assert row.extra["explainable_share_low"] == pytest.approx(ends[0], rel=1e-6)
    assert row.extra["explainable_share_high"] == pytest.approx(ends[1], rel=1e-6)


def knows_nothing(seed: int, *, task: str = "regression", n: int = 120) -> Dataset:
    """Vectors that have nothing to do with the target."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=n) if task == "regression" else rng.integers(0, 2, n)
    return from_arrays(rng.normal(size=(n, 20)), target, groups=range(n), task=task, seed=seed)


@pytest.mark.parametrize("task", ["regression", "binary"])
def test_by_folds_nothing_but_the_constant_is_best_of_noise(task: str) -> None:
    base = "ridge" if task == "regression" else "logistic"
    fits = [heads.fit(knows_nothing(seed, task=task), heads=[base], folds=5, dev_only=True)
            for seed in range(20)]  # fmt: skip
    assert sum(fit.best != "const" for fit in fits) <= 1
    for fit in fits:
        counts = next(row.chosen for row in fit.rows if row.chosen)
        assert counts[fit.best] == max(counts.values())


@pytest.mark.parametrize(
    ("task", "name", "nothing"),
    [
        ("regression", "pearson", 0.0),
        ("regression", "rank_correlation", 0.0),
        ("binary", "auc", 0.5),
    ],
)
def test_by_folds_a_head_that_knows_nothing_has_no_correlation(
    task: str, name: str, nothing: float
) -> None:
    """A fold that lies high leaves lower rows to learn from: pooled, a constant looks wrong."""
    found, held = [], []
    for seed in range(25):
        data = knows_nothing(seed, task=task, n=80)
        fit = heads.fit(data, heads=["const"], folds=5, resamples=10)
        for row in fit.rows:
            if name not in row.extra or row.head == "const":
                continue
            if "const" in (row.chosen or {}):  # some heads have an order, others none
                assert np.isnan(row.extra[name])
                continue
            value, low, high = (row.extra[name + end] for end in ("", "_low", "_high"))
            found.append(value)
            held.append(not (np.isfinite(low + high)) or low <= nothing <= high)
    assert len(found) > 20
    assert abs(np.mean(found) - nothing) < 3 * np.std(found) / np.sqrt(len(found)) + 0.02
    assert np.mean(held) > 0.85


def test_by_folds_figures_of_order_are_those_of_a_split_where_heads_know_much(
    sample: Sample,
) -> None:
    fit = heads.fit(sample(), heads=["ridge"], folds=5, **QUICK)
    assert fit.test is not None
    row = next(row for row in fit.rows if row.head == "ridge")
    seen = fit.test.predictions["ridge"]
    pooled = np.cov(fit.test.truth, seen, aweights=fit.test.weight)
    r = pooled[0, 1] / np.sqrt(pooled[0, 0] * pooled[1, 1])
    assert row.extra["pearson"] == pytest.approx(r, abs=0.03)
    ranked = metrics.rank_correlation(fit.test.truth, seen)
    assert row.extra["rank_correlation"] == pytest.approx(ranked, abs=0.03)
    assert row.extra["calibration_slope"] == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("rows_per_person", [1, 3])
def test_each_fold_holds_its_share_of_every_class(rows_per_person: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "rare"], 240, p=[0.6, 0.32, 0.08])
    people = np.arange(240) // rows_per_person
    labels = labels[people * rows_per_person]  # a person is of one class
    data = from_arrays(rng.normal(size=(240, 3)), labels, groups=people.tolist())
    fold = data.folds(5, seed=1)
    assert all(len(set(fold[people == person])) == 1 for person in range(people.max() + 1))
    assert np.bincount(fold).tolist() == pytest.approx([48] * 5, abs=2 * rows_per_person)
    for code in range(3):
        n = int((data.targets == code).sum())
        held = np.bincount(fold[data.targets == code], minlength=5)
        assert held.tolist() == pytest.approx([n / 5] * 5, abs=rows_per_person)


def test_by_folds_the_constant_is_right_as_often_as_the_larger_class() -> None:
    """Folds that hold more of one class leave fewer of it to learn from, and made this 0.45."""
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(101) % 2)
        data = from_arrays(rng.normal(size=(101, 4)), labels, groups=range(101), seed=seed)
        fit = heads.fit(data, heads=["const"], folds=5)
        found.append(next(r.value for r in fit.rows if (r.head, r.metric) == ("const", "accuracy")))
    assert np.mean(found) > 0.49


def test_what_folds_compare_is_widened(sample: Sample) -> None:
    fit = heads.fit(sample(), heads=["ridge"], folds=5, resamples=10)
    assert fit.test is not None
    test, row = fit.test, next(row for row in fit.rows if row.head == "const")
    assert row.versus is not None
    plain = intervals.difference(
        test.sample, *((test.truth - test.predictions[h]) ** 2 for h in ("const", "ridge"))
    )
    width = (row.versus["high"] - row.versus["low"]) / (plain.high - plain.low)
    assert width == pytest.approx(np.sqrt(1 + 5 / 3), rel=1e-6)
    assert fit.compare("const", "ridge").high == pytest.approx(row.versus["high"])
    ridge = next(row for row in fit.rows if row.head == "ridge")
    low, r, high = (ridge.extra[f"pearson{end}"] for end in ("_low", "", "_high"))
    _, one, other = intervals.correlation(
        test.sample, test.truth, test.predictions["ridge"], test.fold
    )
    assert low < one < r < other < high


def test_a_class_with_fewer_rows_than_folds_is_noted(sample: Sample) -> None:
    data = sample(task="binary")
    rare = np.flatnonzero(data.targets == 1)[3:]
    data = replace(data, targets=np.where(np.isin(np.arange(300), rare), 0, data.targets))
    fit = heads.fit(data, heads=["const"], folds=5, **QUICK)
    assert any("class 'M' has 3 rows for 5 folds" in note for note in fit.notes)


def test_devs_choice_of_one_head_in_all_folds_is_no_further_comparison() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 4))
    data = from_arrays(vectors, vectors @ np.ones(4), groups=range(300), task="regression")
    found = heads.fit(data, heads=["ridge"], folds=5, **QUICK).document()
    choice = found["rows"][-1]
    assert choice["chosen"] == {"ridge": 5}
    assert choice["versus"] is None
    assert found["n_comparisons"] == 1
