"""A model of what `forget` decides of a photo with several ids, and every schedule of commands.

One content in two copies of a cache. Ids are published, forgotten, and carried between the copies
by their tombstones; each may happen at any moment between the steps of the others, and each may be
killed. What must hold: an id that was published with success, and that nobody forgot, is there, and
so is the content; a content whose ids were all forgotten is dead in every copy that has the
tombstones.

python -m tests.store.model_of_forgetting
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Steps = Iterator[None]
STARTS = ("1", "12")  # the ids of the photo
RULES = ("look again", "withdraw", "lists", "own rows", "claims")


@dataclass(frozen=True)
class Stone:
    """A tombstone: the ids, whether the content goes too, and to which ids it was left."""

    ids: frozenset[str]
    content: bool
    left: frozenset[str]


@dataclass
class Copy:
    """One copy: the ids that are stored, tombstones, and those that lie ready."""

    ids: set[str]
    stones: set[Stone] = field(default_factory=set)
    ready: dict[int, Stone] = field(default_factory=dict)

    def gone(self) -> set[str]:
        return {name for stone in self.stones for name in stone.ids}

    def dead(self, *, rule: str = "") -> bool:
        """Whether the content is dead."""
        lists = [stone.left for stone in self.stones if stone.left]
        left = {name for some in lists for name in some}
        by_lists = bool(lists) and left <= self.gone() and rule != "lists"
        return by_lists or any(stone.content for stone in self.stones)

    def living(self, *, rule: str = "") -> set[str]:
        return set() if self.dead(rule=rule) else self.ids - self.gone()


@dataclass
class World:
    """Two copies, and what commands promised: ids that are there, and ids that are forgotten."""

    a: Copy
    b: Copy
    promised: set[tuple[str, str]] = field(default_factory=set)  # copy, id
    asked: set[str] = field(default_factory=set)
    tickets: Iterator[int] = field(default_factory=itertools.count)
    without: str = ""

    def copy(self, name: str) -> Copy:
        return self.a if name == "a" else self.b


def forget(world: World, where: str, name: str) -> Steps:
    copy = world.copy(where)
    world.asked.add(name)
    while True:
        left = frozenset(copy.living(rule=world.without) - {name})
        yield
        stone = Stone(frozenset({name}), not left, left)
        ticket = next(world.tickets)
        copy.ready[ticket] = stone
        yield
        again = frozenset(copy.living(rule=world.without) - {name})
        yield
        same = again == left or world.without == "look again"
        entered = copy.ready.pop(ticket, None) or world.without == "withdraw"
        if same and entered:
            copy.stones.add(stone)
            return
        yield


def publish(world: World, where: str, name: str) -> Steps:
    """An id of the content, whose row is there or comes with it."""
    copy = world.copy(where)
    if copy.dead():
        return  # skipped, and said so
    yield
    copy.ids.add(name)
    yield
    if world.without != "withdraw":
        copy.ready.clear()
    yield
    if name not in copy.living() and world.without != "own rows":
        copy.ids.discard(name)  # skipped, and said so
        return
    world.promised.add((where, name))


def carry(world: World, source: str, to: str) -> Steps:
    """Tombstones of another copy; first one of this copy's own, where an id here is in no list."""
    copy = world.copy(to)
    while True:
        fresh = world.copy(source).stones - copy.stones
        claim = claimed(copy, fresh, rule=world.without)
        yield
        ticket = next(world.tickets)
        copy.ready[ticket] = Stone(frozenset(), False, frozenset())  # it names the content
        yield
        again = claimed(copy, fresh, rule=world.without)
        yield
        entered = copy.ready.pop(ticket, None) is not None
        if entered and again == claim:
            break
        yield
    for stone in [*claim, *sorted(fresh, key=repr)]:
        copy.stones.add(stone)
        yield


def claimed(copy: Copy, fresh: set[Stone], *, rule: str) -> list[Stone]:
    """What a copy says of ids that the lists, with some fresh ones, would end without naming."""
    after = Copy(copy.ids, copy.stones | fresh)
    left = frozenset(copy.ids - after.gone())
    content = any(stone.content for stone in after.stones)
    claims = left and after.dead() and not content and rule != "claims"
    return [Stone(frozenset(), False, left)] if claims else []


OPERATIONS: dict[str, Callable[[World], Steps]] = {
    "forget 1": lambda world: forget(world, "a", "1"),
    "forget 2": lambda world: forget(world, "a", "2"),
    "forget 2 in b": lambda world: forget(world, "b", "2"),
    "publish 3": lambda world: publish(world, "a", "3"),
    "publish 4": lambda world: publish(world, "a", "4"),
    "a to b": lambda world: carry(world, "a", "b"),
    "b to a": lambda world: carry(world, "b", "a"),
}
IN_B = {"forget 2 in b", "a to b", "b to a"}


def check(world: World, *, after: str) -> None:
    """At the end of all: promises, and nothing left of what was forgotten."""
    one = world.a
    elsewhere = IN_B & {*after.split(", ")}
    if not elsewhere and not (one.ids - one.gone()):
        assert one.dead(rule=world.without), f"left without an id: {world} {after}"
    for source, to in (("a", "b"), ("b", "a"), ("a", "b")):
        for _ in carry(world, source, to):
            pass
    # Of two copies, the last word of one may take an id of which it did not know.
    last_words = elsewhere and any(stone.content for stone in one.stones | world.b.stones)
    for where, name in world.promised if not last_words else ():
        living = world.copy(where).living()
        assert name in world.asked or name in living, f"{name} lost: {world} {after}"
    for copy in (world.a, world.b):
        if not ((world.a.ids | world.b.ids) - copy.gone()):
            assert copy.dead(rule=world.without), f"left in a copy: {world} {after}"


def run(
    names: tuple[str, ...], start: str, order: tuple[int, ...], killed: tuple[int, int], rule: str
) -> None:
    """One schedule: whose step is next; start: the ids that both copies have.

    killed: who, and after how many of its steps.
    """
    world = World(Copy({*start}), Copy({*start}), without=rule)
    processes = [OPERATIONS[name](world) for name in names]
    alive, steps = [*range(len(names))], [0] * len(names)
    turns = iter(order)
    while alive:
        i = next((turn for turn in turns if turn in alive), alive[0])
        if killed == (i, steps[i]):
            alive.remove(i)
            continue
        steps[i] += 1
        try:
            next(processes[i])
        except StopIteration:
            alive.remove(i)
    check(world, after=", ".join(names))


def check_pairs(rule: str = "") -> int:
    """Every schedule of every two commands, each once whole and once with a kill anywhere."""
    pairs = [(names, start) for names in itertools.combinations(OPERATIONS, 2) for start in STARTS]
    return sum(_every(names, start, reach=9, rule=rule) for names, start in pairs)


def check_triples(rule: str = "", *, reach: int = 6) -> int:
    """Every schedule of every three commands, up to so many steps; then one after the other."""
    triples = itertools.combinations(OPERATIONS, 3)
    return sum(_every(names, STARTS[1], reach=reach, rule=rule) for names in triples)


def _every(names: tuple[str, ...], start: str, *, reach: int, rule: str) -> int:
    if any(name.startswith("forget") and name.split()[1] not in start for name in names):
        return 0
    n = 0
    kills = [(-1, -1), *((i, k) for i in range(len(names)) for k in range(1, 6))]
    for order in itertools.product(range(len(names)), repeat=reach):
        for killed in kills:
            run(names, start, order, killed, rule)
            n += 1
    return n


if __name__ == "__main__":
    print(check_pairs(), "schedules of two commands,", check_triples(reach=9), "of three")
