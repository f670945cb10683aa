"""One segment: an immutable Zarr group that exists once its manifest does.

`Draft` writes one, under the commit protocol of docs/format.md. `Segment` reads one: every file but
the shards of `embedding` is checked against the manifest when it is first needed, the shards chunk
by chunk or row by row.
"""

import contextlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache import disk, journal
from embedcache.errors import Damaged
from embedcache.manifest import (
    COLUMNS,
    ITEM_BYTES,
    MAX_MANIFEST_BYTES,
    SEGMENT_ID,
    Kind,
    Manifest,
    new_segment_id,
    own_digest,
    own_name,
)
from embedcache.shard import (
    CRC_BYTES,
    Geometry,
    RowStream,
    array_document,
    crc32c,
    encode_document,
    group_document,
)
from embedcache.spec import Json

U8 = NDArray[np.uint8]
Columns = dict[str, NDArray[Any]]

MANIFEST = "manifest.json"
OK, FAILED = 1, 2
_GROUP = encode_document(group_document({}))


class Draft:
    """A segment that is being written: a folder, a journal, and for vectors a stream of rows."""

    def __init__(
        self,
        segments: Path,
        *,
        kind: Kind,
        space: str,
        name: str,
        about: Mapping[str, Json],
        geometry: Geometry | None = None,
        segment_id: str = "",
    ) -> None:
        self.id = segment_id or new_segment_id()
        self.kind = kind
        self.space = space
        self.name = name
        self.about = dict(about)
        self.folder = segments / self.id
        hidden = segments / f".new-{self.id}"
        hidden.mkdir()
        lease: dict[str, Json] = {"kind": kind, "space": space, "name": name, "about": self.about}
        if geometry is not None:
            lease["rows_per_chunk"] = geometry.rows_per_chunk
            lease["chunks_per_shard"] = geometry.chunks_per_shard
            lease["dim"] = geometry.dim
        self.journal = journal.Journal(hidden, lease)
        hidden.rename(self.folder)
        self.journal.moved(self.folder)
        self.stream = RowStream(self.folder / "embedding", geometry) if geometry else None

    def sync(self) -> None:
        """Make all rows so far durable."""
        if self.stream is not None:
            self.stream.sync()
        self.journal.sync()

    def commit(self, columns: Columns, *, n_rows: int, n_ok: int) -> str:
        """Write the columns and publish the manifest: from now on the segment exists."""
        files: dict[str, tuple[int, str]] = {}
        chunk_crcs: list[int] = []
        documents = {"zarr.json": _GROUP}
        if self.stream is not None:
            self.stream.end()
            geometry = self.stream.geometry
            documents["embedding/zarr.json"] = array_document(
                (n_rows, geometry.dim), "float32", geometry=geometry
            )
        for name, column in COLUMNS[self.kind].items():
            array = np.ascontiguousarray(columns[name], dtype=np.dtype(column.dtype))
            documents[f"{name}/zarr.json"] = array_document(array.shape, column.dtype)
            if array.size:
                raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
                raw += struct.pack("<I", crc32c(raw))
                files[column_path(name, array.ndim)] = self._write(
                    column_path(name, array.ndim), raw
                )
        for path, document in documents.items():
            files[path] = self._write(path, document)
        if self.stream is not None:
            written, chunk_crcs = self.stream.finish()
            files |= {f"embedding/{path}": entry for path, entry in written.items()}
        disk.sync_tree(self.folder, but=journal.FOLDER)  # closing the journal would unlock it
        manifest = Manifest(
            segment=self.id,
            kind=self.kind,
            space=self.space,
            n_rows=n_rows,
            n_ok=n_ok,
            lengths={name: len(columns[name]) for name in COLUMNS[self.kind]},
            geometry=self.stream.geometry if self.stream else None,
            chunk_crcs=np.array(chunk_crcs, dtype="<u4").tobytes(),
            files=files,
            name=self.name,
            about=self.about,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            digest="",
        ).encode()
        try:  # what no reader would take is not published
            Manifest.parse(manifest, segment=self.id, kind=self.kind, space=self.space)
        except Damaged as error:
            raise ValueError(f"more than a segment may hold: write fewer rows ({error})") from None
        disk.publish(self.folder / MANIFEST, manifest)
        disk.sync_folder(self.folder.parent)
        disk.remove_folder(self.folder / journal.FOLDER)
        self.journal.close()
        return self.id

    def abandon(self) -> None:
        """Stop, leaving what is written for salvage."""
        if self.stream is not None:
            self.stream.close()
        with contextlib.suppress(OSError):
            self.journal.abandon()
        self.journal.close()

    def discard(self) -> None:
        """Stop, leaving nothing."""
        if self.stream is not None:
            self.stream.close()
        disk.remove_folder(self.folder)
        self.journal.close()

    def _write(self, path: str, data: bytes) -> tuple[int, str]:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        disk.write_new(target, data, durable=False)
        return len(data), sha256(data).hexdigest()


