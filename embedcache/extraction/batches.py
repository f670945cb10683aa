"""Pixels on their way from decoding to the networks: one queue per network.

A network is known by the position of the first backbone that shares its pass.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from embedcache.extraction.prefetch import Job, Pixels


@dataclass(frozen=True, slots=True)
class Batch:
    """b photos for one forward pass: their jobs, and the pixels of each, cut or uncut."""

    jobs: tuple[Job, ...]
    pixels: Sequence[Pixels]

    def __len__(self) -> int:
        return len(self.jobs)


class Batches:
    """Photos that wait for a forward pass, by position of a backbone. `put` starts nothing."""

    def __init__(self, n_backbones: int) -> None:
        self._queues: list[deque[tuple[Job, Pixels]]] = [deque() for _ in range(n_backbones)]

    def put(self, job: Job, b: int, pixels: Pixels) -> None:
        """Add one photo's pixels for backbone number b."""
        self._queues[b].append((job, pixels))

    def waiting(self, b: int) -> int:
        """Photos that wait for backbone number b."""
        return len(self._queues[b])

    def take(self, b: int, size: int) -> Batch:
        """The next `size` photos, or as many as there are."""
        queue = self._queues[b]
        taken = [queue.popleft() for _ in range(min(size, len(queue)))]
        return Batch(tuple(job for job, _ in taken), [pixels for _, pixels in taken])
