"""Processes that read and decode, for networks that take photos faster than one interpreter can.

Sixteen threads that decode pass the interpreter's lock round a dozen times a photo, which bounds
them to some thousand photos a second however many cores there are (docs/decisions/105). Here each
core has an interpreter of its own, without torch. A child gets a bundle of photos as paths, and
writes their pixels into memory that both see; the parent uses them where they lie.

    with children(n_photos, wanted=...) as decoders:
        prefetch(jobs, ..., decoding=decoding(decoders, clock, uncut))

What a child cannot do is done by the calling thread: a photo that is too large for its part of the
memory, and everything once the child has died. Linux only; `available` says so.
"""

import mmap
import os
import queue
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from socket import socketpair
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from embedcache.extraction.clock import Clock
from embedcache.extraction.prefetch import Decoding, Job, Need, Pixels, Ready, here, prepare
from embedcache.machine import processors
from embedcache.photos import images
from embedcache.photos.resampling import Uncut
from embedcache.spec import Preprocessing

U8 = npt.NDArray[np.uint8]

BUNDLE = 16
SLOT_BYTES = 16 << 20
SLOTS = 4
"""A child's memory: bundles whose pixels may be in use at once."""
_KEEP_MEMORY = {
    "PILLOW_BLOCKS_MAX": "4",
    "MALLOC_MMAP_THRESHOLD_": str(128 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
"""Otherwise each photo's memory is new to the process: 640 page faults, half of a decode's time."""
MIN_PHOTOS = 2000
"""A shorter run is over before the children are ready."""


class _Photo(msgspec.Struct, array_like=True):
    """A job for a child: its path, the content's digest, and what each network needs."""

    path: str
    digest: bytes
    needs: list[tuple[int, Preprocessing, int | None]]


class _Ask(msgspec.Struct, array_like=True):
    """A bundle of photos, whose pixels go into a slot; uncut: as in `prefetch`."""

    slot: int
    photos: list[_Photo]
    uncut: list[int]


class _Placed(msgspec.Struct, array_like=True):
    """Pixels for a network: where they begin in the slot, their shape, the rest of an `Uncut`."""

    backbone: int
    at: int
    shape: tuple[int, int, int]
    rest: tuple[tuple[int, int, int], tuple[int, int, int], str] | None


class _Prepared(msgspec.Struct, array_like=True):
    """A photo's outcome; `mine`: the parent has to see to it."""

    pixels: list[_Placed]
    reason: str | None = None
    mine: bool = False


class _Answer(msgspec.Struct, array_like=True):
    """The outcomes of a bundle, and what the child's clock counted for it."""

    photos: list[_Prepared]
    seconds: dict[str, float]
    reducible: int


def available() -> bool:
    """Whether this system has memory without a name that a child can be given."""
    return hasattr(os, "memfd_create")


@contextmanager
def children(n_photos: int, *, wanted: Callable[[], bool]) -> Iterator["Decoders | None"]:
    """Children for a run of n_photos, None where it has none: they start while networks load.

    wanted: whether the networks' lanes will resize; asked of a long run only.
    """
    n = processors() - 2  # one feeds the networks, one the children
    if n_photos < MIN_PHOTOS or n < 2 or not available() or not wanted():
        yield None
        return
    with Decoders(n) as decoders:
        yield decoders


def decoding(decoders: "Decoders | None", clock: Clock, uncut: Collection[int]) -> Decoding:
    """By children where there are any, else on the threads.

    uncut: the networks whose lanes resize, as in `prefetch.here`.
    """
    if decoders is None or not uncut:
        return here(clock, uncut)
    return Decoding(lambda jobs: decoders.prepare(jobs, clock, uncut), BUNDLE)


class Decoders:
    """n children, each asked by one thread at a time."""

    def __init__(self, n: int) -> None:
        self.children = [_Child(images.MEMORY_BYTES // n) for _ in range(n)]
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        for child in self.children:
            self._idle.put(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            child.close()

    def prepare(self, jobs: Sequence[Job], clock: Clock, uncut: Collection[int]) -> list[Ready]:
        """What became of each job."""
        if not all(_can_travel(job) for job in jobs):
            return [prepare(job, clock, uncut) for job in jobs]
        with self._child() as child:
            found = child.ask(jobs, clock, uncut)
        return [
            prepare(job, clock, uncut) if ready is None else ready
            for job, ready in zip(jobs, found, strict=True)
        ]

    @contextmanager
    def _child(self) -> Iterator["_Child"]:
        child = self._idle.get()
        try:
            yield child
        finally:
            self._idle.put(child)


def _can_travel(job: Job) -> bool:
    """Whether a path and a digest say it all: no faces, no bytes in memory, no kept pixels."""
    whole = not job.detect and all(need.face is None and need.kept is None for need in job.needs)
    return whole and type(job.path) is str


def _asked(job: Job) -> _Photo:
    needs = [(need.backbone, need.preprocessing, need.shorter_side) for need in job.needs]
    return _Photo(job.path, job.digest, needs)


@dataclass(slots=True)
class _Slot:
    """A part of the shared memory, and the arrays in it that are still in use."""

    memory: memoryview
    users: dict[int, weakref.ref[U8]] = field(default_factory=dict)

    def array(self, at: int, shape: tuple[int, int, int]) -> U8:
        """The pixels at a place, which keep the slot until they are dropped."""
        found: U8 = np.ndarray(shape, np.uint8, buffer=self.memory, offset=at)
        self.users[at] = weakref.ref(found, lambda _: self.users.pop(at))
        return found


class _Child:
    """One process, and the memory that it writes to. `ask` is for one thread at a time."""

    def __init__(self, memory_bytes: int) -> None:
        """memory_bytes: that a photo may take in the child while it is decoded."""
        here, there = socketpair()
        memory = os.memfd_create("embedcache-pixels", os.MFD_CLOEXEC)
        os.ftruncate(memory, SLOTS * SLOT_BYTES)
        numbers = [there.fileno(), memory, memory_bytes]
        code = f"from embedcache.extraction.decoders import serve; serve({numbers})"
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ | _KEEP_MEMORY | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=numbers[:2],
                start_new_session=True,  # Ctrl-C is the parent's, who ends this process
            )
        self.number = self._process.pid
        self._connection = Connection(here.detach())
        whole = memoryview(mmap.mmap(memory, SLOTS * SLOT_BYTES))
        os.close(memory)
        self._slots = [
            _Slot(whole[start : start + SLOT_BYTES])
            for start in range(0, SLOTS * SLOT_BYTES, SLOT_BYTES)
        ]
        self._decoder = msgspec.msgpack.Decoder(_Answer)
        self._alive = True

    def ask(self, jobs: Sequence[Job], clock: Clock, uncut: Collection[int]) -> list[Ready | None]:
        """The outcome of each job; None for one that the caller has to see to."""
        free = [number for number, slot in enumerate(self._slots) if not slot.users]
        photos = [_asked(job) for job in jobs]
        try:
            if not self._alive:
                raise EOFError
            self._connection.send_bytes(msgspec.msgpack.encode(_Ask(free[0], photos, [*uncut])))
            answer = self._decoder.decode(self._connection.recv_bytes())
        except (OSError, EOFError, msgspec.ValidationError, msgspec.DecodeError):
            self._alive = False  # killed, for example where memory ran out
            return [None] * len(jobs)
        clock.take(answer.seconds, reducible=answer.reducible)
        slot, copied = self._slots[free[0]], len(free) == 1  # the next bundle needs a slot
        return [
            None if one.mine else Ready(job, self._pixels(slot, one, copied), reason=one.reason)
            for job, one in zip(jobs, answer.photos, strict=True)
        ]

    @staticmethod
    def _pixels(slot: _Slot, photo: _Prepared, copied: bool) -> dict[int, Pixels]:
        found: dict[int, Pixels] = {}
        for one in photo.pixels:
            pixels = slot.array(one.at, one.shape)
            if copied:
                pixels = pixels.copy()
            found[one.backbone] = pixels if one.rest is None else Uncut(pixels, *one.rest)
        return found

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


# --- in the child ---------------------------------------------------------------------------------


def serve(numbers: Sequence[int]) -> None:
    """Answer until the parent hangs up. numbers: two file descriptors, and bytes for a photo."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection, memory_bytes = Connection(numbers[0]), numbers[2]
    memory = memoryview(mmap.mmap(numbers[1], SLOTS * SLOT_BYTES))
    images.refuse_above(memory_bytes)
    decoder = msgspec.msgpack.Decoder(_Ask)
    while True:
        try:
            ask = decoder.decode(connection.recv_bytes())
        except EOFError:
            return
        slot = memory[ask.slot * SLOT_BYTES : (ask.slot + 1) * SLOT_BYTES]
        connection.send_bytes(msgspec.msgpack.encode(_answer(ask, slot)))


def _answer(ask: _Ask, slot: memoryview) -> _Answer:
    clock, used, photos = Clock(), 0, []
    for photo in ask.photos:
        prepared, used = _prepared(photo, ask.uncut, clock, slot, used)
        photos.append(prepared)
    return _Answer(photos, clock.seconds, clock.reducible)


def _prepared(
    photo: _Photo, uncut: Collection[int], clock: Clock, slot: memoryview, used: int
) -> tuple[_Prepared, int]:
    """A photo's outcome, with its pixels behind the first `used` bytes of the slot."""
    needs = tuple(Need(b, preprocessing, side) for b, preprocessing, side in photo.needs)
    wanted = tuple(need.backbone for need in needs)
    try:
        ready = prepare(Job(photo.path, photo.digest, wanted, needs, (), (), 1), clock, uncut)
    except images.TooLargeHere:
        return _Prepared([], mine=True), used
    if used + ready.n_bytes > len(slot):
        return _Prepared([], mine=True), used
    placed = []
    for backbone, pixels in ready.pixels.items():
        array = pixels.pixels if isinstance(pixels, Uncut) else pixels
        np.ndarray(array.shape, np.uint8, buffer=slot, offset=used)[...] = array
        rest = (
            (pixels.across, pixels.down, pixels.interpolation)
            if isinstance(pixels, Uncut)
            else None
        )
        height, width, _ = array.shape
        placed.append(_Placed(backbone, used, (height, width, 3), rest))
        used += array.nbytes
    return _Prepared(placed, ready.reason), used
