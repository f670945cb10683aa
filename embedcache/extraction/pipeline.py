"""One extraction under way: decoded photos come in, batches go to lanes, rows go to the sinks.

    take(ready) -> [detect on a lane -> crop] -> batch -> forward on a lane -> sink

Everything here happens on the thread that calls `take`, save what stands in a lane's own function,
so there are no locks: lanes compute and touch nothing but their arguments.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedcache.backbones.forward import Forward, Network, close, is_out_of_memory
from embedcache.backbones.loading import Backbone
from embedcache.extraction.clock import Clock, Tally
from embedcache.extraction.face_finder import FaceFinder, only_face
from embedcache.extraction.lanes import Lanes
from embedcache.extraction.outcome import SpaceOutcome
from embedcache.extraction.pace import Pace, pays_to_compile, workers_for
from embedcache.extraction.plan import Plan, need
from embedcache.extraction.prefetch import TRANSIENT, Gate, Job, Ready, cut
from embedcache.extraction.provenance import about
from embedcache.extraction.sink import Sink, Writer
from embedcache.store.faces import Faces
from embedcache.store.space import Space

DETECT_BATCH = 32
DETECT_PIXELS = 48_000_000
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Passed:
    """A forward pass that is done: float32 (b, dim), and when it began and ended."""

    vectors: F32
    began: float
    ended: float


class Pipeline:
    """One extraction's state: tallies, batches that are filling, segments being written.

    networks: by position of their backbone, for those that have something to embed.
    left: photos that each backbone has still to embed.
    batch_size: as asked for, None where the run is to find it.
    compiling: "auto", "on" or "off".
    tell: takes a line about what a run is doing for longer than a moment.
    """

    def __init__(
        self,
        backbones: Sequence[Backbone],
        networks: dict[int, Network],
        spaces: Sequence[Space],
        tallies: Sequence[Tally],
        faces: FaceFinder,
        clock: Clock,
        *,
        lanes: Lanes,
        gate: Gate,
        left: Sequence[int],
        batch_size: int | None,
        compiling: str,
        writer: str,
        tell: Callable[[str], None],
    ) -> None:
        self.backbones = backbones
        self.networks = networks
        self.tallies = tallies
        self.faces = faces
        self.clock = clock
        self.lanes = lanes
        self.gate = gate
        self.left = list(left)
        self.compiling = compiling
        self.tell = tell
        self.refused: str | None = None
        self.paces = {
            b: Pace.choose(
                n_photos=left[b],
                lanes=len(network.lanes),
                cuda=network.device.startswith("cuda"),
                asked=batch_size,
            )
            for b, network in networks.items()
        }
        self.compiled: dict[int, tuple[Forward, ...]] = {}
        self.sinks = [Sink(_begin(s, b, writer)) for s, b in zip(spaces, backbones, strict=True)]
        self.batches: list[list[tuple[Job, U8]]] = [[] for _ in backbones]
        self.waiting: list[Ready] = []
        self._staffed = gate.fixed or not self._trying

    @property
    def ahead(self) -> int:
        """Photos to decode in advance: twice what is gathered before a batch goes."""
        wanted = max((pace.wanted for pace in self.paces.values()), default=0)
        return 2 * max(wanted, self.lanes.n * 8) + DETECT_BATCH

    @property
    def n_failed(self) -> int:
        return max(tally.failed.total() for tally in self.tallies)

    def expect(self, part: Plan) -> None:
        """Say what comes next, so that segments get the size that it fills."""
        for sink, n in zip(self.sinks, part.wanted.sum(axis=0).tolist(), strict=True):
            sink.planned = n
        self.faces.sink.planned = len(part)

    def take(self, ready: Ready) -> None:
        """Put one decoded photo on its way."""
        job = ready.job
        for b, reason in job.refused:
            self._fail(job, b, reason)
        if ready.reason is not None:
            for b in [*(need.backbone for need in job.needs), *job.detect]:
                self._fail(job, b, ready.reason)
            if job.detect and ready.reason not in TRANSIENT:
                self.faces.sink.fail(job.digest, ready.reason)
        else:
            for b, pixels in ready.pixels.items():
                self._put(job, b, pixels)
            if ready.image is not None:
                self._wait_for_faces(ready)
        self.lanes.collect()

    def flush(self) -> None:
        """Detect and forward what waits in batches that are not full, and take every answer."""
        self._detect()
        self.lanes.drain()
        for b, batch in enumerate(self.batches):
            size = self.paces[b].size if batch else 1
            for start in range(0, len(batch), size):
                self._submit(b, batch[start : start + size])
            self.batches[b] = []
        self.lanes.drain()

    def commit(self) -> None:
        """Take what the lanes still compute, and publish every segment that was begun."""
        self.lanes.drain()
        with self.clock.step("write"):
            for sink in self.sinks:
                sink.commit()
            self.faces.sink.commit()

    def outcomes(self, seconds: float) -> tuple[SpaceOutcome, ...]:
        return tuple(
            SpaceOutcome(
                backbone=backbone.name,
                spec=backbone.spec.digest,
                dim=backbone.spec.dim,
                wanted=tally.wanted,
                hit=tally.hit,
                embedded=tally.embedded,
                failures=dict(tally.failed),
                seconds=seconds,
                model_photos_per_second=self._rate(b, tally),
                bottleneck=self.clock.bottleneck(self.lanes.n),
                shares=self.clock.shares(),
                batch_size=self.paces[b].size if b in self.paces else None,
                workers=self.gate.workers,
                compiled=b in self.compiled,
            )
            for b, (backbone, tally) in enumerate(zip(self.backbones, self.tallies, strict=True))
        )

    def _rate(self, b: int, tally: Tally) -> float | None:
        """The network's own rate: as measured alone, else as it was beside all other work."""
        if not tally.forward_seconds:
            return None
        alone = self.paces[b].rate
        return alone or len(self.networks[b].lanes) * tally.forwarded / tally.forward_seconds

    # --- faces ----------------------------------------------------------------------------------

    def _wait_for_faces(self, ready: Ready) -> None:
        self.waiting.append(ready)
        held = sum(r.image.width * r.image.height for r in self.waiting if r.image)
        if len(self.waiting) >= DETECT_BATCH or held >= DETECT_PIXELS:
            self._detect()

    def _detect(self) -> None:
        """Send the waiting photos to a lane that finds their faces."""
        waiting, self.waiting = self.waiting, []
        pictures = [ready.image for ready in waiting if ready.image is not None]

        def detect(_: int) -> Faces:
            with self.clock.step("detect"):
                return self._faces_of(pictures)

        def cut_faces(found: Faces) -> None:
            with self.clock.step("write"):
                self.faces.sink.add(_digests([ready.job for ready in waiting]), found)
            for i, (ready, picture) in enumerate(zip(waiting, pictures, strict=True)):
                box = only_face(found, i)
                for b in ready.job.detect:
                    if isinstance(box, str):
                        self._fail(ready.job, b, box)
                    else:
                        wish = replace(need(b, self.backbones[b]), box=box)
                        self._put(ready.job, b, cut(picture, wish))

        if pictures:
            self.lanes.submit(detect, cut_faces)

    def _faces_of(self, pictures: Sequence[Image.Image]) -> Faces:
        """Faces of photos; where the device's memory does not hold them, in halves, one by one."""
        try:
            return self.faces.detect(pictures)
        except Exception as error:
            if len(pictures) == 1 or not is_out_of_memory(error):
                raise
        half = len(pictures) // 2
        return Faces.concatenate([self._faces_of(p) for p in (pictures[:half], pictures[half:])])

    # --- forward --------------------------------------------------------------------------------

    def _put(self, job: Job, b: int, pixels: U8) -> None:
        batch, pace = self.batches[b], self.paces[b]
        batch.append((job, pixels))
        if len(batch) >= pace.wanted:
            self.batches[b] = []
            if pace.trying:
                self._try(b, batch)
            else:
                self._submit(b, batch)

    def _submit(
        self, b: int, batch: list[tuple[Job, U8]], spans: list[_Passed] | None = None
    ) -> None:
        """Send a batch to a lane; its rows are written when the answer is taken."""
        pixels = np.stack([pixels for _, pixels in batch])

        def forward(lane: int) -> _Passed:
            began = time.perf_counter()
            vectors = self._vectors(b, lane, pixels)
            ended = time.perf_counter()
            self.clock.add("forward", ended - began)
            return _Passed(vectors, began, ended)

        def write(passed: _Passed) -> None:
            if spans is not None:
                spans.append(passed)
            self._write(b, [job for job, _ in batch], passed)

        self.lanes.submit(forward, write)

    def _write(self, b: int, jobs: list[Job], passed: _Passed) -> None:
        tally, vectors = self.tallies[b], passed.vectors
        tally.forward_seconds += passed.ended - passed.began
        tally.forwarded += len(jobs)
        self.left[b] -= len(jobs)
        finite = np.isfinite(vectors.sum(axis=1))
        with self.clock.step("write"):
            self.sinks[b].add(_digests(jobs)[finite], vectors[finite])
        for job, ok in zip(jobs, finite.tolist(), strict=True):
            if ok:
                tally.embedded += 1
                tally.hit += job.copies - 1
            else:
                self._fail(job, b, "not_finite")

    def _vectors(self, b: int, lane: int, pixels: U8) -> F32:
        """A batch's vectors, on a lane; in halves from the moment that the memory runs out."""
        pace = self.paces[b]
        lanes = self.networks[b].lanes
        if b in self.compiled and len(pixels) == pace.size:
            lanes = self.compiled[b]
        done, start = [], 0
        while start < len(pixels):
            some = pixels[start : start + pace.most]
            try:
                done.append(lanes[lane % len(lanes)](some))
            except Exception as error:
                if len(some) == 1 or not is_out_of_memory(error):
                    raise
                pace.limit(len(some) // 2)
                lanes = self.networks[b].lanes
                continue
            start += len(some)
        return np.concatenate(done)

    # --- pace -----------------------------------------------------------------------------------

    @property
    def _trying(self) -> bool:
        return any(pace.trying for pace in self.paces.values())

    def _try(self, b: int, batch: list[tuple[Job, U8]]) -> None:
        """Embed a trial's photos on all lanes at once while nothing else runs, and time them."""
        pace, size = self.paces[b], self.paces[b].trial
        spans: list[_Passed] = []
        self.lanes.drain()
        with self.gate.shut():
            for start in range(0, len(batch), size):
                self._submit(b, batch[start : start + size], spans)
            self.lanes.drain()
        seconds = max(s.ended for s in spans) - min(s.began for s in spans)
        pace.tried(len(batch), seconds)
        if pace.rate and self._compiles(b, pace.rate):
            self._compile(b, np.stack([pixels for _, pixels in batch[: pace.size]]))
        if not self._trying and not self._staffed:
            self._staffed = True
            self._staff()

    def _staff(self) -> None:
        """Choose how many threads read and decode from what both sides were seen to need."""
        rates = [pace.rate for pace in self.paces.values() if pace.rate]
        n = self.clock.decoded
        if rates and n:
            self.gate.set(
                workers_for(
                    rates,
                    read_seconds=self.clock.seconds["read"] / n,
                    decode_seconds=self.clock.seconds["decode"] / n,
                    cores=os.cpu_count() or 1,
                )
            )

    def _compiles(self, b: int, rate: float) -> bool:
        compiler = self.networks[b].compiler
        if not compiler or self.compiling == "off":
            return False
        return self.compiling == "on" or pays_to_compile(self.left[b], rate, compiler)

    def _compile(self, b: int, pixels: U8) -> None:
        """Compile a network and keep that, if its vectors are the same and it is faster."""
        network, pace, name = self.networks[b], self.paces[b], self.backbones[b].name
        assert pace.rate is not None
        lanes: tuple[Forward, ...] = ()

        def forward(lane: int) -> _Passed | Exception:
            began = time.perf_counter()
            try:
                vectors = lanes[lane % len(lanes)](pixels)
            except Exception as error:  # told once, however many lanes meet it
                return error
            return _Passed(vectors, began, time.perf_counter())

        def all_at_once(n: int) -> list[_Passed]:
            found: list[_Passed | Exception] = []
            for _ in range(n):
                self.lanes.submit(forward, found.append)
            self.lanes.drain()
            for one in found:
                if isinstance(one, Exception):
                    raise one
            return [one for one in found if isinstance(one, _Passed)]

        self.tell(f"compiling {name} with {network.compiler} (up to a minute) ...")
        began = time.perf_counter()
        try:
            with self.gate.shut():
                lanes = network.compiled(pace.size)
                all_at_once(1)  # some compile at the first pass
                all_at_once(len(lanes))
                answers = all_at_once(len(lanes))
        except Exception as error:  # a missing compiler, and whatever else a compiler can say
            self.tell(f"{name} cannot be compiled here ({_first_line(error)}); going on without")
            return
        seconds = max(a.ended for a in answers) - min(a.began for a in answers)
        rate = len(pixels) * len(answers) / seconds
        same = close(answers[0].vectors, network.lanes[0](pixels))
        took = f"compiled {name} in {time.perf_counter() - began:.0f} s"
        if same and rate > pace.rate:
            self.compiled[b] = lanes
            self.tell(f"{took}: {rate:.1f} photos/s instead of {pace.rate:.1f}")
            pace.rate = rate
        else:
            why = "no faster" if same else "vectors differ"
            self.tell(f"{took}: not used, {why} ({rate:.1f} photos/s, {pace.rate:.1f} without)")

    def _fail(self, job: Job, b: int, reason: str) -> None:
        self.refused = self.refused or f"{job.path}: {reason}"
        self.tallies[b].failed[reason] += job.copies
        if reason not in TRANSIENT:
            self.sinks[b].fail(job.digest, reason)


def _digests(jobs: Sequence[Job]) -> U8:
    """uint8 (n, 32)."""
    return np.frombuffer(b"".join(job.digest for job in jobs), np.uint8).reshape(-1, 32)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _begin(space: Space, backbone: Backbone, writer: str) -> Callable[[int], Writer[F32]]:
    def begin(n_rows: int) -> Writer[F32]:
        told = about(backbone.open().device) | ({"writer": writer} if writer else {})
        return space.writer(n_rows=n_rows, name=backbone.name, about=told)

    return begin
