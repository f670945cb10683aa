"""Which segments of a shared copy this cache has seen whole, by how they were listed then.

A segment that is listed otherwise since may have other bytes, as after a copy of the folder that
went wrong. A push reads it again before it takes it for what was sent.
"""

import contextlib
import json
import os
from hashlib import sha256
from pathlib import Path

from embedcache import disk
from embedcache.remotes.remote import Remote
from embedcache.sharing.listing import ListedSpace
from embedcache.store.cache import Cache

MAX_BYTES = 64 << 20


class SeenWhole:
    """What was seen of one shared copy; kept in the cache's local/, without anything of photos.

    A segment that was never seen is read if the shared copy is a folder, where that costs a look at
    the disk. Elsewhere a whole copy of it would have to come over the network: it is believed.
    """

    def __init__(self, path: Path | None, *, is_folder: bool) -> None:
        self._path = path
        self._is_folder = is_folder
        self._known: dict[str, str] = {}
        with contextlib.suppress(ValueError, RecursionError):
            if path is not None:
                found = json.loads(disk.read_kept(path, limit=MAX_BYTES) or b"{}")
                self._known = {str(name): str(listed) for name, listed in dict(found).items()}

    @classmethod
    def of(cls, cache: Cache, remote: Remote) -> "SeenWhole":
        """What `cache` has seen of a remote; nothing is kept in a read-only cache."""
        path = None
        if os.access(cache.path, os.W_OK):
            name = sha256(remote.name.encode()).hexdigest()[:16]
            path = cache.local / "seen" / f"{name}.json"
        return cls(path, is_folder="://" not in remote.name)

    def is_whole(self, space: ListedSpace, segment: str) -> bool:
        """Whether a listed segment need not be read: it is listed as when it was seen whole."""
        known = self._known.get(f"{space.key}/{segment}")
        if known is None and not self._is_folder:
            self.add(space, segment)
            return True
        return known == _listed(space, segment)

    def add(self, space: ListedSpace, segment: str) -> None:
        """A segment, listed like this, is whole."""
        self._known[f"{space.key}/{segment}"] = _listed(space, segment)

    def save(self) -> None:
        """Write down what was seen; a file that grew too large begins anew."""
        if self._path is None:
            return
        with contextlib.suppress(OSError):  # it only saves time
            self._path.parent.mkdir(exist_ok=True)
            text = json.dumps(self._known, indent=0, sort_keys=True)
            disk.replace(self._path, text.encode(), durable=False)


def _listed(space: ListedSpace, segment: str) -> str:
    """How the files of a segment are listed: their names, sizes and tags, as a short digest."""
    files = space.segments.get(segment, {})
    parts = sorted(f"{path} {entry.size} {entry.tag}" for path, entry in files.items())
    return sha256("\n".join(parts).encode()).hexdigest()[:32]
