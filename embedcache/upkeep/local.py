"""What `local/` holds of photos: state of this machine only, and what transfers left there."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from embedcache import disk
from embedcache.store.salvage import Leftover

MEMORY = ("digests*", "index/*", "remotes/*", "alike/*.groups")  # may be deleted at any time


def delete_memory(cache: Path) -> None:
    """Delete what this machine remembers of photos: digests of files, indexes, remote columns."""
    for pattern in MEMORY:
        for path in (cache / "local").glob(pattern):
            if path.is_dir() and not path.is_symlink():
                disk.delete_folder(path)
            else:
                path.unlink(missing_ok=True)


def staged(cache: Path) -> Iterator[Leftover]:
    """Rows on their way in or out, and who moves them: "" where nobody does any more."""
    for path in sorted((cache / "local").glob("incoming/*")):
        yield Leftover(path, _holder_of(path / "lock"))
    for path in sorted((cache / "local").glob("outgoing-*")):
        gone = disk.maker_is_gone(path.name)
        yield Leftover(path, "" if gone is not False else "a running push")
    for path in sorted((cache / "local").glob(".old-*")):  # one of these, half deleted
        gone = disk.maker_is_gone(path.name)
        yield Leftover(path, "" if gone is not False else "a running process")


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


def _holder_of(lock: Path) -> str:
    """Who holds a lock file; "" for nobody."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        fd = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return "a running pull"
        finally:
            os.close(fd)
    return ""
