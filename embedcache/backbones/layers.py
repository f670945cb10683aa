"""Layers inside a network: which there are, and how the output of each becomes one vector.

    pooled_layers(model, size, ["layer3", "blocks.5:cls"], source=...)    what a spec says of them
    listed(model, size)                                                   every layer, for a list

`taps.Taps` then gives the vectors of several layers from one pass.

A layer is a module by its path. What its output is, is found by running the network without numbers
(on torch's meta device, which needs no weights) at its own size and at a larger one. A map is
(N, C, H, W) or (N, H, W, C): its channels are the axis that does not grow with the photo. In a
network that takes one size only they are the axis that differs from the two sides; where that is no
answer, what timm notes in `output_fmt`. Tokens are (N, tokens, C); how many of them stand before
those of the patches follows from the number of patches.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from math import isqrt
from typing import TYPE_CHECKING, Any

from embedcache.errors import WeightsError
from embedcache.spec import CLASS_TOKEN, MAX_DIM, PooledLayer

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
_ROWS = 3  # of the runs without numbers: few axes of a network have this length
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ListedLayer:
    """One layer that `--backbone NAME#LAYER` takes: its output for one photo, and its vector."""

    layer: PooledLayer
    shape: Shape
    dim: int


def listed(model: "torch.nn.Module", size: tuple[int, int]) -> list[ListedLayer]:
    """Every layer that gives a vector per photo, in the order in which the network runs them."""
    seen = _Seen.of(model, size)
    found = []
    for path in seen.outputs:
        layer = seen.layer(path)
        if isinstance(layer, PooledLayer):
            shape = seen.outputs[path][0]
            assert shape is not None  # a layer that can be pooled gives a tensor
            found.append(ListedLayer(layer, shape[1:], _channels(shape, layer)))
    return found


def pooled_layers(
    model: "torch.nn.Module", size: tuple[int, int], asked: Sequence[str], *, source: str
) -> list[PooledLayer]:
    """How each of the layers `asked` becomes a vector.

    asked: PATH, or PATH:cls for the class token.  size: height and width of the input, in pixels.
    Raises WeightsError, with near spellings, for a layer that the network lacks, and for one whose
        output is no vector, map or tokens of each photo.
    """
    seen = _Seen.of(model, size)
    found = []
    for name in asked:
        path = name.removesuffix(CLASS_TOKEN)
        layer = seen.layer(path, class_token=name != path)
        if isinstance(layer, str):
            raise WeightsError(
                f"{source} has no layer {name!r}: {layer}",
                advice=f"{_near(path, seen)}Run 'embedcache doctor --layers {source}' for a list",
            )
        found.append(layer)
    return found


def _near(path: str, seen: "_Seen") -> str:
    """`Did you mean ...? ` for a path, "" where nothing is close."""
    known = [other for other in seen.outputs if isinstance(seen.layer(other), PooledLayer)]
    if path in seen.outputs:  # it is a layer, but of no use: those around it may be
        close = [other for other in known if path.startswith(f"{other}.")][-2:]
        close += [other for other in known if other.startswith(f"{path}.")][-2:]
    else:
        close = get_close_matches(path, known, _SHOWN, cutoff=0.6)
        last = path.rpartition(".")[2]
        close += [other for other in known if last in (other, other.rpartition(".")[2])]
    shown = list(dict.fromkeys(close))[:_SHOWN]
    return f"Did you mean {', '.join(shown)}? " if shown else ""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a network's modules gave, run without numbers.

    outputs: per path, in the order of running, the shape of each output; None where it is no
        tensor.  larger: the same for a larger photo; empty where the network takes one size only.
    modules: the paths that there are.  map_format: what timm notes of its maps, or "".
    prefix, patches: tokens before those of the patches, and how many patches there are, 0 for not
        known.
    class_token: whether the first of the prefix tokens is the class token.
    """

    size: tuple[int, int]
    outputs: Mapping[str, list[Shape | None]]
    larger: Mapping[str, list[Shape | None]]
    modules: frozenset[str]
    map_format: str
    prefix: int
    patches: int
    class_token: bool

    @classmethod
    def of(cls, model: "torch.nn.Module", size: tuple[int, int]) -> "_Seen":
        height, width = size
        outputs = _shapes(model, (height, width))
        has_class_token = getattr(model, "cls_token", None) is not None
        prefix = getattr(model, "num_prefix_tokens", None)
        patch_shape = (outputs.get("patch_embed") or [None])[0]
        patches = getattr(getattr(model, "patch_embed", None), "num_patches", None) or 0
        if patch_shape is not None and len(patch_shape) == 3:
            patches = patch_shape[1]
        return cls(
            size=size,
            outputs=outputs,
            larger=_shapes(model, (2 * height, 3 * width), may_fail=True),
            modules=frozenset(name for name, _ in model.named_modules() if name),
            map_format=str(getattr(model, "output_fmt", "") or ""),
            prefix=int(has_class_token) if prefix is None else int(prefix),
            patches=int(patches),
            class_token=has_class_token,
        )

    def layer(self, path: str, *, class_token: bool = False) -> PooledLayer | str:
        """How the layer at `path` becomes a vector, or why it does not."""
        if path not in self.modules:
            return "there is no module of that path"
        found = self.outputs.get(path, [])
        if not found:
            return "it takes no part in a forward pass"
        if len(found) > 1:
            return f"it runs {len(found)} times in one pass"
        shape = found[0]
        if shape is None:
            return "its output is no tensor"
        if not shape or shape[0] != _ROWS or not 2 <= len(shape) <= 4:
            return f"its output, {_shown(shape)}, is no vector, map or tokens of each photo"
        layer = self._pooled(path, shape, class_token=class_token)
        if isinstance(layer, PooledLayer) and not 1 <= _channels(shape, layer) <= MAX_DIM:
            return f"its vector would have {_channels(shape, layer):,} floats"
        return layer

    def _pooled(self, path: str, shape: Shape, *, class_token: bool) -> PooledLayer | str:
        prefix = self._prefix_of(shape[1]) if len(shape) == 3 else 0
        if class_token:
            if self.class_token and isinstance(prefix, int) and prefix:
                return PooledLayer(path=path, pooling="class_token")
            return "it holds no class token"
        if len(shape) == 2:
            return PooledLayer(path=path, pooling="none")
        if len(shape) == 4:
            last = self._channels_last(path, shape)
            if last is None:
                return f"its output, {_shown(shape)}, is no map of each photo"
            return PooledLayer(path=path, pooling="avg_nhwc" if last else "avg_nchw")
        if prefix is None:
            return (
                f"of its {shape[1]} tokens it is not known which stand before those of the "
                f"{self.patches} patches"
            )
        return PooledLayer(path=path, pooling="avg_tokens", prefix_tokens=prefix)

    def _prefix_of(self, n_tokens: int) -> int | None:
        """How many of so many tokens stand before those of the patches; None: not known."""
        if not self.prefix or n_tokens == self.patches or n_tokens <= self.prefix:
            return 0
        left = n_tokens - self.prefix
        if left == self.patches or (_is_square(left) and not _is_square(n_tokens)):
            return self.prefix
        return None

    def _channels_last(self, path: str, shape: Shape) -> bool | None:
        """Whether a map is (N, H, W, C) and not (N, C, H, W); None where it is neither."""
        other = self.larger.get(path, [])
        if len(other) == 1 and other[0] is not None and len(other[0]) == 4:
            grown = {axis for axis in (1, 2, 3) if shape[axis] != other[0][axis]}
            if grown in ({2, 3}, {1, 2}):
                return grown == {1, 2}
            if grown:
                return None
        first, last = ((shape[2], shape[3]), (shape[1], shape[2]))
        fitting = {order for order, sides in ((False, first), (True, last)) if self._fits(sides)}
        if len(fitting) == 2:
            return self.map_format == "NHWC"
        return fitting.pop() if fitting else None

    def _fits(self, sides: tuple[int, int]) -> bool:
        """Whether a map's sides have the proportions of the photo's."""
        height, width = self.size
        return abs(sides[0] * width - sides[1] * height) <= max(height, width)


