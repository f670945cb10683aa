"""Timing in interleaved rounds: every benchmark here measures in this way."""

import random
import statistics
import time
from collections.abc import Callable, Mapping


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
