"""The segments of a shared copy, believed only as far as their manifests can be checked."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import EmbedcacheError, RemoteError
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import Denied, ListedObject, Remote, Unreachable
from embedcache.sharing.belief import check_manifest
from embedcache.sharing.listing import ListedSpace
from embedcache.sharing.memo import Memo
from embedcache.sharing.refusals import Refusals, advice
from embedcache.sharing.small_objects import SmallObjects, TooMuch
from embedcache.spec import Spec
from embedcache.store.checksums import CRC_BYTES
from embedcache.store.columns import COLUMNS, column_path, split_text
from embedcache.store.layout import MAX_DOCUMENT_BYTES
from embedcache.store.manifest import MANIFEST, Manifest
from embedcache.store.sealed import MAX_MANIFEST_BYTES
from embedcache.store.tombstones import Dead

# What one run reads of a remote's manifests, whatever it lists: far from a team's needs.
MAX_MANIFESTS_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class RemoteSegment:
    """A segment of a shared copy: its key, its manifest as it was fetched, and parsed."""

    key: str
    raw: bytes = field(repr=False)
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.manifest.segment

    @property
    def n_bytes(self) -> int:
        """What a whole copy moves."""
        return len(self.raw) + self.manifest.bytes_on_disk


class Missing(RemoteError):
    """A file of a segment that is not there: the log says what took the segment's place."""


