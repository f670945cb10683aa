"""Joining small segments into bigger ones, each photo once.

New segments come first and the old ones go after, so that a crash in between leaves rows twice,
never missing; running it again finishes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.disposal import aside_note, names_aside, new_aside
from embedcache.store.refs import pinned_ids
from embedcache.store.removal import Victim, finish
from embedcache.store.segment import Segment
from embedcache.store.segment_set import LOOKS
from embedcache.upkeep.local import clear_hidden
from embedcache.upkeep.rewrite import Store, joint_about
from embedcache.wording import counted

COMPACT_ROWS = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What a compaction did, whatever others wrote meanwhile.

    pinned: small segments that stay because a ref names them. bytes_freed: below zero where a new
    segment is larger than those that it replaces.
    set_aside: folders with files of others, which lay in what was deleted.
    """

    before: int
    after: int
    rows: int
    bytes_freed: int
    pinned: int
    set_aside: tuple[str, ...] = ()

    def document(self) -> dict[str, Json]:
        found = {name: getattr(self, name) for name in self.__slots__}
        return found | {"set_aside": [*self.set_aside]}

    def __str__(self) -> str:
        line = f"{counted(self.before, 'segment')} became {self.after} "
        line += f"({counted(self.rows, 'row')} rewritten"
        if self.bytes_freed < 0:
            line += f", grew by {-self.bytes_freed:,} bytes)"
        else:
            line += f", {self.bytes_freed:,} bytes freed)"
        line += f"; kept as they are, pinned by refs: {self.pinned:,}" if self.pinned else ""
        return "\n".join([line, *map(aside_note, self.set_aside)])


def compact(cache: Cache, *, target_rows: int = COMPACT_ROWS) -> Compacted:
    """Join small segments into bigger ones of up to `target_rows` rows, each photo once.

    Segments that a ref pins stay as they are. Readers that are at work meanwhile look again. What
    crashes left behind, anywhere in the cache, is removed once nobody can be at work on it.
    """
    aside = names_aside(cache.path)
    with disk.plain_errors("write to", cache.path):
        tidy(cache)
        parts = [_compact_store(cache, store, target_rows) for store in cache.stores()]
    names = ("before", "after", "rows", "bytes_freed", "pinned")
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    return Compacted(**sums, set_aside=new_aside(cache.path, aside))


def _compact_store(cache: Cache, store: Store, target_rows: int) -> Compacted:
    """Join the small segments of one space; begun again where others remove one of them."""
    for last in [False] * LOOKS + [True]:
        segments = store.segments()
        try:
            return _join(cache, store, target_rows)
        except Damaged:
            if last or all(segment.folder.exists() for segment in segments):
                raise
    raise AssertionError("unreachable")


def _join(cache: Cache, store: Store, target_rows: int) -> Compacted:
    pinned = pinned_ids(cache.path, store.key, cache.history.log())
    segments, table = store.row_table()
    live = np.bincount(table.segment, minlength=len(segments)).tolist()
    victims: list[Segment] = []
    made: dict[str, list[Segment]] = {}
    rows = 0
    small = _small(segments, live, pinned, target_rows)
    for batch in _batches(small, live, target_rows, limit=store.joint_bytes):
        holders = [(number, segment) for number, segment in batch if live[number]]
        if len(holders) == 1 and live[holders[0][0]] == holders[0][1].manifest.n_rows:
            # It is what would be written.
            victims += [segment for number, segment in batch if not live[number]]
            continue
        victims += [segment for _, segment in batch]
        chosen = [
            (segment, np.sort(table.row[table.segment == number]).astype(np.int64))
            for number, segment in batch
        ]
        if holders:
            new = store.rewrite(chosen, about=joint_about([s.manifest.about for _, s in batch]))
            made[new or ""] = [segment for _, segment in batch]
            rows += sum(len(some) for _, some in chosen)
    new_bytes = {s.id: s.manifest.bytes_on_disk for s in store.segments() if s.id in made}
    gone = store.remove([Victim(segment) for segment in victims])
    kept = _take_back(store, made, {segment.id for segment in gone})
    held = pinned_ids(cache.path, store.key, cache.history.log())
    return Compacted(
        before=len(segments),
        after=len(segments) - len(gone) + len(kept),
        rows=rows,
        bytes_freed=sum(segment.manifest.bytes_on_disk for segment in gone)
        - sum(new_bytes.get(name, 0) for name in kept),
        pinned=sum(s.id in held and s.manifest.n_rows <= target_rows // 2 for s in segments),
    )


def _take_back(store: Store, made: Mapping[str, Sequence[Segment]], gone: set[str]) -> set[str]:
    """Remove new segments that took the place of none, as all of theirs have been pinned meanwhile.

    Returns the ids of those that stay.
    """
    vain = {name for name, old in made.items() if not any(s.id in gone for s in old)}
    back = store.remove([Victim(s) for s in store.segments() if s.id in vain]) if vain else []
    return made.keys() - {segment.id for segment in back}


def tidy(cache: Cache) -> None:
    """Salvage what dead writers left, finish removals, and collect what nobody is at work on."""
    clear_hidden(cache.path)
    for store in cache.sets():
        store.salvage()
        finish(store)


def _small(
    segments: Sequence[Segment], live: Sequence[int], pinned: set[str], target_rows: int
) -> list[tuple[int, Segment]]:
    """The segments that are worth joining with others, with their numbers."""
    return [
        (number, segment)
        for number, segment in enumerate(segments)
        if segment.id not in pinned
        and (segment.manifest.n_rows <= target_rows // 2 or live[number] < segment.manifest.n_rows)
    ]


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
