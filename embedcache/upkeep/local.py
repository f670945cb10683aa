"""What `local/` holds of photos: state of this machine only, and what transfers left there.

And where else in a cache processes leave hidden files when they are killed.
"""

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.store import memory
from embedcache.store.cache import Cache
from embedcache.store.disposal import noting_aside
from embedcache.store.layout import APART, PARTS
from embedcache.store.log import FOLDER as LOG
from embedcache.store.manifest import MANIFEST
from embedcache.store.salvage import Leftover, collect, is_abandoned, leftovers
from embedcache.store.tombstones import FOLDER as TOMBSTONES
from embedcache.store.tombstones import LIFTS

MARKER = "ray-"  # begins the name of a file by which workers of a cluster know the cache
# The folders of what is kept from one command to the next.
STATE = ("alike", "seen", *(f"{memory.FOLDER}/{inner}" for inner in ("*", "*/*", "*/remotes/*")))


def staged(cache: Path) -> Iterator[Leftover]:
    """Rows on their way in or out, and who moves them: "" where nobody does any more."""
    for path in sorted((cache / "local").glob("incoming/*")):
        yield Leftover(path, _holder_of(path / "lock"))
    for path in sorted((cache / "local").glob("outgoing-*")):
        gone = disk.maker_is_gone(path.name)
        yield Leftover(path, "" if gone is not False else "a running push")
    for folder in _state_folders(cache):  # half written, or one of the others, half deleted
        yield from leftovers(folder)


def delete_staged(cache: Path) -> list[Leftover]:
    """Delete what transfers that were cut off left; returns what is still held.

    A pull that is run again fetches it again.
    """
    held = []
    for left in staged(cache):
        if left.holder:
            held.append(left)
        elif left.path.is_dir():
            disk.remove_folder(left.path)
        else:
            left.path.unlink(missing_ok=True)
    return held


def clear_arrived(cache: Path, waited_for: Collection[str]) -> None:
    """Delete what pulls that were killed left of segments, but what a later one can go on with.

    waited_for: the segments that may still come. Of these it is what has not arrived whole: what
    has is published, or its rows came in another way.
    """
    for left in staged(cache):
        path = left.path
        if left.holder or path.parent.name != "incoming":
            continue
        begun = path / path.name
        resumed = path.name in waited_for and begun.is_dir() and not (begun / MANIFEST).exists()
        if not resumed and path.is_dir():
            disk.remove_folder(path)


def work_folders(cache: Path) -> Iterator[Path]:
    """The folders of a cache, but for local/ and those of segments, where hidden files may lie."""
    for part in ("", *PARTS, APART, "refs", TOMBSTONES, LIFTS, LOG):
        yield cache / part
    for part in (*PARTS, APART):
        yield from _folders(cache / part, "[0-9a-f]*")


def clear_hidden(cache: Path) -> None:
    """Delete what processes that have ended left, outside the folders of segments, and what is
    remembered of photos that were forgotten."""
    memory.delete_outdated(cache)
    for folder in (*work_folders(cache), *_state_folders(cache)):
        for litter in sorted(folder.glob(".*")):
            collect(litter, cache=cache)
    clear_outgoing(cache)


def clear_leftovers(cache: Cache) -> None:
    """Clear what runs that were killed have left anywhere in a cache, at the end of another one.

    What cannot be cleared stays: the work that was asked for is done, and `verify` names it.
    """
    if not cache.writable:
        return
    with contextlib.suppress(OSError):
        clear_hidden(cache.path)
    with noting_aside(cache.path), contextlib.suppress(CacheError, OSError):
        for store in cache.sets():
            with contextlib.suppress(CacheError, OSError):
                store.salvage()


def clear_outgoing(cache: Path) -> None:
    """Delete rows on their way to a shared copy, made by pushes that have ended, and the markers
    of runs on a cluster."""
    for path in sorted((cache / "local").glob("outgoing-*")):
        with contextlib.suppress(FileNotFoundError):
            if is_abandoned(path):
                disk.remove_folder(path)
    for path in sorted((cache / "local").glob(f"{MARKER}*")):
        with contextlib.suppress(FileNotFoundError):
            if disk.maker_is_gone(path.name):
                path.unlink()


def _state_folders(cache: Path) -> list[Path]:
    """local/ and its folders of what is remembered."""
    local = cache / "local"
    return [local, *(path for name in STATE for path in _folders(local, name))]


def _folders(parent: Path, pattern: str) -> list[Path]:
    """The folders in `parent` that fit a pattern; no link, which may lead anywhere."""
    return sorted(p for p in parent.glob(pattern) if p.is_dir() and not p.is_symlink())


def _holder_of(lock: Path) -> str:
    """Who holds a lock file; "" for nobody."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        fd = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return "a running pull or push"
        finally:
            os.close(fd)
    return ""
