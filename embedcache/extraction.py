"""Stage one: photos in, vectors in a cache. Plan, prefetch, batch, commit.

    digests -> plan (wanted - present) -> threads read and decode -> detect faces -> batch by
    backbone -> forward -> segment

One read, one decode and one detection serve every backbone of a run. Nothing is locked and nothing
is resumed: a run embeds what the cache lacks, so running it again after a crash is the resume.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from embedcache.backbones import DEFAULT, Backbone, Decode, is_out_of_memory, load
from embedcache.errors import PhotosError
from embedcache.finder import FaceFinder, only_face
from embedcache.outcome import Clock, Extraction, Progress, SpaceOutcome, Tally
from embedcache.photos import Photos
from embedcache.plan import need, plan
from embedcache.prefetch import TRANSIENT, Job, Ready, cut, prefetch
from embedcache.provenance import about, remember_places
from embedcache.sink import Sink, Writer
from embedcache.store import Cache, Space
from embedcache.team import Upstream

DETECT_BATCH = 32
DETECT_PIXELS = 48_000_000
CPU_BATCH, CUDA_BATCH = 32, 256
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


def extract(
    photos: Photos,
    cache: Cache,
    *,
    backbone: str | Backbone | Sequence[str | Backbone] = DEFAULT,
    batch_size: int | None = None,
    precision: str = "float32",
    device: str = "auto",
    workers: int | None = None,
    decode: Decode = "full",
    retry_failed: bool = False,
    strict: bool = False,
    remote: str | Upstream | None = None,
    offer: bool = False,
    writer: str = "",
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Extraction:
    """Embed every photo that `cache` lacks. Running it again after a crash is the resume.

    photos: n ids with their files; equal contents are embedded once.
    cache: gains float32 rows of shape (n_missing, dim) for each backbone.
    backbone: one or several, names or loaded; they share reading, decoding and face detection.
    batch_size: images per forward pass; default 32 on a CPU, 256 on a GPU, halved when memory runs
        out. It changes speed and memory, and vectors only within the tolerance in docs/format.md.
    workers: threads that read and decode; default: one per core, at most 16.
    precision, device, decode: as in `backbones.load`.
    retry_failed: try photos again that an earlier run could not embed.
    strict: PhotosError at the first photo that fails; what was done until then is kept.
    remote: a shared copy to read through: what it has is taken, only the rest is computed. One that
        fails costs a warning and nothing else.
    offer: give back to `remote` what is computed, as it goes.
    writer: a name for the manifests of what is computed.
    progress: called after every photo.
    stop: asked after every photo; True commits what is done and returns with `interrupted` set.
    Returns per backbone the photos that were there (hit), embedded and failed, and where the
        seconds went.
    Raises WeightsError for a backbone that cannot be loaded. A photo that cannot be read does not
        raise: its reason is recorded.
    """
    started = time.perf_counter()
    clock = Clock()
    faces = FaceFinder(cache, device)
    backbones = load_all(backbone, faces=faces, device=device, precision=precision, decode=decode)
    workers = workers or min(16, os.cpu_count() or 1)
    with clock.step("read"):
        digests = photos.digests(cache.local / "digests.npz", workers=workers)
        kept = [photo for photo, ok in zip(photos.ids, digests.readable, strict=True) if ok]
        cache.record_photos(photos.scope, kept, digests.value[digests.readable])
    remember_places(cache, {b.spec.digest: b.place for b in backbones})
    spaces = [cache.space(b.spec, create=True) for b in backbones]
    for space in spaces:
        space.salvage()
    todo, tallies = plan(photos, digests, spaces, retry_failed=retry_failed)
    upstream = Upstream(remote, cache, offer=offer) if isinstance(remote, str) else remote
    if upstream is not None:
        upstream.serve(spaces)
        with clock.step("read"):
            upstream.take(todo.digests)
        todo, tallies = plan(photos, digests, spaces, retry_failed=retry_failed)
    run = _Run(
        *(backbones, spaces, tallies, faces, clock, batch_size or default_batch(backbones)),
        writer=writer,
    )
    rounds = iter([todo])
    if upstream is not None:
        rounds = upstream.rounds(todo, spaces, tallies, retry_failed=retry_failed)
    done, interrupted = 0, False
    failure = next(iter(digests.reasons.items()), None) if strict else None
    refused = f"{photos.paths[failure[0]]}: {failure[1]}" if failure else None
    ahead = 2 * run.batch_size + DETECT_BATCH
    while not (interrupted or refused) and (part := next(rounds, None)) is not None:
        for sink, n in zip(run.sinks, part.wanted.sum(axis=0).tolist(), strict=True):
            sink.planned = n
        faces.sink.planned = len(part)
        jobs = part.jobs(photos, backbones, faces)
        with closing(prefetch(jobs, workers=workers, ahead=ahead, clock=clock)) as stream:
            for ready in stream:
                done += 1
                reason = run.take(ready)
                if strict and reason:
                    refused = f"{ready.job.path}: {reason}"
                    break
                if progress is not None:
                    seconds = time.perf_counter() - started
                    progress(Progress(done, len(todo), run.n_failed, seconds))
                if stop():
                    interrupted = True
                    break
            else:
                run.flush()
        run.commit()
    run.commit()
    if upstream is not None and (interrupted or refused):
        upstream.give()
    if refused:
        raise PhotosError(f"{refused} (--strict). What was embedded until then is kept.")
    seconds = time.perf_counter() - started
    return Extraction(
        spaces=run.outcomes(seconds),
        interrupted=interrupted,
        n_photos=len(photos),
        n_without_photo=photos.n_without_photo,
        seconds=seconds,
    )


def load_all(
    backbone: str | Backbone | Sequence[str | Backbone],
    *,
    faces: FaceFinder,
    device: str,
    precision: str,
    decode: Decode,
) -> list[Backbone]:
    """The backbones of a run, loaded, each spec once."""
    asked = [backbone] if isinstance(backbone, str | Backbone) else backbone
    loaded = [
        b
        if isinstance(b, Backbone)
        else load(b, device=device, precision=precision, decode=decode, detector=faces.digest)
        for b in asked
    ]
    return list({b.spec.digest: b for b in loaded}.values())


def default_batch(backbones: Sequence[Backbone]) -> int:
    """Images per forward pass where none were asked for."""
    return CPU_BATCH if all(b.device == "cpu" for b in backbones) else CUDA_BATCH


class _Run:
    """One extraction's state: tallies, batches that are filling, segments being written."""

    def __init__(
        self,
        backbones: Sequence[Backbone],
        spaces: Sequence[Space],
        tallies: Sequence[Tally],
        faces: FaceFinder,
        clock: Clock,
        batch_size: int,
        *,
        writer: str,
    ) -> None:
        self.backbones = backbones
        self.faces = faces
        self.clock = clock
        self.batch_size = batch_size
        self.tallies = tallies
        self.sinks = [Sink(_begin(s, b, writer)) for s, b in zip(spaces, backbones, strict=True)]
        self.batches: list[list[tuple[Job, U8]]] = [[] for _ in backbones]
        self.waiting: list[Ready] = []

    @property
    def n_failed(self) -> int:
        return max(tally.failed.total() for tally in self.tallies)

    def take(self, ready: Ready) -> str | None:
        """Put one decoded photo on its way; returns the reason if a photo failed."""
        job, failed = ready.job, None
        for b, failed in job.refused:
            self._fail(job, b, failed)
        if ready.reason is not None:
            for b in [*(need.backbone for need in job.needs), *job.detect]:
                self._fail(job, b, ready.reason)
            if job.detect and ready.reason not in TRANSIENT:
                self.faces.sink.fail(job.digest, ready.reason)
            return ready.reason
        for b, pixels in ready.pixels.items():
            self._put(job, b, pixels)
        if ready.image is not None:
            self.waiting.append(ready)
            held = sum(r.image.width * r.image.height for r in self.waiting if r.image)
            if len(self.waiting) >= DETECT_BATCH or held >= DETECT_PIXELS:
                failed = self._detect()
        return failed

    def flush(self) -> None:
        """Detect and forward what waits in batches that are not full."""
        self._detect()
        for b in range(len(self.backbones)):
            self._forward(b)

    def commit(self) -> None:
        """Publish every segment that was begun."""
        with self.clock.step("write"):
            for sink in self.sinks:
                sink.commit()
            self.faces.sink.commit()

    def outcomes(self, seconds: float) -> tuple[SpaceOutcome, ...]:
        return tuple(
            SpaceOutcome(
                backbone=b.name,
                spec=b.spec.digest,
                dim=b.spec.dim,
                wanted=tally.wanted,
                hit=tally.hit,
                embedded=tally.embedded,
                failures=dict(tally.failed),
                seconds=seconds,
                model_photos_per_second=tally.forwarded / tally.forward_seconds
                if tally.forward_seconds
                else None,
                bottleneck=self.clock.bottleneck(),
                shares=self.clock.shares(),
            )
            for b, tally in zip(self.backbones, self.tallies, strict=True)
        )

    def _detect(self) -> str | None:
        """Find the faces of the waiting photos; returns the reason of the last that failed."""
        waiting, self.waiting = self.waiting, []
        pictures = [ready.image for ready in waiting if ready.image is not None]
        if not pictures:
            return None
        with self.clock.step("detect"):
            found = self.faces.detect(pictures)
        with self.clock.step("write"):
            self.faces.sink.add(_digests([ready.job for ready in waiting]), found)
        failed = None
        for i, (ready, picture) in enumerate(zip(waiting, pictures, strict=True)):
            box = only_face(found, i)
            for b in ready.job.detect:
                if isinstance(box, str):
                    self._fail(ready.job, b, box)
                    failed = box
                else:
                    wish = replace(need(b, self.backbones[b]), box=box)
                    self._put(ready.job, b, cut(picture, wish))
        return failed

    def _put(self, job: Job, b: int, pixels: U8) -> None:
        self.batches[b].append((job, pixels))
        if len(self.batches[b]) >= self.batch_size:
            self._forward(b)

    def _forward(self, b: int) -> None:
        batch, self.batches[b] = self.batches[b], []
        if not batch:
            return
        tally = self.tallies[b]
        start = time.perf_counter()
        vectors = self._vectors(b, np.stack([pixels for _, pixels in batch]))
        seconds = time.perf_counter() - start
        self.clock.add("forward", seconds)
        tally.forward_seconds += seconds
        tally.forwarded += len(batch)
        finite = np.isfinite(vectors.sum(axis=1))
        with self.clock.step("write"):
            self.sinks[b].add(_digests([job for job, _ in batch])[finite], vectors[finite])
        for (job, _), ok in zip(batch, finite.tolist(), strict=True):
            if ok:
                tally.embedded += 1
                tally.hit += job.copies - 1
            else:
                self._fail(job, b, "not_finite")

    def _vectors(self, b: int, pixels: U8) -> F32:
        """The batch's vectors; when the device's memory runs out, in halves from then on."""
        try:
            return self.backbones[b].forward(pixels)
        except Exception as error:
            if len(pixels) == 1 or not is_out_of_memory(error):
                raise
        half = len(pixels) // 2
        self.batch_size = min(self.batch_size, half)
        return np.concatenate([self._vectors(b, pixels[:half]), self._vectors(b, pixels[half:])])

    def _fail(self, job: Job, b: int, reason: str) -> None:
        self.tallies[b].failed[reason] += job.copies
        if reason not in TRANSIENT:
            self.sinks[b].fail(job.digest, reason)


def _digests(jobs: Sequence[Job]) -> U8:
    """uint8 (n, 32)."""
    return np.frombuffer(b"".join(job.digest for job in jobs), np.uint8).reshape(-1, 32)


def _begin(space: Space, backbone: Backbone, writer: str) -> Callable[[int], Writer[F32]]:
    def begin(n_rows: int) -> Writer[F32]:
        told = about(backbone.device) | ({"writer": writer} if writer else {})
        return space.writer(n_rows=n_rows, name=backbone.name, about=told)

    return begin
