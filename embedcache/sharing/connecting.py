"""The two ends of a push or pull: the remote that an address names, and the cache."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from embedcache import disk, locks
from embedcache.errors import CacheError
from embedcache.remotes.address import parse_address
from embedcache.remotes.opening import choose, open_remote
from embedcache.remotes.remote import Denied, Remote, Unreachable
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.store import memory
from embedcache.store.cache import Cache
from embedcache.store.layout import FOLDERS
from embedcache.store.salvage import own_litter
from embedcache.store.tombstones import FOLDER as TOMBSTONES


def connect(remote: Remote | str, cache: Cache) -> Remote:
    """Open a remote by URL, for this cache."""
    if not isinstance(remote, str):
        return remote
    place = parse_address(remote)
    if isinstance(place, Path):
        place = place.resolve()
        what = "is the cache itself" if place == cache.path else "lies in the cache"
        if cache.path in (place, *place.parents):
            raise CacheError(f"{remote} {what}", advice="Name another place to share it")
    return open_remote(remote, staging=staging_of(cache))


def require_place(url: str) -> None:
    """RemoteError where no shared copy is at a URL and none can be: a misspelt folder or bucket.

    Asks once. A remote that is down, or that this member may not list, says nothing of its name.
    """
    copy = SharedCopy(choose(url, "shared"))
    with contextlib.suppress(Unreachable, Denied):
        if not copy.exists():
            copy.require_place()


def memo_of(cache: Cache, remote: Remote) -> Path | None:
    """Where this cache remembers what it fetched from a remote; None in a read-only cache."""
    if not os.access(cache.path, os.W_OK):
        return None
    name = sha256(remote.name.encode()).hexdigest()[:16]
    return memory.folder_now(cache.path) / "remotes" / name


@contextlib.contextmanager
def destination(path: Path, *, keep: bool = True) -> Iterator[Cache]:
    """The cache to pull into, created where there is none.

    A cache that was created here is removed again after a failure, and always without `keep`,
    unless something has come.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    new = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    cache = Cache.open(path, create=True)
    try:
        yield cache
        done = keep
    except BaseException:
        done = False
        raise
    finally:
        if new and not done and _holds_nothing(cache):
            disk.remove_folder(path)
            for folder in missing[1:]:
                folder.rmdir()
            if not missing:
                path.mkdir()


def _holds_nothing(cache: Cache) -> bool:
    """Whether a new cache holds nothing, of anybody, and nothing that a later pull would resume."""
    arrived = ("spaces/*/", "faces/*/", "photos/segments/*/", "refs/*", f"{TOMBSTONES}/*")
    if any(next(cache.path.glob(pattern), None) for pattern in (*arrived, "local/incoming/*")):
        return False
    strangers = set(os.listdir(cache.path)) - {*FOLDERS, "zarr.json"}
    return not any(not own_litter(name) for name in strangers)


def staging_of(cache: Cache) -> str:
    """Eight digits that mark this cache's unfinished pushes on a file system.

    They follow from random digits in local/staging and from where that file lies. A copy of a cache
    has the same digits in another file, or by a hard link in another folder: two that push at once
    must not write into each other's files. A cache that is renamed keeps its mark. Of a cache that
    cannot be written they follow from its folder, the host and the user: a rerun finds them again.
    """
    path = cache.path / "local" / "staging"
    try:
        text = _staging_digits(path) or _new_staging_digits(cache)
        # The time of the last change is the file system's; nobody can set it, nor copy it.
        file, folder = path.stat(), path.parent.stat()
        place = f"{text} {file.st_ino} {file.st_ctime_ns} {folder.st_ino}"
    except (OSError, CacheError):
        if (marked := _read_only_mark(cache)) is None:
            return os.urandom(4).hex()
        place = marked
    return sha256(place.encode()).hexdigest()[:8]


def _new_staging_digits(cache: Cache) -> str:
    """Write the digits, unless another process or thread has done so meanwhile; returns them.

    A lock, and no exclusive link: a link changes the time of the file, which is part of the mark,
    once more after others can read it. It also covers a file without digits, which is replaced.
    """
    path = cache.local / "staging"
    with open(path.with_name("staging.lock"), "wb") as file:
        locks.take(file.fileno(), path.with_name("staging.lock"))
        if not (text := _staging_digits(path)):
            text = os.urandom(4).hex()
            disk.replace(path, text.encode())
        return text


def _read_only_mark(cache: Cache) -> str | None:
    """Where a cache that cannot be written lies, and who reads it.

    None where its pushes cannot be kept apart by a lock: two at once need names of their own.
    """
    try:
        with read_only_lock(cache, wait=False):
            found = cache.path.stat()
    except BlockingIOError:  # a push holds the lock, so there are locks
        found = cache.path.stat()
    except OSError:
        return None
    return f"{platform.node()} {os.getuid()} {found.st_ino} {found.st_ctime_ns}"


@contextlib.contextmanager
def read_only_lock(cache: Cache, *, wait: bool = True) -> Iterator[None]:
    """Hold a cache that cannot be written against other pushes of it on this machine.

    Raises OSError where a folder cannot be locked, and BlockingIOError where it is, without `wait`.
    """
    fd = os.open(cache.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if wait:
            locks.take(fd, cache.path, patient=True)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _staging_digits(path: Path) -> str:
    """The digits in a staging file; "" where there are none."""
    try:
        text = (disk.read_kept(path, limit=64) or b"").decode("ascii")
    except ValueError:
        return ""
    return text if len(text) == 8 and text.isalnum() else ""
