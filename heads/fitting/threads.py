"""Work on blocks of rows on all processors, each with blocks of its own.

BLAS's own threads share out every product instead, and wait for each other at its end. For a block
of a thousand rows times a few columns the wait is as long as the product or longer, and far longer
on a machine that others use (docs/decisions/109).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from embedcache.machine import processors

Part = TypeVar("Part")
Found = TypeVar("Found")


class Threads:
    """A pool of threads, as many as there are processors, in which BLAS has no threads."""

    def __init__(self, pool: ThreadPoolExecutor, n: int) -> None:
        self._pool, self.n = pool, n

    def map(self, work: Callable[[Sequence[Part]], Found], parts: Sequence[Part]) -> list[Found]:
        """What `work` makes of neighbouring parts, thread by thread, in order."""
        size = -(-len(parts) // self.n) or 1
        some = [parts[start : start + size] for start in range(0, len(parts), size)]
        return list(self._pool.map(work, some))

    def each(self, work: Callable[[Part], Found], parts: Sequence[Part]) -> list[Found]:
        """What `work` makes of each part, in order."""
        return list(self._pool.map(work, parts))


@contextmanager
def threads() -> Iterator[Threads | None]:
    """Threads to work on blocks in; None where BLAS cannot be kept from having its own."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # a bare machine has no scikit-learn, which it comes with
        yield None
        return
    n = processors()
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(n) as pool:
        yield Threads(pool, n)
