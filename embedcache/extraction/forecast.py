"""What an extraction would do, for `--dry-run`: hits, misses, bytes and an estimate of the time.

The estimate is a measurement: a few of the missing photos are embedded into a temporary cache. The
cache itself is only read, and a remote is only asked which photos it has.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.backbones.loading import Backbone, Decode
from embedcache.errors import NoSuchSpace
from embedcache.extraction.clock import RunProgress, SpaceTally, duration
from embedcache.extraction.face_finder import FaceFinder, as_sequence, detector_of
from embedcache.extraction.networks import load_all
from embedcache.extraction.parts import WorkPart
from embedcache.extraction.pixels import is_pixels
from embedcache.extraction.plan import Plan, plan, subset
from embedcache.extraction.run import extract
from embedcache.extraction.upstream import Upstream
from embedcache.photos.digests import Digests
from embedcache.photos.table import Photos
from embedcache.remotes.remote import Remote
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.space import Space
from embedcache.wording import counted

SAMPLE = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceForecast:
    """One backbone's part: photos wanted = hit + from_remote + missing + failed + forgotten.

    n_bytes: size of the vectors that would be computed, or of the pixels that would be kept.
    """

    backbone: str
    spec: str
    dim: int
    wanted: int
    hit: int
    missing: int
    failed: int
    n_bytes: int
    from_remote: int = 0
    forgotten: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run would do. seconds: measured on `n_sample` photos; None if nothing is missing.

    part: the part of the photos that it is about, such as "3/8"; "" for all.
    """

    spaces: tuple[SpaceForecast, ...]
    n_sample: int
    seconds: float | None
    remote: str = ""
    part: str = ""

    def document(self) -> dict[str, Json]:
        return {
            "dry_run": True,
            "spaces": [
                {
                    "backbone": s.backbone,
                    "spec": s.spec,
                    "dim": s.dim,
                    "wanted": s.wanted,
                    "hit": s.hit,
                    "missing": s.missing,
                    "failed": s.failed,
                    "bytes": s.n_bytes,
                    "from_remote": s.from_remote,
                    "forgotten": s.forgotten,
                }
                for s in self.spaces
            ],
            "remote": {"url": self.remote, "taken": sum(s.from_remote for s in self.spaces)}
            if self.remote
            else None,
            "part": self.part or None,
            "sample": self.n_sample,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
        }

    def __str__(self) -> str:
        lines = [
            f"{s.backbone}: {counted(s.wanted, 'photo')}, {s.hit:,} present, "
            + (f"{s.from_remote:,} to download from {self.remote}, " if self.remote else "")
            + f"{s.missing:,} to embed ({s.n_bytes / 1e9:.3f} GB), {s.failed:,} failed before"
            + (f", {s.forgotten:,} forgotten before" if s.forgotten else "")
            for s in self.spaces
        ]
        if self.part:
            lines.insert(0, f"part {self.part} of the photos")
        if self.seconds is None:
            came = any(s.from_remote for s in self.spaces)
            return "\n".join([*lines, "nothing to embed" if came else "nothing to do"])
        estimate = f"about {duration(self.seconds)}, measured on {self.n_sample} of the photos"
        return "\n".join([*lines, estimate])


def forecast(
    photos: Photos,
    cache: Cache | None,
    *,
    backbone: str | Backbone | Sequence[str | Backbone],
    batch_size: int | None = None,
    precision: str = "float32",
    device: str = "auto",
    workers: int | None = None,
    decode: Decode = "full",
    detector: str | None = None,
    keep_pixels: int | None = None,
    retry_failed: bool = False,
    part: WorkPart | None = None,
    remote: str | Remote | None = None,
    offer: bool = False,
    progress: Callable[[RunProgress], None] = lambda now: None,
) -> Forecast:
    """Predict what `extract` with the same arguments would do; cache None: one to be created."""
    photos = photos if part is None else part.of(photos)
    with tempfile.TemporaryDirectory(prefix="embedcache-") as folder:
        scratch = Cache.open(f"{folder}/scratch", create=True)
        backbones = load_all(
            backbone,
            faces=FaceFinder(scratch, device, detector_of(detector, as_sequence(backbone))),
            memo=cache.local / "specs.json" if cache else None,
            device=device,
            precision=precision,
            decode=decode,
            keep_pixels=keep_pixels,
        )
        digests = _read(photos, cache, progress)
        spaces = [_space(cache, b) for b in backbones]
        todo, tallies = plan(photos, digests, spaces, retry_failed=retry_failed)
        upstream = None if remote is None else Upstream(remote, cache or scratch, offer=offer)
        taken = [0] * len(backbones)
        if upstream is not None:
            todo, taken = _without_remote(todo, tallies, upstream, backbones, retry_failed)
        sample, seconds = _measure(
            photos, todo, backbones, scratch, batch_size=batch_size, device=device, workers=workers
        )
    missing = todo.wanted.sum(axis=0).tolist()
    return Forecast(
        spaces=tuple(map(_forecast_of, backbones, tallies, missing, taken)),
        n_sample=sample,
        seconds=seconds,
        remote="" if upstream is None else upstream.name,
        part="" if part is None else str(part),
    )


