"""One extraction on a Ray cluster. The only module that imports ray (docs/cluster.md).

    driver    digests -> plan -> a queue of parts (`handing.PartQueue`, an actor)
    workers   one per GPU, or per CORES processors: each asks for parts, embeds and commits them

Ray starts workers, starts them again where one or its machine is lost, and carries messages.
Decoding, batches and commits are those of any run. Workers write into the cache's folder, which all
machines see; where they do not, each writes a cache of its own and offers its rows to the remote.
"""

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from embedcache import disk, machine
from embedcache.backbones.loading import Backbone, Decode
from embedcache.backbones.names import Name
from embedcache.deferred import is_own_process
from embedcache.errors import EmbedcacheError, InputError
from embedcache.extraction.answering import (
    LOCAL,
    ClusterGone,
    aside,
    no_answer,
    places_on,
    require_answer,
    set_token,
)
from embedcache.extraction.clock import Clock, RunProgress, SpaceTally
from embedcache.extraction.face_finder import FaceFinder, as_sequence, detector_of
from embedcache.extraction.handed_work import Beat, Job, Unseen, cache_of, work
from embedcache.extraction.handing import HandedPart, PartQueue
from embedcache.extraction.outcome import Extraction, NodeOutcome, SpaceOutcome
from embedcache.extraction.pace import Compile
from embedcache.extraction.plan import Plan, plan, subset
from embedcache.extraction.prefetch import Gate
from embedcache.extraction.process import refuse_fork
from embedcache.extraction.provenance import about
from embedcache.extraction.run import Run, Watch
from embedcache.extraction.upstream import Upstream
from embedcache.photos.kinds import Reason
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, OK
from embedcache.store.space import Space
from embedcache.upkeep.local import MARKER, clear_leftovers

