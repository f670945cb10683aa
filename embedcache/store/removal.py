"""REMOVE: the one way in which segments are taken away, for whatever reason.

A segment goes only if each of its live rows was read, under its CRC, in another segment that stays;
if no ref pins it, unless it holds rows that must go and has successors; and only by an entry of the
log that was created while nothing else was removed or pinned. docs/format.md states the rules, and
tests/store/model_of_removal.py tries them.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.store.disposal import dispose, set_aside
from embedcache.store.history import History
from embedcache.store.index import Table
from embedcache.store.layout import bring_over
from embedcache.store.log import MAX_SEGMENTS, UNKNOWN, Gone, Log, create_entry
from embedcache.store.manifest import is_segment_id
from embedcache.store.refs import pinned_ids
from embedcache.store.segment import Segment
from embedcache.store.tombstones import Dead

Bool = NDArray[np.bool_]
I64 = NDArray[np.int64]

_GONE = re.compile(r"\.gone-(.{30})-.+")


class Removable(Protocol):
    """A set of segments that can say which of its rows are dead, and which another one holds."""

    key: str
    history: History

    @property
    def segments_folder(self) -> Path: ...

    def segments(self) -> list[Segment]:
        """The segments that are there and that the log does not name."""

    def dead_rows(self, segment: Segment, dead: Dead) -> Bool:
        """Which rows of a segment are dead."""

    def held_in(
        self, holder: Segment, segment: Segment, rows: I64, tables: dict[str, Table]
    ) -> Bool:
        """Which of some rows of `segment` were read, under their CRCs, in `holder`.

        tables: keeps what was read of holders, by id, for the other victims of one removal.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Victim:
    """A segment that is to go.

    successors: segments made to hold exactly its live rows; None where others hold them.
    lost: (n,) rows of a damaged segment that cannot be read any more; None for a whole one.
    """

    segment: Segment
    successors: tuple[str, ...] | None = None
    lost: Bool | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was read for one removal.

    rows: by victim and holder the victim's rows that the holder has. tables: the digests of a few
    holders.
    """

    rows: dict[str, dict[str, I64]] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)


def remove(
    of: Removable,
    victims: Sequence[Victim],
    *,
    aside: Callable[[Segment], object] | None = None,
) -> list[Segment]:
    """Take away those of `victims` that nobody needs; returns the segments that are gone now.

    A victim stays where a live row of it is not held elsewhere, or a ref pins it.
    aside: what is done with each instead of deleting it.
    """
    gone: list[Segment] = []
    with disk.plain_errors("write to", of.history.cache):
        bring_over(of.history.cache)
        for start in range(0, len(victims), MAX_SEGMENTS):
            gone += _enter(of, list(victims[start : start + MAX_SEGMENTS]))
        if aside is not None:
            for segment in gone:
                with contextlib.suppress(FileNotFoundError):  # others may have deleted it
                    aside(segment)
        if gone:
            finish(of)
    return gone


def _enter(of: Removable, victims: list[Victim]) -> list[Segment]:
    """Create the entry that takes victims away; returns their segments."""
    evidence = Evidence()
    while victims:
        log = of.history.log()
        present = {segment.id: segment for segment in of.segments()}
        dead = of.history.dead()
        victims = [victim for victim in victims if victim.segment.id in present]
        leaving = {victim.segment.id for victim in victims}
        staying = {name: segment for name, segment in present.items() if name not in leaving}
        pinned = _pinned(of, log, present) if victims else set()
        named = {}
        for victim in victims:
            gone = _gone(of, victim, log, dead, staying, evidence, victim.segment.id in pinned)
            if gone is not None:
                named[victim] = gone
        victims = [*named]
        if not victims:
            break
        segments = {f"{of.key}/{victim.segment.id}": gone for victim, gone in named.items()}
        entry = replace(of.history.entry(log), segments=segments)
        if create_entry(of.history.cache, log.n + 1, entry):
            return [victim.segment for victim in victims]
    return []


def _pinned(of: Removable, log: Log, present: Collection[str]) -> Collection[str]:
    """The segments that refs pin; all, where nobody can tell as a ref is damaged."""
    try:
        return pinned_ids(of.history.cache, of.key, log)
    except Damaged:
        return present


def _gone(
    of: Removable,
    victim: Victim,
    log: Log,
    dead: Dead,
    staying: Mapping[str, Segment],
    evidence: Evidence,
    pinned: bool,
) -> Gone | None:
    """How the log names a victim; None where it has to stay.

    What a ref pins goes only where it holds rows that must go, and where successors hold all its
    others: these are what the ref reads from then on.
    """
    hurt = of.dead_rows(victim.segment, dead)
    if victim.lost is not None:
        hurt = hurt | victim.lost
    standing = _standing(of, victim.successors, log)
    if standing is not None:
        alone = {name: staying[name] for name in standing if name in staying}
        if not _held(of, victim, ~hurt, alone, evidence):
            standing = None
    if pinned and (standing is None or not (hurt.any() or victim.lost is not None)):
        return None
    if standing is None and not _held(of, victim, ~hurt, staying, evidence):
        return None
    return Gone(victim.segment.digest, standing)


def _standing(
    of: Removable, successors: tuple[str, ...] | None, log: Log
) -> tuple[str, ...] | None:
    """The segments that stand for some successors now: these may have been replaced already.

    None where there are none to name, or where one was joined with others meanwhile.
    """
    found: list[str] = []
    for successor in successors or ():
        standing = log.stands_for(of.key, successor)
        if standing is None:
            return None
        found += standing
    return None if successors is None else tuple(dict.fromkeys(found))


def _held(
    of: Removable,
    victim: Victim,
    needed: Bool,
    staying: Mapping[str, Segment],
    evidence: Evidence,
) -> bool:
    """Whether segments that stay hold all `needed` rows of a victim."""
    needed, seen = needed.copy(), evidence.rows.setdefault(victim.segment.id, {})
    for name, rows in seen.items():
        if name in staying:
            needed[rows] = False
    first = [staying[name] for name in victim.successors or () if name in staying]
    rest = (segment for name, segment in staying.items() if name not in (victim.successors or ()))
    for holder in (*first, *rest):
        rows = np.flatnonzero(needed)
        if not len(rows):
            return True
        if holder.id not in seen:
            seen[holder.id] = rows[of.held_in(holder, victim.segment, rows, evidence.tables)]
            needed[seen[holder.id]] = False
    return not needed.any()


def finish(of: Removable) -> list[Path]:
    """Delete what the log names as removed and is still there; anybody may, at any time.

    What others put into a segment's folder, or in its place, moves to damaged/, and so does a
    segment whose manifest could not be read: nobody knows what is in it.
    Returns what could not be deleted yet, as where a process on NFS holds a file open.
    """
    gone, left = of.history.log().gone, []
    if not gone:
        return []
    folder = of.segments_folder
    for path in sorted(folder.iterdir()):
        hidden = _GONE.fullmatch(path.name)
        name = hidden[1] if hidden else path.name
        entry = gone.get(f"{of.key}/{name}") if is_segment_id(name) else None
        if entry is None:
            continue
        theirs = path.is_symlink() or not path.is_dir()  # put where the segment was
        if theirs or (entry.digest == UNKNOWN and not hidden):
            with contextlib.suppress(FileNotFoundError):
                set_aside(of.history.cache, path)
            continue
        if not hidden:
            aside = folder / f".gone-{name}-{disk.mark_of_process()}"
            with contextlib.suppress(FileNotFoundError):
                path.rename(aside)
            path = aside
        if not dispose(path, cache=of.history.cache, was=folder / name):
            left.append(path)
    disk.sync_folder(folder)
    return left
