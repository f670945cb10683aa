"""A command that was killed and is run again ends what it began: `verify` is content then."""

from typing import Any

import pytest

from tests.together.operations import ALL
from tests.together.workers import Workers, describe

SEED = 22
N_KILLS = 4  # of each; all events take an hour
COMMANDS = [op.name for op in ALL if op.name not in ("read", "repair")]


def _sweeps(n: int) -> list[Any]:
    found: list[dict[str, Any]] = [{"again": name} for name in (*COMMANDS, "compact remote")]
    requests = [*found, {"again": "repair", "damaged": True}]
    return [pytest.param({**one, "n": n, "seed": SEED}, id=str(one["again"])) for one in requests]


@pytest.mark.parametrize("sweep", _sweeps(N_KILLS))
def test_a_rerun_leaves_nothing(sweep: dict[str, Any], workers: Workers) -> None:
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)


@pytest.mark.torture
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("sweep", _sweeps(0))
def test_a_rerun_leaves_nothing_after_any_event(sweep: dict[str, Any], workers: Workers) -> None:
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)
