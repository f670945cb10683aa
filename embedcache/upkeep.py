"""What is done to whole caches: verify, pin, merge, compact, forget.

Each operation adds segments first and removes others after, so that a crash in between leaves rows
twice, never missing; running it again finishes it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.audit import BLOCK_ROWS, Finding, Report, check_segment, verify
from embedcache.errors import CacheError
from embedcache.manifest import replacement_id
from embedcache.photo_ids import read_pairs, write_pairs
from embedcache.reader import read_rows
from embedcache.refs import Pins, pinned_segments, repin
from embedcache.refs import write_ref as _write_ref
from embedcache.segment import Segment
from embedcache.space import FaceSpace, Space
from embedcache.spec import Json
from embedcache.store import Cache
from embedcache.tombstones import FOLDER as TOMBSTONES
from embedcache.tombstones import Tombstones, forgotten, read_tombstones, write_tombstone
from embedcache.transfer import Store, copy_segment, rewrite

__all__ = [
    "Compacted",
    "Finding",
    "Forgotten",
    "Merged",
    "Ref",
    "Report",
    "compact",
    "forget",
    "merge",
    "verify",
    "write_ref",
]

U8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

COMPACT_ROWS = 262_144
COMPACT_BYTES = 64 << 20
MAX_ABOUT_VALUES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """A ref that was written."""

    name: str
    segments: int

    def document(self) -> dict[str, Json]:
        return {"ref": self.name, "segments": self.segments}

    def __str__(self) -> str:
        return f"ref {self.name} pins {self.segments} segments"


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
                f"{self.still_here:,} rows here are of photos that the other cache forgot: "
                "'embedcache forget' removes them"
            )
        if self.differing:
            lines.append(
                f"{self.differing:,} rows differ from those here, by at most "
                f"{self.largest_difference:.3g}; those here stay"
            )
        return "\n".join(lines)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What `forget` removed. kept: contents that another id still stands for."""

    ids: int
    contents: int
    kept: tuple[str, ...]
    rows: int
    refs: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Json]:
        return {
            "ids": self.ids,
            "contents": self.contents,
            "kept": list(self.kept),
            "rows": self.rows,
            "refs": list(self.refs),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"{self.ids} ids and {self.rows} rows of {self.contents} photos are gone"]
        if self.refs:
            lines.append(f"changed refs: {', '.join(self.refs)}")
        if self.kept:
            lines.append(f"the same photo stays under other ids: {', '.join(self.kept)}")
        return "\n".join([*lines, *self.notes])


def write_ref(cache: Cache, name: str) -> Ref:
    """Pin all segments that `cache` holds now under `name`, once and for all."""
    pins = _all_pins(cache, name)
    _write_ref(cache.path, name, pins=pins)
    return Ref(name=name, segments=sum(map(len, pins.parts)))


def pin(cache: Cache) -> str:
    """Pin what `cache` holds now under a name made of it, and return the name.

    The same segments get the same name, so that pinning twice makes one ref.
    """
    pins = _all_pins(cache, "")
    held = [dict(pins.spaces), dict(pins.faces), dict(pins.photos or {})]
    text = json.dumps(held, default=dict, sort_keys=True)
    name = f"as-of-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not (cache.path / "refs" / f"{name}.json").exists():
        _write_ref(cache.path, name, pins=replace(pins, name=name))
    return name


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
    return Merged(**(tally | {"largest_difference": largest}))  # type: ignore[arg-type]


def compact(cache: Cache, *, target_rows: int = COMPACT_ROWS) -> Compacted:
    """Join small segments into bigger ones of up to `target_rows` rows, each photo once.

    Segments that a ref pins stay as they are. Readers that are at work meanwhile look again.
    """
    pinned = pinned_segments(cache.path)
    stores: list[Store] = [*cache.spaces(), *cache.face_spaces()]
    before = after = rows = freed = kept = 0
    with disk.plain_errors("write to", cache.path):
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
                        (segment, np.sort(table.row[table.segment == number]).astype(np.int64))
                        for number, segment in batch
                    ]
                    rows += rewrite(
                        store,
                        store,
                        chosen,
                        about=joint_about([s.manifest.about for _, s in batch]),
                    )
                for _, segment in small:
                    disk.remove_folder(segment.folder)
            segments = store.segments()
            after += len(segments)
            freed += size - sum(segment.manifest.bytes_on_disk for segment in segments)
    return Compacted(before=before, after=after, rows=rows, bytes_freed=freed, pinned=kept)


