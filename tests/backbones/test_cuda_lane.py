"""Lanes of a CUDA device; skipped where there is none."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from embedcache.backbones.folding import close
from embedcache.backbones.forward import Network, build, devices
from embedcache.photos.resampling import Uncut
from embedcache.photos.resizing import place, resize_crop
from embedcache.spec import PRECISIONS
from tests.preprocessings import INCEPTION

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PLAN = replace(INCEPTION, size=(48, 48), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))
U8 = NDArray[np.uint8]


class Small(nn.Module):
    """Convolutions, and where `asks` a question to the device, which no graph can hold."""

    def __init__(self, *, asks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.asks = asks
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(x).mean((2, 3))
        if self.asks and float(found.sum()) > 1e9:
            return found * 2
        return found


def network(precision: str = "float32", device: str = "cuda:0", *, asks: bool = False) -> Network:
    model = Small(asks=asks).eval().requires_grad_(False)
    return build(model, PLAN, devices=devices(device), precision=precision)


def photos(n: int) -> U8:
    return np.random.default_rng(n).integers(0, 256, (n, 48, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_gives_the_cpus_vectors_within_its_tolerance(precision: str) -> None:
    found = network(precision)
    expected = network(device="cpu").lanes[0](photos(64))
    for lane in found.lanes:
        assert close(lane(photos(64)), expected, tolerance=found.tolerance)


@pytest.mark.parametrize("asks", [False, True])
def test_batches_of_every_size_in_any_order(asks: bool) -> None:
    plain = network(device="cpu").lanes[0]
    (lane, _) = network(asks=asks).lanes
    for n in (1, 32, 64, 33, 63, 64, 2, 128, 100, 32):
        assert close(lane(photos(n)), plain(photos(n)))


def test_two_lanes_at_once_record_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = network(device="cpu").lanes[0]
    lanes = network().lanes
    sizes = [32, 64, 96, 128, 64, 32, 7] * 6
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda i: lanes[i % 2](photos(sizes[i])), range(len(sizes))))
    for n, vectors in zip(sizes, found, strict=True):
        assert close(vectors, plain(photos(n)))


def test_uncut_photos_have_the_vectors_of_pillows_pixels() -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    whole = [rng.integers(0, 256, (h, w, 3), np.uint8) for w, h in [(90, 60), (60, 90), (48, 48)]]
    cut = [resize_crop(Image.fromarray(one), PLAN) for one in whole]
    mixed: list[U8 | Uncut] = [
        place(one, PLAN) if i % 3 else small
        for i, (one, small) in enumerate(zip(whole * 22, cut * 22, strict=True))
    ][:64]
    (lane, _) = network().lanes
    np.testing.assert_array_equal(lane(mixed), lane(np.stack((cut * 22)[:64])))


def test_products_are_rounded_to_tf32_only_where_that_is_declared() -> None:
    exact, rounded = network("float32"), network("tf32")
    expected = network(device="cpu").lanes[0](photos(64))
    rounded.lanes[0](photos(64))
    assert close(exact.lanes[0](photos(64)), expected, tolerance=1e-5)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_memory_that_ends_is_given_back_and_the_lane_goes_on() -> None:
    found = network()
    expected = found.lanes[0](photos(32))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(256 * 2**20 / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            found.lanes[0](np.zeros((8192, 48, 48, 3), np.uint8))
        assert close(found.lanes[0](photos(32)), expected)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_compiled_form_runs_on_lanes_too() -> None:
    pytest.importorskip("triton")
    found = replace(network())
    expected = found.lanes[0](photos(32))
    for lane in found.compiled(32):
        assert close(lane(photos(32)), expected)
