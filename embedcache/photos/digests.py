"""Content digests of photo files: the sha256 of each file's bytes, remembered until it changes.

A file is recognised by its path, size and mtime_ns (`memo`).
"""

import errno
import hashlib
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from embedcache.photos.memo import DigestMemo, absolute

MAX_FILE_BYTES = 256 * 2**20
"""A larger file is not read: `too_large_file`."""
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


@dataclass(frozen=True, slots=True)
class _Reading:
    """A file that is being read: its position, its name in the memo, its state before."""

    position: int
    name: str
    size: int
    mtime_ns: int
    answer: "Future[tuple[bytes, int]]"


@dataclass(frozen=True, slots=True)
class Memory:
    """Where digests are remembered, and which must not be, as the photos were forgotten.

    place: the memo's file: another one as soon as more is forgotten.
    writing: while a memo is written there: makes its folder, and deletes it once it is outdated.
    forgotten: which of some photos are, by their positions, with digests (n, 32).
    """

    place: Callable[[], Path]
    writing: Callable[[Path], AbstractContextManager[None]]
    forgotten: Callable[[Sequence[int], U8], Bool]


def digest_files(
    paths: Sequence[str],
    memory: Memory | None,
    *,
    workers: int,
    progress: Callable[[int, int], None] | None,
    stop: Callable[[], bool],
) -> Digests:
    """sha256 of every file's bytes; see `Photos.digests`."""
    return _Digesting(paths, memory, progress, stop).run(max(1, workers))


class _Digesting:
    """One pass over the files: the calling thread asks for their status, others read."""

    def __init__(
        self,
        paths: Sequence[str],
        memory: Memory | None,
        progress: Callable[[int, int], None] | None,
        stop: Callable[[], bool],
    ) -> None:
        self.memory = memory
        self.learned: list[tuple[int, tuple[str, int, int, bytes, int]]] = []  # position, for memo
        self.paths = paths
        self.memo = DigestMemo(None if memory is None else memory.place())
        self.progress = progress
        self.stop = stop
        self.recalled = self.memo.recall(paths)
        self.value = self.recalled.digests  # until a file is looked at: what it had
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
                names = [
                    path if isinstance(path, InlinePhoto) else absolute(path, here) for path in some
                ]
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
            self._save()
        self.value[~self.seen] = 0
        if self.progress is not None:
            self.progress(self.n_seen, len(self.paths))
        return Digests(self.value, self.reasons, self.n_read, np.flatnonzero(~self.seen))

    def _changed(self, start: int, names: Sequence[str]) -> list[tuple[int, int, int]]:
        """Look up some files; returns (place in `names`, size, mtime) of those to read."""
        part = slice(start, start + len(names))
        before = self.value[part].copy()
        self.value[part] = 0
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
        known = (self.recalled.sizes[part] == sizes) & (self.recalled.mtimes[part] == mtimes)
        known &= regular
        rows = start + np.flatnonzero(known)
        self.value[rows] = before[known]
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
        entry = reading.name, reading.size, reading.mtime_ns, digest, read_ns
        self.learned.append((reading.position, entry))
        if len(self.learned) >= _STAT_FILES:
            self._learn()

    def _learn(self) -> None:
        """Give the memo what was learned, without what must not be in it."""
        learned, self.learned = self.learned, []
        banned = [False] * len(learned)
        if self.memory is not None and learned:
            value = np.frombuffer(b"".join(entry[3] for _, entry in learned), np.uint8)
            positions = [position for position, _ in learned]
            banned = self.memory.forgotten(positions, value.reshape(-1, 32)).tolist()
        for (_, entry), out in zip(learned, banned, strict=True):
            if not out:
                self.memo.put(*entry)

    def _save(self) -> None:
        """Write the memo; what was learned before a photo was forgotten may be of that one."""
        if self.memory is None:
            return
        if (place := self.memory.place()) != self.memo.path:
            self.memo = DigestMemo(place)
        self._learn()
        if self.memo.has_learned:
            with suppress(OSError), self.memory.writing(place):
                self.memo.write()

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
                self._save()
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
