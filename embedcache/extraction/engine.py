"""One network during a run: plain or compiled, in batches that fit the memory."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from embedcache.backbones.folding import close
from embedcache.backbones.forward import Forward, Network, is_out_of_memory
from embedcache.extraction.lanes import Lanes
from embedcache.extraction.pace import Pace
from embedcache.extraction.prefetch import Pixels

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass that is done: float32 (b, dim), and when it began and ended, in seconds."""

    vectors: F32
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Compiled:
    """A network's lanes compiled for batches of exactly `size`; takes batches of any size.

    resizes: as in `Network`.
    """

    lanes: tuple[Forward, ...]
    size: int
    resizes: bool = False

    def forward(self, lane: int, pixels: Sequence[Pixels]) -> F32:
        """b photos -> float32 (b, dim); a short batch is padded with its last photo."""
        run = self.lanes[lane % len(self.lanes)]
        parts = []
        for start in range(0, len(pixels), self.size):
            some = pixels[start : start + self.size]
            padded = [*some, *[some[-1]] * (self.size - len(some))]
            parts.append(run(_given(padded, self.resizes))[: len(some)])
        return np.concatenate(parts)


class Engine:
    """A network, its pace, and its compiled form once there is one.

    forwarded, busy_seconds: photos that passed through it, and seconds that its lanes spent on
        them. Both are counted by the thread that takes the answers.
    """

    def __init__(self, name: str, network: Network, pace: Pace) -> None:
        self.name = name
        self.network = network
        self.pace = pace
        self.compiled: Compiled | None = None
        self.forwarded = 0
        self.busy_seconds = 0.0

    @property
    def rate(self) -> float | None:
        """The network's own photos/s: measured alone where it was, else beside all other work."""
        if not self.busy_seconds:
            return None
        return self.pace.rate or len(self.network.lanes) * self.forwarded / self.busy_seconds

    def run(self, lane: int, pixels: Sequence[Pixels]) -> Pass:
        """One batch's vectors, on a lane; in halves from the moment that the memory runs out."""
        began = time.perf_counter()
        done, start = [], 0
        while start < len(pixels):
            some = pixels[start : start + self.pace.most]
            try:
                done.append(self._forward(lane, some))
            except Exception as error:
                if len(some) == 1 or not is_out_of_memory(error):
                    raise
                self.compiled = None  # its batches are of one size, which is too large
                self.pace.limit(len(some) // 2)
                continue
            start += len(some)
        return Pass(np.concatenate(done), began, time.perf_counter())

    def count(self, done: Pass) -> None:
        """Add up what one pass took."""
        self.forwarded += len(done.vectors)
        self.busy_seconds += done.ended - done.began

    def _forward(self, lane: int, pixels: Sequence[Pixels]) -> F32:
        form = self.compiled  # another lane may drop it at any time
        if form is not None:
            return form.forward(lane, pixels)
        return self.plain(lane, pixels)

    def plain(self, lane: int, pixels: Sequence[Pixels]) -> F32:
        """The network's own vectors of b photos, float32 (b, dim)."""
        run = self.network.lanes[lane % len(self.network.lanes)]
        return run(_given(pixels, self.network.resizes))


def _given(pixels: Sequence[Pixels], resizes: bool) -> U8 | Sequence[Pixels]:
    """What a lane takes: the photos as they are where it resizes, else uint8 (b, h, w, 3)."""
    return pixels if resizes else np.stack(cast(Sequence[U8], pixels))


def compile_engine(
    engine: Engine, pixels: Sequence[Pixels], lanes: Lanes, *, log: Callable[[str], None]
) -> None:
    """Compile a network, and use that form if its vectors are the same and it is faster.

    pixels: a batch of the size that the run uses, whose pace is known.
    lanes: idle; the compiled form is timed on all of them at once.
    """
    network, pace = engine.network, engine.pace
    assert pace.rate is not None
    log(f"compiling {engine.name} with {network.compiler} (up to a minute) ...")
    began = time.perf_counter()
    try:
        form = Compiled(network.compiled(len(pixels)), len(pixels), network.resizes)
        _pass_on_lanes(form, pixels, lanes, n=1)  # some compile at the first pass
        _pass_on_lanes(form, pixels, lanes, n=len(form.lanes))
        passes = _pass_on_lanes(form, pixels, lanes, n=len(form.lanes))
    except Exception as error:  # a missing compiler, and whatever else a compiler can raise
        log(f"{engine.name} cannot be compiled here ({_first_line(error)}); continuing without")
        return
    rate = len(pixels) * len(passes) / elapsed(passes)
    expected = engine.plain(0, pixels)
    same = close(passes[0].vectors, expected, network.widths, tolerance=network.tolerance)
    took = f"compiled {engine.name} in {time.perf_counter() - began:.0f} s"
    if same and rate > pace.rate:
        log(f"{took}: {rate:.1f} photos/s instead of {pace.rate:.1f}")
        engine.compiled, pace.rate = form, rate
    else:
        why = "no faster" if same else "vectors differ"
        log(f"{took}: not used, {why} ({rate:.1f} photos/s, {pace.rate:.1f} without)")


def elapsed(passes: list[Pass]) -> float:
    """Seconds from the first beginning to the last end."""
    return max(done.ended for done in passes) - min(done.began for done in passes)


def _pass_on_lanes(form: Compiled, pixels: Sequence[Pixels], lanes: Lanes, *, n: int) -> list[Pass]:
    """Run n passes at once; the first error, if any, is raised when all have ended."""
    found: list[Pass | Exception] = []

    def forward(lane: int) -> Pass | Exception:
        began = time.perf_counter()
        try:
            vectors = form.forward(lane, pixels)
        except Exception as error:  # raised once, however many lanes meet it
            return error
        return Pass(vectors, began, time.perf_counter())

    for _ in range(n):
        lanes.make_room()
        lanes.submit(forward, found.append)
    lanes.drain()
    for one in found:
        if isinstance(one, Exception):
            raise one
    return [one for one in found if isinstance(one, Pass)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
