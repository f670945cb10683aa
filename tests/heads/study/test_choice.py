"""What a study calls chosen: by folds in each of them, so that no photo chooses what it tests."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

import heads
from benchmarks import equal_backbones
from heads.dataset import split
from heads.dataset.arrays import from_arrays
from heads.study.kept import KeptFit, chosen
from heads.study.results import compare
from heads.study.rows import ALL, Comparison


@pytest.fixture(scope="module")
def pair() -> list[KeptFit]:
    return equal_backbones.fits(0, folds=5, n_backbones=2, n=150)


def test_each_fold_takes_the_fit_that_its_own_dev_rows_chose(pair: list[KeptFit]) -> None:
    first = msgspec.structs.replace(pair[0], dev_of_choice=(1.0, 2.0, 1.0, 2.0, 1.0))
    second = msgspec.structs.replace(pair[1], dev_of_choice=(2.0, 1.0, 2.0, 1.0, 2.0))
    both = chosen([first, second], ALL)
    for seen, fold, one, other in zip(
        both.predictions["dev's choice"],
        first.fold,
        first.predictions["dev's choice"],
        second.predictions["dev's choice"],
        strict=True,
    ):
        assert seen == (other if fold in (1, 3) else one)
    row = both.row("dev's choice")
    assert row["value"] == pytest.approx(both.losses("dev's choice").mean())
    assert row["low"] < row["value"] < row["high"]
    assert (row["dev"], both.key, both.backbone) == (1.0, "", "all")
    assert both.spec.split() == ["b0", "b1"]
    assert set(both.predictions) == {"const", "dev's choice"}


def test_what_tests_a_fold_has_no_say_in_its_choice() -> None:
    rng = np.random.default_rng(5)
    vectors, target = rng.normal(size=(150, 6)), rng.normal(size=150)
    target += vectors @ rng.normal(size=6)
    before = from_arrays(vectors, target, groups=range(150), task="regression")
    fold = split.folds(before.groups, before.ids, 5, seed=0)
    after = replace(before, targets=np.where(fold == 2, 50 - 9 * target, target))
    dev = [heads.fit(data, heads=["ridge"], folds=5).dev_of_choice for data in (before, after)]
    assert dev[0][2] == dev[1][2]
    assert dev[0][1] != dev[1][1]  # fold 2 chooses for round 1


def test_where_all_folds_agree_it_is_that_fit(pair: list[KeptFit]) -> None:
    first = msgspec.structs.replace(pair[0], dev_of_choice=(0.0,) * 5)
    assert chosen([pair[1], first], ALL) is first


def test_equal_backbones_are_seldom_told_apart() -> None:
    """The short form of benchmarks/equal_backbones.py: the best of four against one."""
    said, _ = equal_backbones.verdicts(range(30), folds=5, k=4, n=150)
    assert said <= 0.1
    said, plain = equal_backbones.verdicts(range(30), folds=5, k=1, n=150)
    assert said <= 0.1
    assert said <= plain


def a_comparison(**fields: float) -> Comparison:
    fit = equal_backbones.fits(1, folds=None, n_backbones=1, n=90)[0]
    return replace(compare(fit, fit), **fields)  # type: ignore[arg-type]


def test_a_verdict_needs_both_intervals_and_the_adjusted_p() -> None:
    sure = a_comparison(low=0.1, high=0.3, share_low=0.05, share_high=0.4, p_adjusted=0.01)
    assert sure.verdict == 1
    assert replace(sure, share_low=-0.01).verdict == 0
    assert replace(sure, p_adjusted=0.06).verdict == 0
    turned = a_comparison(low=-0.3, high=-0.1, share_low=-0.4, share_high=-0.05, p_adjusted=0.01)
    assert turned.verdict == -1
    assert replace(turned, share_high=0.01).verdict == 0


def test_the_share_tells_no_other_story_than_the_difference() -> None:
    for seed in range(12):
        one, other = equal_backbones.fits(seed, folds=None, n_backbones=2, n=120)
        found = compare(one, other)
        if found.low <= 0 <= found.high and np.isfinite(found.share_low):
            assert found.share_low <= 0 <= found.share_high


def test_the_choice_does_not_depend_on_the_unit_of_the_target(pair: list[KeptFit]) -> None:
    worse, better = (
        msgspec.structs.replace(fit, dev_of_choice=(loss,) * 5)
        for fit, loss in zip(pair, (5e-8, 2e-9), strict=True)
    )
    assert chosen([worse, better], ALL) is better
