"""Merging: bringing in what other caches hold and this one lacks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.check import check_segment
from embedcache.store.columns import OK
from embedcache.store.manifest import replacement_id
from embedcache.store.photo_ids import read_pairs
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
                largest = max(largest, _merge_space(mine, theirs, tally))
            if with_ids:
                tally["ids"] += merge_ids(into, other.photo_segments())
        clear_leftovers(into)
    rest = {"largest_difference": largest, "into": str(into.path)}
    return Merged(**(tally | rest))  # type: ignore[arg-type]


def _stored(cache: Cache) -> int:
    """Good rows that readers of a cache see."""
    return sum(len(store.digests()) for store in cache.stores())


def _merge_space(mine: Store, theirs: Store, tally: dict[str, int]) -> float:
    """Bring one space's rows in; returns the largest difference between rows of both sides."""
    here = {segment.id: segment.digest for segment in mine.segments()}
    largest = 0.0
    segments = []
    for segment in theirs.segments():
        if here.get(segment.id) == segment.digest:
            tally["already_here"] += segment.manifest.n_ok
        else:
            check_segment(segment)
            segments.append(segment)
    found = lacking(
        [(segment.column("digest"), segment.manifest.n_ok) for segment in segments],
        status=mine.status,
        dead=mine.history.dead().of,
    )
    tally["already_here"] += found.already_there
    tally["withheld"] += found.withheld
    for segment, rows in zip(segments, found.rows, strict=True):
        n_ok = segment.manifest.n_ok
        both = np.flatnonzero(mine.status(segment.column("digest")[:n_ok]) == OK)
        distance = mine.distance(segment, both)
        tally["differing"] += int((distance > 0).sum())
        largest = max(largest, float(distance.max(initial=0)))
        if len(rows):
            take(mine, segment, rows)
            tally["rows"] += int((rows < n_ok).sum())
            tally["failures"] += int((rows >= n_ok).sum())
            tally["segments"] += 1
    return largest


def merge_ids(into: Cache, segments: Sequence[Segment]) -> int:
    """Bring in the photo ids that `into` does not know and that were not forgotten there."""
    here = into.photo_table()
    known = {
        (name, scope, digest.tobytes())
        for name, scope, digest in zip(here.ids, here.scopes, here.digests, strict=True)
    }
    ids = {segment.id for segment in into.photo_segments()}
    merged = 0
    for segment in segments:
        if segment.id in ids:
            continue
        check_segment(segment)
        names, contents = read_pairs(segment)
        scope = segment.manifest.name
        digests = segment.column("digest")
        banned = into.dead_pairs(scope, names, digests)
        keep = [
            i
            for i in range(len(names))
            if not banned[i] and (names[i], scope, contents[i]) not in known
        ]
        if keep:
            into.photo_ids.rewrite(
                [(segment, np.array(keep))], segment_id=replacement_id(segment.id)
            )
            known.update((names[i], scope, contents[i]) for i in keep)
            merged += len(keep)
    return merged
