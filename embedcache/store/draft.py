"""A segment being written: an unpublished folder that becomes a segment or is salvaged."""

import contextlib
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.spec import Json
from embedcache.store import journal
from embedcache.store.checksums import crc32c
from embedcache.store.columns import COLUMNS, Columns, Kind, column_path
from embedcache.store.disposal import discard
from embedcache.store.manifest import MANIFEST, Manifest, new_segment_id
from embedcache.store.segment import GROUP, cache_of
from embedcache.store.shard import Geometry, RowStream
from embedcache.store.zarr_json import array_document


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
        self._cache = Path(cache_of(str(self.folder)))
        hidden = segments / f".new-{self.id}-{disk.mark_of_process()}"
        hidden.mkdir()
        lease: dict[str, Json] = {"kind": kind, "space": space, "name": name, "about": self.about}
        if geometry is not None:
            lease["rows_per_chunk"] = geometry.rows_per_chunk
            lease["chunks_per_shard"] = geometry.chunks_per_shard
            lease["dim"] = geometry.dim
            if geometry.stored != "float32":
                lease["dtype"] = geometry.stored
        try:
            self.journal = journal.Journal(hidden, lease)
            hidden.rename(self.folder)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.delete_folder(hidden)
            raise
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
        documents = {"zarr.json": GROUP}
        if self.stream is not None:
            self.stream.end()
            geometry = self.stream.geometry
            documents["embedding/zarr.json"] = array_document(
                (n_rows, geometry.dim), geometry.stored, geometry=geometry
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
        return self.id

    def end(self, settle: Callable[[str], None]) -> None:
        """After `commit`: settle the segment (`SegmentSet.settle`), and say that nobody writes it.

        In this order, so that the next salvage settles it where this process is killed before.
        """
        try:
            settle(self.id)
            with disk.plain_errors("write to", self.folder):
                discard(self.folder / journal.FOLDER, cache=self._cache)
        finally:
            self.journal.close()

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
        discard(self.folder, cache=self._cache)
        self.journal.close()

    def _write(self, path: str, data: bytes) -> tuple[int, str]:
        target = self.folder / path
        disk.make_folder(target.parent, below=self.folder, durable=False)
        disk.write_new(target, data, durable=False)
        return len(data), sha256(data).hexdigest()
