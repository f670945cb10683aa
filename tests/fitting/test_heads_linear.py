"""The baselines equal scikit-learn's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from heads import linear
from heads.dataset import Dataset, from_arrays


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 10.0, 1e4]), st.sampled_from([5, 200]))
def test_ridge_equals_scikit_learns(seed: int, strength: float, dim: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(120, dim)).astype(np.float32) + 3
    weight = rng.random(120) * 9
    targets = rng.random((120, 2))
    data = from_arrays(vectors, targets, weights=weight, groups=range(120))
    part, dev = data.part("train"), data.part("dev")
    standard = linear.fit_standard(part)
    found = linear.ridge(part, dev, standard, strengths=(strength,))
    rows = StandardScaler().fit_transform(part.read().astype(float))
    assert part.weights is not None
    model = Ridge(alpha=strength).fit(rows, part.targets, part.weights / part.weights.mean())
    mine = rows @ found.layer.weight[0].T + found.layer.bias[0]
    assert mine == pytest.approx(model.predict(rows), abs=1e-6 * (1 + 10 * (strength < 1)))


def test_logistic_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 6)).astype(np.float32)
    truth = rng.integers(0, 3, 200)
    data = from_arrays(vectors, truth, groups=range(200), task="multiclass")
    part, dev = data.part("train"), data.part("dev")
    standard = linear.fit_standard(part)
    found = linear.logistic(part, dev, standard, outputs=3, strengths=(0.1,))
    rows = standard.apply(part.read())
    model = LogisticRegression(C=0.1, max_iter=300).fit(rows, part.targets[:, 0])
    assert found.layer.weight[0] == pytest.approx(model.coef_, abs=1e-6)
    assert found.layer.bias[0] == pytest.approx(model.intercept_, abs=1e-6)


def test_the_strength_is_the_one_with_the_best_dev_figure(sample: Callable[..., Dataset]) -> None:
    data = sample(noise=2.0)
    part, dev = data.part("train"), data.part("dev")
    found = linear.ridge(part, dev, linear.fit_standard(part))
    assert found.dev == min(score for _, score in found.curve)
    assert (found.strength, found.dev) in found.curve


def test_blocks_add_up_to_the_whole(
    sample: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sample()
    part, dev = data.part("train"), data.part("dev")
    whole = linear.ridge(part, dev, linear.fit_standard(part))
    monkeypatch.setattr(linear, "_BLOCK", 37)
    pieces = linear.ridge(part, dev, linear.fit_standard(part))
    assert pieces.layer.weight == pytest.approx(whole.layer.weight, abs=1e-6)
    assert pieces.strength == whole.strength


def test_a_float_that_never_moves_is_left_alone() -> None:
    vectors = np.column_stack([np.full(30, 7.3), np.arange(30)]).astype(np.float32)
    data = from_arrays(vectors, np.arange(30.0))
    standard = linear.fit_standard(data.part("train"))
    assert standard.scale[0] == 1
    assert np.isfinite(standard.apply(vectors)).all()


def test_the_constant_is_the_weighted_mean(sample: Callable[..., Dataset]) -> None:
    data = sample()
    part, dev = data.part("train"), data.part("dev")
    found = linear.constant(part, dev, dim=data.dim, link="identity", outputs=1)
    mean = np.average(part.targets[:, 0], weights=part.weights)
    assert found.layer.bias[0, 0] == pytest.approx(mean)
    light = replace(part, weights=None)
    plain = linear.constant(light, dev, dim=data.dim, link="identity", outputs=1)
    assert plain.layer.bias[0, 0] == pytest.approx(part.targets.mean())
