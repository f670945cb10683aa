"""Parts of the work, handed to workers of one run on any number of hosts as they become free.

    PartQueue      who does what: it hands out parts, and again where a worker is lost
    HandedWork     the work of one worker, as `run.Run` takes it: the parts that it is handed

A worker that is twice as fast is handed twice as many photos. A part that is handed out again costs
time and nothing else, because a worker leaves out what has arrived meanwhile. One that ends its
worker twice is cut in halves, so that in the end only the photos that do it are given up.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from embedcache.backbones.loading import Backbone
from embedcache.errors import RemoteError
from embedcache.extraction.clock import SpaceTally
from embedcache.extraction.face_finder import FaceFinder
from embedcache.extraction.pixels import KeptPixels
from embedcache.extraction.plan import Plan, subset
from embedcache.extraction.prefetch import Job
from embedcache.extraction.upstream import Upstream
from embedcache.extraction.work import without_arrived
from embedcache.photos.table import Photos
from embedcache.store.space import Space

I64 = NDArray[np.int64]

PART_SECONDS = 20.0
"""What a part should take, as far as a worker's rate is known: what is lost with a worker."""
FIRST_PHOTOS, MOST_PHOTOS, LEAST_PHOTOS = 64, 4096, 24
SHARE, SHARE_OF_WORKER = 64, 8
"""A part is at most a 64th of all work, or an 8th of a worker's share of it if that is more: every
part ends with batches that are not full."""
WHOLE = 2
"""How often a part is handed out before it is cut, and a photo on its own before it is given up."""
MOST_STARTS, MOST_ENDS = 3, 16
"""How often in a row a worker may end before it has a part, and before it has done one."""
LOST_SECONDS = 60.0
"""A worker that has said nothing for this long is taken to be gone."""


@dataclass(frozen=True, slots=True)
class HandedPart:
    """Rows of the plan, (n,) ascending, and how often they were handed out as this part."""

    number: int
    rows: I64
    attempts: int = 1


@dataclass(slots=True)
class _Holder:
    """A worker as the queue knows it."""

    heard: float
    part: HandedPart | None = None
    starts: int = 0  # since it was last handed a part
    ends: int = 0  # since it last did one
    handed: float = 0.0
    rate: float = 0.0
    before: int = 0  # done by those that had this name before
    done: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """How far the whole is.

    done, failed: photos.  workers: those heard of lately.
    given_up: rows of the photos whose worker ended each time, also where they were alone.
    """

    done: int
    failed: int
    workers: int
    finished: bool
    given_up: tuple[int, ...]


