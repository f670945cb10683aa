"""A worker without threads that runs schedules: a JSON request a line in, an answer a line out.

python -m tests.together.sweep
{"x": "compact", "y": "forget", "n": 8, "seed": 1}
"""

import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from embedcache import disk
from embedcache.upkeep import recording
from tests.together import operations, process, schedule, world
from tests.together.clocks import HERE, Host
from tests.together.places import SOUND, Flaw, FolderPlace, Place, S3Place, S3Server
from tests.together.process import Event
from tests.together.stage import Stage
from tests.together.zarr_rows import ZarrRows

Answer = dict[str, Any]
DAMAGED = 2  # a photo whose row lies in two segments


def main() -> None:
    # Nothing here survives the machine, so nothing waits for a disk.
    disk.sync = lambda fd: None
    disk.sync_folder = lambda path: None
    # Processes stand still here: what `verify` sees twice is the same.
    recording.SECOND_LOOK_SECONDS = 0.0
    # One thread, so that the k-th event is the same one in every run.
    for module in list(sys.modules.values()):
        for name in ("OBJECTS_AT_ONCE", "SEGMENTS_AT_ONCE"):
            if module.__name__.startswith("embedcache.") and hasattr(module, name):
                setattr(module, name, 1)
    template, album = world.build()
    process.install()
    sweeper = Sweeper(template, album)
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            play: Callable[..., Answer] = sweeper.sweep
            if "ops" in asked:
                play = sweeper.shuffle
            elif "again" in asked:
                play = sweeper.rerun
            print(json.dumps(play(**asked)), flush=True)
    finally:
        sweeper.close()
        shutil.rmtree(template.folder.parent, ignore_errors=True)


class _Tally:
    """What some schedules found wrong: each fault once, with how often and the first example."""

    def __init__(self) -> None:
        self.wrong: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.n_run = self.n_waited = 0

    def count(self, outcome: schedule.Outcome, label: str) -> None:
        self.n_run += 1
        self.n_waited += outcome.waited
        for text in outcome.wrong:
            self.wrong[text] += 1
            parts = [label, f"{outcome.plan} before {outcome.before}", *outcome.ends]
            self.examples.setdefault(text, "; ".join(filter(None, parts)))

    def answer(self) -> Answer:
        return {
            "schedules": self.n_run,
            "waited": self.n_waited,
            "wrong": [
                [text, count, self.examples[text]] for text, count in self.wrong.most_common()
            ],
        }


class Sweeper:
    """Runs sweeps over one template."""

    def __init__(self, template: world.World, album: world.Album) -> None:
        self.template = template
        self.album = album
        self.zarr = ZarrRows()
        self._events: dict[tuple[str, str], list[Event]] = {}
        self._server: S3Server | None = None

    def sweep(
        self,
        *,
        x: str,
        y: str,
        n: int,
        seed: int,
        where: str = "folder",
        flawed: bool = False,
        damaged: bool = False,
        far: bool = False,
    ) -> Answer:
        """Pause, and kill, `x` at some of its events, and run `y` there.

        n: at how many to pause; half as many kills, or one. 0 for both at every one.
        where: the remote is a "folder", or on an "s3" server.
        damaged: a row that two segments hold is damaged in the one whose rows count.
        far: `y` always runs on another host, which our locks do not bind, its clock a day ahead.
        flawed: answers are lost and listings are stale, of either operation.
        """
        first = operations.named(x)
        second = operations.beside(first, operations.named(y))
        events = self.events(first, where)
        rng = random.Random(f"{seed} {x} {y}")
        tally = _Tally()
        hosts = schedule.hosts(rng.randrange(12))
        for k, kills in _choose(events, n, rng):
            x_host, y_host = next(hosts)
            if far:
                x_host, y_host = HERE, Host(timedelta(days=1), far=True)
            x_flaw, y_flaw = (_flaw(rng), _flaw(rng)) if flawed else (SOUND, SOUND)
            plan = schedule.Plan(first, second, k, kills, x_host, y_host, x_flaw, y_flaw)
            tally.count(self.play(plan, where, damaged=damaged), "")
        return {"x": x, "y": y, "events": len(events), **tally.answer()}

    def shuffle(self, *, ops: list[str], n: int, seed: int, where: str = "folder") -> Answer:
        """Run `n` random schedules of three operations drawn from `ops`."""
        tally = _Tally()
        for number in range(n):
            rng = random.Random(f"{seed} {number}")
            chosen = [operations.named(name) for name in rng.sample(ops, 3)]
            with self._stage(where) as stage:
                tally.count(schedule.shuffle(chosen, stage, rng), f"seed {seed}, number {number}")
        return tally.answer()

    def rerun(
        self, *, again: str, n: int, seed: int, where: str = "folder", damaged: bool = False
    ) -> Answer:
        """Kill an operation before `n` of its events, 0 for every one, and run it again, alone.

        Half of them or more are changes of the disk.

        damaged: as for `sweep`; then only what repairs it is of use.
        """
        op = operations.named(again)
        with self._stage(where) as stage:
            if damaged:
                stage.damage((world.NET, DAMAGED))
            events = schedule.list_events(stage, op)
        chosen = _choose(events, n, random.Random(f"{seed} {again}"))
        tally = _Tally()
        for k in [k for k, kills in chosen if not kills]:
            with self._stage(where) as stage:
                if damaged:
                    stage.damage((world.NET, DAMAGED))
                tally.count(schedule.rerun(op, k, stage), "")
        return {"x": again, "events": len(events), **tally.answer()}

    def events(self, op: operations.Operation, where: str) -> list[Event]:
        """The events of an operation that runs alone, found once for each operation."""
        if (op.name, where) not in self._events:
            with self._stage(where) as stage:
                self._events[op.name, where] = schedule.list_events(stage, op)
        return self._events[op.name, where]

    def play(
        self, plan: schedule.Plan, where: str = "folder", *, damaged: bool = False
    ) -> schedule.Outcome:
        """One schedule in a copy of the template."""
        with self._stage(where) as stage:
            if damaged:
                stage.damage((world.NET, DAMAGED))
            return schedule.run(plan, stage)

    @contextmanager
    def _stage(self, where: str) -> Iterator[Stage]:
        copy = self.template.copy()
        place: Place = FolderPlace(copy.remote)
        if where == "s3":
            self._server = self._server or S3Server()
            place = S3Place(self._server, copy.remote)
        try:
            yield Stage(copy, self.album, self.zarr, place)
        finally:
            place.remove()
            copy.remove()

    def close(self) -> None:
        self.zarr.close()
        if self._server is not None:
            self._server.close()


def _flaw(rng: random.Random) -> Flaw:
    """A lost answer, stale listings, or neither."""
    return rng.choice((SOUND, Flaw(stale=True), Flaw(late=rng.randrange(1, 60))))


def _choose(events: list[Event], n: int, rng: random.Random) -> list[tuple[int, bool]]:
    """Where to pause, and where to kill: before changes half of the time or more, else before any
    call."""
    everywhere = range(len(events) + 1)
    if n == 0:
        return [(k, kills) for k in everywhere for kills in (False, True)]
    changes = [k for k, event in enumerate(events) if event.changes]
    found = []
    for kills, wanted in ((False, n), (True, (n + 1) // 2)):
        some = rng.sample(changes, min(len(changes), (wanted + 1) // 2))
        rest = [k for k in everywhere if k not in some]
        some += rng.sample(rest, min(len(rest), wanted - len(some)))
        found += [(k, kills) for k in sorted(some)]
    return found


if __name__ == "__main__":
    main()
