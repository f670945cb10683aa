"""What a remote says it holds, believed only as far as it can be checked.

A remote is laid out as a cache is (docs/format.md), but for spaces of face crops, which lie under
`face-spaces/` so that storage rights can differ. Every name, path and size used here comes out of
this module's own patterns and the store's manifest parser, never straight from a listing; sizes are
checked before memory is taken; what was fetched once is remembered in the cache's `local/`.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import CacheError, EmbedcacheError, RemoteError
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import UNSEEN, Denied, Entry, Remote, Unreachable
from embedcache.sharing.belief import check_manifest
from embedcache.sharing.memo import Memo
from embedcache.spec import Json, Spec
from embedcache.store.checksums import CRC_BYTES
from embedcache.store.columns import COLUMNS, Kind, column_path, split_text
from embedcache.store.layout import (
    APART,
    GROUPS,
    KINDS,
    MAX_DOCUMENT_BYTES,
    face_digest,
    root_document,
)
from embedcache.store.manifest import MANIFEST, Manifest
from embedcache.store.refs import MAX_REF_BYTES, Pins, parse_ref
from embedcache.store.sealed import MAX_MANIFEST_BYTES, own_digest
from embedcache.store.tombstones import MAX_BYTES as MAX_TOMBSTONE_BYTES
from embedcache.store.tombstones import Tombstones, parse_tombstone
from embedcache.store.zarr_json import encode_document, group_document

U8 = NDArray[np.uint8]

ROOTS = ("spaces", APART, "faces", "photos")
# Bounds of what one run takes in of a remote, whatever that says; all are far from a team's needs.
MAX_MANIFESTS_BYTES = 256 << 20
MAX_SMALL_BYTES = 256 << 20
MAX_ROWS = 1 << 25
_SEGMENT = r"segments/(?P<segment>\d{8}T\d{12}-[0-9a-f]{8})/(?P<path>[a-z0-9_/]+(?:\.json)?)"
_KEY = re.compile(rf"(?:[a-z-]+)/(?:(?P<space>[0-9a-f]{{64}})/)?{_SEGMENT}")
_TOMBSTONE = re.compile(r"forgotten/(\d{8}T\d{12}-[0-9a-f]{8}\.json)")
_REF = re.compile(r"refs/([A-Za-z0-9][A-Za-z0-9._-]{0,99})\.json")


class TooMuch(RemoteError):
    """A shared copy that holds more than is taken in at once."""


@dataclass(frozen=True, slots=True)
class Shared:
    """A segment on a remote: its key, its manifest as it was fetched, and parsed."""

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


@dataclass(slots=True)
class Holding:
    """One space on a remote: where it lies, and its listed segments {id: {path: entry}}."""

    root: str
    digest: str
    segments: dict[str, dict[str, Entry]] = field(default_factory=dict)
    listed: bool = False

    @property
    def key(self) -> str:
        return f"{self.root}/{self.digest}" if self.digest else self.root

    @property
    def kind(self) -> Kind:
        return KINDS[self.root]

    @property
    def unfinished(self) -> int:
        """Listed segments without a manifest."""
        return sum(MANIFEST not in files for files in self.segments.values())


class Catalogue:
    """A remote's listing, fetched once. problems: what was refused, one text each."""

    def __init__(self, remote: Remote, memo: Path | None = None) -> None:
        self.remote = remote
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._memo = Memo(memo)
        self._fetched = 0
        self._rows_of: dict[str, int] = {}
        self._listed: dict[str, list[Entry]] = {}
        self._shared: dict[str, Shared | None] = {}

    def exists(self) -> bool:
        """Whether a shared copy of this format is there; RemoteError where something else is."""
        try:
            raw = read_small(self.remote, "zarr.json", limit=MAX_DOCUMENT_BYTES)
        except FileNotFoundError:
            return False
        if raw != encode_document(root_document()):
            raise RemoteError(
                f"{self.remote.name} holds something that is no shared copy of format 1: name "
                "another place, or update embedcache"
            )
        return True

    def require(self) -> None:
        """RemoteError unless a shared copy is there."""
        if not self.exists():
            raise RemoteError(
                f"there is no shared copy at {self.remote.name}. 'embedcache push DIR "
                f"{self.remote.name}' makes one"
            )

    def holdings(self, root: str) -> dict[str, Holding]:
        """The spaces under one of ROOTS by digest; for "photos" one, whose digest is ""."""
        found: dict[str, Holding] = {}
        for entry in self._list(root):
            place = _KEY.fullmatch(entry.key)
            if place and bool(place["space"]) == (root != "photos"):
                holding = found.setdefault(
                    place["space"] or "", Holding(root, place["space"] or "")
                )
                holding.segments.setdefault(place["segment"], {})[place["path"]] = entry
            elif re.fullmatch(rf"{root}/[0-9a-f]{{64}}/zarr\.json", entry.key):
                digest = entry.key.split("/")[1]
                found.setdefault(digest, Holding(root, digest)).listed = True
        return found

    def check_groups(self, holding: Holding) -> None:
        """Note group documents around a space that are not as format 1 has them."""
        expected = encode_document(group_document({}))
        wanted = {f"{part}/zarr.json" for part in (holding.root, f"{holding.key}/segments")}
        for entry in self._list(holding.root):
            if entry.key not in wanted:
                continue
            with contextlib.suppress(Denied, FileNotFoundError), self._refusing(entry.key):
                if self._small(entry, MAX_DOCUMENT_BYTES, expected.__eq__) != expected:
                    raise RemoteError("it is not as format 1 has it")

    def keys(self, root: str) -> set[str]:
        """All keys under a root."""
        return {entry.key for entry in self._list(root)}

    def spec(self, holding: Holding) -> Spec:
        """The spec of a space; RemoteError for one that is not named after it."""
        try:
            return Spec.parse(self._attributes(holding, "spec"))
        except RemoteError:
            raise
        except CacheError as error:
            raise RemoteError(
                f"{holding.key} of {self.remote.name} is left out: {error}. {advice(self.remote)}"
            ) from None

    def detector(self, holding: Holding) -> dict[str, Json]:
        """The document of a detector."""
        return self._attributes(holding, "detector")

    def shared(self, holding: Holding, segment: str, *, dim: int = 0) -> Shared | None:
        """A listed segment; None where it is unfinished, or refused (see `problems`)."""
        entry = holding.segments[segment].get(MANIFEST)
        if entry is None:
            return None
        if entry.key not in self._shared:
            try:
                self._shared[entry.key] = self._read(holding, entry, segment, dim)
            except FileNotFoundError:
                self._shared[entry.key] = None  # removed since it was listed
            except (Unreachable, Denied, TooMuch):
                raise
            except EmbedcacheError as error:
                self._shared[entry.key] = None
                self.refuse(segment, error)
        return self._shared[entry.key]

    def all_shared(
        self, holding: Holding, names: Iterable[str], *, pool: Executor, dim: int = 0
    ) -> list[Shared]:
        """Some listed segments, fetched several at once; those refused are left out.

        Raises Denied where nothing of the space may be read: this member has no right to it.
        """

        def one(name: str) -> Shared | Denied | None:
            try:
                return self.shared(holding, name, dim=dim)
            except Denied as error:
                return error

        names = sorted(names)
        found = list(pool.map(one, names))
        denied = [(n, e) for n, e in zip(names, found, strict=True) if isinstance(e, Denied)]
        if denied and len(denied) == len(names):
            # Raises Denied too where the whole part is not for this member.
            read_small(self.remote, f"{holding.key}/zarr.json", limit=MAX_DOCUMENT_BYTES)
        for name, error in denied:
            self.refuse(name, error)
        return [shared for shared in found if isinstance(shared, Shared)]

    def column(self, shared: Shared, name: str) -> NDArray[Any]:
        """A small array of a segment, checked against its manifest.

        Raises RemoteError for a wrong one, and where all digests together are too many to hold.
        """
        manifest = shared.manifest
        shape = manifest.column_shape(name)
        little = np.dtype(COLUMNS[manifest.kind][name].dtype).newbyteorder("<")
        path = column_path(name, len(shape))
        if path not in manifest.files:
            return np.empty(shape, dtype=little)
        size, digest = manifest.files[path]
        if name == "digest":
            self._rows_of[shared.key] = manifest.n_rows
            if sum(self._rows_of.values()) > MAX_ROWS:
                raise TooMuch(
                    f"{self.remote.name} has over {MAX_ROWS:,} rows to look at: name fewer "
                    "with --backbone"
                )

        def fetch() -> bytes:
            raw = read_small(self.remote, f"{shared.key}/{path}", limit=size)
            if len(raw) != size or sha256(raw).hexdigest() != digest:
                raise wrong_bytes(self.remote, shared, path)
            return raw

        raw = self._memo.get(f"{size}-{digest}", fetch)
        return np.frombuffer(raw[:-CRC_BYTES], dtype=little).reshape(shape)

    def reasons(self, shared: Shared) -> list[str]:
        """Why each failed row failed."""
        offsets, text = (self.column(shared, name) for name in ("reason_offset", "reason_text"))
        return split_text(offsets, text, Path(shared.key))

    def tombstones(self) -> dict[str, bytes]:
        """{file name: bytes} of all tombstones, each checked.

        Raises RemoteError for one that is damaged or cannot be seen: whom it names is not known, so
        nothing may come.
        """
        found = {}
        for name, entry, raw in self._documents("forgotten", _TOMBSTONE, MAX_TOMBSTONE_BYTES):
            try:
                parse_tombstone(raw, name=name)
            except CacheError as error:
                raise RemoteError(
                    f"{entry.key} of {self.remote.name} says which photos were forgotten, and is "
                    f"damaged ({error}), so nothing was moved. Run the same command again; if this "
                    "stays, remove it there and push from a cache that holds it"
                ) from None
            found[name] = raw
        return found

    def gone(self) -> Tombstones:
        """All that was forgotten, as the store has it."""
        found: dict[bytes, str] = {}
        for name, raw in sorted(self.tombstones().items()):
            found.update(dict.fromkeys(parse_tombstone(raw, name=name), name))
        return found

    def refs(self) -> dict[str, tuple[Pins, bytes]]:
        """{name: (pins, bytes)} of all refs, each checked."""
        found = {}
        for name, entry, raw in self._documents("refs", _REF, MAX_REF_BYTES):
            with self._refusing(entry.key):
                found[name] = parse_ref(raw, name=name, where=self.remote.name), raw
        return found

    def locked(self, root: str) -> None:
        """Note that a part is left out because this member may not read it."""
        self.notes.append(f"you have no right to read {root}/ of {self.remote.name}: left out")

    def exclude(self, shared: Shared) -> None:
        """From now on a segment counts as not there: what came of it was wrong."""
        self._shared[f"{shared.key}/{MANIFEST}"] = None

    def refuse(self, segment: str, error: object) -> None:
        """Note that a segment is left out, and why."""
        then = advice(self.remote)
        told = str(error).removeprefix(f"segment {segment} at {self.remote.name}: ")
        told = told.partition(". Run 'embedcache verify")[0]  # of a cache: this is none
        told = told if then in told else f"{told}. {then}"
        self.problems.append(f"segment {segment} at {self.remote.name} is left out: {told}")

    @contextlib.contextmanager
    def _refusing(self, key: str) -> Iterator[None]:
        try:
            yield
        except (Unreachable, Denied, TooMuch):
            raise
        except CacheError as error:
            self.problems.append(
                f"{key} of {self.remote.name} is left out: {error}. {advice(self.remote)}"
            )

    def _documents(
        self, root: str, named: re.Pattern[str], limit: int
    ) -> Iterator[tuple[str, Entry, bytes]]:
        """The small objects of a root whose key fits a pattern: (name in it, entry, bytes)."""
        total = 0
        for entry in self._list(root):
            if place := named.fullmatch(entry.key):
                raw = self._small(entry, limit)
                total += len(raw)  # not what the listing says
                if total > MAX_SMALL_BYTES:
                    raise TooMuch(f"{self.remote.name} has too much under {root}/: refused")
                yield place[1], entry, raw

    def _small(
        self, entry: Entry, limit: int, good: Callable[[bytes], bool] | None = None
    ) -> bytes:
        if entry.size > limit:
            raise RemoteError(f"{entry.key} of {self.remote.name} is too large: refused")
        name = f"{entry.key} {entry.size} {entry.tag}"
        return self._memo.get(
            name, lambda: read_small(self.remote, entry.key, limit=limit), good or _sealed
        )

    def _read(self, holding: Holding, entry: Entry, segment: str, dim: int) -> Shared:
        raw = self._small(entry, MAX_MANIFEST_BYTES)
        self._fetched += len(raw)
        if self._fetched > MAX_MANIFESTS_BYTES:
            raise TooMuch(f"{self.remote.name} has too many manifests: refused")
        space = holding.digest or None
        manifest = Manifest.parse(raw, segment=segment, kind=holding.kind, space=space)
        check_manifest(manifest, dim=dim)
        return Shared(f"{holding.key}/segments/{segment}", raw, manifest)

    def _attributes(self, holding: Holding, name: str) -> dict[str, Json]:
        key = f"{holding.key}/zarr.json"
        try:
            raw = read_small(self.remote, key, limit=MAX_DOCUMENT_BYTES)
            document = json.loads(raw)["attributes"]["embedcache"]
            found = document[name]
            if (
                raw == encode_document(group_document({"embedcache": document}))
                and isinstance(found, dict)
                and face_digest(found) == holding.digest
            ):
                return found
        except (FileNotFoundError, ValueError, RecursionError, KeyError, TypeError):
            pass
        raise RemoteError(
            f"{key} of {self.remote.name} does not describe its space: refused. "
            f"{advice(self.remote)}"
        )

    def _list(self, root: str) -> list[Entry]:
        if root not in self._listed:
            try:
                found = list(self.remote.list(f"{root}/"))
                for entry in found if root == "forgotten" else ():
                    if entry.size == UNSEEN:
                        raise _unseen(self.remote, entry.key, entry.tag)
                self._listed[root] = [entry for entry in found if entry.size != UNSEEN]
                self.problems += [
                    f"{entry.key} of {self.remote.name} is left out: {entry.tag}"
                    for entry in found
                    if entry.size == UNSEEN
                ]
            except Denied as error:
                if root == "forgotten":
                    raise _unseen(self.remote, root, error) from None
                self._listed[root] = []
                self.notes.append(f"you have no right to list {root}/ of {self.remote.name}")
        return self._listed[root]


