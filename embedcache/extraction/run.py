"""Stage one: photos in, vectors in a cache. Plan, prefetch, batch, commit.

    digests -> plan (wanted - present) -> threads read and decode -> detect faces -> batch by
    backbone -> forward -> segment

One read, one decode and one detection serve every backbone of a run. Nothing is locked and nothing
is resumed: a run embeds what the cache lacks, so running it again after a crash is the resume.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from embedcache.backbones.loading import Backbone, Decode, load
from embedcache.backbones.names import DEFAULT
from embedcache.errors import PhotosError
from embedcache.extraction.clock import Clock, Progress
from embedcache.extraction.face_finder import FaceFinder
from embedcache.extraction.lanes import Lanes
from embedcache.extraction.outcome import Extraction
from embedcache.extraction.pipeline import Pipeline
from embedcache.extraction.plan import plan
from embedcache.extraction.prefetch import Gate, prefetch
from embedcache.extraction.provenance import remember_places
from embedcache.extraction.upstream import Upstream
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache

Compile = Literal["auto", "on", "off"]


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
    compiling: Compile = "auto",
    retry_failed: bool = False,
    strict: bool = False,
    remote: str | Upstream | None = None,
    offer: bool = False,
    writer: str = "",
    progress: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> Extraction:
    """Embed every photo that `cache` lacks. Running it again after a crash is the resume.

    photos: n ids with their files; equal contents are embedded once.
    cache: gains float32 rows of shape (n_missing, dim) for each backbone.
    backbone: one or several, names or loaded; they share reading, decoding and face detection.
    batch_size: images per forward pass; by default 8 on a CPU and 256 on a GPU, or in a long run
        the best of a few that its first photos are embedded with; halved when memory runs out. It
        changes speed and memory, and vectors only within the tolerance in docs/format.md.
    workers: threads that read and decode; by default one per core, at most 16, until a long run
        has measured what its networks and its disk need.
    compiling: "on" compiles the networks, "auto" does when the run is so long that it pays; either
        way only once their pace is known and only if that is faster and gives the same vectors.
    precision, device, decode: as in `backbones.load`.
    retry_failed: try photos again that an earlier run could not embed.
    strict: PhotosError at the first photo that fails; what was done until then is kept.
    remote: a shared copy to read through: what it has is taken, only the rest is computed. One that
        fails costs a warning and nothing else.
    offer: give back to `remote` what is computed, as it goes.
    writer: a name for the manifests of what is computed.
    progress: called after every photo, and ten times a second while files are read for the plan.
    tell: takes a line about what else happens, such as compiling.
    stop: asked as often; True commits what is done and returns with `interrupted` set.
    Returns per backbone the photos that were there (hit), embedded and failed, and where the
        seconds went.
    Raises WeightsError for a backbone that cannot be loaded. A photo that cannot be read does not
        raise: its reason is recorded.
    """
    started = time.perf_counter()
    upstream = Upstream(remote, cache, offer=offer) if isinstance(remote, str) else remote
    clock = Clock()
    faces = FaceFinder(cache, device)
    backbones = load_all(
        backbone,
        faces=faces,
        memo=cache.local / "specs.json",
        device=device,
        precision=precision,
        decode=decode,
    )
    gate = Gate(workers)

    def reading(n_done: int, n: int) -> None:
        if progress is not None:
            seconds = time.perf_counter() - started
            progress(Progress(n_done, n, 0, seconds, doing="reading"))

    with clock.step("read"):
        digests = photos.digests(
            cache.local / "digests.npz", workers=gate.workers, progress=reading, stop=stop
        )
        kept = [photo for photo, ok in zip(photos.ids, digests.readable, strict=True) if ok]
        cache.record_photos(photos.scope, kept, digests.value[digests.readable])
    remember_places(cache, {b.spec.digest: b.place for b in backbones})
    spaces = [cache.space(b.spec, create=True) for b in backbones]
    for space in spaces:
        space.salvage()
    todo, tallies = plan(photos, digests, spaces, retry_failed=retry_failed)
    interrupted = digests.stopped or stop()
    if upstream is not None and not interrupted:
        upstream.serve([space.spec for space in spaces])
        with clock.step("read"):
            upstream.take(todo.digests)
        todo, tallies = plan(photos, digests, spaces, retry_failed=retry_failed)
    rounds = iter([todo])
    if upstream is not None:
        rounds = upstream.rounds(todo, spaces, tallies, retry_failed=retry_failed)
    left = todo.wanted.sum(axis=0).tolist()
    networks = {b: backbones[b].open() for b, n in enumerate(left) if n and not interrupted}
    failure = next(iter(digests.reasons.items()), None) if strict else None
    refused = f"{photos.paths[failure[0]]}: {failure[1]}" if failure else None
    done, began = 0, time.perf_counter()
    with Lanes.of(networks.values()) as lanes:
        run = Pipeline(
            *(backbones, networks, spaces, tallies, faces, clock),
            lanes=lanes,
            gate=gate,
            left=left,
            batch_size=batch_size,
            compiling=compiling,
            writer=writer,
            tell=tell,
        )
        while not (interrupted or refused) and (part := next(rounds, None)) is not None:
            run.expect(part)
            jobs = part.jobs(photos, backbones, faces)
            stream = prefetch(jobs, gate=gate, ahead=lambda: run.ahead, clock=clock)
            with closing(stream):
                for ready in stream:
                    done += 1
                    run.take(ready)
                    if strict and run.refused:
                        refused = run.refused
                        break
                    if progress is not None:
                        seconds = time.perf_counter() - began
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
        n_reducible=clock.reducible,
        seconds=seconds,
        remote="" if upstream is None else upstream.name,
        taken=0 if upstream is None else upstream.n_taken,
        offered=0 if upstream is None else upstream.n_given,
    )


def load_all(
    backbone: str | Backbone | Sequence[str | Backbone],
    *,
    faces: FaceFinder,
    memo: Path | None = None,
    device: str,
    precision: str,
    decode: Decode,
) -> list[Backbone]:
    """The backbones of a run, loaded, each spec once."""
    asked = [backbone] if isinstance(backbone, str | Backbone) else backbone
    loaded = [
        b
        if isinstance(b, Backbone)
        else load(
            b,
            device=device,
            precision=precision,
            decode=decode,
            detector=faces.digest,
            memo=memo,
        )
        for b in asked
    ]
    return list({b.spec.digest: b for b in loaded}.values())
