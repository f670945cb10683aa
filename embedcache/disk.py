"""Durable file operations: whole files, create-only names, no symbolic links, plain errors.

Every byte that a cache gains goes through `write_all` or `write_at`, and becomes durable through
`sync`, so that a test can stand at these doors and fail the n-th write. Linux and macOS only.
"""

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import resource
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from embedcache.errors import CacheError, Damaged

Bytes = bytes | memoryview

_SYNC = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_LINKS = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EMLINK)
_OF_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_ADVICE = {
    errno.ENOSPC: "the disk is full: make room, then rerun the command",
    errno.EDQUOT: "the disk quota is used up: make room, then rerun the command",
    errno.EFBIG: "no file may be so large here: raise the limit with 'ulimit -f unlimited', or use "
    "another file system, then rerun the command",
    errno.EROFS: "it is read-only: copy the cache to a writable folder",
    errno.EACCES: "permission is denied: ask its owner, or copy the cache",
    errno.EPERM: "permission is denied: ask its owner, or copy the cache",
    errno.EMFILE: "too many open files: raise the limit with 'ulimit -n 1024', then rerun the "
    "command to resume",
    errno.ENFILE: "this machine has too many open files: close programs, then rerun the command "
    "to resume",
    errno.ENOMEM: "there is not enough memory: free some, or raise the limit of 'ulimit -v', then "
    "rerun the command to resume",
}
_NO_MEMORY = (
    *("failed to map segment", "cannot allocate memory", "can't allocate memory", "bad_alloc"),
    *("can't start new thread", "resource temporarily unavailable", "not enough memory"),
)


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
            if Path(parent, name).is_symlink():
                continue
            fd = os.open(Path(parent, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    sync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(parent))


def make_folder(path: Path, *, below: Path | None = None, durable: bool = True) -> None:
    """Make a folder, and those above it that are missing, durably; one that is there is fine.

    below: a folder above it that is not made. Where it was renamed away meanwhile, half of it must
        not appear under its old name: FileNotFoundError.
    """
    missing = []
    while not path.is_dir():
        if path == below:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(folder)) from None
        if durable:
            sync_folder(folder.parent)


