"""Commands that are killed at random on one cache and one remote: nothing lost, wrong or back."""

import json
import subprocess
import sys

import pytest

from tests.together.workers import ROOT


@pytest.mark.parametrize(
    "n_kills",
    [40, pytest.param(200, marks=[pytest.mark.torture, pytest.mark.timeout(3600)])],
)
def test_two_writers_and_five_commands_are_killed_again_and_again(n_kills: int) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.together.kills", str(n_kills), "20"],
        capture_output=True,
        text=True,
        timeout=3000,
        cwd=ROOT,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[-1]) == []
