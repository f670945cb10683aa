"""Joining small segments into bigger ones, each photo once.

New segments come first and the old ones go after, so that a crash in between leaves rows twice,
never missing; running it again finishes it.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.layout import APART, PARTS
from embedcache.store.refs import pinned_segments
from embedcache.store.salvage import collect
from embedcache.store.segment import Segment
from embedcache.store.space import FaceSpace
from embedcache.store.tombstones import Tombstones, forgotten, newer, read_tombstones
from embedcache.upkeep.forgetting import replace_segment
from embedcache.upkeep.rewrite import Store, joint_about, rewrite

COMPACT_ROWS = 262_144
COMPACT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What a compaction did. pinned: small segments that stay because a ref names them."""

    before: int
    after: int
    rows: int
    bytes_freed: int
    pinned: int

    def document(self) -> dict[str, Json]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        told = f"{self.before} segments became {self.after} ({self.rows:,} rows rewritten"
        told += f", {self.bytes_freed:,} bytes freed)"
        return told + (f"; {self.pinned} stay, pinned by refs" if self.pinned else "")


def compact(cache: Cache, *, target_rows: int = COMPACT_ROWS) -> Compacted:
    """Join small segments into bigger ones of up to `target_rows` rows, each photo once.

    Segments that a ref pins stay as they are. Readers that are at work meanwhile look again. What
    crashes left behind, anywhere in the cache, goes once it is old enough.
    """
    pinned = pinned_segments(cache.path)
    gone, _ = read_tombstones(cache.path)
    stores: list[Store] = [*cache.spaces(), *cache.face_spaces()]
    before = after = rows = freed = kept = 0
    with disk.plain_errors("write to", cache.path):
        for part in ("", *PARTS, APART, "refs", "forgotten"):
            for litter in (cache.path / part).glob(".*"):
                collect(litter)
        for store in stores:
            store.salvage()
            segments, table = store.row_table()
            size = sum(segment.manifest.bytes_on_disk for segment in segments)
            live = np.bincount(table.segment, minlength=len(segments))
            small = [
                (number, segment)
                for number, segment in enumerate(segments)
                if segment.id not in pinned
                and (
                    segment.manifest.n_rows <= target_rows // 2
                    or live[number] < segment.manifest.n_rows
                )
            ]
            kept += sum(
                segment.id in pinned and segment.manifest.n_rows <= target_rows // 2
                for segment in segments
            )
            before += len(segments)
            wasteful = any(live[number] < s.manifest.n_rows for number, s in small)
            if len(small) > 1 or wasteful:
                limit = COMPACT_BYTES if isinstance(store, FaceSpace) else None
                for batch in _batches(small, live.tolist(), target_rows, limit=limit):
                    chosen = [
                        (segment, _remaining(segment, table.row[table.segment == number], gone))
                        for number, segment in batch
                    ]
                    rows += rewrite(
                        store,
                        store,
                        chosen,
                        about=joint_about([s.manifest.about for _, s in batch]),
                    )
                _forget_newly(cache, store, gone)
                kept += _retire(cache, [segment for _, segment in small])
            segments = store.segments()
            after += len(segments)
            freed += size - sum(segment.manifest.bytes_on_disk for segment in segments)
    return Compacted(before=before, after=after, rows=rows, bytes_freed=freed, pinned=kept)


def _batches(
    small: Sequence[tuple[int, Segment]],
    live: Sequence[int],
    target_rows: int,
    *,
    limit: int | None,
) -> list[list[tuple[int, Segment]]]:
    """Segments that go into one, in order, of one backbone name each.

    limit: bytes to one, where they are all in columns, which readers take whole.
    """
    batches: list[list[tuple[int, Segment]]] = []
    filled: dict[str, tuple[int, int, list[tuple[int, Segment]]]] = {}
    for number, segment in small:
        name = segment.manifest.name
        size = 0 if limit is None else segment.manifest.bytes_on_disk
        n_rows, n_bytes, batch = filled.get(name, (0, 0, []))
        too_many = n_rows + live[number] > target_rows
        if not batch or too_many or (limit is not None and n_bytes + size > limit):
            n_rows, n_bytes, batch = 0, 0, []
            batches.append(batch)
        batch.append((number, segment))
        filled[name] = (n_rows + live[number], n_bytes + size, batch)
    return batches


def _remaining(segment: Segment, rows: NDArray[np.uint32], gone: Tombstones) -> NDArray[np.int64]:
    """The rows of a segment that a compaction takes along, ascending: none that was forgotten.

    What `forget` has named it may not have reached yet, and a newer segment would look like a photo
    that was embedded again on purpose.
    """
    rows = np.sort(rows)
    dead = forgotten(segment.column("digest")[rows], newer(gone, segment.id))
    return rows[~dead].astype(np.int64)


def _forget_newly(cache: Cache, store: Store, before: Tombstones) -> None:
    """Take out of compacted segments what was forgotten while they were written.

    `forget` leaves its tombstone first and then looks for rows: either it saw these segments, or
    its tombstone is seen here.
    """
    now, _ = read_tombstones(cache.path)
    late = {mark: name for mark, name in now.items() if before.get(mark) != name}
    for segment in store.segments() if late else ():
        if "compacted_segments" in segment.manifest.about:
            hit = forgotten(segment.column("digest"), late)
            if hit.any():
                replace_segment(cache, store, segment, keep=np.flatnonzero(~hit))


def _retire(cache: Cache, segments: Sequence[Segment]) -> int:
    """Remove segments that others replace, but for those that a ref has come to pin meanwhile.

    They are hidden first and the refs read after: whoever pins looks, after writing the ref,
    whether all that it pins is there (`_pin`), so that one of the two notices the other. Returns
    how many stay.
    """
    hidden = [(s, place) for s in segments if (place := disk.hide_folder(s.folder))]
    pinned = pinned_segments(cache.path)
    for segment, place in hidden:
        if segment.id in pinned:
            place.rename(segment.folder)
        else:
            shutil.rmtree(place, ignore_errors=True)
    return sum(segment.id in pinned for segment, _ in hidden)
