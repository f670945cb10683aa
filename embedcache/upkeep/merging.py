"""What is done to whole caches: pinning and merging; compaction and forgetting are beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.check import check_segment
from embedcache.store.columns import ABSENT, OK
from embedcache.store.manifest import replacement_id
from embedcache.store.photo_ids import read_pairs, write_pairs
from embedcache.store.reader import read_rows
from embedcache.store.segment import Segment
from embedcache.store.space import Space
from embedcache.store.tombstones import FOLDER as TOMBSTONES
from embedcache.store.tombstones import Tombstones, forgotten, read_tombstones
from embedcache.upkeep.rewrite import Store, copy_segment, rewrite
from embedcache.upkeep.verify import BLOCK_ROWS

U8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a merge brought in. differing: rows that both sides hold and that are not equal."""

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
            f"{self.rows:,} rows and {self.failures:,} failures came in as {self.segments} "
            f"segments; {self.already_here:,} rows were here already"
        ]
        if self.ids:
            lines.append(f"{self.ids:,} photo ids came along")
        if self.withheld:
            lines.append(f"{self.withheld:,} rows of forgotten photos were left out")
        if self.still_here:
            lines.append(
                f"{self.still_here:,} rows here are of photos that were forgotten: "
                f"'embedcache forget {self.into} --forgotten' removes them"
            )
        if self.differing:
            lines.append(
                f"{self.differing:,} rows differ from those here, by at most "
                f"{self.largest_difference:.3g}; those here stay"
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
            _adopt_tombstones(into, other)
            gone, _ = read_tombstones(into.path)
            pairs: list[tuple[Store, Store]] = [
                (into.space(space.spec, create=True), space) for space in other.spaces()
            ]
            pairs += [
                (into.face_space(space.document, create=True), space)
                for space in other.face_spaces()
            ]
            for mine, theirs in pairs:
                tally["still_here"] += int(forgotten(mine.digests(), gone).sum())
                largest = max(largest, _merge_space(mine, theirs, gone, tally))
            if with_ids:
                tally["ids"] += merge_ids(into, other.photo_segments(), gone)
    told = {"largest_difference": largest, "into": str(into.path)}
    return Merged(**(tally | told))  # type: ignore[arg-type]


def _merge_space(mine: Store, theirs: Store, gone: Tombstones, tally: dict[str, int]) -> float:
    """Bring one space's rows in; returns the largest difference between rows of both sides."""
    here = {segment.id: segment.digest for segment in mine.segments()}
    largest = 0.0
    for segment in theirs.segments():
        n_ok = segment.manifest.n_ok
        if here.get(segment.id) == segment.digest:
            tally["already_here"] += n_ok
            continue
        check_segment(segment)
        digests = segment.column("digest")
        status = mine.status(digests)
        banned = forgotten(digests, gone)
        good = np.arange(len(digests)) < n_ok
        first = np.zeros(len(digests), dtype=np.bool_)
        first[np.unique(digests, axis=0, return_index=True)[1]] = True
        keep = np.where(good, status != OK, status == ABSENT) & ~banned & first
        known = good & (status == OK) & ~banned
        tally["already_here"] += int(known.sum())
        tally["withheld"] += int(banned.sum())
        if known.any() and isinstance(mine, Space):
            n_differing, distance = _compare(mine, segment, np.flatnonzero(known))
            tally["differing"] += n_differing
            largest = max(largest, distance)
        if not keep.any():
            continue
        tally["rows"] += int((keep & good).sum())
        tally["failures"] += int((keep & ~good).sum())
        tally["segments"] += 1
        if keep.all() and segment.id not in here:
            copy_segment(segment, mine.segments_folder)
        else:
            about = dict(segment.manifest.about)
            rewrite(mine, theirs, [(segment, np.flatnonzero(keep))], about=about)
    return largest


def _compare(mine: Space, segment: Segment, rows: NDArray[np.int64]) -> tuple[int, float]:
    """How many of a segment's rows differ from those in `mine`, and by how much at most."""
    digests = segment.column("digest")
    columns = {"row_crc": segment.column("row_crc")}
    n_differing, largest = 0, 0.0
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        theirs = np.empty((len(block), mine.dim), dtype="<f4")
        read_rows([(segment, columns, block, np.arange(len(block)))], theirs, n_rows=len(block))
        distance = np.abs(mine.read(digests[block])[0] - theirs).max(axis=1)
        n_differing += int((distance > 0).sum())
        largest = max(largest, float(distance.max()))
    return n_differing, largest


def _adopt_tombstones(into: Cache, other: Cache) -> None:
    read_tombstones(other.path)
    for path in sorted((other.path / TOMBSTONES).glob("[!.]*.json")):
        target = into.path / TOMBSTONES / path.name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            disk.publish(target, path.read_bytes())


def merge_ids(into: Cache, segments: Sequence[Segment], gone: Tombstones) -> int:
    """Bring in the photo ids that `into` does not know, of photos that were not forgotten."""
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
        digests = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, 32)
        banned = forgotten(digests, gone)
        keep = [
            i
            for i in range(len(names))
            if not banned[i] and (names[i], scope, contents[i]) not in known
        ]
        if keep:
            target = into.path / "photos" / "segments"
            new = replacement_id(segment.id)
            write_pairs(target, scope, [names[i] for i in keep], digests[keep], segment_id=new)
            known.update((names[i], scope, contents[i]) for i in keep)
            merged += len(keep)
    return merged