class RemoteSegments:
    """Manifests and small arrays, each fetched once and checked; what is wrong is refused.

    dead: photos that were forgotten; of them nothing that is fetched stays on this machine. While
        that is None, as it is at first, no column stays.
    """

    def __init__(
        self, remote: Remote, refusals: Refusals, objects: SmallObjects, memo: Memo
    ) -> None:
        self._remote = remote
        self._refusals = refusals
        self._objects = objects
        self._memo = memo
        self.dead: Dead | None = None
        self._read_bytes = 0
        self._known: dict[str, RemoteSegment | None] = {}

    def all(
        self, space: ListedSpace, names: Iterable[str], *, pool: Executor, spec: Spec | None = None
    ) -> list[RemoteSegment]:
        """Some listed segments, fetched several at once; those refused are left out.

        Raises Denied where nothing of the space may be read: this member has no right to it.
        """

        def one(name: str) -> RemoteSegment | Denied | None:
            try:
                return self.one(space, name, spec=spec)
            except Denied as error:
                return error

        names = sorted(names)
        found = list(pool.map(one, names))
        denied = [(n, e) for n, e in zip(names, found, strict=True) if isinstance(e, Denied)]
        if denied and len(denied) == len(names):
            # Raises Denied too where this member may read nothing of the space.
            read_small(self._remote, f"{space.key}/zarr.json", limit=MAX_DOCUMENT_BYTES)
        for name, error in denied:
            self._refusals.segment(name, error)
        return [segment for segment in found if isinstance(segment, RemoteSegment)]

    def one(
        self, space: ListedSpace, name: str, *, spec: Spec | None = None
    ) -> RemoteSegment | None:
        """A listed segment; None where it is unfinished, gone or refused."""
        entry = space.segments[name].get(MANIFEST)
        if entry is None:
            return None
        if entry.key not in self._known:
            try:
                self._known[entry.key] = self._read(space, entry, name, spec)
            except FileNotFoundError:
                self._known[entry.key] = None  # removed since it was listed
            except (Unreachable, Denied, TooMuch):
                raise
            except EmbedcacheError as error:
                self._known[entry.key] = None
                self._refusals.segment(name, error)
        return self._known[entry.key]

    def _read(
        self, space: ListedSpace, entry: ListedObject, name: str, spec: Spec | None
    ) -> RemoteSegment:
        raw = self._objects.read(entry, limit=MAX_MANIFEST_BYTES)
        self._read_bytes += len(raw)
        if self._read_bytes > MAX_MANIFESTS_BYTES:
            raise TooMuch(f"{self._remote.name} has too many manifests: refused")
        digest = space.digest or None
        manifest = Manifest.parse(raw, segment=name, kind=space.kind, space=digest)
        check_manifest(manifest, spec=spec)
        return RemoteSegment(f"{space.key}/segments/{name}", raw, manifest)

    def refuse(self, segment: RemoteSegment, error: Exception) -> None:
        """From now on a segment counts as absent: what was fetched of it was wrong."""
        self._refusals.segment(segment.id, error)
        self._known[f"{segment.key}/{MANIFEST}"] = None

    def column(self, segment: RemoteSegment, name: str) -> NDArray[Any]:
        """A small array of a segment, checked against its manifest.

        Raises RemoteError for a wrong one, and Missing for one that is not there.
        """
        manifest = segment.manifest
        shape = manifest.column_shape(name)
        little = np.dtype(COLUMNS[manifest.kind][name].dtype).newbyteorder("<")
        path = column_path(name, len(shape))
        if path not in manifest.files:
            return np.empty(shape, dtype=little)
        size, digest = manifest.files[path]

        def fetch() -> bytes:
            with requiring(self._remote, segment, path):
                raw = read_small(self._remote, f"{segment.key}/{path}", limit=size)
            if len(raw) != size or sha256(raw).hexdigest() != digest:
                raise wrong_bytes(self._remote, segment, path)
            return raw

        def parsed(raw: bytes) -> NDArray[Any]:
            return np.frombuffer(raw[:-CRC_BYTES], dtype=little).reshape(shape)

        def may_be_kept(raw: bytes) -> bool:
            if self.dead is None:
                return False
            return not self.dead or (
                manifest.kind != "photos"
                and not (name == "digest" and self.dead.of(parsed(raw)).any())
            )

        return parsed(self._memo.get(f"{size}-{digest}", fetch, may_be_kept))

    def digests(self, segment: RemoteSegment) -> NDArray[np.uint8] | None:
        """The contents of a segment's rows, (n, 32); None, and it is refused, for wrong ones."""
        try:
            return self.column(segment, "digest")
        except (Unreachable, TooMuch):
            raise
        except RemoteError as error:
            self.refuse(segment, error)
            return None

    def ids(self, segment: RemoteSegment) -> tuple[list[str], NDArray[np.uint8]]:
        """The ids and contents, (n, 32), of a photo segment."""
        offsets, text = (self.column(segment, name) for name in ("id_offset", "id_text"))
        ids = split_text(offsets, text, Path(segment.key))
        return ids, self.column(segment, "digest")

    def dead_rows(self, segment: RemoteSegment, dead: Dead) -> NDArray[np.bool_]:
        """Which rows of a segment are dead, (n,); errors as `column` has them."""
        if segment.manifest.kind != "photos":
            return dead.of(self.column(segment, "digest"))
        ids, digests = self.ids(segment)
        return dead.of_pairs(segment.manifest.name, ids, digests)

    def reasons(self, segment: RemoteSegment) -> list[str]:
        """Why each failed row failed."""
        offsets, text = (self.column(segment, name) for name in ("reason_offset", "reason_text"))
        return split_text(offsets, text, Path(segment.key))


@contextmanager
def requiring(remote: Remote, segment: RemoteSegment, path: str) -> Iterator[None]:
    """Raise Missing where a file of a segment is not there."""
    try:
        yield
    except FileNotFoundError:
        raise Missing(
            f"{path} is not there",
            asked=f"segment {segment.id} at {remote.name}",
            advice=advice(remote),
        ) from None


def has_bytes(remote: Remote, key: str, *, size: int, digest: str) -> bool:
    """Whether an object has this size and sha256; no more of it is read than tells."""
    running, got = sha256(), 0
    for block in remote.blocks(key, length=size + 1):
        running.update(block)
        got += len(block)
        if got > size:
            break
    return got == size and running.hexdigest() == digest


def wrong_bytes(remote: Remote, segment: RemoteSegment, path: str) -> RemoteError:
    """The error for bytes that do not match the manifest."""
    return RemoteError(
        f"{path} is not what was written, so the segment is refused",
        asked=f"segment {segment.id} at {remote.name}",
        advice=advice(remote),
    )
