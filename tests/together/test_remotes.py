"""Pairs that meet on a remote: a flawed network over a folder, and an S3 protocol server."""

from typing import Any

import pytest

from tests.together.workers import Workers, describe

SEED = 21
MEMBERS = ("push", "pull", "purge", "colleague purges", "extract through", "compact remote")
PAIRS = [
    *((x, y) for x in MEMBERS for y in MEMBERS if x != y),
    *((x, "forget") for x in MEMBERS),
    *((x, "compact") for x in MEMBERS),
    *((x, "forget space") for x in MEMBERS),
]
# A schedule on the server takes 1 to 2 s, a tenth of that on a folder: a few pairs, all in torture.
ON_S3 = [
    ("push", "purge"),
    ("pull", "purge"),
    ("pull", "colleague purges"),
    ("purge", "push"),
    ("purge", "colleague purges"),
    ("compact remote", "purge"),
]


def _sweeps(where: str, pairs: list[tuple[str, str]], n: int) -> list[Any]:
    return [
        pytest.param(
            {"x": x, "y": y, "n": n, "seed": SEED, "where": where, "flawed": True},
            id=f"{where}: {x} / {y}",
        )
        for x, y in pairs
    ]


@pytest.mark.parametrize("sweep", [*_sweeps("folder", PAIRS, 1), *_sweeps("s3", ON_S3, 1)])
def test_nothing_is_lost_or_back_over_a_flawed_network(
    sweep: dict[str, Any], workers: Workers
) -> None:
    _require(sweep["where"])
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)


@pytest.mark.torture
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("sweep", [*_sweeps("folder", PAIRS, 0), *_sweeps("s3", PAIRS, 40)])
def test_nothing_is_lost_or_back_at_any_request(sweep: dict[str, Any], workers: Workers) -> None:
    _require(sweep["where"])
    found = workers.answer(sweep)
    assert not found["wrong"], describe(found)


def _require(where: str) -> None:
    if where == "s3":
        pytest.importorskip("moto.server")
        pytest.importorskip("obstore")
