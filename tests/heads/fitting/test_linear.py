"""The baselines equal scikit-learn's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from heads.dataset import rows
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import Dataset
from heads.fitting import linear
from heads.fitting.logistic import Losses, logistic, search
from heads.head import Standard


def unit(dim: int) -> Standard:
    return Standard(np.zeros(dim, np.float32), np.ones(dim, np.float32))


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


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1e-4, 0.1, 3.0]),
    st.sampled_from([6, 250]),
    st.sampled_from([2, 4]),
)
def test_logistic_equals_scikit_learns(
    seed: int, strength: float, dim: int, n_classes: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(200, dim)).astype(np.float32) * rng.random(dim) + 2
    truth = rng.integers(0, n_classes, 200)
    weight = rng.random(200) * 9
    task = "binary" if n_classes == 2 else "multiclass"
    data = from_arrays(vectors, truth, weights=weight, groups=range(200), task=task)
    part, dev = data.part("train"), data.part("dev")
    standard = linear.fit_standard(part)
    outputs = 1 if n_classes == 2 else n_classes
    found = logistic(part, dev, standard, outputs=outputs, strengths=(strength,)).layer
    rows = standard.apply(part.read()).astype(float)
    assert part.weights is not None
    # At its default solver and tolerance scikit-learn stops 1e-4 short of the minimum; at this one
    # it says that its line search has come to the end of what numbers can tell.
    model = LogisticRegression(C=strength, solver="newton-cg", tol=1e-12, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(rows, part.targets[:, 0], part.weights / part.weights.mean())
    assert found.weight[0] == pytest.approx(model.coef_, abs=1e-6)
    # What is added to all classes alike changes no probability.
    shift = (found.bias[0] - model.intercept_).mean() if n_classes > 2 else 0
    assert found.bias[0] == pytest.approx(model.intercept_ + shift, abs=1e-6)


def test_logistic_in_blocks_and_from_the_cache_is_the_same(
    sample: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    for task, outputs in (("binary", 1), ("classes", 3)):
        data = sample(task=task)
        part, dev = data.part("train"), data.part("dev")
        standard = linear.fit_standard(part)
        whole = logistic(part, dev, standard, outputs=outputs)
        monkeypatch.setattr(rows, "BLOCK_ROWS", 37)
        turned = replace(part, order=np.arange(len(part))[::-1])
        pieces = logistic(turned, dev, standard, outputs=outputs, memory_bytes=1)
        assert pieces.layer.weight == pytest.approx(whole.layer.weight, abs=1e-6)
        assert pieces.strength == whole.strength


def test_a_class_without_a_train_row_is_never_likely() -> None:
    rng = np.random.default_rng(0)
    data = from_arrays(
        rng.normal(size=(60, 3)), list("abc") * 20, subset=[0, 0, 1] * 20, groups=range(60)
    )
    found = logistic(data.part("train"), data.part("dev"), unit(3), outputs=3)
    assert (found.layer.weight[0, 2] == 0).all()
    assert found.layer.bias[0, 2] == -30


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
    monkeypatch.setattr(rows, "BLOCK_ROWS", 37)
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


@pytest.mark.parametrize("dim", [12, 400])
@pytest.mark.parametrize("task", ["ratio", "binary", "classes"])
def test_a_second_scaling_from_the_first_ones_sums_is_that_scaling(
    sample: Callable[..., Dataset], task: str, dim: int
) -> None:
    data = sample(task=task, dim=dim)
    rng = np.random.default_rng(0)
    scaled = np.asarray(data.vectors[np.arange(len(data.ids))]) * rng.random(dim, np.float32) + 1
    data = replace(data, vectors=scaled.astype(np.float32))
    part, dev = data.part("train"), data.part("dev")
    standard = linear.fit_standard(part)
    other = linear.centred(standard)
    if task == "ratio":
        known = linear.Equations(part)
        linear.ridge(part, dev, standard, known=known)
        found, alone = linear.ridge(part, dev, other, known=known), linear.ridge(part, dev, other)
    else:
        losses = Losses(part, 1 if task == "binary" else 3)
        found = search(losses, dev, [standard, other])[1].exact()
        alone = logistic(part, dev, other, outputs=losses.outputs)
    assert found.strength == alone.strength
    assert np.array(found.curve) == pytest.approx(np.array(alone.curve), rel=1e-5)
    assert found.layer.weight == pytest.approx(alone.layer.weight, abs=1e-6)
    assert found.layer.bias == pytest.approx(alone.layer.bias, abs=1e-6)
