"""The rows of one space, by content digest: what spaces of vectors and of faces share.

A space is the union of its segments. A table in memory says where each content lies; contents that
are dead (`tombstones`) are not in it, so that no caller can meet them.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import CacheError, Damaged
from embedcache.spec import Json
from embedcache.store import memory
from embedcache.store.columns import Columns
from embedcache.store.history import History
from embedcache.store.index import Table
from embedcache.store.reader import Part
from embedcache.store.salvage import salvage
from embedcache.store.segment import Segment
from embedcache.store.segment_set import SegmentSet
from embedcache.store.tombstones import Dead
from embedcache.store.writer import FaceWriter, SegmentWriter

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
T = TypeVar("T")
UNKNOWN = "unknown"
HOLDERS = 4  # whose digests one removal keeps
INDEX_SEGMENTS = 64
INDEX_ROWS = 65_536
MAPPED_ROWS = 1 << 20  # a table of so many entries lies in its file, not in memory
COLUMN_CACHE_BYTES = 24 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a space holds: distinct photos, and where they came from."""

    ok: int
    failed: dict[str, int]
    segments: int
    bytes_on_disk: int
    names: tuple[str, ...]
    writers: dict[str, int]
    devices: dict[str, int]
    first: str
    last: str


class RowSet(SegmentSet):
    """The rows of one space. `pins`, from a ref, are the only segments that exist."""

    def __init__(
        self,
        folder: Path,
        digest: str,
        *,
        history: History | None = None,
        pins: Mapping[str, str] | None = None,
    ) -> None:
        history = history or History(folder.parent.parent)
        super().__init__(folder, key=digest, history=history, pins=pins)
        self.digest = digest
        self._columns: dict[str, Columns] = {}
        self._indexed: list[str] = []
        self._unsaved = 0
        self._table = Table.empty()
        self._dead = Dead()  # whose contents the table is without

    def status(self, digests: U8) -> U8:
        """ABSENT, OK or FAILED for each of (n, 32) digests; good anywhere beats failed."""
        _, table = self.row_table()
        return table.status(digests)

    def reasons(self, digests: U8) -> list[str | None]:
        """Why each failed photo failed; None for one that is good or absent."""

        def look(segments: list[Segment], table: Table) -> list[str | None]:
            at = table.find(digests)
            found: list[str | None] = [None] * len(at)
            failed = np.flatnonzero(at >= 0)
            failed = failed[~table.ok[at[failed]]]
            reasons: dict[int, list[str]] = {}
            for i in failed.tolist():
                number, row = int(table.segment[at[i]]), int(table.row[at[i]])
                if number not in reasons:
                    reasons[number] = segments[number].reasons()
                found[i] = reasons[number][row - segments[number].manifest.n_ok]
            return found

        return self._steadily(look)

    def digests(self) -> U8:
        """Digests of all good rows, (n, 32), ascending."""
        _, table = self.row_table()
        return table.digests[table.ok]

    def counts(self) -> Counts:
        """Rows, failures by reason, segments, bytes, and who wrote them."""
        segments, table = self.row_table()
        reasons = self.reasons(table.digests[~table.ok])
        manifests = [segment.manifest for segment in segments]
        created = sorted(manifest.created for manifest in manifests)
        return Counts(
            ok=int(table.ok.sum()),
            failed=dict(Counter(str(reason) for reason in reasons).most_common()),
            segments=len(segments),
            bytes_on_disk=sum(manifest.bytes_on_disk for manifest in manifests),
            names=self.names,
            writers=dict(Counter(_first_of(m.about, "host", "writer") for m in manifests)),
            devices=dict(Counter(_first_of(m.about, "device") for m in manifests)),
            first=created[0] if created else "",
            last=created[-1] if created else "",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """What writers called this space, the earliest first."""
        return tuple(dict.fromkeys(s.name for s in self.segments() if s.name))

    def row_table(self) -> tuple[list[Segment], Table]:
        """The segments, and where each digest that is not dead lies in them."""

        return self.steadily(lambda segments: (segments, self._table_of(segments)))

    def columns_of(self, segment: Segment) -> Columns:
        """A segment's small arrays; those read last are kept, up to a few megabytes."""
        columns = self._columns.get(segment.id)
        if columns is None:
            columns = self._columns[segment.id] = segment.columns()
            sizes = [sum(c.nbytes for c in kept.values()) for kept in self._columns.values()]
            while len(self._columns) > 1 and sum(sizes) > COLUMN_CACHE_BYTES:
                del self._columns[next(iter(self._columns))], sizes[0]
        return columns

    def salvage(self) -> int:
        """Turn what dead writers left into segments, and collect litter; returns rows saved."""
        return self._salvage(self._reopen)

    def drop_drafts(self) -> None:
        """Delete what dead writers left, and collect litter: nobody wants the rows."""
        self._salvage(None)

    def _salvage(
        self, reopen: Callable[[Mapping[str, Any], int], SegmentWriter | FaceWriter] | None
    ) -> int:
        if self._pins is not None or not os.access(self.segments_folder, os.W_OK):
            return 0
        return salvage(
            self.segments_folder,
            reopen=reopen,
            known=self._known,
            gone=lambda name: f"{self.key}/{name}" in self.history.log().gone,
            settle=self.settle,
        )

    def _dead_rows(self, segment: Segment, dead: Dead) -> Bool:
        return dead.of(segment.column("digest"))

    def held_in(
        self, holder: Segment, segment: Segment, rows: I64, tables: dict[str, Table]
    ) -> Bool:
        """Which of some rows of `segment` were read, under their CRCs, in `holder`, (k,).

        A good row needs a good one of the same content; a failure needs either.
        """
        held = np.zeros(len(rows), dtype=np.bool_)
        try:
            digests = segment.column("digest")[rows]
            if holder.id not in tables:
                theirs = holder.column("digest")
                fresh = Table.empty().extended(
                    [(0, theirs, holder.manifest.n_ok)], renumbered=np.empty(0, np.int64)
                )
                while len(tables) >= HOLDERS:
                    del tables[next(iter(tables))]
                tables[holder.id] = fresh
            table = tables[holder.id]
            at = table.find(digests)
            good = rows < segment.manifest.n_ok
            held[(at >= 0) & ~good] = True
            able = (at >= 0) & good
            able[able] = table.ok[at[able]]
            places = np.flatnonzero(able)
            held[places] = self._readable(holder, table.row[at[places]].astype(np.int64))
        except Damaged:
            pass  # what cannot be read holds nothing
        return held

    def readable(self, segment: Segment) -> Bool:
        """Which rows of a damaged segment can still be read, (n,)."""
        n_rows, n_ok = segment.manifest.n_rows, segment.manifest.n_ok
        if len(segment.reasons()) != n_rows - n_ok or len(segment.column("digest")) != n_rows:
            raise Damaged(f"the columns of segment {segment.folder} do not fit")
        found = np.ones(n_rows, dtype=np.bool_)
        found[:n_ok] = self._readable(segment, np.arange(n_ok))
        return found

    def _readable(self, segment: Segment, rows: I64) -> Bool:
        """Which of some good rows of a segment can be read, (k,)."""
        raise NotImplementedError

    def _known(self, digests: U8) -> Bool:
        """Which digests in a draft need no salvaging: good ones, and dead ones."""
        known: Bool = (self.status(digests) == 1) | self.history.dead().of(digests)
        return known

    def _reopen(self, lease: Mapping[str, Any], n_rows: int) -> SegmentWriter | FaceWriter:
        raise NotImplementedError

    def _table_of(self, segments: list[Segment]) -> Table:
        names = [segment.digest for segment in segments]
        dead = self.history.dead()
        if names != self._indexed or dead is not self._dead:
            self._extend(names, segments, dead)
        return self._table

    def _extend(self, names: list[str], segments: list[Segment], dead: Dead) -> None:
        """Bring the table up to date, from memory, from the file, or from nothing.

        names: the digests of the segments' manifests, so that a saved table fits those or none.
        """
        base, known = self._table, self._indexed
        more = dead.since(self._dead.tombstones, self._dead.lifts)
        file = self._index_file(dead)
        if not known and file is not None and (saved := Table.load(file)):
            base, known = saved.table, saved.segments
        elif more is None:
            base, known = Table.empty(), []
        elif more.contents:
            base = base.without(more.of(base.digests))
        if known != names:
            base = self._joined(base, known, names, segments, dead)
        old = {*known}
        fresh = [segment.manifest.n_rows for segment in segments if segment.digest not in old]
        n_fresh = sum(fresh)
        self._indexed, self._table, self._dead = names, base, dead
        self._unsaved += len(fresh)
        if file is not None and (self._unsaved >= INDEX_SEGMENTS or n_fresh >= INDEX_ROWS):
            self._unsaved = 0
            self._save(file)

    def _joined(
        self,
        base: Table,
        known: Sequence[str],
        names: Sequence[str],
        segments: Sequence[Segment],
        dead: Dead,
    ) -> Table:
        """A table of the segments `names`, made from one of the segments `known`.

        What a segment that has gone held is looked for in those that stay: of several rows with one
        content the next one counts then.
        """
        number, old = {name: i for i, name in enumerate(names)}, {*known}
        fresh = [(i, segment) for i, segment in enumerate(segments) if segment.digest not in old]
        renumbered = np.array([number.get(name, -1) for name in known], dtype=np.int64)
        left = base.digests[np.flatnonzero(renumbered[base.segment] < 0)]
        found = base.extended(
            _parts_of(fresh),
            renumbered=renumbered,
            dead=dead.of if dead.contents else None,
            n_rows=sum(segment.manifest.n_rows for _, segment in fresh),
        )
        if not len(left):
            return found
        asked = Table.empty().extended([(0, left, 0)], renumbered=np.empty(0, np.int64))
        stayed = [(i, segment) for i, segment in enumerate(segments) if segment.digest in old]
        again = [part for part in stayed if (asked.find(part[1].column("digest")) >= 0).any()]

        def unwanted(digests: U8) -> Bool:
            found = asked.find(digests) < 0
            some = np.flatnonzero(~found)
            found[some] = dead.of(digests[some])
            return found

        if not again:
            return found
        same = np.arange(len(names), dtype=np.int64)
        n_rows = sum(segment.manifest.n_rows for _, segment in again)
        return found.extended(_parts_of(again), renumbered=same, dead=unwanted, n_rows=n_rows)

    def _index_file(self, dead: Dead) -> Path | None:
        """Where the table of the rows that are not dead is kept; that of a ref never is."""
        if self._pins is not None:
            return None
        folder = memory.folder_of(self.history.cache, dead.tombstones, dead.lifts)
        return folder / "index" / f"{self.digest}.table"

    def _save(self, path: Path) -> None:
        """Keep the table in a file, unless something was forgotten while it was written."""
        with contextlib.suppress(OSError, CacheError):  # best effort; may fail on a full disk
            with memory.writing(path):
                self._table.save(path, self._indexed)
            if len(self._table.keys) >= MAPPED_ROWS:
                saved = Table.load(path)
                if saved and saved.segments == self._indexed:
                    self._table = saved.table

    def _steadily(self, look: Callable[[list[Segment], Table], T]) -> T:
        return self.steadily(lambda segments: look(segments, self._table_of(segments)))

    def _found(
        self, segments: list[Segment], table: Table, digests: U8
    ) -> tuple[Bool, Iterator[Part]]:
        """Which digests are good, and by segment: (segment, columns, its rows, their slots)."""
        at = table.find(digests)
        found = at >= 0
        found[found] = table.ok[at[found]]
        slots = np.flatnonzero(found)
        owner = table.segment[at[slots]]

        def by_segment() -> Iterator[Part]:
            for number in np.unique(owner).tolist():
                mine = slots[owner == number]
                rows = table.row[at[mine]].astype(np.int64)
                columns = self.columns_of(segments[number])
                if not np.array_equal(columns["digest"][rows], digests[mine]):
                    raise Damaged(f"the index of {self.folder} does not fit its segments")
                yield segments[number], columns, rows, mine

        return found, by_segment()


def _parts_of(segments: Sequence[tuple[int, Segment]]) -> Iterator[tuple[int, U8, int]]:
    """Numbered segments as a table takes them, one by one."""
    for number, segment in segments:
        yield number, segment.column("digest"), segment.manifest.n_ok


def _first_of(about: Mapping[str, Json], *names: str) -> str:
    return next((str(about[name]) for name in names if name in about), UNKNOWN)