def forget(cache: Cache, ids: Sequence[str], *, scope: str | None = None) -> Forgotten:
    """Remove photos: their ids, every content they ever had, its vectors and its faces.

    Contents that another id still stands for are kept, and named. A tombstone stays behind, which
    keeps later merges from bringing the rows back. Refs that named the rewritten segments are
    changed and say so.
    scope: where the ids come from; needed when an id occurs in several places.
    Raises CacheError for an id that is not recorded.
    """
    table = cache.photo_table()
    wanted = set(ids)
    at = [
        i
        for i, (name, place) in enumerate(zip(table.ids, table.scopes, strict=True))
        if name in wanted and scope in (None, place)
    ]
    _check_known(cache, wanted, {(table.ids[i], table.scopes[i]) for i in at})
    chosen = set(at)
    contents = {table.digests[i].tobytes() for i in at}
    others = {
        table.digests[i].tobytes(): table.ids[i] for i in range(len(table)) if i not in chosen
    }
    doomed = contents - others.keys()
    refs: set[str] = set()
    rows = 0
    with disk.plain_errors("write to", cache.path):
        if doomed:
            write_tombstone(cache.path, doomed)
        stores: list[Store] = [*cache.spaces(), *cache.face_spaces()]
        for store in stores:
            store.salvage()
            for segment in store.segments():
                hit = _members(segment.column("digest"), doomed)
                if hit.any():
                    refs.update(_replace(cache, store, segment, keep=np.flatnonzero(~hit)))
                    rows += int(hit.sum())
        pairs = {(table.ids[i], table.scopes[i]) for i in at}
        for segment in cache.photo_segments():
            refs.update(_replace_ids(cache, segment, pairs))
        notes = _forget_here(cache)
    return Forgotten(
        ids=len(pairs),
        contents=len(doomed),
        kept=tuple(sorted(others[content] for content in contents & others.keys())),
        rows=rows,
        refs=tuple(sorted(refs)),
        notes=notes,
    )


def _all_pins(cache: Cache, name: str) -> Pins:
    return Pins(
        name=name,
        spaces={space.digest: _pins(space.segments()) for space in cache.spaces()},
        faces={space.digest: _pins(space.segments()) for space in cache.face_spaces()},
        photos=_pins(cache.photo_segments()),
    )


def _pins(segments: Sequence[Segment]) -> dict[str, str]:
    return {segment.id: segment.digest for segment in segments}


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
        keep = np.where(good, status != 1, status == 0) & ~banned & first
        known = good & (status == 1) & ~banned
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


def joint_about(segments: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """Provenance of several segments: what all agree on stays, the rest becomes lists."""
    values: dict[str, list[Json]] = {}
    for about in segments:
        for key, value in about.items():
            if value not in values.setdefault(key, []) and len(values[key]) < MAX_ABOUT_VALUES:
                values[key].append(value)
    joint: dict[str, Json] = {
        key: found[0] if len(found) == 1 else found for key, found in values.items()
    }
    return joint | {"compacted_segments": len(segments)}


def _members(digests: U8, contents: set[bytes]) -> Bool:
    return np.fromiter((row.tobytes() in contents for row in digests), np.bool_, len(digests))


def _replace(cache: Cache, store: Store, segment: Segment, *, keep: NDArray[np.int64]) -> list[str]:
    """Put a segment of the rows `keep` in a segment's place, in refs too; returns those refs."""
    successor: dict[str, str] = {}
    if len(keep):
        new = replacement_id(segment.id)
        about = dict(segment.manifest.about)
        rewrite(store, store, [(segment, keep)], about=about, segment_id=new)
        successor = {found.id: found.digest for found in store.segments() if found.id == new}
    changed = repin(cache.path, segment.id, successor)
    disk.remove_folder(segment.folder)
    return changed


def _replace_ids(cache: Cache, segment: Segment, pairs: set[tuple[str, str]]) -> list[str]:
    """Take ids of a scope out of a photo segment; returns the refs that changed."""
    ids, contents = read_pairs(segment)
    scope = segment.manifest.name
    keep = [i for i, name in enumerate(ids) if (name, scope) not in pairs]
    if len(keep) == len(ids):
        return []
    successor: dict[str, str] = {}
    if keep:
        raw = np.frombuffer(b"".join(contents[i] for i in keep), np.uint8).reshape(-1, 32)
        new = replacement_id(segment.id)
        names = [ids[i] for i in keep]
        write_pairs(segment.folder.parent, scope, names, raw, segment_id=new)
        successor = {s.id: s.digest for s in cache.photo_segments() if s.id == new}
    changed = repin(cache.path, segment.id, successor)
    disk.remove_folder(segment.folder)
    return changed


def _check_known(cache: Cache, wanted: set[str], found: set[tuple[str, str]]) -> None:
    if unknown := sorted(wanted - {name for name, _ in found}):
        raise CacheError(
            f"{cache.path} knows no photo id {unknown[0]!r}"
            + (f" (nor {len(unknown) - 1} others of those given)" if len(unknown) > 1 else "")
            + ". 'embedcache info' shows ids that it knows"
        )
    places: dict[str, list[str]] = {}
    for name, scope in found:
        places.setdefault(name, []).append(scope)
    for name, scopes in places.items():
        if len(scopes) > 1:
            raise CacheError(
                f"photo id {name!r} occurs in {len(scopes)} places: {', '.join(sorted(scopes))}. "
                "Say which one is meant by its scope"
            )


def _forget_here(cache: Cache) -> tuple[str, ...]:
    """This machine's own memory of paths goes; what was set aside is pointed at."""
    for pattern in ("digests*", "index/*"):
        for path in (cache.path / "local").glob(pattern):
            path.unlink()
    if (cache.path / "damaged").exists():
        return (
            f"{cache.path / 'damaged'} holds files that were set aside, perhaps with these rows: "
            "delete it",
        )
    return ()


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
