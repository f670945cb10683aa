"""Stage one: photos in, vectors in a cache.

    digests -> plan (wanted - present) -> threads read and decode -> faces -> batches -> lanes
    -> segments

One read, one decode and one detection serve every backbone of a run. There is no state to resume: a
run embeds what the cache lacks, so running it again after a crash is the resume.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.backbones.loading import Backbone, Decode, leaders_of
from embedcache.backbones.names import DEFAULT
from embedcache.errors import PhotosError
from embedcache.extraction.clock import Clock, RunProgress, SpaceTally
from embedcache.extraction.decoders import children, decoding
from embedcache.extraction.engine import Engine
from embedcache.extraction.face_finder import FaceFinder, as_sequence, detector_of
from embedcache.extraction.handing import HandedWork
from embedcache.extraction.lanes import Lanes
from embedcache.extraction.neighbours import Neighbours, Reading
from embedcache.extraction.networks import engines_of, load_all
from embedcache.extraction.outcome import Extraction, SpaceOutcome
from embedcache.extraction.pace import Compile, PaceFinder
from embedcache.extraction.parts import WorkPart
from embedcache.extraction.pipeline import Pipeline
from embedcache.extraction.pixels import KeptPixels, is_pixels, require_room
from embedcache.extraction.prefetch import Decoding, Gate, prefetch
from embedcache.extraction.process import refuse_fork
from embedcache.extraction.provenance import about
from embedcache.extraction.sink import OpenSegment, Sink, Sinks
from embedcache.extraction.upstream import Upstream
from embedcache.extraction.work import Work
from embedcache.photos.digests import Digests
from embedcache.photos.table import Photos
from embedcache.spec import shape_of
from embedcache.store.cache import Cache
from embedcache.store.disposal import noting_aside
from embedcache.store.shard import Rows
from embedcache.store.space import Space
from embedcache.upkeep.local import clear_leftovers


def extract(
    photos: Photos | str | Path,
    cache: Cache | str | Path,
    *,
    backbone: str | Backbone | Sequence[str | Backbone] = DEFAULT,
    batch_size: int | None = None,
    precision: str = "float32",
    device: str = "auto",
    workers: int | None = None,
    decode: Decode = "full",
    compiling: Compile = "auto",
    detector: str | None = None,
    keep_pixels: int | None = None,
    retry_failed: bool = False,
    again: bool = False,
    record: bool = True,
    strict: bool = False,
    part: WorkPart | None = None,
    remote: str | Upstream | None = None,
    offer: bool = False,
    writer: str = "",
    progress: Callable[[RunProgress], None] = lambda now: None,
    log: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> Extraction:
    """Embed every photo that `cache` lacks. Running it again after a crash is the resume.

    photos: n ids with their files, or the path of a folder or table; equal contents are embedded
        once.
    cache: or the path of one, which is made where there is none. It gains float32 rows of shape
        (n_missing, dim) for each backbone.
    backbone: one or several, names or loaded; they share reading, decoding and face detection, and
        layers of one network (NAME#LAYER,LAYER) share the forward pass.
    batch_size: images per forward pass; by default 8 on a CPU and 256 on a GPU, or in a long run
        the best of a few that its first photos are embedded with; halved when memory runs out. It
        changes speed and memory, and vectors only within the tolerance in docs/format.md.
    workers: threads that read and decode; by default one per core, at most 16, until a long run
        has measured what its networks and its disk need.
    compiling: "on" compiles the networks, "auto" does when the run is so long that it pays; either
        way only once their pace is known and only if that is faster and gives the same vectors.
    precision, device, decode: as in `backbones.load`.
    detector: of faces: "mtcnn", as in the paper, or "blazeface"; by default that of the backbones
        given as loaded, or MTCNN. It is part of the spec of a face crop.
    keep_pixels: also keep what backbones with an input of so many pixels a side get of each photo,
        as uint8 rows, so that a later backbone of the same preprocessing decodes nothing. Rows that
        are there are read without being asked for.
    retry_failed: try photos again that an earlier run could not embed.
    again: embed and record photos also where they were forgotten; otherwise they are skipped.
    record: keep which content each id has now. Without it `photos` only says where files are.
    strict: PhotosError at the first photo that fails; what was embedded until then is kept.
    part: only these of the photos, where other processes do the other parts.
    remote: a shared copy to read through: rows that it has are taken, only the rest is computed. A
        remote that fails costs a warning and nothing else.
    offer: give computed rows back to `remote` during the run.
    writer: a name for the manifests of computed rows.
    progress: called after every photo, and ten times a second while files are read for the plan.
    log: takes a line about other long steps, such as compiling.
    stop: asked after every photo; True commits what is done and returns with `interrupted` set.
    Returns per backbone the photos that were present (hit), embedded and failed, and where the
        seconds went.
    Raises WeightsError for a backbone that cannot be loaded. A photo that cannot be read does not
        raise: its reason is recorded.
    """
    started = time.perf_counter()
    refuse_fork()
    photos = photos if isinstance(photos, Photos) else Photos.read(photos)
    cache = cache if isinstance(cache, Cache) else Cache.open(cache, create=True)
    photos = photos if part is None else part.of(photos)
    upstream = Upstream(remote, cache, offer=offer) if isinstance(remote, str) else remote
    faces = FaceFinder(cache, device, detector_of(detector, as_sequence(backbone)))
    run = Run(cache, Watch(progress, log, stop), Clock(), Gate(workers), faces)
    options: dict[str, Any] = {"device": device, "precision": precision, "decode": decode}
    options["keep_pixels"] = keep_pixels
    digests, backbones = run.read(photos, backbone, again=again, record=record, **options)
    if strict and digests.reasons:
        position, reason = next(iter(digests.reasons.items()))
        raise _refusal(f"{photos.paths[position]}: {reason}")
    spaces = run.open_spaces(backbones)
    neighbours = Neighbours(cache, [b.spec.digest for b in backbones], part)
    stopped = digests.stopped or stop()
    with run.clock.step("read"):
        work = Work(
            *(photos, digests, spaces),
            neighbours=neighbours,
            upstream=None if stopped else upstream,
            retry_failed=retry_failed,
        )
    done = Embedded(stopped=True)
    if not stopped:
        with neighbours.announced():
            done = run.embed(
                *(work, backbones, spaces),
                batch_size=batch_size,
                compiling=compiling,
                writer=writer,
                strict=strict,
            )
    clear_leftovers(cache)
    seconds = time.perf_counter() - started
    return Extraction(
        spaces=run.outcomes(backbones, work.tallies, done, seconds=seconds),
        interrupted=done.stopped,
        part="" if part is None else str(part),
        n_photos=len(photos),
        n_without_photo=photos.n_without_photo,
        n_reducible=run.clock.reducible,
        seconds=seconds,
        remote="" if upstream is None else upstream.name,
        taken=0 if upstream is None else upstream.n_taken,
        offered=0 if upstream is None else upstream.n_given,
    )


@dataclass(frozen=True, slots=True)
class Watch:
    """How a caller follows a run: see `extract`."""

    progress: Callable[[RunProgress], None]
    log: Callable[[str], None]
    stop: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Run:
    """What every step of one run uses; the steps, in their order."""

    cache: Cache
    watch: Watch
    clock: Clock
    gate: Gate
    faces: FaceFinder

    def read(
        self,
        photos: Photos,
        backbone: str | Backbone | Sequence[str | Backbone],
        *,
        again: bool,
        record: bool = True,
        **options: Any,
    ) -> tuple[Digests, list[Backbone]]:
        """The digests of all photos, recorded if asked, and the backbones, loaded meanwhile.

        again: lift what was forgotten.  options: those of `backbones.load`.
        """
        memo = self.cache.local / "specs.json"
        # Loading computes, reading waits for a disk.
        with Reading(self.cache) as shown, ThreadPoolExecutor(1, "load") as beside:
            options |= {"faces": self.faces, "memo": memo, "cache": self.cache}
            loading = beside.submit(load_all, backbone, **options)
            with self.clock.step("read"):
                digests = self._digests(photos, beside=loading, shown=shown)
            backbones = loading.result()  # a name that is wrong records no photo
            if record:
                with self.clock.step("read"):
                    _record(photos, digests, self.cache, again=again)
            return digests, backbones

    def _digests(self, photos: Photos, *, beside: Future[Any], shown: Reading) -> Digests:
        """beside: what is done at the same time; should it fail, reading ends at once."""
        started = time.perf_counter()

        def reading(n_done: int, n: int) -> None:
            shown.go_on()
            seconds = time.perf_counter() - started
            self.watch.progress(RunProgress(n_done, n, 0, seconds, doing="reading"))

        def stopped() -> bool:
            return self.watch.stop() or (beside.done() and beside.exception() is not None)

        return photos.digests(self.cache, workers=self.gate.workers, progress=reading, stop=stopped)

    def open_spaces(self, backbones: Sequence[Backbone]) -> list[Space]:
        """The spaces, with what runs that were killed have left in them."""
        self.cache.remember_places({b.spec.digest: b.place for b in backbones if b.place})
        spaces = [self.cache.space(b.spec, create=True) for b in backbones]
        for space in spaces:
            with noting_aside(self.cache.path):
                space.salvage()
        return spaces

    def embed(
        self,
        work: Work | HandedWork,
        backbones: Sequence[Backbone],
        spaces: Sequence[Space],
        *,
        batch_size: int | None,
        compiling: Compile,
        writer: str,
        strict: bool = False,
    ) -> "Embedded":
        """Embed all parts of the work, unless the caller stops it."""
        require_room(self.cache, backbones, work.todo.wanted, log=self.watch.log)
        contents = work.todo.digests, work.todo.wanted
        kept = KeptPixels(self.cache, backbones, *contents, log=self.watch.log)
        pace_finder = PaceFinder(
            self.gate, batch_size=batch_size, compiling=compiling, log=self.watch.log
        )
        # Children start while networks load.
        with children(work.n_photos, wanted=lambda: self.faces.on_cuda) as decoders:
            engines = engines_of(backbones, work.todo, pace_finder)
            sinks = self._sinks(backbones, spaces, tallies=work.tallies, writer=writer)
            uncut = {b for b, engine in engines.items() if engine.network.resizes}
            with Lanes.of([engine.network for engine in engines.values()]) as lanes:
                pipeline = Pipeline(
                    *(backbones, engines, self.faces, sinks),
                    lanes=lanes,
                    pace_finder=pace_finder,
                    clock=self.clock,
                )
                how = decoding(decoders, self.clock, uncut)
                stopped = self._embed_parts(
                    *(work, backbones, pipeline, sinks, how), kept=kept, strict=strict
                )
        return Embedded(stopped, engines, lanes.n)

    def _embed_parts(
        self,
        work: Work | HandedWork,
        backbones: Sequence[Backbone],
        pipeline: Pipeline,
        sinks: Sinks,
        how: Decoding,
        *,
        kept: KeptPixels,
        strict: bool,
    ) -> bool:
        """Commit part after part; True where the caller stopped it."""
        began, done = time.perf_counter(), 0
        for part in work.parts():
            pipeline.expect(part)
            jobs = work.jobs(part, backbones, self.faces, kept)
            decoded = prefetch(
                jobs,
                gate=self.gate,
                ahead=lambda: pipeline.ahead,
                clock=self.clock,
                decoding=how,
            )
            with closing(decoded):
                for ready in decoded:
                    done += 1
                    pipeline.take(ready)
                    n_failed = max(tally.failed.total() for tally in work.tallies)
                    seconds = time.perf_counter() - began
                    self.watch.progress(RunProgress(done, work.n_photos, n_failed, seconds))
                    refused = sinks.first_failure if strict else None
                    if refused or self.watch.stop():
                        pipeline.commit()
                        work.give()
                        if refused:
                            raise _refusal(refused)
                        return True
            pipeline.flush()
            pipeline.commit()
        return False

    def _sinks(
        self,
        backbones: Sequence[Backbone],
        spaces: Sequence[Space],
        *,
        tallies: Sequence[SpaceTally],
        writer: str,
    ) -> Sinks:
        """Where rows go: one sink per space, and one for the faces."""

        def sink(space: Space, backbone: Backbone) -> Sink[Rows]:
            def begin(n_rows: int) -> OpenSegment[Rows]:
                if is_pixels(backbone):
                    provenance = about("cpu")
                else:
                    network = backbone.open()
                    provenance = about(network.device, weights=network.origin)
                if writer:
                    provenance["writer"] = writer
                return space.writer(n_rows=n_rows, name=backbone.name, about=provenance)

            return Sink(begin, row_bytes=backbone.spec.row_bytes)

        vectors = [sink(space, backbone) for space, backbone in zip(spaces, backbones, strict=True)]
        return Sinks(vectors, Sink(self.faces.begin), tallies=tallies, clock=self.clock)

    def outcomes(
        self,
        backbones: Sequence[Backbone],
        tallies: Sequence[SpaceTally],
        done: "Embedded",
        *,
        seconds: float,
    ) -> tuple[SpaceOutcome, ...]:
        """What became of each backbone's photos."""
        found = []
        leaders = leaders_of(backbones)
        for leader, backbone, tally in zip(leaders, backbones, tallies, strict=True):
            engine = done.engines.get(leader)
            found.append(
                SpaceOutcome(
                    backbone=backbone.name,
                    spec=backbone.spec.digest,
                    dim=backbone.spec.dim,
                    shape=shape_of(backbone.spec) if is_pixels(backbone) else "",
                    pooling=backbone.pooling,
                    wanted=tally.wanted,
                    hit=tally.hit,
                    embedded=tally.embedded,
                    failures=dict(tally.failed),
                    seconds=seconds,
                    model_photos_per_second=None if engine is None else engine.rate,
                    bottleneck=self.clock.bottleneck(done.n_lanes),
                    shares=self.clock.shares(),
                    batch_size=None if engine is None else engine.pace.size,
                    workers=self.gate.workers,
                    compiled=engine is not None and engine.compiled is not None,
                    forgotten=tally.forgotten,
                )
            )
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Embedded:
    """How the embedding ended: the networks that ran, by position of the first backbone of each."""

    stopped: bool
    engines: Mapping[int, Engine] = field(default_factory=dict)
    n_lanes: int = 1


def _record(photos: Photos, digests: Digests, cache: Cache, *, again: bool) -> None:
    """Record whose photos these are; with `again`, also of those that were forgotten."""
    readable = digests.readable
    if again:
        at = np.flatnonzero(readable)
        ids = [photos.ids[i] for i in at.tolist()]
        cache.lift(digests.value[at], scope=photos.scope, ids=ids)
    cache.record_photos(photos.scope, photos.ids, digests.value, which=readable)


def _refusal(failure: str) -> PhotosError:
    return PhotosError(f"{failure} (`strict`). What was embedded until then is kept.")
