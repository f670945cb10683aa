"""One segment: an immutable Zarr group that exists once its manifest does.

`Draft` writes one, under the commit protocol of docs/format.md. `Segment` reads one: every file but
the shards of `embedding` is checked against the manifest when it is first needed, the shards chunk
by chunk or row by row.
"""

import os
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.store import journal
from embedcache.store.checksums import CRC_BYTES, crc32c
from embedcache.store.columns import COLUMNS, ITEM_BYTES, Columns, Kind, column_path, split_text
from embedcache.store.manifest import MANIFEST, Manifest, is_segment_id, own_name
from embedcache.store.sealed import MAX_MANIFEST_BYTES, own_digest
from embedcache.store.zarr_json import array_document, encode_document, group_document

NO_LINKS = "Move it out of the cache"
GROUP = encode_document(group_document({}))


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
            raise Damaged(f"{where} is not as it was written", advice=advice(path))
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
        found = {"zarr.json": GROUP}
        if (geometry := self.manifest.geometry) is not None:
            shape = (self.manifest.n_rows, geometry.dim)
            found["embedding/zarr.json"] = array_document(shape, geometry.stored, geometry=geometry)
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
                raise Damaged(f"{self.folder / path} is not as format 1 defines it")
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


def segment_folders(segments: Path, *, gone: Callable[[str], bool] | None = None) -> list[str]:
    """Folders that are, or are going to be, segments; Damaged for a link or a foreign name.

    gone: whether a segment was removed, by its id; those are left out.
    """
    found = []
    with os.scandir(segments) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name == "zarr.json":
                continue
            if gone is not None and gone(name):
                continue
            if entry.is_symlink():
                raise Damaged(f"{entry.path} is a link: refused", advice=NO_LINKS)
            if not is_segment_id(name) or not entry.is_dir(follow_symlinks=False):
                raise Damaged(
                    f"{entry.path} is not a segment",
                    advice=f"'embedcache verify --repair {cache_of(entry.path)}' sets it aside",
                )
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
    raise Damaged(f"{path}/{MANIFEST} is missing", advice=advice(path))


def list_segments(
    segments: Path,
    *,
    kind: Kind,
    space: str | None = None,
    known: Mapping[str, Segment],
    wanted: Container[str] | None,
    gone: Callable[[str], bool] | None = None,
) -> dict[str, Segment]:
    """{path: segment} of what is committed, lowest id first, and only `wanted` ids.

    known: segments read before, which are not read again. gone: as `segment_folders` has it.
    Raises Damaged for a segment that is not whole.
    """
    found = {}
    for path in segment_folders(segments, gone=gone):
        if wanted is None or path.rpartition("/")[2] in wanted:
            segment = known.get(path) or read_segment(path, kind=kind, space=space)
            if segment is not None:
                found[path] = segment
    return found