WITHOUT_END = -1  # Ray starts a worker again however often it ends; the queue says when not
LOOK_SECONDS, NODES_SECONDS, STOP_SECONDS = 0.5, 10.0, 60.0
SILENT_SECONDS, END_SECONDS = 30.0, 10.0
"""A cluster that answers nothing for so long has gone. After 60 Ray ends our process."""
STORE_BYTES = 512 * 2**20
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}

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
    if not _is_connected():
        require_answer(address, stop=stop)  # before anything is recorded
        set_token(address)
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
    )
    done = _Done(stopped=digests.stopped or stop())
    if len(todo) and not done.stopped:
        with _connected(address) as ray, _marked(job.marker):
            done = _Crew(ray, job, photos, todo, run.watch, cores=cores).work()
        if upstream is not None:
            upstream.take(todo.digests)
            upstream.give()
    _record_ended(backbones, spaces, subset(todo, np.array(done.given_up, np.int64)))
    for row in done.given_up:
        log(
            f"{photos.paths[int(todo.positions[row])]}: the process that read it ended each time, "
            "also with no other photo. It counts as failed. Look at it, or give a process more "
            "memory, and run again with `retry_failed`"
        )
    _, after = plan(photos, digests, spaces, retry_failed=False)
    clear_leftovers(cache)
    seconds = time.perf_counter() - started
    return Extraction(
        spaces=tuple(
            _outcome(
                *(b, then, now, done.nodes),
                embedded=int((space.status(todo.digests[todo.wanted[:, k]]) == OK).sum()),
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


def _record_ended(backbones: Sequence[Backbone], spaces: Sequence[Space], ended: Plan) -> None:
    """Note photos that end their workers as failed, so that the next run leaves them out."""
    for k, (backbone, space) in enumerate(zip(backbones, spaces, strict=True)):
        lacking = ended.wanted[:, k] & (space.status(ended.digests) == ABSENT)
        digests = ended.digests[lacking]
        if len(digests):
            writer = space.writer(n_rows=len(digests), name=backbone.name, about=about("none"))
            writer.fail(digests, [Reason.worker_ended] * len(digests))
            writer.commit()


@dataclass(frozen=True, slots=True)
class _Done:
    """How the work of all workers ended. given_up: rows of the plan."""

    stopped: bool
    nodes: tuple[NodeOutcome, ...] = ()
    given_up: tuple[int, ...] = ()


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
            .remote(self._n, n_workers=len(places))
        )
        self._told = [ray.put(one) for one in (job, photos, todo)]
        self._known: set[str] = set()
        self._actors: dict[str, Any] = {}
        self._runs: dict[Any, str] = {}
        self._nodes: list[NodeOutcome] = []
        self._problem: Exception | None = None
        self._n_workers = len(places)

    def work(self) -> _Done:
        """Run until everything is done or the caller stops it. ClusterGone where Ray is lost."""
        try:
            return self._work()
        except ClusterGone:
            if self._watch.stop():
                return _Done(True, tuple(self._nodes))
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
        return _Done(not status.finished, tuple(self._nodes), status.given_up)

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
            raise ClusterGone(str(error)) from None

    def _hire(self, nodes: Sequence[dict[str, Any]]) -> None:
        """Start a worker in every place of nodes that are new."""
        new = [node for node in nodes if node["NodeID"] not in self._known]
        for k, place in enumerate(places_on(new, cores=self._cores)):
            self._known.add(place.node)
            name = f"{place.host}-{place.node[:6]}-{k}"
            self._actors[name] = (
                self._ray.remote(_Worker)
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
                self._problem = cause if isinstance(cause, EmbedcacheError) else error
                lines = str(cause).strip().splitlines() or [type(cause).__name__]
                log.warning("worker %s: %s", name, lines[-1][:300])
                again = self._ask(self._queue.lost.remote(name))
                if again and not isinstance(cause, EmbedcacheError):
                    self._start(name)
        return bool(ready)

    def _idle(self) -> bool:
        """Whether the workers that have not ended are lost ones, for which nobody waits."""
        workers: int = self._ask(self._queue.status.remote()).workers
        return workers <= len(self._nodes)


class _Worker:
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

        def ask() -> HandedPart | None:
            part: HandedPart | None
            while True:
                part, more = ray.get(queue.next.remote(name))
                if part is not None or not more or beat.stopped:
                    return part
                time.sleep(LOOK_SECONDS)

        if not ray.get(queue.begin.remote(name)):
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
                done=lambda number: ray.get(queue.done.remote(name, number)),
            )


def _outcome(
    backbone: Backbone,
    before: SpaceTally,
    after: SpaceTally,
    nodes: Sequence[NodeOutcome],
    *,
    embedded: int,
    seconds: float,
) -> SpaceOutcome:
    """What became of one backbone's photos, by what the cache lacked before and lacks now."""
    rates = [node.model_photos_per_second for node in nodes if node.model_photos_per_second]
    slowest = max(nodes, key=lambda node: node.embedded, default=None)
    return SpaceOutcome(
        backbone=backbone.name,
        spec=backbone.spec.digest,
        dim=backbone.spec.dim,
        pooling=backbone.pooling,
        wanted=before.wanted,
        hit=after.hit - embedded,
        embedded=embedded,
        failures=dict(after.failed),
        seconds=seconds,
        model_photos_per_second=sum(rates) if rates else None,
        bottleneck="read" if slowest is None else slowest.bottleneck,
        shares={} if slowest is None else slowest.shares,
        forgotten=after.forgotten,
    )


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


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster, or started on this machine; ended as it was found."""
    ray = _ray()
    mine = not ray.is_initialized()
    # Ray prints what befalls its processes, and our result is all that a script reads there.
    with redirect_stdout(sys.stderr) if is_own_process() else nullcontext():
        try:
            if mine and address == LOCAL:
                ray.init(
                    address=LOCAL,
                    num_cpus=machine.processors(),
                    include_dashboard=False,
                    object_store_memory=STORE_BYTES,
                    **_QUIET,
                )
            elif mine:
                ray.init(address=address, **_QUIET)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise no_answer(address, str(error)) from error
        try:
            yield ray
        finally:
            if mine:
                _disconnect(ray)


def _disconnect(ray: Any) -> None:
    """End the connection, or after some seconds leave it: a lost cluster may never answer."""
    ending = threading.Thread(target=ray.shutdown, daemon=True)
    ending.start()
    ending.join(END_SECONDS)
    if ending.is_alive():
        atexit.unregister(ray.shutdown)  # which would wait again


def _is_connected() -> bool:
    """Whether the caller has connected this process to a cluster. InputError without ray."""
    if "ray" not in sys.modules and find_spec("ray") is not None:
        return False
    return bool(_ray().is_initialized())


def _ray() -> Any:
    """The module ray; it would put its own handlers in place of the command line's."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main = threading.current_thread() is threading.main_thread()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        import ray
    except ImportError:
        raise InputError("a Ray cluster needs the package ray: pip install ray") from None
    for number, handler in before.items():
        signal.signal(number, handler)
    return ray