def _shapes(
    model: "torch.nn.Module", size: tuple[int, int], *, may_fail: bool = False
) -> dict[str, list[Shape | None]]:
    """The shapes that the modules of `model` give for `_ROWS` photos of this size.

    may_fail: {} where the network does not take this size.
    """
    import torch

    def run(network: torch.nn.Module, where: str) -> dict[str, list[Shape | None]]:
        found: dict[str, list[Shape | None]] = {}

        def note(path: str) -> Callable[..., None]:
            def hook(module: object, inputs: object, output: object) -> None:
                shape = tuple(output.shape) if isinstance(output, torch.Tensor) else None
                found.setdefault(path, []).append(shape)

            return hook

        with ExitStack() as hooks, torch.inference_mode():
            for path, module in network.named_modules():
                if path:
                    hooks.callback(module.register_forward_hook(note(path)).remove)
            network(torch.zeros(_ROWS, 3, *size, device=where))
        return found

    try:
        return run(_without_numbers(model), "meta")
    except Exception:  # whatever a network raises on another size, or on the meta device
        if may_fail:
            return {}
    return run(model, "cpu")


def _without_numbers(model: "torch.nn.Module") -> "torch.nn.Module":
    """A copy of a network whose tensors have shapes only."""
    import torch

    memo: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in model.buffers()}
    for tensor in model.parameters():
        memo[id(tensor)] = torch.nn.Parameter(tensor.to("meta"), requires_grad=False)
    return deepcopy(model, memo)


def _channels(shape: Shape, layer: PooledLayer) -> int:
    return shape[1 if layer.pooling == "avg_nchw" else -1]


def _shown(shape: Shape) -> str:
    return f"({', '.join(['N', *map(str, shape[1:])])})"


def _is_square(n: int) -> bool:
    return isqrt(n) ** 2 == n
