"""Every ordered pair of commands: the first is paused, or killed, while the second runs."""

from typing import Any

import pytest

from tests.together.operations import ALL, COMPACT_LITTLE, NAMING, TWINS
from tests.together.workers import Workers, describe

N_PAUSES = 1  # and as many kills: the whole room takes three minutes, all events hours
SEED = 20
NAMES = [op.name for op in ALL]
LITTLE = COMPACT_LITTLE.name
PAIRS = [
    *((x, y) for x in NAMES for y in NAMES),
    *((x.name, y.name) for x in TWINS for y in TWINS if x is not y),
    *((LITTLE, y) for y in ("forget", "forget others", "forget space", "read", "ref", LITTLE)),
    *(
        (x, LITTLE)
        for x in ("forget", "forget others", "forget space", "read", "ref", "merge", "pull")
    ),
    *((x, TWINS[0].name) for x in ("merge", "pull", "extract")),
    *((NAMING.name, y) for y in ("forget others", "compact", "repair")),
    *((x, NAMING.name) for x in ("forget others", "compact", "forget space")),
]


def _sweeps(n: int) -> list[Any]:
    return [pytest.param({"x": x, "y": y, "n": n, "seed": SEED}, id=f"{x} / {y}") for x, y in PAIRS]


@pytest.mark.parametrize("sweep", _sweeps(N_PAUSES))
def test_nothing_is_lost_or_back_when_one_command_runs_amid_another(
    sweep: dict[str, Any], workers: Workers
) -> None:
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)


WRITERS = ("extract", "import", "merge", "forget", "forget space", "compact")
# The host that looks at drafts, and at leftovers, of others.
LOOKERS = ("salvage", "compact")


@pytest.mark.parametrize(
    "sweep",
    [
        pytest.param({"x": x, "y": y, "n": N_PAUSES, "seed": SEED, "far": True}, id=f"{x} / {y}")
        for x in WRITERS
        for y in LOOKERS
    ],
)
def test_nothing_is_lost_or_back_when_locks_bind_nobody_and_clocks_are_wrong(
    sweep: dict[str, Any], workers: Workers
) -> None:
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)


DAMAGE = [
    *((x, y) for x in ("compact", LITTLE, "forget") for y in ("repair", "forget", LITTLE)),
    *(("repair", y) for y in ("compact", LITTLE, "forget", "pull", "read")),
    *((x, LITTLE) for x in ("merge", "pull", "push")),
]


@pytest.mark.parametrize(
    "sweep",
    [
        pytest.param({"x": x, "y": y, "n": 2, "seed": SEED, "damaged": True}, id=f"{x} / {y}")
        for x, y in DAMAGE
    ],
)
def test_the_good_copy_of_a_damaged_row_is_kept(sweep: dict[str, Any], workers: Workers) -> None:
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)


@pytest.mark.torture
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("sweep", _sweeps(0))
def test_nothing_is_lost_or_back_at_any_event(sweep: dict[str, Any], workers: Workers) -> None:
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)


@pytest.mark.parametrize("sweep", [{"ops": NAMES, "n": 12, "seed": SEED + i} for i in range(2)])
def test_nothing_is_lost_or_back_when_three_commands_take_turns(
    sweep: dict[str, Any], workers: Workers
) -> None:
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)


@pytest.mark.torture
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("sweep", [{"ops": NAMES, "n": 500, "seed": 1000 + i} for i in range(20)])
def test_nothing_is_lost_or_back_when_three_commands_take_many_turns(
    sweep: dict[str, Any], workers: Workers
) -> None:
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)
