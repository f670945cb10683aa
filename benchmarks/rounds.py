"""Timing in interleaved rounds: every benchmark here measures in this way."""

import argparse
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def medians(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median seconds of each contender; each runs once a round, in a new order every round.

    before: runs ahead of every measurement and is not counted.
    A contender that returns a float has timed itself, in seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        random.Random(number).shuffle(names)
        for name in names:
            before()
            start = time.perf_counter()
            own = contenders[name]()
            took = time.perf_counter() - start
            seconds[name].append(own if isinstance(own, float) else took)
    return {name: statistics.median(took) for name, took in seconds.items()}


def print_table(
    question: str,
    measure: Callable[[argparse.Namespace, Path], list[str]],
    *,
    rows: int,
    rounds: int,
    versions: str,
) -> None:
    """Print what `measure` finds, under a line that says how and where it was measured.

    measure: takes the options (rows, dim, rounds) and an empty folder; returns a table's lines.
    rows, rounds: defaults of the options.  versions: of the packages that matter.
    """
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        lines = [
            f"{given.rows:,} x {given.dim:,} float32, {given.rounds} interleaved rounds, "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.system()}, "
            f"{versions}.",
            "",
            *measure(given, folder),
        ]
        print("\n".join(lines))
        if given.out:
            given.out.write_text("\n".join(lines) + "\n")
    finally:
        shutil.rmtree(folder)
