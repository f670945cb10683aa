"""What a pull will bring: the segments, or only the rows, that the cache lacks."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import RemoteError
from embedcache.remotes.remote import Denied, Unreachable
from embedcache.sharing.arrival import range_bytes
from embedcache.sharing.listing import ROOTS, ListedSpace
from embedcache.sharing.segments import RemoteSegment
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT
from embedcache.store.index import Table
from embedcache.store.layout import APART
from embedcache.store.manifest import are_twins
from embedcache.store.naming import plain_name
from embedcache.store.photo_ids import read_pairs
from embedcache.store.refs import Pinned, Pins
from embedcache.store.tombstones import Dead
from embedcache.store.union import lacking
from embedcache.upkeep.rewrite import Store

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

# Below this share of a segment's bytes only the ranges of the wanted rows are fetched.
RANGES_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a pull was asked for. photos: content digests, (n, 32); None for all."""

    backbones: Sequence[str] = ()
    specs: Sequence[str] = ()
    photos: U8 | None = None
    ref: str | None = None
    with_ids: bool = False

    @property
    def everything(self) -> bool:
        """Whether the pull is not narrowed to some spaces or photos."""
        return not (self.backbones or self.specs or self.photos is not None)


@dataclass(frozen=True, slots=True)
class Piece:
    """What to bring of one segment. rows: ascending; None for all, under the segment's own id.

    by_ranges: fetch the rows by their byte ranges. pinned: a ref names the segment.
    """

    space: ListedSpace
    segment: RemoteSegment
    rows: I64 | None
    n_bytes: int
    by_ranges: bool = False
    pinned: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the segment comes under its own id; forgotten rows are then taken out here."""
        return self.rows is None or self.pinned

    @property
    def n_rows(self) -> int:
        return self.segment.manifest.n_rows if self.rows is None else len(self.rows)

    @property
    def n_good(self) -> int:
        """Rows with a vector, or faces; the others record why there is none."""
        n_ok = self.segment.manifest.n_ok
        return n_ok if self.rows is None else int((self.rows < n_ok).sum())


@dataclass(slots=True)
class PullPlan:
    """The pieces to bring. specs: digests of the spaces that were asked for.

    already_there: good rows that the cache has. withheld: rows of forgotten photos.
    still_here: rows in the cache of forgotten photos.
    """

    pieces: list[Piece] = field(default_factory=list)
    specs: tuple[str, ...] = ()
    already_there: int = 0
    withheld: int = 0
    still_here: int = 0
    problems: list[RemoteError] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        return sum(piece.n_bytes for piece in self.pieces)


class PullPlanner:
    """Compares a shared copy with a cache, space by space."""

    def __init__(self, copy: SharedCopy, cache: Cache, dead: Dead, pool: Executor) -> None:
        self._copy = copy
        self._cache = cache
        self._dead = dead
        self._pool = pool
        self._plan = PullPlan()

    def plan(self, wanted: Wanted) -> PullPlan:
        """Find out what to bring.

        Raises RemoteError for a ref or a backbone that the shared copy lacks.
        """
        pins = None if wanted.ref is None else self._pins(wanted.ref)
        chosen = self._chosen(wanted)
        self._plan.specs = tuple(space.digest for space in chosen)
        mine: dict[str, Store] = {space.digest: space for space in self._cache.spaces()}
        mine |= {space.digest: space for space in self._cache.face_spaces()}
        for space in chosen:
            if space.kind == "photos" and not wanted.with_ids:
                continue
            part = "faces" if space.kind == "faces" else "spaces"
            try:
                self._copy.check_groups(space)
                if space.kind == "photos":
                    self._add_ids(space, None if pins is None else pins.photos or {})
                elif pins is None:
                    self._add_rows(space, mine.get(space.digest), wanted.photos)
                elif pinned := pins.of(part, space.digest):
                    self._add_pinned(space, mine.get(space.digest), pinned)
            except Unreachable:
                raise
            except Denied:
                self._copy.refusals.note_locked(space.root)
            except RemoteError as error:
                self._plan.problems.append(error)
        if pins is not None:
            for digest in {*pins.spaces, *pins.faces} - {space.digest for space in chosen}:
                problem = f"ref {wanted.ref} pins space {digest[:8]}, which is absent there"
                self._plan.problems.append(RemoteError(problem))
        self._plan.still_here = dead_rows_in(self._cache, self._dead)
        return self._plan

    def _pins(self, ref: str) -> Pins:
        refs = self._copy.refs()
        if ref not in refs:
            if problem := self._copy.refusals.of(f"refs/{ref}.json"):
                raise problem
            raise RemoteError(
                f"{self._copy.remote.name} has no ref {ref!r}; it has "
                f"{', '.join(sorted(refs)) or 'none'}"
            )
        return refs[ref].pins

    def _chosen(self, wanted: Wanted) -> list[ListedSpace]:
        """The spaces asked for, and the faces and ids that belong to them."""
        found = {root: list(self._copy.spaces(root).values()) for root in ROOTS}
        if not wanted.backbones:
            every = [space for spaces in found.values() for space in spaces]
            if wanted.specs:
                return [space for space in every if space.digest in wanted.specs]
            return [space for space in every if not self._holds_pixels(space)]
        named = self._named([*found["spaces"], *found[APART]])
        chosen: list[ListedSpace] = []
        for backbone in wanted.backbones:
            name, _, prefix = backbone.partition("#")
            matching = [
                space
                for space, names in named
                if (plain_name(name) in names and space.digest.startswith(prefix))
                or (len(backbone) >= 6 and space.digest.startswith(backbone))
            ]
            if not matching:
                known = sorted({name for _, names in named for name in names if name})
                raise RemoteError(
                    f"{self._copy.remote.name} has no vectors of {backbone!r}; it has "
                    f"{', '.join(known) or 'none'}"
                )
            chosen += [space for space in matching if space not in chosen]
        faces = [self._copy.spec(space).face for space in chosen]
        detectors = {face.detector for face in faces if face is not None}
        chosen += [space for space in found["faces"] if space.digest in detectors]
        return chosen + found["photos"]  # ids belong to photos, whatever the backbone

    def _holds_pixels(self, space: ListedSpace) -> bool:
        """Whether a space is of kept pixels, which come only where they are named."""
        if space.root != APART:
            return False  # a spec there is refused later if it belongs here
        try:
            return self._copy.spec(space).kind == "pixels"
        except Unreachable:
            raise
        except (Denied, RemoteError):
            return False  # which is reported once its rows are looked for

    def _named(self, spaces: Sequence[ListedSpace]) -> list[tuple[ListedSpace, set[str]]]:
        """The spaces that this member may read, each with the names its writers gave it."""
        named = []
        for space in spaces:
            try:
                found = [self._copy.segments.one(space, name) for name in space.segments]
            except Denied:
                self._copy.refusals.note_locked(space.root)
                continue
            named.append((space, {plain_name(s.manifest.name) for s in found if s}))
        return named

    def _add_rows(self, space: ListedSpace, mine: Store | None, photos: U8 | None) -> None:
        """Whatever `mine` lacks; a row that several segments hold comes from the first."""
        here = {} if mine is None else {s.id: s for s in mine.segments()}
        for name in space.segments.keys() & here.keys():
            self._plan.already_there += here[name].manifest.n_ok
        asked = None if photos is None else _table_of(photos)
        segments: list[RemoteSegment] = []
        rows_of: list[I64] = []
        parts: list[tuple[U8, int]] = []
        for segment in self._read(space, [s for s in space.segments if s not in here]):
            digests = self._copy.segments.digests(segment)
            if digests is not None:
                # Only the rows that were asked for stay in memory, whatever is there.
                rows = np.arange(len(digests))
                rows = rows if asked is None else rows[asked.find(digests) >= 0]
                segments.append(segment)
                rows_of.append(rows)
                parts.append((digests[rows], int((rows < segment.manifest.n_ok).sum())))

        def status(digests: U8) -> U8:
            return np.full(len(digests), ABSENT, np.uint8) if mine is None else mine.status(digests)

        found = lacking(parts, status=status, dead=self._dead.of)
        self._plan.already_there += found.already_there
        self._plan.withheld += found.withheld
        for segment, rows, wanted in zip(segments, rows_of, found.rows, strict=True):
            if len(wanted):
                self._plan.pieces.append(_piece(space, segment, rows[wanted]))

    def _add_pinned(self, space: ListedSpace, mine: Store | None, pinned: Pinned) -> None:
        """Exactly the segments that a ref names, whole, except for forgotten rows."""
        here = {} if mine is None else {s.id: s for s in mine.segments()}
        log = self._copy.log.known
        wanted: dict[str, str | None] = {}
        for name, digest in pinned.items():
            # A purge there may have put a segment without its forgotten rows in its place.
            standing = log.stands_for(space.set_key, name)
            if standing == [name]:
                wanted[name] = digest
            else:
                wanted |= dict.fromkeys(standing or [name])
        for name, wanted_digest in wanted.items():
            if name in here:
                if wanted_digest not in (None, here[name].digest):
                    problem = f"segment {name} here differs from the one that the ref pins"
                    self._plan.problems.append(RemoteError(problem))
                else:
                    self._plan.already_there += here[name].manifest.n_ok
            else:
                self._add_segment(space, mine, name, wanted_digest)

    def _add_segment(
        self, space: ListedSpace, mine: Store | None, name: str, digest: str | None
    ) -> None:
        """One whole segment. digest: of its manifest, where a ref says which one."""
        if mine is not None and mine.history.log().stands_for(space.set_key, name) not in (
            None,
            [name],
        ):
            return  # it was here, and what stands in its place is
        found = self._read(space, [name] if name in space.segments else [])
        if not found or digest not in (None, found[0].manifest.digest):
            now = "another segment has its name" if found else "it is gone"
            self._copy.refusals.segment(name, f"the ref pins it, and {now}")
            return
        digests = self._copy.segments.digests(found[0])
        if digests is None:
            return
        banned = self._dead.of(digests)
        self._plan.withheld += int(banned.sum())
        piece = _piece(space, found[0], np.flatnonzero(~banned))
        self._plan.pieces.append(replace(piece, pinned=True, by_ranges=False))

    def _add_ids(self, space: ListedSpace, pinned: Pinned | None) -> None:
        """Photo ids: all of them, or those in the segments that a ref pins."""
        here = {segment.id for segment in self._cache.photo_segments()}
        names = space.segments.keys() if pinned is None else space.segments.keys() & pinned
        for segment in self._read(space, [s for s in names if s not in here]):
            if not self._has_ids(segment):
                self._plan.pieces.append(Piece(space, segment, None, segment.n_bytes))

    def _has_ids(self, segment: RemoteSegment) -> bool:
        """Whether what is left of some ids is here under another name: a photo was forgotten."""
        photos = self._cache.photo_ids
        twins = [s for s in photos.segments() if are_twins(s.manifest, segment.manifest)]
        if not twins and f"{photos.key}/{segment.id}" not in photos.history.log().gone:
            return False
        held = {pair for twin in twins for pair in zip(*read_pairs(twin), strict=True)}
        ids, digests = self._copy.segments.ids(segment)
        lacking = np.array([(i, bytes(d)) not in held for i, d in zip(ids, digests, strict=True)])
        return not (lacking & ~self._dead.of_pairs(segment.manifest.name, ids, digests)).any()

    def _read(self, space: ListedSpace, names: Sequence[str]) -> list[RemoteSegment]:
        """The manifests of some segments, fetched several at once; those refused are left out."""
        spec = self._copy.spec(space) if space.kind == "vectors" and names else None
        return self._copy.segments.all(space, names, pool=self._pool, spec=spec)


def dead_rows_in(cache: Cache, dead: Dead) -> int:
    """How many rows of forgotten photos a cache still stores; readers do not see them."""
    if not dead:
        return 0
    return sum(
        int(store.dead_rows(segment, dead).sum())
        for store in cache.stores()
        for segment in store.segments()
    )


def _table_of(contents: U8) -> Table:
    digests = np.ascontiguousarray(contents, dtype=np.uint8)
    return Table.empty().extended([(0, digests, len(digests))], renumbered=np.empty(0, np.int64))


def _piece(space: ListedSpace, segment: RemoteSegment, rows: I64) -> Piece:
    """The cheapest way to bring some rows of a segment."""
    manifest = segment.manifest
    if len(rows) == manifest.n_rows:
        return Piece(space, segment, None, segment.n_bytes)
    if (geometry := manifest.geometry) is not None:
        by_ranges = range_bytes(geometry, rows[rows < manifest.n_ok])
        if by_ranges < RANGES_SHARE * segment.n_bytes:
            return Piece(space, segment, rows, by_ranges, by_ranges=True)
    return Piece(space, segment, rows, segment.n_bytes)
