"""Pillow's resize on torch's device, bit for bit: integers all the way. Imports torch.

packed = pack(photos, into)          their bytes side by side, to be copied to a device as one
resized(packed, photos, size)        uint8 (b, height, width, 3), where `packed` is
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from embedcache.photos.resampling import BITS, Kernel, Uncut, kernel


@dataclass(frozen=True, slots=True)
class Taps:
    """The weights of one axis for b photos.

    first: int32 (b, n), the input pixel that output pixel i begins with.
    weight: int32 (b, n, taps); 0 where a photo has fewer taps.
    n_in: int32 (b,), pixels of the axis in each photo.
    """

    first: torch.Tensor
    weight: torch.Tensor
    n_in: torch.Tensor

    @classmethod
    def of(cls, kernels: Sequence[Kernel], n_in: Sequence[int], device: torch.device) -> "Taps":
        """Of each photo's kernel and pixels, on a device."""
        each = {id(one): one for one in kernels}  # a collection has few sizes
        number = {key: i for i, key in enumerate(each)}
        n = 1 << (max(one.taps for one in each.values()) - 1).bit_length()  # few forms to compile
        weight = np.zeros((len(each), len(kernels[0].first), n), np.int32)
        for i, one in enumerate(each.values()):
            weight[i, :, : one.taps] = one.weight
        first = np.stack([one.first for one in each.values()]).astype(np.int32)
        at = np.array([number[id(one)] for one in kernels])
        arrays = (first[at], weight[at], np.array(n_in, np.int32))
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


Form = Callable[[torch.Tensor, Taps, Taps, int], torch.Tensor]
"""Packed photos, the taps of their rows and columns, the highest photo -> the resized ones."""


def pack(photos: Sequence[Uncut], into: torch.Tensor) -> torch.Tensor:
    """The photos' bytes side by side in `into`, uint8; returns the part that they fill."""
    flat = [torch.from_numpy(one.pixels).reshape(-1) for one in photos]
    filled = into[: sum(len(one) for one in flat)]
    torch.cat(flat, out=filled)
    return filled


def resized(
    packed: torch.Tensor,
    photos: Sequence[Uncut],
    size: tuple[int, int],
    form: Form | None = None,
) -> torch.Tensor:
    """Resize and cut photos of different sizes together, rows first.

    packed: uint8, their bytes side by side.  size: height and width of what is kept.
    form: `plain`, or what does the same faster.
    Returns uint8 (b, height, width, 3) on the device of `packed`.
    """
    height, width = size
    across = [kernel(*one.across, width, one.interpolation) for one in photos]
    down = [kernel(*one.down, height, one.interpolation) for one in photos]
    heights, widths = ([one.pixels.shape[axis] for one in photos] for axis in (0, 1))
    rows = Taps.of(across, widths, packed.device)
    columns = Taps.of(down, heights, packed.device)
    return (form or plain)(packed, rows, columns, max(heights))


def plain(packed: torch.Tensor, rows: Taps, columns: Taps, highest: int) -> torch.Tensor:
    """Both passes by torch's own operators."""
    sizes = list(zip(columns.n_in.tolist(), rows.n_in.tolist(), strict=True))
    whole = packed.new_zeros((len(sizes), highest, max(w for _, w in sizes), 3))
    start = 0
    for one, (h, w) in zip(whole, sizes, strict=True):
        one[:h, :w] = packed[start : start + 3 * h * w].view(h, w, 3)
        start += 3 * h * w
    return _along(_along(whole, rows, axis=2), columns, axis=1)


def _along(photos: torch.Tensor, taps: Taps, *, axis: int) -> torch.Tensor:
    """One pass over uint8 (b, h, w, 3): the sum over taps of pixels times weights, in 8 bits."""
    shape = [len(photos), 1, 1, 1]
    shape[axis] = taps.first.shape[1]
    whole = list(photos.shape)
    whole[axis] = shape[axis]
    total = torch.full(whole, 1 << (BITS - 1), dtype=torch.int32, device=photos.device)
    last = photos.shape[axis] - 1
    for k, weights in enumerate(taps.weight.unbind(2)):
        place = (taps.first.long() + k).clamp_(max=last).reshape(shape).expand(whole)
        total += photos.gather(axis, place).int().mul_(weights.reshape(shape))
    return total.bitwise_right_shift_(BITS).clamp_(0, 255).to(torch.uint8)
