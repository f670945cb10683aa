"""facenet-pytorch's three networks on one device. Imports torch."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedcache.deferred import without_compiler
from embedcache.errors import WeightsError
from embedcache.faces import layers
from embedcache.faces.layers import pool
from embedcache.faces.pixels import F32, I64
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
            with without_compiler():
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
        self.pnet = self._load(package.PNet, data / "pnet.pt")
        self.padded_pnet = partial(_padded_pnet, self.pnet)
        rnet = self._load(package.RNet, data / "rnet.pt")
        onet = self._load(package.ONet, data / "onet.pt")
        self.by_size: dict[int, Network] = {24: rnet, 48: onet}
        if self.device.type == "cpu":
            self.by_size = {24: partial(layers.refine, rnet), 48: partial(layers.output, onet)}

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

    def propose(self, pixels: F32, threshold: float) -> tuple[I64, I64, I64, F32, F32]:
        """Row of `pixels`, y, x, score and shift of the P-network's cells that pass.

        pixels: (n, h, w, 3).
        """
        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            found = layers.propose(self.pnet, inputs, threshold)
            place, score, shift, cells = (out.numpy() for out in found)
        row, y, x = np.unravel_index(place, cells.shape)
        return row, y, x, score, shift

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
