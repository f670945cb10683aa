"""One schedule: X to its k-th event, Y to its end, then X to its end; and what went wrong.

Or several operations by turns, at random.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from tests.together import oracle
from tests.together.clocks import HERE, Host
from tests.together.operations import Operation
from tests.together.places import SOUND, Flaw
from tests.together.process import Event, Running
from tests.together.stage import Stage

RERUNS = 3
_DAY = timedelta(days=1)
# In a third of the schedules a clock is a day ahead or behind.
HOSTS = (
    (HERE, HERE),
    (HERE, HERE),
    (HERE, Host(_DAY)),
    (HERE, HERE),
    (HERE, HERE),
    (Host(_DAY), HERE),
    (HERE, HERE),
    (HERE, HERE),
    (HERE, Host(_DAY, far=True)),
    (HERE, HERE),
    (HERE, HERE),
    (Host(-_DAY), Host(-_DAY)),
)
# Of a random schedule: how many events a turn lets pass, and how often one dies or is looked at.
TURNS = (1, 1, 2, 3, 5, 8, 20, 60)
KILL_SHARE = 0.01
LOOK_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """Stop `x` before its `k`-th event (or kill it there), run `y`, then go on (or recover).

    x_host, y_host: where the two run. x_flaw, y_flaw: what is wrong with their networks.
    """

    x: Operation
    y: Operation
    k: int
    kills: bool = False
    x_host: Host = HERE
    y_host: Host = HERE
    x_flaw: Flaw = SOUND
    y_flaw: Flaw = SOUND

    def __str__(self) -> str:
        how = "killed" if self.kills else "paused"
        hosts = "" if self.x_host == self.y_host == HERE else f" ({self.x_host}; {self.y_host})"
        flaws = "".join(f" [{op.name}: {flaw}]" for op, flaw in self._flaws() if str(flaw))
        return f"{self.x.name} {how} at {self.k}, {self.y.name}{hosts}{flaws}"

    def _flaws(self) -> list[tuple[Operation, Flaw]]:
        return [(self.x, self.x_flaw), (self.y, self.y_flaw)]


@dataclass(slots=True)
class Outcome:
    """What a schedule found. before: the call of X; waited: Y waited for a lock that X held."""

    plan: str
    before: str = "its end"
    wrong: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    n_reruns: int = 0
    waited: bool = False


def run(plan: Plan, stage: Stage) -> Outcome:
    """Play a schedule to its end and judge it."""
    outcome = Outcome(str(plan))
    x = stage.begin(plan.x, plan.x_host, plan.x_flaw)
    x.run(plan.k)
    if x.next is not None:
        outcome.before = oracle.shape(x.next)
    stage.look()
    if plan.kills:
        stage.kill(x)
    y = stage.begin(plan.y, plan.y_host, plan.y_flaw)
    y.run()
    outcome.waited = y.waits
    if not y.waits:
        stage.ended(y)
        stage.look()
    again = _go_on(stage, plan, x, y)
    stage.repair()
    for op in again:
        outcome.n_reruns += _repeat(stage, op)
    stage.finish()
    outcome.ends = [_ending(running)[:300] for running in (x, y)]
    outcome.wrong = list(dict.fromkeys(stage.wrong))
    return outcome


def _go_on(stage: Stage, plan: Plan, x: Running, y: Running) -> list[Operation]:
    """Let both come to their ends; returns the operations that have to be run again."""
    again = []
    if not plan.kills:
        x.run()
        if not stage.ended(x):
            again.append(plan.x)
    else:
        again.append(plan.x)
    if y.waits:
        y.run()
        stage.ended(y)
    if y.end is None or y.end.status != "done":
        again.append(plan.y)
    return again


def _repeat(stage: Stage, op: Operation) -> int:
    """Run an operation again, alone, until it succeeds."""
    for n in range(1, RERUNS + 1):
        running = stage.begin(op)
        running.run()
        if stage.ended(running):
            return n
        if "--forgotten" in _ending(running):
            stage.pull_and_forget()
    assert running.end is not None
    stage.wrong.append(f"{op.name} run again fails: {oracle.shape(running.end.text)[:300]}")
    return RERUNS


def rerun(op: Operation, k: int, stage: Stage) -> Outcome:
    """Kill `op` before its `k`-th event, run it again, and judge what `verify` says of it all."""
    outcome = Outcome(f"{op.name} killed at {k}, run again")
    running = stage.begin(op)
    running.run(k)
    if running.next is not None:
        outcome.before = oracle.shape(running.next)
    stage.kill(running)
    again = stage.begin(op)
    again.run()
    outcome.ends = [_ending(again)[:300]]
    if not stage.ended(again):
        stage.wrong.append(f"{op.name} run again fails: {oracle.shape(_ending(again))[:300]}")
    stage.check_nothing_left()
    outcome.wrong = list(dict.fromkeys(stage.wrong))
    return outcome


def shuffle(ops: Sequence[Operation], stage: Stage, rng: random.Random) -> Outcome:
    """Let several operations go on by turns, at random, and kill one now and then."""
    outcome = Outcome(" | ".join(op.name for op in ops))
    alive = []
    for op in ops:
        host = rng.choice(HOSTS)[0]
        running = stage.begin(op, host, fine=rng.random() < 0.3)
        alive.append((op, running))
    again = []
    while alive:
        ready = [pair for pair in alive if not pair[1].waits] or alive
        op, running = rng.choice(ready)
        if rng.random() < KILL_SHARE:
            stage.kill(running)
        else:
            running.run(rng.choice(TURNS))
        if rng.random() < LOOK_SHARE:
            stage.look()
        if running.end is not None:
            alive.remove((op, running))
            if not stage.ended(running):
                again.append(op)
            outcome.ends.append(_ending(running)[:300])
    for op in sorted(again, key=lambda op: not op.forgets):  # what was begun to be forgotten first
        outcome.n_reruns += _repeat(stage, op)
    stage.finish()
    outcome.wrong = list(dict.fromkeys(stage.wrong))
    return outcome


def list_events(stage: Stage, op: Operation) -> list[Event]:
    """The events of an operation that runs alone."""
    running = stage.begin(op)
    found = []
    while running.next is not None:
        found.append(running.next)
        running.run(1)
    stage.ended(running)
    return found


def hosts(number: int) -> Iterator[tuple[Host, Host]]:
    """Where X and Y run, for one schedule after the other."""
    while True:
        yield HOSTS[number % len(HOSTS)]
        number += 1


def _ending(running: Running) -> str:
    assert running.end is not None
    return f"{running.name}: {running.end.status} {running.end.text}".strip()