class PartQueue:
    """n rows of a plan, cut into parts for whoever asks.

    n_workers: how many are expected; the last parts are small enough for all of them.
    now: a clock in seconds; tests bring their own.
    """

    def __init__(
        self, n: int, *, n_workers: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._next = 0
        self._n = n
        self._n_workers = max(1, n_workers)
        self._now = now
        self._holders: dict[str, _Holder] = {}
        self._returned: deque[HandedPart] = deque()
        self._given_up: list[HandedPart] = []
        self._n_cut = 0
        self._stopped = False

    def begin(self, worker: str) -> bool:
        """A worker starts, or starts anew: what it held is handed out again. False where it has
        ended so often that it should not."""
        holder = self._heard(worker)
        self._take_back(worker)
        holder.before += holder.done
        holder.done = 0
        holder.starts += 1
        return holder.starts <= MOST_STARTS and holder.ends <= MOST_ENDS

    def next(self, worker: str) -> tuple[HandedPart | None, bool]:
        """(the next part, or None where there is none now; whether one may still come)."""
        holder = self._heard(worker)
        if self._stopped:
            return None, False
        for other, held in self._holders.items():
            if held.part is not None and self._now() - held.heard > LOST_SECONDS:
                self._take_back(other)
        if self._returned:
            part = self._returned.popleft()
        elif self._next < self._n:
            part = HandedPart(self._n_cut, np.arange(self._next, self._next + self._size(holder)))
            self._next += len(part.rows)
            self._n_cut += 1
        else:
            return None, not self.status().finished
        holder.part, holder.handed, holder.starts = part, self._now(), 0
        return part, True

    def done(self, worker: str, number: int) -> None:
        """A worker has committed a part."""
        holder = self._heard(worker)
        part = holder.part
        if part is not None and part.number == number:
            holder.rate = len(part.rows) / max(self._now() - holder.handed, 1e-3)
            holder.part, holder.ends = None, 0

    def beat(self, worker: str, done: int, failed: int) -> bool:
        """A worker lives: photos done and failed since it began. True where it should stop."""
        holder = self._heard(worker)
        holder.done, holder.failed = done, failed
        return self._stopped

    def lost(self, worker: str) -> bool:
        """A worker has ended without its part. True where it may start again."""
        self._take_back(worker)
        holder = self._holders.get(worker, _Holder(self._now(), starts=MOST_STARTS))
        return holder.starts < MOST_STARTS and holder.ends < MOST_ENDS

    def stop(self) -> None:
        """Hand out nothing more, and let workers stop."""
        self._stopped = True

    def status(self) -> QueueStatus:
        """How far the whole is."""
        held = [one for one in self._holders.values() if one.part is not None]
        now = self._now()
        return QueueStatus(
            done=sum(one.before + one.done for one in self._holders.values()),
            failed=sum(one.failed for one in self._holders.values()),
            workers=sum(now - one.heard <= LOST_SECONDS for one in self._holders.values()),
            finished=self._next == self._n and not held and not self._returned,
            given_up=tuple(row for part in self._given_up for row in part.rows.tolist()),
        )

    def _heard(self, worker: str) -> _Holder:
        holder = self._holders.setdefault(worker, _Holder(self._now()))
        holder.heard = self._now()
        return holder

    def _take_back(self, worker: str) -> None:
        """Hand out again what a worker held: once as it is, then in halves."""
        holder = self._holders.get(worker)
        if holder is None or holder.part is None:
            return
        part, holder.part = holder.part, None
        holder.ends += 1
        if part.attempts < WHOLE:
            self._returned.append(replace(part, attempts=part.attempts + 1))
        elif len(part.rows) == 1:
            self._given_up.append(part)
        else:
            for rows in np.array_split(part.rows, 2):
                # The whole was tried twice; a photo alone is too, as its worker may end by chance.
                again = WHOLE if len(rows) > 1 else 1
                self._returned.append(HandedPart(self._n_cut, rows, attempts=again))
                self._n_cut += 1

    def _size(self, holder: _Holder) -> int:
        left = self._n - self._next
        workers = max(self._n_workers, len(self._holders))
        wanted = max(1, round(holder.rate * PART_SECONDS)) if holder.rate else FIRST_PHOTOS
        most = min(MOST_PHOTOS, self._n // min(SHARE, SHARE_OF_WORKER * workers))
        if workers > 1:  # all of them end at about the same time
            most = min(most, left // (2 * workers))
        return min(left, wanted, max(LEAST_PHOTOS, most))


@dataclass(slots=True)
class HandedWork:
    """The work of one worker: what it is handed of `todo`.

    n_workers: those who share it.  ask: the next part, None at the end.
    done: called with a part's number once that is committed and given to the remote.
    """

    photos: Photos
    todo: Plan
    spaces: Sequence[Space]
    n_workers: int
    ask: Callable[[], HandedPart | None]
    done: Callable[[int], None]
    upstream: Upstream | None = None
    retry_failed: bool = False
    tallies: list[SpaceTally] = field(init=False)

    def __post_init__(self) -> None:
        shares = (self.todo.wanted * self.todo.copies[:, None]).sum(axis=0) // self.n_workers
        self.tallies = [SpaceTally(wanted=n) for n in shares.tolist()]

    @property
    def n_photos(self) -> int:
        """Contents that this worker may expect."""
        return len(self.todo) // self.n_workers

    def parts(self) -> Iterator[Plan]:
        """The parts as they are handed; ask for the next one once a part is committed."""
        while (part := self.ask()) is not None:
            if part.attempts > 1:  # whoever held it may have left rows in a draft
                for space in self.spaces:
                    space.salvage()
            left = without_arrived(
                subset(self.todo, part.rows),
                *(self.spaces, self.tallies),
                retry_failed=self.retry_failed,
            )
            if len(left):
                yield left
                self.give()
            self.done(part.number)

    def jobs(
        self,
        part: Plan,
        backbones: Sequence[Backbone],
        faces: FaceFinder,
        kept: KeptPixels | None = None,
    ) -> Iterator[Job]:
        """The jobs of a part."""
        return part.jobs(self.photos, backbones, faces, kept)

    def give(self) -> None:
        """Give the remote, if there is one, what was committed here.

        Raises RemoteError where it does not take it, as nobody would see these rows: what this
        worker holds goes to others.
        """
        if self.upstream is not None:
            self.upstream.give()
            if not self.upstream.takes:
                raise RemoteError(
                    f"{self.upstream.name} takes no rows of a machine that does not see the cache"
                )
