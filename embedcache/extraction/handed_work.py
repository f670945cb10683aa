"""What a worker of a cluster does: the parts handed to it, one by one. `Worker` is its process."""

import contextlib
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache import machine
from embedcache.backbones.loading import Backbone
from embedcache.errors import EmbedcacheError, InputError
from embedcache.extraction.clock import Clock, RunProgress
from embedcache.extraction.face_finder import FaceFinder
from embedcache.extraction.handing import Done, HandedWork, Others
from embedcache.extraction.neighbours import Neighbours
from embedcache.extraction.networks import load_all
from embedcache.extraction.outcome import NodeOutcome
from embedcache.extraction.part_queue import HandedPart
from embedcache.extraction.plan import Plan
from embedcache.extraction.prefetch import Gate
from embedcache.extraction.run import Run, Watch
from embedcache.extraction.upstream import Upstream
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache

BEAT_SECONDS, ASK_SECONDS = 1.0, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every worker is told.

    cache: its folder.  folder: where the command runs, from which photos are named.
    marker: a file in the cache, by which a worker sees that it is the same folder.
    loading: the options of `load_all`.  detector: of faces.  embedding: those of `Run.embed`.
    remote: where a worker that does not see the cache offers its rows, None for nowhere.
    crew: a name of the run, as in `Neighbours`.
    """

    cache: Path
    folder: Path
    marker: Path
    backbones: tuple[str | Backbone, ...]
    loading: dict[str, Any]
    detector: str
    embedding: dict[str, Any]
    workers: int | None
    retry_failed: bool
    remote: str | None
    crew: str


class Unseen(InputError):
    """A machine that does not see the cache's folder."""


def work(
    cache: Cache,
    job: Job,
    photos: Photos,
    todo: Plan,
    watch: Watch,
    *,
    name: str,
    n_workers: int,
    ask: Callable[[Others], HandedPart | None],
    done: Done,
) -> NodeOutcome:
    """The work of one worker, as `embedcache.extract` does its own; ask, done: see `HandedWork`."""
    began = time.perf_counter()
    faces = FaceFinder(cache, job.loading["device"], job.detector)
    run = Run(cache, watch, Clock(), Gate(job.workers), faces)
    memo = cache.local / "specs.json"
    backbones = load_all(job.backbones, faces=faces, memo=memo, **job.loading)
    spaces = run.open_spaces(backbones)
    upstream = None
    if cache.path != job.cache and job.remote is not None:
        upstream = Upstream(job.remote, cache, offer=True)
        upstream.serve([space.spec for space in spaces])
    neighbours = Neighbours(cache, [b.spec.digest for b in backbones], crew=job.crew)
    work = HandedWork(
        *(photos, todo, spaces, n_workers, neighbours, ask, done),
        upstream=upstream,
        retry_failed=job.retry_failed,
    )
    with neighbours.announced():
        embedded = run.embed(work, backbones, spaces, **job.embedding)
    done(None, work.embedded, {})
    seconds = time.perf_counter() - began
    outcomes = run.outcomes(backbones, work.tallies, embedded, seconds=seconds)
    return NodeOutcome(
        node=name,
        embedded=sum(one.embedded for one in outcomes),
        failed=sum(one.failed for one in outcomes),
        seconds=seconds,
        model_photos_per_second=outcomes[0].model_photos_per_second,
        bottleneck=outcomes[0].bottleneck,
        shares=outcomes[0].shares,
    )


class Beat:
    """Tells the queue once a second that this worker lives, and how far it is."""

    def __init__(self, tell: Callable[[int, int], bool]) -> None:
        self.stopped = False
        self._tell = tell
        self._now = (0, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *why: object) -> None:
        self._ended.set()
        self._thread.join()
        self._tell(*self._now)

    def show(self, now: RunProgress) -> None:
        """Take a run's progress."""
        self._now = (now.done, now.failed)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self.stopped = self._tell(*self._now)


@contextlib.contextmanager
def cache_of(job: Job) -> Iterator[Cache]:
    """The cache to write into: the one that was named, or one of this worker's own."""
    if job.marker.exists():
        yield Cache.open(job.cache)
        return
    if job.remote is None:
        raise Unseen(
            f"{socket.gethostname()} does not see {job.cache}. Put the cache on a folder that all "
            "machines share, or add `remote=URL` and `offer`"
        )
    with tempfile.TemporaryDirectory(prefix="embedcache-") as folder:
        yield Cache.open(Path(folder) / "cache", create=True)


class Worker:
    """One process of the cluster: a network, kept for as long as the run lasts."""

    def __init__(self, cpus: int) -> None:
        os.environ[machine.OWN_PROCESSORS] = str(cpus)

    def run(
        self, name: str, queue: Any, n_workers: int, job: Job, photos: Photos, todo: Plan
    ) -> NodeOutcome:
        """Embed what the queue hands out, until it has nothing more."""
        import ray

        with contextlib.suppress(OSError):  # photos are named from there
            os.chdir(job.folder)

        def ask(others: Others) -> HandedPart | None:
            part: HandedPart | None
            while True:
                part, more = ray.get(queue.next.remote(name, others()))
                if part is not None or not more or beat.stopped:
                    return part
                time.sleep(ASK_SECONDS)

        node = ray.get_runtime_context().get_node_id()
        here = f"{socket.gethostname()} (node {node[:6]})"
        if not ray.get(queue.begin.remote(name, here)):
            raise EmbedcacheError(
                "its process ended again and again, also with other photos. See Ray's logs, and "
                "whether this machine has memory for it (`workers` and `batch_size` of 1 take less)"
            )
        beat = Beat(lambda done, failed: ray.get(queue.beat.remote(name, done, failed)))
        watch = Watch(beat.show, logging.getLogger("embedcache").info, lambda: beat.stopped)
        with cache_of(job) as cache, beat:
            return work(
                *(cache, job, photos, todo, watch),
                name=name,
                n_workers=n_workers,
                ask=ask,
                done=lambda *what: ray.get(queue.done.remote(name, *what)),
            )
