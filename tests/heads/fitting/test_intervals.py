"""Bootstrap intervals cover the truth as often as they say, also when people come in groups."""

import math

import numpy as np
import pytest

from heads.fitting.intervals import Bootstrap, difference, interval


def covered(*, trials: int, per_person: int, seed: int) -> float:
    """How often the interval of a weighted mean holds the truth (0)."""
    rng = np.random.default_rng(seed)
    people, hits = 120, 0
    groups = np.repeat(np.arange(people), per_person)
    for trial in range(trials):
        values = np.repeat(rng.normal(size=people), per_person) + 0.1 * rng.normal(size=len(groups))
        weight = rng.random(len(groups))
        drawn = Bootstrap(groups, 400, trial).means(values[:, None], weight)[:, 0]
        low, high = interval(drawn, groups=people)
        hits += low <= 0 <= high
    return hits / trials


@pytest.mark.parametrize("per_person", [1, 4])
def test_intervals_cover_the_truth_at_their_nominal_rate(per_person: int) -> None:
    assert 0.91 <= covered(trials=400, per_person=per_person, seed=5) <= 0.98


def test_rows_resampled_without_their_groups_would_cover_less() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 8)
    values = np.repeat(rng.normal(size=50), 8)
    whole = Bootstrap(groups, 500).means(values[:, None], None)[:, 0]
    torn = Bootstrap(np.arange(400), 500).means(values[:, None], None)[:, 0]
    assert whole.std() > 2 * torn.std()


def test_resamples_are_the_same_for_every_column_and_every_call() -> None:
    values = np.random.default_rng(0).random((30, 1))
    boot = Bootstrap(np.arange(30), 50)
    both = boot.means(np.hstack([values, values]), None)
    assert (both[:, 0] == both[:, 1]).all()
    assert (both[:, 0] == boot.means(values, None)[:, 0]).all()
    each = boot.each(lambda draws: float(draws @ values[:, 0] / draws.sum()))
    assert each == pytest.approx(both[:, 0])


def test_a_clear_difference_has_a_small_p_and_none_a_large_one() -> None:
    rng = np.random.default_rng(2)
    scores = rng.random((200, 1)) + np.array([[0.0, 0.3, 0.0]])
    scores[:, 2] += 0.02 * rng.normal(size=200)
    drawn = Bootstrap(np.arange(200), 1000).means(scores, None)
    clear = difference(0.3, drawn[:, 1] - drawn[:, 0], groups=200)
    assert clear.p <= 0.002
    assert clear.low > 0
    assert difference(0.0, drawn[:, 2] - drawn[:, 0], groups=200).p > 0.01


def test_one_group_has_no_interval() -> None:
    drawn = Bootstrap(np.zeros(5, np.int64), 10).means(np.ones((5, 1)), None)[:, 0]
    assert all(map(math.isnan, interval(drawn, groups=1)))
