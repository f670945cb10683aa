"""Small objects of a shared copy: bounded, fetched once, remembered on this machine."""

import re
from collections.abc import Callable, Iterator

from embedcache.errors import RemoteError
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import ListedObject, Remote
from embedcache.sharing.listing import RemoteListing
from embedcache.sharing.memo import Memo
from embedcache.store.sealed import own_digest

# What one run reads of the small objects of one root, whatever their listing says.
MAX_SMALL_BYTES = 256 << 20


class TooMuch(RemoteError):
    """A shared copy that holds more than one run reads."""


class SmallObjects:
    """Reads manifests, refs, tombstones and group documents."""

    def __init__(self, remote: Remote, listing: RemoteListing, memo: Memo) -> None:
        self._remote = remote
        self._listing = listing
        self._memo = memo

    def read(
        self, entry: ListedObject, *, limit: int, good: Callable[[bytes], bool] | None = None
    ) -> bytes:
        """A listed object's bytes; remembered where they are `good`, by default sealed."""
        if entry.size > limit:
            raise RemoteError(f"{entry.key} of {self._remote.name} is too large: refused")
        name = f"{entry.key} {entry.size} {entry.tag}"
        return self._memo.get(
            name, lambda: read_small(self._remote, entry.key, limit=limit), good or _sealed
        )

    def named(
        self, root: str, pattern: re.Pattern[str], *, limit: int
    ) -> Iterator[tuple[str, ListedObject, bytes]]:
        """The objects of a root whose key fits a pattern: (its first group, entry, bytes)."""
        total = 0
        for entry in self._listing.entries(root):
            if place := pattern.fullmatch(entry.key):
                raw = self.read(entry, limit=limit)
                total += len(raw)  # the listing may give a smaller size
                if total > MAX_SMALL_BYTES:
                    raise TooMuch(f"{self._remote.name} has too much under {root}/: refused")
                yield place[1], entry, raw


def _sealed(raw: bytes) -> bool:
    return own_digest(raw) is not None
