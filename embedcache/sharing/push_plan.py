"""What a push will send: the segments, or only the rows, that the shared copy lacks."""

import contextlib
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import Denied
from embedcache.sharing.listing import ROOTS, ListedSpace
from embedcache.sharing.pull_plan import dead_rows_in
from embedcache.sharing.seen import SeenWhole
from embedcache.sharing.segments import Missing, has_bytes
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, FAILED, OK
from embedcache.store.index import Table
from embedcache.store.layout import APART, KINDS
from embedcache.store.manifest import MANIFEST, are_twins, replacement_id, replaces
from embedcache.store.photo_ids import PhotoIds, read_pairs
from embedcache.store.refs import pinned_ids, ref_names
from embedcache.store.sealed import MAX_MANIFEST_BYTES, own_digest
from embedcache.store.segment import Segment
from embedcache.store.segment_set import members
from embedcache.store.tombstones import Dead
from embedcache.store.union import lacking
from embedcache.store.zarr_json import encode_document, group_document
from embedcache.upkeep.rewrite import Store
from embedcache.wording import counted

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parcel:
    """What to send of one segment: `files` of it, or a new segment of some `rows`.

    key: of the space on the remote. mends: the segment is there, where these files are missing or
    damaged.
    segment_id: what the new segment is called; "" for any name.
    """

    key: str
    segment: Segment
    store: Store | PhotoIds | None
    files: tuple[str, ...]
    rows: I64 | None = None
    mends: bool = False
    segment_id: str = ""

    @property
    def n_bytes(self) -> int:
        manifest = self.segment.manifest
        size = sum(manifest.files[path][0] for path in self.files if path in manifest.files)
        return size if self.rows is None else size * len(self.rows) // max(1, manifest.n_rows)


@dataclass(slots=True)
class PushPlan:
    """The parcels to send, and {key: bytes} of group documents to create before them.

    rewritten: {key: bytes} of group documents there that are damaged.
    there: the segments that the shared copy holds: (name of the set, segment id). stand_ins: {(name
    of the set, id of a segment here): id of one there with exactly its rows}, for segments that
    refs pin and that are lost there. unhealed: {id of a damaged segment there with forgotten rows,
    which only a purge may replace: how many of its files}. The counts are those of `moved.Moved`.
    """

    parcels: list[Parcel] = field(default_factory=list)
    documents: dict[str, bytes] = field(default_factory=dict)
    rewritten: dict[str, bytes] = field(default_factory=dict)
    there: set[tuple[str, str]] = field(default_factory=set)
    stand_ins: dict[tuple[str, str], str] = field(default_factory=dict)
    segments: int = 0
    rows: int = 0
    failures: int = 0
    ids: int = 0
    already_there: int = 0
    withheld: int = 0
    still_here: int = 0
    notes: list[str] = field(default_factory=list)
    unhealed: dict[str, int] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        return sum(parcel.n_bytes for parcel in self.parcels)

    @property
    def whole(self) -> list[tuple[str, str]]:
        """(key of the space, segment id) of the segments that go under their own ids."""
        return [(p.key, p.segment.id) for p in self.parcels if p.rows is None]


