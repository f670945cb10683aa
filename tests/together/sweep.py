"""A worker without threads that runs schedules: a JSON request a line in, a JSON answer a line out.

python -m tests.together.sweep
{"x": "compact", "y": "forget", "n": 8, "seed": 1}      n: pauses, and half as many kills; 0: all
"""

import json
import os
import random
import sys
from collections import Counter
from typing import Any


def main() -> None:
    # Nothing here survives the machine, so nothing waits for a disk; before anybody binds them.
    os.fsync = os.fdatasync = lambda fd: None  # type: ignore[assignment]
    from embedcache.sharing import moved, pulling, pushing
    from tests.together import process, world

    # One thread, so that the k-th event is the same one in every run.
    moved.OBJECTS_AT_ONCE = pushing.SEGMENTS_AT_ONCE = pulling.SEGMENTS_AT_ONCE = 1
    template, album = world.build()
    process.install()
    try:
        sweeper = Sweeper(template, album)
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(sweeper.sweep(**request)), flush=True)
    finally:
        import shutil

        shutil.rmtree(template.folder.parent, ignore_errors=True)


class Sweeper:
    """Runs sweeps over one template."""

    def __init__(self, template: Any, album: Any) -> None:
        from tests.together.zarr_rows import ZarrRows

        self.template = template
        self.album = album
        self.zarr = ZarrRows()
        self._events: dict[str, Any] = {}

    def sweep(self, *, x: str, y: str, n: int, seed: int) -> dict[str, Any]:
        """Pause, and kill, `x` at some of its events (n: how many; 0: all), and run `y` there."""
        from tests.together import operations, schedule

        first = operations.named(x)
        second = operations.beside(first, operations.named(y))
        events = self.events(first)
        rng = random.Random(f"{seed} {x} {y}")
        wrong: Counter[str] = Counter()
        examples: dict[str, str] = {}
        n_run = n_waited = 0
        hosts = schedule.hosts(rng.randrange(12))
        for k, kills in _choose(events, n, rng):
            x_host, y_host = next(hosts)
            plan = schedule.Plan(first, second, k, kills, x_host, y_host)
            outcome = self.play(plan)
            n_run += 1
            n_waited += outcome.waited
            for text in outcome.wrong:
                wrong[text] += 1
                story = f"{outcome.plan} before {outcome.before}; {'; '.join(outcome.ends)}"
                examples.setdefault(text, story)
        return {
            "x": x,
            "y": y,
            "events": len(events),
            "schedules": n_run,
            "waited": n_waited,
            "wrong": [[text, count, examples[text]] for text, count in wrong.most_common()],
        }

    def events(self, op: Any) -> Any:
        """The events of an operation that runs alone, once for each operation."""
        from tests.together import schedule

        if op.name not in self._events:
            copy = self.template.copy()
            stage = schedule.Stage(copy, self.album, self.zarr, str(copy.remote))
            self._events[op.name] = schedule.list_events(stage, op)
            copy.remove()
        return self._events[op.name]

    def play(self, plan: Any) -> Any:
        from tests.together import schedule

        copy = self.template.copy()
        try:
            return schedule.run(plan, schedule.Stage(copy, self.album, self.zarr, str(copy.remote)))
        finally:
            copy.remove()


def _choose(events: Any, n: int, rng: random.Random) -> list[tuple[int, bool]]:
    """Where to pause, and where to kill: before changes half of the time, else before any call."""
    everywhere = range(len(events) + 1)
    if n == 0:
        return [(k, kills) for k in everywhere for kills in (False, True)]
    changes = [k for k, event in enumerate(events) if event.changes]
    found = []
    for kills, wanted in ((False, n), (True, n // 2)):
        some = rng.sample(changes, min(len(changes), wanted // 2))
        rest = [k for k in everywhere if k not in some]
        some += rng.sample(rest, min(len(rest), wanted - len(some)))
        found += [(k, kills) for k in sorted(some)]
    return found


if __name__ == "__main__":
    main()
