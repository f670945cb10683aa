"""What was removed and forgotten in a cache, read afresh, and the ways to add to it.

A `History` keeps what it has read: the log is append-only and tombstones and lifts never change, so
that a look costs one name that is absent and two listings.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.store.layout import bring_over
from embedcache.store.log import Entry, Log, append, read_log
from embedcache.store.manifest import new_segment_id
from embedcache.store.proposals import drop, enter, propose, withdraw
from embedcache.store.tombstones import (
    FOLDER,
    LIFTS,
    Dead,
    Lift,
    Marks,
    Tombstone,
    encode_lift,
    encode_tombstones,
    join,
    list_marks,
    parse_lift,
    parse_tombstone,
    read_lift,
    read_marks,
    read_tombstone,
    write_marks,
)

ROUNDS = 100  # that one `forget` looks at ids which others publish
LOST = "0" * 64  # the digest, in the log, of a file that is known to be lost


class History:
    """The log, the tombstones and the lifts of the cache in folder `cache`."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._log = Log()
        self._tombstones: dict[str, Tombstone] = {}
        self._lifts: dict[str, Lift] = {}
        self._dead = Dead()

    def log(self) -> Log:
        """The log as it is now; the same object while nothing was added."""
        self._log = read_log(self.cache, self._log)
        return self._log

    def dead(self) -> Dead:
        """The marks that hold now; the same object while nothing was added.

        Tombstones are listed before lifts, so that a lift is never taken for older than it is.
        """
        names = list_marks(self.cache, FOLDER), list_marks(self.cache, LIFTS)
        if names != ([*self._tombstones], [*self._lifts]):
            self._tombstones = {
                name: self._tombstones.get(name) or read_tombstone(self.cache, name)
                for name in names[0]
            }
            self._lifts = {
                name: self._lifts.get(name) or read_lift(self.cache, name) for name in names[1]
            }
            self._dead = join(self._tombstones, self._lifts)
        return self._dead

    def forget(self, *, contents: Iterable[bytes] = (), pairs: Iterable[bytes] = ()) -> None:
        """Make marks of contents and of pairs durable: from now on no reader shows their rows."""
        marks = Marks(frozenset(contents), frozenset(pairs))
        self.forget_what(lambda: marks)

    def forget_what(self, look: Callable[[], Marks]) -> Marks:
        """Make the marks durable that `look` finds, and return them.

        It is asked again once they lie ready, and as long as somebody publishes ids of their
        contents meanwhile (`proposals`).
        """
        return self._decide(look, {})

    def _decide(self, look: Callable[[], Marks], others: Mapping[str, bytes]) -> Marks:
        """Make what `look` finds durable, and then other tombstones, {file name: bytes}."""
        with disk.plain_errors("write to", self.cache):
            bring_over(self.cache)
            for _ in range(ROUNDS):
                marks = look()
                mine = encode_tombstones(marks) if marks or not others else []
                named = {f"{new_segment_id()}.json": raw for raw in mine}
                ready = propose(self.cache, {**named, **others})
                try:
                    if look() == marks and enter(ready):
                        return marks
                finally:
                    drop(ready)
        raise CacheError(f"{self.cache} kept changing while this command ran: rerun it")

    def lift(self, marks: Iterable[bytes]) -> int:
        """Lift what tombstones say of these marks (of contents or pairs); returns how many held.

        A lift is an entry of the log as well: whoever is about to remove a segment, because its
        row was dead, looks again.
        """
        dead = self.dead()
        lifts: dict[str, list[bytes]] = {}
        held = {mark for mark in marks if mark in dead.contents or mark in dead.pairs}
        for mark in held:
            for name in {*dead.contents.get(mark, ()), *dead.pairs.get(mark, ())}:
                lifts.setdefault(name, []).append(mark)
        if held:
            with disk.plain_errors("write to", self.cache):
                bring_over(self.cache)
                write_marks(self.cache, LIFTS, encode_lift(lifts))
            withdraw(self.cache)  # what others decide of ids that have just come alive again
        self.note()  # also what a run that was killed lifted
        return len(held)

    def adopt(
        self,
        *,
        lifts: Mapping[str, bytes],
        tombstones: Mapping[str, bytes],
        left_to: Callable[[Dead], Mapping[bytes, frozenset[bytes]]],
    ) -> int:
        """Take over another copy's lifts and tombstones, {file name: bytes}; returns how many.

        Lifts first: a tombstone that was lifted there never holds here. Before the tombstones comes
        one of this copy's own, where their lists would end contents that have other ids here.
        left_to: of what would hold, the contents that lists end and the pairs they have here.
        Raises Damaged for bytes that are not as they were written, before anything is taken over.
        """
        parse_marks(lifts, tombstones)
        dead = self.dead()
        new_lifts = {name: raw for name, raw in lifts.items() if name not in dead.lifts}
        fresh = {name: raw for name, raw in tombstones.items() if name not in dead.tombstones}
        if new_lifts:
            with disk.plain_errors("write to", self.cache):
                bring_over(self.cache)
                for name, raw in new_lifts.items():
                    write_marks(self.cache, LIFTS, raw, name=name)
        if fresh:
            given = {name: parse_tombstone(fresh[name], name=name) for name in fresh}

            def look() -> Marks:
                self.dead()
                after = join(self._tombstones | given, self._lifts)
                return Marks(left=left_to(after) if after.by_lists else {})

            self._decide(look, fresh)
        self.note()  # also what a run that was killed took over
        return len(fresh) + len(new_lifts)

    def files(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """All lifts and all tombstones as {file name: bytes}, checked, for another copy."""
        dead = self.dead()
        return (
            {name: read_marks(self.cache, LIFTS, name) for name in dead.lifts},
            {name: read_marks(self.cache, FOLDER, name) for name in dead.tombstones},
        )

    def note(self) -> None:
        """Enter in the log which tombstones and lifts there are, so that a lost one is missed."""

        def decide(log: Log) -> Entry | None:
            entry = self.entry(log)
            return entry if entry.forgotten or entry.remembered else None

        if unknown_marks(self.log(), self.dead()):
            with disk.plain_errors("write to", self.cache):
                bring_over(self.cache)
                self._log = append(self.cache, self._log, decide)

    def give_up(self, path: str) -> None:
        """Enter that a tombstone or lift, by its path in the cache, is lost and is not missed."""
        folder, _, name = path.partition("/")
        named = {name: LOST}
        lost = Entry(forgotten=named) if folder == FOLDER else Entry(remembered=named)
        with disk.plain_errors("write to", self.cache):
            self._log = append(self.cache, self._log, lambda _: lost)

    def entry(self, log: Log) -> Entry:
        """An entry that removes nothing, and names the tombstones and lifts that `log` does not."""
        dead = self.dead()
        return Entry(
            forgotten=_fresh(dead.tombstones, log.forgotten),
            remembered=_fresh(dead.lifts, log.remembered),
        )


def _fresh(now: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in now.items() if name not in known}


def missing_marks(log: Log, dead: Dead) -> list[str]:
    """The tombstones and lifts that the log names and that are gone, as paths in the cache."""
    parts = ((FOLDER, log.forgotten, dead.tombstones), (LIFTS, log.remembered, dead.lifts))
    return sorted(
        f"{folder}/{name}"
        for folder, known, now in parts
        for name, digest in known.items()
        if name not in now and digest != LOST
    )


def unknown_marks(log: Log, dead: Dead) -> list[str]:
    """The tombstones and lifts that no entry of the log names, as paths in the cache."""
    found = [f"{FOLDER}/{name}" for name in dead.tombstones.keys() - log.forgotten.keys()]
    return sorted(found + [f"{LIFTS}/{name}" for name in dead.lifts.keys() - log.remembered.keys()])


def parse_marks(lifts: Mapping[str, bytes], tombstones: Mapping[str, bytes]) -> Dead:
    """The marks that hold by another copy's lifts and tombstones, {file name: bytes}, checked."""
    return join(
        {name: parse_tombstone(raw, name=name) for name, raw in tombstones.items()},
        {name: parse_lift(raw, name=name) for name, raw in lifts.items()},
    )
