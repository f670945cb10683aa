"""Other extractions that are at work on the same spaces of a cache, in any process on any host.

Each run keeps a small file with a name of its own in `local/at-work/` for every space that it
fills. It holds the buckets that the run is busy with; a bucket is the first byte of a digest.
Only the order of work depends on these files: without them, processes that overlap compute rows
twice, and the cache keeps one of each.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcache import disk
from embedcache.extraction.parts import WorkPart
from embedcache.store.cache import Cache

READING = "reading"  # in place of a space
LOOK_SECONDS = 1.0
LOST_SECONDS = 600.0
"""A run on another host that has not shown itself for this long is taken to be gone."""


@dataclass(frozen=True, slots=True)
class AtWork:
    """A run that shows itself.

    space: the first digits of one that it fills, or READING. process: its number, and when it
    began. host: "" where that is another one. quiet_seconds: since its last sign.
    """

    space: str
    process: tuple[int, int]
    host: str
    quiet_seconds: float


def at_work(cache: Cache) -> list[AtWork]:
    """The runs that show themselves in a cache, and have not ended as far as that is known."""
    folder, found = cache.path / "local" / "at-work", []
    try:
        names = os.listdir(folder)
        now = disk.now_beside(folder)
    except OSError:  # nobody has begun yet, or the cache is read-only
        names, now = (os.listdir(folder) if folder.is_dir() else []), time.time()
    for name in sorted(names):
        process, gone = disk.process_of(name), disk.maker_is_gone(name)
        if process is None or name.startswith(".") or gone:
            continue
        with contextlib.suppress(FileNotFoundError):
            quiet = 0.0 if gone is False else now - Path(folder, name).stat().st_mtime
            host = socket.gethostname() if gone is False else ""
            found.append(AtWork(name.partition(".")[0], process, host, max(0.0, quiet)))
    return found


class Reading:
    """Shows others, while a block lasts, a run that reads its photos and knows no space yet.

    Nothing depends on it but what `info --watch` shows.
    """

    def __init__(self, cache: Cache) -> None:
        self._path = cache.local / "at-work" / f"{READING}.all.{disk.mark_of_process()}"
        self._shown = 0.0

    def __enter__(self) -> "Reading":
        with contextlib.suppress(OSError):
            for path in self._path.parent.glob(f"{READING}.*"):
                if disk.maker_is_gone(path.name):
                    path.unlink()
        self._show()
        return self

    def __exit__(self, *why: object) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()

    def go_on(self) -> None:
        """Show that the run still reads; to be called often."""
        if time.monotonic() - self._shown > LOST_SECONDS / 10:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            self._path.write_bytes(b"")


class Neighbours:
    """Who else is at work, and on which buckets."""

    def __init__(
        self,
        cache: Cache,
        specs: Sequence[str],
        part: WorkPart | None = None,
        *,
        crew: str = "",
    ) -> None:
        """specs: digests of the spaces that this run fills.

        part: the photos that it does; runs on other parts of as many are no neighbours.
        crew: hexadecimal name of the run on a cluster that this worker is of; a queue hands the
            workers of one crew different photos, so that they are no neighbours either.
        """
        self._folder = cache.local / "at-work"
        self._spaces = {digest[:16] for digest in specs}
        self._part = "all" if part is None else f"{part.number}of{part.total}"
        if crew:
            self._part = f"{secrets.token_hex(4)}of{crew}"
        self._own = {f"{space}.{self._part}.{disk.mark_of_process()}" for space in self._spaces}
        self._looked = float("-inf")
        self._found: list[str] = []
        self._claim = b""

    @contextlib.contextmanager
    def announced(self) -> Iterator[None]:
        """Others see this run while the block lasts."""
        self._touch()
        try:
            yield
        finally:
            for name in self._own:
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()

    def present(self, *, now: bool = False) -> bool:
        """Whether others are at work; now: look even if that was done a moment ago."""
        if now or time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._touch()
            with contextlib.suppress(OSError):
                self._found = [name for name in os.listdir(self._folder) if self._alive(name)]
        return bool(self._found)

    def claim(self, buckets: Iterable[int]) -> None:
        """Let others know the buckets, 0 to 255, that this run is busy with from now on."""
        self._claim = bytes(buckets)
        self._touch()

    def claimed(self) -> set[int]:
        """The buckets that others are busy with."""
        found: set[int] = set()
        for name in self._found:
            found |= set(disk.read_kept(self._folder / name, limit=256) or b"")
        return found

    def _touch(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            for name in self._own:
                (self._folder / name).write_bytes(self._claim)

    def _apart(self, part: str) -> bool:
        """Whether a part holds none of this run's photos."""
        same_total = part.partition("of")[2] == self._part.partition("of")[2] != ""
        return same_total and part != self._part

    def _alive(self, name: str) -> bool:
        """Whether a file stands for another run that is at work; removes it where that has died."""
        space, _, rest = name.partition(".")
        if name in self._own or space not in self._spaces or self._apart(rest.partition(".")[0]):
            return False
        path = Path(self._folder, name)
        gone = disk.maker_is_gone(name)
        if gone is None:
            with contextlib.suppress(OSError):
                age = disk.now_beside(self._folder) - path.stat().st_mtime
                gone = age > LOST_SECONDS
        if gone:
            with contextlib.suppress(OSError):
                path.unlink()
        return not gone
