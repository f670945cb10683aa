"""A model of the protocol of removals (docs/format.md): each `yield` is a point where another
process may run, or this one die.

    check_pairs()                two operations, every pair of preemptions, and a kill at each point
    check_random(n, seed)        n schedules of three or four operations at random
    RULES                        the rules; leaving one out must be found

A segment is a set of (content, generation): a row that is embedded again after it was forgotten
is another generation, and what counts for a reader is the content.
"""

import itertools
import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

NOTHING, BEGUN, ENTERED, ENDED = range(4)  # how far `drop all` has come

Steps = Iterator[None]
Segments = dict[str, frozenset[int]]

# Each rule, and operations that go wrong without it.
RULES = {
    "holders": ("drop X for Y", "drop Y for X and S", "compact", "forget 2"),
    "log": ("drop X for Y", "drop Y for X and S", "compact", "ref"),
    "ref": ("ref", "compact", "drop X for Y"),
    "lift": ("forget 4", "lift 4", "compact"),
    "settle": ("merge", "forget 3"),
    "refs pin": ("ref", "compact", "drop S"),
    "successors": ("ref", "compact", "forget 2", "forget 3"),
    "refs first": ("ref", "drop all", "compact"),
    "derived": ("drop all", "write 3", "merge"),
    "alone": ("drop all", "write 3 and 4", "forget 4"),
}


@dataclass(slots=True)
class World:
    """A cache. `leave_out`: a rule that nobody follows. broken: what went wrong first."""

    leave_out: str = ""
    segments: Segments = field(
        default_factory=lambda: {
            "X": frozenset({1, 2}),
            "Y": frozenset({1, 2, 3}),
            "S": frozenset({3, 4}),
        }
    )
    drafts: Segments = field(default_factory=lambda: {"D": frozenset({3, 5})})
    log: list[dict[str, tuple[str, ...] | None]] = field(default_factory=list)
    refs: dict[str, frozenset[str]] = field(default_factory=dict)
    entered: dict[str, frozenset[int]] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)
    lifts: set[str] = field(default_factory=set)
    promised: set[int] = field(default_factory=lambda: {1, 2, 3, 4})
    fresh: int = 0
    derived: set[str] = field(default_factory=set)
    wish: int = NOTHING
    wished: Segments = field(default_factory=dict)

    def promise(self, rows: frozenset[int] | set[int], *, since: int, found: bool = False) -> None:
        """Rows that a command reports.

        since: how far `drop all` was when they were written; what was there before its entry goes.
        found: they were there, and the command wrote nothing. What was made of the rows that go may
            be among them until `drop all` has ended.
        """
        stays = self.wish == NOTHING if since == NOTHING else since == ENDED
        if stays or (since == ENTERED and not found):
            self.promised |= rows

    def follows(self, rule: str) -> bool:
        return rule != self.leave_out

    def new(self, name: str) -> str:
        self.fresh += 1
        return f"{name}{self.fresh}"

    @property
    def gone(self) -> dict[str, tuple[str, ...] | None]:
        return {name: after for entry in self.log for name, after in entry.items()}

    @property
    def dead(self) -> set[int]:
        return {row for name, row in self.tombstones.items() if name not in self.lifts}

    def visible(self) -> set[int]:
        present = (rows for name, rows in self.segments.items() if name not in self.gone)
        return set().union(*present) - self.dead

    def stands_for(self, name: str) -> list[str] | None:
        after = self.gone.get(name, (name,))
        if name not in self.gone:
            return [name]
        if after is None:
            return None
        found: list[str] = []
        for successor in after:
            inner = self.stands_for(successor)
            if inner is None:
                return None
            found += inner
        return found

    def standing(self, after: tuple[str, ...] | None, staying: Segments) -> set[int] | None:
        """The rows of the segments that stand for some successors, of those that stay."""
        rows: set[int] = set()
        for name in after or ():
            standing = self.stands_for(name)
            if standing is None:
                return None
            rows = rows.union(*(staying.get(one, frozenset()) for one in standing))
        return None if after is None else rows

    def replaces(self, standing: set[int] | None, needed: frozenset[int] | set[int]) -> bool:
        """Whether successors hold all that is needed of what they stand for."""
        if not self.follows("successors"):
            return True
        return standing is not None and needed <= standing

    def at_ref(self, ref: str) -> set[int] | None:
        """What a reader of a ref finds; None for a ref that dangles."""
        rows: set[int] = set()
        for name in self.refs[ref]:
            standing = self.stands_for(name)
            if standing is None or any(one not in self.segments for one in standing):
                return None
            for one in standing:
                rows |= self.segments[one]
        return rows - self.dead


