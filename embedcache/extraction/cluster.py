"""One extraction on a Ray cluster (docs/cluster.md). ray itself: `connection`.

    driver    digests -> plan -> a queue of parts (`part_queue.PartQueue`, an actor)
    workers   one per GPU, or per CORES processors: each asks for parts, embeds and commits them

Ray starts workers, starts them again where one or its machine is lost, and carries messages.
Decoding, batches and commits are those of any run. Workers write into the cache's folder, which all
machines see; where they do not, each writes a cache of its own and offers its rows to the remote.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedcache import disk
from embedcache.backbones.loading import Backbone, Decode
from embedcache.backbones.names import Name
from embedcache.errors import EmbedcacheError, InputError
from embedcache.extraction.answering import (
    LOCAL,
    SILENT_SECONDS,
    ClusterGone,
    Place,
    aside,
    last_line,
    places_on,
    require_answer,
    set_token,
)
from embedcache.extraction.clock import Clock, RunProgress
from embedcache.extraction.cluster_outcome import (
    failures_of,
    outcome_of,
    record_ended,
    say_unread,
)
from embedcache.extraction.connection import connected, is_connected, ray_package
from embedcache.extraction.face_finder import FaceFinder, as_sequence, detector_of
from embedcache.extraction.handed_work import Job, Unseen, Worker
from embedcache.extraction.outcome import Extraction, NodeOutcome
from embedcache.extraction.pace import Compile
from embedcache.extraction.part_queue import LOST_SECONDS, PartQueue, Unread
from embedcache.extraction.plan import Plan, plan, subset
from embedcache.extraction.prefetch import Gate
from embedcache.extraction.process import refuse_fork
from embedcache.extraction.run import Run, Watch
from embedcache.extraction.upstream import Upstream
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.upkeep.local import MARKER, clear_leftovers
from embedcache.wording import counted

WITHOUT_END = -1  # Ray starts a worker again however often it ends; the queue says when not
LOOK_SECONDS, NODES_SECONDS, STOP_SECONDS = 0.5, 10.0, 60.0
WAIT_SECONDS = 15.0
"""How long workers may take to begin before the command says what they wait for."""

log = logging.getLogger(__name__)


def extract_on_ray(
    photos: Photos,
    cache: Cache,
    *,
    backbone: str | Backbone | Sequence[str | Backbone],
    address: str = LOCAL,
    cores: int | None = None,
    batch_size: int | None = None,
    precision: str = "float32",
    device: str = "auto",
    workers: int | None = None,
    decode: Decode = "full",
    detector: str | None = None,
    compiling: Compile = "auto",
    retry_failed: bool = False,
    again: bool = False,
    remote: str | None = None,
    offer: bool = False,
    writer: str = "",
    progress: Callable[[RunProgress], None] = lambda now: None,
    log: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> Extraction:
    """Embed every photo that `cache` lacks, on all machines of a Ray cluster.

    address: of the cluster, as `ray.init` takes it; "local" starts Ray on this machine.
    cores: processors per worker, where there is no GPU.
    remote, offer: with both, machines that do not see the cache's folder are used too.
    The rest is as in `embedcache.extract`; so is the outcome, with an entry per worker.
    Raises InputError where ray is not installed, its cluster does not answer, or a machine does
        not see the cache and there is no remote to offer to.
    """
    started = time.perf_counter()
    refuse_fork()
    if not is_connected():  # before anything is recorded
        require_answer(address, stop=stop)
        set_token(address, stop=stop)
        ray_package()
    faces = FaceFinder(cache, device, detector_of(detector, as_sequence(backbone)))
    run = Run(cache, Watch(progress, log, stop), Clock(), Gate(workers), faces)
    upstream = Upstream(remote, cache, offer=offer) if remote else None
    loading: dict[str, Any] = {"device": device, "precision": precision, "decode": decode}
    digests, backbones = run.read(photos, backbone, again=again, **loading)
    spaces = run.open_spaces(backbones)
    if upstream is not None and not digests.stopped:
        upstream.serve([space.spec for space in spaces])
        upstream.take(plan(photos, digests, spaces, retry_failed=retry_failed)[0].digests)
    todo, before = plan(photos, digests, spaces, retry_failed=retry_failed)
    job = Job(
        cache=cache.path.resolve(),
        folder=Path.cwd(),
        marker=cache.local.resolve() / f"{MARKER}{disk.mark_of_process()}",
        backbones=tuple(_places(backbone)),
        loading=loading,
        detector=faces.name,
        embedding={"batch_size": batch_size, "compiling": compiling, "writer": writer},
        workers=workers,
        retry_failed=retry_failed,
        remote=remote if offer else None,
        crew=secrets.token_hex(8),
    )
    done = _Done(stopped=digests.stopped or stop())
    if len(todo) and not done.stopped:
        with connected(address) as ray, _marked(job.marker):
            done = _Crew(ray, job, photos, todo, run.watch, cores=cores).work()
        if upstream is not None:
            upstream.take(todo.digests)
            upstream.give()
    record_ended(backbones, spaces, subset(todo, np.array(done.given_up, np.int64)))
    for row in done.given_up:
        log(
            f"{photos.paths[int(todo.positions[row])]}: the process that read it ended each time, "
            "also with no other photo. It counts as failed. Look at it, or give a process more "
            "memory, and run again with `retry_failed`"
        )
    failed = say_unread(photos, todo, done.unread, log=log)
    _, after = plan(photos, digests, spaces, retry_failed=False)
    for k, (space, tally) in enumerate(zip(spaces, after, strict=True)):
        tally.failed.update(failures_of(todo, k, space, failed))
    clear_leftovers(cache)
    seconds = time.perf_counter() - started
    return Extraction(
        spaces=tuple(
            outcome_of(
                *(b, then, now, done.nodes),
                embedded=min(
                    done.embedded[k] if done.embedded else 0,
                    int((space.status(todo.digests[todo.wanted[:, k]]) == OK).sum()),
                ),
                seconds=seconds,
            )
            for k, (b, space, then, now) in enumerate(
                zip(backbones, spaces, before, after, strict=True)
            )
        ),
        interrupted=done.stopped,
        n_photos=len(photos),
        n_without_photo=photos.n_without_photo,
        n_reducible=0,
        seconds=seconds,
        remote="" if upstream is None else upstream.name,
        taken=0 if upstream is None else upstream.n_taken,
        offered=0 if upstream is None else upstream.n_given,
        nodes=done.nodes,
        given_up=len(done.given_up),
    )


@dataclass(frozen=True, slots=True)
class _Done:
    """How the work of all workers ended.

    given_up: rows of the plan.  embedded: rows by space that these workers did.
    """

    stopped: bool
    nodes: tuple[NodeOutcome, ...] = ()
    given_up: tuple[int, ...] = ()
    embedded: tuple[int, ...] = ()
    unread: Sequence[Unread] = ()


class _Crew:
    """The workers of one run, and the queue that hands them their parts."""

    def __init__(
        self, ray: Any, job: Job, photos: Photos, todo: Plan, watch: Watch, *, cores: int | None
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

        self._ray = ray
        self._watch = watch
        self._n = len(todo)
        self._on_node = OnNode
        here = OnNode(ray.get_runtime_context().get_node_id(), soft=False)
        self._cores = cores
        places = places_on(ray.nodes(), cores=cores)
        if not places:
            raise InputError("the Ray cluster has no processors to run a worker on")
        self._queue = (
            ray.remote(PartQueue)
            .options(num_cpus=0, scheduling_strategy=here)
            .remote(self._n, n_workers=len(places), buckets=todo.digests[:, 0].copy())
        )
        self._told = [ray.put(one) for one in (job, photos, todo)]
        self._known: set[str] = set()
        self._actors: dict[str, Any] = {}
        self._runs: dict[Any, str] = {}
        self._nodes: list[NodeOutcome] = []
        self._problem: Exception | None = None
        self._n_workers = len(places)
        self._places: dict[str, Place] = {}
        self._replaced = 0.0  # when silent workers were, 0 where none are
        self._n_replaced = 0
        self._embedded: tuple[int, ...] = ()
        self._said_waiting = False
        self._free: Future[Any] | None = None  # what of the cluster nobody uses, once asked

    def work(self) -> _Done:
        """Run until everything is done or the caller stops it. ClusterGone where Ray is lost."""
        try:
            return self._work()
        except ClusterGone:
            if self._watch.stop():
                return _Done(True, tuple(self._nodes), embedded=self._embedded)
            raise

    def _work(self) -> _Done:
        began, asked = time.perf_counter(), time.perf_counter()
        nodes: Future[Any] | None = aside(self._ray.nodes)
        while True:
            now = time.perf_counter()
            if nodes is None and now - asked > NODES_SECONDS:
                nodes, asked = aside(self._ray.nodes), now
            elif nodes is not None and nodes.done():
                self._hire(self._answered(nodes.result))
                nodes = None
            elif nodes is not None and now - asked > SILENT_SECONDS:
                raise ClusterGone("its head node is silent")
            status = self._ask(self._queue.status.remote())
            self._watch.progress(RunProgress(status.done, self._n, status.failed, now - began))
            if status.finished or self._watch.stop():
                break
            if status.quiet_seconds is None:
                self._say_waiting(now - began)
            else:
                self._replace_silent(status.quiet_seconds)
            if self._known and not self._runs:  # all had ended before the queue was asked
                raise self._problem or EmbedcacheError("every worker of the Ray cluster was lost")
            self._collect(LOOK_SECONDS)
        if not status.finished:
            self._ask(self._queue.stop.remote())
        until = time.perf_counter() + STOP_SECONDS
        while self._runs and time.perf_counter() < until:
            if not self._collect(LOOK_SECONDS) and status.finished and self._idle():
                break
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._embedded = self._ask(self._queue.embedded.remote())
        unread = self._ask(self._queue.never_read.remote())
        return _Done(
            *(not status.finished, tuple(self._nodes), status.given_up, self._embedded, unread)
        )

    def _say_waiting(self, seconds: float) -> None:
        """Say once that no worker could begin yet, because other work has the processors."""
        if self._free is None and seconds > WAIT_SECONDS:
            self._free = aside(self._ray.available_resources)
        if self._free is None or not self._free.done() or self._said_waiting:
            return
        self._said_waiting = True
        free = self._answered(self._free.result)
        place = next(iter(self._places.values()), None)
        if place is None:
            return
        kind, wanted = ("GPU", place.gpus) if place.gpus else ("CPU", place.cpus)
        if free.get(kind, 0) < wanted:
            noun = "GPU" if place.gpus else "processor"
            self._watch.log(
                f"waiting for the Ray cluster: a worker needs {counted(wanted, noun)}, and other "
                f"work on the cluster leaves {free.get(kind, 0):.0f}. This run begins when some "
                "are free; Ctrl-C ends it"
            )

    def _replace_silent(self, quiet_seconds: float) -> None:
        """Start others in place of workers that all say nothing for too long, as stopped processes
        do. A slow one still says every second that it lives (`Beat`)."""
        now = time.perf_counter()
        if quiet_seconds <= LOST_SECONDS:
            self._replaced = 0.0
        elif not self._replaced:
            self._replaced = now
            self._n_replaced += 1
            silent = list(self._runs.values())
            self._runs.clear()
            for name in silent:
                log.warning("worker %s has been silent for %.0f s: replaced", name, quiet_seconds)
                self._ray.kill(self._actors.pop(name))
                self._ask(self._queue.lost.remote(name))
                self._employ(f"{name}-{self._n_replaced}", self._places[name])
        elif now - self._replaced > LOST_SECONDS:
            raise EmbedcacheError(
                f"no worker of the Ray cluster has answered for {quiet_seconds:.0f} s, nor one "
                "started in its place",
                advice="What they have committed is kept. Look at their machines for stopped "
                "processes, and run the command again",
            )

    def _ask(self, answer: Any) -> Any:
        """What the queue answers. ClusterGone where it is lost, or silent for too long, or where
        the caller stops a run meanwhile."""
        until = time.perf_counter() + SILENT_SECONDS
        while True:
            try:
                return self._answered(lambda: self._ray.get(answer, timeout=LOOK_SECONDS))
            except self._ray.exceptions.GetTimeoutError:
                if time.perf_counter() > until or self._watch.stop():
                    raise ClusterGone("the actor that hands out the work is silent") from None

    def _answered(self, ask: Callable[[], Any]) -> Any:
        """What Ray answers, maybe that there is no answer yet; ClusterGone where it is lost."""
        try:
            return ask()
        except self._ray.exceptions.GetTimeoutError:
            raise
        except self._ray.exceptions.RayError as error:
            if "creation task" in str(error):  # Python there could not begin
                raise EmbedcacheError(
                    "Ray cannot run embedcache on the machine of this command: "
                    f"{last_line(str(error))}",
                    advice="Start its 'ray start' in the environment of this command",
                ) from None
            raise ClusterGone(str(error)) from None

    def _hire(self, nodes: Sequence[dict[str, Any]]) -> None:
        """Start a worker in every place of nodes that are new."""
        new = [node for node in nodes if node["NodeID"] not in self._known]
        for k, place in enumerate(places_on(new, cores=self._cores)):
            self._known.add(place.node)
            self._employ(f"{place.host}-{place.node[:6]}-{k}", place)

    def _employ(self, name: str, place: Place) -> None:
        self._places[name] = place
        self._actors[name] = (
            self._ray.remote(Worker)
            .options(
                num_cpus=place.cpus,
                num_gpus=place.gpus,
                max_restarts=WITHOUT_END,
                max_task_retries=WITHOUT_END,
                scheduling_strategy=self._on_node(place.node, soft=True),
            )
            .remote(place.cpus)
        )
        self._start(name)

    def _start(self, name: str) -> None:
        run = self._actors[name].run.remote(name, self._queue, self._n_workers, *self._told)
        self._runs[run] = name

    def _collect(self, seconds: float) -> bool:
        """Take the answers of workers that have ended, and start again those that failed."""
        ready, _ = self._ray.wait(list(self._runs), timeout=seconds)
        for run in ready:
            name = self._runs.pop(run)
            try:
                self._nodes.append(self._ray.get(run))
            except Exception as error:  # whatever a worker may raise, and Ray's own
                cause = getattr(error, "cause", None) or error
                if isinstance(cause, Unseen):
                    raise InputError(str(cause)) from None
                why = last_line(str(cause)) or type(cause).__name__
                self._problem = (
                    cause
                    if isinstance(cause, EmbedcacheError)
                    else EmbedcacheError(
                        f"every worker of the Ray cluster was lost; the last one, {name}: {why}",
                        advice="embedcache must be installed there as it is here. What workers "
                        "committed is kept",
                    )
                )
                log.warning("worker %s: %s", name, why)
                again = self._ask(self._queue.lost.remote(name))
                if again and not isinstance(cause, EmbedcacheError):
                    self._start(name)
        return bool(ready)

    def _idle(self) -> bool:
        """Whether the workers that have not ended are lost ones, for which nobody waits."""
        workers: int = self._ask(self._queue.status.remote()).workers
        return workers <= len(self._nodes)


def _places(backbone: str | Backbone | Sequence[str | Backbone]) -> Iterator[str | Backbone]:
    """The backbones with the paths of their weights made absolute."""
    asked = [backbone] if isinstance(backbone, str | Backbone) else backbone
    return (one if isinstance(one, Backbone) else Name.parse(one).place for one in asked)


@contextlib.contextmanager
def _marked(marker: Path) -> Iterator[None]:
    disk.replace(marker, b"")
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)
