"""Where the time of a run goes, and how far it is: seconds by step, progress, counts."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

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

    def take(self, seconds: Mapping[str, float], *, reducible: int) -> None:
        """Add what another process has counted."""
        with self._lock:
            for step, n in seconds.items():
                self.seconds[step] += n
            self.reducible += reducible

    def count(self, n: int = 1) -> None:
        """n more photos are decoded."""
        with self._lock:
            self.decoded += n

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
class RunProgress:
    """How far a run is: photos done of n, failures among them, seconds since the start.

    doing: what the run does when that is not embedding, such as "reading".
    """

    done: int
    n: int
    failed: int
    seconds: float
    doing: str = ""


@dataclass(slots=True)
class SpaceTally:
    """Counts of photos (ids) for one backbone during a run; failed: by reason.

    unread: why, by digest, of contents that failed here and may be read elsewhere, or later.
    """

    wanted: int = 0
    hit: int = 0
    embedded: int = 0
    forgotten: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    unread: dict[bytes, str] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Photos that have neither a vector nor a reason yet."""
        return self.wanted - self.hit - self.embedded - self.forgotten - self.failed.total()


def duration(seconds: float) -> str:
    """Seconds for people: `42 s`, `9 min 10 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
