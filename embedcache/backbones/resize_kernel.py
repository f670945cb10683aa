"""`resize.resized` as one Triton kernel per axis, for CUDA devices. Imports triton and torch.

torch needs a dozen passes over all pixels for each tap of a filter; this reads each once.
"""

from collections.abc import Sequence

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from embedcache.photos.resampling import BITS, Kernel

_BLOCK = 512


@triton.jit  # type: ignore[untyped-decorator]
def _weighted(  # type: ignore[no-untyped-def]
    photos,
    out,
    first,
    weight,
    n_in,
    n_out,
    inner,
    taps: tl.constexpr,
    bits: tl.constexpr,
    block: tl.constexpr,
):
    """One block of one line: out[line, i, c] = sum of photos[line, first[i] + k, c] * weight.

    A line is what one set of weights is for: all of a photo's row, or all of its columns at once.
    inner: bytes that lie side by side for each pixel of the axis.
    """
    line = tl.program_id(0)
    n_lines = tl.num_programs(0)
    photo = tl.program_id(2)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < n_out * inner
    i = at // inner
    c = at % inner
    begin = tl.load(first + photo * n_out + i, mask=inside, other=0)
    source = photos + (photo * n_lines + line).to(tl.int64) * n_in * inner
    total = tl.full((block,), 1 << (bits - 1), tl.int32)
    for k in tl.static_range(taps):
        by = tl.load(weight + (photo * n_out + i) * taps + k, mask=inside, other=0)
        known = inside & (begin + k < n_in)
        pixel = tl.load(source + (begin + k) * inner + c, mask=known, other=0)
        total += pixel.to(tl.int32) * by
    small = tl.minimum(tl.maximum(total >> bits, 0), 255)
    target = out + (photo * n_lines + line).to(tl.int64) * n_out * inner
    tl.store(target + at, small.to(tl.uint8), mask=inside)


def along(photos: torch.Tensor, kernels: Sequence[Kernel], *, axis: int) -> torch.Tensor:
    """One pass over uint8 (b, h, w, 3): axis 1 becomes as many rows as the kernels have, 2 columns.

    photos: contiguous.
    """
    n, height, width, _ = photos.shape
    n_out = len(kernels[0].first)
    taps = 1 << (max(one.taps for one in kernels) - 1).bit_length()  # few forms are compiled
    first = torch.stack([torch.from_numpy(one.first).int() for one in kernels])
    weight = torch.zeros((n, n_out, taps), dtype=torch.int32)
    for i, one in enumerate(kernels):
        weight[i, :, : one.taps] = torch.from_numpy(one.weight)
    lines, n_in, inner = (1, height, 3 * width) if axis == 1 else (height, width, 3)
    shape = (n, n_out, width, 3) if axis == 1 else (n, height, n_out, 3)
    out = torch.empty(shape, dtype=torch.uint8, device=photos.device)
    grid = (lines, triton.cdiv(n_out * inner, _BLOCK), n)
    first, weight = first.to(photos.device), weight.to(photos.device)
    _weighted[grid](photos, out, first, weight, n_in, n_out, inner, taps, BITS, _BLOCK)
    return out
