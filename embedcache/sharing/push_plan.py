"""What a push will send: the segments, or only the rows, that the shared copy lacks."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedcache.remotes.remote import Denied
from embedcache.sharing.listing import ROOTS, ListedSpace
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.sharing.union import lacking
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, FAILED, OK
from embedcache.store.index import Table
from embedcache.store.layout import APART
from embedcache.store.manifest import MANIFEST
from embedcache.store.photo_ids import read_pairs
from embedcache.store.refs import pinned_segments
from embedcache.store.segment import Segment
from embedcache.store.space import Space
from embedcache.store.tombstones import Tombstones, forgotten
from embedcache.store.zarr_json import encode_document, group_document
from embedcache.upkeep.rewrite import Store

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parcel:
    """What to send of one segment: `files` of it, or a new segment of some `rows`.

    key: of the space on the remote. mends: the segment is there and lacks these files.
    """

    key: str
    segment: Segment
    store: Store | None
    files: tuple[str, ...]
    rows: I64 | None = None
    mends: bool = False

    @property
    def n_bytes(self) -> int:
        manifest = self.segment.manifest
        size = sum(manifest.files[path][0] for path in self.files)
        return size if self.rows is None else size * len(self.rows) // max(1, manifest.n_rows)


@dataclass(frozen=True, slots=True)
class Doomed:
    """A segment of the shared copy with forgotten rows. digests: of all its rows, (n, 32)."""

    store: Store
    space: ListedSpace
    segment: str
    digests: U8


@dataclass(slots=True)
class PushPlan:
    """The parcels to send, {key: bytes} of group documents before them, and what to purge.

    The counts are those of `moved.Moved`.
    """

    parcels: list[Parcel] = field(default_factory=list)
    documents: dict[str, bytes] = field(default_factory=dict)
    doomed: list[Doomed] = field(default_factory=list)
    segments: int = 0
    rows: int = 0
    failures: int = 0
    ids: int = 0
    already_there: int = 0
    withheld: int = 0
    still_here: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        return sum(parcel.n_bytes for parcel in self.parcels)


class PushPlanner:
    """Compares a cache with a shared copy, space by space.

    purge: segments there with forgotten rows count as absent, and are planned to be removed.
    """

    def __init__(
        self, copy: SharedCopy, cache: Cache, gone: Tombstones, pool: Executor, *, purge: bool
    ) -> None:
        self._copy = copy
        self._cache = cache
        self._gone = gone
        self._pool = pool
        self._purges = purge
        self._plan = PushPlan()

    def plan(self, *, backbones: Sequence[str], specs: Sequence[str], with_ids: bool) -> PushPlan:
        """Find out what the shared copy lacks. Raises NoSuchSpace for an unknown backbone."""
        pinned = pinned_segments(self._cache.path)
        there = {root: self._copy.listing.spaces(root) for root in ROOTS}
        for store in self._chosen(backbones):
            if specs and store.digest not in specs:
                continue
            root = _root_of(store, there)
            space = there[root].get(store.digest) or ListedSpace(root, store.digest)
            try:
                self._add_store(store, space, pinned)
            except Denied:
                self._copy.refusals.note_locked(root)
                continue
            if any(parcel.key == space.key for parcel in self._plan.parcels):
                self._add_documents(store, space)
        if with_ids:
            self._add_ids(there["photos"].get("") or ListedSpace("photos", ""))
        if self._gone:
            for store in self._chosen(()):
                banned = forgotten(store.digests(), self._gone)
                self._plan.still_here += int(banned.sum())
        return self._plan

    def _chosen(self, backbones: Sequence[str]) -> list[Store]:
        if not backbones:
            return [*self._cache.spaces(), *self._cache.face_spaces()]
        spaces = [self._cache.find(name) for name in dict.fromkeys(backbones)]
        detectors = {space.spec.face.detector for space in spaces if space.spec.face is not None}
        faces = [space for space in self._cache.face_spaces() if space.digest in detectors]
        return [*spaces, *faces]

    def _add_store(self, store: Store, space: ListedSpace, pinned: dict[str, list[str]]) -> None:
        segments, table = store.row_table()
        there, remote_rows = self._remote_rows(store, segments, space)
        at = remote_rows.find(table.digests)
        status = np.full(len(at), ABSENT, np.uint8)
        status[at >= 0] = np.where(remote_rows.ok[at[at >= 0]], np.uint8(OK), np.uint8(FAILED))
        found = lacking(table, status, self._gone)
        self._plan.already_there += found.already_there
        self._plan.withheld += found.withheld
        for number, segment in enumerate(segments):
            if segment.id in there:
                self._add_missing_files(segment, space)
                continue
            rows = np.sort(table.row[found.rows & (table.segment == number)]).astype(np.int64)
            if segment.id in pinned:  # a ref must find it whole, unless that would undo a forget
                hidden = forgotten(segment.column("digest"), self._gone)
                rows = rows if hidden.any() else np.arange(len(hidden))
            if not len(rows):
                continue
            n_ok = segment.manifest.n_ok
            self._plan.segments += 1
            self._plan.rows += int((rows < n_ok).sum())
            self._plan.failures += int((rows >= n_ok).sum())
            whole = len(rows) == segment.manifest.n_rows
            files = tuple(segment.manifest.files)
            self._plan.parcels.append(
                Parcel(space.key, segment, store, files, None if whole else rows)
            )

    def _remote_rows(
        self, store: Store, segments: Sequence[Segment], space: ListedSpace
    ) -> tuple[set[str], Table]:
        """Ids of the segments that are there, and all rows that are there."""
        here = {segment.id: segment for segment in segments}
        there = {name for name, files in space.segments.items() if MANIFEST in files}
        found = [
            (name, here[name].column("digest"), here[name].manifest.n_ok)
            for name in sorted(there & here.keys())
        ]
        others = sorted(there - here.keys())
        for segment in self._pool.map(lambda name: self._copy.segments.one(space, name), others):
            digests = None if segment is None else self._copy.segments.digests(segment)
            if segment is not None and digests is not None:
                found.append((segment.id, digests, segment.manifest.n_ok))
        parts: list[tuple[int, U8, int]] = []
        for name, digests, n_ok in found:
            if self._purges and forgotten(digests, self._gone).any():
                self._plan.doomed.append(Doomed(store, space, name, digests))
                there.discard(name)
            else:
                parts.append((len(parts), digests, n_ok))
        return there, Table.empty().extended(parts, renumbered=np.empty(0, np.int64))

    def _add_missing_files(self, segment: Segment, space: ListedSpace) -> None:
        """The files that a segment there lacks, or has in another size."""
        listed = space.segments[segment.id]
        missing = tuple(
            path
            for path, (size, _) in segment.manifest.files.items()
            if path not in listed or listed[path].size != size
        )
        if missing:
            self._plan.notes.append(f"segment {segment.id} there lacked {len(missing)} files")
            self._plan.parcels.append(Parcel(space.key, segment, None, missing, mends=True))

    def _add_documents(self, store: Store, space: ListedSpace) -> None:
        """The group documents of a space; its own comes last, as it creates the space."""
        attributes: dict[str, Json] = (
            {"spec": store.spec.document()}
            if isinstance(store, Space)
            else {"detector": dict(store.document)}
        )
        group = group_document({"embedcache": attributes})
        inner = encode_document(group_document({}))
        self._plan.documents[f"{space.key}/segments/zarr.json"] = inner
        self._plan.documents[f"{space.key}/zarr.json"] = encode_document(group)

    def _add_ids(self, space: ListedSpace) -> None:
        for segment in self._cache.photo_segments():
            if MANIFEST in space.segments.get(segment.id, {}):
                continue
            contents = np.frombuffer(b"".join(read_pairs(segment)[1]), np.uint8).reshape(-1, 32)
            if forgotten(contents, self._gone).any():
                self._plan.notes.append(
                    "some photo ids were not sent: they belong to forgotten photos"
                )
                continue
            files = tuple(segment.manifest.files)
            self._plan.parcels.append(Parcel(space.key, segment, None, files))
            self._plan.ids += segment.manifest.n_rows


def _root_of(store: Store, there: dict[str, dict[str, ListedSpace]]) -> str:
    """Where a space lies on the remote: where it is listed, or where its kind belongs."""
    if not isinstance(store, Space):
        return "faces"
    if store.digest in there["spaces"]:  # as in a shared folder that somebody extracted into
        return "spaces"
    return APART if store.digest in there[APART] or store.spec.apart else "spaces"
