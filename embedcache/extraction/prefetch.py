"""Reading and decoding ahead of the network, in threads, within a bound on memory."""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedcache.extraction.clock import Clock
from embedcache.machine import processors
from embedcache.photos import images
from embedcache.photos.digests import read_file, reason_of
from embedcache.photos.resampling import Uncut
from embedcache.photos.resizing import can_stay_uncut, place
from embedcache.spec import NO_MEAN, NO_STD, FaceCrop, Preprocessing

Pixels = npt.NDArray[np.uint8] | Uncut

MAX_WORKERS = 16  # until a run has measured what it needs
READY_BYTES = 2**30
"""Pixels that may wait for the network; with that many waiting, reading pauses."""

CHANGED = "changed"
TRANSIENT = frozenset({"vanished", "unreadable", "too_large_file", "no_decoder", CHANGED})
"""Reasons that lie in the file system or the installation, not in the photo's bytes: they are
reported but not recorded, and a later run tries such a photo again."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one network needs of a photo.

    backbone: the position in the run of the first backbone that shares the network's pass.
    shorter_side: pixels to keep when decoding at a reduced scale, None for full size.
    face: the crop that is wanted, None for the whole photo.
    boxes: float32 (k, 4) of the photo's faces, where they are known.
    kept: reads the network's input, uint8 (h, w, 3), from the cache, or gives None; None where the
        cache has none of this photo.
    """

    backbone: int
    preprocessing: Preprocessing
    shorter_side: int | None = None
    face: FaceCrop | None = None
    boxes: npt.NDArray[np.float32] | None = None
    kept: Callable[[], npt.NDArray[np.uint8] | None] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One content to read once for all backbones that need it.

    digest: sha256 of the file when the run was planned.
    wanted: positions of the backbones that lack a vector of it.
    detect: networks, as in `Need.backbone`, that wait for a face box of this photo.
    refused: backbones that cannot embed it, and why, known from an earlier detection.
    copies: photos of the run with this content.
    """

    path: str
    digest: bytes
    wanted: tuple[int, ...]
    needs: tuple[Need, ...]
    detect: tuple[int, ...]
    refused: tuple[tuple[int, str], ...]
    copies: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A job's outcome: pixels by network, the upright image for detection, or a reason.

    reason: why networks without pixels here get none.
    """

    job: Job
    pixels: dict[int, Pixels] = field(default_factory=dict)
    image: Image.Image | None = None
    reason: str | None = None

    @property
    def n_bytes(self) -> int:
        held = sum(array.nbytes for array in self.pixels.values())
        return held + (3 * self.image.width * self.image.height if self.image else 0)


