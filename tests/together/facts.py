"""What must, may and must not be readable, by what the operations themselves reported.

A row that was committed and that nobody began to forget must be readable at every pause; one whose
`forget` succeeded never again. Between the two either is right.
"""

from dataclasses import dataclass, field

from tests.together.operations import Operation
from tests.together.world import FORGOTTEN, HELD, N_PHOTOS, Row, ids_of


@dataclass(slots=True)
class Facts:
    """The state of the cache and of the remote, as far as it is known.

    must, must_remote: rows that have to be readable. asked: ids that somebody began to forget.
    gone: ids that were forgotten. never_remote: photos that were purged.
    refs: the rows that each acknowledged ref pins. due: rows that must be there in the end.
    firsts: what was so when each ref was first begun.
    """

    must: set[Row] = field(default_factory=lambda: set(HELD["cache"]))
    must_remote: set[Row] = field(default_factory=lambda: set(HELD["remote"]))
    asked: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=lambda: {*ids_of(FORGOTTEN)})
    never_remote: set[int] = field(default_factory=set)
    refs: dict[str, set[Row]] = field(default_factory=dict)
    due: set[Row] = field(default_factory=set)
    firsts: dict[str, "Promise"] = field(default_factory=dict)

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
