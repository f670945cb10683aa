"""A set of immutable segments: READ, WRITE and the taking away of what was forgotten.

What vectors, faces and photo ids share. Segments are listed again on every call, so that what other
writers commit is seen at once; those that the log names as removed are not there, whatever the
folder says.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, Damaged
from embedcache.spec import Json
from embedcache.store import journal
from embedcache.store.clearing import clear
from embedcache.store.columns import Kind
from embedcache.store.disposal import discard
from embedcache.store.history import History
from embedcache.store.index import Table
from embedcache.store.log import Log
from embedcache.store.manifest import replacement_id
from embedcache.store.removal import Victim, remove
from embedcache.store.segment import Segment, advice, list_segments, read_segment
from embedcache.store.tombstones import Dead

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
T = TypeVar("T")
LOOKS = 10  # at what others may remove meanwhile
ROUNDS = 50  # others may forget, compact and write all the while


class SegmentSet:
    """The segments below `folder`. `pins`, from a ref, are the only ones that exist."""

    kind: Kind

    def __init__(
        self,
        folder: Path,
        *,
        key: str,
        history: History,
        pins: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.key = key
        self.history = history
        self._pins = pins
        self._segments: dict[str, Segment] = {}
        self._asked: tuple[Dead, dict[str, Bool]] = (Dead(), {})  # the last few answers

    @property
    def segments_folder(self) -> Path:
        return self.folder / "segments"

    def segments(self) -> list[Segment]:
        """The committed segments that were not removed, lowest id first.

        Raises Damaged for one that is not whole, and for a pinned one that is gone.
        """
        log = self.history.log()
        while True:
            try:
                found = self._listed(log)
            except Damaged:
                if self.history.log().n == log.n:
                    raise
            else:
                # A listing is not one moment: it may miss a segment that was removed while it was
                # made, and the successor too.
                if self.history.log().n == log.n:
                    self._segments = found
                    return list(found.values())
            log = self.history.log()

    def steadily(self, look: Callable[[list[Segment]], T]) -> T:
        """What `look` makes of the segments; again where one was removed meanwhile."""
        for last in [False] * LOOKS + [True]:
            segments = self.segments()
            try:
                return look(segments)
            except Damaged:
                if last or all(segment.folder.exists() for segment in segments):
                    raise
        raise AssertionError("unreachable")

    def _listed(self, log: Log) -> dict[str, Segment]:
        wanted = None if self._pins is None else self._pinned(log, self._pins)
        prefix, gone = f"{self.key}/", log.gone
        found = list_segments(
            self.segments_folder,
            kind=self.kind,
            space=None if self.kind == "photos" else self.key,
            known=self._segments,
            wanted=None if wanted is None else wanted.keys(),
            gone=(lambda name: prefix + name in gone) if gone else None,
        )
        held = {segment.id: segment for segment in found.values()}
        for name, digest in (wanted or {}).items():
            if name not in held or digest not in (None, held[name].digest):
                now = "another one now" if name in held else "gone"
                raise Damaged(
                    f"segment {name} of {self.segments_folder}, which the ref pins, is {now}",
                    advice=advice(f"{self.segments_folder}/{name}"),
                )
        return found

    def _pinned(self, log: Log, pins: Mapping[str, str]) -> dict[str, str | None]:
        """The segments that stand for pinned ones now; with a digest where it is the pinned one."""
        wanted: dict[str, str | None] = {}
        for name, digest in pins.items():
            gone = log.gone.get(f"{self.key}/{name}")
            standing = log.stands_for(self.key, name)
            if gone is None or standing is None or gone.digest != digest:
                wanted[name] = digest
            else:
                wanted.update(dict.fromkeys(standing))
        return wanted

    def dead_rows(self, segment: Segment, dead: Dead) -> Bool:
        """Which rows of a segment are dead, (n,)."""
        if not dead:
            return np.zeros(segment.manifest.n_rows, dtype=np.bool_)
        if dead is not self._asked[0]:
            self._asked = (dead, {})
        known = self._asked[1]
        if segment.digest not in known:
            if len(known) >= LOOKS:
                del known[next(iter(known))]
            known[segment.digest] = self._dead_rows(segment, dead)
        return known[segment.digest]

    def _dead_rows(self, segment: Segment, dead: Dead) -> Bool:
        raise NotImplementedError

    def held_in(
        self, holder: Segment, segment: Segment, rows: I64, tables: dict[str, Table]
    ) -> Bool:
        """Which of some rows of `segment` were read, under their CRCs, in `holder`, (k,)."""
        raise NotImplementedError

    def rewrite(
        self,
        chosen: Sequence[tuple[Segment, I64]],
        *,
        about: Mapping[str, Json],
        segment_id: str = "",
    ) -> str | None:
        """Publish a segment of some rows of segments, which may lie in another cache.

        Returns its id; None, and no segment, where no row was chosen.
        """
        raise NotImplementedError

    def readable(self, segment: Segment) -> Bool:
        """Which rows of a damaged segment can still be read, (n,).

        Raises Damaged where not even its small arrays can.
        """
        raise NotImplementedError

    def remove(
        self, victims: Sequence[Victim], *, aside: Callable[[Segment], object] | None = None
    ) -> list[Segment]:
        """Take segments away that nobody needs (REMOVE); returns those that are gone.

        aside: what is done with each instead of deleting it.
        """
        self._refuse_at_ref()
        return remove(self, victims, aside=aside)

    def clear(self) -> list[Segment]:
        """Name all segments in the log as removed, and return them; `finish` deletes their files.

        Raises Pinned, before anything is touched, where a ref pins one.
        """
        self._refuse_at_ref()
        return clear(self)

    def settle(self, segment_id: str) -> None:
        """WRITE, after publishing: see that the segment is there, and take its dead rows away.

        Raises CacheError where it is not, and was not joined with others either.
        """
        path = self.segments_folder / segment_id
        space = None if self.kind == "photos" else self.key
        segment = read_segment(str(path), kind=self.kind, space=space)
        dead = self.history.dead()
        if f"{self.key}/{segment_id}" in self.history.log().gone:
            return  # somebody joined it with others, or took its dead rows away
        if segment is None:
            raise CacheError(
                f"{path} is gone: another process took its writer for dead and published its "
                "rows. Rerun the command"
            )
        if dead and self.dead_rows(segment, dead).any():
            self.take_dead_rows_away(lambda other: other.id == segment_id)

    def admit(self, folder: Path, segment_id: str, *, digest: str) -> bool:
        """Publish a segment that lies whole and durable in `folder`, under its own id.

        folder: on this file system; it is renamed, or left where it is. It holds a lease, by which
            salvage knows a segment that a process which was killed here has not settled.
        digest: of its manifest.
        Returns False where that id was removed here, or is another segment's: its rows must come
        under a new id, by `rewrite`.
        """
        self._refuse_at_ref()
        name, target = f"{self.key}/{segment_id}", self.segments_folder / segment_id
        if name in self.history.log().gone:
            return False
        if not disk.rename_folder(folder, target):
            there = read_segment(str(target), kind=self.kind)
            return there is not None and there.digest == digest
        disk.sync_folder(self.segments_folder)
        if name in self.history.log().gone:
            return False  # before or after it came: its rows may be nowhere else
        self.settle(segment_id)
        discard(target / journal.FOLDER, cache=self.history.cache)  # last, as `Draft.end` does
        return True

    def replace(self, segment: Segment, keep: Bool, *, lost: Bool | None = None) -> bool:
        """Put a segment of the rows `keep` in a segment's place; returns whether it is gone.

        lost: rows that are not kept because they cannot be read any more.
        """
        successors: tuple[str, ...] = ()
        if keep.any():
            new = self.rewrite(
                [(segment, np.flatnonzero(keep))],
                about=segment.manifest.about,
                segment_id=replacement_id(segment.id),
            )
            successors = () if new is None else (new,)
        if self.remove([Victim(segment, successors, lost)]):
            return True
        # Another process came first. What was written for nothing goes, where others hold it.
        mine = {*successors}
        self.remove([Victim(other) for other in self.segments() if other.id in mine])
        return False

    def take_dead_rows_away(self, chosen: Callable[[Segment], bool] | None = None) -> int:
        """Rewrite the segments that hold dead rows, until there are none; returns how many rows.

        chosen: whether a segment may hold any; by default each is asked.
        """
        self._refuse_at_ref()
        n_rows = 0
        clean: set[str] = set()
        known = self.history.dead()
        for _ in range(ROUNDS):
            segments = self.segments()
            dead = self.history.dead()
            if dead is not known:
                clean, known = set(), dead
            again = False
            for segment in segments:
                if segment.id in clean:
                    continue
                try:
                    if chosen is not None and not chosen(segment):
                        clean.add(segment.id)
                        continue
                    gone = self.dead_rows(segment, dead)
                    if not gone.any():
                        clean.add(segment.id)
                        continue
                    again = True
                    if self.replace(segment, ~gone):
                        n_rows += int(gone.sum())
                except Damaged:
                    if segment.folder.exists():
                        raise
                    again = True  # another process removed it
            if not again:
                return n_rows
        raise CacheError(f"{self.folder} kept changing while this command ran: rerun it")

    def _refuse_at_ref(self) -> None:
        if self._pins is not None:
            raise CacheError(f"{self.folder} was opened at a ref: open it without ref to write")


def members(digests: U8, contents: Iterable[bytes]) -> Bool:
    """Which of (n, 32) digests are among some contents, of 32 bytes each."""
    wanted = {*contents}
    if not wanted or not len(digests):
        return np.zeros(len(digests), dtype=np.bool_)
    keys = np.ascontiguousarray(digests[:, :8]).view(np.uint64).reshape(-1)
    starts = np.frombuffer(b"".join(content[:8] for content in wanted), np.uint64)
    found: Bool = np.isin(keys, starts)
    for i in np.flatnonzero(found).tolist():
        found[i] = digests[i].tobytes() in wanted
    return found
