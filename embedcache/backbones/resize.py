"""Pillow's resize on torch's device, bit for bit: integers all the way. Imports torch."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch

from embedcache.photos.resampling import BITS, Kernel, Uncut, kernel


def kernels(photos: Sequence[Uncut], size: tuple[int, int]) -> tuple[list[Kernel], list[Kernel]]:
    """Across and down, for each photo; size: height and width of what is kept."""
    height, width = size
    across = [kernel(*photo.across, width, photo.interpolation) for photo in photos]
    down = [kernel(*photo.down, height, photo.interpolation) for photo in photos]
    return across, down


def resized(photos: torch.Tensor, across: Sequence[Kernel], down: Sequence[Kernel]) -> torch.Tensor:
    """Resize and cut photos of different sizes together.

    photos: uint8 (b, h, w, 3), each in the upper left corner; the rest may hold anything.
    Returns uint8 (b, height, width, 3), as many rows and columns as the kernels have.
    """
    pass_ = _fused() if photos.is_cuda else along
    return pass_(pass_(photos, across, axis=2), down, axis=1)


@cache
def _fused() -> "Callable[..., torch.Tensor]":
    """`along` in one kernel, where triton is installed with torch."""
    if find_spec("triton") is None:
        return along
    from embedcache.backbones.resize_kernel import along as fused

    return fused


def along(photos: torch.Tensor, kernels: Sequence[Kernel], *, axis: int) -> torch.Tensor:
    """One pass over uint8 (b, h, w, 3): the sum over taps of pixels times weights, in 8 bits.

    axis: 1 becomes as many rows as the kernels have, 2 as many columns.
    """
    taps = max(one.taps for one in kernels)
    first = np.stack([one.first for one in kernels])
    weight = np.zeros((*first.shape, taps), np.int32)
    for i, one in enumerate(kernels):
        weight[i, :, : one.taps] = one.weight
    shape = [len(kernels), 1, 1, 1]
    shape[axis] = first.shape[1]
    at = torch.from_numpy(first).to(photos.device, non_blocking=True).reshape(shape)
    by = torch.from_numpy(weight).to(photos.device, non_blocking=True).unbind(2)
    whole = list(photos.shape)
    whole[axis] = first.shape[1]
    total = torch.full(whole, 1 << (BITS - 1), dtype=torch.int32, device=photos.device)
    last = photos.shape[axis] - 1
    for k, weights in enumerate(by):
        place = (at + k).clamp_(max=last).expand(whole)
        total += photos.gather(axis, place).int().mul_(weights.reshape(shape))
    return total.bitwise_right_shift_(BITS).clamp_(0, 255).to(torch.uint8)
