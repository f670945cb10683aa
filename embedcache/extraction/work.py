"""The work of a run in parts; before each part, what others have done meanwhile is left out."""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embedcache.backbones.loading import Backbone
from embedcache.errors import Damaged
from embedcache.extraction.clock import SpaceTally
from embedcache.extraction.face_finder import FaceFinder
from embedcache.extraction.neighbours import LOOK_SECONDS, Neighbours
from embedcache.extraction.pixels import KeptPixels
from embedcache.extraction.plan import Plan, plan, subset
from embedcache.extraction.prefetch import Job
from embedcache.extraction.upstream import Upstream
from embedcache.photos.digests import Digests
from embedcache.photos.table import Photos
from embedcache.store.columns import ABSENT, FAILED, OK
from embedcache.store.space import Space


@dataclass(frozen=True, slots=True)
class Rounds:
    """How work is cut where others do the same work: a share of what is left, within bounds.

    The smaller a part, the less is computed twice; the larger, the fewer segments there are.
    """

    share: int
    least: int
    most: int

    def size(self, n_left: int) -> int:
        """Photos in the next part."""
        return min(self.most, max(self.least, n_left // self.share))


# Two members who work at the same speed embed under a tenth twice (docs/decisions/053).
WITH_REMOTE = Rounds(share=16, least=32, most=4096)
# See docs/decisions/081.
WITH_NEIGHBOURS = Rounds(share=24, least=64, most=4096)


class Work:
    """What `spaces` lack of `photos`, also after taking what a remote has of it.

    todo: all that is missing when the run begins.
    n_photos: contents that this run has read or will read, less what others have done meanwhile.
    tallies: counts by space; `parts` keeps them up to date.
    """

    def __init__(
        self,
        photos: Photos,
        digests: Digests,
        spaces: Sequence[Space],
        *,
        neighbours: Neighbours,
        upstream: Upstream | None,
        retry_failed: bool,
    ) -> None:
        self._photos = photos
        self._spaces = spaces
        self._neighbours = neighbours
        self._upstream = upstream
        self._retry_failed = retry_failed
        self._order = np.random.default_rng()
        self._alone = False
        self._n_begun = 0  # photos of the current part that were handed out
        self._looked = time.monotonic()
        self._segments: set[tuple[str, str]] = set()  # at the last look, with their spaces
        self.todo, self.tallies = plan(photos, digests, spaces, retry_failed=retry_failed)
        if upstream is not None:
            # Pixels are the photos themselves, which no run sends or takes.
            upstream.serve([space.spec for space in spaces if space.spec.kind != "pixels"])
            upstream.take(self.todo.digests)
            self.todo, self.tallies = plan(photos, digests, spaces, retry_failed=retry_failed)
        self.n_photos = len(self.todo)

    def parts(self) -> Iterator[Plan]:
        """The work, part by part; ask for the next one once a part is committed.

        Alone, a run has one part. Where others work on the same spaces, or there is a remote, the
        parts are small, in an order of this run's own, and each is seen by the others before the
        next one begins.
        """
        left, n_done = self.todo, 0
        if not len(left):
            self.give()  # a run that was cut off may have computed rows, or sent a part of some
        while len(left):
            self._alone = False
            upstream = self._upstream if self._upstream and self._upstream.up else None
            if upstream is not None:
                n_rows, order = WITH_REMOTE.size(len(left)), upstream.shuffled(len(left))
            elif self._neighbours.present(now=True):
                n_rows, order = WITH_NEIGHBOURS.size(len(left)), self._apart(left)
                self._neighbours.claim(np.unique(left.digests[order[:n_rows], 0]).tolist())
            else:
                self._alone = True
                n_rows, order = len(left), np.arange(len(left))
            yield subset(left, order[:n_rows])
            left = subset(left, np.sort(order[self._n_begun :]))
            n_done += self._n_begun
            if upstream is not None:
                upstream.give()
                if len(left):
                    upstream.take(left.digests)
            left = without_arrived(
                left, self._spaces, self.tallies, retry_failed=self._retry_failed
            )
            self.n_photos = n_done + len(left)

    def jobs(
        self,
        part: Plan,
        backbones: Sequence[Backbone],
        faces: FaceFinder,
        kept: KeptPixels | None = None,
    ) -> Iterator[Job]:
        """The jobs of a part. A run that was alone ends its part early when others begin, or have
        committed some of it, which may be all that is seen of them by one that was stopped."""
        self._n_begun = 0
        for job in part.jobs(self._photos, backbones, faces, kept):
            looks = self._alone and self._n_begun
            if looks and (self._neighbours.present() or self._others_committed(part)):
                return
            self._n_begun += 1
            yield job

    def _others_committed(self, part: Plan) -> bool:
        """Whether rows that a part still wants have arrived; looks once in LOOK_SECONDS, and no
        further than at the names of segments where there are no new ones."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return False
        self._looked, before = time.monotonic(), self._segments
        with suppress(Damaged):  # it is said at the end of the part
            self._segments = {(s.digest, one.id) for s in self._spaces for one in s.segments()}
            if self._segments - before:
                ahead = subset(part, np.arange(self._n_begun, len(part)))
                return _arrived(ahead, self._spaces, retry_failed=self._retry_failed)
        return False

    def _apart(self, left: Plan) -> NDArray[np.int64]:
        """An order of this run's own, bucket by bucket; buckets that others claim come last."""
        rank = self._order.permutation(256)
        return apart(left.digests[:, 0], rank, self._neighbours.claimed())

    def give(self) -> None:
        """Give the remote, if there is one, what was committed here."""
        if self._upstream is not None:
            self._upstream.give()


def apart(
    buckets: NDArray[np.uint8], rank: NDArray[np.int64], claimed: Collection[int]
) -> NDArray[np.int64]:
    """The order in which rows are done beside others: bucket by bucket, by the rank (256,) of
    each, and those that others claim last. buckets: (n,), the first byte of each row's digest."""
    rank = rank.copy()
    rank[list(claimed)] += 256
    return np.argsort(rank[buckets], kind="stable")


def _arrived(todo: Plan, spaces: Sequence[Space], *, retry_failed: bool) -> bool:
    """Whether any row that a plan wants is there."""
    for k, space in enumerate(spaces):
        status = space.status(todo.digests)
        there = status == OK if retry_failed else status != ABSENT
        if (todo.wanted[:, k] & there).any():
            return True
    return False


def without_arrived(
    todo: Plan, spaces: Sequence[Space], tallies: Sequence[SpaceTally], *, retry_failed: bool
) -> Plan:
    """What is still to do of a plan; rows that have arrived are counted."""
    if not len(todo):
        return todo
    wanted = todo.wanted.copy()
    for k, (space, tally) in enumerate(zip(spaces, tallies, strict=True)):
        status = space.status(todo.digests)
        good = wanted[:, k] & (status == OK)
        tally.hit += int(todo.copies[good].sum())
        wanted[good, k] = False
        failed = np.flatnonzero(wanted[:, k] & (status == FAILED))
        if len(failed) and not retry_failed:
            reasons = space.reasons(todo.digests[failed])
            for i, reason in zip(failed.tolist(), reasons, strict=True):
                tally.failed[reason or "unknown"] += int(todo.copies[i])
            wanted[failed, k] = False
    return subset(replace(todo, wanted=wanted), np.flatnonzero(wanted.any(axis=1)))
