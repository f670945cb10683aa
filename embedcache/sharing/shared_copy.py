"""What a shared copy holds, believed only as far as it can be checked.

A shared copy is laid out as a cache is (docs/format.md), except that spaces of face crops lie under
`face-spaces/`, so that storage rights can differ. Sizes are checked before memory is allocated;
what was fetched once is remembered in the cache's `local/`.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import CacheError, RemoteError
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import Denied, Remote, Unreachable
from embedcache.sharing.listing import ROOTS, ListedSpace, RemoteListing
from embedcache.sharing.memo import Memo
from embedcache.sharing.ref_changes import SealedRef
from embedcache.sharing.refusals import Refusals, advice
from embedcache.sharing.remote_log import RemoteLog
from embedcache.sharing.segments import RemoteSegments
from embedcache.sharing.small_objects import SmallObjects, TooMuch
from embedcache.spec import Json, Spec
from embedcache.store.cache import Cache
from embedcache.store.history import parse_marks
from embedcache.store.layout import (
    APART,
    CACHE_FORMAT,
    GROUPS,
    MAX_DOCUMENT_BYTES,
    OLD_FORMAT,
    face_digest,
    root_document,
)
from embedcache.store.log import Log
from embedcache.store.refs import MAX_REF_BYTES, parse_ref
from embedcache.store.sealed import unseal
from embedcache.store.tombstones import FOLDER as TOMBSTONES
from embedcache.store.tombstones import LIFTS, Dead, parse_lift, parse_tombstone
from embedcache.store.tombstones import MAX_BYTES as MAX_MARKS_BYTES
from embedcache.store.zarr_json import encode_document, group_document

_TOMBSTONE = re.compile(rf"{TOMBSTONES}/(\d{{8}}T\d{{12}}-[0-9a-f]{{8}}\.json)")
_LIFT = re.compile(rf"{LIFTS}/(\d{{8}}T\d{{12}}-[0-9a-f]{{8}}\.json)")
_REF = re.compile(r"refs/([A-Za-z0-9][A-Za-z0-9._-]{0,99})\.json")


@dataclass(frozen=True, slots=True)
class Marks:
    """The lifts and tombstones of a shared copy, {file name: bytes}."""

    lifts: dict[str, bytes]
    tombstones: dict[str, bytes]

    def dead(self) -> Dead:
        """The marks that hold by what the shared copy itself says."""
        return parse_marks(self.lifts, self.tombstones)

    def joined(self, cache: Cache) -> Dead:
        """The marks that hold once both sides know all of them; nothing is written."""
        lifts, tombstones = cache.history.files()
        return parse_marks({**self.lifts, **lifts}, {**self.tombstones, **tombstones})


class SharedCopy:
    """A shared copy as one run sees it: every part is listed and fetched at most once.

    refusals: what is left out. listing: its keys. segments: its manifests and small arrays.
    log: what was removed there.
    """

    def __init__(self, remote: Remote, memo: Path | None = None) -> None:
        self.remote = remote
        self.refusals = Refusals(remote)
        self.listing = RemoteListing(remote, self.refusals)
        remembered = Memo(memo)
        self._objects = SmallObjects(remote, self.listing, remembered)
        self.segments = RemoteSegments(remote, self.refusals, self._objects, remembered)
        self._is_old = False
        self._memo = memo
        self.log = RemoteLog(remote, remembered)
        self._n_listed: int | None = None
        self._unseen: set[str] = set()

    def again(self) -> "SharedCopy":
        """The same shared copy, to be listed afresh."""
        copy = SharedCopy(self.remote, self._memo)
        copy.log = self.log
        copy.segments.dead = self.segments.dead
        return copy

    def relisted(self) -> "SharedCopy":
        """The same, to be listed afresh; what was refused stays refused."""
        copy = self.again()
        copy.refusals, copy.segments, copy._unseen = self.refusals, self.segments, self._lacking()
        return copy

    def problems(self) -> list[RemoteError]:
        """What was refused; nothing is wrong with what was removed meanwhile."""
        if self.refusals.problems:
            self.refusals.forgive(name.partition("/")[2] for name in self.log.read().gone)
        return self.refusals.problems

    def is_outdated(self) -> bool:
        """READ's second look: whether segments may be there that the listing does not show.

        Some were removed since, or the listing is older than the log and lacks what took their
        place. What a fresh listing lacks as well is not asked for again.
        """
        return self.log.read().n != self._n_listed or not self._lacking() <= self._unseen

    def _lacking(self) -> set[str]:
        """Successors that the log names and that are neither listed nor removed."""
        gone = self.log.known.gone
        named = {
            f"{name.partition('/')[0]}/{successor}"
            for name, removal in gone.items()
            for successor in removal.successors or ()
        }
        for root in ROOTS if named else ():
            for space in self.listing.spaces(root).values():
                named -= {f"{space.set_key}/{name}" for name in space.segments}
        return named - gone.keys()

    def exists(self) -> bool:
        """Whether a shared copy of this format is there; RemoteError where something else is."""
        try:
            raw = read_small(self.remote, "zarr.json", limit=MAX_DOCUMENT_BYTES)
        except FileNotFoundError:
            return False
        known = [root_document(number) for number in (OLD_FORMAT, CACHE_FORMAT)]
        if raw not in map(encode_document, known):
            raise RemoteError(
                f"{self.remote.name} is not a shared copy of format {OLD_FORMAT} or {CACHE_FORMAT}",
                advice="Name another place, or update embedcache",
            )
        self._is_old = raw == encode_document(root_document(OLD_FORMAT))
        return True

    def bring_over(self) -> None:
        """Make a shared copy of the older format one of the newer, before the first removal.

        A program that knows no log of removals refuses the newer one.
        """
        if self._is_old:
            raw = encode_document(root_document(CACHE_FORMAT))
            self.remote.write("zarr.json", lambda: iter([raw]), size=len(raw))
            self._is_old = False

    def require(self) -> None:
        """RemoteError unless a shared copy is there."""
        if not self.exists():
            raise RemoteError(
                f"there is no shared copy at {self.remote.name}",
                advice=f"'embedcache push DIR {self.remote.name}' creates one",
            )

    def require_place(self) -> None:
        """RemoteError where a shared copy cannot begin: something else lies there."""
        try:
            names = self.remote.top()
        except Denied:  # this member may write and not list
            return
        strangers = [name for name in names if name not in {*GROUPS, APART, "zarr.json"}]
        if strangers:
            raise RemoteError(
                f"{self.remote.name} is neither empty nor a shared copy (it holds "
                f"{strangers[0]!r:.80})",
                advice="Name a new place",
            )

    def begin(self) -> None:
        """Lay out an empty shared copy."""
        for part in (*GROUPS, APART):
            self.remote.create(f"{part}/zarr.json", encode_document(group_document({})))
        self.remote.create("zarr.json", encode_document(root_document()))

    def marks(self) -> Marks:
        """All tombstones and lifts, each checked.

        Tombstones are listed before lifts, so that a lift is never taken for older than it is.
        Raises RemoteError for one that is damaged or cannot be read: which photos it names is
        unknown, so nothing may be taken.
        """
        tombstones = self._marks(TOMBSTONES, _TOMBSTONE, parse_tombstone)
        return Marks(lifts=self._marks(LIFTS, _LIFT, parse_lift), tombstones=tombstones)

    def _marks(
        self, root: str, pattern: re.Pattern[str], parse: Callable[..., object]
    ) -> dict[str, bytes]:
        found = {}
        for name, entry, raw in self._objects.named(root, pattern, limit=MAX_MARKS_BYTES):
            try:
                parse(raw, name=name)
            except CacheError as error:
                raise RemoteError(
                    f"{entry.key} lists forgotten photos and is damaged ({error.found}), so "
                    "nothing was moved",
                    asked=self.remote.name,
                    advice="Rerun the command; if it fails again, remove that file there "
                    "and push from a cache that holds it",
                ) from None
            found[name] = raw
        return found

    def refs(self) -> dict[str, SealedRef]:
        """All refs by name, each checked."""
        found = {}
        for name, entry, raw in self._objects.named("refs", _REF, limit=MAX_REF_BYTES):
            with self._refusing(entry.key):
                pins = parse_ref(raw, name=name, where=self.remote.name)
                changes = unseal(raw, what=f"ref {name}", limit=MAX_REF_BYTES)[0].get("changes")
                if not isinstance(changes, list):
                    raise RemoteError("it has no list of its changes")
                found[name] = SealedRef(pins, changes, raw)
        return found

    def pinned(self, log: Log | None = None) -> dict[str, str]:
        """What refs pin, or what stands for it by the log: {name of a segment there: a ref}."""
        log = log or self.log.known

        def standing(key: str, segment: str) -> list[str]:
            found = log.stands_for(key, segment)
            return [segment] if found is None else found  # none where all of it was forgotten

        return {
            f"{key}/{name}": ref
            for ref, found in self.refs().items()
            for key, pinned in found.pins.by_set().items()
            for segment in pinned
            for name in standing(key, segment)
        }

    def spaces(self, root: str) -> dict[str, ListedSpace]:
        """The spaces under one of ROOTS by digest, without the segments that were removed there."""
        gone = self.log.known.gone
        if self._n_listed is None:
            self._n_listed = self.log.known.n
        found = self.listing.spaces(root)
        for space in found.values():
            for name in [s for s in space.segments if f"{space.set_key}/{s}" in gone]:
                del space.segments[name]
        return found

    def spec(self, space: ListedSpace) -> Spec:
        """The spec of a space; RemoteError where the space is not named after it."""
        try:
            return Spec.parse(self._attributes(space, "spec"))
        except RemoteError:
            raise
        except CacheError as error:
            raise RemoteError(
                error.found,
                asked=f"{space.key} of {self.remote.name} is left out",
                advice=advice(self.remote),
            ) from None

    def detector(self, space: ListedSpace) -> dict[str, Json]:
        """The document of a detector."""
        return self._attributes(space, "detector")

    def _attributes(self, space: ListedSpace, name: str) -> dict[str, Json]:
        key = f"{space.key}/zarr.json"
        try:
            raw = read_small(self.remote, key, limit=MAX_DOCUMENT_BYTES)
            document = json.loads(raw)["attributes"]["embedcache"]
            found = document[name]
            if (
                raw == encode_document(group_document({"embedcache": document}))
                and isinstance(found, dict)
                and face_digest(found) == space.digest
            ):
                return found
        except (FileNotFoundError, ValueError, RecursionError, KeyError, TypeError):
            pass
        raise RemoteError(
            f"{key} of {self.remote.name} does not describe its space: refused",
            advice=advice(self.remote),
        )

    def damaged_documents(self, space: ListedSpace, expected: Mapping[str, bytes]) -> set[str]:
        """Which listed documents of a space are not what format 1 writes. expected: {key: bytes}.

        What this member may not read is taken for right.
        """
        damaged = set()
        for entry in self.listing.entries(space.root):
            if (right := expected.get(entry.key)) is None:
                continue
            with contextlib.suppress(Denied, FileNotFoundError):
                if entry.size <= MAX_DOCUMENT_BYTES and right == self._objects.read(
                    entry, limit=MAX_DOCUMENT_BYTES, good=right.__eq__
                ):
                    continue
                if entry.key != f"{space.key}/zarr.json" or not self._is_described(space):
                    damaged.add(entry.key)
        return damaged

    def _is_described(self, space: ListedSpace) -> bool:
        """Whether the document of a space can be read, though it may say more than ours."""
        try:
            _ = self.detector(space) if space.root == "faces" else self.spec(space)
        except (Unreachable, Denied):
            raise
        except CacheError:
            return False
        return True

    def check_groups(self, space: ListedSpace) -> None:
        """Refuse group documents around a space that format 1 would not write."""
        for part in (space.root, f"{space.key}/segments"):
            self._refuse_wrong_group(space.root, part)

    def check_parts(self) -> None:
        """Refuse group documents of the parts, also of those without a space."""
        for part in (*GROUPS, APART):
            self._refuse_wrong_group(part.partition("/")[0], part)

    def damaged_parts(self) -> dict[str, bytes]:
        """{key: right bytes} of the listed group documents of parts that are damaged.

        What this member may not read is taken for right.
        """
        return {
            f"{part}/zarr.json": encode_document(group_document({}))
            for part in (*GROUPS, APART)
            if not self._is_right_group(part.partition("/")[0], part)
        }

    def _refuse_wrong_group(self, root: str, part: str) -> None:
        key = f"{part}/zarr.json"
        with self._refusing(key):
            if not self._is_right_group(root, part):
                raise RemoteError("it is not a group document of format 1")

    def _is_right_group(self, root: str, part: str) -> bool:
        """Whether a group's document, if one is listed that can be read, is as format 1 has it."""
        expected = encode_document(group_document({}))
        for entry in self.listing.entries(root):
            if entry.key == f"{part}/zarr.json":
                if entry.size != len(expected):
                    return False
                with contextlib.suppress(Denied, FileNotFoundError):
                    return expected == self._objects.read(
                        entry, limit=MAX_DOCUMENT_BYTES, good=expected.__eq__
                    )
        return True

    @contextlib.contextmanager
    def _refusing(self, key: str) -> Iterator[None]:
        try:
            yield
        except (Unreachable, Denied, TooMuch):
            raise
        except CacheError as error:
            self.refusals.object(key, error)
