"""How a run finds its pace: batch size, threads that decode, and whether to compile, all measured.

The first batches of a long run are its trial: they are real photos, so nothing is wasted. Reading
pauses during a trial, so the best figure is also the network's own rate, the ceiling that the run
is compared with.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

from embedcache.backbones.forward import Network
from embedcache.extraction.clock import Clock
from embedcache.extraction.prefetch import Gate
from embedcache.machine import processors
from embedcache.wording import counted

Compile = Literal["auto", "on", "off"]

CPU_SIZES, CUDA_SIZES = (4, 8, 16, 32), (64, 128, 256, 512)
CPU_DEFAULT, CUDA_DEFAULT = 8, 256
REPEATS = 2
PATIENCE = 8  # a trial takes at most this part of the photos
ENOUGH = 0.97  # of the best rate; the smallest batch that reaches it needs the least memory
COMPILERS = {
    "inductor": (0.05, 60.0),
    "openvino": (0.15, 8.0),
    "inductor on CUDA": (0.15, 17.0),
    "inductor on CUDA in half precision": (0.55, 12.0),
}
"""What each gains, as a part of the time, and takes, in seconds (docs/decisions/025 and 105)."""


@dataclass(slots=True)
class Pace:
    """One network's batch size: fixed, or found by trying `sizes` on `lanes` lanes at once.

    size: images per forward pass, for now.
    rate: photos/s of the network alone, on all its lanes; None until measured.
    most: images per pass that the device's memory has room for, as far as is known.
    """

    size: int
    lanes: int = 1
    sizes: tuple[int, ...] = ()
    rate: float | None = None
    most: int = 1 << 30
    _best: dict[int, float] = field(default_factory=dict)
    _tried: int = 0

    @classmethod
    def choose(
        cls,
        *,
        n_photos: int,
        lanes: int,
        cuda: bool,
        asked: int | None = None,
        measure: bool = False,
    ) -> "Pace":
        """The pace of a network that has n_photos to embed.

        asked: a size that the user wants.
        measure: find the rate also in a run that is too short to look for a better size.
        """
        size = asked or (CUDA_DEFAULT if cuda else CPU_DEFAULT)
        sizes: tuple[int, ...] = (asked,) if asked else CUDA_SIZES if cuda else CPU_SIZES
        if PATIENCE * REPEATS * lanes * sum(sizes) > n_photos:
            sizes = (size,) if measure and REPEATS * lanes * size <= n_photos else ()
        return cls(size=size, lanes=lanes, sizes=sizes)

    @property
    def trying(self) -> bool:
        return self._tried < REPEATS * len(self.sizes)

    @property
    def wanted(self) -> int:
        """Photos to gather before something is submitted."""
        return self.lanes * self.trial if self.trying else self.size

    @property
    def trial(self) -> int:
        """The size to try next; smallest first, all of them once, then again."""
        return self.sizes[self._tried % len(self.sizes)]

    def tried(self, n_photos: int, seconds: float) -> None:
        """Take the figure of one trial; the last one settles `size` and `rate`."""
        assert self.trying, "there is no trial left to report"
        size = self.trial
        self._best[size] = max(self._best.get(size, 0.0), n_photos / seconds)
        self._tried += 1
        if not self.trying:
            best = max(self._best.values())
            size = min(s for s, rate in self._best.items() if rate >= ENOUGH * best)
            self.rate = self._best[size]
            self.size = min(size, self.most)

    def limit(self, size: int) -> None:
        """Memory ran out: no larger batch than `size` from now on."""
        self.most = min(self.most, size)
        self.size = min(self.size, size)


class PaceFinder:
    """What the trials of a run decide: whether to compile, and how many threads read and decode.

    gate: the threads that read and decode.
    batch_size: the size that the user wants, None to find it.
    log: takes a line about what the run does for longer than a moment.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        batch_size: int | None,
        compiling: Compile,
        log: Callable[[str], None],
    ) -> None:
        self.log = log
        self._gate = gate
        self._batch_size = batch_size
        self._compiling = compiling
        self._paces: list[Pace] = []
        self._settled = gate.fixed

    def begin(self, name: str, network: Network, *, n_photos: int) -> Pace:
        """The pace of a network that has n_photos to embed."""
        asked_to_compile = self._compiling == "on" and network.compiler != ""
        pace = Pace.choose(
            n_photos=n_photos,
            lanes=len(network.lanes),
            cuda=network.device.startswith("cuda"),
            asked=self._batch_size,
            measure=asked_to_compile,
        )
        if asked_to_compile and not pace.trying:
            least = REPEATS * pace.lanes * pace.size
            self.log(
                f"{name} is not compiled: {counted(n_photos, 'photo is', 'photos are')} too few; "
                f"a trial needs {least}"
            )
        self._paces.append(pace)
        return pace

    def alone(self) -> AbstractContextManager[None]:
        """Nothing is read or decoded while the block runs, so that a trial can be timed."""
        return self._gate.shut()

    def compiles(self, pace: Pace, *, compiler: str, left: int) -> bool:
        """Whether to compile now a network that has `left` photos to embed."""
        if pace.rate is None or not compiler or self._compiling == "off":
            return False
        return self._compiling == "on" or pays_to_compile(left, pace.rate, compiler)

    def settle(self, clock: Clock) -> None:
        """After the last trial, set the number of threads to what both sides were seen to need."""
        if self._settled or any(pace.trying for pace in self._paces):
            return
        self._settled = True
        rates = [pace.rate for pace in self._paces if pace.rate]
        if rates and clock.decoded:
            self._gate.set(
                workers_for(
                    rates,
                    read_seconds=clock.seconds["read"] / clock.decoded,
                    decode_seconds=clock.seconds["decode"] / clock.decoded,
                    cores=processors(),
                )
            )


def workers_for(
    rates: Sequence[float], *, read_seconds: float, decode_seconds: float, cores: int
) -> int:
    """Threads that read and decode, so that networks of these rates never wait.

    rates: photos/s of each network of the run; they take turns.
    read_seconds, decode_seconds: for one photo, on one thread. Reading may wait for a far disk, so
        more threads than cores help; decoding only computes.
    """
    per_second = 1 / sum(1 / rate for rate in rates)
    needed = math.ceil(1.5 * per_second * (read_seconds + decode_seconds)) + 1
    return min(needed, 4 * cores if read_seconds > decode_seconds else max(2, cores))


def pays_to_compile(n_photos: int, rate: float, compiler: str) -> bool:
    """Whether compiling would save twice what it takes."""
    gain, seconds = COMPILERS[compiler]
    return n_photos / rate * gain > 2 * seconds
