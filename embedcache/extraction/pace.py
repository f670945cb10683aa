"""How a run finds its pace: batch size, threads that decode, and whether to compile, all measured.

The first batches of a long run are its trial: they are real photos, so nothing is wasted. Reading
pauses meanwhile, hence the best figure is also the network's own rate, the ceiling that the run is
judged by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

CPU_SIZES, CUDA_SIZES = (4, 8, 16, 32), (64, 128, 256, 512)
CPU_DEFAULT, CUDA_DEFAULT = 8, 256
REPEATS = 2
PATIENCE = 8  # a trial takes at most this part of the photos
ENOUGH = 0.97  # of the best rate; the smallest batch that reaches it needs the least memory
COMPILERS = {"inductor": (0.05, 60.0), "openvino": (0.15, 8.0)}
"""What each gains, as a part of the time, and takes, in seconds (docs/decisions/025)."""


@dataclass(slots=True)
class Pace:
    """One network's batch size: fixed, or found by trying `sizes` on `lanes` lanes at once.

    size: images per forward pass, for now.
    rate: photos/s of the network alone, on all its lanes; None until it is measured.
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
    def choose(cls, *, n_photos: int, lanes: int, cuda: bool, asked: int | None = None) -> "Pace":
        """The pace of a network that has n_photos to embed; asked: a size that the user wants."""
        size = asked or (CUDA_DEFAULT if cuda else CPU_DEFAULT)
        sizes: tuple[int, ...] = (asked,) if asked else CUDA_SIZES if cuda else CPU_SIZES
        if PATIENCE * REPEATS * lanes * sum(sizes) > n_photos:
            sizes = ()
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
        """Take the figure of one trial; after the last one `size` and `rate` are settled."""
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


def workers_for(
    rates: Sequence[float], *, read_seconds: float, decode_seconds: float, cores: int
) -> int:
    """Threads that read and decode, so that networks of these rates never wait.

    rates: photos/s of each network of the run, which take turns.
    read_seconds, decode_seconds: of one thread for one photo. Reading may wait for a far disk, so
        more threads than cores help; decoding only computes.
    """
    per_second = 1 / sum(1 / rate for rate in rates)
    needed = math.ceil(1.5 * per_second * (read_seconds + decode_seconds)) + 1
    return min(needed, 4 * cores if read_seconds > decode_seconds else max(2, cores))


def pays_to_compile(n_photos: int, rate: float, compiler: str) -> bool:
    """Whether compiling would save twice what it takes."""
    gain, seconds = COMPILERS[compiler]
    return n_photos / rate * gain > 2 * seconds
