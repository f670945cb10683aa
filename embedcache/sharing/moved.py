"""What a push or pull has moved, its counters, and the bounds on what moves at once."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

from embedcache.errors import CacheError, EmbedcacheError
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.wording import counted

OnBytes = Callable[[int, int], None]  # called with (bytes moved, bytes that will move)
CountBytes = Callable[[int], None]  # called by threads with the bytes that they have just moved

OBJECTS_AT_ONCE = 8
SEGMENTS_AT_ONCE = 4


@dataclass(slots=True)
class MoveCounts:
    """What a push or pull finds and does, while it runs."""

    segments: int = 0
    rows: int = 0
    failures: int = 0
    bytes: int = 0
    already_there: int = 0
    withheld: int = 0
    still_here: int = 0
    ids: int = 0
    tombstones: int = 0
    purged: int = 0
    new_copy: bool = False
    purged_rows: int = 0
    refs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[EmbedcacheError] = field(default_factory=list)

    def add(self, other: "MoveCounts") -> None:
        """Add what came in another round; what was there before is counted already."""
        self.rows += other.rows
        self.failures += other.failures
        self.segments += other.segments
        self.bytes += other.bytes
        self.ids += other.ids
        self.problems += other.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a push or pull moved, or with dry_run would move.

    bytes: of segments and rows; listings, manifests and digest columns are not counted.
    already_there: good rows that the receiving side had. withheld: rows of forgotten photos.
    still_here: rows in the cache of photos that either side forgot. cache: its folder.
    new_copy: whether this push created the shared copy.
    purged: segments with forgotten photos that were removed from the shared copy. purged_rows: rows
        of forgotten photos in them.
    problems: what was refused, each with what to do; a run with problems has moved the rest.
    """

    direction: Literal["push", "pull"]
    remote: str
    cache: str
    dry_run: bool
    segments: int
    rows: int
    failures: int
    bytes: int
    already_there: int
    withheld: int
    still_here: int
    ids: int
    tombstones: int
    purged: int
    new_copy: bool
    purged_rows: int
    refs: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    seconds: float

    def document(self) -> dict[str, Json]:
        """The same facts for machines."""
        found: dict[str, Json] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            found[name] = list(value) if isinstance(value, tuple) else value
        return found | {"seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        verb = {"push": "pushed to", "pull": "pulled from"}[self.direction]
        rows = counted(self.rows, "row")
        if self.failures:
            rows += f" and {counted(self.failures, 'failure')}"
        place = "there" if self.direction == "push" else "here"
        lines = [
            f"{rows} in {counted(self.segments, 'segment')} ({self.bytes / 1e6:,.1f} MB) "
            f"{self._would}{verb} {self.remote}; {self.already_there:,} {place} already"
        ]
        if self.new_copy:
            lines.append(f"a new shared copy {self._would or 'was '}created at {self.remote}")
        if self.ids:
            lines.append(f"with {counted(self.ids, 'photo id')}")
        if self.tombstones or self.refs:
            refs = f" ({', '.join(self.refs)})" if self.refs else ""
            lines.append(
                f"with {counted(self.tombstones, 'tombstone')} and "
                f"{counted(len(self.refs), 'ref')}{refs}"
            )
        if self.purged:
            lines.append(
                f"{self._would}removed there: {counted(self.purged, 'segment')} with "
                f"{counted(self.purged_rows, 'row')} of forgotten photos"
            )
        if self.withheld:
            lines.append(f"left out: {counted(self.withheld, 'row')} of forgotten photos")
        if self.still_here:
            first = ""
            if self.direction == "push" or self.dry_run:  # the tombstones may not be here yet
                first = f"'embedcache pull {self.remote} {self.cache}' and then "
            lines.append(
                f"{counted(self.still_here, 'row')} here of forgotten photos: {first}"
                f"'embedcache forget {self.cache} --forgotten' removes them"
            )
        return "\n".join([*lines, *self.notes, *(f"problem: {text}" for text in self.problems)])

    @property
    def _would(self) -> str:
        return "would be " if self.dry_run else ""


def counter(on_bytes: OnBytes | None, total: int) -> CountBytes:
    """A function for threads to count the bytes that they have moved; it reports the sum."""
    lock, done = Lock(), 0

    def count(n: int) -> None:
        nonlocal done
        with lock:
            done += n
            if on_bytes is not None:
                on_bytes(min(done, total), total)

    return count


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """Threads that move objects; an error cancels the jobs that have not begun."""
    pool = ThreadPoolExecutor(OBJECTS_AT_ONCE, thread_name_prefix="embedcache-share")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def require_room(cache: Cache, n_bytes: int) -> None:
    """CacheError unless the disk has room for everything that will come."""
    free = shutil.disk_usage(cache.path).free
    if n_bytes > free:
        raise CacheError(
            f"this pull brings {n_bytes:,} bytes, and {cache.path} has room for {free:,}",
            advice="Free some space, or pull less with `backbone` or `photos`",
        )