def publish(path: Path, data: Bytes, *, contested: bool = False) -> None:
    """Give `path` its whole content at once; FileExistsError where the name is taken.

    contested: other writers may choose the same name. Of any number of them exactly one succeeds,
        also on file systems without links.
    """
    temporary = temporary_beside(path)
    try:
        write_new(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # A server may answer so to the second try of a link that it made at the first.
            if not os.path.samefile(temporary, path):
                raise
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if contested:
                _claim(temporary, path)
            elif path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            else:
                temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def claim_of(path: Path) -> Path:
    """The folder that reserves a contested name for its first writer, where there are no links."""
    return path.with_name(f".{path.name}.claim")


def _claim(temporary: Path, path: Path) -> None:
    """Publish without links: whoever renames a folder into the claim's place wins.

    A folder is never renamed onto one that holds something, so a claim is won once and stays. It
    holds the whole file, which the next writer of the name moves into place if its owner died.
    """
    claim, mine = claim_of(path), temporary_beside(path)
    mine.mkdir()
    try:
        write_new(mine / "claimed", b"")
        temporary.rename(mine / path.name)
        sync_folder(mine)
        won = rename_folder(mine, claim)
        with contextlib.suppress(FileNotFoundError):  # another writer moved it into place
            if not path.exists():
                (claim / path.name).rename(path)
            elif won:
                (claim / path.name).unlink()
                won = False  # the name was taken before it was claimed
        if not won:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    finally:
        delete_folder(mine)


def rename_folder(path: Path, target: Path) -> bool:
    """Rename a folder unless `target` is there and holds something; returns whether it was done."""
    try:
        path.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def replace(path: Path, data: Bytes, *, durable: bool = True) -> None:
    """Give `path` new content at once; a reader sees the old or the new, never a part.

    durable: False for what can be made again, and is checked when it is read.
    """
    with replacing(path, durable=durable) as file:
        write_all(file.fileno(), data)


@contextlib.contextmanager
def replacing(path: Path, *, text: bool = False, durable: bool = True) -> Iterator[IO[Any]]:
    """A new file that takes `path`'s place, whole; after an exception there is none.

    text: open it for UTF-8 text, with line ends as they are written; otherwise for bytes.
    durable: as `replace` has it.
    """
    temporary = temporary_beside(path)
    try:
        with open(
            temporary,
            "x" if text else "xb",
            encoding="utf-8" if text else None,
            newline="" if text else None,
        ) as file:
            yield file
            file.flush()
            if durable:
                sync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def temporary_beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that nobody else uses, and that says who made it."""
    return path.with_name(f".{path.name}.{mark_of_process()}")


def mark_of_process() -> str:
    """Text for a hidden name: random, and naming this process among all that run anywhere."""
    pid = os.getpid()
    return f"{secrets.token_hex(4)}-{_machine()}-{pid}-{_started(pid) or 0}"


def maker_is_gone(name: str) -> bool | None:
    """Whether the process that made a name by `mark_of_process` has ended.

    None where that cannot be known here: it ran on another machine, or in another container.
    """
    match = _MARK.search(name)
    if match is None or match[1] != _machine() or not Path("/proc/self/stat").exists():
        return None
    started = _started(int(match[2]))
    return started is None or started != int(match[3])


def process_of(name: str) -> tuple[int, int] | None:
    """Number and start of the process that made a name by `mark_of_process`; None for others."""
    match = _MARK.search(name)
    return None if match is None else (int(match[2]), int(match[3]))


_MARK = re.compile(r"[.-][0-9a-f]{8}-([0-9a-f]{8})-(\d{1,10})-(\d{1,20})(?:\.claim)?$")


@functools.cache
def _machine() -> str:
    """Eight digits for this start of this machine, and the processes that can be seen here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        seen = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, seen = platform.node(), ""
    return hashlib.sha256(f"{boot}{seen}".encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When a process began, in the machine's own count; None where there is none of that number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def remove_folder(path: Path) -> bool:
    """Remove a folder under a hidden name first, so that nobody meets half of it.

    Returns whether nothing of it is left.
    """
    hidden = path.with_name(f".old-{mark_of_process()}")
    try:
        path.rename(hidden)
    except FileNotFoundError:
        return True
    return delete_folder(hidden)


def delete_folder(path: Path, *, ours: Callable[[str], bool] | None = None) -> bool:
    """Delete a folder and all that it holds, beside others who may be at it too.

    ours: which files to delete, by their paths in the folder; None for all.
    Returns whether nothing is left: on NFS a file that a process holds open stays until it is
    closed. Of a link in the folder's place only the link goes, never what it leads to.
    """
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return True
    for parent, folders, files in os.walk(path, topdown=False):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in [*files, *links]:
            one = Path(parent, name)
            if ours is None or (not one.is_symlink() and ours(one.relative_to(path).as_posix())):
                one.unlink(missing_ok=True)
        for name in folders:
            if name not in links:
                remove_empty(Path(parent, name))
    remove_empty(path)
    return not path.exists()


def remove_empty(path: Path | str) -> None:
    """Remove a folder unless it holds something, or is not there."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def now_beside(folder: Path) -> float:
    """What time the file system of `folder` says it is, which may differ from this machine's.

    Files' times are compared with this, so that a clock that is wrong decides nothing.
    """
    probe = folder / f".now.{mark_of_process()}"
    fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)
        probe.unlink(missing_ok=True)


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
        raise Damaged(f"{folder} is not a folder") from None
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


def read_kept(path: Path, *, limit: int) -> bytes | None:
    """The bytes of a small file that this machine keeps for itself, and can make again.

    None where there is none that can be read: also for a pipe in its place, which would keep a
    reader waiting for good, for a link, and past `limit` bytes.
    """
    try:
        return read_inside(path.parent, path.name, limit=limit)
    except (OSError, Damaged):
        return None


def advice_on(number: int | None) -> str:
    """What to do about an error of the operating system; "" where nothing is known."""
    return _ADVICE.get(number or 0, "")


def system_error_in(error: Exception) -> OSError | None:
    """The operating system's error that a library reports as one of its own; None for none."""
    found = re.search(r"\(os error (\d{1,3})\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, or one that it came of, says that memory or threads ran out.

    Libraries say so in many ways, mostly while they are loaded.
    """
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    for one in chain:
        said = str(one).lower()
        if isinstance(one, MemoryError) or getattr(one, "errno", None) == errno.ENOMEM:
            return True
        if isinstance(one, ImportError | RuntimeError | OSError) and any(
            text in said for text in _NO_MEMORY
        ):
            return True
        if limited and isinstance(one, SystemError):  # as CPython says it, among other things
            return True
    return False


@contextlib.contextmanager
def plain_errors(action: str, path: Path) -> Iterator[None]:
    """Turn what the operating system refuses (space, rights, memory, files) into a CacheError.

    action: such as "read"; where only a write can have been refused, that is said.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise CacheError(f"cannot {action} {path}: {_ADVICE[errno.ENOMEM]}") from error
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        if advice is None and error.errno not in (errno.EIO, errno.ENAMETOOLONG):
            raise
        reason = advice or f"{error.strerror}: check the disk"
        if action == "read" and error.errno in _OF_WRITES:
            action = "write to"
        raise CacheError(f"cannot {action} {path}: {reason}") from error
