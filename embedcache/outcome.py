"""What an extraction did and where its time went: values that print themselves. No torch."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from embedcache.spec import Json

STEPS = ("read", "decode", "detect", "forward", "write", "idle")


class Clock:
    """Seconds by step, added up over threads. "idle" is the run waiting for pixels.

    decoded: photos that were read and decoded.  reducible: JPEGs among them that were decoded at
        full size where a reduced scale would have served.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STEPS, 0.0)
        self.decoded = 0
        self.reducible = 0
        self._lock = threading.Lock()

    def add(self, step: str, seconds: float) -> None:
        with self._lock:
            self.seconds[step] += seconds

    def count(self) -> None:
        """One more photo is decoded."""
        with self._lock:
            self.decoded += 1

    def count_reducible(self) -> None:
        """One more of them is a large JPEG."""
        with self._lock:
            self.reducible += 1

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def shares(self) -> dict[str, float]:
        """Each step's part of all seconds spent, over all threads; they add up to 1."""
        total = sum(self.seconds.values())
        return {name: round(s / total, 4) if total else 0.0 for name, s in self.seconds.items()}

    def bottleneck(self, lanes: int = 1) -> str:
        """The step that a faster run would have to speed up.

        lanes: threads that shared forward and detect. While the run waits for pixels, that is the
        slower of what makes them.
        """
        s = self.seconds | {step: self.seconds[step] / lanes for step in ("detect", "forward")}
        if not s["forward"] + s["detect"]:
            return "read"
        own = max(("detect", "forward", "write"), key=s.__getitem__)
        if s["idle"] > s[own]:
            return max(("read", "decode"), key=s.__getitem__)
        return own


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: photos done of n, failures among them, seconds since the start.

    doing: what it is busy with when that is not embedding, such as "reading".
    """

    done: int
    n: int
    failed: int
    seconds: float
    doing: str = ""


@dataclass(slots=True)
class Tally:
    """Counts of photos (ids) for one backbone while a run goes on."""

    wanted: int = 0
    hit: int = 0
    embedded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    forwarded: int = 0
    forward_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceOutcome:
    """One backbone's part of a run.

    wanted = hit + embedded + failed + left, in photos. A second copy of the same bytes is a hit.
    failures: reason -> photos.
    model_photos_per_second: the network's own rate in this run: measured alone, with reading
        paused, where the run was long enough to find its pace, else as it was beside all other
        work; None when nothing was embedded.
    shares, bottleneck: of the whole run, which all its backbones share.
    batch_size: images per forward pass at the end, None when nothing was to be embedded.
    workers: threads that read and decoded at the end.  compiled: whether the network was.
    """

    backbone: str
    spec: str
    dim: int
    wanted: int
    hit: int
    embedded: int
    failures: Mapping[str, int]
    seconds: float
    model_photos_per_second: float | None
    bottleneck: str
    shares: Mapping[str, float]
    batch_size: int | None = None
    workers: int = 1
    compiled: bool = False

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def left(self) -> int:
        """Photos that an interrupted run did not get to."""
        return self.wanted - self.hit - self.embedded - self.failed

    @property
    def photos_per_second(self) -> float:
        return self.embedded / self.seconds if self.seconds else 0.0

    def document(self) -> dict[str, Json]:
        model = self.model_photos_per_second
        return {
            "backbone": self.backbone,
            "spec": self.spec,
            "dim": self.dim,
            "wanted": self.wanted,
            "hit": self.hit,
            "embedded": self.embedded,
            "failed": self.failed,
            "left": self.left,
            "failures": dict(self.failures),
            "seconds": round(self.seconds, 3),
            "photos_per_second": round(self.photos_per_second, 2),
            "model_photos_per_second": None if model is None else round(model, 2),
            "bottleneck": self.bottleneck,
            "shares": dict(self.shares),
            "batch_size": self.batch_size,
            "workers": self.workers,
            "compiled": self.compiled,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.backbone}  {self.dim}-d  spec {self.spec[:8]}",
            f"  {self.wanted:,} photos: {self.hit:,} there already, {self.embedded:,} embedded, "
            f"{self.failed:,} failed" + (f", {self.left:,} left" if self.left else ""),
        ]
        if self.failures:
            ordered = sorted(self.failures.items(), key=lambda item: -item[1])
            lines.append("  failed: " + ", ".join(f"{n:,} {reason}" for reason, n in ordered))
        if self.embedded:
            ceiling = self.model_photos_per_second
            lines.append(
                f"  {self.photos_per_second:.1f} photos/s"
                + (f" (the network alone: {ceiling:.1f})" if ceiling else "")
                + f", batches of {self.batch_size}, {self.workers} threads decoding"
                + (", compiled" if self.compiled else "")
            )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """What `extract` did, one entry per backbone.

    n_reducible: large JPEGs that were decoded at full size (`Clock.reducible`).
    remote: the shared copy that was read through, "" for none. taken, offered: rows of vectors and
        faces that came from it and that were given to it.
    """

    spaces: tuple[SpaceOutcome, ...]
    interrupted: bool
    n_photos: int
    n_without_photo: int
    n_reducible: int
    seconds: float
    remote: str = ""
    taken: int = 0
    offered: int = 0

    def document(self) -> dict[str, Json]:
        return {
            "spaces": [space.document() for space in self.spaces],
            "photos": self.n_photos,
            "without_photo": self.n_without_photo,
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
            "remote": {"url": self.remote, "taken": self.taken, "offered": self.offered}
            if self.remote
            else None,
        }

    def __str__(self) -> str:
        lines = [str(space) for space in self.spaces]
        if self.n_without_photo:
            lines.append(f"{self.n_without_photo:,} rows of the table name no photo")
        if self.remote:
            lines.append(
                f"{self.taken:,} rows came from {self.remote}, {self.offered:,} were offered"
            )
        if any(space.embedded for space in self.spaces):
            shares = self.spaces[0].shares
            lines.append(
                f"{self.seconds:.1f} s; bottleneck: {self.spaces[0].bottleneck} ("
                + ", ".join(
                    f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.01
                )
                + ")"
            )
            if self.spaces[0].bottleneck == "decode" and self.n_reducible:
                lines.append(
                    f"{self.n_reducible:,} photos are JPEGs at least four times as wide and high "
                    "as needed: '--decode reduced' reads them faster, as another spec"
                )
        if self.interrupted:
            lines.append("Interrupted: what was embedded is kept. Run the same command to go on.")
        return "\n".join(lines)
