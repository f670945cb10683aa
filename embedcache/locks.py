"""Locks between processes: waited for, but not without end, and with a word on who holds them.

A process that is stopped (Ctrl-Z, SIGSTOP) keeps its locks. Whoever waits for one gives up after a
while and says which process it is, as far as this machine knows.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from embedcache.errors import CacheError

WAIT_SECONDS = 30.0
LOOK_SECONDS = 0.05
_HELD = (errno.EAGAIN, errno.EACCES)
MAX_WORDS = 120  # characters of a command line that a message shows


@contextlib.contextmanager
def alone_in(folder: Path, *, patient: bool = False) -> Iterator[None]:
    """Let one process at a time rename folders in `folder`, where its file system has locks.

    patient: as `take` has it. Raises CacheError, saying who holds it, after WAIT_SECONDS.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            take(fd, folder, patient=patient)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # a process that was forked meanwhile has it open too
        os.close(fd)


def take(fd: int, path: Path, *, record: bool = False, patient: bool = False) -> None:
    """Take the exclusive lock of an open file or folder; `path` is what messages call it.

    record: a POSIX record lock (`lockf`) instead of `flock`.
    patient: its holder may be at work for long, so that a wait ends only for one that is stopped.
    Raises CacheError after WAIT_SECONDS, and OSError where there are no locks.
    """
    began = time.monotonic()
    while True:
        lock = fcntl.lockf if record else fcntl.flock  # looked up late, as tests replace them
        try:
            lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in _HELD:
                raise
        if time.monotonic() - began >= WAIT_SECONDS:
            holder = _holder(fd, record=record)
            if not patient or (holder is not None and _is_stopped(holder)):
                raise _held(path, holder)
            began = time.monotonic()
        pause()


def pause() -> None:
    """Wait before the next look at a lock that another process holds."""
    time.sleep(LOOK_SECONDS)


def _held(path: Path, holder: int | None) -> CacheError:
    """The error of a lock that another process has held all the while."""
    if holder is None:
        return CacheError(
            f"{path} has been locked for {WAIT_SECONDS:.0f} s by another process, on this machine "
            "or another",
            advice="Find out which embedcache runs there, and end it if it is stuck; then rerun "
            "the command",
        )
    who = f"process {holder} ({_words(holder)})"
    if _is_stopped(holder):
        return CacheError(
            f"{path} is locked by {who}, which is stopped",
            advice=f"Let it go on ('fg' in its terminal, or 'kill -CONT {holder}') or end it "
            f"('kill -9 {holder}'); then rerun the command",
        )
    return CacheError(
        f"{path} has been locked for {WAIT_SECONDS:.0f} s by {who}",
        advice="Wait until it has ended, or end it if it is stuck; then rerun the command",
    )


def _holder(fd: int, *, record: bool) -> int | None:
    """The number of the process that holds the lock of an open file; None where it is unknown."""
    found = os.fstat(fd)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    pids: dict[str, int] = {}
    for line in _lines(Path("/proc/locks")):
        _, kind, _, _, pid, inode, *_ = [*line.split(), *[""] * 7][:8]
        where, _, number = inode.rpartition(":")
        if (kind, number) == ("POSIX" if record else "FLOCK", str(found.st_ino)):
            pids.setdefault(where, int(pid) if pid.isdigit() else 0)
    known = pids.get(place) or (next(iter(pids.values())) if len(pids) == 1 else 0)
    return known or None  # 0: of another container


def _is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    line = next(iter(_lines(Path(f"/proc/{pid}/stat"))), "")
    return line.rpartition(")")[2].split()[:1] in (["T"], ["t"])


def _words(pid: int) -> str:
    """The command line of a process, without the folders of its program; its name otherwise."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        raw = b""
    words = [word for word in raw.decode("utf-8", "replace").split("\0") if word]
    text = " ".join([*(Path(word).name for word in words[:1]), *words[1:]])
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return (shown if len(shown) <= MAX_WORDS else f"{shown[:MAX_WORDS]} ...") or "unknown"


def _lines(path: Path) -> list[str]:
    """The lines of a file of /proc; none where there is no such file."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
