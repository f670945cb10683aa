"""A step that reads nothing from the host, as on a CUDA device, is the step of the CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from heads.dataset.rows import Dataset
from heads.fitting import linear, step, train
from heads.fitting.objective import Objective
from heads.fitting.protocol import Protocol
from heads.fitting.step import Steps
from heads.head import Layer
from tests.heads.fitting.test_train import gap, sweep

Sample = Callable[..., Dataset]
SWEEP: dict[str, Any] = {
    "learning_rates": (1e-4, 1e-3, 3e-2), "epochs": 6, "batch_size": 32, "members": 2
}  # fmt: skip
CUDA = torch.cuda.is_available()


class Recorded:
    """Stands in for CUDA graphs: what is recorded runs later, with the host's values of then."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.fail = 0

    def __call__(
        self, work: Callable[[], None], device: torch.device, generators: Sequence[Any]
    ) -> Callable[[], None]:
        if self.fail:
            self.fail -= 1
            raise RuntimeError("operation not permitted when stream is capturing")
        number = len(self.times)
        self.times.append(0)
        steps = next(
            cell.cell_contents
            for cell in work.__closure__ or ()
            if isinstance(cell.cell_contents, Steps)
        )
        taken = steps.taken

        def replay() -> None:
            now, steps.taken = steps.taken, taken
            work()
            steps.taken = now
            self.times[number] += 1

        return replay


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Training as on a device, its graphs stood in for."""
    found = Recorded()
    monkeypatch.setattr(train, "Steps", partial(Steps, on_device=True))
    monkeypatch.setattr(step, "captured", found)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "sgd", "weight_decay": 0.01},
        {"patience": 1},
        {"start": "random", "loss": "binomial"},
        {"memory_bytes": 1, "epochs": 2},
    ],
    ids=["adam", "sgd", "patience", "random", "streamed"],
)
def test_recorded_steps_train_the_same_heads(
    sample: Sample, graphs: Recorded, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    data = sample(n=5000 if "memory_bytes" in options else 400)
    recorded = sweep(data, "0fc", "1fc", "2fc", **(SWEEP | options))
    assert sum(graphs.times) > 20
    assert (len(graphs.times) > 1) == ("patience" in options)  # a graph for each smaller bank
    monkeypatch.setattr(train, "Steps", Steps)
    plain = sweep(data, "0fc", "1fc", "2fc", **(SWEEP | options))
    for name, head in plain.items():
        assert recorded[name].epoch == head.epoch
        assert recorded[name].rate == head.rate
        assert recorded[name].dev == pytest.approx(head.dev, rel=1e-5)
        assert gap(recorded[name], head) < 1e-5


def test_a_step_that_cannot_be_recorded_is_launched_kernel_by_kernel(
    sample: Sample, graphs: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs.fail = 1
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing") as warned:
        eager = sweep(sample(), "1fc", patience=1, **SWEEP)["1fc"]
    assert len(warned) == 1  # and it is not tried again
    assert graphs.times == []
    monkeypatch.setattr(train, "Steps", Steps)
    plain = sweep(sample(), "1fc", patience=1, **SWEEP)["1fc"]
    assert gap(eager, plain) < 1e-5


def test_the_last_batch_of_an_epoch_is_not_replayed_as_a_full_one(
    sample: Sample, graphs: Recorded
) -> None:
    data = sample(n=400)
    rows = len(data.part("train"))
    full, rest = divmod(rows, 32)
    assert rest
    sweep(data, "0fc", **(SWEEP | {"epochs": 3}))
    assert sum(graphs.times) == 3 * full - 3  # three steps come before the capture


@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.filterwarnings("ignore:a training step cannot be captured")
def test_dropout_on_a_device_follows_from_depth_seed_and_step_alone(
    sample: Sample, graphs: Recorded, failures: int
) -> None:
    options = SWEEP | {"dropout": 0.3}
    graphs.fail = failures
    whole = sweep(sample(), "0fc", "1fc", "2fc", **options)
    for name in ("1fc", "2fc"):
        graphs.fail = failures
        alone = sweep(sample(), name, **(options | {"learning_rates": (whole[name].rate,)}))[name]
        assert alone.epoch == whole[name].epoch
        assert gap(alone, whole[name]) < 1e-5
    graphs.fail = failures
    other = sweep(sample(), "1fc", **(options | {"seed": 1}))["1fc"]
    assert gap(other, whole["1fc"]) > 1e-3


@pytest.mark.skipif(not CUDA, reason="no CUDA device here")
@pytest.mark.parametrize("options", [{}, {"patience": 1}, {"optimizer": "sgd"}, {"dropout": 0.3}])
@pytest.mark.filterwarnings("error")
def test_a_cuda_device_trains_the_same_heads_in_graphs(
    sample: Sample, options: dict[str, Any]
) -> None:
    data = sample(n=2000)
    there = sweep(data, "0fc", "1fc", "2fc", **(SWEEP | options), device="cuda")
    here = sweep(data, "0fc", "1fc", "2fc", **(SWEEP | options))
    for name, head in here.items():
        loose = 0.1 if "dropout" in options else 1e-3
        assert there[name].dev == pytest.approx(head.dev, rel=loose)
        shapes = [[layer.weight.shape for layer in one[name].layers] for one in (here, there)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("before", ["tf32", "ieee", "none"])
def test_products_are_not_rounded_to_tf32_on_a_device(before: str) -> None:
    settings: Any = torch.backends.cuda.matmul
    if not hasattr(settings, "fp32_precision"):
        pytest.skip("this torch has the setting by its old name")
    was = settings.fp32_precision
    settings.fp32_precision = before
    try:
        with train._full_products("cuda:0"):
            assert settings.fp32_precision == "ieee"
        assert settings.fp32_precision == before
        with train._full_products("cpu"):
            assert settings.fp32_precision == before
    finally:
        settings.fp32_precision = was


def test_training_loads_no_compiler() -> None:
    """torch._dynamo takes seconds, and torch.optim's classes load it."""
    code = (
        "import sys, numpy as np\n"
        "from heads import fit\n"
        "from heads.dataset.arrays import from_arrays\n"
        "rows = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)\n"
        "fit(from_arrays(rows, rows[:, 0]), heads='1fc', epochs=1, hidden=4, resamples=10)\n"
        "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_vectors_are_standardised_on_the_device_as_numpy_does(sample: Sample) -> None:
    data = sample(n=3000)
    part, dev = data.part("train"), data.part("dev")
    standard = linear.fit_standard(part)
    start = Layer(np.zeros((1, 1, data.dim), np.float32), np.zeros((1, 1), np.float32))
    task = Objective(part, dev, standard, "sigmoid", "mse", start, Protocol())
    assert task.inputs is not None
    assert (task.inputs.numpy() == standard.apply(part.read())).all()
