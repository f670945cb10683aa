from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from embedcache.backbones.folding import TOLERANCE, close, folded
from embedcache.backbones.forward import build, devices
from embedcache.errors import WeightsError
from embedcache.spec import Preprocessing

PREPROCESSING = Preprocessing(
    size=(32, 32),
    resize="squash",
    crop_fraction=1.0,
    interpolation="bilinear",
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.3),
    decode="x",
)


def norm(channels: int) -> nn.BatchNorm2d:
    """A normalisation that has seen data: nothing about it is trivial."""
    made = nn.BatchNorm2d(channels)
    made.running_mean = torch.randn(channels)
    made.running_var = torch.rand(channels) + 0.5
    made.weight.data.uniform_(0.5, 2)
    made.bias.data.uniform_(-1, 1)
    return made


class Straight(nn.Module):
    """Convolutions each followed by its normalisation, as nearly every network has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), norm(8)
        self.act = nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), norm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        return torch.mean(self.bn2(self.conv2(x)), (2, 3))


class Crossed(Straight):
    """The same parts in another order: each normalisation comes before its convolution's name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.bn2(self.conv1(x)))
        return torch.mean(self.bn1(self.conv2(x)), (2, 3))


class Nosy(Straight):
    """Reads a field of its normalisation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.bn1.num_features


def frozen(kind: type[Straight]) -> nn.Module:
    return kind().eval().requires_grad_(False)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_normalisations_are_folded_into_the_convolutions_before_them() -> None:
    model, x = frozen(Straight), torch.rand(2, 3, 32, 32)
    expected = model(x)
    found = folded(model, x)
    assert (norms(model), norms(found)) == (2, 0)
    torch.testing.assert_close(found(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Crossed, Nosy])
def test_a_network_that_runs_them_otherwise_is_left_alone(kind: type[Straight]) -> None:
    model = frozen(kind)
    assert folded(model, torch.rand(2, 3, 32, 32)) is model


def test_all_lanes_give_the_vectors_of_the_plain_model() -> None:
    model = frozen(Straight)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    expected = model((inputs - mean) / std).numpy()
    built = build(model, PREPROCESSING, devices=devices("cpu"), precision="float32")
    assert built.lanes
    for lane in built.lanes:
        assert close(lane(pixels), expected)


def test_several_devices_hold_the_network_each_and_take_turns() -> None:
    cpu = torch.device("cpu")
    one = build(frozen(Straight), PREPROCESSING, devices=[cpu], precision="float32")
    two = build(frozen(Straight), PREPROCESSING, devices=[cpu, cpu], precision="float32")
    assert len(two.lanes) == 2 * len(one.lanes)
    pixels = np.full((3, 32, 32, 3), 77, np.uint8)
    for lane in two.lanes:
        np.testing.assert_array_equal(lane(pixels), one.lanes[0](pixels))


def test_openvino_compiles_a_network_to_the_same_vectors() -> None:
    pytest.importorskip("openvino")
    built = build(frozen(Straight), PREPROCESSING, devices=devices("cpu"), precision="float32")
    assert built.compiler == "openvino"
    lanes = built.compiled(5)
    assert len(lanes) == len(built.lanes)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    with ThreadPoolExecutor(len(lanes)) as pool:
        found = list(pool.map(lambda lane: lane(pixels), lanes * 10))
    for vectors in found:
        assert close(vectors, built.lanes[0](pixels))


def test_other_arithmetic_is_left_to_torch() -> None:
    half = build(frozen(Straight), PREPROCESSING, devices=devices("cpu"), precision="bfloat16")
    assert half.compiler == "inductor"


def test_auto_means_every_gpu_and_a_number_means_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [str(d) for d in devices("auto")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [str(d) for d in devices("cuda")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [str(d) for d in devices("cuda:1")] == ["cuda:1"]
    assert [str(d) for d in devices("cpu")] == ["cpu"]
    with pytest.raises(WeightsError, match="torch sees 3 CUDA devices"):
        devices("cuda:3")
    with pytest.raises(WeightsError, match="no such device"):
        devices("gpu")


def test_float32_means_float32_on_a_gpu_too() -> None:
    build(frozen(Straight), PREPROCESSING, devices=devices("cpu"), precision="float32")
    assert not torch.backends.cudnn.allow_tf32


def test_close_is_relative_to_each_vector_and_no_nan_is_close() -> None:
    a = np.array([[1e-3, 0], [1e3, 0]], np.float32)
    assert close(a, a)
    assert not close(a + np.array([[1e-6, 0], [0, 0]], np.float32), a)
    assert not close(np.full_like(a, np.nan), a)
    assert TOLERANCE == 1e-4
