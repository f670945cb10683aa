"""Threads that run forward passes and face detection side by side, answers in the order asked.

    with Lanes(n, threads=1) as lanes:
        lanes.submit(work, then)     work(lane number) runs on some lane
        lanes.collect()              then(answer) runs here, for every answer that is ready

The thread that submits is the only one that sees answers, so what `then` touches needs no lock.
`submit` never runs a `then`, and a `then` may not use the lanes: control has one path.
"""

import queue
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Thread
from typing import Any, Self, TypeVar

from embedcache.backbones.forward import Network

AHEAD = 2
"""Batches that may wait behind those that run, so that no lane waits while one is stacked."""

Answer = TypeVar("Answer")


class Lanes:
    """n threads, each with `threads` torch threads of its own (None: as they are)."""

    def __init__(self, n: int, *, threads: int | None = None) -> None:
        self.n = n
        self._tasks: queue.SimpleQueue[tuple[Callable[[int], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._waiting: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
        self._answering = False
        self._restore: Callable[[], None] = lambda: None
        if threads is not None:
            import torch

            before = torch.get_num_threads()
            self._restore = lambda: torch.set_num_threads(before)
        self._lanes = [
            Thread(target=self._serve, args=(lane, threads), name=f"lane-{lane}", daemon=True)
            for lane in range(n)
        ]
        for lane in self._lanes:
            lane.start()

    @classmethod
    def of(cls, networks: Iterable[Network]) -> Self:
        """As many lanes as the networks of a run have at most."""
        found = list(networks)
        threads = [network.threads for network in found if network.threads is not None]
        return cls(
            max((len(network.lanes) for network in found), default=1),
            threads=min(threads, default=None),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: object) -> None:
        """Finish what runs, and drop what waits."""
        for future, _ in self._waiting:
            future.cancel()
        for _ in self._lanes:
            self._tasks.put(None)
        for lane in self._lanes:
            lane.join()
        self._restore()

    @property
    def full(self) -> bool:
        """Whether enough waits behind what runs; call `make_room` before the next `submit`."""
        return len(self._waiting) >= self.n + AHEAD

    def submit(self, work: Callable[[int], Answer], then: Callable[[Answer], None]) -> None:
        """Queue `work`; its answer waits for `collect`, `make_room` or `drain`."""
        assert not self._answering, "an answer submits nothing"
        future: Future[Answer] = Future()
        self._waiting.append((future, then))
        self._tasks.put((work, future))

    def collect(self) -> None:
        """Take the answers that are ready, in the order asked."""
        while self._waiting and self._waiting[0][0].done():
            self._take()

    def make_room(self) -> None:
        """Take answers, the oldest first, until something can be submitted."""
        while self.full:
            self._take()

    def drain(self) -> None:
        """Wait for every answer."""
        while self._waiting:
            self._take()

    def _take(self) -> None:
        assert not self._answering, "an answer takes no answers"
        future, then = self._waiting.popleft()
        answer = future.result()
        self._answering = True
        try:
            then(answer)
        finally:
            self._answering = False

    def _serve(self, lane: int, threads: int | None) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)  # of this thread, where torch runs on OpenMP
        while (task := self._tasks.get()) is not None:
            work, future = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(lane))
            except BaseException as error:  # raised where the answer is taken
                future.set_exception(error)
