"""Threads that run forward passes and face detection side by side, answers in the order asked.

    with Lanes(n, threads=1) as lanes:
        lanes.submit(work, then)     work(lane number) runs on some lane; then(answer) runs here
        lanes.drain()                wait until every `then` has run

The thread that submits is the only one that sees answers, so what `then` touches needs no lock.
"""

import queue
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Thread
from typing import Any, Self

from embedcache.backbones.forward import Network

AHEAD = 2
"""Batches that may wait behind those that run, so that no lane waits while one is stacked."""


class Lanes:
    """n threads, each with `threads` torch threads of its own (None: as they are)."""

    def __init__(self, n: int, *, threads: int | None = None) -> None:
        self.n = n
        self._tasks: queue.SimpleQueue[tuple[Callable[[int], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._waiting: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
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
        """Let what runs end, and drop what waits."""
        for future, _ in self._waiting:
            future.cancel()
        for _ in self._lanes:
            self._tasks.put(None)
        for lane in self._lanes:
            lane.join()
        self._restore()

    def submit(self, work: Callable[[int], Any], then: Callable[[Any], None]) -> None:
        """Queue `work`; while more than enough is queued, first wait for the oldest answer."""
        while len(self._waiting) >= self.n + AHEAD:
            self._take()
        future: Future[Any] = Future()
        self._waiting.append((future, then))
        self._tasks.put((work, future))

    def collect(self) -> None:
        """Take the answers that are there, in order."""
        while self._waiting and self._waiting[0][0].done():
            self._take()

    def drain(self) -> None:
        """Take every answer, also of what answers submit."""
        while self._waiting:
            self._take()

    def _take(self) -> None:
        future, then = self._waiting.popleft()
        then(future.result())

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
            except BaseException as error:  # handed to the thread that asked
                future.set_exception(error)
