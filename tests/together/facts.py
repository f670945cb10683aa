"""What must, may and must not be readable, by what the operations themselves reported.

A row that was committed and that nobody began to forget must be readable at every pause; one whose
`forget` succeeded never again. Between the two either is right.
"""

from dataclasses import dataclass, field

from tests.together.operations import Operation
from tests.together.world import FORGOTTEN, HELD, N_PHOTOS, NET, Row, ids_of


@dataclass(slots=True)
class Facts:
    """The state of the cache and of the remote, as far as it is known.

    must, must_remote: rows that have to be readable. asked: ids that somebody began to forget.
    gone: ids that were forgotten. never_remote: photos that were purged.
    refs: the rows that each acknowledged ref pins. due: rows that must be there in the end.
    firsts: what was so when each ref was first begun.
    freed: the spaces that somebody began to free, in this order; freeing: those that somebody is at
        now, by their place in `freed`.
    named, naming: ids that photos have got, and that they may get.
    """

    must: set[Row] = field(default_factory=lambda: set(HELD["cache"]))
    must_remote: set[Row] = field(default_factory=lambda: set(HELD["remote"]))
    asked: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=lambda: {*ids_of(FORGOTTEN)})
    never_remote: set[int] = field(default_factory=set)
    refs: dict[str, set[Row]] = field(default_factory=dict)
    due: set[Row] = field(default_factory=set)
    firsts: dict[str, "Promise"] = field(default_factory=dict)
    freed: list[str] = field(default_factory=list)
    freeing: dict[int, str] = field(default_factory=dict)
    named: dict[int, set[str]] = field(default_factory=dict)
    naming: dict[int, set[str]] = field(default_factory=dict)

    def begins(self, op: Operation) -> "Promise":
        self.asked |= set(op.forgets)
        self.asked |= {name for n in op.removes for name in ids_of(n)}
        doomed = self._without_ids(self.asked | self.gone)
        self.must = {row for row in self.must if row[1] not in doomed}
        self.must_remote = {row for row in self.must_remote if row[1] not in doomed}
        if op.names:
            self.naming.setdefault(op.names[0], set()).add(op.names[1])
        promise = self.promise()
        if op.frees:
            self.freeing[len(self.freed)] = op.frees
            self.freed.append(op.frees)
            self.must = {row for row in self.must if row[0] != op.frees}
        return self.firsts.setdefault(op.ref, promise) if op.ref else promise

    def succeeds(self, op: Operation, promise: "Promise") -> None:
        self.gone |= set(op.forgets)
        self.ends(op, promise)
        self.must |= self._expected(op.adds, promise)
        self.due |= op.adds_in_the_end
        if op.ref:
            self.refs[op.ref] = promise.must
        if op.sends:
            self.must_remote |= self._expected(promise.must, promise)
        if op.purges:
            self.never_remote |= promise.never
        self.never_remote |= set(op.removes)

    def names(self, op: Operation, *, taken: bool) -> None:
        """An operation gave a photo an id, with which alone its vectors go now; or it was dead."""
        assert op.names is not None
        n, name = op.names
        if taken:
            self.named.setdefault(n, set()).add(name)
            self.must |= {row for row in HELD["cache"] if row == (NET, n)}
        else:
            self.naming[n].discard(name)

    def ends(self, op: Operation, promise: "Promise") -> None:
        """An operation succeeded, refused or died."""
        if op.frees:
            self.freeing.pop(promise.n_freed, None)

    def refuses_for_a_ref(self, op: Operation, promise: "Promise") -> None:
        """To free what is pinned: then nothing was touched, unless a run before was killed."""
        if self.freed.count(op.frees) == 1:
            rows = {row for row in promise.must if row[0] == op.frees}
            doomed = self._without_ids(self.asked | self.gone)
            self.must |= {row for row in rows if row[1] not in doomed}

    def _expected(self, rows: "set[Row] | frozenset[Row]", promise: "Promise") -> set[Row]:
        """Rows that an operation which began with `promise` handled, less what others took away."""
        doomed = self._without_ids(self.asked | self.gone)
        freed = {*promise.freeing, *self.freed[promise.n_freed :]}
        return {row for row in rows if row[1] not in doomed and row[0] not in freed}

    def all_have_ended(self) -> None:
        doomed = self._without_ids(self.asked | self.gone)
        self.must |= {row for row in self.due if row[1] not in doomed}

    def promise(self) -> "Promise":
        return Promise(
            set(self.must),
            set(self.never),
            set(self.gone),
            n_freed=len(self.freed),
            freeing=frozenset(self.freeing.values()),
        )

    @property
    def never(self) -> set[int]:
        """Photos of which nothing may be read any more."""
        return self._without_ids(self.gone, self.naming)

    def _without_ids(self, ids: set[str], more: dict[int, set[str]] | None = None) -> set[int]:
        """The photos whose ids are all among these; more: ids that count beside `named`."""
        others = self.named if more is None else more
        return {n for n in range(N_PHOTOS) if ids.issuperset({*ids_of(n), *others.get(n, ())})}


@dataclass(frozen=True, slots=True)
class Promise:
    """What was so when an operation began. n_freed: how many had begun to free a space;
    for one that does, its place among them."""

    must: set[Row]
    never: set[int]
    gone: set[str]
    n_freed: int
    freeing: frozenset[str]
