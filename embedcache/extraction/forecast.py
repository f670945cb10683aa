"""What an extraction would do, for `--dry-run`: hits, misses, bytes and an estimate of the time.

The estimate is a measurement: a few of the missing photos are embedded for real into a temporary
cache that is thrown away. The cache itself is only read, and of a remote only what it lists and
which photos it has.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.backbones.loading import Backbone, Decode
from embedcache.errors import NoSuchSpace
from embedcache.extraction.clock import Progress, duration
from embedcache.extraction.face_finder import FaceFinder
from embedcache.extraction.plan import Plan, plan, subset
from embedcache.extraction.run import extract, load_all
from embedcache.extraction.upstream import Upstream
from embedcache.photos.table import Photos
from embedcache.remotes.remote import Remote
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.space import Space

SAMPLE = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceForecast:
    """One backbone's part: photos wanted = hit + from_remote + missing + failed.

    n_bytes: of the vectors that would be computed.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run would do. seconds: measured on `n_sample` photos; None if nothing is missing."""

    spaces: tuple[SpaceForecast, ...]
    n_sample: int
    seconds: float | None
    remote: str = ""

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
                }
                for s in self.spaces
            ],
            "remote": {"url": self.remote, "taken": sum(s.from_remote for s in self.spaces)}
            if self.remote
            else None,
            "sample": self.n_sample,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
        }

    def __str__(self) -> str:
        lines = [
            f"{s.backbone}: {s.wanted:,} photos, {s.hit:,} there already, "
            + (f"{s.from_remote:,} to come from {self.remote}, " if self.remote else "")
            + f"{s.missing:,} to embed ({s.n_bytes / 1e9:.3f} GB), {s.failed:,} failed before"
            for s in self.spaces
        ]
        if self.seconds is None:
            came = any(s.from_remote for s in self.spaces)
            return "\n".join([*lines, "nothing to embed" if came else "nothing to do"])
        told = f"about {duration(self.seconds)}, measured on {self.n_sample} of the photos"
        return "\n".join([*lines, told])


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
    retry_failed: bool = False,
    remote: str | Remote | None = None,
    offer: bool = False,
    progress: Callable[[Progress], None] = lambda now: None,
) -> Forecast:
    """Tell what `extract` with the same arguments would do; cache None: one that is yet to be."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="embedcache-") as folder:
        scratch = Cache.open(f"{folder}/scratch", create=True)
        backbones = load_all(
            backbone,
            faces=FaceFinder(scratch, device),
            memo=cache.local / "specs.json" if cache else None,
            device=device,
            precision=precision,
            decode=decode,
        )
        digests = photos.digests(
            cache.local / "digests.npz" if cache else None,
            progress=lambda done, n: progress(
                Progress(done, n, 0, time.perf_counter() - started, doing="reading")
            ),
        )
        spaces = [_space(cache, b) for b in backbones]
        todo, tallies = plan(photos, digests, spaces, retry_failed=retry_failed)
        upstream = None if remote is None else Upstream(remote, cache or scratch, offer=offer)
        came = [0] * len(backbones)
        if upstream is not None and len(todo):
            upstream.serve([b.spec for b in backbones])
            there = upstream.look(todo.digests)
            for k, b in enumerate(backbones):
                good, bad = there.get(b.spec.digest, (todo.digests[:0], todo.digests[:0]))
                came[k] = _drop(todo, k, good)
                if not retry_failed:
                    tallies[k].failed["unknown"] += _drop(todo, k, bad)
            todo = subset(todo, np.flatnonzero(todo.wanted.any(axis=1)))
        seconds = None
        chosen = todo.positions[np.linspace(0, len(todo) - 1, min(SAMPLE, len(todo))).astype(int)]
        if len(todo):
            for part in (chosen[:2], chosen):  # the first is the warm-up
                sample = Photos(
                    tuple(photos.ids[i] for i in part),
                    tuple(photos.paths[i] for i in part),
                    photos.scope,
                )
                run = extract(
                    sample,
                    scratch,
                    backbone=backbones,
                    batch_size=batch_size,
                    device=device,
                    workers=workers,
                )
            fresh = max(1, len(chosen) - min(2, len(chosen)))
            seconds = run.seconds / fresh * len(todo)
    missing = todo.wanted.sum(axis=0).tolist()
    return Forecast(
        spaces=tuple(
            SpaceForecast(
                backbone=b.name,
                spec=b.spec.digest,
                dim=b.spec.dim,
                wanted=tally.wanted,
                hit=tally.hit,
                missing=n,
                failed=tally.failed.total(),
                n_bytes=n * b.spec.dim * 4,
                from_remote=n_came,
            )
            for b, tally, n, n_came in zip(backbones, tallies, missing, came, strict=True)
        ),
        n_sample=len(chosen),
        seconds=seconds,
        remote="" if upstream is None else upstream.name,
    )


def _drop(todo: Plan, k: int, contents: NDArray[np.uint8]) -> int:
    """Take contents off what backbone number k lacks; returns of how many photos they are."""
    known = {row.tobytes() for row in contents}
    hit = np.array([row.tobytes() in known for row in todo.digests], np.bool_) & todo.wanted[:, k]
    todo.wanted[hit, k] = False
    return int(todo.copies[hit].sum())


def _space(cache: Cache | None, backbone: Backbone) -> Space | None:
    try:
        return cache.space(backbone.spec) if cache else None
    except NoSuchSpace:
        return None
