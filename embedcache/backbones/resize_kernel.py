"""`resize.plain` as one Triton kernel per axis, for CUDA devices. Imports triton and torch.

torch's operators pass over all pixels a dozen times for each tap of a filter; this reads each once.
"""

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from embedcache.backbones.resize import Taps
from embedcache.photos.resampling import BITS

_BLOCK = 512


@triton.jit  # type: ignore[untyped-decorator]
def _weighted(  # type: ignore[no-untyped-def]
    photos,
    out,
    starts,
    lines,
    sizes,
    first,
    weight,
    n_out,
    inner,
    taps: tl.constexpr,
    bits: tl.constexpr,
    block: tl.constexpr,
):
    """One block of one line: out[line, i, c] = sum of photos[line, first[i] + k, c] * weight[i, k].

    A line is what one axis runs along: one row of a photo, or all its columns at once.
    starts, lines, sizes: of each photo, its first byte, its lines, and its pixels along the axis.
    inner: bytes that lie side by side for each pixel of the axis.
    """
    line = tl.program_id(0)
    photo = tl.program_id(2)
    if line >= tl.load(lines + photo):  # another photo of the group is higher
        return
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < n_out * inner
    i = at // inner
    c = at % inner
    n_in = tl.load(sizes + photo)
    begin = tl.load(first + photo * n_out + i, mask=inside, other=0)
    source = photos + tl.load(starts + photo) + line.to(tl.int64) * n_in * inner
    total = tl.full((block,), 1 << (bits - 1), tl.int32)
    for k in tl.static_range(taps):
        by = tl.load(weight + (photo * n_out + i) * taps + k, mask=inside, other=0)
        known = inside & (begin + k < n_in)
        pixel = tl.load(source + (begin + k) * inner + c, mask=known, other=0)
        total += pixel.to(tl.int32) * by
    small = tl.minimum(tl.maximum(total >> bits, 0), 255)
    row = photo.to(tl.int64) * tl.num_programs(0) + line
    tl.store(out + row * n_out * inner + at, small.to(tl.uint8), mask=inside)


def fused(packed: torch.Tensor, rows: Taps, columns: Taps, highest: int) -> torch.Tensor:
    """Both passes, rows first; the arguments are those of `plain`."""
    n, width, height = len(rows.first), rows.first.shape[1], columns.first.shape[1]
    n_bytes = 3 * columns.n_in.long() * rows.n_in
    starts = n_bytes.cumsum(0) - n_bytes
    between = packed.new_empty((n, highest, width, 3))
    _run(packed, between, starts, columns.n_in, rows, inner=3)
    out = packed.new_empty((n, height, width, 3))
    starts = torch.arange(n, device=packed.device) * (highest * width * 3)
    _run(between, out, starts, torch.ones_like(columns.n_in), columns, inner=3 * width)
    return out


def _run(
    photos: torch.Tensor,
    out: torch.Tensor,
    starts: torch.Tensor,
    lines: torch.Tensor,
    taps: Taps,
    *,
    inner: int,
) -> None:
    n, n_out, n_taps = taps.weight.shape
    most = out.numel() // (n * n_out * inner)
    grid = (most, triton.cdiv(n_out * inner, _BLOCK), n)
    _weighted[grid](
        *(photos, out, starts, lines, taps.n_in, taps.first, taps.weight, n_out, inner),
        *(n_taps, BITS, _BLOCK),
    )
