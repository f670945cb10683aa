"""Work on blocks of rows on all processors, each with blocks of its own.

BLAS's own threads share out every product instead, and wait for each other at its end. For a block
of a thousand rows times a few columns the wait is as long as the product or longer, and far longer
on a machine that others use (docs/decisions/109).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Lock
from typing import Any, TypeVar

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
    if find_spec("threadpoolctl") is None:  # scikit-learn brings it, and a bare machine has none
        yield None
        return
    n = processors()
    with _alone, ThreadPoolExecutor(n) as pool:
        yield Threads(pool, n)


class _Alone:
    """Keeps BLAS from having threads while any fit of this process wants that.

    The limit is of the whole process: of fits that overlap, the last one to end lifts it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._n = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        with self._lock:
            if self._n == 0:
                self._limits = threadpool_limits(1, user_api="blas")
            self._n += 1

    def __exit__(self, *why: object) -> None:
        with self._lock:
            self._n -= 1
            if self._n == 0:
                self._limits.restore_original_limits()


_alone = _Alone()
