"""All segments of a set go because the user says so: `forget` of a whole space.

The one removal that no other rows justify (docs/decisions/102). It goes through the log like every
other, so that it and whoever removes or pins meanwhile see each other. What is published after the
entry came after the wish, and stays; but what others made of the rows that go, and published a
moment later, goes too. tests/store/model_of_removal.py tries this against all the others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from embedcache import disk
from embedcache.errors import CacheError, Damaged
from embedcache.store.history import History
from embedcache.store.layout import bring_over
from embedcache.store.log import MAX_SEGMENTS, Gone, Log, create_entry
from embedcache.store.manifest import replaces
from embedcache.store.refs import pinned_ids, ref_names
from embedcache.store.segment import Segment

LOOKS = 10  # at what others have published meanwhile


class Clearable(Protocol):
    """A set of segments."""

    key: str
    history: History

    def segments(self) -> list[Segment]:
        """The segments that are there and that the log does not name."""


class Pinned(CacheError):
    """Refs pin segments that were to go. refs: their names."""

    def __init__(self, refs: list[str]) -> None:
        super().__init__(f"segments are pinned by ref {', '.join(refs)}")
        self.refs = refs


def clear(of: Clearable) -> list[Segment]:
    """Enter all segments of a set in the log as removed, and return them; others delete the files.

    Raises Pinned, before anything is touched, where a ref pins one; Damaged for a ref that cannot
    be read, as nobody knows what it pins.
    """
    with disk.plain_errors("write to", of.history.cache):
        bring_over(of.history.cache)
        wished, log = _enter_all(of)
        for _ in range(LOOKS if wished else 0):
            now = of.history.log()
            more = _made_of(of, wished, before=log, now=now)
            if not more:
                break
            after = _entered(of, now, more)
            if after is not None:
                wished |= {segment.id: segment for segment in more}
                log = after
    return [*wished.values()]


def _enter_all(of: Clearable) -> tuple[dict[str, Segment], Log]:
    """Enter what is there; returns it, by id, and the log with the entry, or the entries."""
    wished: dict[str, Segment] = {}
    waiting: set[str] | None = None  # for another entry, where one is not enough
    while True:
        log = of.history.log()
        present = [one for one in of.segments() if waiting is None or one.id in waiting]
        pinned = pinned_ids(of.history.cache, of.key, log)
        if not wished and pinned & {segment.id for segment in present}:
            raise Pinned(_refs(of, log, present))
        free = [segment for segment in present if segment.id not in pinned]
        if not free:
            return wished, log
        after = _entered(of, log, free[:MAX_SEGMENTS])
        if after is not None:
            wished |= {segment.id: segment for segment in free[:MAX_SEGMENTS]}
            waiting = {segment.id for segment in free[MAX_SEGMENTS:]}
            log = after
            if not waiting:
                return wished, log


def _entered(of: Clearable, log: Log, segments: Iterable[Segment]) -> Log | None:
    """The log with the entry after `log`; None where others came first."""
    gone = {f"{of.key}/{segment.id}": Gone(segment.digest, None) for segment in segments}
    entry = replace(of.history.entry(log), segments=gone)
    if create_entry(of.history.cache, log.n + 1, entry):
        return log.with_entries([entry])
    return None


def _refs(of: Clearable, log: Log, present: Iterable[Segment]) -> list[str]:
    """The refs that pin some segments."""
    ids = {segment.id for segment in present}
    cache = of.history.cache
    return [name for name in ref_names(cache) if ids & pinned_ids(cache, of.key, log, names=[name])]


def _made_of(
    of: Clearable, wished: Mapping[str, Segment], *, before: Log, now: Log
) -> list[Segment]:
    """The segments that others made of rows of `wished` ones and published since.

    before: the log with the last entry of ours. now: as it was read just now. Once another process
    has removed segments of the set, what it wrote may be the only place of rows that came after the
    wish: none then. None also where damage leaves it open what a segment or a ref holds.
    """
    try:
        found = [segment for segment in of.segments() if _is_derived(segment, wished)]
        if not found or _keys(of, now) != _keys(of, before):
            return []
        pinned = pinned_ids(of.history.cache, of.key, now)
        return [s for s in found if s.id not in pinned and _all_rows_in(s, wished.values())]
    except Damaged:
        return []


def _keys(of: Clearable, log: Log) -> set[str]:
    """What the log names as removed of a set."""
    return {name for name in log.gone if name.startswith(f"{of.key}/")}


def _is_derived(segment: Segment, wished: Iterable[str]) -> bool:
    """Whether a segment was made of others: by compaction, or in the place of one of these."""
    joined = "compacted_segments" in segment.manifest.about
    return joined or any(replaces(segment.id, name) for name in wished)


def _all_rows_in(segment: Segment, others: Iterable[Segment]) -> bool:
    """Whether each row of a segment is one of others, of the same content and the same bytes.

    Raises Damaged where one cannot be read, as where another process has deleted some already.
    """
    needed = _rows(segment)
    for other in others:
        needed -= _rows(other)
        if not needed:
            break
    return not needed


def _rows(segment: Segment) -> set[bytes]:
    """Each good row's content and CRC, and each failure's content."""
    digests, crcs = segment.column("digest"), segment.column("row_crc")
    n_ok = segment.manifest.n_ok
    good = {digests[i].tobytes() + crcs[i].tobytes() for i in range(n_ok)}
    return good | {row.tobytes() for row in digests[n_ok:]}
