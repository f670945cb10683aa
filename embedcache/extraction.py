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

from embedcache.backbones import DEFAULT, Backbone, Decode, load, shorter_side
from embedcache.errors import PhotosError
from embedcache.finder import FaceFinder, only_face
from embedcache.outcome import Clock, Extraction, Progress, SpaceOutcome, Tally
from embedcache.photos import Digests, Photos
from embedcache.prefetch import TRANSIENT, Job, Need, Ready, cut, prefetch
from embedcache.provenance import about, remember_places
from embedcache.sink import Sink, Writer
from embedcache.store import ABSENT, FAILED, OK, Cache, Space

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
    decode: Decode = "reduced",
    retry_failed: bool = False,
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Extraction:
    """Embed every photo that `cache` lacks. Running it again after a crash is the resume.

    photos: n ids with their files; equal contents are embedded once.
    cache: gains float32 rows of shape (n_missing, dim) for each backbone.
    backbone: one or several, names or loaded; they share reading, decoding and face detection.
    batch_size: images per forward pass; default 32 on a CPU, 256 on a GPU. It changes speed and
        memory, and vectors only within the tolerance in docs/format.md.
    workers: threads that read and decode; default: one per core, at most 16.
    precision, device, decode: as in `backbones.load`.
    retry_failed: try photos again that an earlier run could not embed.
    strict: PhotosError at the first photo that fails; what was done until then is kept.
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
    asked = [backbone] if isinstance(backbone, str | Backbone) else backbone
    backbones = [
        b
        if isinstance(b, Backbone)
        else load(b, device=device, precision=precision, decode=decode, detector=faces.digest)
        for b in asked
    ]
    workers = workers or min(16, os.cpu_count() or 1)
    with clock.step("read"):
        digests = photos.digests(cache.local / "digests.npz", workers=workers)
        kept = [photo for photo, ok in zip(photos.ids, digests.readable, strict=True) if ok]
        cache.record_photos(photos.scope, kept, digests.value[digests.readable])
    remember_places(cache, {b.spec.digest: b.place for b in backbones})
    on_cpu = all(b.device == "cpu" for b in backbones)
    run = _Run(cache, backbones, faces, clock, batch_size or (CPU_BATCH if on_cpu else CUDA_BATCH))
    jobs = run.plan(photos, digests, retry_failed=retry_failed)
    interrupted = False
    failure = next(iter(digests.reasons.items()), None) if strict else None
    refused = f"{photos.paths[failure[0]]}: {failure[1]}" if failure else None
    ahead = 2 * run.batch_size + DETECT_BATCH
    with closing(prefetch(jobs, workers=workers, ahead=ahead, clock=clock)) as stream:
        for done, ready in enumerate(() if refused else stream, 1):
            reason = run.take(ready)
            if strict and reason:
                refused = f"{ready.job.path}: {reason}"
                break
            if progress is not None:
                seconds = time.perf_counter() - started
                progress(Progress(done, len(jobs), run.n_failed, seconds))
            if stop():
                interrupted = True
                break
        else:
            run.flush()
    run.commit()
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


class _Run:
    """One extraction's state: tallies, batches that are filling, segments being written."""

    def __init__(
        self,
        cache: Cache,
        backbones: Sequence[Backbone],
        faces: FaceFinder,
        clock: Clock,
        batch_size: int,
    ) -> None:
        self.backbones = backbones
        self.faces = faces
        self.clock = clock
        self.batch_size = batch_size
        self.tallies = [Tally() for _ in backbones]
        self.spaces = [cache.space(b.spec, create=True) for b in backbones]
        self.sinks = [
            Sink(_begin(space, b)) for space, b in zip(self.spaces, backbones, strict=True)
        ]
        self.batches: list[list[tuple[Job, U8]]] = [[] for _ in backbones]
        self.waiting: list[Ready] = []
        for space in self.spaces:
            space.salvage()

    def plan(self, photos: Photos, digests: Digests, *, retry_failed: bool) -> list[Job]:
        """The contents that some backbone lacks, in the photos' order; fills the tallies."""
        positions = np.flatnonzero(digests.readable)
        contents, first, inverse = np.unique(
            _keys(digests.value[positions]), return_index=True, return_inverse=True
        )
        copies = np.bincount(inverse, minlength=len(contents))
        rows = digests.value[positions[first]]
        wanted_by: list[list[int]] = [[] for _ in contents]
        for b, (tally, space) in enumerate(zip(self.tallies, self.spaces, strict=True)):
            tally.wanted = len(photos)
            tally.failed.update(digests.reasons.values())
            status = space.status(rows)
            tally.hit = int(copies[status == OK].sum())
            failed = np.flatnonzero(status == FAILED)
            if not retry_failed:
                reasons = space.reasons(rows[failed])
                for i, reason in zip(failed.tolist(), reasons, strict=True):
                    tally.failed[reason or "unknown"] += int(copies[i])
            missing = status != OK if retry_failed else status == ABSENT
            for i in np.flatnonzero(missing).tolist():
                wanted_by[i].append(b)
        chosen = [i for i in np.argsort(first, kind="stable").tolist() if wanted_by[i]]
        is_face = [b.spec.face is not None for b in self.backbones]
        of_faces = [i for i in chosen if any(is_face[b] for b in wanted_by[i])]
        boxes = self.faces.known(rows[of_faces]) if of_faces else []
        known = dict(zip(of_faces, boxes, strict=True))
        jobs = []
        n_jobs = [0] * len(self.backbones)
        for i in chosen:
            digest, path = rows[i].tobytes(), photos.paths[positions[first[i]]]
            job = Job(path, digest, (), (), int(copies[i]))
            needs = [self._need(b) for b in wanted_by[i] if not is_face[b]]
            detect: list[int] = []
            for b in wanted_by[i]:
                if not is_face[b]:
                    continue
                box = known[i]
                if isinstance(box, str):
                    self._fail(job, b, box)
                elif box is None:
                    detect.append(b)
                else:
                    needs.append(replace(self._need(b), box=box))
            for b in [*(need.backbone for need in needs), *detect]:
                n_jobs[b] += 1
            if needs or detect:
                jobs.append(replace(job, needs=tuple(needs), detect=tuple(detect)))
        for sink, n in zip(self.sinks, n_jobs, strict=True):
            sink.planned += n
        self.faces.sink.planned = sum(bool(job.detect) for job in jobs)
        return jobs

    @property
    def n_failed(self) -> int:
        return max(tally.failed.total() for tally in self.tallies)

    def take(self, ready: Ready) -> str | None:
        """Put one decoded photo on its way; returns the reason if it failed."""
        if ready.reason is not None:
            for b in [need.backbone for need in ready.job.needs] + list(ready.job.detect):
                self._fail(ready.job, b, ready.reason)
            if ready.job.detect and ready.reason not in TRANSIENT:
                self.faces.sink.fail(ready.job.digest, ready.reason)
            return ready.reason
        for b, pixels in ready.pixels.items():
            self._put(ready.job, b, pixels)
        reason = None
        if ready.image is not None:
            self.waiting.append(ready)
            held = sum(r.image.width * r.image.height for r in self.waiting if r.image)
            if len(self.waiting) >= DETECT_BATCH or held >= DETECT_PIXELS:
                reason = self._detect()
        return reason

    def flush(self) -> None:
        """Detect and forward what waits in batches that are not full."""
        self._detect()
        for b in range(len(self.backbones)):
            self._forward(b)

    def commit(self) -> None:
        """Publish every segment that was begun."""
        with self.clock.step("write"):
            for sink in [*self.sinks, self.faces.sink]:
                sink.commit()

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

    def _need(self, b: int) -> Need:
        backbone = self.backbones[b]
        margin = backbone.spec.face.margin if backbone.spec.face else 0.0
        p = backbone.preprocessing
        return Need(b, p, shorter_side(p), margin=margin)

    def _detect(self) -> str | None:
        """Find the faces of the waiting photos; returns the reason of the last that failed."""
        waiting, self.waiting = self.waiting, []
        pictures = [ready.image for ready in waiting if ready.image is not None]
        if not pictures:
            return None
        with self.clock.step("detect"):
            found = self.faces.detect(pictures)
        with self.clock.step("write"):
            digests = b"".join(ready.job.digest for ready in waiting)
            self.faces.sink.add(np.frombuffer(digests, np.uint8).reshape(-1, 32), found)
        failed = None
        for i, (ready, picture) in enumerate(zip(waiting, pictures, strict=True)):
            box = only_face(found, i)
            for b in ready.job.detect:
                if isinstance(box, str):
                    self._fail(ready.job, b, box)
                    failed = box
                else:
                    self._put(ready.job, b, cut(picture, replace(self._need(b), box=box)))
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
        vectors = self.backbones[b].forward(np.stack([pixels for _, pixels in batch]))
        seconds = time.perf_counter() - start
        self.clock.add("forward", seconds)
        tally.forward_seconds += seconds
        tally.forwarded += len(batch)
        finite = np.isfinite(vectors.sum(axis=1))
        with self.clock.step("write"):
            digests = np.frombuffer(b"".join(job.digest for job, _ in batch), np.uint8)
            self.sinks[b].add(digests.reshape(-1, 32)[finite], vectors[finite])
        for (job, _), ok in zip(batch, finite, strict=True):
            if ok:
                tally.embedded += 1
                tally.hit += job.copies - 1
            else:
                self._fail(job, b, "not_finite")

    def _fail(self, job: Job, b: int, reason: str) -> None:
        self.tallies[b].failed[reason] += job.copies
        if reason not in TRANSIENT:
            self.sinks[b].fail(job.digest, reason)


def _keys(digests: U8) -> npt.NDArray[np.void]:
    """Digests (n, 32) as n scalars that sort and compare as a whole."""
    return np.ascontiguousarray(digests).view("V32").reshape(-1)


def _begin(space: Space, backbone: Backbone) -> Callable[[int], Writer[F32]]:
    def begin(n_rows: int) -> Writer[F32]:
        return space.writer(n_rows=n_rows, name=backbone.name, about=about(backbone.device))

    return begin
