"""Content digests of photo files: sha256 of each one's bytes, remembered while nothing changed.

A file is known again by its path, size and mtime_ns. One that changed so shortly before it was read
that it may change again within a tick of its clock is not remembered.
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

MAX_FILE_BYTES = 512 * 2**20
CLOCK_RESOLUTION_NS = 2_000_000_000
"""A file changed this shortly before it was read may change again within one tick of its clock
(FAT counts two seconds), so its digest is not remembered."""

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_STAT_FILES = 1024  # asked of the memo at once
_LOOK_FILES = 64  # between two looks at the clock: 30 ms of a slow network folder
_AHEAD = 64  # files waiting to be read, per worker
_BLOCK_BYTES = 2**20
_TICK_SECONDS = 0.1
_KEEP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Digests:
    """Content digests of n photos, in the photos' order.

    value: uint8 (n, 32), sha256; zeros where there is none.
    reasons: why, by position, for files that could not be read.
    n_read: files whose bytes were read; the others were remembered.
    unread: int64, ascending: positions that were not come to, because the reading was stopped.
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


class Memo:
    """Digests remembered by path, size and mtime_ns, in one npz file (no pickle).

    A lost or damaged memo costs time and nothing else, so it is read leniently and two processes
    that write it at once leave one of the two.
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
        with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
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
        self._merge()
        text = "\0".join(self._rows).encode("utf-8", "surrogateescape")
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.npz")
        try:
            np.savez(
                temporary,
                paths=np.frombuffer(text, np.uint8),
                sizes=self._sizes,
                mtimes=self._mtimes,
                digests=self._digests,
            )
            temporary.replace(self._path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()

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


@dataclass(frozen=True, slots=True)
class _Reading:
    """A file that is being read: its position, its name in the memo, and what it was before."""

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
    return _Digesting(paths, Memo.read(memo), progress, stop).run(max(1, workers))


class _Digesting:
    """One pass over the files: the calling thread asks for their status, others read."""

    def __init__(
        self,
        paths: Sequence[str],
        memo: Memo,
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
        self.told = time.monotonic()
        self.kept = self.told

    def run(self, workers: int) -> Digests:
        here = os.getcwd()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="digest")
        try:
            for start in range(0, len(self.paths), _STAT_FILES):
                some = self.paths[start : start + _STAT_FILES]
                names = [path if path[:1] == os.sep else os.path.join(here, path) for path in some]
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
        """Ask for the status of some files; of those to read: (place in `names`, size, mtime)."""
        sizes, mtimes = np.full((2, len(names)), -1, np.int64)
        regular = np.zeros(len(names), bool)
        for i, name in enumerate(names):
            if not i % _LOOK_FILES and self._halted():
                break
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
        """Wait for the file that has waited longest, for a tick at most."""
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
        self.value[reading.position] = np.frombuffer(digest, np.uint8)
        self.seen[reading.position] = True
        self.n_seen += 1
        self.n_read += 1
        self.memo.put(reading.name, reading.size, reading.mtime_ns, digest, read_ns)

    def _fail(self, position: int, reason: str) -> None:
        self.reasons[position] = reason
        self.seen[position] = True
        self.n_seen += 1

    def _halted(self) -> bool:
        """Ten times a second: show how far it is, ask whether to stop. Keep what was learned."""
        now = time.monotonic()
        if now - self.told >= _TICK_SECONDS:
            self.told = now
            if self.progress is not None:
                self.progress(self.n_seen, len(self.paths))
            if self.stop():
                self.halt.set()
            if now - self.kept >= _KEEP_SECONDS:  # a killed run then loses a minute of reading
                self.memo.write()
                self.kept = time.monotonic()
        return self.halt.is_set()


def read_file(path: str) -> bytes:
    """The file's bytes; OSError as the system says it, and for a file that is too large to be one
    photo (MAX_FILE_BYTES) or is no regular file."""
    with _opened(path) as (file, _):
        return file.read()


def reason_of(error: OSError) -> str:
    """The ledger's word for a file that could not be read."""
    if isinstance(error, FileNotFoundError):
        return "vanished"
    return "too_large_file" if error.errno == errno.EFBIG else "unreadable"


class _Halted(Exception):
    """The reading was stopped in the middle of this file."""


def _digest(path: str, halt: threading.Event) -> tuple[bytes, int]:
    """(sha256 of the file's bytes, when its reading began)."""
    read_ns = time.time_ns()
    digest = hashlib.sha256()
    if halt.is_set():
        raise _Halted
    with _opened(path) as (file, n_bytes):
        while block := file.read(min(n_bytes + 1, _BLOCK_BYTES)):
            digest.update(block)
            if halt.is_set():
                raise _Halted
    return digest.digest(), read_ns


@contextmanager
def _opened(path: str) -> Iterator[tuple[io.FileIO, int]]:
    """(a regular file, its size)."""
    # Without O_NONBLOCK a named pipe among the photos would stop the run for good.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, "too large for a photo")
        yield file, status.st_size