class PushPlanner:
    """Compares a cache with a shared copy, space by space. dead: what either side forgot."""

    def __init__(
        self, copy: SharedCopy, cache: Cache, dead: Dead, pool: Executor, *, seen: SeenWhole
    ) -> None:
        self._copy = copy
        self._seen = seen
        self._cache = cache
        self._dead = dead
        self._pool = pool
        self._plan = PushPlan()

    def plan(self, *, backbones: Sequence[str], specs: Sequence[str], with_ids: bool) -> PushPlan:
        """Find out what the shared copy lacks. Raises NoSuchSpace for an unknown backbone."""
        there = {root: self._copy.spaces(root) for root in ROOTS}
        for spaces in there.values():
            for space in spaces.values():
                held = (name for name, files in space.segments.items() if MANIFEST in files)
                self._plan.there |= {(space.set_key, name) for name in held}
        for store in self._chosen(backbones):
            if specs and store.digest not in specs:
                continue
            root = _root_of(store, there)
            space = there[root].get(store.digest) or ListedSpace(root, store.digest)
            try:
                self._add_store(store, space)
            except Denied:
                self._copy.refusals.note_locked(root)
                continue
            is_there = store.digest in there[root]
            if is_there or any(parcel.key == space.key for parcel in self._plan.parcels):
                self._add_documents(store, space)
        if with_ids:
            self._add_ids(there["photos"].get("") or ListedSpace("photos", ""))
        for key in (damaged := self._copy.damaged_parts()).keys() - self._plan.rewritten.keys():
            self._plan.rewritten[key] = damaged[key]
            self._plan.notes.append(rewriting(key))
        self._plan.still_here = dead_rows_in(self._cache, self._dead)
        return self._plan

    def _chosen(self, backbones: Sequence[str]) -> list[Store]:
        if not backbones:
            # Pixels are the photos themselves: they leave this machine only where they are named.
            shared = [space for space in self._cache.spaces() if space.spec.kind != "pixels"]
            return [*shared, *self._cache.face_spaces()]
        spaces = [self._cache.find(name, pixels=True) for name in dict.fromkeys(backbones)]
        detectors = {space.spec.face.detector for space in spaces if space.spec.face is not None}
        faces = [space for space in self._cache.face_spaces() if space.digest in detectors]
        return [*spaces, *faces]

    def _add_store(self, store: Store, space: ListedSpace) -> None:
        segments = store.segments()
        there = {name for name, files in space.segments.items() if MANIFEST in files}
        # What the shared copy lists under the same id cannot be lacking there.
        left = [segment for segment in segments if segment.id not in there]
        found = lacking(
            [(segment.column("digest"), segment.manifest.n_ok) for segment in left],
            status=lambda digests: self._status(digests, segments, space),
            dead=self._dead.of,
        )
        self._plan.already_there += found.already_there + _held_by(store, there, but=left)
        self._plan.withheld += found.withheld
        log = store.history.log()
        pinned = pinned_ids(self._cache.path, store.key, log)
        removed = self._copy.log.known.gone
        theirs, cited = self._copy.refs(), self._copy.pinned()
        names = [name for name in ref_names(self._cache.path) if name not in theirs]
        unsent = pinned_ids(self._cache.path, store.key, log, names=names)
        for segment in segments:
            if segment.id in there:
                self._mend(segment, space, store)
        for segment, rows in zip(left, found.rows, strict=True):
            fresh = f"{store.key}/{segment.id}" not in removed  # a removed id never returns
            is_cited = f"{store.key}/{segment.id}" in cited
            if fresh and (segment.id in pinned or is_cited):
                # A ref must find it whole, unless that would undo a forget.
                hidden = self._dead.of(segment.column("digest"))
                if hidden.any() and is_cited and segment.id in space.segments:
                    self._mend(segment, space, store)
                    continue
                rows = rows if hidden.any() else np.arange(len(hidden))
            name = ""
            if not fresh and segment.id in unsent and self._is_lost(segment, store, space):
                # A ref must find exactly its rows, though others may hold them there.
                live = np.flatnonzero(~self._dead.of(segment.column("digest")))
                name = self._twin(segment, live, space) or replacement_id(segment.id)
                self._plan.stand_ins[store.key, segment.id] = name
                rows = rows[:0] if name in there else live
            if not len(rows):
                continue
            n_ok = segment.manifest.n_ok
            self._plan.segments += 1
            self._plan.rows += int((rows < n_ok).sum())
            self._plan.failures += int((rows >= n_ok).sum())
            whole = fresh and len(rows) == segment.manifest.n_rows
            files = tuple(segment.manifest.files)
            self._plan.parcels.append(
                Parcel(space.key, segment, store, files, None if whole else rows, segment_id=name)
            )

    def _is_lost(self, segment: Segment, store: Store, space: ListedSpace) -> bool:
        """Whether a segment was removed there and what stands for it lacks live rows of it."""
        standing = self._copy.log.known.stands_for(store.key, segment.id)
        if standing is None:
            return True
        digests = segment.column("digest")
        held = np.zeros(len(digests), dtype=np.bool_)
        for found in self._digests_of(standing, space):
            held |= members(digests, map(bytes, found))
        return bool((~held & ~self._dead.of(digests)).any())

    def _twin(self, segment: Segment, rows: I64, space: ListedSpace) -> str:
        """The segment there that a push before made of exactly these rows; "" for none."""
        wanted = {*map(bytes, segment.column("digest")[rows])}
        for name in sorted(space.segments):
            if replaces(name, segment.id):
                for found in self._digests_of([name], space):
                    if {*map(bytes, found)} == wanted:
                        return name
        return ""

    def _digests_of(self, names: Sequence[str], space: ListedSpace) -> Iterator[U8]:
        """The contents in some segments there, of those that can be read."""
        for name in names:
            if MANIFEST in space.segments.get(name, {}):
                found = self._copy.segments.one(space, name)
                digests = None if found is None else self._copy.segments.digests(found)
                if digests is not None:
                    yield digests

    def _status(self, digests: U8, segments: Sequence[Segment], space: ListedSpace) -> U8:
        """ABSENT, OK or FAILED of (n, 32) digests in the shared copy.

        Of the rows there only those asked about are kept in memory.
        """
        asked = Table.empty().extended([(0, digests, 0)], renumbered=np.empty(0, np.int64))
        status = np.full(len(asked.keys), ABSENT, np.uint8)
        for theirs, n_ok in self._remote_digests(segments, space):
            at = asked.find(theirs)
            good, bad = at[:n_ok], at[n_ok:]
            status[good[good >= 0]] = OK
            bad = bad[bad >= 0]
            status[bad[status[bad] == ABSENT]] = FAILED
        return status[asked.find(digests)] if len(digests) else status

    def _remote_digests(
        self, segments: Sequence[Segment], space: ListedSpace
    ) -> Iterator[tuple[U8, int]]:
        """Of each segment there: the contents of its rows, and how many are good."""
        here = {segment.id: segment for segment in segments}
        there = {name for name, files in space.segments.items() if MANIFEST in files}
        for name in sorted(there & here.keys()):
            yield here[name].column("digest"), here[name].manifest.n_ok
        others = sorted(there - here.keys())
        for segment in self._pool.map(lambda name: self._copy.segments.one(space, name), others):
            digests = None if segment is None else self._copy.segments.digests(segment)
            if segment is not None and digests is not None:
                yield digests, segment.manifest.n_ok

    def _mend(self, segment: Segment, space: ListedSpace, store: Store | PhotoIds) -> None:
        """Send again the files that a segment there lacks, or has with other bytes.

        Of one with forgotten rows only the manifest, by which a purge knows what to replace.
        """
        listed = space.segments[segment.id]
        missing = tuple(
            path
            for path, (size, _) in segment.manifest.files.items()
            if path not in listed or listed[path].size != size
        )
        if MANIFEST not in listed:
            missing = (*missing, MANIFEST)
        damaged: tuple[str, ...] = ()
        if missing or not self._seen.is_whole(space, segment.id):
            found = self._damaged(segment, space, but=missing)
            if found is None:
                return
            damaged = found
            if not (missing or damaged):
                self._seen.add(space, segment.id)
        if (missing or damaged) and store.dead_rows(segment, self._dead).any():
            self._plan.unhealed[segment.id] = len(missing) + len(damaged)
            missing, damaged = (
                tuple(path for path in paths if path == MANIFEST) for paths in (missing, damaged)
            )
        for what, files in (("lacked {}", missing), ("had {} with wrong bytes", damaged)):
            if files:
                what = what.format(counted(len(files), "file"))
                self._plan.notes.append(f"segment {segment.id} there {what}")
        if missing or damaged:
            files = (*missing, *damaged)
            self._plan.parcels.append(Parcel(space.key, segment, None, files, mends=True))

    def _damaged(
        self, segment: Segment, space: ListedSpace, *, but: Sequence[str]
    ) -> tuple[str, ...] | None:
        """The files of a segment there that were read and are not what was written here.

        None, and it is refused, where that is another segment.
        """
        raw = segment.manifest.encode()
        expected = {**segment.manifest.files, MANIFEST: (len(raw), sha256(raw).hexdigest())}
        key = f"{space.key}/segments/{segment.id}"

        def is_damaged(path: str) -> bool:
            size, digest = expected[path]
            with contextlib.suppress(Denied, FileNotFoundError):  # gone since it was listed
                return not has_bytes(self._copy.remote, f"{key}/{path}", size=size, digest=digest)
            return False

        paths = [path for path in expected if path not in but]
        found = [*self._pool.map(is_damaged, paths)]
        if dict(zip(paths, found, strict=True)).get(MANIFEST):
            theirs = read_small(self._copy.remote, f"{key}/{MANIFEST}", limit=MAX_MANIFEST_BYTES)
            if own_digest(theirs) is not None:
                self._copy.refusals.segment(segment.id, "another segment here has the same id")
                return None
        return tuple(path for path, damaged in zip(paths, found, strict=True) if damaged)

    def _add_documents(self, store: Store, space: ListedSpace) -> None:
        """The group documents of a space; its own comes last, as it creates the space."""
        group = group_document({"embedcache": store.attributes})
        inner = encode_document(group_document({}))
        documents = {
            f"{space.root}/zarr.json": inner,
            f"{space.key}/segments/zarr.json": inner,
            f"{space.key}/zarr.json": encode_document(group),
        }
        damaged = self._copy.damaged_documents(space, documents)
        for key, raw in documents.items():
            if key in damaged:
                self._plan.rewritten[key] = raw
                self._plan.notes.append(rewriting(key))
            else:
                self._plan.documents[key] = raw

    def _add_ids(self, space: ListedSpace) -> None:
        photos = self._cache.photo_ids
        for segment in photos.segments():
            if MANIFEST in space.segments.get(segment.id, {}):
                self._mend(segment, space, photos)
                continue
            hidden = photos.dead_rows(segment, self._dead)
            fresh = f"{photos.key}/{segment.id}" not in self._copy.log.known.gone
            whole = fresh and not hidden.any()
            if hidden.all() or self._has_ids(segment, np.flatnonzero(~hidden), space):
                continue
            files, rows = tuple(segment.manifest.files), None if whole else np.flatnonzero(~hidden)
            self._plan.parcels.append(Parcel(space.key, segment, photos, files, rows))
            self._plan.ids += int((~hidden).sum())

    def _has_ids(self, segment: Segment, rows: I64, space: ListedSpace) -> bool:
        """Whether some ids are there under another name, since a photo was forgotten."""
        pairs = list(zip(*read_pairs(segment), strict=True))
        lacking = {pairs[row] for row in rows.tolist()}
        for name in space.segments:
            if replaces(name, segment.id):
                twin = self._copy.segments.one(space, name)
                if twin is not None and are_twins(twin.manifest, segment.manifest):
                    with contextlib.suppress(Missing):
                        ids, digests = self._copy.segments.ids(twin)
                        lacking -= set(zip(ids, map(bytes, digests), strict=True))
        return not lacking


def _held_by(store: Store, there: Container[str], *, but: Sequence[Segment]) -> int:
    """How many good contents the segments `there` hold, less those that `but` hold too."""
    segments, table = store.row_table()
    is_there = np.array([segment.id in there for segment in segments], np.bool_)
    if not is_there.any():
        return 0
    counted = table.ok & is_there[table.segment]
    for segment in but:
        at = table.find(segment.column("digest")[: segment.manifest.n_ok])
        counted[at[at >= 0]] = False
    return int(counted.sum())


def rewriting(key: str) -> str:
    """What is said of a damaged document there."""
    return f"{key} there was damaged: it is written again"


def _root_of(store: Store, there: dict[str, dict[str, ListedSpace]]) -> str:
    """Where a space lies on the remote: where it is listed, or where its kind belongs."""
    for root in ("spaces", APART):  # it lies elsewhere in a folder that somebody extracted into
        if store.kind == KINDS[root] and store.digest in there[root]:
            return root
    return store.home
