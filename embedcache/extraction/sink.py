"""Where a run's rows end: segments, one after another, and the counts of each backbone.

A segment is begun when needed and published when full. A crash costs little because segments are
bounded, in rows and in minutes, and because rows that were synced in an unpublished one are
salvaged by the next run.
"""

import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from embedcache.extraction.clock import Clock, SpaceTally
from embedcache.extraction.prefetch import TRANSIENT, Job
from embedcache.store.faces import Faces
from embedcache.store.shard import Rows

SEGMENT_ROWS = 16_384
SEGMENT_BYTES = 512 << 20
SEGMENT_SECONDS = 300.0
U8 = npt.NDArray[np.uint8]
Values = TypeVar("Values")
Values_in = TypeVar("Values_in", contravariant=True)


class OpenSegment(Protocol[Values_in]):
    """What the store's segment writers have in common."""

    def add(self, digests: U8, rows: Values_in, /) -> None: ...
    def fail(self, digests: U8, reasons: Sequence[str], /) -> None: ...
    def commit(self) -> str | None: ...


class Sink(Generic[Values]):
    """Takes rows of one space for as long as a run lasts.

    begin: opens a segment for so many rows.
    row_bytes: of one row, as far as it is known; it bounds the size of a segment too.
    planned: rows that may still come; it bounds the size of the next segment.
    """

    def __init__(self, begin: Callable[[int], OpenSegment[Values]], *, row_bytes: int = 1) -> None:
        self.planned = 0
        self._most = max(1, min(SEGMENT_ROWS, SEGMENT_BYTES // row_bytes))
        self._begin = begin
        self._segment: OpenSegment[Values] | None = None
        self._room = 0
        self._began = 0.0

    def add(self, digests: U8, rows: Values) -> None:
        """Take k rows; digests: uint8 (k, 32)."""
        if len(digests):
            self._open(len(digests)).add(digests, rows)
            self._count(len(digests))

    def fail(self, digest: bytes, reason: str) -> None:
        """Take one row of the ledger of failures."""
        row = np.frombuffer(digest, np.uint8).reshape(1, 32)
        self._open(1).fail(row, [reason])
        self._count(1)

    def commit(self) -> None:
        """Publish what was taken, if anything."""
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.commit()

    def _open(self, n: int) -> OpenSegment[Values]:
        if self._segment is None:
            self._room = max(n, min(self.planned, self._most))
            self._segment = self._begin(self._room)
            self._began = time.monotonic()
        return self._segment

    def _count(self, n: int) -> None:
        self._room -= n
        self.planned -= n
        if self._room <= 0 or time.monotonic() - self._began > SEGMENT_SECONDS:
            self.commit()


class Sinks:
    """The sinks of all backbones of a run and of the faces, with the counts of what they took.

    vectors, tallies: by position of their backbone.
    first_failure: the first photo that failed in this run, as `path: reason`.
    """

    def __init__(
        self,
        vectors: Sequence[Sink[Rows]],
        faces: Sink[Faces],
        *,
        tallies: Sequence[SpaceTally],
        clock: Clock,
    ) -> None:
        self.tallies = tallies
        self.first_failure: str | None = None
        self._vectors = vectors
        self._faces = faces
        self._clock = clock

    def expect(self, rows: Sequence[int], *, photos: int) -> None:
        """Announce how many rows of each backbone, and photos, come next."""
        for sink, n in zip(self._vectors, rows, strict=True):
            sink.planned = n
        self._faces.planned = photos

    def add_vectors(self, b: int, jobs: Sequence[Job], vectors: Rows) -> None:
        """Take the vectors of backbone number b, float32 (n, dim), one for each of n jobs.

        vectors: of kept pixels uint8 (n, dim).
        """
        finite = np.isfinite(vectors.sum(axis=1))
        with self._clock.step("write"):
            self._vectors[b].add(_digests(jobs)[finite], vectors[finite])
        tally = self.tallies[b]
        for job, ok in zip(jobs, finite.tolist(), strict=True):
            if ok:
                tally.embedded += 1
                tally.hit += job.copies - 1
            else:
                self.fail(job, b, "not_finite")

    def add_faces(self, jobs: Sequence[Job], faces: Faces) -> None:
        """Take what was detected on the photos of n jobs."""
        with self._clock.step("write"):
            self._faces.add(_digests(jobs), faces)

    def fail(self, job: Job, b: int, reason: str) -> None:
        """Note that a photo has no vector of backbone number b."""
        self.first_failure = self.first_failure or f"{job.path}: {reason}"
        self.tallies[b].failed[reason] += job.copies
        if reason in TRANSIENT:
            self.tallies[b].unread[job.digest] = reason
        else:
            self._vectors[b].fail(job.digest, reason)

    def fail_faces(self, job: Job, reason: str) -> None:
        """Note that a photo cannot be searched for faces."""
        if reason not in TRANSIENT:
            self._faces.fail(job.digest, reason)

    def commit(self) -> None:
        """Publish every segment that was begun."""
        with self._clock.step("write"):
            for sink in self._vectors:
                sink.commit()
            self._faces.commit()


def _digests(jobs: Sequence[Job]) -> U8:
    """uint8 (n, 32)."""
    return np.frombuffer(b"".join(job.digest for job in jobs), np.uint8).reshape(-1, 32)
