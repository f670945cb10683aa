"""The rows of one space: vectors under one spec, or faces under one detector.

A space is the union of its segments, found anew on every call, so that what other writers commit is
seen at once. Rows are looked up by content digest and read directly from the shard files, verified.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import CacheError, Damaged
from embedcache.faces_table import Faces
from embedcache.index import Table
from embedcache.manifest import Kind
from embedcache.segment import Columns, Segment, check_pins, read_segment, segment_folders
from embedcache.shard import Geometry, open_shard, read_chunk, split_by_chunk
from embedcache.spec import Json, Spec
from embedcache.writer import FaceWriter, SegmentWriter, face_writer, salvage, vector_writer

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
T = TypeVar("T")

ABSENT = 0
READ_THREADS = 2
THREADED_BYTES = 8 << 20
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
        self._segments: dict[str, Segment] = {}
        self._columns: dict[str, Columns] = {}
        self._indexed: tuple[str, ...] = ()
        self._table = Table.build([])

    @property
    def segments_folder(self) -> Path:
        return self.folder / "segments"

    def segments(self) -> list[Segment]:
        """The committed segments, lowest id first. Raises Damaged for one that is not whole."""
        found: dict[str, Segment] = {}
        for folder in segment_folders(self.segments_folder):
            if self._pins is not None and folder.name not in self._pins:
                continue
            segment = self._segments.get(folder.name)
            if segment is None:
                segment = read_segment(folder, kind=self.kind, space=self.digest)
            if segment is not None:
                found[folder.name] = segment
        check_pins(self.folder, found, self._pins)
        self._segments = dict(sorted(found.items()))
        return list(self._segments.values())

    def status(self, digests: U8) -> U8:
        """ABSENT, OK or FAILED for each of (n, 32) digests; good anywhere beats failed."""
        _, table = self._index()
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
        _, table = self._index()
        return table.digests[table.ok]

    def counts(self) -> Counts:
        """Rows, failures by reason, segments, bytes, and who wrote them."""
        segments, table = self._index()
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
        return tuple(dict.fromkeys(s.manifest.name for s in self.segments() if s.manifest.name))

    def known(self, digests: U8) -> Bool:
        """Which digests need no salvaging: the good ones."""
        good: Bool = self.status(digests) == 1
        return good

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

    def _index(self) -> tuple[list[Segment], Table]:
        def look(segments: list[Segment]) -> tuple[list[Segment], Table]:
            names = tuple(segment.id for segment in segments)
            if names != self._indexed:
                parts = [(s.column("digest"), s.manifest.n_ok) for s in segments]
                self._indexed, self._table = names, Table.build(parts)
            return segments, self._table

        return self._retried(look)

    def _steadily(self, look: Callable[[list[Segment], Table], T]) -> T:
        return self._retried(lambda _: look(*self._index()))

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
        """A segment's small arrays; the most recent ones are kept, up to a few megabytes."""
        columns = self._columns.pop(segment.id, None)
        if columns is None:
            columns = segment.columns()
        self._columns[segment.id] = columns
        while (
            len(self._columns) > 1
            and sum(array.nbytes for kept in self._columns.values() for array in kept.values())
            > COLUMN_CACHE_BYTES
        ):
            del self._columns[next(iter(self._columns))]
        return columns

    def _found(
        self, segments: list[Segment], table: Table, digests: U8
    ) -> tuple[Bool, Iterator[tuple[Segment, Columns, I64, I64]]]:
        """Which digests are good, and by segment: (segment, columns, its rows, their slots)."""
        at = table.find(digests)
        found = at >= 0
        found[found] = table.ok[at[found]]
        slots = np.flatnonzero(found)
        owner = table.segment[at[slots]]

        def by_segment() -> Iterator[tuple[Segment, Columns, I64, I64]]:
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
            with _Shards() as shards:
                jobs = _jobs(parts, shards, out)
                if int(found.sum()) * self.dim * 4 < THREADED_BYTES:
                    for job in jobs:
                        job()
                else:
                    with ThreadPoolExecutor(READ_THREADS) as pool:
                        for _ in pool.map(lambda job: job(), jobs):
                            pass
            out[~found] = np.nan
            return found

        return out, self._steadily(look)

    def writer(self, *, n_rows: int, name: str, about: Mapping[str, Json]) -> SegmentWriter:
        """Begin a segment of about `n_rows` rows, failures included.

        name: the backbone as users will name it. about: provenance for the manifest.
        """
        self._refuse_at_ref()
        return vector_writer(
            self.segments_folder,
            space=self.digest,
            dim=self.dim,
            n_rows=n_rows,
            name=name,
            about=about,
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
                pieces.append(_faces(segment, columns).take(rows))
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

    def writer(self, *, n_rows: int, about: Mapping[str, Json]) -> FaceWriter:
        """Begin a segment of about `n_rows` photos."""
        self._refuse_at_ref()
        del n_rows  # face segments are written whole and need no plan
        return face_writer(self.segments_folder, space=self.digest, about=about)

    def _reopen(self, lease: Mapping[str, Any], n_rows: int) -> FaceWriter:
        return self.writer(n_rows=n_rows, about=dict(lease.get("about") or {}))


def _faces(segment: Segment, columns: Columns) -> Faces:
    names = ("face_offset", "box", "probability", "landmark")
    try:
        return Faces(*(columns[name] for name in names))
    except ValueError as error:
        raise Damaged(f"the faces of segment {segment.folder} do not fit: {error}") from None


class _Shards:
    """The shard files that one read has open."""

    def __init__(self) -> None:
        self._open: dict[tuple[Path, int], int] = {}

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)

    def fd(self, segment: Segment, shard: int, geometry: Geometry) -> int:
        key = (segment.folder, shard)
        if key not in self._open:
            try:
                self._open[key] = open_shard(
                    segment.folder / "embedding",
                    shard,
                    geometry=geometry,
                    n_rows=segment.manifest.n_ok,
                )
            except FileNotFoundError:
                raise Damaged(f"shard {shard} of segment {segment.folder} is missing") from None
        return self._open[key]


