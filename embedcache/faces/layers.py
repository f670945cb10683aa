"""facenet-pytorch's three networks on processors, layer by layer. Imports torch.

The layers and their values are the package's. What differs is how a processor goes through memory:
activations are channels last, slopes are repeated along a row so that an inner loop is a row and
not the 10 channels of a pixel, pooling is a maximum of slices, and the P-network's last layer is
computed whole only for cells whose probability passes (docs/decisions/106).
"""

from typing import Any

import torch
from torch.nn.functional import prelu

Outputs = tuple[torch.Tensor, ...]

_NEAR = 1e-4  # of a logit: far more than float32 rounds, so no cell that passes is left out


def propose(network: Any, pixels: torch.Tensor, threshold: float) -> Outputs:
    """The P-network's cells whose probability is at least the threshold.

    pixels: (n, 3, h, w), channels last.
    Returns place (k,), ascending, in (n, cells, cells); score (k,); shift (k, 4); and a tensor of
    the shape (n, cells, cells) whose values mean nothing.
    """
    x = pool(with_slopes(network.conv1(pixels), network.prelu1))
    x = with_slopes(network.conv2(x), network.prelu2)
    x = with_slopes(network.conv3(x), network.prelu3)
    n, n_features, height, width = x.shape
    features = x.permute(0, 2, 3, 1).reshape(-1, n_features)
    classes, shifts = network.conv4_1, network.conv4_2
    # The probability is at least t where the difference of the two logits is at least log(t/(1-t)).
    weight = classes.weight.view(2, n_features)
    logit = torch.mv(features, weight[1] - weight[0])
    least = torch.logit(torch.tensor(threshold)) - (classes.bias[1] - classes.bias[0])
    place = torch.nonzero(logit >= least - _NEAR)[:, 0]
    features = features[place]
    score = torch.addmm(classes.bias, features, weight.t()).softmax(1)[:, 1]
    shift = torch.addmm(shifts.bias, features, shifts.weight.view(4, n_features).t())
    passed = score >= threshold
    cells = logit.view(n, height, width)
    return place[passed], score[passed], shift[passed], cells


def refine(network: Any, pixels: torch.Tensor) -> Outputs:
    """The R-network: shift (n, 4) and probabilities (n, 2) of pixels (n, 3, 24, 24)."""
    x = pool3(with_slopes(network.conv1(pixels), network.prelu1))
    x = pool3(with_slopes(network.conv2(x), network.prelu2))
    x = with_slopes(network.conv3(x), network.prelu3)
    x = network.prelu4(network.dense4(_flat(x)))
    return network.dense5_2(x), network.dense5_1(x).softmax(1)


def output(network: Any, pixels: torch.Tensor) -> Outputs:
    """The O-network: shift (n, 4), landmarks (n, 10), probabilities (n, 2) of (n, 3, 48, 48)."""
    x = pool3(with_slopes(network.conv1(pixels), network.prelu1))
    x = pool3(with_slopes(network.conv2(x), network.prelu2))
    x = pool(with_slopes(network.conv3(x), network.prelu3))
    x = with_slopes(network.conv4(x), network.prelu4)
    x = network.prelu5(network.dense5(_flat(x)))
    return network.dense6_2(x), network.dense6_3(x), network.dense6_1(x).softmax(1)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """(n, w * h * c), the order in which the package's weights expect a map."""
    return x.permute(0, 3, 2, 1).reshape(len(x), -1)


def with_slopes(x: torch.Tensor, slopes: Any) -> torch.Tensor:
    """The PReLU `slopes` of x (n, c, h, w), channels last: the same values, row by row."""
    n, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(n * height, width * channels)
    done = prelu(rows, slopes.weight.repeat(width))
    return done.view(n, height, width, channels).permute(0, 3, 1, 2)


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


def pool3(x: torch.Tensor) -> torch.Tensor:
    """max_pool2d(x, 3, 2, ceil_mode=True), for sides of at least 3."""
    for axis in (2, 3):
        n = (x.shape[axis] - 2) // 2 + 1 if x.shape[axis] % 2 == 0 else x.shape[axis] // 2
        before = (slice(None),) * axis
        first, second = (x[(*before, slice(start, start + 2 * n - 1, 2))] for start in (0, 1))
        third = x[(*before, slice(2, 2 + 2 * n - 1, 2))]  # the last window may have two only
        pooled = torch.maximum(first, second)
        part = pooled.narrow(axis, 0, third.shape[axis])
        torch.maximum(part, third, out=part)
        x = pooled
    return x
