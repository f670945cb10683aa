"""The work of one worker of a cluster, as `run.Run` takes it: the parts that it is handed."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from embedcache.backbones.loading import Backbone
from embedcache.errors import RemoteError
from embedcache.extraction.clock import SpaceTally
from embedcache.extraction.face_finder import FaceFinder
from embedcache.extraction.neighbours import Neighbours
from embedcache.extraction.part_queue import HandedPart
from embedcache.extraction.pixels import KeptPixels
from embedcache.extraction.plan import Plan, subset
from embedcache.extraction.prefetch import Job
from embedcache.extraction.upstream import Upstream
from embedcache.extraction.work import without_arrived
from embedcache.photos.table import Photos
from embedcache.store.columns import OK
from embedcache.store.space import Space

Others = Callable[[], Collection[int] | None]
"""The buckets that other runs are busy with; None where there is no other run."""
Done = Callable[[int | None, tuple[int, ...], dict[int, str]], None]
"""Takes the number of a part that is committed and given to the remote (None: what there was of one
when the worker was stopped), the rows by space that this worker has embedded since it began, and
the rows of the part that its machine cannot read, with the reasons."""


@dataclass(slots=True)
class HandedWork:
    """The work of one worker: what it is handed of `todo`.

    n_workers: those who share it.  ask: the next part, None at the end.
    """

    photos: Photos
    todo: Plan
    spaces: Sequence[Space]
    n_workers: int
    neighbours: Neighbours
    ask: Callable[[Others], HandedPart | None]
    done: Done
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

    @property
    def embedded(self) -> tuple[int, ...]:
        """Rows by space that this worker has embedded."""
        return tuple(tally.embedded for tally in self.tallies)

    def parts(self) -> Iterator[Plan]:
        """The parts as they are handed; ask for the next one once a part is committed."""
        while (part := self.ask(self._others)) is not None:
            mine = subset(self.todo, part.rows)
            self.neighbours.claim(np.unique(mine.digests[:, 0]).tolist())
            if part.attempts > 1:  # whoever held it may have left rows in a draft
                for space in self.spaces:
                    space.salvage()
                self._count_of_lost(mine)
            left = without_arrived(
                mine, *(self.spaces, self.tallies), retry_failed=self.retry_failed
            )
            if len(left):
                yield left
                self.give()
            self.done(part.number, self.embedded, self._unread(part))

    def _others(self) -> Collection[int] | None:
        return self.neighbours.claimed() if self.neighbours.present(now=True) else None

    def _count_of_lost(self, part: Plan) -> None:
        """Count what a worker that was lost has embedded of a part, which it cannot tell."""
        for k, (space, tally) in enumerate(zip(self.spaces, self.tallies, strict=True)):
            there = int((part.wanted[:, k] & (space.status(part.digests) == OK)).sum())
            tally.embedded += there
            tally.hit -= there

    def _unread(self, part: HandedPart) -> dict[int, str]:
        """The rows of a part that cannot be read here, which are not counted as failed: another
        machine may read them."""
        found: dict[int, str] = {}
        if any(tally.unread for tally in self.tallies):
            rows = {self.todo.digests[row].tobytes(): row for row in part.rows.tolist()}
            for tally in self.tallies:
                for digest, reason in tally.unread.items():
                    row = rows[digest]
                    found[row] = reason
                    tally.failed[reason] -= int(self.todo.copies[row])
                tally.unread.clear()
        return found

    def jobs(
        self,
        part: Plan,
        backbones: Sequence[Backbone],
        faces: FaceFinder,
        kept: KeptPixels | None = None,
    ) -> Iterator[Job]:
        """The jobs of a part; other runs see meanwhile that this worker lives."""
        for job in part.jobs(self.photos, backbones, faces, kept):
            self.neighbours.present()
            yield job

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
