"""Writers of vector and face segments, and the salvage of what a dead writer left behind."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.spec import Json, Stored
from embedcache.store import journal
from embedcache.store.columns import FAILED, OK, Columns, Kind, join_text
from embedcache.store.draft import Draft
from embedcache.store.faces import Faces
from embedcache.store.manifest import MAX_ROWS
from embedcache.store.shard import Geometry, Rows

U8 = NDArray[np.uint8]
FAIL_ROWS = 4096  # failures to a frame of the journal


class _Writer:
    """Rows of one segment; used as a context manager it commits unless an exception leaves it."""

    def __init__(self, begin: Callable[[], Draft], settle: Callable[[str], None]) -> None:
        self._begin = begin
        self._settle = settle
        self._draft: Draft | None = None
        self._digests: list[U8] = []
        self._failed: list[U8] = []
        self._reasons: list[str] = []
        self._synced = time.monotonic()
        self._ended = False
        self.n_written = 0

    def fail(self, digests: U8, reasons: Sequence[str]) -> None:
        """Enter k photos, (k, 32), in the failure ledger, each with its reason."""
        digests = _digests(digests, len(reasons))
        for start in range(0, len(digests), FAIL_ROWS):
            part = slice(start, start + FAIL_ROWS)
            payload = json.dumps(list(reasons[part])).encode()
            with self._writing() as draft:
                rows = digests[part]
                draft.journal.append(b"F", _count(rows) + rows.tobytes() + payload)
        if len(digests):
            self._failed.append(digests)
            self._reasons += reasons
            self.n_written += len(digests)

    def commit(self) -> str | None:
        """Publish the segment and return its id; None, and no segment, when nothing was written.

        Rows of photos that were forgotten meanwhile are taken out again before this returns, so
        that the segment may have been replaced by another one.
        """
        if self._ended:
            raise ValueError("this segment has been committed or abandoned")
        self._ended = True
        if self._draft is None:
            return None
        draft = self._draft
        try:
            good = np.concatenate([np.empty((0, 32), np.uint8), *self._digests])
            bad = np.concatenate([np.empty((0, 32), np.uint8), *self._failed])
            offsets, text = join_text(self._reasons)
            columns: Columns = {
                "digest": np.concatenate([good, bad]),
                "status": np.repeat(np.array([OK, FAILED], np.uint8), [len(good), len(bad)]),
                "reason_offset": offsets,
                "reason_text": text,
                **self._columns(),
            }
            with self._ours(draft):
                segment = draft.commit(columns, n_rows=len(good) + len(bad), n_ok=len(good))
        except BaseException:
            draft.abandon()
            raise
        draft.end(self._settle)
        return segment

    def abandon(self) -> None:
        """Stop here; what is written waits for `salvage`."""
        self._ended = True
        if self._draft is not None:
            self._draft.abandon()

    def discard(self) -> None:
        """Stop here and leave nothing: the rows lie elsewhere."""
        self._ended = True
        if self._draft is not None:
            self._draft.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ended:
            return
        if kind is None:
            self.commit()
        else:
            self.abandon()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Draft]:
        """The draft to write to; begins it, syncs it on time, abandons it on an error."""
        if self._ended:
            raise ValueError("this segment has been committed or abandoned")
        if self._draft is None:
            self._draft = self._begin()
        draft = self._draft
        try:
            with self._ours(draft):
                yield draft
                if time.monotonic() - self._synced > journal.SYNC_SECONDS:
                    draft.sync()
                    self._synced = time.monotonic()
        except BaseException:
            self.abandon()
            raise

    @contextlib.contextmanager
    def _ours(self, draft: Draft) -> Iterator[None]:
        """Say so where another process has taken the draft for a dead writer's."""
        with disk.plain_errors("write to", draft.folder):
            try:
                yield
            except FileNotFoundError:
                if draft.folder.exists():
                    raise
                raise CacheError(
                    f"{draft.folder} is gone: another process took its writer for dead and "
                    "publishes its rows. Rerun the command"
                ) from None

    def _columns(self) -> Columns:
        raise NotImplementedError