def column_path(name: str, n_dims: int) -> str:
    """Where a small array's one chunk lies in its segment."""
    return f"{name}/c" + "/0" * n_dims


@dataclass(slots=True)
class Segment:
    """A committed segment, for reading.

    Its manifest has been read and is as it was written (`digest` is its own, which refs pin), but
    is parsed only when something in it is asked for: a cache may have thousands.
    """

    path: str
    kind: Kind
    space: str | None
    digest: str
    name: str
    _raw: bytes = field(repr=False)
    _manifest: Manifest | None = field(default=None, repr=False)
    _checked: bool = field(default=False, repr=False)

    @property
    def folder(self) -> Path:
        return Path(self.path)

    @property
    def cache(self) -> str:
        """The folder of the cache that it lies in."""
        return cache_of(self.path)

    @property
    def id(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def manifest(self) -> Manifest:
        if self._manifest is None:
            self._manifest = Manifest.parse(
                self._raw, segment=self.id, kind=self.kind, space=self.space
            )
            self._raw = b""
        return self._manifest

    @classmethod
    def read(cls, path: str, *, kind: Kind, space: str | None = None) -> "Segment":
        """Read the manifest in folder `path`; FileNotFoundError where there is none."""
        where = f"{path}/{MANIFEST}"
        fd = disk.open_plain(where)
        try:
            size = os.fstat(fd).st_size
            raw = os.read(fd, size) if size <= MAX_MANIFEST_BYTES else b""
        finally:
            os.close(fd)
        digest = own_digest(raw)
        if digest is None:
            raise Damaged(f"{where} is not as it was written. {advice(path)}")
        return cls(path, kind, space, digest, own_name(raw), raw)

    def column(self, name: str) -> NDArray[Any]:
        """A small array, whole, read-only and verified against the manifest."""
        self._check_documents()
        shape, dtype = self.manifest.column_shape(name), COLUMNS[self.manifest.kind][name].dtype
        size = ITEM_BYTES[dtype]
        for side in shape:
            size *= side
        little = np.dtype(dtype).newbyteorder("<")
        if not size:
            return np.empty(shape, dtype=little)
        raw = self._file(column_path(name, len(shape)), size=size + CRC_BYTES)
        array = np.frombuffer(raw, dtype=little, count=size // ITEM_BYTES[dtype]).reshape(shape)
        if crc32c(array) != int.from_bytes(raw[-CRC_BYTES:], "little"):
            raise Damaged(f"{self.folder / name} fails its CRC32C")
        return array

    def columns(self) -> Columns:
        """All small arrays, verified."""
        return {name: self.column(name) for name in COLUMNS[self.manifest.kind]}

    def reasons(self) -> list[str]:
        """Why each failed row failed, in row order after the good ones."""
        return split_text(self.column("reason_offset"), self.column("reason_text"), self.folder)

    def documents(self) -> dict[str, bytes]:
        """Every zarr.json that format 1 prescribes, by its path in the segment."""
        found = {"zarr.json": _GROUP}
        if (geometry := self.manifest.geometry) is not None:
            shape = (self.manifest.n_rows, geometry.dim)
            found["embedding/zarr.json"] = array_document(shape, "float32", geometry=geometry)
        for name, column in COLUMNS[self.manifest.kind].items():
            shape_of = self.manifest.column_shape(name)
            found[f"{name}/zarr.json"] = array_document(shape_of, column.dtype)
        return found

    def _check_documents(self) -> None:
        if self._checked:
            return
        self.manifest.check_files()
        for path, expected in self.documents().items():
            if self._file(path, size=len(expected)) != expected:
                raise Damaged(f"{self.folder / path} is not as format 1 has it")
        self._checked = True

    def _file(self, path: str, *, size: int) -> bytes:
        """A file that the manifest names, whole, checked; `size` is what it must have."""
        entry = self.manifest.files.get(path)
        if entry is None or entry[0] != size:
            raise Damaged(f"the manifest of {self.id} does not name {path} ({size:,} bytes)")
        try:
            raw = disk.read_inside(self.folder, path, limit=size)
        except FileNotFoundError:
            raise Damaged(f"{self.folder / path} is missing") from None
        if len(raw) != size or sha256(raw).hexdigest() != entry[1]:
            raise Damaged(f"{self.folder / path} is not what was written")
        return raw


def segment_folders(segments: Path) -> list[str]:
    """Folders that are, or are going to be, segments; Damaged for a link or a foreign name."""
    found = []
    with os.scandir(segments) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name == "zarr.json":
                continue
            if not SEGMENT_ID.fullmatch(name) or not entry.is_dir(follow_symlinks=False):
                raise Damaged(f"{entry.path} is no segment: move it out of the cache")
            found.append(entry.path)
    return sorted(found)


def cache_of(path: str) -> str:
    """The folder of the cache in which a segment's folder lies."""
    space = path.rsplit("/", 2)[0]
    return space.rsplit("/", 1 if space.endswith("/photos") else 2)[0]


def advice(path: str) -> str:
    """What to do about a segment's folder that is not as it was written."""
    return f"Run 'embedcache verify {cache_of(path)}'"


def read_segment(path: str, *, kind: Kind, space: str | None = None) -> Segment | None:
    """The segment in a folder; None while it is being written, or once it has been removed."""
    for _ in range(2):  # a commit may fall between the two looks
        try:
            return Segment.read(path, kind=kind, space=space)
        except FileNotFoundError:
            if Path(path, journal.FOLDER).is_dir() or not Path(path).exists():
                return None
    raise Damaged(f"{path}/{MANIFEST} is missing. {advice(path)}")


def list_segments(
    segments: Path,
    *,
    kind: Kind,
    space: str | None = None,
    known: Mapping[str, Segment],
    pins: Mapping[str, str] | None,
) -> dict[str, Segment]:
    """{path: segment} of what is committed, lowest id first, and only what `pins` name.

    known: segments read before, which are not read again. Raises Damaged for a segment that is not
    whole, or a pinned one that is gone.
    """
    found = {}
    for path in segment_folders(segments):
        if pins is None or path.rpartition("/")[2] in pins:
            segment = known.get(path) or read_segment(path, kind=kind, space=space)
            if segment is not None:
                found[path] = segment
    check_pins(segments, {segment.id: segment for segment in found.values()}, pins)
    return found


def check_pins(where: Path, found: Mapping[str, Segment], pins: Mapping[str, str] | None) -> None:
    """Damaged unless every segment that a ref pins is there, and is the one it pinned."""
    for name, digest in (pins or {}).items():
        if name not in found or found[name].digest != digest:
            now = "another one now" if name in found else "gone"
            raise Damaged(
                f"segment {name} of {where}, which the ref pins, is {now}. "
                f"{advice(f'{where}/{name}')}"
            )


def join_text(texts: list[str]) -> tuple[NDArray[np.int64], U8]:
    """(offsets (n+1,), UTF-8 bytes) of n texts."""
    encoded = [text.encode("utf-8", "backslashreplace") for text in texts]
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return offsets, np.frombuffer(b"".join(encoded), dtype=np.uint8)


def split_text(offsets: NDArray[np.int64], text: U8, where: Path) -> list[str]:
    """Undo `join_text`; Damaged for offsets that do not fit or bytes that are not UTF-8."""
    if offsets[0] != 0 or offsets[-1] != len(text) or bool((np.diff(offsets) < 0).any()):
        raise Damaged(f"{where}: its text offsets do not fit its text")
    raw, cuts = text.tobytes(), offsets.tolist()
    try:
        return [raw[a:b].decode() for a, b in pairwise(cuts)]
    except UnicodeDecodeError:
        raise Damaged(f"{where} holds text that is not UTF-8: refused") from None
