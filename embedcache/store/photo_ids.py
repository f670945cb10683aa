"""Which photo id had which content: small immutable segments, kept apart from what is shared.

Ids live in scopes (two folders may both hold `a.jpg`). Within a scope an id's content is the newest
that was recorded for it; older pairs stay until they are forgotten. Of two contents of one moment
the greater digest counts, and never the name of a segment, which any rewrite changes.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Never

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, Damaged, PhotosError
from embedcache.spec import Json
from embedcache.store.columns import Columns, Kind, join_text, split_text
from embedcache.store.disposal import noting_aside
from embedcache.store.draft import Draft
from embedcache.store.history import History
from embedcache.store.index import Table
from embedcache.store.log import PHOTOS
from embedcache.store.manifest import (
    are_twins,
    moment_of,
    new_segment_id,
    replacement_id,
    replaces,
)
from embedcache.store.pairs import BLOCK_IDS, Pairs, Run, held_as_newest, texts_of
from embedcache.store.proposals import withdraw
from embedcache.store.salvage import salvage
from embedcache.store.segment import Segment, read_segment
from embedcache.store.segment_set import SegmentSet, members
from embedcache.store.tombstones import Dead, content_mark, pair_mark
from embedcache.texts import Repeats, Texts, repeated

KEPT_IDS = 1 << 20  # of more recorded ids none are kept in memory while others are recorded

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class PhotoTable:
    """Every recorded (scope, id, content), the newest first for each id.

    ids, scopes: n texts, made one by one when they are asked for. digests: (n, 32).
    newest: (n,), true for the pair that counts.
    """

    ids: Texts
    scopes: Repeats
    digests: U8
    newest: Bool

    def __len__(self) -> int:
        return len(self.ids)

    def places(self) -> dict[str, int]:
        """How many ids there are of each scope."""
        return {name: int(self.newest[rows].sum()) for name, rows in self.scopes.spans()}

    def current(self, *, scope: str | None = None, every_scope: bool = False) -> list[int]:
        """The rows that count (of `scope`): each content under its ids of the last scope that has
        it, or with `every_scope` of all."""
        at = [i for i in np.flatnonzero(self.newest).tolist() if scope in (None, self.scopes[i])]
        if every_scope or scope is not None:
            return at
        order = {name: k for k, name in enumerate(dict.fromkeys(self.scopes))}
        last: dict[bytes, int] = {}
        for i in at:
            content = self.digests[i].tobytes()
            last[content] = max(last.get(content, 0), order[self.scopes[i]])
        return [i for i in at if order[self.scopes[i]] == last[self.digests[i].tobytes()]]


def scope_key(scope: str) -> str:
    """What a photo segment's manifest holds in place of a spec digest."""
    return sha256(scope.encode("utf-8", "surrogateescape")).hexdigest()


