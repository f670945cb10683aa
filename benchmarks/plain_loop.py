"""A 1FC head trained the usual way: DataLoader, module, autograd, Adam. heads.py compares with it.

python benchmarks/plain_loop.py FOLDER STEPS    run STEPS steps for each line read from stdin
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH, HIDDEN = 256, 256


def network(dim: int) -> nn.Sequential:
    """dim inputs, a hidden layer, a ratio."""
    return nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), nn.Sigmoid())


def adam(model: nn.Module, rate: float = 1e-3) -> torch.optim.Optimizer:
    """The optimizer with its defaults."""
    return torch.optim.Adam(model.parameters(), lr=rate)


def epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, rows: TensorDataset, *, workers: int = 0
) -> None:
    """One pass over (inputs, truth, weight)."""
    for inputs, truth, weight in DataLoader(rows, BATCH, shuffle=True, num_workers=workers):
        step(model, optimizer, inputs, truth, weight)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    truth: Tensor,
    weight: Tensor,
) -> None:
    """One batch."""
    optimizer.zero_grad()
    loss = (weight * (model(inputs)[:, 0] - truth).square()).mean()
    loss.backward()
    optimizer.step()


@contextmanager
def apart(rows: TensorDataset, steps: int) -> Iterator[Callable[[], float]]:
    """A loop in a process of its own, without what `heads` sets for its threads.

    Each call has it do `steps` steps, and returns the seconds they took there.
    """
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    with tempfile.TemporaryDirectory() as scratch:
        for k, tensor in enumerate(rows.tensors):
            np.save(Path(scratch) / f"{k}.npy", tensor.numpy())
        with subprocess.Popen(
            [sys.executable, __file__, scratch, str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            bufsize=1,
        ) as other:
            orders, answers = other.stdin, other.stdout
            assert orders is not None
            assert answers is not None

            def go_on() -> float:
                orders.write("\n")
                return float(answers.readline())

            go_on()  # the first steps of all are warming up
            yield go_on
            orders.close()


def obey(folder: Path, steps: int) -> None:
    """Run the loop: for each line on stdin, `steps` steps; print how long they took."""
    rows = TensorDataset(*(torch.from_numpy(np.load(folder / f"{k}.npy")) for k in range(3)))
    model = network(rows.tensors[0].shape[1])
    optimizer, coming = adam(model), iter(DataLoader(rows, BATCH, shuffle=True))
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(steps):
            batch = next(coming, None)
            if batch is None:
                coming = iter(DataLoader(rows, BATCH, shuffle=True))
                batch = next(coming)
            step(model, optimizer, *batch)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__" and len(sys.argv) == 3:
    obey(Path(sys.argv[1]), int(sys.argv[2]))
