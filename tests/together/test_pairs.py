"""Every ordered pair of commands: the first is paused, or killed, while the second runs."""

from typing import Any

import pytest

from tests.together.operations import ALL, TWINS
from tests.together.workers import Workers, describe

N_PAUSES = 8
SEED = 20
PAIRS = [
    *((x.name, y.name) for x in ALL for y in ALL),
    *((x.name, y.name) for x in TWINS for y in TWINS if x is not y),
]


def _sweeps(n: int) -> list[Any]:
    return [pytest.param({"x": x, "y": y, "n": n, "seed": SEED}, id=f"{x} / {y}") for x, y in PAIRS]


@pytest.mark.parametrize("sweep", _sweeps(N_PAUSES))
def test_nothing_is_lost_or_back_when_one_command_runs_amid_another(
    sweep: dict[str, Any], workers: Workers
) -> None:
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)


@pytest.mark.torture
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("sweep", _sweeps(0))
def test_nothing_is_lost_or_back_at_any_event(sweep: dict[str, Any], workers: Workers) -> None:
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)
