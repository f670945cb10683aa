"""Content digests of photo files: the sha256 of each file's bytes, remembered until it changes.

A file is recognised by its path, size and mtime_ns. A digest is not remembered when the file
changed so recently that it may change again within one tick of its clock.
"""

import errno
import hashlib
import io
import os
import stat
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from embedcache import disk, locks
from embedcache.errors import CacheError, Damaged

MAX_FILE_BYTES = 256 * 2**20
"""A larger file is not read: `too_large_file`."""
CLOCK_RESOLUTION_NS = 2_000_000_000
"""A file that changed this recently before it was read may change again within one tick of its
clock (FAT counts in two seconds), so its digest is not remembered."""

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_STAT_FILES = 1024  # looked up in the memo at once
_LOOK_FILES = 64  # between two readings of the clock: 30 ms of a slow network folder
_AHEAD = 64  # files waiting to be read, per worker
_BLOCK_BYTES = 2**20
_TICK_SECONDS = 0.1
_KEEP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Digests:
    """Content digests of n photos, in the photos' order.

    value: uint8 (n, 32), sha256; zeros where there is none.
    reasons: by position, why a file could not be read.
    n_read: files whose bytes were read; the digests of the others were remembered.
    unread: int64, ascending: positions that were not reached, because the reading was stopped.
    """

    value: U8
    reasons: dict[int, str]
    n_read: int
    unread: I64

    @property
    def stopped(self) -> bool:
        """Whether `stop` ended the reading before every file was looked at."""
        return len(self.unread) > 0

    @property
    def readable(self) -> Bool:
        """bool (n,): which photos have a digest."""
        ok = np.ones(len(self.value), bool)
        ok[list(self.reasons)] = False
        ok[self.unread] = False
        return ok


class DigestMemo:
    """Digests remembered by path, size and mtime_ns, in one npz file (no pickle).

    A lost or damaged file costs time and nothing else, so it is read leniently. Processes that
    write it at the same time merge what they learned, one after another.
    """

    def __init__(
        self, path: Path | None, names: Sequence[str], sizes: I64, mtimes: I64, digests: U8
    ) -> None:
        self._path = path
        self._rows = dict(zip(names, range(len(names)), strict=True))
        self._sizes, self._mtimes, self._digests = sizes, mtimes, digests
        self._learned: dict[str, tuple[int, int, bytes]] = {}

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """The memo in `path`, empty when there is none or it cannot be read."""
        none = np.empty(0, np.int64)
        empty = cls(path, [], none, none, np.empty((0, 32), np.uint8))
        if path is None:
            return empty
        with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, Damaged):
            opened = os.fdopen(disk.open_plain(str(path)), "rb")
            with opened as file, np.load(file, allow_pickle=False) as stored:
                names = stored["paths"].tobytes().decode("utf-8", "surrogateescape").split("\0")
                sizes, mtimes = (stored[name].astype(np.int64) for name in ("sizes", "mtimes"))
                digests = stored["digests"].astype(np.uint8, copy=False).reshape(-1, 32)
            if sizes.shape == mtimes.shape == (len(names),) and len(digests) == len(names):
                return cls(path, names, sizes, mtimes, digests)
        return empty

    def look(self, names: Sequence[str], sizes: I64, mtimes: I64) -> tuple[U8, Bool]:
        """What is remembered of n files: ((n, 32), which have not changed since)."""
        rows = np.fromiter(map(self._rows.get, names, repeat(-1)), np.int64, len(names))
        known = rows >= 0
        known[known] = (self._sizes[rows[known]] == sizes[known]) & (
            self._mtimes[rows[known]] == mtimes[known]
        )
        digests = np.zeros((len(names), 32), np.uint8)
        digests[known] = self._digests[rows[known]]
        return digests, known

    def files_of(self, contents: U8) -> list[tuple[str, int]]:
        """The files that had one of (n, 32) contents when they were last read: (path, place).

        place: which of the contents. A file may have gone or changed since.
        """
        place = {row.tobytes(): k for k, row in enumerate(contents)}
        return [
            (name, place[content])
            for name, row in self._rows.items()
            if (content := self._digests[row].tobytes()) in place
        ]

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Every path that is remembered, with the digest that its file had."""
        for name, row in self._rows.items():
            yield name, self._digests[row].tobytes()

    def put(self, name: str, size: int, mtime_ns: int, digest: bytes, read_ns: int) -> None:
        """Remember `digest`, unless the file was so new at `read_ns` that it may change unnoticed.

        size, mtime_ns: from before the file was read.
        """
        if read_ns - mtime_ns > CLOCK_RESOLUTION_NS:
            self._learned[name] = (size, mtime_ns, digest)

    def write(self) -> None:
        """Store what was learned; a full disk or a read-only folder is no error here."""
        if self._path is None or not self._learned:
            return
        with suppress(OSError), _locked(self._path.with_name(f".{self._path.name}.lock")):
            self._reload()
            self._merge()
            packed = io.BytesIO()
            text = "\0".join(self._rows).encode("utf-8", "surrogateescape")
            np.savez(
                packed,
                paths=np.frombuffer(text, np.uint8),
                sizes=self._sizes,
                mtimes=self._mtimes,
                digests=self._digests,
            )
            disk.replace(self._path, packed.getbuffer())

    def _reload(self) -> None:
        """Take over what other processes have written since this memo was read."""
        there = DigestMemo.read(self._path)
        self._rows = there._rows
        self._sizes, self._mtimes, self._digests = there._sizes, there._mtimes, there._digests

    def _merge(self) -> None:
        rows = [self._rows.setdefault(name, len(self._rows)) for name in self._learned]
        more = len(self._rows) - len(self._sizes)
        self._sizes = np.append(self._sizes, np.zeros(more, np.int64))
        self._mtimes = np.append(self._mtimes, np.zeros(more, np.int64))
        self._digests = np.append(self._digests, np.zeros((more, 32), np.uint8), axis=0)
        sizes, mtimes, digests = zip(*self._learned.values(), strict=True)
        self._sizes[rows], self._mtimes[rows] = sizes, mtimes
        self._digests[rows] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        self._learned = {}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; without the lock it costs what two writers would merge."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # it may be no file of ours
    with os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
        with suppress(OSError, CacheError):
            locks.take(file.fileno(), path)
        yield


@dataclass(frozen=True, slots=True)
class _Reading:
    """A file that is being read: its position, its name in the memo, its state before."""

    position: int
    name: str
    size: int
    mtime_ns: int
    answer: "Future[tuple[bytes, int]]"


def digest_files(
    paths: Sequence[str],
    memo: Path | None,
    *,
    workers: int,
    progress: Callable[[int, int], None] | None,
    stop: Callable[[], bool],
) -> Digests:
    """sha256 of every file's bytes; see `Photos.digests`."""
    return _Digesting(paths, DigestMemo.read(memo), progress, stop).run(max(1, workers))


