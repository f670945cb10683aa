"""Who writes to a cache at the moment, and how fast: `embedcache info --watch`.

A segment that is being written says who writes it (its lease) and how many rows it has (its
journal); a run that has none at the moment is known by its file in `local/at-work/`. Segments that
appear between two looks count for the process that was seen to write them.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedcache.extraction.neighbours import LOST_SECONDS, READING, AtWork, at_work
from embedcache.spec import Json
from embedcache.store import journal
from embedcache.store.cache import Cache
from embedcache.store.space import Space
from embedcache.wording import columns, counted

REFRESH_SECONDS = 2.0
RATE_LOOKS = 6  # a rate is of the last so many looks: ten seconds
SLOW_SECONDS = 30.0  # of silence, from which it is shown

Process = tuple[int, int]  # its number, and when it began
Key = tuple[str, Process]  # digest of a space, and who writes to it


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterNow:
    """One process that writes vectors of one backbone.

    host: "" where that is not known. rows: that it has written since the watch began, and before
    in the segment that it was at. quiet_seconds: since it wrote, or showed itself, last.
    """

    host: str
    process: int
    backbone: str
    rows: int
    photos_per_second: float
    quiet_seconds: float

    def document(self) -> dict[str, Json]:
        return {
            "host": self.host,
            "process": self.process,
            "backbone": self.backbone,
            "rows": self.rows,
            "photos_per_second": round(self.photos_per_second, 2),
            "quiet_seconds": round(self.quiet_seconds, 1),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheNow:
    """A cache at one moment: rows of all backbones that are committed, and who writes more.

    starting: processes that read their photos or load networks, before they are writers.
    """

    path: str
    rows: int
    writers: tuple[WriterNow, ...]
    starting: int = 0

    @property
    def photos_per_second(self) -> float:
        return sum(writer.photos_per_second for writer in self.writers)

    def document(self) -> dict[str, Json]:
        return {
            "path": self.path,
            "rows": self.rows,
            "photos_per_second": round(self.photos_per_second, 2),
            "starting": self.starting,
            "writers": [writer.document() for writer in self.writers],
        }

    def __str__(self) -> str:
        first = (
            f"{time.strftime('%H:%M:%S')}  {counted(self.rows, 'row')} committed, "
            f"{counted(len(self.writers), 'writer')}, {self.photos_per_second:.1f} photos/s"
            + (f"; {self.starting:,} starting (reading photos, loading)" if self.starting else "")
        )
        lines = [
            [
                f"  {writer.host or 'another machine'}",
                f"process {writer.process}",
                writer.backbone,
                counted(writer.rows, "row"),
                f"{writer.photos_per_second:.1f} photos/s",
                f"quiet for {writer.quiet_seconds:.0f} s"
                if writer.quiet_seconds >= SLOW_SECONDS
                else "",
            ]
            for writer in self.writers
        ]
        return "\n".join([first, *columns(lines)])


@dataclass(slots=True)
class _Known:
    """A writer as it was seen so far. drafts: rows in each segment that it was seen to write."""

    host: str = ""
    backbone: str = ""
    quiet_seconds: float = 0.0
    alive: bool = False
    drafts: dict[str, journal.Written] = field(default_factory=dict)
    looks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_LOOKS))

    @property
    def rows(self) -> int:
        return sum(written.rows for written in self.drafts.values())


class WriterWatch:
    """Looks at a cache again and again; the first look knows no rate yet."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._known: dict[Key, _Known] = {}

    def look(self) -> CacheNow:
        """Who writes now. Raises CacheError where the cache has gone or is damaged."""
        now = time.monotonic()
        for known in self._known.values():
            known.alive = False
        rows, spaces = 0, self._cache.spaces()
        for space in spaces:
            self._look_at_drafts(space)
            committed = {segment.id: segment.manifest.n_rows for segment in space.segments()}
            rows += sum(committed.values())
            for (digest, _), known in self._known.items():
                if digest == space.digest:
                    for name in known.drafts.keys() & committed.keys():
                        known.drafts[name] = journal.Written(rows=committed[name])
        runs = [run for run in at_work(self._cache) if run.quiet_seconds <= LOST_SECONDS]
        self._look_at_runs(spaces, runs)
        self._known = {key: known for key, known in self._known.items() if known.alive}
        return CacheNow(
            path=str(self._cache.path),
            rows=rows,
            writers=tuple(self._writers(now)),
            starting=sum(run.space == READING for run in runs),
        )

    def _look_at_drafts(self, space: Space) -> None:
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(space.segments_folder)):
                folder = Path(space.segments_folder, name)
                if name.startswith(".") or not (folder / journal.FOLDER).is_dir():
                    continue
                draft = journal.look(folder, before=self._before(space, name))
                if draft is None:
                    continue
                process = _process(draft.lease)
                known = self._known.setdefault((space.digest, process), _Known())
                known.alive = True
                known.host = str(draft.lease.get("host", ""))
                known.backbone = str(draft.lease.get("name", ""))
                known.quiet_seconds = draft.quiet_seconds
                known.drafts[name] = draft.written

    def _before(self, space: Space, segment: str) -> journal.Written | None:
        found = (k.drafts.get(segment) for (d, _), k in self._known.items() if d == space.digest)
        return next(filter(None, found), None)

    def _look_at_runs(self, spaces: Sequence[Space], runs: Sequence[AtWork]) -> None:
        """Runs that write no segment at the moment: they read, load, or are between two parts."""
        for run in runs:
            for space in spaces:
                if not space.digest.startswith(run.space):
                    continue
                known = self._known.setdefault((space.digest, run.process), _Known())
                if not known.alive:
                    known.alive, known.quiet_seconds = True, run.quiet_seconds
                    known.host = known.host or run.host
                    known.backbone = known.backbone or next(iter(space.names), "")

    def _writers(self, now: float) -> Iterator[WriterNow]:
        for (_, process), known in sorted(self._known.items(), key=lambda item: item[0]):
            known.looks.append((now, known.rows))
            then, before = known.looks[0]
            seconds = now - then
            yield WriterNow(
                host=known.host,
                process=process[0],
                backbone=known.backbone,
                rows=known.rows,
                photos_per_second=(known.rows - before) / seconds if seconds else 0.0,
                quiet_seconds=known.quiet_seconds,
            )


def watch(cache: Cache, *, seconds: float = REFRESH_SECONDS) -> Iterator[CacheNow]:
    """The writers of a cache, again and again, until the caller has seen enough."""
    watching = WriterWatch(cache)
    while True:
        yield watching.look()
        time.sleep(seconds)


def _process(lease: dict[str, Any]) -> Process:
    """A writer by its lease, as its other names have it."""
    try:
        return int(str(lease["pid"])), int(str(lease["started"]))
    except (KeyError, ValueError):
        return int(str(lease.get("pid") or 0)), 0