def _forecast_of(backbone: Backbone, tally: SpaceTally, missing: int, taken: int) -> SpaceForecast:
    return SpaceForecast(
        backbone=backbone.name,
        spec=backbone.spec.digest,
        dim=backbone.spec.dim,
        wanted=tally.wanted,
        hit=tally.hit,
        missing=missing,
        failed=tally.failed.total(),
        n_bytes=missing * backbone.spec.row_bytes,
        from_remote=taken,
        forgotten=tally.forgotten,
    )


def _read(photos: Photos, cache: Cache | None, progress: Callable[[RunProgress], None]) -> Digests:
    started = time.perf_counter()

    def reading(n_done: int, n: int) -> None:
        seconds = time.perf_counter() - started
        progress(RunProgress(n_done, n, 0, seconds, doing="reading"))

    return photos.digests(cache, progress=reading)


def _without_remote(
    todo: Plan,
    tallies: Sequence[SpaceTally],
    upstream: Upstream,
    backbones: Sequence[Backbone],
    retry_failed: bool,
) -> tuple[Plan, list[int]]:
    """What is left of a plan once the remote's rows are taken, and photos taken by backbone."""
    upstream.serve([b.spec for b in backbones if not is_pixels(b)])
    available = upstream.look(todo.digests) if len(todo) else {}
    none = todo.digests[:0]
    taken = []
    for k, b in enumerate(backbones):
        good, failed = available.get(b.spec.digest, (none, none))
        taken.append(_drop(todo, k, good))
        if not retry_failed:
            tallies[k].failed["unknown"] += _drop(todo, k, failed)
    return subset(todo, np.flatnonzero(todo.wanted.any(axis=1))), taken


def _drop(todo: Plan, k: int, contents: NDArray[np.uint8]) -> int:
    """Take contents off what backbone number k lacks; returns how many photos have them."""
    known = {row.tobytes() for row in contents}
    hit = np.array([row.tobytes() in known for row in todo.digests], np.bool_) & todo.wanted[:, k]
    todo.wanted[hit, k] = False
    return int(todo.copies[hit].sum())


def _measure(
    photos: Photos,
    todo: Plan,
    backbones: Sequence[Backbone],
    scratch: Cache,
    *,
    batch_size: int | None,
    device: str,
    workers: int | None,
) -> tuple[int, float | None]:
    """Embed a sample of the plan into `scratch`: (photos in it, seconds for the whole plan)."""
    chosen = todo.positions[np.linspace(0, len(todo) - 1, min(SAMPLE, len(todo))).astype(int)]
    if not len(chosen):
        return 0, None
    n_warm_up = min(2, len(chosen))
    for part in (chosen[:n_warm_up], chosen):
        sample = Photos(
            tuple(photos.ids[i] for i in part),
            tuple(photos.paths[i] for i in part),
            photos.scope,
        )
        run = extract(
            *(sample, scratch),
            backbone=backbones,
            batch_size=batch_size,
            device=device,
            workers=workers,
        )
    fresh = max(1, len(chosen) - n_warm_up)
    return len(chosen), run.seconds / fresh * len(todo)


def _space(cache: Cache | None, backbone: Backbone) -> Space | None:
    try:
        return cache.space(backbone.spec) if cache else None
    except NoSuchSpace:
        return None
