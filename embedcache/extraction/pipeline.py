"""One extraction under way, in four parts and one direction:

    detection -> batches -> lanes -> sinks

Photos come in through `take`. Detection, batches and sinks only store what they are given; the
loop in `Pipeline._advance` is the one place that hands work to the lanes, so the pipeline cannot
enter itself. It runs on the thread that calls `take`, and lanes touch nothing but their arguments:
there are no locks. The pace finder stands beside it and is fed the times of trial batches.
"""

from collections.abc import Mapping, Sequence

from embedcache.backbones.loading import Backbone, leaders_of
from embedcache.extraction.batches import Batch, Batches
from embedcache.extraction.clock import Clock
from embedcache.extraction.detection import Detection
from embedcache.extraction.engine import Engine, Pass, compile_engine, elapsed
from embedcache.extraction.face_finder import FaceFinder
from embedcache.extraction.lanes import Lanes
from embedcache.extraction.pace import PaceFinder
from embedcache.extraction.pixels import is_pixels
from embedcache.extraction.plan import Plan
from embedcache.extraction.prefetch import Job, Pixels, Ready
from embedcache.extraction.sink import Sinks
from embedcache.photos.resampling import Uncut


class Pipeline:
    """The parts of a run, and the loop that moves photos through them.

    engines: by position of the first backbone that shares a network's pass, for those that have
        something to embed.
    finder: finds faces.  sinks: take every row and every failure.
    """

    def __init__(
        self,
        backbones: Sequence[Backbone],
        engines: Mapping[int, Engine],
        finder: FaceFinder,
        sinks: Sinks,
        *,
        lanes: Lanes,
        pace_finder: PaceFinder,
        clock: Clock,
    ) -> None:
        self._backbones = backbones
        self._leaders = leaders_of(backbones)
        self._batches = Batches(len(backbones))
        self._detection = Detection(
            finder, backbones, batches=self._batches, sinks=sinks, clock=clock
        )
        self._finder = finder
        self._engines = engines
        self._lanes = lanes
        self._sinks = sinks
        self._pace_finder = pace_finder
        self._clock = clock

    @property
    def ahead(self) -> int:
        """Photos to decode in advance: twice what is gathered before a batch goes."""
        together = self._finder.together if self._engines else 0
        wanted = max((engine.pace.wanted for engine in self._engines.values()), default=0)
        return 2 * max(wanted, self._lanes.n * 8) + together

    def expect(self, part: Plan) -> None:
        """Announce what comes next, so that segments get the size that it fills."""
        self._sinks.expect(part.wanted.sum(axis=0).tolist(), photos=len(part))

    def take(self, ready: Ready) -> None:
        """Put one decoded photo on its way."""
        job = ready.job
        for b, reason in job.refused:
            self._sinks.fail(job, b, reason)
        if ready.reason is not None:
            known = {b for b, _ in job.refused}
            for b in job.wanted:
                if b not in known and self._leaders[b] not in ready.pixels:
                    self._sinks.fail(job, b, ready.reason)
            if job.detect:
                self._sinks.fail_faces(job, ready.reason)
        for b, pixels in ready.pixels.items():
            if is_pixels(self._backbones[b]):
                self._keep(b, job, pixels)
            else:
                self._batches.put(job, b, pixels)
        if ready.image is not None:
            self._detection.put(ready)
        self._advance()

    def flush(self) -> None:
        """Finish every photo that was taken, also in batches that are not full."""
        while self._detection.waiting:
            self._detect()
        self._lanes.drain()
        self._advance()
        for b, engine in self._engines.items():
            while self._batches.waiting(b):
                self._forward(b, self._batches.take(b, engine.pace.size))
        self._lanes.drain()

    def commit(self) -> None:
        """Take what the lanes still compute, and publish every segment that was begun."""
        self._lanes.drain()
        self._sinks.commit()

    def _advance(self) -> None:
        """Take the answers that are ready, and hand out work until no batch is full."""
        self._lanes.collect()
        while True:
            b = self._fullest()
            if b is not None and self._engines[b].pace.trying:
                self._try(b)
            elif b is not None:
                self._forward(b, self._batches.take(b, self._engines[b].pace.size))
            elif self._detection.full:
                self._detect()
            else:
                return

    def _fullest(self) -> int | None:
        """The backbone for which most batches wait; None where no batch is full."""
        full = {b: self._batches.waiting(b) / e.pace.wanted for b, e in self._engines.items()}
        b = max(full, key=full.__getitem__, default=None)
        return b if b is not None and full[b] >= 1 else None

    def _detect(self) -> None:
        photos = self._detection.take()
        self._lanes.make_room()
        self._lanes.submit(
            lambda _: self._detection.find(photos),
            lambda faces: self._detection.deliver(photos, faces),
        )

    def _forward(self, b: int, batch: Batch, passes: list[Pass] | None = None) -> None:
        """Send a batch to a lane; passes: takes what the pass was, too."""
        engine = self._engines[b]

        def write(done: Pass) -> None:
            self._clock.add("forward", done.ended - done.began)
            engine.count(done)
            self._write(b, batch, done)
            if passes is not None:
                passes.append(done)

        self._lanes.make_room()
        self._lanes.submit(lambda lane: engine.run(lane, batch.pixels), write)

    def _keep(self, b: int, job: Job, pixels: Pixels) -> None:
        """Write what networks get of a photo, as it is."""
        assert not isinstance(pixels, Uncut)  # only an engine's lanes resize
        self._sinks.add_vectors(b, [job], pixels.reshape(1, -1))

    def _sharing(self, b: int) -> list[int]:
        """The backbones that share the pass of backbone number b."""
        return [other for other, leader in enumerate(self._leaders) if leader == b]

    def _write(self, b: int, batch: Batch, done: Pass) -> None:
        """Give each backbone of a pass its part of the vectors of the photos that it lacks."""
        for one in self._sharing(b):
            rows = [i for i, job in enumerate(batch.jobs) if one in job.wanted]
            if rows:
                vectors = self._backbones[one].part_of(done.vectors)
                if len(rows) < len(batch):
                    vectors = vectors[rows]
                self._sinks.add_vectors(one, [batch.jobs[i] for i in rows], vectors)

    def _try(self, b: int) -> None:
        """Embed a trial's photos on all lanes at once while nothing else runs, and time them."""
        engine = self._engines[b]
        size, n_photos = engine.pace.trial, engine.pace.wanted
        batches = [self._batches.take(b, size) for _ in range(n_photos // size)]
        passes: list[Pass] = []
        self._lanes.drain()
        with self._pace_finder.alone():
            for batch in batches:
                self._forward(b, batch, passes)
            self._lanes.drain()
            engine.pace.tried(n_photos, elapsed(passes))
            left = max(self._sinks.tallies[one].left for one in self._sharing(b))
            compiler = engine.network.compiler
            if self._pace_finder.compiles(engine.pace, compiler=compiler, left=left):
                pixels = batches[-1].pixels[: engine.pace.size]
                compile_engine(engine, pixels, self._lanes, log=self._pace_finder.log)
        self._pace_finder.settle(self._clock)
