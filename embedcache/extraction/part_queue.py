"""Parts of the work of one run, for workers on any number of hosts: who does what, and again where
a worker is lost.

A worker that is twice as fast is handed twice as many photos. A part that is handed out again costs
time and nothing else, because a worker leaves out what has arrived meanwhile. One that ends its
worker twice is cut in halves, so that in the end only the photos that do it are given up. Photos
that a machine cannot read go to the others. Where other runs work on the same spaces, parts are
small, and of buckets that those are not busy with (`neighbours`).
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embedcache.extraction.work import WITH_NEIGHBOURS, apart

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
AWAITED_SECONDS = 60.0
"""How long photos that nobody could read wait for machines whose workers are still to begin."""


@dataclass(frozen=True, slots=True)
class HandedPart:
    """Rows of the plan, (n,) ascending, and how often they were handed out as this part.

    unread: the machines that could not read them.
    """

    number: int
    rows: I64
    attempts: int = 1
    unread: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Holder:
    """A worker as the queue knows it."""

    heard: float
    machine: str = ""
    part: HandedPart | None = None
    starts: int = 0  # since it was last handed a part
    ends: int = 0  # since it last did one
    handed: float = 0.0
    rate: float = 0.0
    before: int = 0  # done by those that had this name before
    done: int = 0
    failed: int = 0
    embedded_before: tuple[int, ...] = ()
    embedded: tuple[int, ...] = ()  # by space, in parts that it has done


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """How far the whole is.

    done, failed: photos.  workers: those heard of lately.
    given_up: rows of the photos whose worker ended each time, also where they were alone.
    quiet_seconds: since any worker was heard of; None where none has begun.
    """

    done: int
    failed: int
    workers: int
    finished: bool
    given_up: tuple[int, ...]
    quiet_seconds: float | None


@dataclass(frozen=True, slots=True)
class Unread:
    """A row of the plan that no machine could read: why, and which ones tried."""

    row: int
    reason: str
    machines: frozenset[str]


class PartQueue:
    """n rows of a plan, cut into parts for whoever asks.

    n_workers: how many are expected; the last parts are small enough for all of them.
    buckets: (n,), the first byte of each row's digest.
    now: a clock in seconds; tests bring their own.
    """

    def __init__(
        self,
        n: int,
        *,
        n_workers: int,
        buckets: NDArray[np.uint8] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._left = np.arange(n)  # that nobody was handed yet
        self._buckets = np.zeros(n, np.uint8) if buckets is None else buckets
        self._rank = np.random.default_rng().permutation(256)
        self._n = n
        self._n_workers = max(1, n_workers)
        self._now = now
        self._holders: dict[str, _Holder] = {}
        self._returned: deque[HandedPart] = deque()
        self._given_up: list[HandedPart] = []
        self._unread: dict[frozenset[str], list[int]] = {}  # by the machines that tried
        self._reasons: dict[int, str] = {}
        self._given_back = 0  # photos that were counted as done, and wait for another machine
        self._never_read: list[Unread] = []
        self._began = now()
        self._n_cut = 0
        self._stopped = False

    def begin(self, worker: str, machine: str = "") -> bool:
        """A worker starts, or starts anew: what it held is handed out again. False where it has
        ended so often that it should not. machine: where it runs."""
        holder = self._heard(worker)
        self._take_back(worker)
        holder.machine = machine
        holder.before += holder.done
        holder.embedded_before = _sum([holder.embedded_before, holder.embedded])
        holder.done, holder.embedded = 0, ()
        holder.starts += 1
        return holder.starts <= MOST_STARTS and holder.ends <= MOST_ENDS

    def next(
        self, worker: str, claimed: Collection[int] | None = None
    ) -> tuple[HandedPart | None, bool]:
        """(the next part, or None where there is none now; whether one may still come).

        claimed: buckets that other runs are busy with, None where there is no other run.
        """
        holder = self._heard(worker)
        if self._stopped:
            return None, False
        self._take_back_from_silent()
        part = self._returned_for(holder) or self._unread_for(holder) or self._new(holder, claimed)
        if part is None:
            return None, not self.status().finished
        holder.part, holder.handed, holder.starts = part, self._now(), 0
        return part, True

    def done(
        self,
        worker: str,
        number: int | None,
        embedded: tuple[int, ...] = (),
        unread: Mapping[int, str] | None = None,
    ) -> None:
        """A worker has committed a part; None: what it had of one when it was stopped.

        embedded: rows by space since it began.  unread: rows that its machine cannot read, and why.
        """
        holder = self._heard(worker)
        holder.embedded = embedded
        part = holder.part
        if part is not None and part.number == number:
            if unread:
                machines = part.unread | {holder.machine}
                self._unread.setdefault(machines, []).extend(sorted(unread))
                self._reasons.update(unread)
                self._given_back += len(unread)
            else:
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
        self._take_back_from_silent()
        self._give_up_unread()
        holders = self._holders.values()
        now = self._now()
        return QueueStatus(
            done=sum(one.before + one.done for one in holders) - self._given_back,
            failed=sum(one.failed for one in holders) + len(self._never_read),
            workers=sum(now - one.heard <= LOST_SECONDS for one in holders),
            finished=not (
                len(self._left)
                or self._returned
                or self._unread
                or any(one.part is not None for one in holders)
            ),
            given_up=tuple(row for part in self._given_up for row in part.rows.tolist()),
            quiet_seconds=min((now - one.heard for one in holders), default=None),
        )

    def embedded(self) -> tuple[int, ...]:
        """Rows by space that the workers have embedded."""
        counts = [(one.embedded_before, one.embedded) for one in self._holders.values()]
        return _sum([one for both in counts for one in both])

    def never_read(self) -> list[Unread]:
        """The photos that no machine could read."""
        return self._never_read

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
                self._returned.append(replace(part, number=self._n_cut, rows=rows, attempts=again))
                self._n_cut += 1

    def _take_back_from_silent(self) -> None:
        for other, held in self._holders.items():
            if held.part is not None and self._now() - held.heard > LOST_SECONDS:
                self._take_back(other)

    def _returned_for(self, holder: _Holder) -> HandedPart | None:
        """A part that another worker did not do."""
        for part in self._returned:
            if holder.machine not in part.unread:
                self._returned.remove(part)
                return part
        return None

    def _unread_for(self, holder: _Holder) -> HandedPart | None:
        """A part of the photos that other machines could not read."""
        for machines, rows in self._unread.items():
            if holder.machine not in machines:
                size = self._size(holder, len(rows))
                self._unread[machines] = rows[size:]
                if not self._unread[machines]:
                    del self._unread[machines]
                return self._cut(np.sort(np.array(rows[:size], np.int64)), unread=machines)
        return None

    def _new(self, holder: _Holder, claimed: Collection[int] | None) -> HandedPart | None:
        """A part of what nobody was handed yet; beside other runs a small one, of buckets that
        those are not busy with."""
        left = self._left
        if not len(left):
            return None
        size = self._size(holder, len(left))
        if claimed is None:
            rows, self._left = left[:size], left[size:]
            return self._cut(rows)
        size = min(size, WITH_NEIGHBOURS.size(len(left)))
        at = np.sort(apart(self._buckets[left], self._rank, claimed)[:size])
        self._left = np.delete(left, at)
        return self._cut(left[at])

    def _cut(self, rows: I64, *, unread: frozenset[str] = frozenset()) -> HandedPart:
        self._n_cut += 1
        return HandedPart(self._n_cut - 1, rows, unread=unread)

    def _give_up_unread(self) -> None:
        """Wait no longer for a machine that can read a photo where every machine has tried."""
        if not self._unread and not any(part.unread for part in self._returned):
            return
        now = self._now()
        if len(self._holders) < self._n_workers and now - self._began <= AWAITED_SECONDS:
            return
        living = {one.machine for one in self._holders.values() if now - one.heard <= LOST_SECONDS}
        for machines in [tried for tried in self._unread if living <= tried]:
            self._note_never_read(self._unread.pop(machines), machines)
        for part in [p for p in self._returned if p.unread and living <= p.unread]:
            self._returned.remove(part)
            self._note_never_read(part.rows.tolist(), part.unread)

    def _note_never_read(self, rows: Sequence[int], machines: frozenset[str]) -> None:
        self._given_back -= len(rows)
        self._never_read += [Unread(row, self._reasons[row], machines) for row in rows]

    def _size(self, holder: _Holder, left: int) -> int:
        workers = max(self._n_workers, len(self._holders))
        wanted = max(1, round(holder.rate * PART_SECONDS)) if holder.rate else FIRST_PHOTOS
        most = min(MOST_PHOTOS, self._n // min(SHARE, SHARE_OF_WORKER * workers))
        if workers > 1:  # all of them end at about the same time
            most = min(most, left // (2 * workers))
        return min(left, wanted, max(LEAST_PHOTOS, most))


def _sum(counts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The sums by position; () counts as zeros."""
    return tuple(sum(column) for column in zip(*filter(None, counts), strict=True))
