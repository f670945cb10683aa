"""The vectors of several layers of a network from one forward pass. Imports torch."""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from embedcache.spec import PooledLayer


class Taps(torch.nn.Module):
    """A network whose output is float32 (b, total): the vectors of `layers` side by side.

    whole: the network's own output stands first.
    A layer is pooled where it comes up in the pass, so that no map is kept and nothing that the
    network does to it in place afterwards is seen. Threads may share one.
    """

    def __init__(
        self, model: torch.nn.Module, layers: Sequence[PooledLayer], *, whole: bool
    ) -> None:
        super().__init__()
        self.model = model
        self._layers, self._whole = tuple(layers), whole
        self._mine = threading.local()
        modules = dict(model.named_modules())
        paths = dict.fromkeys(layer.path for layer in layers)
        self._hooks = [modules[path].register_forward_hook(self._hook(path)) for path in paths]

    def _hook(self, path: str) -> Callable[..., None]:
        wanted = [layer for layer in self._layers if layer.path == path]

        def keep(module: object, inputs: object, output: Tensor) -> None:
            for layer in wanted:
                self._mine.kept[layer] = pooled(output, layer)

        return keep

    def forward(self, pixels: Tensor) -> Tensor:
        """One pass: pixels (b, 3, h, w)."""
        return torch.cat(self.apart(pixels), dim=1)

    def apart(self, pixels: Tensor) -> list[Tensor]:
        """One pass, and each output for itself."""
        self._mine.kept = {}
        output = self.model(pixels)
        kept, self._mine.kept = self._mine.kept, {}
        return [*([output.float()] if self._whole else []), *(kept[one] for one in self._layers)]

    def remove(self) -> None:
        """Leave the network as it was."""
        for hook in self._hooks:
            hook.remove()


def pooled(output: Tensor, layer: PooledLayer) -> Tensor:
    """The vectors, float32 (b, dim), of a layer's output; sums are in float32 too."""
    if layer.pooling == "none":
        return output.float().clone()
    if layer.pooling == "class_token":
        return output[:, 0].float().clone()
    if layer.pooling == "avg_tokens":
        return output[:, layer.prefix_tokens :].mean(1, dtype=torch.float32)
    places = (2, 3) if layer.pooling == "avg_nchw" else (1, 2)
    return output.mean(places, dtype=torch.float32)


def exported(network: torch.nn.Module, example: Tensor) -> torch.nn.Module:
    """The same network for batches shaped like `example`, as a graph without hooks.

    A compiler then sees every layer's vector as what it is, an output.
    """
    return torch.export.export(network, (example,), strict=False).module()