class SegmentWriter(_Writer):
    """Writes rows of `dim` numbers, and failures. Not for two threads at once."""

    def __init__(
        self, begin: Callable[[], Draft], settle: Callable[[str], None], *, dim: int, stored: Stored
    ) -> None:
        super().__init__(begin, settle)
        self.dim = dim
        self.stored = stored
        self._crcs: list[NDArray[np.uint32]] = []

    def add(self, digests: U8, vectors: Rows) -> None:
        """Write k rows, (k, dim) finite float32, of photos with `digests`, (k, 32) uint8.

        vectors: of pixels uint8 (k, dim).
        """
        digests = _digests(digests, len(vectors))
        if self.stored == "uint8" and vectors.dtype != np.uint8:
            raise ValueError(f"pixels are bytes; got {vectors.dtype}")
        rows = np.ascontiguousarray(vectors, dtype=np.dtype(self.stored).newbyteorder("<"))
        if rows.shape != (len(digests), self.dim):
            raise ValueError(f"vectors of shape {rows.shape}; expected {(len(digests), self.dim)}")
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise ValueError(f"vector {bad} of this batch is not finite")
        if not len(rows):
            return
        with self._writing() as draft:
            assert draft.stream is not None
            crcs = draft.stream.add(rows)
            draft.journal.append(b"V", _count(digests) + digests.tobytes() + crcs.tobytes())
        self._digests.append(digests)
        self._crcs.append(crcs)
        self.n_written += len(rows)

    def _columns(self) -> Columns:
        return {"row_crc": np.concatenate([np.empty(0, np.uint32), *self._crcs])}


class FaceWriter(_Writer):
    """Writes the faces of photos and failures. Not for two threads at once."""

    def __init__(self, begin: Callable[[], Draft], settle: Callable[[str], None]) -> None:
        super().__init__(begin, settle)
        self._faces: list[Faces] = []

    def add(self, digests: U8, faces: Faces) -> None:
        """Write the faces of k photos with `digests`, (k, 32); a photo may have none."""
        digests = _digests(digests, len(faces))
        if not len(digests):
            return
        arrays = _face_arrays(faces)
        for array in arrays[1:]:
            if not np.isfinite(array).all():
                raise ValueError("a box, probability or landmark of this batch is not finite")
        with self._writing() as draft:
            body = b"".join(array.tobytes() for array in arrays)
            draft.journal.append(b"A", _count(digests) + digests.tobytes() + body)
        self._digests.append(digests)
        self._faces.append(faces)
        self.n_written += len(digests)

    def _columns(self) -> Columns:
        faces = Faces.concatenate(self._faces)
        names = ("face_offset", "box", "probability", "landmark")
        arrays: list[NDArray[Any]] = [faces.offsets, faces.box, faces.probability, faces.landmark]
        return dict(zip(names, arrays, strict=True))


def vector_writer(
    segments: Path,
    *,
    space: str,
    dim: int,
    n_rows: int,
    name: str,
    about: Mapping[str, Json],
    settle: Callable[[str], None],
    segment_id: str = "",
    stored: Stored = "float32",
) -> SegmentWriter:
    """A writer of one segment of about `n_rows` vectors, failures included.

    settle: called with the segment's id once it is published (`SegmentSet.settle`).
    """
    if not 0 <= n_rows <= MAX_ROWS:
        raise ValueError(f"a segment has at most {MAX_ROWS:,} rows; {n_rows:,} are planned")
    geometry = Geometry.plan(dim=dim, n_rows=n_rows, stored=stored)

    def begin() -> Draft:
        return _begin(
            segments,
            kind="vectors",
            space=space,
            name=name,
            about=about,
            geometry=geometry,
            segment_id=segment_id,
        )

    return SegmentWriter(begin, settle, dim=dim, stored=stored)


def face_writer(
    segments: Path,
    *,
    space: str,
    about: Mapping[str, Json],
    settle: Callable[[str], None],
    segment_id: str = "",
) -> FaceWriter:
    """A writer of one segment of faces; settle: as `vector_writer` has it."""

    def begin() -> Draft:
        return _begin(
            segments, kind="faces", space=space, name="", about=about, segment_id=segment_id
        )

    return FaceWriter(begin, settle)


def _begin(segments: Path, *, kind: Kind, **rest: Any) -> Draft:
    with disk.plain_errors("write to", segments):
        return Draft(segments, kind=kind, **rest)


def _face_arrays(faces: Faces) -> list[NDArray[Any]]:
    counts = faces.counts.astype("<u4")
    rest = (faces.box, faces.probability, faces.landmark)
    return [counts, *(np.ascontiguousarray(array, dtype="<f4") for array in rest)]


def _digests(digests: U8, n: int) -> U8:
    """A private copy of (n, 32) digests: the caller may reuse its buffer."""
    array = np.array(digests, dtype=np.uint8)
    if array.shape != (n, 32):
        raise ValueError(f"digests of shape {array.shape}; expected {(n, 32)}")
    return array


def _count(digests: U8) -> bytes:
    return len(digests).to_bytes(4, "little")
