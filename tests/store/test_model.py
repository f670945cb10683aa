"""The models of removals and of forgetting: no schedule loses a row, and every rule is needed."""

import pytest

from tests.store import model_of_forgetting
from tests.store.model_of_removal import RULES, check_pairs, check_random


def test_no_schedule_of_the_model_loses_a_row_or_leaves_one() -> None:
    assert check_pairs(step=5) > 6_000
    assert check_random(1_500, seed=1) == 1_500


@pytest.mark.parametrize("rule", [*RULES])
def test_the_model_finds_what_goes_wrong_without_a_rule(rule: str) -> None:
    with pytest.raises(AssertionError, match=r"lost|dangles|lacks rows|left"):
        _search(rule)


def _search(rule: str) -> None:
    if len(RULES[rule]) > 2:
        check_random(5_000, seed=2, rule=rule)
    check_pairs(rule=rule, reach=40)


@pytest.mark.torture
def test_no_schedule_of_the_model_loses_a_row_in_the_long_form() -> None:
    assert check_pairs(reach=24) > 200_000
    assert check_random(300_000, seed=3) == 300_000


def test_no_schedule_of_forgets_loses_an_id_or_leaves_a_photo() -> None:
    assert model_of_forgetting.check_pairs() > 100_000


@pytest.mark.parametrize("rule", model_of_forgetting.RULES)
def test_every_rule_of_forgetting_is_needed(rule: str) -> None:
    with pytest.raises(AssertionError, match=r"lost|left"):
        _search_forgets(rule)


def _search_forgets(rule: str) -> None:
    model_of_forgetting.check_pairs(rule)
    model_of_forgetting.check_triples(rule)


@pytest.mark.torture
def test_no_schedule_of_three_forgets_loses_an_id_or_leaves_a_photo() -> None:
    assert model_of_forgetting.check_triples(reach=8) > 3_000_000
