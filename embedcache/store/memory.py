"""What this machine remembers of photos, to be quicker next time: `local/memory/<state>/`.

It holds names and digests of photos, is never shared, and may be deleted at any time. A folder is
named after the tombstones and lifts that there were before anything was put into it, and whoever
does so leaves out the photos that these forget. So no folder holds a photo that its own tombstones
name, and one that was filled before a photo was forgotten has another name than the one that is
asked for now. Every command that writes deletes those, and `verify` names them: whoever was killed
where.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from embedcache import disk
from embedcache.store.tombstones import FOLDER as TOMBSTONES
from embedcache.store.tombstones import LIFTS, list_marks

FOLDER = "memory"
BEFORE = ("digests*", ".digests*.lock", "index", "remotes", "alike/*.groups")
"""Where versions before this kept it in `local/`, by no tombstones at all."""


def folder_of(cache: Path, tombstones: Iterable[str], lifts: Iterable[str]) -> Path:
    """Where is remembered what these tombstones and lifts, by their file names, do not forget."""
    text = "\n".join([*sorted(tombstones), "", *sorted(lifts)])
    return cache / "local" / FOLDER / sha256(text.encode()).hexdigest()[:16]


def folder_now(cache: Path) -> Path:
    """Where that is remembered which is forgotten by nothing that is in the cache now.

    To be asked before what is to be remembered is read.
    """
    return folder_of(cache, list_marks(cache, TOMBSTONES), list_marks(cache, LIFTS))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """For as long as a file below such a folder is written: makes the folders that it lies in, and
    deletes all that is remembered there, unless it is still the place for now.

    Who forgets a photo deletes the other places after the tombstone: either that comes after this,
    or the tombstone is seen here. Raises OSError where a link stands for a folder.
    """
    depth = next(i for i, parent in enumerate(path.parents) if parent.name == FOLDER)
    folder, cache = path.parents[depth - 1], path.parents[depth + 2]
    disk.make_folder(path.parent, below=cache, durable=False)
    for parent in path.parents[: depth + 1]:
        if parent.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
    try:
        yield
    finally:
        if folder != folder_now(cache):
            disk.delete_folder(folder)


def outdated(cache: Path) -> Iterator[Path]:
    """What is remembered by other tombstones and lifts than there are now; also by versions before
    this, where anything was forgotten."""
    now = folder_now(cache)
    yield from sorted(path for path in now.parent.glob("*") if path != now)
    if list_marks(cache, TOMBSTONES):
        for pattern in BEFORE:
            yield from sorted((cache / "local").glob(pattern))


def delete_outdated(cache: Path) -> None:
    """Delete what is remembered by other tombstones and lifts than there are now."""
    for path in outdated(cache):
        if path.is_dir() and not path.is_symlink():
            disk.delete_folder(path)
        else:
            path.unlink(missing_ok=True)