class _Digesting:
    """One pass over the files: the calling thread asks for their status, others read."""

    def __init__(
        self,
        paths: Sequence[str],
        memo: DigestMemo,
        progress: Callable[[int, int], None] | None,
        stop: Callable[[], bool],
    ) -> None:
        self.paths = paths
        self.memo = memo
        self.progress = progress
        self.stop = stop
        self.value = np.zeros((len(paths), 32), np.uint8)
        self.reasons: dict[int, str] = {}
        self.seen = np.zeros(len(paths), bool)
        self.n_seen = self.n_read = 0
        self.halt = threading.Event()
        self.waiting: deque[_Reading] = deque()
        self.shown = time.monotonic()
        self.kept = self.shown

    def run(self, workers: int) -> Digests:
        here = os.getcwd()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="digest")
        try:
            for start in range(0, len(self.paths), _STAT_FILES):
                some = self.paths[start : start + _STAT_FILES]
                names = [_absolute(path, here) for path in some]
                for i, size, mtime_ns in self._changed(start, names):
                    while len(self.waiting) >= _AHEAD * workers and not self.halt.is_set():
                        self._collect()
                    if self.halt.is_set():
                        break
                    answer = pool.submit(_digest, names[i], self.halt)
                    self.waiting.append(_Reading(start + i, names[i], size, mtime_ns, answer))
                if self.halt.is_set():
                    break
            while self.waiting and not self.halt.is_set():
                self._collect()
        finally:
            self.halt.set()
            pool.shutdown(cancel_futures=True)
            for reading in self.waiting:
                if not reading.answer.cancelled():
                    self._take(reading)
            self.memo.write()
        if self.progress is not None:
            self.progress(self.n_seen, len(self.paths))
        return Digests(self.value, self.reasons, self.n_read, np.flatnonzero(~self.seen))

    def _changed(self, start: int, names: Sequence[str]) -> list[tuple[int, int, int]]:
        """Look up some files; returns (place in `names`, size, mtime) of those to read."""
        sizes, mtimes = np.full((2, len(names)), -1, np.int64)
        regular = np.zeros(len(names), bool)
        for i, name in enumerate(names):
            if not i % _LOOK_FILES and self._halted():
                break
            if isinstance(name, InlinePhoto):
                self._keep(start + i, hashlib.sha256(name.data).digest())
                continue
            try:
                found = os.stat(name)
            except OSError as error:
                self._fail(start + i, reason_of(error))
                continue
            if stat.S_ISREG(found.st_mode):
                sizes[i], mtimes[i], regular[i] = found.st_size, found.st_mtime_ns, True
            else:
                self._fail(start + i, "unreadable")
        digests, known = self.memo.look(names, sizes, mtimes)
        known &= regular
        rows = start + np.flatnonzero(known)
        self.value[rows] = digests[known]
        self.seen[rows] = True
        self.n_seen += len(rows)
        fresh = np.flatnonzero(regular & ~known)
        return list(zip(fresh.tolist(), sizes[fresh].tolist(), mtimes[fresh].tolist(), strict=True))

    def _collect(self) -> None:
        """Wait for the oldest pending file, for one tick at most."""
        try:
            self.waiting[0].answer.exception(_TICK_SECONDS)
        except TimeoutError:
            pass
        else:
            self._take(self.waiting.popleft())
        self._halted()

    def _take(self, reading: _Reading) -> None:
        try:
            digest, read_ns = reading.answer.result()
        except _Halted:
            return
        except OSError as error:
            self._fail(reading.position, reason_of(error))
            return
        self._keep(reading.position, digest)
        self.memo.put(reading.name, reading.size, reading.mtime_ns, digest, read_ns)

    def _keep(self, position: int, digest: bytes) -> None:
        self.value[position] = np.frombuffer(digest, np.uint8)
        self.seen[position] = True
        self.n_seen += 1
        self.n_read += 1

    def _fail(self, position: int, reason: str) -> None:
        self.reasons[position] = reason
        self.seen[position] = True
        self.n_seen += 1

    def _halted(self) -> bool:
        """Ten times a second: report progress, ask whether to stop, save the memo now and then."""
        now = time.monotonic()
        if now - self.shown >= _TICK_SECONDS:
            self.shown = now
            if self.progress is not None:
                self.progress(self.n_seen, len(self.paths))
            if self.stop():
                self.halt.set()
            if now - self.kept >= _KEEP_SECONDS:  # a killed run then loses a minute of reading
                self.memo.write()
                self.kept = time.monotonic()
        return self.halt.is_set()


