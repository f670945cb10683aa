"""A frozen network as functions of pixels: laid out for speed, one function for each lane of work.

    network = build(model, preprocessing, devices=devices("auto"), precision="float32")
    network.lanes[0](pixels)     uint8 (b, h, w, 3) -> float32 (b, dim)

A lane is one thread that runs forward passes. Every GPU has two, so that one batch computes while
another is copied (`cuda_lane`); a CPU has one per core (up to MAX_CPU_LANES, which then share the
cores), because two passes on one thread each beat one pass on two (docs/decisions/025). All lanes
of a device share the weights. Layers inside the network are outputs beside its own, all from one
pass (`taps`). The changes made here move vectors by rounding only, within the tolerance in
docs/format.md, so they are not part of a spec.
"""

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from embedcache.backbones.folding import TOLERANCE, TOLERANCES, corner_of, folded_with_layers
from embedcache.errors import WeightsError
from embedcache.machine import processors
from embedcache.spec import PooledLayer, Preprocessing

if TYPE_CHECKING:
    import torch


MAX_CPU_LANES = 4
LANES_PER_GPU = 2
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Forward = Callable[[Any], F32]
"""uint8 (b, h, w, 3) -> float32 (b, dim); where it resizes, it takes a list too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A network with its weights, before `build` puts it on devices.

    architecture, arguments: the library's name for it, and the constructor's arguments.
    pooling: how the network's own output becomes one vector, in words; "" where it is not known.
    origin: provenance of the weights (source, trained_on, licence), as far as it is known.
    """

    model: "torch.nn.Module"
    architecture: str
    preprocessing: Preprocessing
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = ""
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network on its devices.

    lanes: one function per lane: uint8 (b, h, w, 3) of preprocessed pixels -> float32 (b, dim).
    resizes: the lanes take a list too, of photos uint8 (h, w, 3) or of `Uncut`, resized there.
    tolerance: that a compiled form keeps, as in TOLERANCES.
    widths: floats of each output that stands in these vectors side by side; () where no layer is
        asked for.
    device: the first lane's, as torch names it.
    threads: torch threads per lane; None keeps torch's default.
    compiler: "openvino", "inductor", or that on a CUDA device, as `extraction.pace` has them; "" if
        the network cannot be compiled.
    compiled: compiles for one batch size and returns the lanes, in the order of `lanes`.
    origin: as in `Loaded`.
    module: the first device's, normalised pixels (b, 3, h, w) -> (b, dim), for gradients; None for
        a stand-in.
    """

    lanes: tuple[Forward, ...]
    resizes: bool = False
    tolerance: float = TOLERANCE
    widths: tuple[int, ...] = ()
    device: str = "cpu"
    threads: int | None = None
    compiler: str = ""
    compiled: Callable[[int], tuple[Forward, ...]] = lambda n_batch: ()
    origin: Mapping[str, str] = field(default_factory=dict)
    module: "torch.nn.Module | None" = None


def devices(device: str) -> "list[torch.device]":
    """The torch devices for a `device`.

    "auto": all CUDA devices if there are any, otherwise the CPU; "cuda": all; "cuda:N": one.
    Raises WeightsError if this machine has no such device.
    """
    import torch

    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if n_cuda else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise WeightsError(f"no such device: {device!r}; use auto, cpu, cuda or cuda:N")
    if found.type == "cuda" and (found.index or 0) >= n_cuda:
        raise WeightsError(
            f"device {device!r}: torch sees {n_cuda} CUDA devices here; "
            "use `device='cpu'`, or install a torch that fits the driver"
        )
    if found.type == "cuda" and found.index is None:
        return [torch.device("cuda", i) for i in range(n_cuda)]
    return [found]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a forward pass failed because the device ran out of memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def build(
    model: "torch.nn.Module",
    preprocessing: Preprocessing,
    *,
    devices: "Sequence[torch.device]",
    precision: str,
    layers: Sequence[PooledLayer] = (),
    whole: bool = True,
) -> Network:
    """Put a model on its devices.

    model: in evaluation mode, on the CPU, float32; it is consumed.
    precision: of the arithmetic, see `embedcache.spec.PRECISIONS`; vectors are float32 in any case.
    layers: their vectors stand side by side after the network's own, or alone without `whole`.
    """
    import torch

    # Otherwise cuDNN rounds to TF32, and one spec would hold vectors 1e-3 apart.
    torch.backends.cudnn.allow_tf32 = False
    tf32 = precision == "tf32"
    dtype = torch.float32 if tf32 else getattr(torch, precision)
    example = torch.rand(2, 3, *preprocessing.size, generator=torch.Generator().manual_seed(0))
    corner = corner_of(model, example)
    model, widths = folded_with_layers(model, *corner, layers=layers, whole=whole)
    models = _copies(model, devices, dtype, layers=layers, whole=whole)
    first, cores = devices[0], processors()
    per_device = LANES_PER_GPU if first.type == "cuda" else min(cores, MAX_CPU_LANES)
    threads = cores // per_device if first.type == "cpu" else 1  # the rest decode
    # Consecutive lanes use different devices, so that the first batches reach all of them.
    places = list(zip(models, devices, strict=True)) * per_device
    compiler = _compiler(devices, precision)

    def lane(run: "Callable[[torch.Tensor], torch.Tensor]", where: "torch.device") -> Forward:
        if where.type == "cuda":
            from embedcache.backbones.cuda_lane import CudaLane

            return CudaLane(run, preprocessing, where, dtype, tf32=tf32)
        return _forward(run, preprocessing, where, dtype)

    def compiled(n_batch: int) -> tuple[Forward, ...]:
        if compiler == "openvino":
            converted = _converted(models[0], n_batch, preprocessing.size, n_streams=per_device)
            return (_forward(converted, preprocessing, first, dtype),) * per_device
        faster = {
            where: _inductor(one, n_batch, preprocessing, where, dtype, threads, layers)
            for one, where in zip(models, devices, strict=True)
        }
        return tuple(lane(faster[where], where) for _, where in places)

    return Network(
        lanes=tuple(lane(one, where) for one, where in places),
        resizes=first.type == "cuda",
        tolerance=TOLERANCES[precision],
        widths=widths,
        device=str(first),
        threads=threads,
        compiler=compiler,
        compiled=compiled,
        module=models[0],
    )


def _copies(
    model: "torch.nn.Module",
    devices: "Sequence[torch.device]",
    dtype: "torch.dtype",
    *,
    layers: Sequence[PooledLayer],
    whole: bool,
) -> "list[torch.nn.Module]":
    """The model on each device, with hooks for its layers."""
    import torch

    models: list[torch.nn.Module] = [
        (model if i == 0 else deepcopy(model))
        .to(where, dtype)
        .to(memory_format=torch.channels_last)
        for i, where in enumerate(devices)
    ]
    if layers:  # after the copies, which would share the hooks
        from embedcache.backbones.taps import Taps

        models = [Taps(one, layers, whole=whole) for one in models]
    return models


def _compiler(devices: "Sequence[torch.device]", precision: str) -> str:
    """What compiles a network on these devices, as `Network.compiler` names it."""
    if devices[0].type == "cuda":
        half = " in half precision" if precision in ("float16", "bfloat16") else ""
        return f"inductor on CUDA{half}"
    plain_cpu = len(devices) == 1 and precision == "float32"
    return "openvino" if plain_cpu and find_spec("openvino") else "inductor"


def _inductor(
    model: "torch.nn.Module",
    n_batch: int,
    preprocessing: Preprocessing,
    where: "torch.device",
    dtype: "torch.dtype",
    threads: int | None,
    layers: Sequence[PooledLayer],
) -> "Callable[[torch.Tensor], torch.Tensor]":
    """torch.compile's form of a model for batches of one size; where it has hooks for layers, of
    its exported graph.

    threads: of each pass on a CPU.
    """
    import torch

    if layers:
        from embedcache.backbones.taps import exported

        shape = (n_batch, 3, *preprocessing.size)
        model = exported(model, torch.zeros(shape, dtype=dtype, device=where))
    options: dict[str, Any] = {"freezing": True}
    if threads is not None:
        options["cpp.threads"] = threads
    found: Callable[[torch.Tensor], torch.Tensor]
    found = torch.compile(model, dynamic=False, options=options)
    return found


def _converted(
    model: "torch.nn.Module", n_batch: int, size: tuple[int, int], *, n_streams: int
) -> "Callable[[torch.Tensor], torch.Tensor]":
    """The network compiled by OpenVINO for the CPU; n_streams threads may run it at once."""
    import openvino
    import torch

    shape = [n_batch, 3, *size]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torch's tracing, which OpenVINO uses
        converted = openvino.convert_model(model, example_input=torch.zeros(shape), input=shape)
    # OpenVINO may default to bfloat16 arithmetic on processors that support it.
    settings = {"NUM_STREAMS": n_streams, "INFERENCE_PRECISION_HINT": "f32"}
    ready = openvino.compile_model(converted, "CPU", settings)
    mine = threading.local()  # a request serves one thread at a time

    def run(batch: torch.Tensor) -> torch.Tensor:
        if not hasattr(mine, "request"):
            mine.request = ready.create_infer_request()
        found = mine.request.infer({0: batch.contiguous().numpy()})[0]
        return torch.from_numpy(found.copy())

    return run


def _forward(
    model: "Callable[[torch.Tensor], torch.Tensor]",
    preprocessing: Preprocessing,
    device: "torch.device",
    dtype: "torch.dtype",
) -> Forward:
    import torch

    # As torchvision's ToTensor and Normalize do it: (x / 255 - mean) / std.
    shape = (1, 3, 1, 1)
    mean = torch.tensor(preprocessing.mean, device=device).reshape(shape)
    std = torch.tensor(preprocessing.std, device=device).reshape(shape)

    def forward(pixels: U8) -> F32:
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
            batch = (batch.to(torch.float32).div_(255.0) - mean) / std
            vectors = model(batch.to(dtype).contiguous(memory_format=torch.channels_last))
            return cast(F32, vectors.float().numpy())

    return forward