def _jobs(
    parts: Iterator[tuple[Segment, Columns, I64, I64]], shards: _Shards, out: F32
) -> Iterator[Callable[[], None]]:
    """One job for each chunk that holds wanted rows."""
    for segment, columns, rows, slots in parts:
        geometry = segment.manifest.geometry
        assert geometry is not None
        chunk_crcs = np.frombuffer(segment.manifest.chunk_crcs, "<u4")
        for chunk, within, places in split_by_chunk(geometry, rows, slots):
            fd = shards.fd(segment, chunk // geometry.chunks_per_shard, geometry)
            first = chunk * geometry.rows_per_chunk
            crcs = columns["row_crc"][first : first + geometry.rows_per_chunk]

            def job(
                fd: int = fd,
                chunk: int = chunk,
                within: I64 = within,
                places: I64 = places,
                geometry: Geometry = geometry,
                crcs: NDArray[np.uint32] = crcs,
                chunk_crc: int = int(chunk_crcs[chunk]),
                folder: Path = segment.folder,
            ) -> None:
                with _located(folder):
                    read_chunk(
                        fd,
                        chunk,
                        within,
                        places,
                        geometry=geometry,
                        out=out,
                        row_crcs=crcs,
                        chunk_crc=chunk_crc,
                    )

            yield job


@contextmanager
def _located(folder: Path) -> Iterator[None]:
    try:
        yield
    except Damaged as error:
        raise Damaged(
            f"{folder / 'embedding'}: {error}. Run 'embedcache verify --repair' on the cache"
        ) from None


def _told(about: Mapping[str, Json], *names: str) -> str:
    return next((str(about[name]) for name in names if name in about), "unknown")
