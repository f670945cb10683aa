"""facenet-pytorch's three networks on one device. Imports torch."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedcache.errors import WeightsError
from embedcache.faces.pixels import F32
from embedcache.machine import arithmetic
from embedcache.spec import digest_of_weights

Network = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]

_CELL_PIXELS = 90_000  # per P-network pass: more would not fit into the processor's cache
_CROPS = {24: 256, 48: 64}  # candidates per R- and O-network pass, for the same reason
_ON_CUDA = 32  # times as much there, where each pass costs its launches


class Networks:
    """The three networks on one device.

    resident: pixels stay on the device as tensors (`on_device`); None: if it is a CUDA device.
    cell_pixels: of one P-network pass.  n_crops: candidates of one R- and O-network pass, by size.
    """

    def __init__(self, device: str, *, resident: bool | None = None) -> None:
        try:
            from facenet_pytorch.models import mtcnn as package
        except (ImportError, KeyError) as error:  # KeyError: an earlier import failed half-way
            raise WeightsError(
                "face detection needs the package facenet-pytorch, which brings its networks' "
                f"weights, and it cannot be imported ({error}). "
                "Run 'pip install --no-deps facenet-pytorch==2.6.0'."
            ) from None
        self.device = torch.device(device)
        on_cuda = self.device.type == "cuda"
        self.resident = on_cuda if resident is None else resident
        times = _ON_CUDA if on_cuda else 1
        self.cell_pixels = times * _CELL_PIXELS
        self.n_crops = {size: times * n for size, n in _CROPS.items()}
        self.weights: dict[str, str] = {}
        data = Path(package.__file__).parent.parent / "data"
        pnet = self._load(package.PNet, data / "pnet.pt")
        self.pnet: Network = partial(_pnet, pnet)
        self.padded_pnet = partial(_padded_pnet, pnet)
        self.by_size: dict[int, Network] = {
            24: self._load(package.RNet, data / "rnet.pt"),
            48: self._load(package.ONet, data / "onet.pt"),
        }

    def _load(self, network: type[torch.nn.Module], path: Path) -> torch.nn.Module:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            module = network(pretrained=False)
            module.load_state_dict(state)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"the face detector's weights cannot be read from {path}: {error}. "
                "Run 'pip install --force-reinstall --no-deps facenet-pytorch==2.6.0'."
            ) from error
        self.weights[path.stem] = digest_of_weights(state)
        return module.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def run(self, network: Network, pixels: F32) -> tuple[F32, ...]:
        """Outputs for pixels (n, h, w, 3)."""
        if not len(pixels):  # the package's networks refuse an empty batch
            one = np.zeros((1, *pixels.shape[1:]), np.float32)
            return tuple(out[:0] for out in self.run(network, one))
        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
            with self.exact():
                outputs = network(inputs)
            return tuple(out.cpu().numpy() for out in outputs)

    def exact(self) -> AbstractContextManager[None]:
        """Full float32 on a CUDA device too, whatever network runs beside."""
        if self.device.type != "cuda":
            return nullcontext()
        return arithmetic(tf32=False)


def _pnet(network: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The P-network with its pooling as maxima of slices: the same values at a fifth of the time.

    torch's own max_pool2d took longer than the convolution before it (docs/decisions/022).
    """
    return _after_pooling(network, pool(network.prelu1(network.conv1(pixels))))


def _after_pooling(network: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = network.prelu3(network.conv3(network.prelu2(network.conv2(x))))
    return network.conv4_2(x), network.softmax4_1(network.conv4_1(x))


def _padded_pnet(
    network: Any, pixels: torch.Tensor, height: torch.Tensor, width: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The P-network over levels of several sizes, each padded at its right and bottom.

    An odd level's last pooled row is the maximum of one row only, so rows outside are -inf before
    the pooling and 0 after it; what lies outside has no influence.

    pixels: (n, 3, h, w).  height, width: (n,) of each level's own pixels; 0: none.
    Returns shift (n, 4, cells, cells) and score (n, cells, cells), -1 outside the level.
    """
    x = network.prelu1(network.conv1(pixels))
    x = x.masked_fill_(_outside(height - 2, width - 2, x), -torch.inf)
    x = pool(x)
    height, width = (height - 1) // 2, (width - 1) // 2
    x = x.masked_fill_(_outside(height, width, x), 0.0)
    shift, score = _after_pooling(network, x)
    outside = _outside(height - 4, width - 4, score)
    return shift, score[:, 1].masked_fill(outside[:, 0], -1.0)


def _outside(height: torch.Tensor, width: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Which places of x (n, c, h, w) lie past the height and width of their row: (n, 1, h, w)."""
    below = torch.arange(x.shape[2], device=x.device) >= height[:, None]
    right = torch.arange(x.shape[3], device=x.device) >= width[:, None]
    return (below[:, :, None] | right[:, None, :])[:, None]


def pool(x: torch.Tensor) -> torch.Tensor:
    """max_pool2d(x, 2, 2, ceil_mode=True)."""
    for axis in (2, 3):
        even = x.shape[axis] // 2 * 2
        before = (slice(None),) * axis
        last = x.narrow(axis, even, x.shape[axis] - even)
        x = torch.maximum(x[(*before, slice(0, even, 2))], x[(*before, slice(1, even, 2))])
        if last.shape[axis]:
            x = torch.cat([x, last], axis)
    return x
