"""Resizing many photos together on torch's device, against Pillow."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from embedcache.backbones.resize import pack, resized
from embedcache.photos.resizing import can_stay_uncut, place, resize_crop
from embedcache.spec import Preprocessing
from tests.preprocessings import INCEPTION

PLAN = replace(INCEPTION, size=(61, 61))
PLANS = [
    PLAN,
    replace(PLAN, interpolation="bilinear", crop_fraction=1.0),
    replace(PLAN, resize="squash", crop_fraction=1.0),
    replace(PLAN, size=(48, 90)),
]
PHOTOS = [(100, 75), (75, 100), (61, 61), (7, 9), (301, 200), (90, 48), (64, 400)]


@pytest.mark.parametrize("plan", PLANS)
def test_photos_of_all_sizes_together_have_pillows_pixels(plan: Preprocessing) -> None:
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (h, w, 3), np.uint8) for w, h in PHOTOS]
    uncut = [place(photo, plan) for photo in photos]
    slab = torch.empty(1 << 20, dtype=torch.uint8)
    found = resized(pack(uncut, slab), uncut, plan.size).numpy()
    for photo, one in zip(photos, found, strict=True):
        np.testing.assert_array_equal(one, resize_crop(Image.fromarray(photo), plan))


def test_what_a_device_leaves_to_pillow() -> None:
    assert can_stay_uncut((1024, 700), PLAN)
    assert not can_stay_uncut((1025, 700), PLAN)
    assert not can_stay_uncut((900, 100), PLAN)
    assert not can_stay_uncut((500, 400), replace(PLAN, interpolation="lanczos"))


INTERPRETED = """
import numpy as np, torch
from dataclasses import replace
from embedcache.backbones import resize, resize_kernel
from embedcache.photos.resizing import place
from tests.backbones.test_resize import PLAN

plan = replace(PLAN, size=(5, 7))
sizes = [(9, 12), (14, 10)]
photos = [place(np.random.default_rng(1).integers(0, 256, (*s, 3), np.uint8), plan) for s in sizes]
packed = resize.pack(photos, torch.empty(5000, dtype=torch.uint8))
expected = resize.resized(packed, photos, plan.size)
assert torch.equal(resize.resized(packed, photos, plan.size, resize_kernel.fused), expected)
"""


def test_the_kernel_of_a_cuda_device_gives_the_same() -> None:
    pytest.importorskip("triton")
    subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        check=True,
    )
