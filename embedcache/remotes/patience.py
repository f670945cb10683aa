"""Retries with bounded patience for transient failures."""

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from threading import Timer

from embedcache.errors import RemoteError
from embedcache.remotes.remote import (
    ANSWER_SECONDS,
    BLOCK_BYTES,
    MAX_KEYS,
    Blocks,
    ListedObject,
    Ours,
    Remote,
    T,
    Unreachable,
)

MAX_KEY = 1024
MAX_LISTING_CHARACTERS = 256 << 20
TRIES = 6
PATIENCE_SECONDS = 20.0  # after which a small request is not retried
QUIET_SECONDS = 2.0  # of waiting, after which a line says so
FIRST_WAIT_SECONDS = 0.2


class Patient:
    """Retries the transient failures of a remote, with growing pauses.

    tell: called once, with a line to print, where that takes long.
    """

    def __init__(
        self,
        remote: Remote,
        *,
        tries: int = TRIES,
        sleep: Callable[[float], None] = time.sleep,
        tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self._remote = remote
        self._tries = tries
        self._sleep = sleep
        self._tell = tell
        self._reported = False
        self._answered = False

    @property
    def name(self) -> str:
        return self._remote.name

    def list(self, prefix: str) -> Iterator[ListedObject]:
        return iter(self._patiently(lambda: _bounded(self._remote.list(prefix), self.name)))

    def top(self) -> Sequence[str]:
        return self._patiently(self._remote.top)

    def unfinished(self, segment: str) -> Iterator[ListedObject]:
        return iter(self._patiently(lambda: _bounded(self._remote.unfinished(segment), self.name)))

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        got, since, failed, began = 0, 0, 0, time.monotonic()
        while length is None or got < length:
            left = None if length is None else length - got
            try:
                for block in self._remote.blocks(key, start=start + got, length=left):
                    got += len(block)
                    yield block
                return
            except Unreachable:
                if got - since > BLOCK_BYTES:
                    failed, began = 0, time.monotonic()
                failed, since = failed + 1, got
                if failed >= self._tries:
                    raise
                self._wait(failed, began)

    def read_small(self, key: str, *, limit: int) -> bytes:
        return self._patiently(lambda: read_small(self._remote, key, limit=limit))

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        self._patiently(lambda: self._remote.write(key, blocks, size=size), math.inf)

    def create(self, key: str, data: bytes) -> bool:
        return self._create(self._remote.create, key, data)

    def create_once(self, key: str, data: bytes) -> bool:
        return self._create(self._remote.create_once, key, data)

    def _create(self, create: Callable[[str, bytes], bool], key: str, data: bytes) -> bool:
        n_tried = 0

        def attempt() -> bool:
            nonlocal n_tried
            n_tried += 1
            if create(key, data):
                return True
            # An earlier attempt may have succeeded, and its answer was lost.
            return n_tried > 1 and read_small(self._remote, key, limit=len(data)) == data

        return self._patiently(attempt)

    def leftovers(self, folder: str) -> Sequence[str]:
        return self._patiently(lambda: self._remote.leftovers(folder))

    def idle_seconds(self, key: str) -> float | None:
        return self._patiently(lambda: self._remote.idle_seconds(key))

    def delete(self, key: str, *, ours: Ours | None = None) -> None:
        self._patiently(lambda: self._remote.delete(key, ours=ours))

    def _patiently(self, request: Callable[[], T], patience: float = PATIENCE_SECONDS) -> T:
        began = time.monotonic()
        for failed in range(1, self._tries):
            try:
                return self._heard(request)
            except Unreachable:
                if failed > 1 and time.monotonic() - began > patience:
                    raise
                self._wait(failed, began)
        return self._heard(request)

    def _heard(self, request: Callable[[], T]) -> T:
        """Make a request; before the first answer, report one that takes long."""
        if self._answered:
            return request()
        timer = Timer(QUIET_SECONDS, self._report_waiting)
        timer.daemon = True
        timer.start()
        try:
            found = request()
        finally:
            timer.cancel()
        self._answered = True
        return found

    def _wait(self, failed: int, began: float) -> None:
        pause = FIRST_WAIT_SECONDS * 2 ** (failed - 1) * random.uniform(0.5, 1.5)
        if time.monotonic() - began + pause > QUIET_SECONDS:
            self._report_waiting()
        self._sleep(pause)

    def _report_waiting(self) -> None:
        if not self._reported:
            self._reported = True
            seconds = PATIENCE_SECONDS + ANSWER_SECONDS - QUIET_SECONDS
            self._tell(f"{self.name} does not answer; retrying for up to {seconds:.0f} s")


def read_small(remote: Remote, key: str, *, limit: int) -> bytes:
    """The bytes of a small object; RemoteError past `limit`, before the rest is read."""
    if isinstance(remote, Patient):  # retried as a whole: its size is not known before
        return remote.read_small(key, limit=limit)
    parts, size = [], 0
    for block in remote.blocks(key, length=limit + 1):
        parts.append(bytes(block))
        size += len(block)
        if size > limit:
            raise RemoteError(f"{key} of {remote.name} has over {limit:,} bytes: refused")
    return b"".join(parts)


def _bounded(entries: Iterator[ListedObject], name: str) -> list[ListedObject]:
    found, size = [], 0
    for number, entry in enumerate(entries, start=1):
        if len(entry.key) <= MAX_KEY and len(entry.tag) <= MAX_KEY:
            found.append(entry)
            size += len(entry.key) + len(entry.tag)
        if number > MAX_KEYS or size > MAX_LISTING_CHARACTERS:
            raise RemoteError(f"{name} lists over {number - 1:,} objects: refused")
    return found
