"""Batch normalisations folded into convolutions, checked against the network as it was.

corner, answer = corner_of(model, example)      a small image that the network takes
model, widths = folded_with_layers(model, corner, answer, layers=(), whole=True)
close(found, expected)                          whether a faster form gives the same vectors
"""

from collections.abc import Sequence
from copy import copy, deepcopy
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from embedcache.spec import PooledLayer

if TYPE_CHECKING:
    import torch

F32 = npt.NDArray[np.float32]
CORNER_PIXELS = 96
TOLERANCE = 1e-4
"""Largest relative difference, in the 2-norm of a vector, that a faster form of a network may have
from its plain form on the same device. A form that differs more is not used."""
TOLERANCES = {"float32": TOLERANCE, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 2e-2}
"""The same for each precision: a few times what it rounds by itself (docs/decisions/105)."""
LAYER_TOLERANCE = 1e-5
"""The same where layers inside the network are asked for, of each of its outputs."""


def corner_of(
    model: "torch.nn.Module", example: "torch.Tensor"
) -> "tuple[torch.Tensor, F32 | None]":
    """A corner of the images that the network takes, and its answer; or all of them, without one,
    where it takes one size only.

    Folding does not depend on the size, and a small image is checked at a tenth of the cost.
    """
    import torch

    corner = example[:, :, :CORNER_PIXELS, :CORNER_PIXELS]
    try:
        with torch.inference_mode():
            return corner, model(corner).numpy()
    except Exception:  # whatever a network raises on a size that it is not made for
        return example, None


def folded(model: "torch.nn.Module", example: "torch.Tensor") -> "torch.nn.Module":
    """The model with each batch normalisation folded into the convolution before it.

    A convolution is paired with the normalisation that follows it in its block's modules, if the
    channels fit. The result is compared with the original on `example` (b, 3, h, w); if it
    differs, because the network runs its modules in another order, the original is returned.
    """
    return folded_with_layers(model, example, None, layers=(), whole=True)[0]


def folded_with_layers(
    model: "torch.nn.Module",
    example: "torch.Tensor",
    answer: F32 | None,
    *,
    layers: Sequence[PooledLayer],
    whole: bool,
) -> "tuple[torch.nn.Module, tuple[int, ...]]":
    """`folded`, and the floats of each output where there are layers.

    answer: the network's own output for `example`, where it is known.
    A convolution that is such a layer itself is left alone, and so is what a layer inside of a
    normalisation needs.
    """
    changed, pairs = _fused(model, paths=[layer.path for layer in layers])
    if not pairs and not layers:
        return model, ()
    expected = [answer] if answer is not None and not layers else None
    expected = expected or _outputs(model, example, layers, whole=whole)
    widths = tuple(one.shape[1] for one in expected) if layers else ()
    if not pairs:
        return model, widths
    try:
        found = _outputs(changed, example, layers, whole=whole)
        pairs_of = zip(found, expected, strict=True)
        same = all(close(a, b, a.shape[1:] if layers else ()) for a, b in pairs_of)
    except (AttributeError, RuntimeError, TypeError):  # a block that reads its norm's fields
        same = False
    return (changed if same else model), widths


def _fused(model: "torch.nn.Module", *, paths: Sequence[str]) -> "tuple[torch.nn.Module, int]":
    """A copy with its pairs folded but for those that the layers `paths` need, and how many."""
    import torch

    changed = _sharing_tensors(model)
    pairs = 0
    for place, block in list(changed.named_modules()):
        for (name, conv), (following, norm) in pairwise(list(block.named_children())):
            where, after = (f"{place}.{one}".lstrip(".") for one in (name, following))
            needed = any(path == where or path.startswith(f"{after}.") for path in paths)
            if (
                isinstance(conv, torch.nn.Conv2d)
                and isinstance(norm, torch.nn.BatchNorm2d)
                and norm.num_features == conv.out_channels
                and norm.running_var is not None
                and not needed
            ):
                setattr(block, name, _fused_pair(conv, norm))
                # timm's BatchNormAct2d drops out and activates after it has normalised.
                rest = [getattr(norm, part, None) for part in ("drop", "act")]
                kept = [part for part in rest if isinstance(part, torch.nn.Module)]
                setattr(block, following, torch.nn.Sequential(*kept))
                pairs += 1
    return changed.eval().requires_grad_(False), pairs


def _sharing_tensors(model: "torch.nn.Module") -> "torch.nn.Module":
    """A copy of a model's modules, with the tensors of the model itself."""
    tensors = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _fused_pair(conv: "torch.nn.Conv2d", norm: "torch.nn.BatchNorm2d") -> "torch.nn.Conv2d":
    """A convolution that normalises too, with tensors of its own."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    assert norm.running_mean is not None
    assert norm.running_var is not None
    fused = copy(conv)
    fused._parameters = dict(conv._parameters)
    fused.weight, fused.bias = fuse_conv_bn_weights(
        *(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps),
        *(norm.weight, norm.bias),
    )
    return fused


def _outputs(
    model: "torch.nn.Module",
    example: "torch.Tensor",
    layers: Sequence[PooledLayer],
    *,
    whole: bool,
) -> list[F32]:
    """What a plain model gives for `example`: its own output, and each layer's vectors."""
    import torch

    from embedcache.backbones.taps import Taps

    with torch.inference_mode():
        if not layers:
            return [model(example).numpy()]
        tapped = Taps(model, layers, whole=whole)
        try:
            return [one.numpy() for one in tapped.apart(example)]
        finally:
            tapped.remove()


def close(
    found: F32, expected: F32, widths: Sequence[int] = (), *, tolerance: float = TOLERANCE
) -> bool:
    """Whether vectors, (b, dim), equal those of the plain network within the tolerance.

    widths: floats of each output that stands in them where there are layers; each is compared for
        itself, within LAYER_TOLERANCE where the arithmetic is float32.
    """
    if widths and tolerance == TOLERANCE:
        tolerance = LAYER_TOLERANCE
    for start, width in zip(accumulate((0, *widths)), widths or (found.shape[1],), strict=False):
        here = slice(start, start + width)
        gap = np.linalg.norm(found[:, here] - expected[:, here], axis=1)
        if not (gap <= tolerance * np.linalg.norm(expected[:, here], axis=1)).all():
            return False
    return True