class PhotoIds(SegmentSet):
    """The pairs of one cache, as segments under `folder`/segments."""

    kind: Kind = "photos"
    subject = None  # they are of no spec and no detector

    def __init__(
        self,
        folder: Path,
        *,
        history: History | None = None,
        pins: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, key=PHOTOS, history=history or History(folder.parent), pins=pins)
        self._loaded: tuple[str, ...] = ()
        self._pairs: dict[str, Pairs] = {}
        self._dead = Dead()  # which pairs are left out of `_pairs`

    def record(
        self, scope: str, ids: Sequence[str], digests: U8, *, which: Bool | None = None
    ) -> None:
        """Record n ids and their contents, (n, 32), or those of them that `which` (n,) says.

        What is known as the newest is not repeated, and what was forgotten is left out.
        """
        digests = np.ascontiguousarray(digests, dtype=np.uint8)
        if digests.shape != (len(ids), 32):
            raise ValueError(f"digests of shape {digests.shape}; expected {(len(ids), 32)}")
        texts = ids if isinstance(ids, Texts) else Texts.of(ids)
        held = self._held(scope, texts, digests)
        changed = np.flatnonzero(~held if which is None else ~held & which)
        del held
        dead = self.history.dead()
        if dead and len(changed):
            gone = dead.of_pairs(scope, texts.take(changed), digests[changed])
            changed = changed[~gone]
        changed = _last_of_each(texts, changed)
        if len(changed):
            with noting_aside(self.history.cache):
                self.salvage()
        for start in range(0, len(changed), BLOCK_IDS):
            block = changed[start : start + BLOCK_IDS]
            after = max((segment.id for segment in self.segments()), default="")
            # Newer than all that is known, by any clock.
            self.write(
                scope,
                [ids[i] for i in block.tolist()],
                digests[block],
                segment_id=new_segment_id(after=after),
            )

    def _held(self, scope: str, ids: Texts, digests: U8) -> Bool:
        """Which of n ids have these contents, (n, 32), as the newest that is recorded, (n,)."""

        def look(segments: list[Segment]) -> Bool:
            if sum(segment.manifest.n_rows for segment in segments) <= KEPT_IDS:
                return self._loaded_from(segments).get(scope, Pairs(scope)).hold(ids, digests)
            self._pairs, self._loaded = {}, ()
            mine = [one for one in _in_order(segments) if one.manifest.name == scope]
            return held_as_newest(Run.of(ids, digests), scope, mine, self.history.dead())

        return self.steadily(look)

    def write(self, scope: str, ids: Sequence[str], digests: U8, *, segment_id: str) -> str:
        """Publish one segment of pairs, and return its id."""
        self._refuse_at_ref()
        return write_pairs(
            *(self.segments_folder, scope, ids, digests),
            segment_id=segment_id,
            settle=self.settle,
        )

    def settle(self, segment_id: str) -> None:
        """Also withdraw what a `forget` is about to say of contents that have these ids now."""

        def contents() -> set[bytes]:
            path = str(self.segments_folder / segment_id)
            segment = read_segment(path, kind=self.kind, space=None)
            rows = () if segment is None else segment.column("digest")
            return {content_mark(row.tobytes()) for row in rows}

        withdraw(self.history.cache, contents)
        super().settle(segment_id)

    def newest(self, ids: Sequence[str], *, scope: str | None) -> tuple[U8, Bool]:
        """The newest content of each id, ((n, 32), which are known), in one scope or in all."""
        scopes = self._load()
        if scope is not None:
            scopes = {scope: scopes[scope]} if scope in scopes else {}
        digests = np.zeros((len(ids), 32), dtype=np.uint8)
        known = np.zeros(len(ids), dtype=np.bool_)
        for pairs in scopes.values():
            contents, there = pairs.contents(ids)
            clash = np.flatnonzero(there & known & (contents != digests).any(axis=1))
            if len(clash):
                name = ids[int(clash[0])]
                owners = sorted(k for k, some in scopes.items() if some.contents([name])[1].any())
                raise CacheError(
                    f"photo id {name!r} stands for different photos in {len(owners)} places: "
                    f"{', '.join(owners)}. Choose one with `scope`"
                )
            digests[there] = contents[there]
            known |= there
        return digests, known

    def table(self, *, dead: bool = False) -> PhotoTable:
        """All pairs; with `dead`, also those that were forgotten and are still stored."""
        scopes = self._load() if not dead else self._all()
        parts = {scope: pairs.table() for scope, pairs in scopes.items()}
        counts = Repeats({scope: len(ids) for scope, (ids, _, _) in parts.items()})
        ids, digests, newest = zip(*(parts or {"": Pairs("").table()}).values(), strict=True)
        if len(parts) < 2:  # no copy
            return PhotoTable(ids[0], counts, digests[0], newest[0])
        return PhotoTable(
            Texts.joined(ids), counts, np.concatenate(digests), np.concatenate(newest)
        )

    def pairs_of(
        self, *, ids: Collection[str] = (), contents: Collection[bytes] = (), dead: bool = False
    ) -> set[tuple[str, str, bytes]]:
        """The pairs (scope, id, content) of some ids, and those of some contents.

        dead: also those that were forgotten and are still stored. Segments are read one by one, so
        that little is in memory whatever there is.
        """
        wanted, of = {*ids}, {*contents}
        hashes = Texts.of([*wanted]).hashes()

        def look(segments: list[Segment]) -> set[tuple[str, str, bytes]]:
            marks, found = self.history.dead(), set()
            for segment in segments:
                names, digests = texts_of(segment), segment.column("digest")
                chosen = members(digests, of) | np.isin(names.hashes(), hashes)
                rows = np.flatnonzero(chosen)
                some, scope = [*names.take(rows)], segment.manifest.name
                gone = (
                    np.zeros(len(rows), np.bool_)
                    if dead
                    else marks.of_pairs(scope, some, digests[rows])
                )
                found |= {
                    (scope, name, content)
                    for name, content, hidden in zip(
                        some, map(bytes, digests[rows]), gone.tolist(), strict=True
                    )
                    if not hidden and (name in wanted or content in of)
                }
            return found

        return self.steadily(look)

    def left_to(self, dead: Dead) -> dict[bytes, frozenset[bytes]]:
        """Of contents that are dead by their lists alone, those with ids here that no tombstone
        names: {mark of the content: marks of these pairs}."""

        def look(segments: list[Segment]) -> dict[bytes, set[bytes]]:
            found: dict[bytes, set[bytes]] = {}
            for segment in segments:
                digests, scope = segment.column("digest"), segment.manifest.name
                rows = np.flatnonzero(dead.of(digests))
                for name, row in zip(texts_of(segment).take(rows), rows.tolist(), strict=True):
                    content = digests[row].tobytes()
                    pair, mark = pair_mark(scope, name, content), content_mark(content)
                    if mark in dead.by_lists and pair not in dead.pairs:
                        found.setdefault(mark, set()).add(pair)
            return found

        found = self.steadily(look) if dead.by_lists else {}
        return {mark: frozenset(some) for mark, some in found.items()}

    def state(self) -> tuple[list[str], Dead]:
        """What the living pairs follow from: equal where no id came, went or was forgotten."""
        return [segment.id for segment in self.segments()], self.history.dead()

    def salvage(self) -> None:
        """Remove what writers that died left: ids are recorded again, so no rows are saved."""

        def nothing(*_: object) -> Never:
            raise ValueError("a draft of ids has no rows in its journal")

        def gone(name: str) -> bool:
            return f"{self.key}/{name}" in self.history.log().gone

        salvage(self.segments_folder, reopen=nothing, known=nothing, gone=gone, settle=self.settle)

    def _dead_rows(self, segment: Segment, dead: Dead) -> Bool:
        return dead.of_pairs(segment.manifest.name, ids_of(segment), segment.column("digest"))

    def readable(self, segment: Segment) -> Bool:
        """Which pairs of a damaged segment can still be read, (n,): all, if its columns can."""
        return np.ones(len(read_pairs(segment)[0]), dtype=np.bool_)

    def held_in(
        self, holder: Segment, segment: Segment, rows: I64, tables: dict[str, Table]
    ) -> Bool:
        """Which of some pairs of `segment` are in `holder`, which must be its twin: (k,)."""
        del tables  # a twin holds no other victim's pairs
        held = np.zeros(len(rows), dtype=np.bool_)
        if not are_twins(holder.manifest, segment.manifest):
            return held
        with contextlib.suppress(Damaged):  # what cannot be read holds nothing
            there = set(zip(*read_pairs(holder), strict=True))
            ids, contents = read_pairs(segment)
            for i, row in enumerate(rows.tolist()):
                held[i] = (ids[row], contents[row]) in there
        return held

    def rewrite(
        self,
        chosen: Sequence[tuple[Segment, I64]],
        *,
        about: Mapping[str, Json] | None = None,
        segment_id: str = "",
    ) -> str | None:
        """Publish a segment of some pairs of one segment, which may lie in another cache."""
        del about  # pairs say nothing of how they came
        [(segment, rows)] = chosen
        if not len(rows):
            return None
        ids = ids_of(segment)
        return self.write(
            segment.manifest.name,
            [ids[row] for row in rows.tolist()],
            segment.column("digest")[rows],
            segment_id=segment_id or replacement_id(segment.id),
        )

    def _all(self) -> dict[str, Pairs]:
        """The pairs of each scope, dead ones too."""
        return self.steadily(lambda segments: _scopes({}, segments, Dead()))

    def _load(self) -> dict[str, Pairs]:
        """The pairs of each scope that are not dead."""
        return self.steadily(self._loaded_from)

    def _loaded_from(self, segments: list[Segment]) -> dict[str, Pairs]:
        names = tuple(segment.id for segment in segments)
        dead = self.history.dead()
        if names == self._loaded and dead is self._dead:
            return self._pairs
        more = dead.since(self._dead.tombstones, self._dead.lifts)
        before, n_before = self._pairs, len(self._loaded)
        joined = 0 < n_before < len(names) and replaces(names[n_before], names[n_before - 1])
        if more is None or names[:n_before] != self._loaded or joined:
            before, n_before, more = {}, 0, None
        self._pairs, self._loaded = {}, ()  # until all of it has been read
        if more:
            before = {scope: rows.without(more) for scope, rows in before.items()}
        pairs = _scopes(before, segments[n_before:], dead)
        self._pairs, self._loaded, self._dead = pairs, names, dead
        return pairs


