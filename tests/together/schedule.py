"""One schedule: X to its k-th event, Y to its end, then X to its end; and what went wrong.

Facts are kept beside the operations, from what they report: a row that was committed and that
nobody began to forget must be readable at every pause; one whose `forget` succeeded never again.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget_forgotten
from embedcache.upkeep.verify import verify
from tests.together import oracle
from tests.together.clocks import Host
from tests.together.operations import READ, Operation
from tests.together.places import Flaw, Place
from tests.together.process import End, Event, Running, begin, finish
from tests.together.world import FORGOTTEN, HELD, N_PHOTOS, NET, Album, Row, World, ids_of
from tests.together.zarr_rows import ZarrRows

RERUNS = 3
HERE = Host()
SOUND = Flaw()
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
# What `verify` may say of a cache in which a process died, or still runs; its advice removes it.
SOMEBODY_DIED = ("was left by", "still stores", "is not deleted yet")
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
class Facts:
    """What must, may and must not be readable in the cache and on the remote."""

    album: Album
    must: set[Row] = field(default_factory=lambda: set(HELD["cache"]))
    must_remote: set[Row] = field(default_factory=lambda: set(HELD["remote"]))
    asked: set[str] = field(default_factory=set)  # ids that somebody began to forget
    gone: set[str] = field(default_factory=lambda: {*ids_of(FORGOTTEN)})
    never_remote: set[int] = field(default_factory=set)
    refs: dict[str, set[Row]] = field(default_factory=dict)
    due: set[Row] = field(default_factory=set)
    firsts: dict[str, "Promise"] = field(default_factory=dict)  # when each ref was first begun

    def begins(self, op: Operation) -> "Promise":
        self.asked |= set(op.forgets)
        self.asked |= {name for n in op.removes for name in ids_of(n)}
        doomed = self._without_ids(self.asked | self.gone)
        self.must = {row for row in self.must if row[1] not in doomed}
        self.must_remote = {row for row in self.must_remote if row[1] not in doomed}
        promise = self.promise()
        return self.firsts.setdefault(op.ref, promise) if op.ref else promise

    def succeeds(self, op: Operation, promise: "Promise") -> None:
        self.gone |= set(op.forgets)
        doomed = self._without_ids(self.asked | self.gone)
        self.must |= {row for row in op.adds if row[1] not in doomed}
        self.due |= op.adds_in_the_end
        if op.ref:
            self.refs[op.ref] = promise.must
        if op.sends:
            self.must_remote |= {row for row in promise.must if row[1] not in doomed}
        if op.purges:
            self.never_remote |= promise.never
        self.never_remote |= set(op.removes)

    def all_have_ended(self) -> None:
        doomed = self._without_ids(self.asked | self.gone)
        self.must |= {row for row in self.due if row[1] not in doomed}

    def promise(self) -> "Promise":
        return Promise(set(self.must), set(self.never), set(self.gone))

    @property
    def never(self) -> set[int]:
        """Photos of which nothing may be read any more."""
        return self._without_ids(self.gone)

    def _without_ids(self, ids: set[str]) -> set[int]:
        return {n for n in range(N_PHOTOS) if ids.issuperset(ids_of(n))}


@dataclass(frozen=True, slots=True)
class Promise:
    """What was so when an operation began."""

    must: set[Row]
    never: set[int]
    gone: set[str]


@dataclass(slots=True)
class Outcome:
    """What a schedule found. before: the call of X; waited: Y waited for a lock that X held."""

    plan: str
    before: str = "its end"
    wrong: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    n_reruns: int = 0
    waited: bool = False


class Stage:
    """One copy of the world while operations run in it."""

    def __init__(self, world: World, album: Album, zarr: ZarrRows, place: Place) -> None:
        self.world = world
        self.album = album
        self.zarr = zarr
        self.place = place
        self.facts = Facts(album)
        self.promises: dict[int, tuple[Operation, Promise]] = {}
        self.wrong: list[str] = []
        self.killed = False
        # What the world begins with is no news.
        [draft] = world.cache.glob("spaces/*/segments/*/writing")
        self.draft = draft.parent.relative_to(world.cache).as_posix()

    def begin(
        self, op: Operation, host: Host = HERE, flaw: Flaw = SOUND, *, fine: bool = False
    ) -> Running:
        promise = self.facts.begins(op)
        running = begin(
            op.name,
            lambda: op.call(self.world, self.album, self.place.open(flaw) if op.remote else ""),
            root=f"{self.world.folder}/",
            before=host.settle,
            fine=fine,
        )
        self.promises[running.pid] = op, promise
        return running

    def ended(self, running: Running) -> bool:
        """Take note of how an operation ended; True if it succeeded."""
        op, promise = self.promises[running.pid]
        assert running.end is not None
        end = running.end
        if end.status == "crashed":
            self.wrong.append(f"{op.name} crashed: {oracle.shape(end.text)}")
        if end.status == "refused" and _done_before(op, end):
            end = running.end = End("done", end.text)
        if end.status != "done":
            return False
        self.facts.succeeds(op, promise)
        self._check_value(op, promise, end)
        return True

    def _check_value(self, op: Operation, promise: Promise, end: End) -> None:
        if op.reads and end.value is not None:
            self._check_read(end.value, promise.must & self.facts.must, promise)
        elif op.name == "repair" and end.value:
            for text in end.value["findings"]:
                if not any(excuse in text for excuse in SOMEBODY_DIED):
                    self.wrong.append(f"repair of a cache without damage: {oracle.shape(text)}")

    def _check_read(self, value: dict[str, Any], must: set[Row], promise: Promise) -> None:
        rows = {(space, n) for space, numbers in value["found"].items() for n in numbers}
        self._lost("read", must - rows)
        self._back("read", {n for _, n in rows} & promise.never)
        self.wrong += [f"read returns a wrong row: {row}" for row in value["wrong"]]
        for name in sorted(promise.gone & set(value["ids"])):
            self.wrong.append(f"back: id {name}")

    def kill(self, running: Running) -> None:
        running.kill()
        self.killed = True

    def look(self) -> None:
        """At a pause: is every row that must be readable there, and none that must not be?"""
        found = oracle.held(self.world.cache, self.album, self.zarr)
        self._lost("cache", self.facts.must - found.rows)
        self._back("cache", {n for _, n in found.rows} & self.facts.never)
        self.wrong += found.wrong
        with self.place.folder() as folder:
            there = oracle.held(folder, self.album, self.zarr)
        self._lost("remote", self.facts.must_remote - there.rows)
        self._back("remote", {n for _, n in there.rows} & self.facts.never_remote)
        self.wrong += [f"remote: {text}" for text in there.wrong]

    def finish(self) -> None:
        """When all have ended: the product's own readers, refs, verify, and every byte."""
        self.facts.all_have_ended()
        self.look()
        if any(op.removes for op, _ in self.promises.values()):
            # What a colleague forgot may have come as a tombstone; its rows wait for this.
            end = finish("forget", lambda: forget_forgotten(Cache.open(self.world.cache)) and None)
            if end.status != "done":
                self.wrong.append(f"forget --forgotten fails: {oracle.shape(end.text)}")
        named = self._check_all(SOMEBODY_DIED if self.killed else (self.draft,))
        for trace in oracle.traces(self.world.cache, self.album, self.facts.never, ids_of):
            if not any(oracle.shape(path) in trace for path in named):
                self.wrong.append(f"bytes left: {trace}")
        if [path for path in named if path != self.draft or self.facts.due]:
            # Somebody died here. What `verify` says of it must help, and lose nothing.
            end = finish("advice", lambda: _follow_advice(self.world.cache))
            if end.status != "done":
                self.wrong.append(f"what verify advises fails: {oracle.shape(end.text)}")
            self.look()
            self._check_all(())
            left = oracle.traces(self.world.cache, self.album, self.facts.never, ids_of)
            self.wrong += [f"bytes left after all advice: {trace}" for trace in left]
        self._check_remote()

    def _check_remote(self) -> None:
        self.wrong += [f"cache: {text}" for text in oracle.dangling_refs(self.world.cache)]
        with self.place.folder() as folder:
            self.wrong += [f"remote: {text}" for text in oracle.dangling_refs(folder)]
            left = oracle.traces(folder, self.album, self.facts.never_remote, ids_of)
        self.wrong += [f"bytes left on the remote: {trace}" for trace in left]

    def _check_all(self, excused: Sequence[str]) -> list[str]:
        """Ask the product; returns what `verify` names as left behind.

        excused: findings that hold one of these texts are no violation.
        """
        end = finish("check", self._check)
        if end.status != "done":
            self.wrong.append(f"check afterwards: {oracle.shape(end.text)}")
            return []
        self._check_read(end.value["read"], self.facts.must, self.facts.promise())
        self._check_refs(end.value["refs"])
        named = []
        for path, problem in end.value["verify"]:
            if any(text in f"{path}: {problem}" for text in excused):
                named.append(path)
            else:
                self.wrong.append(f"verify: {oracle.shape(path)}: {oracle.shape(problem)}")
        return named

    def _check(self) -> dict[str, Any]:
        """In a child: what the product reads, now and at each ref, and what `verify` finds."""
        read = READ.call(self.world, self.album, "")
        refs: dict[str, dict[str, list[int]]] = {}
        wanted = self.album.digests(*range(N_PHOTOS))
        for name in ("old", *self.facts.refs):
            refs[name] = {}
            for space in Cache.open(self.world.cache, ref=name).spaces():
                there = space.read(wanted)[1]
                numbers = [n for n, ok in enumerate(there.tolist()) if ok]
                refs[name][self.album.names[space.digest]] = numbers
        report = verify(self.world.cache)
        found = [[finding.path, finding.problem] for finding in report.findings]
        return {"read": read, "refs": refs, "verify": found}

    def _check_refs(self, refs: dict[str, dict[str, list[int]]]) -> None:
        pinned = {"old": {(NET, n) for n in (0, 1, 2)}, **self.facts.refs}
        for name, spaces in refs.items():
            rows = {(space, n) for space, numbers in spaces.items() for n in numbers}
            self._lost(f"ref {name}", (pinned[name] & self.facts.must) - rows)
            self._back(f"ref {name}", {n for _, n in rows} & self.facts.never)

    def _lost(self, where: str, rows: set[Row]) -> None:
        if rows:
            self.wrong.append(f"lost: {where}: {_listed(rows)}")

    def _back(self, where: str, numbers: set[int]) -> None:
        if numbers:
            self.wrong.append(f"back: {where}: {', '.join(map(str, sorted(numbers)))}")


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
    for op in again:
        outcome.n_reruns += _repeat(stage, op)
    stage.finish()
    outcome.ends = [_told(running) for running in (x, y)]
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
    assert running.end is not None
    stage.wrong.append(f"{op.name} run again fails: {oracle.shape(running.end.text)[:300]}")
    return RERUNS


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
            outcome.ends.append(_told(running))
    for op in again:
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


def _follow_advice(cache: Path) -> None:
    """The two commands that `verify` advises where a process died."""
    forget_forgotten(Cache.open(cache))
    compact(Cache.open(cache))


def _done_before(op: Operation, end: End) -> bool:
    """Whether an earlier run, which was killed, has done what a later one refuses to do again."""
    return ("knows no photo id" in end.text and bool(op.forgets)) or (
        "has a ref" in end.text and bool(op.ref)
    )


def _listed(rows: set[Row]) -> str:
    return ", ".join(f"{space} {n}" for space, n in sorted(rows))


def _told(running: Running) -> str:
    assert running.end is not None
    return f"{running.name}: {running.end.status} {running.end.text}".strip()[:300]