class InlinePhoto(str):
    """The path of a photo that no file holds: it carries the bytes, from a table's own column."""

    data: bytes

    @classmethod
    def of(cls, name: str, data: bytes) -> Self:
        """`name` as a path that gives `data`."""
        photo = cls(name)
        photo.data = data
        return photo


def read_file(path: str) -> bytes:
    """The file's bytes.

    Raises OSError as the system reports it, and for a file that is no regular file, that gives no
    bytes at once (as some of /proc) or that is larger than MAX_FILE_BYTES.
    """
    if isinstance(path, InlinePhoto):
        return path.data
    return b"".join(_blocks(path, n_bytes=MAX_FILE_BYTES))


def reason_of(error: OSError) -> str:
    """The ledger's word for a file that could not be read."""
    if isinstance(error, FileNotFoundError):
        return "vanished"
    return "too_large_file" if error.errno == errno.EFBIG else "unreadable"


def _absolute(path: str, here: str) -> str:
    """The path's name in the memo."""
    if path[:1] == os.sep or isinstance(path, InlinePhoto):
        return path
    return os.path.join(here, path)


class _Halted(Exception):
    """The reading was stopped in the middle of this file."""


def _digest(path: str, halt: threading.Event) -> tuple[bytes, int]:
    """(sha256 of the file's bytes, when its reading began)."""
    read_ns = time.time_ns()
    digest = hashlib.sha256()
    if halt.is_set():
        raise _Halted
    for block in _blocks(path, n_bytes=_BLOCK_BYTES):
        digest.update(block)
        if halt.is_set():
            raise _Halted
    return digest.digest(), read_ns


def _blocks(path: str, *, n_bytes: int) -> Iterator[bytes]:
    """The bytes of a regular file, in blocks of `n_bytes` at most."""
    # Without O_NONBLOCK a named pipe among the photos would stop the run for good.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a regular file")
        done, size = 0, status.st_size
        while done <= MAX_FILE_BYTES and size <= MAX_FILE_BYTES:
            block = file.read(min(size + 1, n_bytes))
            if block is None:  # a file of the kernel's, such as /proc/kmsg, that has nothing yet
                raise BlockingIOError(errno.EAGAIN, "no bytes to read")
            if not block:
                return
            done += len(block)
            yield block
        raise OSError(errno.EFBIG, "too large for a photo")
