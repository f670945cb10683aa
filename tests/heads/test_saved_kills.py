"""`fit-head --out` over an earlier fit, killed at every step: the user's own files come back."""

import json
import subprocess
import sys
from pathlib import Path

from tests.heads.kill_worker import MINE

N_FILES = len(MINE) + 10  # fit.json, the list, and four of each of two heads
ROOT = Path(__file__).parents[2]


def test_a_save_killed_at_any_step_loses_nothing_that_is_the_users(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.heads.kill_worker", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(steps) > 20
    hidden = {name for step in steps for name in step["left"] if name.startswith(".")}
    assert len(hidden) > 20  # it was killed with its work beside the folder
    for step in steps:
        for look in (step["looked"], step["saved"]):
            whole = {"beside": ["out"], "mine": [*MINE], "loads": "ridge", "n_files": N_FILES}
            assert look == whole, step