def remove(world: World, plan: dict[str, tuple[str, ...] | None]) -> Iterator[None]:
    """REMOVE of {victim: its successors, or None where others hold its rows}."""
    while plan:
        n, gone = len(world.log), world.gone
        yield
        segments = dict(world.segments)
        yield
        dead = world.dead
        yield
        pinned = itertools.chain(*world.refs.values()) if world.follows("refs pin") else ()
        pins = {one for name in pinned for one in world.stands_for(name) or ()}
        yield
        plan = {
            name: after for name, after in plan.items() if name in segments and name not in gone
        }
        staying = {
            name: rows
            for name, rows in segments.items()
            if name not in plan and (name not in gone or not world.follows("holders"))
        }
        held = set().union(*staying.values()) if staying else set()
        standing = {name: world.standing(after, staying) for name, after in plan.items()}
        plan = {
            name: after if replaced else None
            for name, after in plan.items()
            if segments[name] - dead <= held
            for replaced in [world.replaces(standing[name], segments[name] - dead)]
            if name not in pins or (after is not None and replaced and segments[name] & dead)
        }
        if not plan:
            return
        if len(world.log) == n or not world.follows("log"):
            world.log.append(dict(plan))
            break
        yield
    yield
    for name in plan:
        world.segments.pop(name, None)
        yield


def clean(world: World, only: str = "") -> Steps:
    """Rewrite the segments that hold dead rows, until there are none."""
    for _ in range(6):
        gone = set(world.gone)
        yield
        segments = dict(world.segments)
        yield
        dead = world.dead
        yield
        dirty = [
            name
            for name, rows in segments.items()
            if rows & dead and name not in gone and only in ("", name)
        ]
        if not dirty:
            return
        for name in dirty:
            after: tuple[str, ...] = ()
            if segments[name] - dead:
                new = world.new(name)
                world.segments[new] = segments[name] - frozenset(dead)
                world.derived.add(new)
                yield
                after = (new,)
            yield from remove(world, {name: after})


def settle(world: World, name: str) -> Steps:
    """WRITE, after publishing."""
    if world.follows("settle"):
        yield from clean(world, name)


def write(world: World, rows: frozenset[int]) -> Generator[None, None, int]:
    """Publish a segment of rows; returns how far `drop all` was then."""
    name = world.new("W")
    yield
    world.segments[name] = rows
    since = world.wish
    yield
    yield from settle(world, name)
    world.promise(rows - set(world.tombstones.values()), since=since)
    return since


def merge(world: World) -> Steps:
    """Rows 2, 3 and 5, less what it knows to be forgotten when it begins."""
    dead = world.dead
    yield
    yield from write(world, frozenset({2, 3, 5} - dead))


def compact(world: World) -> Steps:
    gone = set(world.gone)
    yield
    segments = dict(world.segments)
    yield
    dead = world.dead
    yield
    if world.follows("second look") and set(world.gone) != gone:
        return
    chosen = [name for name in segments if name not in gone]
    if len(chosen) > 1:
        name = world.new("Z")
        world.segments[name] = frozenset().union(*(segments[one] for one in chosen)) - dead
        world.derived.add(name)
        yield
        yield from settle(world, name)
        yield from remove(world, dict.fromkeys(chosen))


def deduplicate(world: World, one: str, other: str) -> Steps:
    """Drop a segment because another one holds its rows."""
    yield
    if one in world.segments and other in world.segments:
        yield from remove(world, {one: None})


def drop_all(world: World) -> Steps:
    """forget --space: all segments go, because somebody says so; then what was made of them."""
    world.promised.clear()
    world.wish = BEGUN
    since = 0
    while True:
        n, gone = len(world.log), world.gone
        yield
        chosen = {name: rows for name, rows in world.segments.items() if name not in gone}
        yield
        pinned = itertools.chain(*world.refs.values()) if world.follows("refs first") else ()
        pins = {one for name in pinned for one in world.stands_for(name) or ()}
        yield
        if world.wished:
            if world.follows("alone") and any(world.log[since:n]):
                break  # whose rows are whose is not known any more
            rows = frozenset().union(*world.wished.values())
            chosen = {
                name: some
                for name, some in chosen.items()
                if name not in pins and some <= rows
                if name in world.derived or not world.follows("derived")
            }
        elif pins & chosen.keys():
            return
        if not chosen:
            break
        if len(world.log) == n:
            world.log.append(dict.fromkeys(chosen))
            world.wished |= chosen
            world.wish, since = ENTERED, len(world.log)
        yield
    for name in world.wished:
        world.segments.pop(name, None)
        yield
    world.wish = ENDED


def forget(world: World, row: int) -> Steps:
    world.promised.discard(row)
    world.tombstones[world.new("T")] = row
    yield
    yield from clean(world)


def lift(world: World, row: int) -> Steps:
    """extract --again: the lift, then a look at what is there, then the row if it is not."""
    for name in [name for name, dead in world.tombstones.items() if dead == row]:
        world.lifts.add(name)
        yield
        if world.follows("lift"):
            world.log.append({})
            yield
    if row in world.dead:
        return  # forgotten again
    since = world.wish
    if found := row in world.visible():
        yield
    else:
        since = yield from write(world, frozenset({row}))
    if row not in world.dead:
        world.promise({row}, since=since, found=found)


