"""Which spaces and segments a shared copy lists.

Every name used here comes out of this module's own patterns, never straight from a listing.
"""

import re
from dataclasses import dataclass, field

from embedcache.errors import RemoteError
from embedcache.remotes.remote import UNSEEN, Denied, ListedObject, Remote
from embedcache.sharing.refusals import Refusals
from embedcache.store.columns import Kind
from embedcache.store.layout import APART, KINDS
from embedcache.store.log import PHOTOS
from embedcache.store.manifest import MANIFEST, is_segment_id
from embedcache.store.tombstones import FOLDER, LIFTS

ROOTS = ("spaces", APART, "faces", "photos")
MARKS = (FOLDER, LIFTS)
_SEGMENT = r"segments/(?P<segment>\d{8}T\d{12}-[0-9a-f]{8})/(?P<path>[a-z0-9_/]+(?:\.json)?)"
_KEY = re.compile(rf"(?:[a-z-]+)/(?:(?P<space>[0-9a-f]{{64}})/)?{_SEGMENT}")


@dataclass(slots=True)
class ListedSpace:
    """One space of a shared copy: where it lies, and its listed segments {id: {path: entry}}."""

    root: str
    digest: str
    segments: dict[str, dict[str, ListedObject]] = field(default_factory=dict)

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

    @property
    def set_key(self) -> str:
        """The name of the space in the log of removals."""
        return self.digest or PHOTOS


class RemoteListing:
    """The keys of a shared copy, listed once for each root."""

    def __init__(self, remote: Remote, refusals: Refusals) -> None:
        self._remote = remote
        self._refusals = refusals
        self._listed: dict[str, list[ListedObject]] = {}

    def entries(self, root: str) -> list[ListedObject]:
        """All objects under a root; what cannot be looked at is refused.

        Raises RemoteError where that hides which photos were forgotten.
        """
        if root not in self._listed:
            try:
                found = list(self._remote.list(f"{root}/"))
            except Denied as error:
                if root in MARKS:
                    raise unseen(self._remote, root, error) from None
                self._refusals.notes.append(
                    f"you have no right to list {root}/ of {self._remote.name}"
                )
                found = []
            for entry in found:
                if entry.size == UNSEEN:
                    if root in MARKS:
                        raise unseen(self._remote, entry.key, entry.tag)
                    self._refusals.object(entry.key, entry.tag)
            self._listed[root] = [entry for entry in found if entry.size != UNSEEN]
        return self._listed[root]

    def keys(self, root: str) -> set[str]:
        """All keys under a root."""
        return {entry.key for entry in self.entries(root)}

    def spaces(self, root: str) -> dict[str, ListedSpace]:
        """The spaces under one of ROOTS by digest; for "photos" one, whose digest is ""."""
        found: dict[str, ListedSpace] = {}
        for entry in self.entries(root):
            place = _KEY.fullmatch(entry.key)
            if place and bool(place["space"]) == (root != "photos"):
                digest = place["space"] or ""
                if not is_segment_id(place["segment"]):
                    self._refusals.segment(place["segment"], "its name is not a date: refused")
                    continue
                space = found.setdefault(digest, ListedSpace(root, digest))
                space.segments.setdefault(place["segment"], {})[place["path"]] = entry
            elif re.fullmatch(rf"{root}/[0-9a-f]{{64}}/zarr\.json", entry.key):
                digest = entry.key.split("/")[1]
                found.setdefault(digest, ListedSpace(root, digest))
        return found


def unseen(remote: Remote, what: str, why: object) -> RemoteError:
    """The error for a list of forgotten photos that cannot be read."""
    return RemoteError(
        f"{what} lists forgotten photos and cannot be read ({why}), so nothing was moved",
        asked=remote.name,
        advice="Ask for the right to read it",
    )
