"""Every figure equals a reference implementation's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from heads.fitting import metrics

seeds = st.integers(0, 10_000)


def draw(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    truth[:2] = 0, 1
    probability = np.round(rng.random(n), 2)
    return truth, probability, rng.random(n), rng.integers(1, 9, n).astype(float)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_weighted_figures_equal_scikit_learns(seed: int) -> None:
    truth, probability, ratio, weight = draw(seed)
    one = probability.clip(1e-3, 1 - 1e-3)
    assert metrics.mse(ratio, probability, weight) == pytest.approx(
        reference.mean_squared_error(ratio, probability, sample_weight=weight), abs=1e-12
    )
    assert metrics.r2(ratio, probability, weight) == pytest.approx(
        reference.r2_score(ratio, probability, sample_weight=weight), abs=1e-9
    )
    assert metrics.log_loss(truth, one, weight) == pytest.approx(
        reference.log_loss(truth, one, sample_weight=weight), abs=1e-9
    )
    assert metrics.accuracy(truth, probability, weight) == pytest.approx(
        reference.accuracy_score(truth, probability > 0.5, sample_weight=weight), abs=1e-12
    )
    assert metrics.auc(truth, probability, weight) == pytest.approx(
        reference.roc_auc_score(truth, probability, sample_weight=weight), abs=1e-9
    )


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_several_classes_equal_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, 50)
    probability = rng.dirichlet(np.ones(4), 50)
    weight = rng.random(50)
    assert metrics.log_loss(truth, probability, weight) == pytest.approx(
        reference.log_loss(truth, probability, labels=range(4), sample_weight=weight), abs=1e-9
    )
    assert metrics.accuracy(truth, probability) == pytest.approx(
        reference.accuracy_score(truth, probability.argmax(1))
    )


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_rank_correlation_equals_scipys_and_a_weight_is_so_many_rows(seed: int) -> None:
    _, probability, ratio, weight = draw(seed)
    tied = np.round(ratio, 1)
    assert metrics.rank_correlation(tied, probability) == pytest.approx(
        stats.spearmanr(tied, probability).statistic, abs=1e-9
    )
    many = weight.astype(int)
    assert metrics.rank_correlation(tied, probability, weight) == pytest.approx(
        stats.spearmanr(np.repeat(tied, many), np.repeat(probability, many)).statistic, abs=1e-9
    )


def test_reliability_of_a_perfect_and_of_a_sure_but_wrong_prediction() -> None:
    truth = np.array([0.0, 0, 1, 1])
    assert metrics.reliability(truth, truth).error == 0
    assert metrics.reliability(truth, 1 - truth).error == 1
    curve = metrics.reliability(truth, np.array([0.05, 0.05, 0.05, 0.95]))
    assert curve.predicted == pytest.approx([0.05, 0.95])
    assert curve.observed == pytest.approx([1 / 3, 1])
    assert curve.share == pytest.approx([0.75, 0.25])


def test_noise_floor_is_what_a_perfect_predictor_shows() -> None:
    rng = np.random.default_rng(0)
    count = rng.integers(2, 30, 40_000)
    truth = rng.random(40_000)
    ratio = rng.binomial(count, truth) / count
    assert metrics.noise_floor(ratio, count) == pytest.approx(
        metrics.mse(ratio, truth, count), rel=0.02
    )


def test_the_noise_floor_is_unbiased_however_few_the_rows() -> None:
    rng = np.random.default_rng(2)
    count, truth = rng.integers(2, 9, 12), rng.random(12)
    floors = [metrics.noise_floor(rng.binomial(count, truth) / count, count) for _ in range(4000)]
    expected = np.sum(truth * (1 - truth)) / count.sum()
    assert np.mean(floors) == pytest.approx(expected, abs=4 * np.std(floors) / np.sqrt(4000))


def test_noise_floor_takes_rows_of_one_trial_as_the_others() -> None:
    rng = np.random.default_rng(1)
    count = rng.integers(1, 4, 60_000)
    truth = rng.random(60_000)
    ratio = rng.binomial(count, truth) / count
    assert metrics.noise_floor(ratio, count) == pytest.approx(
        metrics.mse(ratio, truth, count), rel=0.03
    )
    assert math.isnan(metrics.noise_floor([0.0, 1.0], [1, 1]))


def test_figures_that_are_not_defined_are_nan() -> None:
    assert math.isnan(metrics.r2([0.5, 0.5], [0.1, 0.2]))
    assert math.isnan(metrics.rank_correlation([0.5, 0.5], [0.1, 0.2]))
    assert math.isnan(metrics.auc([1, 1], [0.1, 0.2]))
    assert math.isnan(metrics.mean([1.0], [0.0]))
    assert math.isnan(metrics.explainable_share(0.01, 0.01, 0.02))
    assert metrics.explainable_share(0.04, 0.02, 0.01) == pytest.approx(2 / 3)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_the_reliability_curve_equals_scikit_learns(seed: int) -> None:
    truth, _, _, _ = draw(seed)
    probability = np.random.default_rng(seed).random(60)  # no value on the edge of a bin
    observed, predicted = calibration_curve(truth, probability, n_bins=10)
    curve = metrics.reliability(truth, probability)
    assert curve.observed == pytest.approx(observed, abs=1e-9)
    assert curve.predicted == pytest.approx(predicted, abs=1e-9)
    assert curve.error == pytest.approx(curve.share @ np.abs(observed - predicted), abs=1e-9)
