"""The rows of one space: vectors under one spec, or faces under one detector.

A space is the union of its segments, found anew on every call, so that what other writers commit is
seen at once. Rows are looked up by content digest and read directly from the shard files, verified.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import CacheError, Damaged
from embedcache.spec import Json, Spec
from embedcache.store.columns import ABSENT, Columns, Kind
from embedcache.store.faces import Faces
from embedcache.store.index import Table
from embedcache.store.reader import OpenShards, Part, read_rows
from embedcache.store.salvage import salvage
from embedcache.store.segment import Segment, list_segments
from embedcache.store.tombstones import forgotten, newer, read_tombstones
from embedcache.store.writer import FaceWriter, SegmentWriter, face_writer, vector_writer

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
T = TypeVar("T")
UNKNOWN = "unknown"
INDEX_SEGMENTS = 64
INDEX_ROWS = 65_536
COLUMN_CACHE_BYTES = 24 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a space holds: distinct photos, and where they came from."""

    ok: int
    failed: dict[str, int]
    segments: int
    bytes_on_disk: int
    names: tuple[str, ...]
    writers: dict[str, int]
    devices: dict[str, int]
    first: str
    last: str


class Rows:
    """What vectors and faces share. `pins`, from a ref, are the only segments that exist."""

    kind: Kind

    def __init__(self, folder: Path, digest: str, *, pins: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.digest = digest
        self._pins = pins
        # The whole table of a space may be kept beside the cache, never that of a ref.
        local = folder.parent.parent / "local" / "index"
        self._index_path = None if pins is not None else local / f"{digest}.table"
        self._segments: dict[str, Segment] = {}
        self._columns: dict[str, Columns] = {}
        self._indexed: list[str] = []
        self._unsaved = 0
        self._table = Table.empty()

    @property
    def segments_folder(self) -> Path:
        return self.folder / "segments"

    def segments(self) -> list[Segment]:
        """The committed segments, lowest id first. Raises Damaged for one that is not whole."""
        self._segments = list_segments(
            self.segments_folder,
            kind=self.kind,
            space=self.digest,
            known=self._segments,
            pins=self._pins,
        )
        return list(self._segments.values())

    def status(self, digests: U8) -> U8:
        """ABSENT, OK or FAILED for each of (n, 32) digests; good anywhere beats failed."""
        _, table = self.row_table()
        at = table.find(digests)
        status = np.where(table.ok[at], np.uint8(1), np.uint8(2)) if len(table.ok) else at
        return np.where(at < 0, np.uint8(ABSENT), status).astype(np.uint8)

    def reasons(self, digests: U8) -> list[str | None]:
        """Why each failed photo failed; None for one that is good or absent."""

        def look(segments: list[Segment], table: Table) -> list[str | None]:
            at = table.find(digests)
            found: list[str | None] = [None] * len(at)
            failed = np.flatnonzero(at >= 0)
            failed = failed[~table.ok[at[failed]]]
            told: dict[int, list[str]] = {}
            for i in failed.tolist():
                number, row = int(table.segment[at[i]]), int(table.row[at[i]])
                if number not in told:
                    told[number] = segments[number].reasons()
                found[i] = told[number][row - segments[number].manifest.n_ok]
            return found

        return self._steadily(look)

    def digests(self) -> U8:
        """Digests of all good rows, (n, 32), ascending."""
        _, table = self.row_table()
        return table.digests[table.ok]

    def counts(self) -> Counts:
        """Rows, failures by reason, segments, bytes, and who wrote them."""
        segments, table = self.row_table()
        reasons = self.reasons(table.digests[~table.ok])
        manifests = [segment.manifest for segment in segments]
        created = sorted(manifest.created for manifest in manifests)
        return Counts(
            ok=int(table.ok.sum()),
            failed=dict(Counter(str(reason) for reason in reasons).most_common()),
            segments=len(segments),
            bytes_on_disk=sum(manifest.bytes_on_disk for manifest in manifests),
            names=self.names,
            writers=dict(Counter(_told(m.about, "host", "writer") for m in manifests)),
            devices=dict(Counter(_told(m.about, "device") for m in manifests)),
            first=created[0] if created else "",
            last=created[-1] if created else "",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """What writers called this space, the earliest first."""
        return tuple(dict.fromkeys(s.name for s in self.segments() if s.name))

    def known(self, digests: U8, draft: str) -> Bool:
        """Which digests in a draft need no salvaging: good ones, and those forgotten since."""
        gone, _ = read_tombstones(self.folder.parent.parent)
        known: Bool = (self.status(digests) == 1) | forgotten(digests, newer(gone, draft))
        return known

    def salvage(self) -> int:
        """Turn what dead writers left into segments, and collect litter; returns rows saved."""
        if self._pins is not None or not os.access(self.segments_folder, os.W_OK):
            return 0
        return salvage(self.segments_folder, reopen=self._reopen, known=self.known)

    def _refuse_at_ref(self) -> None:
        if self._pins is not None:
            raise CacheError(f"{self.folder} was opened at a ref: open the cache without, to write")

    def _reopen(self, lease: Mapping[str, Any], n_rows: int) -> SegmentWriter | FaceWriter:
        raise NotImplementedError

    def row_table(self) -> tuple[list[Segment], Table]:
        """The segments, and where each digest lies in them."""

        return self._retried(lambda segments: (segments, self._table_of(segments)))

    def _table_of(self, segments: list[Segment]) -> Table:
        names = [segment.digest for segment in segments]
        if names != self._indexed:
            self._extend(names, segments)
        return self._table

    def _extend(self, names: list[str], segments: list[Segment]) -> None:
        """Bring the table up to date, from memory, from the file, or from nothing.

        names: the digests of the segments' manifests, so that a saved table fits those or none.
        """
        base, known = self._table, self._indexed
        if not known and self._index_path is not None:
            base, known = Table.load(self._index_path) or (base, known)
        if not set(known) <= set(names):
            base, known = Table.empty(), []
        number = {name: i for i, name in enumerate(names)}
        renumbered = np.array([number[name] for name in known], dtype=np.int64)
        old = set(known)
        fresh = [(i, segment) for i, segment in enumerate(segments) if segment.digest not in old]
        if fresh or known != names:
            parts = [(i, s.column("digest"), s.manifest.n_ok) for i, s in fresh]
            base = base.extended(parts, renumbered=renumbered)
        self._indexed, self._table = names, base
        self._unsaved += len(fresh)
        n_fresh = sum(segment.manifest.n_rows for _, segment in fresh)
        if self._index_path and (self._unsaved >= INDEX_SEGMENTS or n_fresh >= INDEX_ROWS):
            self._unsaved = 0
            with contextlib.suppress(OSError, CacheError):  # a convenience: a full disk may say no
                self._index_path.parent.mkdir(parents=True, exist_ok=True)
                base.save(self._index_path, names)

    def _steadily(self, look: Callable[[list[Segment], Table], T]) -> T:
        return self._retried(lambda segments: look(segments, self._table_of(segments)))

    def _retried(self, look: Callable[[list[Segment]], T]) -> T:
        """Look again when a segment was compacted away, or forgotten, under a reader's eyes."""
        for last in (False, False, True):
            segments = self.segments()
            try:
                return look(segments)
            except Damaged:
                if last or all(segment.folder.exists() for segment in segments):
                    raise
        raise AssertionError("unreachable")

    def columns_of(self, segment: Segment) -> Columns:
        """A segment's small arrays; those read last are kept, up to a few megabytes."""
        columns = self._columns.get(segment.id)
        if columns is None:
            columns = self._columns[segment.id] = segment.columns()
            sizes = [sum(c.nbytes for c in kept.values()) for kept in self._columns.values()]
            while len(self._columns) > 1 and sum(sizes) > COLUMN_CACHE_BYTES:
                del self._columns[next(iter(self._columns))], sizes[0]
        return columns

    def _found(
        self, segments: list[Segment], table: Table, digests: U8
    ) -> tuple[Bool, Iterator[Part]]:
        """Which digests are good, and by segment: (segment, columns, its rows, their slots)."""
        at = table.find(digests)
        found = at >= 0
        found[found] = table.ok[at[found]]
        slots = np.flatnonzero(found)
        owner = table.segment[at[slots]]

        def by_segment() -> Iterator[Part]:
            for number in np.unique(owner).tolist():
                mine = slots[owner == number]
                rows = table.row[at[mine]].astype(np.int64)
                columns = self.columns_of(segments[number])
                if not np.array_equal(columns["digest"][rows], digests[mine]):
                    raise Damaged(f"the index of {self.folder} does not fit its segments")
                yield segments[number], columns, rows, mine

        return found, by_segment()


class Space(Rows):
    """The vectors of one spec."""

    kind: Kind = "vectors"

    def __init__(self, folder: Path, spec: Spec, *, pins: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, spec.digest, pins=pins)
        self.spec = spec
        self.dim = spec.dim
        self._shards = OpenShards()

    def read(self, digests: U8, *, out: F32 | None = None) -> tuple[F32, Bool]:
        """The vectors of (n, 32) digests, verified: ((n, dim), which were found).

        out: filled and returned instead of a new array; C-contiguous. Rows that are not there are
            NaN. A digest may come more than once.
        Raises Damaged for a wrong byte in anything that is read.
        """
        digests = np.ascontiguousarray(digests, dtype=np.uint8)
        if out is None:
            out = np.empty((len(digests), self.dim), dtype=np.float32)
        if out.shape != (len(digests), self.dim) or not out.flags.c_contiguous:
            raise ValueError(f"out is a C-contiguous array of shape {(len(digests), self.dim)}")
        if out.dtype != np.dtype("<f4"):
            raise ValueError(f"out is float32; got {out.dtype}")

        def look(segments: list[Segment], table: Table) -> Bool:
            found, parts = self._found(segments, table, digests)
            read_rows(parts, out, n_rows=int(found.sum()), shards=self._shards)
            out[~found] = np.nan
            return found

        return out, self._steadily(look)

    def writer(
        self, *, n_rows: int, name: str, about: Mapping[str, Json], segment_id: str = ""
    ) -> SegmentWriter:
        """Begin a segment of about `n_rows` rows, failures included.

        name: the backbone as users will name it. about: provenance for the manifest.
        segment_id: only for a segment that takes another one's place.
        """
        self._refuse_at_ref()
        return vector_writer(
            self.segments_folder,
            space=self.digest,
            dim=self.dim,
            n_rows=n_rows,
            name=name,
            about=about,
            segment_id=segment_id,
        )

    def _reopen(self, lease: Mapping[str, Any], n_rows: int) -> SegmentWriter:
        about = dict(lease.get("about") or {})
        return self.writer(n_rows=n_rows, name=str(lease.get("name", "")), about=about)


class FaceSpace(Rows):
    """The faces that one detector found."""

    kind: Kind = "faces"

    def __init__(
        self,
        folder: Path,
        document: dict[str, Json],
        digest: str,
        *,
        pins: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, digest, pins=pins)
        self.document = document

    def read(self, digests: U8) -> tuple[Faces, Bool]:
        """The faces on photos of (n, 32) digests, and which photos were found."""
        digests = np.ascontiguousarray(digests, dtype=np.uint8)

        def look(segments: list[Segment], table: Table) -> tuple[Faces, Bool]:
            found, parts = self._found(segments, table, digests)
            pieces, places = [Faces.none(1)], [np.zeros(0, dtype=np.int64)]
            for segment, columns, rows, slots in parts:
                pieces.append(faces_of(segment, columns).take(rows))
                places.append(slots)
            where = np.zeros(len(digests), dtype=np.int64)  # 0: the photo without faces
            slots = np.concatenate(places)
            where[slots] = np.arange(1, len(slots) + 1)
            return Faces.concatenate(pieces).take(where), found

        return self._steadily(look)

    def counts_of(self, digests: U8) -> I64:
        """Faces on each photo, (n,); -1 where that is not known."""
        faces, found = self.read(digests)
        return np.where(found, faces.counts, -1)

    def writer(self, *, n_rows: int, about: Mapping[str, Json], segment_id: str = "") -> FaceWriter:
        """Begin a segment of about `n_rows` photos."""
        self._refuse_at_ref()
        del n_rows  # face segments are written whole and need no plan
        return face_writer(
            self.segments_folder, space=self.digest, about=about, segment_id=segment_id
        )

    def _reopen(self, lease: Mapping[str, Any], n_rows: int) -> FaceWriter:
        return self.writer(n_rows=n_rows, about=dict(lease.get("about") or {}))


def faces_of(segment: Segment, columns: Columns) -> Faces:
    """The faces of all good rows of a segment; Damaged where its columns do not fit."""
    names = ("face_offset", "box", "probability", "landmark")
    try:
        faces = Faces(*(columns[name] for name in names))
        if all(np.isfinite(columns[name]).all() for name in names[1:]):
            return faces
        raise ValueError("a number is not finite")
    except ValueError as error:
        raise Damaged(f"the faces of segment {segment.folder} do not fit: {error}") from None


def _told(about: Mapping[str, Json], *names: str) -> str:
    return next((str(about[name]) for name in names if name in about), UNKNOWN)
