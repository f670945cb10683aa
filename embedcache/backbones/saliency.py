"""Which pixels moved a score: integrated gradients through a network, averaged over baselines.

    found = saliency(network, preprocessing, pixels, score)     float32 (h, w)

Integrated gradients (Sundararajan, Taly and Yan 2017) with many baselines, each met at one point of
its path (expected gradients, Erion et al. 2021). A baseline is a soft random picture with the
photo's own mean and spread of each colour, so that no colour counts as "nothing"; the average over
baselines is smooth. Summed over all pixels the result is the score of the photo less the mean score
of the baselines. It says what the network reacts to in this photo. It is not a cause.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from embedcache.backbones.forward import Network
from embedcache.spec import Preprocessing

if TYPE_CHECKING:
    import torch

SAMPLES = 24
BATCH = 8
COARSE = 7
"""A baseline is a random picture of COARSE x COARSE pixels, enlarged."""

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


def saliency(
    network: Network,
    preprocessing: Preprocessing,
    pixels: U8,
    score: "Callable[[torch.Tensor], torch.Tensor]",
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> F32:
    """How much each pixel moved a score: float32 (h, w), above 0 where it raised it.

    network: with its `module`.  pixels: uint8 (h, w, 3), as `preprocessing` makes them.
    score: vectors (b, dim) -> scores (b,), both torch tensors on the network's device.
    samples: of baseline and path; more are smoother and slower. seed: of the baselines.
    """
    import torch

    assert network.module is not None
    first = next(network.module.parameters())
    device, dtype = first.device, first.dtype
    shape = (1, 3, 1, 1)
    mean = torch.tensor(preprocessing.mean, device=device).reshape(shape)
    std = torch.tensor(preprocessing.std, device=device).reshape(shape)
    photo = torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].float()
    source = np.random.default_rng(seed)
    total = torch.zeros(pixels.shape[:2], device=device)
    with torch.inference_mode(False), torch.enable_grad():
        for start in range(0, samples, BATCH):
            n = min(BATCH, samples - start)
            gap = photo - _baselines(photo, n, source)
            at = (start + np.arange(n) + source.random(n)) / samples  # spread along the path
            along = torch.from_numpy(at.astype(np.float32)).to(device).reshape(-1, 1, 1, 1)
            points = (photo - (1 - along) * gap).requires_grad_(True)
            given = ((points / 255.0 - mean) / std).to(dtype)
            scores = score(network.module(given).float())
            (slope,) = torch.autograd.grad(scores.sum(), points)
            total += (slope * gap).sum((0, 1))
    found: F32 = (total / samples).cpu().numpy()
    return found


def _baselines(photo: "torch.Tensor", n: int, source: np.random.Generator) -> "torch.Tensor":
    """n soft random pictures (n, 3, h, w) with the photo's mean and spread of each colour."""
    import torch

    coarse = source.standard_normal((n, 3, COARSE, COARSE)).astype(np.float32)
    soft = torch.nn.functional.interpolate(
        torch.from_numpy(coarse).to(photo.device), photo.shape[2:], mode="bicubic"
    )
    middle = photo.mean((2, 3), keepdim=True)
    spread = photo.std((2, 3), keepdim=True)
    return (middle + spread * soft).clamp(0, 255)