class Gate:
    """How many threads may read and decode at once, which may change at any time.

    Threads enter in the order in which they came: whoever left and came back at once would
    otherwise pass those who hold the photos that the run waits for.
    """

    def __init__(self, workers: int | None, *, most: int | None = None) -> None:
        """workers: a fixed number of threads; None: one per core until `set` changes it.

        most: the most threads that `set` may allow.
        """
        cores = processors()
        self.fixed = workers is not None
        workers = workers or min(MAX_WORKERS, cores)
        self.most = workers if self.fixed else most or max(MAX_WORKERS, 4 * cores)
        self._workers = workers
        self._inside = 0
        self._shut = False
        self._changed = threading.Condition()
        self._line: deque[threading.Lock] = deque()  # released when their thread may enter

    def __enter__(self) -> None:
        turn = threading.Lock()
        turn.acquire()
        with self._changed:
            self._line.append(turn)
            self._let_in()
        turn.acquire()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._let_in()
            self._changed.notify_all()

    def _let_in(self) -> None:
        while self._line and self._inside < self._workers and not self._shut:
            self._inside += 1
            self._line.popleft().release()

    @property
    def workers(self) -> int:
        return self._workers

    def set(self, workers: int) -> None:
        """Allow this many from now on, between 1 and `most`."""
        with self._changed:
            self._workers = max(1, min(workers, self.most))
            self._let_in()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Nobody is inside, and nobody enters, while the block runs."""
        with self._changed:
            self._shut = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._shut = False
                self._let_in()


@dataclass(frozen=True, slots=True)
class Decoding:
    """How photos are read and decoded: `bundle` at once, on a thread that a gate has let in."""

    work: Callable[[Sequence[Job]], list[Ready]]
    bundle: int = 1


def here(clock: Clock, uncut: Collection[int] = frozenset()) -> Decoding:
    """On the thread itself.

    uncut: the networks, as in `Need.backbone`, that take photos which are still to be resized.
    """
    return Decoding(lambda some: [prepare(job, clock, uncut) for job in some])


def prefetch(
    jobs: Iterable[Job],
    *,
    gate: Gate,
    ahead: Callable[[], int],
    clock: Clock,
    decoding: Decoding | None = None,
) -> Generator[Ready, None, None]:
    """Yield every job's outcome, in the jobs' order, reading up to `ahead()` jobs in advance.

    decoding: how; `here` where it is not given.
    """
    held = _Held()
    decoding = decoding or here(clock)
    bundle = decoding.bundle

    def prepared(some: Sequence[Job]) -> list[Ready]:
        with gate:
            found = decoding.work(some)
        clock.count(len(found))
        held.add(sum(ready.n_bytes for ready in found))
        return found

    pool = ThreadPoolExecutor(gate.most, thread_name_prefix="decode")
    waiting: deque[Future[list[Ready]]] = deque()
    coming = iter(jobs)
    try:
        while True:
            while bundle * len(waiting) < ahead() and (held.bytes < READY_BYTES or not waiting):
                some = list(islice(coming, bundle))
                if not some:
                    break
                waiting.append(pool.submit(prepared, some))
            if not waiting:
                return
            start = time.perf_counter()
            found = waiting.popleft().result()
            clock.add("idle", time.perf_counter() - start)
            for ready in found:
                held.add(-ready.n_bytes)
                yield ready
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prepare(job: Job, clock: Clock, uncut: Collection[int] = frozenset()) -> Ready:
    """Read, check and decode one photo, and cut it to what each network needs.

    uncut: as in `here`.
    """
    pixels = _kept(job, clock)
    needs = [need for need in job.needs if need.backbone not in pixels]
    if not needs and not job.detect:
        return Ready(job, pixels)
    try:
        with clock.step("read"):
            data = read_file(job.path)
            same = hashlib.sha256(data).digest() == job.digest
    except OSError as error:
        return Ready(job, pixels, reason=reason_of(error))
    if not same:
        return Ready(job, pixels, reason=CHANGED)
    try:
        sides = [need.shorter_side for need in needs] + ([None] if job.detect else [])
        with clock.step("decode"), images.decoding(data, sides) as decoded:
            if any(
                need.face is None
                and need.shorter_side is None
                and images.reducible(data, image.size, need.preprocessing)
                for need, image in zip(needs, decoded, strict=False)
            ):
                clock.count_reducible()
            pixels |= _inputs(needs, decoded, uncut)
    except images.DecodeError as error:
        return Ready(job, pixels, reason=str(error.reason))
    return Ready(job, pixels, decoded[-1] if job.detect else None)


def _kept(job: Job, clock: Clock) -> dict[int, Pixels]:
    """What the cache has of a job's inputs, as it was decoded before."""
    found: dict[int, Pixels] = {}
    for need in job.needs:
        if need.kept is not None:
            with clock.step("read"):
                pixels = need.kept()
            if pixels is not None:
                found[need.backbone] = pixels
    return found


def _inputs(
    needs: Sequence[Need], decoded: Sequence[Image.Image], uncut: Collection[int]
) -> dict[int, Pixels]:
    """What each network gets; networks that differ in the normalisation only share an array."""
    found: dict[int, Pixels] = {}
    made: dict[tuple[Preprocessing, int | None], Pixels] = {}
    for need, image in zip(needs, decoded, strict=False):
        key = replace(need.preprocessing, mean=NO_MEAN, std=NO_STD), need.shorter_side
        if need.face is not None or need.backbone in uncut:
            found[need.backbone] = input_of(image, need, uncut)
        else:
            if key not in made:
                made[key] = cut(image, need)
            found[need.backbone] = made[key]
    return found


def input_of(image: Image.Image, need: Need, uncut: Collection[int]) -> Pixels:
    """What the network gets of a decoded photo."""
    p = need.preprocessing
    if need.backbone in uncut and need.face is None and can_stay_uncut(image.size, p):
        return place(np.array(image), p)  # writable, as torch wants it
    return cut(image, need)


def cut(image: Image.Image, need: Need) -> npt.NDArray[np.uint8]:
    """The network's input, uint8 (h, w, 3), from the decoded photo."""
    if need.face is None:
        return images.resize_crop(image, need.preprocessing)
    from embedcache.faces import detector

    assert need.boxes is not None  # set by the plan, or after detection
    p = need.preprocessing
    box = detector.choose(need.boxes, select=need.face.select, size=image.size)
    return detector.crop(
        image, box, margin=need.face.margin, size=p.size, interpolation=p.interpolation
    )


class _Held:
    """Bytes that are decoded and wait to be taken."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.Lock()

    def add(self, n_bytes: int) -> None:
        with self._lock:
            self.bytes += n_bytes
