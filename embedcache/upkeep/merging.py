"""Merging: bringing in what other caches hold and this one lacks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.check import check_segment, naming
from embedcache.store.columns import OK
from embedcache.store.manifest import replacement_id
from embedcache.store.photo_ids import PhotoIds, read_pairs
from embedcache.store.segment import Segment
from embedcache.store.union import lacking
from embedcache.upkeep.local import clear_leftovers
from embedcache.upkeep.rewrite import Store, take
from embedcache.wording import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a merge brought in. differing: rows that both sides hold and that are not equal.

    withheld: rows that would have come if they had not been forgotten.
    """

    segments: int
    rows: int
    failures: int
    already_here: int
    withheld: int
    differing: int
    largest_difference: float
    ids: int
    still_here: int
    into: str

    def document(self) -> dict[str, Json]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        lines = [
            f"added {counted(self.rows, 'row')} and {counted(self.failures, 'failure')} as "
            f"{counted(self.segments, 'segment')}; {self.already_here:,} here already"
        ]
        if self.ids:
            lines.append(f"added {counted(self.ids, 'photo id')}")
        if self.withheld:
            lines.append(f"left out: {counted(self.withheld, 'row')} of forgotten photos")
        if self.still_here:
            lines.append(
                f"{counted(self.still_here, 'row')} here of photos that were forgotten elsewhere, "
                f"now hidden. 'embedcache forget {self.into} --forgotten' removes them"
            )
        if self.differing:
            lines.append(
                f"{counted(self.differing, 'row differs', 'rows differ')} from those here, by at "
                f"most {self.largest_difference:.3g}; the existing rows are kept"
            )
        return "\n".join(lines)


def merge(into: Cache, others: Sequence[Cache], *, with_ids: bool = False) -> Merged:
    """Bring in what `others` hold and `into` lacks; nothing that is here changes.

    Segments are read whole and checked before they are believed. Rows that `into` holds are not
    brought in again; where they differ, by how much is reported. Photos that either side forgot
    stay out. with_ids: also the photo ids, which may be private.
    """
    tally = dict.fromkeys(Merged.__slots__, 0)
    largest = 0.0
    with disk.plain_errors("write to", into.path):
        for other in others:
            if other.path == into.path:
                raise CacheError(f"{into.path} cannot be merged into itself")
            before = _stored(into)
            lifts, tombstones = other.history.files()
            into.adopt(lifts=lifts, tombstones=tombstones)
            tally["still_here"] += before - _stored(into)
            pairs: list[tuple[Store, Store]] = [
                (into.space(space.spec, create=True), space) for space in other.spaces()
            ]
            pairs += [
                (into.face_space(space.document, create=True), space)
                for space in other.face_spaces()
            ]
            for mine, theirs in pairs:
                taken = Counter[str]()
                met = theirs.steadily(partial(_take_lacking, mine, taken))
                largest = max(largest, met.largest_difference)
                for counts in (taken, met.counts):
                    for name, n in counts.items():
                        tally[name] += n
            if with_ids:
                tally["ids"] += merge_ids(into, other.photo_ids)
        clear_leftovers(into)
    rest = {"largest_difference": largest, "into": str(into.path)}
    return Merged(**(tally | rest))  # type: ignore[arg-type]


def _stored(cache: Cache) -> int:
    """Good rows that readers of a cache see."""
    return sum(len(store.digests()) for store in cache.stores())


@dataclass(frozen=True, slots=True)
class _Met:
    """What both sides hold of a space, or must not hold."""

    counts: Counter[str]
    largest_difference: float


def _take_lacking(mine: Store, taken: Counter[str], segments: Sequence[Segment]) -> _Met:
    """Bring in what a space lacks of some segments of another one.

    taken: counts what came, also in a call before this one, when a segment was removed meanwhile.
    """
    here = {segment.id: segment.digest for segment in mine.segments()}
    counts, largest = Counter[str](), 0.0
    others = []
    for segment in segments:
        if here.get(segment.id) == segment.digest:
            counts["already_here"] += segment.manifest.n_ok
        else:
            with naming(segment):
                check_segment(segment)
            others.append(segment)
    found = lacking(
        [(segment.column("digest"), segment.manifest.n_ok) for segment in others],
        status=mine.status,
        dead=mine.history.dead().of,
    )
    counts["already_here"] += found.already_there - taken["rows"]
    counts["withheld"] += found.withheld
    for segment, rows in zip(others, found.rows, strict=True):
        n_ok = segment.manifest.n_ok
        with naming(segment):
            both = np.flatnonzero(mine.status(segment.column("digest")[:n_ok]) == OK)
            distance = mine.distance(segment, both)
            if len(rows):
                take(mine, segment, rows)
        counts["differing"] += int((distance > 0).sum())
        largest = max(largest, float(distance.max(initial=0)))
        if len(rows):
            taken["rows"] += int((rows < n_ok).sum())
            taken["failures"] += int((rows >= n_ok).sum())
            taken["segments"] += 1
    return _Met(counts, largest)


def merge_ids(into: Cache, theirs: PhotoIds) -> int:
    """Bring in the photo ids that `into` does not know and that were not forgotten there."""
    merged: list[int] = []
    theirs.steadily(partial(_take_ids, into, merged))
    return sum(merged)


def _take_ids(into: Cache, merged: list[int], segments: Sequence[Segment]) -> None:
    """Bring in the ids of some segments; merged: takes how many came, segment by segment."""
    here = into.photo_table()
    known = {
        (name, scope, digest.tobytes())
        for name, scope, digest in zip(here.ids, here.scopes, here.digests, strict=True)
    }
    ids = {segment.id for segment in into.photo_segments()}
    for segment in segments:
        if segment.id in ids:
            continue
        with naming(segment):
            check_segment(segment)
            names, contents = read_pairs(segment)
            digests = segment.column("digest")
        scope = segment.manifest.name
        banned = into.dead_pairs(scope, names, digests)
        keep = [
            i
            for i in range(len(names))
            if not banned[i] and (names[i], scope, contents[i]) not in known
        ]
        if keep:
            with naming(segment):
                into.photo_ids.rewrite(
                    [(segment, np.array(keep))], segment_id=replacement_id(segment.id)
                )
            known.update((names[i], scope, contents[i]) for i in keep)
            merged.append(len(keep))
