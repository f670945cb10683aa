"""What a segment's writer leaves behind while it works, so that a crash loses nothing.

A segment being written has a folder `writing/` with a lease (who writes) and a journal (which rows
have been written). Its writer holds a lock on the journal for as long as it lives; the system drops
the lock when the process dies. A journal is a sequence of frames, each with its length and CRC, and
is read up to the first frame that does not hold.
"""

import errno
import fcntl
import json
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.spec import Json, canonical_json
from embedcache.store.checksums import crc32c

FOLDER = "writing"
LEASE_SECONDS = 3600.0
SYNC_SECONDS = 5.0

_FRAME = struct.Struct("<4sII")
_MAGIC = b"EJ1\n"
_MAX_FRAME = 64 << 20
_MAX_JOURNAL = 128 << 20


class Journal:
    """The open journal of a segment that this process is writing."""

    def __init__(self, folder: Path, lease: dict[str, Json]) -> None:
        """Make `folder`/writing with its lease and an empty, locked journal."""
        self._folder = folder / FOLDER
        self._folder.mkdir()
        disk.write_new(self._folder / "lease.json", canonical_json(lease | _whoami()))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._folder / "journal", flags, 0o666)
        # A record lock, not flock: children that a fork leaves behind must not inherit it.
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def moved(self, folder: Path) -> None:
        """The segment's folder has been renamed."""
        self._folder = folder / FOLDER

    def append(self, kind: bytes, payload: bytes) -> None:
        """Add a frame: one byte of kind, then the payload."""
        body = kind + payload
        if len(body) > _MAX_FRAME:
            raise ValueError(f"{len(body):,} bytes of journal at once: add fewer rows at a time")
        disk.write_all(self._fd, _FRAME.pack(_MAGIC, len(body), crc32c(body)) + body)

    def sync(self) -> None:
        disk.sync(self._fd)

    def abandon(self) -> None:
        """Let go; the lease is withdrawn, so that anyone may salvage the rows at once."""
        (self._folder / "lease.json").rename(self._folder / "abandoned.json")
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Claim:
    """The right to salvage an abandoned segment: holds its journal's lock until closed."""

    def __init__(self, folder: Path, fd: int, lease: dict[str, Any]) -> None:
        self.folder = folder
        self.lease = lease
        self._fd = fd

    @classmethod
    def take(cls, folder: Path) -> "Claim | None":
        """Claim a segment folder without a manifest; None while its writer may be alive."""
        try:
            lease, withdrawn = _read_lease(folder)
            me = _whoami()
            # A record lock falls when its own process closes any descriptor of the file: a journal
            # that this process is writing must not even be opened here.
            if lease is None:
                mine = _is_open_here(folder / FOLDER / "journal")
            else:
                mine = not withdrawn and all(lease.get(key) == me[key] for key in me)
            if mine:
                return None
            fd = os.open(folder / FOLDER / "journal", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
                return None
            raise
        # The lock speaks for every process on this kernel, whatever container it runs in.
        # Of a lease that cannot be read nothing is known, and the lock alone decides.
        near = lease is None or any(lease.get(key) == me[key] for key in ("boot", "host"))
        if withdrawn or near or _age(folder, fd) >= LEASE_SECONDS:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    os.close(fd)
                    raise
            else:
                if (folder / FOLDER / "journal").exists():
                    return cls(folder, fd, lease or {})
        os.close(fd)
        return None

    def frames(self) -> Iterator[tuple[bytes, memoryview]]:
        """(kind, payload) of each frame up to the first that does not hold, or that is too far."""
        offset = 0
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            return  # no journal of ours
        while offset < _MAX_JOURNAL:
            head = os.pread(self._fd, _FRAME.size, offset)
            if len(head) < _FRAME.size:
                return
            magic, length, crc = _FRAME.unpack(head)
            if magic != _MAGIC or not 1 <= length <= _MAX_FRAME:
                return
            body = os.pread(self._fd, length, offset + _FRAME.size)
            if len(body) < length or crc32c(body) != crc:
                return
            yield body[:1], memoryview(body)[1:]
            offset += _FRAME.size + length

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Written:
    """How far the journal of a draft is: bytes in whole frames, and rows in them."""

    n_bytes: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Writing:
    """A draft as others see it. lease: who writes. quiet_seconds: since its journal grew last."""

    lease: dict[str, Any]
    written: Written
    quiet_seconds: float


def look(folder: Path, *, before: Written | None = None) -> Writing | None:
    """How far a draft is; None where nobody who lives writes it, or this process does.

    before: how far it was at the last look.
    """
    try:
        lease, withdrawn = _read_lease(folder)
        me = _whoami()
        if lease is None or withdrawn or all(lease.get(key) == me[key] for key in me):
            return None  # of its own journal a process must close no descriptor
        fd = disk.open_inside(folder, f"{FOLDER}/journal")
    except (OSError, Damaged):
        return None
    try:
        age = _age(folder, fd)
        if any(lease.get(key) == me[key] for key in ("boot", "host")):
            try:  # for a moment only, and shared
                fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except OSError:
                pass
        elif age >= LEASE_SECONDS:
            return None
        return Writing(lease, _counted(fd, before or Written()), max(0.0, age))
    except OSError:
        return None
    finally:
        os.close(fd)


def _counted(fd: int, before: Written) -> Written:
    """How far a journal is, by the heads of its frames; each begins with how many rows it has."""
    offset, rows = before.n_bytes, before.rows
    while offset < _MAX_JOURNAL:
        head = os.pread(fd, _FRAME.size + 5, offset)
        if len(head) < _FRAME.size + 5:
            break
        magic, length, _ = _FRAME.unpack(head[: _FRAME.size])
        whole = offset + _FRAME.size + length <= os.fstat(fd).st_size
        if magic != _MAGIC or not 5 <= length <= _MAX_FRAME or not whole:
            break
        rows += int.from_bytes(head[-4:], "little")
        offset += _FRAME.size + length
    return Written(offset, rows)


def holder(folder: Path) -> str:
    """Who holds a folder that is being written, as far as that is known; "" for nobody."""
    try:
        claim = Claim.take(folder)
        if claim is not None:
            claim.close()
            return ""
        lease, _ = _read_lease(folder)
    except (OSError, Damaged):
        lease = None
    if lease is None or "pid" not in lease:
        return "an unknown process"
    return f"process {lease.get('pid')} on {lease.get('host')}"


def has_lease(folder: Path) -> bool:
    """Whether a folder that is being written has a lease that can be read, and names a writer."""
    try:
        return "pid" in (_read_lease(folder)[0] or {})
    except (OSError, Damaged):
        return False


def _is_open_here(path: Path) -> bool:
    """Whether this process has a file open, found without opening it."""
    wanted = path.stat()
    for fd in os.listdir("/dev/fd"):
        try:
            if os.path.samestat(os.fstat(int(fd)), wanted):
                return True
        except OSError:
            continue  # the listing's own descriptor, closed by now
    return False


def _age(folder: Path, fd: int) -> float:
    """Seconds since a file was changed, by the clock of its own file system."""
    try:
        return disk.now_beside(folder.parent) - os.fstat(fd).st_mtime
    except OSError:
        return 0.0


def _read_lease(folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """The lease of a segment being written, and whether its writer has withdrawn it.

    None for a lease that is lost or damaged, as after a power cut.
    """
    for name, withdrawn in (("lease.json", False), ("abandoned.json", True)):
        try:
            raw = disk.read_inside(folder, f"{FOLDER}/{name}", limit=1 << 20)
            lease = json.loads(raw)
        except FileNotFoundError:
            continue
        except (ValueError, RecursionError, Damaged):
            lease = None
        return (lease if isinstance(lease, dict) else None), withdrawn
    return None, False


def _whoami() -> dict[str, Json]:
    """This process, which differs from a later one with the same number."""
    try:
        started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        started = boot = socket.gethostname()
    return {"host": socket.gethostname(), "boot": boot, "pid": os.getpid(), "started": started}