def _scopes(before: dict[str, Pairs], segments: Sequence[Segment], dead: Dead) -> dict[str, Pairs]:
    """The pairs of each scope, with those of later segments, lowest id first."""
    parts: dict[str, list[Segment]] = {}
    for segment in _in_order(segments):
        parts.setdefault(segment.manifest.name, []).append(segment)
    for scope, some in parts.items():
        before[scope] = before.get(scope, Pairs(scope)).extended(some, dead)
    return before


def _in_order(segments: Sequence[Segment]) -> list[Segment]:
    """Segments as their pairs count, the later over the earlier."""
    return sorted(segments, key=lambda one: (moment_of(one.id), one.manifest.name))


def _last_of_each(ids: Texts, at: I64) -> I64:
    """The places `at`, ascending, without those whose id comes again later."""
    some = ids if len(at) == len(ids) else ids.take(at)
    several = repeated(some)
    if not len(several):
        return at
    last = dict(zip(some.take(several), several.tolist(), strict=True))
    stay = np.ones(len(at), np.bool_)
    stay[several] = False
    stay[[*last.values()]] = True
    return at[np.flatnonzero(stay)]


def read_pairs(segment: Segment) -> tuple[list[str], list[bytes]]:
    """Ids and contents of one photo segment, in row order."""
    raw = segment.column("digest").tobytes()
    return ids_of(segment), [raw[i : i + 32] for i in range(0, len(raw), 32)]


def ids_of(segment: Segment) -> list[str]:
    """The ids of one photo segment, in row order."""
    return split_text(segment.column("id_offset"), segment.column("id_text"), segment.folder)


def write_pairs(
    segments: Path,
    scope: str,
    ids: Sequence[str],
    digests: U8,
    *,
    segment_id: str,
    settle: Callable[[str], None],
) -> str:
    """Write one photo segment, and return its id; settle: as `Draft.end` has it."""
    for name in ids:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise PhotosError(
                f"photo id {name!r} is not valid Unicode: rename the photo, or give it an id in a "
                "table"
            ) from None
    offsets, text = join_text(list(ids))
    columns: Columns = {"digest": digests, "id_offset": offsets, "id_text": text}
    with disk.plain_errors("write to", segments):
        draft = Draft(
            segments,
            kind="photos",
            space=scope_key(scope),
            name=scope,
            about={},
            segment_id=segment_id,
        )
        try:
            segment = draft.commit(columns, n_rows=len(ids), n_ok=len(ids))
        except BaseException:
            draft.discard()
            raise
    draft.end(settle)
    return segment
