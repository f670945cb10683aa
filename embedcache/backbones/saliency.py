"""Which pixels moved a score: integrated gradients through networks, averaged over baselines.

    found = saliency(backbones, pixels, score)     float32 (h, w)

Integrated gradients (Sundararajan, Taly and Yan 2017) with many baselines, each met at one point of
its path (expected gradients, Erion et al. 2021). A baseline is a soft random picture with the
photo's own mean and spread of each colour, so that no colour counts as "nothing"; the average over
baselines is smooth. Summed over all pixels the result is the score of the photo less the mean score
of the baselines. It says what the networks react to in this photo. It is not a cause.

Where several networks see a photo, each in its own size, all of them walk one path from one
baseline, and what each adds is drawn on the widest view and summed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from embedcache.backbones.loading import Backbone, leaders_of
from embedcache.spec import Preprocessing

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Raised with any change that gives another picture: kept pictures are drawn anew."""
SAMPLES = 24
BATCH = 8
COARSE = 7
"""A baseline is a random picture of COARSE x COARSE pixels, enlarged."""

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


def saliency(
    backbones: Sequence[Backbone],
    pixels: Mapping[int, U8],
    score: "Callable[[torch.Tensor], torch.Tensor]",
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> F32:
    """How much each pixel moved a score: float32 (h, w), above 0 where it raised it.

    backbones: whose vectors the score takes side by side, in this order; networks or layers inside
        of them, which see the same part of a photo. Their networks have a `module`.
    pixels: by network, as `leaders_of` numbers them: uint8 (h, w, 3), as it preprocesses them.
    score: vectors (b, dim) -> scores (b,), both torch tensors on the networks' device.
    samples: of baseline and path; more are smoother and slower. seed: of the baselines.
    (h, w) are those of the widest view, see `widest`.
    """
    import torch

    leaders = leaders_of(backbones)
    eyes = {at: _Eye.of(backbones[at], pixels[at]) for at in dict.fromkeys(leaders)}
    source = np.random.default_rng(seed)
    with torch.inference_mode(False), torch.enable_grad():
        for start in range(0, samples, BATCH):
            n = min(BATCH, samples - start)
            coarse = source.standard_normal((n, 3, COARSE, COARSE)).astype(np.float32)
            along = (start + np.arange(n) + source.random(n)) / samples  # spread along the path
            steps = {at: eye.step(coarse, along.astype(np.float32)) for at, eye in eyes.items()}
            given = {at: eyes[at].vectors(points) for at, (points, _) in steps.items()}
            parts = [
                given[at][:, one.first : one.first + one.spec.dim]
                for one, at in zip(backbones, leaders, strict=True)
            ]
            points = [one for one, _ in steps.values()]
            slopes = torch.autograd.grad(score(torch.cat(parts, 1)).sum(), points)
            for eye, slope, (_, gap) in zip(eyes.values(), slopes, steps.values(), strict=True):
                eye.total += (slope * gap).sum((0, 1))
    best = widest({at: eye.given for at, eye in eyes.items()})
    size, widest_share = eyes[best].total.shape, eyes[best].given.crop_fraction
    drawn = [
        placed(eye.total / samples, size, share=eye.given.crop_fraction / widest_share)
        for eye in eyes.values()
    ]
    found: F32 = torch.stack(drawn).sum(0).cpu().numpy()
    return found


def widest(views: Mapping[int, Preprocessing]) -> int:
    """The network that sees most of a photo, and of several the one with most pixels."""
    return max(views, key=lambda at: (views[at].crop_fraction, np.prod(views[at].size)))


def placed(found: "torch.Tensor", size: Sequence[int], *, share: float) -> "torch.Tensor":
    """What moved a score (h, w), drawn on the middle of a wider view of `size`: its sum stays.

    share: how much of the wider view's sides it takes.
    """
    import torch

    height, width = (round(share * side) for side in size)
    if found.shape != (height, width):
        scaled = torch.nn.functional.interpolate(
            found[None, None], (height, width), mode="bilinear", antialias=True
        )[0, 0]
        found = scaled * (found.numel() / scaled.numel())
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    below, right = size[0] - height - top, size[1] - width - left
    return torch.nn.functional.pad(found, (left, right, top, below))


@dataclass(slots=True)
class _Eye:
    """A network, the photo as it sees it (1, 3, h, w), and what moved the score so far (h, w)."""

    module: "torch.nn.Module"
    dtype: "torch.dtype"
    given: Preprocessing
    photo: "torch.Tensor"
    total: "torch.Tensor"

    @classmethod
    def of(cls, backbone: Backbone, pixels: U8) -> "_Eye":
        import torch

        module = backbone.open().module
        assert module is not None
        first = next(module.parameters())
        photo = torch.from_numpy(pixels.copy()).to(first.device).permute(2, 0, 1)[None].float()
        total = torch.zeros(pixels.shape[:2], device=first.device)
        return cls(module, first.dtype, backbone.preprocessing, photo, total)

    def step(self, coarse: F32, along: F32) -> "tuple[torch.Tensor, torch.Tensor]":
        """Points between n baselines and the photo (n, 3, h, w), and the whole way to it.

        coarse: (n, 3, COARSE, COARSE), of the baselines.  along: (n,), 1 at the photo.
        """
        import torch

        gap = self.photo - _baselines(self.photo, coarse)
        at = torch.from_numpy(along).to(self.photo.device).reshape(-1, 1, 1, 1)
        return (self.photo - (1 - at) * gap).requires_grad_(True), gap

    def vectors(self, points: "torch.Tensor") -> "torch.Tensor":
        """What the network gives for pixels (n, 3, h, w): float32 (n, its floats)."""
        import torch

        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.given.mean, device=points.device).reshape(shape)
        std = torch.tensor(self.given.std, device=points.device).reshape(shape)
        found: torch.Tensor = self.module(((points / 255.0 - mean) / std).to(self.dtype)).float()
        return found


def _baselines(photo: "torch.Tensor", coarse: F32) -> "torch.Tensor":
    """Soft random pictures (n, 3, h, w) with the photo's mean and spread of each colour."""
    import torch

    soft = torch.nn.functional.interpolate(
        torch.from_numpy(coarse).to(photo.device), photo.shape[2:], mode="bicubic"
    )
    middle = photo.mean((2, 3), keepdim=True)
    spread = photo.std((2, 3), keepdim=True)
    return (middle + spread * soft).clamp(0, 255)
