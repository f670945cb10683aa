"""By the command line alone: `compact` in one loop beside `forget` in another, on one segment."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.spec import foreign
from embedcache.store.cache import Cache
from tests.together.workers import ROOT

N_ROWS = 140_000
DIM = 4


def _large_cache(path: Path) -> list[str]:
    """A cache with one segment of N_ROWS rows; returns the digests of its photos."""
    rng = np.random.default_rng(3)
    digests = rng.integers(0, 256, (N_ROWS, 32), dtype=np.uint8)
    rows = rng.standard_normal((N_ROWS, DIM), np.float32)
    space = Cache.open(path, create=True).space(foreign("net", DIM), create=True)
    with space.writer(n_rows=N_ROWS, name="net", about={}) as writer:
        for start in range(0, N_ROWS, 10_000):
            block = slice(start, start + 10_000)
            writer.add(digests[block], rows[block])
    return [row.tobytes().hex() for row in digests]


def _embedcache(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)


def _loops(path: Path, *, seconds: float) -> int:
    """Run both loops for some seconds; returns how many photos were forgotten."""
    digests = _large_cache(path)
    problems: list[str] = []
    stop = threading.Event()

    def compact() -> None:
        while not stop.is_set():
            done = _embedcache("compact", path)
            if (done.returncode == 1 and "Traceback" in done.stderr) or done.returncode > 1:
                problems.append(done.stderr[-500:])

    compacting = threading.Thread(target=compact)
    compacting.start()
    n_forgotten, end = 0, time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            done = _embedcache("forget", path, digests[n_forgotten * 997 % N_ROWS])
            assert done.returncode == 0, done.stderr
            n_forgotten += 1
    finally:
        stop.set()
        compacting.join()
    assert not problems, problems[0]
    return n_forgotten


def _assert_only_forgotten_rows_are_gone(path: Path, n_forgotten: int) -> None:
    held: dict[str, Any] = json.loads(_embedcache("info", path, "--json").stdout)
    assert [space["rows"] for space in held["spaces"]] == [N_ROWS - n_forgotten]
    checked = _embedcache("verify", path)
    assert checked.returncode == 0, checked.stdout
    assert f"{N_ROWS - n_forgotten:,} rows" in checked.stdout


def test_forget_beside_compact_loses_no_row(tmp_path: Path) -> None:
    n_forgotten = _loops(tmp_path / "a.cache", seconds=8)
    _assert_only_forgotten_rows_are_gone(tmp_path / "a.cache", n_forgotten)


@pytest.mark.torture
@pytest.mark.timeout(1200)
def test_forget_beside_compact_for_three_minutes_loses_no_row(tmp_path: Path) -> None:
    n_forgotten = _loops(tmp_path / "a.cache", seconds=180)
    _assert_only_forgotten_rows_are_gone(tmp_path / "a.cache", n_forgotten)


@pytest.mark.torture
@pytest.mark.timeout(1200)
def test_a_ref_of_the_large_segment_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    digests = _large_cache(path)
    assert _embedcache("ref", path, "table").returncode == 0
    for number in range(20):
        assert _embedcache("compact", path).returncode == 0
        assert _embedcache("forget", path, digests[number]).returncode == 0
    _assert_only_forgotten_rows_are_gone(path, 20)
    held = json.loads(_embedcache("info", path, "--ref", "table", "--json").stdout)
    assert [space["rows"] for space in held["spaces"]] == [N_ROWS - 20]