def _unseen(remote: Remote, what: str, why: object) -> RemoteError:
    return RemoteError(
        f"{what} of {remote.name} says which photos were forgotten, and cannot be seen ({why}), so "
        "nothing was moved. Ask for the right to read it"
    )


def _sealed(raw: bytes) -> bool:
    return own_digest(raw) is not None


def wrong_bytes(remote: Remote, shared: Shared, path: str) -> RemoteError:
    """What to say of bytes that are not those that the manifest promises."""
    return RemoteError(
        f"segment {shared.id} at {remote.name}: {PurePosixPath(path)} is not what was written, so "
        f"the segment is refused. {advice(remote)}"
    )


def advice(remote: Remote) -> str:
    """What to do about bytes that are not what was written."""
    url = remote.name
    if "://" not in url:  # a plain path would be verified as a cache
        url = f"file://{Path(url).absolute()}"
    return (
        "Run the same command again; if this stays, the shared copy is damaged: 'embedcache verify "
        f"{url}' says where"
    )


def require_place(remote: Remote) -> None:
    """RemoteError where a shared copy cannot begin, for one where something else lies."""
    try:
        strangers = [name for name in remote.top() if name not in {*GROUPS, APART, "zarr.json"}]
    except Denied:  # somebody who may write and not list
        return
    if strangers:
        raise RemoteError(
            f"{remote.name} is neither empty nor a shared copy (it holds {strangers[0]!r:.80}). "
            "Name a new place"
        )


def begin(remote: Remote) -> None:
    """Lay out an empty shared copy."""
    for part in (*GROUPS, APART):
        remote.create(f"{part}/zarr.json", encode_document(group_document({})))
    remote.create("zarr.json", encode_document(root_document()))
