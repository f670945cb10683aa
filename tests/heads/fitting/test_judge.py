"""Figures on test rows: what they say, what they leave out, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import heads
from embedcache.errors import InputError, LabelsError
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import Dataset
from heads.fitting import intervals

Sample = Callable[..., Dataset]
QUICK: dict[str, Any] = {"epochs": 3, "hidden": 8, "resamples": 200, "learning_rates": (1e-3, 1e-2)}


def test_errors_are_reported_by_group(sample: Sample) -> None:
    data = sample()
    gender = tuple("F" if k % 3 else "M" for k in range(300))
    fit = heads.fit(replace(data, by={"gender": gender}), heads=["ridge"], **QUICK)
    found = fit.document()["by"]
    assert {(one["group"], one["head"]) for one in found} == {
        (group, head) for group in "FM" for head in ("const", "ridge", "const by gender")
    }
    assert sum(one["n"] for one in found if one["head"] == "ridge") == fit.dataset.n["test"]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("task", ["ratio", "binary", "classes"])
def test_a_test_of_one_to_three_groups_says_what_is_not_known(
    sample: Sample, n: int, task: str
) -> None:
    data = sample(n=120, task=task)
    side = np.repeat([0, 1, 2], [80, 20, 20]).astype(np.uint8)
    groups = np.where(side == 2, 200 + np.arange(120) % n, np.arange(120))
    data = replace(data, subset=side, groups=groups, by={"who": ("a", "b") * 60})
    fit = heads.fit(data, heads=["1fc"], **QUICK)
    text = str(fit)
    assert "nan" not in text.lower()
    assert "e+" not in text
    for row in fit.rows:
        assert math.isnan(row.low) == math.isnan(row.high)
        if row.versus:
            unknown = [math.isnan(row.versus[name]) for name in ("low", "high", "p", "p_adjusted")]
            assert len(set(unknown)) == 1
            assert unknown[0] == (n == 1)
            assert not row.versus["p"] < 0.05
            assert not row.versus["low"] > 0
            assert not row.versus["high"] < 0
    if n == 1:
        assert "not known at n = 1" in text
        assert "<0.001" not in text


def test_each_comparison_has_a_p_adjusted_for_all_of_them(sample: Sample) -> None:
    fit = heads.fit(sample(task="binary"), **QUICK)
    versus = [row["versus"] for row in fit.document()["rows"] if row["versus"]]
    left = [
        row for row in fit.document()["rows"] if not row["same_as"] and row["head"] != "logistic"
    ]
    assert fit.document()["n_comparisons"] == len(versus) == len(left) >= 2
    assert all(0 < one["p"] <= one["p_adjusted"] <= 1 for one in versus)
    assert f"adjusted for {len(left)} comparisons (Holm)" in str(fit)


def test_the_constant_of_each_group_stands_beside_every_report_by_group() -> None:
    rng = np.random.default_rng(1)
    gender = np.where(rng.random(600) < 0.5, "F", "M")
    ratio = np.clip(np.where(gender == "F", 0.6, 0.2) + 0.02 * rng.normal(size=600), 0, 1)
    data = from_arrays(rng.normal(size=(600, 4)), ratio, groups=range(600))
    data = replace(data, by={"gender": tuple(gender)})
    fit = heads.fit(data, heads=["ridge"], **QUICK)
    value = {row.head: row.value for row in fit.rows}
    assert value["const by gender"] < 0.05 * value["const"]
    found = fit.document()["by"]
    assert {one["head"] for one in found} == {"const", "ridge", "const by gender"}
    assert all(one["versus"]["head"] == "const by gender"
               for one in found if one["head"] != "const by gender")  # fmt: skip
    own = replace(data, target="gender")  # a target explains itself: no such baseline
    assert not any("by" in row.head for row in heads.fit(own, heads=["ridge"], **QUICK).rows)


def test_an_explained_share_is_never_above_what_can_be_said(sample: Sample) -> None:
    data = sample(n=900)
    assert data.weights is not None

    def counted(votes: NDArray[np.float64]) -> Dataset:
        return replace(data, weights=votes, targets=np.round(data.targets * votes) / votes)

    few = np.minimum(data.weights, 3.0)
    for seed in range(3):
        fit = heads.fit(counted(few), heads=["ridge"], seed=seed, **QUICK)
        for row in fit.rows:
            assert not row.extra["explainable_share_high"] > 1
            assert not row.extra["explainable_share"] > 1
    single = np.where(np.arange(900) % 2, 1.0, few)
    notes = heads.fit(counted(single), heads=["ridge"], **QUICK).notes
    assert any("test rows have one vote each" in note for note in notes)


def test_calibration_is_a_slope_and_an_intercept(sample: Sample) -> None:
    rows = heads.fit(sample(n=3000, noise=0.6, task="binary"), heads=["logistic"], **QUICK).rows
    extra = next(r.extra for r in rows if (r.head, r.metric) == ("logistic", "log_loss"))
    assert extra["calibration_slope_low"] < 1 < extra["calibration_slope_high"]
    assert extra["calibration_intercept_low"] < 0 < extra["calibration_intercept_high"]


def test_where_the_constant_is_at_the_noise_floor_so_is_what_equals_it() -> None:
    rng = np.random.default_rng(3)
    votes = rng.integers(5, 30, 300)
    ratio = rng.binomial(votes, 0.4) / votes  # one probability for all: nothing to explain
    for seed in range(10):
        data = from_arrays(
            rng.normal(size=(300, 4)), ratio, weights=votes, groups=range(300), seed=seed
        )
        fit = heads.fit(data, heads=["ridge"], **QUICK)
        for row in fit.rows:
            assert bool(row.extra["at_floor"]) == (row.value <= fit.noise_floor)
        const = next(row for row in fit.rows if row.head == "const")
        if const.extra["at_floor"]:
            line = next(line for line in str(fit).splitlines() if line.startswith("const"))
            assert "at the floor" in line
            return
    raise AssertionError("no test sample happened to lie at the floor")


def test_comparisons_by_group_are_adjusted_among_themselves(sample: Sample) -> None:
    data = sample()
    by = {"side": tuple("left" if k % 2 else "right" for k in range(300))}
    found = heads.fit(replace(data, by=by), **QUICK).document()
    versus = [one["versus"] for one in found["by"] if "versus" in one]
    assert len(versus) >= 4
    p = [one["p"] for one in versus]
    assert [one["p_adjusted"] for one in versus] == pytest.approx(intervals.holm(p))
    assert found["n_comparisons"] == sum(bool(row["versus"]) for row in found["rows"])


@pytest.mark.parametrize("value", [7.0, 1.7e9])
def test_a_target_that_hardly_moves_has_no_r2_and_a_note(value: float) -> None:
    rng = np.random.default_rng(0)
    moves = value + (0 if value == 7 else rng.normal(size=100))
    data = from_arrays(rng.normal(size=(100, 4)), np.full(100, moves), task="regression")
    fit = heads.fit(data, heads=["ridge"], **QUICK)
    assert all(np.isnan(row.extra["r2"]) for row in fit.rows)
    said = "every target is 7: there is nothing" if value == 7 else "varies by less than a head"
    assert any(said in note for note in fit.notes), fit.notes


def test_by_group_too_a_head_that_stayed_is_no_comparison(sample: Sample) -> None:
    by = {"side": tuple("left" if k % 2 else "right" for k in range(300))}
    data = replace(sample(), by=by)
    found = heads.fit(data, heads=["1fc"], margin=1e6, **QUICK).document()
    assert {one["head"] for one in found["by"] if "versus" in one} == {"const", "ridge"}


def test_a_head_at_the_floor_shows_what_else_it_may_be(sample: Sample) -> None:
    rng = np.random.default_rng(4)
    votes = np.full(400, 8)
    ratio = rng.binomial(votes, 0.5) / votes
    data = from_arrays(rng.normal(size=(400, 3)), ratio, weights=votes, groups=range(400), seed=2)
    data = replace(data, targets=np.where(data.subset == 2, data.targets.mean(), data.targets))
    fit = heads.fit(data, heads=["ridge"], **QUICK)
    assert any("not told apart from one that explains all" in note for note in fit.notes)
    few = heads.fit(sample(n=100), heads=["ridge"], **QUICK)  # 15 test rows
    assert few.test is not None
    assert few.test.n_effective < 30
    assert all(np.isnan(row.extra["explainable_share_low"]) for row in few.rows)


def test_targets_of_any_scale_print_their_figures(sample: Sample) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 4))
    target = vectors @ [1.0, 2.0, 0.0, 1.0] + rng.normal(size=200)
    lines = []
    for scale in (1e-4, 1e5):
        data = from_arrays(vectors, scale * target, groups=range(200), task="regression")
        fit = heads.fit(data, heads=["ridge"], **QUICK)
        row = next(row for row in fit.rows if row.head == "ridge")
        assert row.extra["r2"] > 0.7
        lines.append(next(line for line in str(fit).splitlines() if line.startswith("ridge")))
    assert "0.0000" not in lines[0].split("e-")[0]
    assert "e-09" in lines[0]
    assert "e+10" in lines[1] or "e+09" in lines[1]
    with pytest.raises(LabelsError, match=r"lies beyond 1e\+18 .first: 3 has 1e\+200"):
        from_arrays(np.eye(5), [0.0, 1.0, 2.0, 1e200, 5.0])


def test_rows_without_weight_have_no_rank(sample: Sample) -> None:
    data = sample(n=300)
    assert data.weights is not None
    silent = (np.arange(300) % 4 == 0) & (data.subset == 2)
    first = replace(data, weights=np.where(silent, 0, data.weights))
    turned = replace(first, targets=np.where(silent, 1 - data.targets, data.targets))
    ranks = [
        next(row.extra["rank_correlation"] for row in heads.fit(one, heads=["ridge"], **QUICK).rows
             if row.head == "ridge")
        for one in (first, turned)
    ]  # fmt: skip
    assert ranks[0] == ranks[1]


def test_heads_of_several_targets_are_not_compared_as_one(sample: Sample) -> None:
    one = sample()
    both = from_arrays(one.vectors[np.arange(300)], np.stack([one.targets] * 2, 1))
    with pytest.raises(InputError, match="target by target"):
        heads.fit(both, heads=["ridge"], **QUICK).compare("const", "ridge")


@pytest.mark.parametrize(("task", "metric"), [("ratio", "auc"), ("binary", "mse")])
def test_a_metric_that_a_task_does_not_have_is_named(
    sample: Sample, task: str, metric: str
) -> None:
    fit = heads.fit(sample(task=task), heads=["const"], **QUICK)
    base = "ridge" if task == "ratio" else "logistic"
    with pytest.raises(InputError, match=f"are compared by .*; got '{metric}'"):
        fit.compare("const", base, metric=metric)
