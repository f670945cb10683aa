"""One lane of a CUDA device: its own stream, page-locked memory and CUDA graphs. Imports torch.

    lane = CudaLane(run, preprocessing, device, dtype, tf32=False)
    lane(photos)     n photos, each uint8 (h, w, 3) or `Uncut` -> float32 (n, dim)

Python launches the kernels of a pass one by one, some hundreds of them, under the interpreter lock
that the threads of decoders take too. A CUDA graph launches them as one. Each lane records its own
for each batch size that is a multiple of GRAPHED, and pads a shorter last batch up to the next; a
pass that cannot be recorded runs kernel by kernel, and gives the same vectors.

Photos that are still uncut are resized here, to the pixels that Pillow would give (`resize`): the
processors have enough to do with decoding them.

A call returns when its vectors are on the host, so that a lane has one set of buffers; two lanes of
a device copy and compute by turns.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import torch

from embedcache.backbones.resize import Form, pack, plain, resized
from embedcache.machine import arithmetic
from embedcache.photos.resampling import Uncut
from embedcache.spec import Preprocessing

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Run = Callable[[torch.Tensor], torch.Tensor]

GRAPHED = 32
SLAB_BYTES = 128 << 20
"""Photos that are resized together."""


def normalised(
    pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """uint8 (n, h, w, 3) -> dtype (n, 3, h, w), channels last, as ToTensor and Normalize do it."""
    batch = pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
    return ((batch - mean) / std).to(dtype).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A pass of n photos: pixels go into `given`, uint8 (n, h, w, 3), and come out in `found`."""

    graph: torch.cuda.CUDAGraph
    given: torch.Tensor
    found: torch.Tensor


class _Slab:
    """Page-locked memory that a device copies from; it grows to what is needed."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def of(self, shape: tuple[int, ...]) -> torch.Tensor:
        """uint8 memory of this shape."""
        n = math.prod(shape)
        if self._bytes.numel() < n:
            self._bytes = torch.empty(n, dtype=torch.uint8).pin_memory()
        return self._bytes[:n].view(shape)

    def used(self, stream: torch.cuda.Stream) -> None:
        """What was launched on the stream so far copies from here."""
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record(stream)

    def wait(self) -> None:
        """Until nothing copies from here any more."""
        if self._copied is not None:
            self._copied.synchronize()


def _together(photos: Sequence[tuple[int, Uncut]]) -> Iterator[list[tuple[int, Uncut]]]:
    """Photos with their places, in groups that fill a slab."""
    group: list[tuple[int, Uncut]] = []
    held = 0
    for place, one in photos:
        if group and held + one.nbytes > SLAB_BYTES:
            yield group
            group, held = [], 0
        group.append((place, one))
        held += one.nbytes
    if group:
        yield group


@cache
def _form() -> Form:
    """How to resize: in one kernel per axis, where triton is installed with torch."""
    if find_spec("triton") is None:
        return plain
    from embedcache.backbones.resize_kernel import fused

    return fused


class CudaLane:
    """Forward passes of one thread on one device."""

    def __init__(
        self,
        run: Run,
        preprocessing: Preprocessing,
        device: torch.device,
        dtype: torch.dtype,
        *,
        tf32: bool,
    ) -> None:
        """run: normalised pixels (n, 3, h, w) of `dtype` -> (n, dim)."""
        self._network = run
        self._device, self._dtype, self._tf32 = device, dtype, tf32
        self._shape = (*preprocessing.size, 3)
        self._mean, self._std = (
            torch.tensor(values, device=device).reshape(1, 3, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._host, *self._slabs = (_Slab() for _ in range(3))
        self._mine = threading.Lock()  # networks of a run may have fewer lanes than it has threads
        self._recorded: dict[int, _Recorded | None] = {}

    def __call__(self, photos: U8 | Sequence[U8 | Uncut]) -> F32:
        """float32 (n, dim). torch.OutOfMemoryError gives back first what the lane had recorded."""
        try:
            with self._mine, torch.inference_mode(), torch.cuda.stream(self._stream):
                return self._vectors(photos)
        except torch.OutOfMemoryError:
            self._recorded.clear()
            torch.cuda.empty_cache()
            raise

    def _vectors(self, photos: U8 | Sequence[U8 | Uncut]) -> F32:
        n = len(photos)
        recorded = self._recording_for(n)
        if recorded is None:
            given = torch.empty((n, *self._shape), dtype=torch.uint8, device=self._device)
            self._fill(given, photos)
            found = self._launched(given)
        else:
            self._fill(recorded.given[:n], photos)
            recorded.graph.replay()
            found = recorded.found[:n]
        vectors: F32 = found.cpu().numpy()  # waits for this stream
        return vectors

    def _fill(self, given: torch.Tensor, photos: U8 | Sequence[U8 | Uncut]) -> None:
        """Put the network's input into `given`, uint8 (n, h, w, 3)."""
        cut = [i for i, one in enumerate(photos) if not isinstance(one, Uncut)]
        if cut:
            host = self._host.of((len(cut), *self._shape))
            into = host.numpy()
            for k, i in enumerate(cut):
                into[k] = photos[i]
            if len(cut) == len(photos):
                given.copy_(host, non_blocking=True)
                return
            given[torch.tensor(cut, device=self._device)] = host.to(self._device)
        whole = [(i, one) for i, one in enumerate(photos) if isinstance(one, Uncut)]
        for turn, some in enumerate(_together(whole)):
            self._resize(given, some, self._slabs[turn % len(self._slabs)])

    def _resize(
        self, given: torch.Tensor, photos: Sequence[tuple[int, Uncut]], slab: "_Slab"
    ) -> None:
        """Put uncut photos into their rows of `given`."""
        each = [one for _, one in photos]
        slab.wait()
        packed = pack(each, slab.of((sum(one.nbytes for one in each),)))
        there = packed.to(self._device, non_blocking=True)
        slab.used(self._stream)
        small = resized(there, each, self._shape[:2], _form())
        rows = [i for i, _ in photos]
        if rows == list(range(rows[0], rows[0] + len(rows))):
            given[rows[0] : rows[0] + len(rows)] = small
        else:
            given[torch.tensor(rows, device=self._device)] = small

    def _launched(self, pixels: torch.Tensor) -> torch.Tensor:
        with arithmetic(tf32=self._tf32):
            return self._pass(pixels)

    def _pass(self, pixels: torch.Tensor) -> torch.Tensor:
        batch = normalised(pixels, self._mean, self._std, self._dtype)
        return self._network(batch).float()

    def _recording_for(self, n: int) -> _Recorded | None:
        """What takes a batch of n photos in at most twice its own size; None where nothing does."""
        if n not in self._recorded and n % GRAPHED == 0:
            self._recorded[n] = self._record(n)
        fits = [size for size, one in self._recorded.items() if one and n <= size <= 2 * n]
        return self._recorded[min(fits)] if fits else None

    def _record(self, n: int) -> _Recorded | None:
        """A graph of one pass; None where the network does what a graph cannot hold."""
        given = torch.zeros((n, *self._shape), dtype=torch.uint8, device=self._device)
        for _ in range(2):  # libraries settle at the first passes, outside of any graph
            self._launched(given)
        self._stream.synchronize()
        before = [one.graph.pool() for one in self._recorded.values() if one]
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                arithmetic(tf32=self._tf32),
                torch.cuda.graph(
                    graph,
                    pool=before[0] if before else None,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ),
            ):
                found = self._pass(given)
        except Exception:  # a network that waits for the device, or asks it for a number
            torch.cuda.synchronize(self._device)
            return None
        return _Recorded(graph, given, found)