def ref(world: World, name: str) -> Steps:
    for _ in range(3):
        gone = set(world.gone)
        yield
        pins = frozenset(one for one in world.segments if one not in gone)
        yield
        if set(world.gone) != gone:
            continue
        world.refs[name] = pins
        yield
        while True:
            n, removed = len(world.log), set(world.gone)
            yield
            if pins & removed:
                del world.refs[name]
                yield
                break
            if len(world.log) == n or not world.follows("ref"):
                world.log.append({})
                world.entered[name] = frozenset().union(
                    *(world.segments.get(p, frozenset()) for p in pins)
                )
                return
            yield


def salvage(world: World) -> Steps:
    """Of a draft whose writer may be alive after all, and publish it at any moment."""
    if "D" not in world.drafts:
        return
    aside = world.drafts.pop("D")
    yield
    known = world.visible() | world.dead
    yield
    rows = aside - frozenset(known)
    if rows:
        yield from write(world, rows)


def publish_draft(world: World) -> Steps:
    """The writer of that draft publishes it, if its folder is still there."""
    yield
    if "D" in world.drafts:
        rows = world.drafts.pop("D")
        world.segments["D"] = rows
        since = world.wish
        yield
        yield from settle(world, "D")
        world.promise(rows - set(world.tombstones.values()), since=since)


OPERATIONS: dict[str, Callable[[World], Steps]] = {
    "drop X for Y": lambda world: deduplicate(world, "X", "Y"),
    "drop Y for X and S": lambda world: deduplicate(world, "Y", "X"),
    "drop S": lambda world: deduplicate(world, "S", "Y"),
    "compact": compact,
    "compact too": compact,
    "forget 3": lambda world: forget(world, 3),
    "forget 2": lambda world: forget(world, 2),
    "forget 4": lambda world: forget(world, 4),
    "lift 4": lambda world: lift(world, 4),
    "ref": lambda world: ref(world, "r"),
    "merge": merge,
    "salvage": salvage,
    "publish": publish_draft,
    "drop all": drop_all,
    "write 3": lambda world: write(world, frozenset({3})),
    "write 3 and 4": lambda world: write(world, frozenset({3, 4})),
}


def check(world: World) -> None:
    """AssertionError where a row is lost, back, or a ref lacks what it pinned."""
    lost = world.promised - world.dead - world.visible()
    assert not lost, f"lost {lost} of {world}"
    for name, rows in world.entered.items():
        found = world.at_ref(name)
        assert found is not None, f"ref {name} dangles: {world}"
        assert rows - set(world.tombstones.values()) <= found, f"ref {name} lacks rows: {world}"


def check_end(world: World, finished: set[str]) -> None:
    """Once all that was begun has ended: no segment holds a row that a `forget` has named."""
    for name in finished:
        if name == "drop all":
            assert not world.wished.keys() & world.segments.keys(), f"left: {world}"
        if name.startswith("forget"):
            row = int(name[-1])
            present = {one for one, rows in world.segments.items() if row in rows}
            assert row not in world.dead or not present, f"{name} left {present}: {world}"


def run(names: tuple[str, ...], pick: Callable[[list[int]], tuple[int, bool]], rule: str) -> int:
    """One schedule; `pick` chooses who runs next, and whether it is killed. Returns the steps."""
    world = World(leave_out=rule)
    processes = [OPERATIONS[name](world) for name in names]
    alive, finished, n, killed = list(range(len(names))), set[str](), 0, False
    while alive:
        i, kill = pick(alive)
        if kill:
            alive.remove(i)
            killed = True
        else:
            try:
                next(processes[i])
            except StopIteration:
                alive.remove(i)
                finished.add(names[i])
        n += 1
        check(world)
    if not killed:
        check_end(world, finished)
    return n


def check_pairs(*, rule: str = "", reach: int = 16, step: int = 1) -> int:
    """Two operations, with up to two preemptions and one kill; returns how many schedules."""
    n = 0
    for names in itertools.permutations(RULES.get(rule, [*OPERATIONS]), 2):
        for first, second, kill in itertools.product(
            range(0, reach, step), range(0, reach, step), (None, 0, 1)
        ):
            left = [first, second]

            def pick(
                alive: list[int], left: list[int] = left, kill: int | None = kill
            ) -> tuple[int, bool]:
                for i in (0, 1):
                    if i in alive and left[i] > 0:
                        left[i] -= 1
                        return i, False
                    if i in alive and kill == i:
                        return i, True
                return alive[0], False

            run(names, pick, rule)
            n += 1
    return n


def check_random(n: int, *, seed: int, rule: str = "") -> int:
    """`n` schedules of three or four operations, each killed now and then."""
    rng = random.Random(seed)
    for _ in range(n):
        names = tuple(rng.sample(RULES.get(rule, [*OPERATIONS]), 3 if rule else rng.choice((3, 4))))
        run(names, lambda alive: (rng.choice(alive), rng.random() < 0.01), rule)
    return n


if __name__ == "__main__":
    print(check_pairs(), "schedules of two operations,", check_random(60_000, seed=1), "at random")
