"""The two kinds of space: vectors under one spec, and faces under one detector."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import Damaged
from embedcache.spec import Json, Spec, shape_of, unnamed
from embedcache.store.checksums import U32, crc_of_rows
from embedcache.store.columns import Columns, Kind
from embedcache.store.faces import Faces
from embedcache.store.history import History
from embedcache.store.index import Table
from embedcache.store.layout import APART
from embedcache.store.reader import OpenShards, read_row, read_rows, read_rows_singly
from embedcache.store.rows import RowSet
from embedcache.store.segment import Segment
from embedcache.store.shard import Rows
from embedcache.store.writer import FaceWriter, SegmentWriter, face_writer, vector_writer
from embedcache.wording import html_table

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
W = TypeVar("W", SegmentWriter, FaceWriter)
PIXEL_SEGMENT_BYTES = 512 << 20  # to a compacted segment: a forgotten photo costs a rewrite of one
SUMMARY = ("backbone", "floats", "vectors", "failed", "spec")
BLOCK_BYTES = 8 << 20  # rows in memory at a time, while they are copied or compared


class Space(RowSet):
    """The vectors of one spec, which is its subject; or, where the spec says so, pixels.

    given: what it was called on this machine before it had a segment.
    home: where they lie on a shared copy. attributes: of its group.
    """

    kind: Kind = "vectors"
    joint_bytes: int | None = None  # compaction joins any number: rows are read one by one

    def __init__(
        self,
        folder: Path,
        spec: Spec,
        *,
        given: str = "",
        history: History | None = None,
        pins: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, spec.digest, history=history, pins=pins)
        self.given = given
        self.spec = self.subject = spec
        self.dim = spec.dim
        self.dtype = np.dtype(spec.stored).newbyteorder("<")
        if spec.kind == "pixels":
            self.joint_bytes = PIXEL_SEGMENT_BYTES
        self.home = APART if spec.apart else "spaces"
        self.attributes: dict[str, Json] = {"spec": spec.document()}
        self._shards = OpenShards()

    def __repr__(self) -> str:
        return f"<Space: {self._label}, {shape_of(self.spec)}, spec {self.digest[:8]}>"

    def _repr_html_(self) -> str:
        return html_table(repr(self)[1:-1], SUMMARY, [self.summary()])

    def summary(self) -> list[str]:
        """One cell of text for each of SUMMARY."""
        counts = self.counts()
        numbers = (self.dim, counts.ok, sum(counts.failed.values()))
        return [self._label, *(f"{n:,}" for n in numbers), self.digest[:8]]

    @property
    def absent(self) -> str:
        """Why a photo that never failed has no vector here."""
        return "without an imported vector" if self.spec.kind == "foreign" else "not embedded yet"

    @property
    def names(self) -> tuple[str, ...]:
        """What writers called this space, the earliest first."""
        return super().names or ((self.given,) if self.given else ())

    @property
    def _label(self) -> str:
        return " = ".join(self.names) or unnamed(self.spec)

    def read(self, digests: U8, *, out: Rows | None = None) -> tuple[Rows, Bool]:
        """The vectors of (n, 32) digests, verified: (float32 (n, dim), which were found).

        out: filled and returned instead of a new array; C-contiguous. Rows that are not there are
            NaN, or zeros of pixels, which are uint8. A digest may come more than once.
        Raises Damaged for a wrong byte in anything that is read.
        """
        digests = np.ascontiguousarray(digests, dtype=np.uint8)
        if out is None:
            out = self._memory(len(digests))
        if out.shape != (len(digests), self.dim) or not out.flags.c_contiguous:
            raise ValueError(f"out is a C-contiguous array of shape {(len(digests), self.dim)}")
        if out.dtype != self.dtype:
            raise ValueError(f"out is {self.spec.stored}; got {out.dtype}")

        def look(segments: list[Segment], table: Table) -> Bool:
            found, parts = self._found(segments, table, digests)
            read_rows(parts, out, n_rows=int(found.sum()), shards=self._shards)
            out[~found] = np.nan if self.spec.stored == "float32" else 0
            return found

        return out, self._steadily(look)

    def readers(self, digests: U8) -> list[Callable[[], Rows] | None]:
        """What reads the row of each of (n, 32) digests, verified; None where there is none.

        Each gives its row, (dim,), on any thread and without a look at the segments. It raises
        Damaged for a wrong byte, and where its segment was removed meanwhile.
        """
        digests = np.ascontiguousarray(digests, dtype=np.uint8)

        def look(segments: list[Segment], table: Table) -> list[Callable[[], Rows] | None]:
            found: list[Callable[[], Rows] | None] = [None] * len(digests)
            for segment, columns, rows, slots in self._found(segments, table, digests)[1]:
                crcs = columns["row_crc"][rows].tolist()
                for row, crc, slot in zip(rows.tolist(), crcs, slots.tolist(), strict=True):
                    found[slot] = partial(read_row, segment, row, crc=crc, shards=self._shards)
            return found

        return self._steadily(look)

    def row_crcs(self, digests: U8) -> tuple[U32, Bool]:
        """The CRC32C of the vectors of (n, 32) digests: ((n,), 0 where there is none; which are).

        They say whether the vectors are those of before, and none is read for it.
        """
        digests = np.ascontiguousarray(digests, dtype=np.uint8)

        def look(segments: list[Segment], table: Table) -> tuple[U32, Bool]:
            found, parts = self._found(segments, table, digests)
            crcs = np.zeros(len(digests), np.uint32)
            for _, columns, rows, slots in parts:
                crcs[slots] = columns["row_crc"][rows]
            return crcs, found

        return self._steadily(look)

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
            settle=self.settle,
            stored=self.spec.stored,
        )

    def rewrite(
        self,
        chosen: Sequence[tuple[Segment, I64]],
        *,
        about: Mapping[str, Json],
        segment_id: str = "",
    ) -> str | None:
        """Publish a segment of some rows of segments, which may lie in another cache."""
        n_rows = sum(len(rows) for _, rows in chosen)
        name = next((s.manifest.name for s, rows in chosen if len(rows)), "")
        with _rewriting(
            self.writer(n_rows=n_rows, name=name, about=about, segment_id=segment_id)
        ) as writer:
            for segment, rows in chosen:
                columns = segment.columns()
                good = rows[rows < segment.manifest.n_ok]
                for block in self._blocks(good):
                    out = self._memory(len(block))
                    part = (segment, columns, block, np.arange(len(block)))
                    try:
                        read_rows([part], out, n_rows=len(block), shards=self._shards)
                    except Damaged:  # these rows may be whole beside one that is not
                        read_rows_singly(part, out)
                    writer.add(columns["digest"][block], out)
                writer.fail(*_failures(segment, rows))
        return writer.commit()

    def distance(self, segment: Segment, rows: I64) -> F32:
        """The largest difference between some good rows of a segment and those here, (k,).

        segment: of another cache, maybe; its photos have vectors here.
        """
        digests, columns = segment.column("digest"), {"row_crc": segment.column("row_crc")}
        found = np.zeros(len(rows), dtype=np.float32)
        start = 0
        for block in self._blocks(rows):
            theirs = self._memory(len(block))
            read_rows([(segment, columns, block, np.arange(len(block)))], theirs, n_rows=len(block))
            ours, there = self.read(digests[block])
            distance = np.abs(np.subtract(ours, theirs, dtype=np.float32)).max(axis=1)
            found[start : start + len(block)] = np.where(there, distance, np.float32(0))
            start += len(block)
        return found

    def _readable(self, segment: Segment, rows: I64) -> Bool:
        """Which of some good rows of a segment can be read, each under its CRC, (k,)."""
        fine = np.ones(len(rows), dtype=np.bool_)
        columns = {"row_crc": segment.column("row_crc")}
        blocks = self._blocks(rows)
        out = self._memory(max(map(len, blocks), default=0))

        def readable(block: I64, *, singly: bool = False) -> bool:
            try:
                part = (segment, columns, block, np.arange(len(block)))
                if singly:  # a chunk with one wrong row fails as a whole
                    read_rows_singly(part, out[: len(block)])
                else:
                    read_rows([part], out[: len(block)], n_rows=len(block), shards=self._shards)
                crcs = crc_of_rows(out[: len(block)])
            except Damaged:
                return False
            return bool((crcs == columns["row_crc"][block]).all())

        start = 0
        for block in blocks:
            if not readable(block):
                for i in range(len(block)):
                    fine[start + i] = readable(block[i : i + 1], singly=True)
            start += len(block)
        return fine

    def _blocks(self, rows: I64) -> list[I64]:
        """Rows cut into parts that take no more than BLOCK_BYTES."""
        step = max(1, BLOCK_BYTES // self.spec.row_bytes)
        return [rows[start : start + step] for start in range(0, len(rows), step)]

    def _memory(self, n: int) -> Rows:
        """Memory for n rows, not set."""
        return np.empty((n, self.dim), dtype=self.dtype)

    def _reopen(self, lease: Mapping[str, Any], n_rows: int) -> SegmentWriter:
        about = dict(lease.get("about") or {})
        return self.writer(n_rows=n_rows, name=str(lease.get("name", "")), about=about)


class FaceSpace(RowSet):
    """The faces that one detector found; its document is the subject. The rest as of a `Space`."""

    kind: Kind = "faces"
    home = "faces"
    joint_bytes: int | None = 64 << 20  # to a compacted segment: readers take its columns whole

    def __init__(
        self,
        folder: Path,
        document: dict[str, Json],
        digest: str,
        *,
        history: History | None = None,
        pins: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, digest, history=history, pins=pins)
        self.document = self.subject = document
        self.attributes: dict[str, Json] = {"detector": document}

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
            self.segments_folder,
            space=self.digest,
            about=about,
            segment_id=segment_id,
            settle=self.settle,
        )

    def rewrite(
        self,
        chosen: Sequence[tuple[Segment, I64]],
        *,
        about: Mapping[str, Json],
        segment_id: str = "",
    ) -> str | None:
        """Publish a segment of some rows of segments, which may lie in another cache."""
        n_rows = sum(len(rows) for _, rows in chosen)
        with _rewriting(self.writer(n_rows=n_rows, about=about, segment_id=segment_id)) as writer:
            for segment, rows in chosen:
                columns = segment.columns()
                good = rows[rows < segment.manifest.n_ok]
                writer.add(columns["digest"][good], faces_of(segment, columns).take(good))
                writer.fail(*_failures(segment, rows))
        return writer.commit()

    def distance(self, segment: Segment, rows: I64) -> F32:
        """Faces are not compared: (k,) zeros."""
        del segment
        return np.zeros(len(rows), dtype=np.float32)

    def _readable(self, segment: Segment, rows: I64) -> Bool:
        """Which of some good rows can be read, (k,): all, where the segment's columns can."""
        faces_of(segment, segment.columns())
        return np.ones(len(rows), dtype=np.bool_)

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


@contextlib.contextmanager
def _rewriting(writer: W) -> Iterator[W]:
    """Leave no draft where rows cannot be copied: they lie in the segments that were read."""
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise


def _failures(segment: Segment, rows: I64) -> tuple[U8, list[str]]:
    """The failures among some rows of a segment: digests (k, 32), and k reasons."""
    bad = rows[rows >= segment.manifest.n_ok]
    if not len(bad):
        return np.empty((0, 32), np.uint8), []
    reasons = segment.reasons()
    n_ok = segment.manifest.n_ok
    return segment.column("digest")[bad], [reasons[row - n_ok] for row in bad.tolist()]
