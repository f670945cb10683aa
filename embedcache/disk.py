"""Durable file operations: whole files, create-only names, no symbolic links, plain errors.

Every byte that a cache gains goes through `write_all` or `write_at`, and becomes durable through
`sync`, so that a test can stand at these doors and fail the n-th write. Linux and macOS only.
"""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from embedcache.errors import CacheError, Damaged

Bytes = bytes | memoryview

_SYNC = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
_LINKS = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EMLINK)
_ADVICE = {
    errno.ENOSPC: "the disk is full: make room, then run the same command again",
    errno.EDQUOT: "the disk quota is used up: make room, then run the same command again",
    errno.EROFS: "it is read-only: copy the cache to a place that can be written",
    errno.EACCES: "permission is denied: ask its owner, or copy the cache",
    errno.EPERM: "permission is denied: ask its owner, or copy the cache",
}


def write_all(fd: int, data: Bytes) -> None:
    """Write every byte of `data` at the file's position."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def write_at(fd: int, data: Bytes, offset: int) -> None:
    """Write every byte of `data` at `offset`."""
    view = memoryview(data).cast("B")
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def sync(fd: int) -> None:
    """Make a file's data durable (and its size, where that changed)."""
    _SYNC(fd)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_new(path: Path, data: Bytes, *, durable: bool = True) -> None:
    """Write a file that must not exist; its folder is left for `sync_folder`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        write_all(fd, data)
        if durable:
            sync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path, *, but: str = "") -> None:
    """Make a folder durable, files first, names from the leaves up; `but` is a folder left out."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files if Path(parent).name != but else ():
            fd = os.open(Path(parent, name), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                sync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(parent))


def publish(path: Path, data: Bytes) -> None:
    """Give `path` its whole content at once; FileExistsError where the name is taken."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_new(temporary, data)
        try:
            os.link(temporary, path)
        except OSError as error:
            # Some network and removable file systems have no links. Callers use names that no
            # other writer makes, so a check and a rename is then as good.
            if isinstance(error, FileExistsError):
                raise
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace(path: Path, data: Bytes, *, durable: bool = True) -> None:
    """Give `path` new content at once; a reader sees the old or the new, never a part.

    durable: False for what can be made again, and is checked when it is read.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_new(temporary, data, durable=durable)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder under a hidden name first, so that nobody meets half of it."""
    if hidden := hide_folder(path):
        shutil.rmtree(hidden, ignore_errors=True)


def hide_folder(path: Path) -> Path | None:
    """Give a folder a hidden name, and return that; None where it is gone already."""
    hidden = path.with_name(f".old-{secrets.token_hex(4)}")
    try:
        path.rename(hidden)
    except FileNotFoundError:
        return None
    return hidden


def open_plain(path: str) -> int:
    """Open a regular file for reading; Damaged where it is a link or no plain file."""
    try:
        found = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _LINKS:
            raise Damaged(f"{path} is, or lies behind, a link: refused") from None
        raise
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise Damaged(f"{path} is not a plain file: refused")
    return found


def open_inside(folder: Path, relative: str) -> int:
    """Open a regular file under `folder` for reading, following no symbolic link below it.

    Returns a file descriptor. Raises FileNotFoundError, or Damaged for a link, a device, or a
    folder in the file's place.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    *folders, name = relative.split("/")
    try:
        fd = os.open(folder, flags | os.O_DIRECTORY)
    except NotADirectoryError:
        raise Damaged(f"{folder} is no folder") from None
    try:
        for part in folders:
            fd, parent = os.open(part, flags | os.O_DIRECTORY, dir_fd=fd), fd
            os.close(parent)
        found = os.open(name, flags | os.O_NONBLOCK, dir_fd=fd)
    except OSError as error:
        if error.errno in _LINKS:
            raise Damaged(f"{folder / relative} is, or lies behind, a link: refused") from None
        raise
    finally:
        os.close(fd)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise Damaged(f"{folder / relative} is not a plain file: refused")
    return found


def read_inside(folder: Path, relative: str, *, limit: int) -> bytes:
    """The bytes of a small file under `folder`; Damaged past `limit` bytes."""
    fd = open_inside(folder, relative)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise Damaged(f"{folder / relative} has {size:,} bytes; at most {limit:,} are accepted")
        parts = []
        while part := os.read(fd, size + 1):  # all at once, and once more for the end
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


@contextlib.contextmanager
def plain_errors(action: str, path: Path) -> Iterator[None]:
    """Turn the operating system's refusals (full, read-only, no permission) into a CacheError."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        if advice is None and error.errno not in (errno.EIO, errno.EFBIG, errno.ENAMETOOLONG):
            raise
        reason = advice or f"{error.strerror}: check the disk"
        raise CacheError(f"cannot {action} {path}: {reason}") from error
