"""How fast heads train, and against what; every ratio is taken within one run.

    python benchmarks/heads.py                     the sweep, against loops and the GEMM rate
    python benchmarks/heads.py --tables            Tables 2 and 3 at the paper's size
    python benchmarks/heads.py --peers             scikit-learn's MLP at the same protocol

Vectors are random; the labels follow from them, so that dev figures mean something.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# A script's folder comes first on the path, and this file has the name of the package: step aside,
# here and where another benchmark imports the package.
sys.path[:] = [one for one in sys.path if Path(one).resolve() != Path(__file__).resolve().parent]
if __name__ == "heads":
    del sys.modules["heads"]

from heads import fit, linear  # noqa: E402
from heads.dataset import Dataset, from_arrays  # noqa: E402
from heads.head import Layer  # noqa: E402
from heads.protocol import RATES, Protocol  # noqa: E402
from heads.train import train  # noqa: E402


def made_up(n: int, dim: int, *, task: str, seed: int = 0) -> Dataset:
    """n vectors as a rectified network makes them, and labels that a small network would find."""
    rng = np.random.default_rng(seed)
    vectors = np.maximum(rng.standard_normal((n, dim), dtype=np.float32), 0)
    score = 4 * np.tanh(vectors[:, :40] @ rng.normal(size=(40, 8)) / 6) @ rng.normal(size=8)
    score -= score.mean()
    swipes = rng.integers(20, 300, n)
    chance = 1 / (1 + np.exp(-score / 4))
    ids = [str(k) for k in range(n)]
    if task == "binary":
        return from_arrays(vectors, rng.random(n) < chance, ids=ids, groups=ids)
    ratio = rng.binomial(swipes, chance) / swipes
    return from_arrays(vectors, ratio, weights=swipes, ids=ids, groups=ids)


def seconds_of(work: Callable[[], object], *, repeats: int = 1) -> float:
    """The shortest of some runs."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def gemm_rate(rows: int, dim: int, width: int) -> float:
    """float32 operations per second of the two products of a training step, the better of 3 x 8."""
    inputs, weight = torch.randn(rows, dim), torch.randn(width, dim)
    slope, out = torch.randn(rows, width), torch.empty(width, dim)
    both = torch.empty(rows, width)

    def step() -> None:
        for _ in range(8):
            torch.mm(inputs, weight.T, out=both)
            torch.mm(slope.T, inputs, out=out)

    step()
    return 8 * 4 * rows * dim * width / seconds_of(step, repeats=3)


def loop_epoch(vectors: Tensor, targets: Tensor, weights: Tensor, rate: float) -> None:
    """One epoch of a 1FC head the usual way: a DataLoader, a module, autograd, Adam."""
    network = nn.Sequential(nn.Linear(vectors.shape[1], 256), nn.ReLU(), nn.Linear(256, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    rows = torch.utils.data.TensorDataset(vectors, targets, weights)
    for inputs, truth, weight in torch.utils.data.DataLoader(rows, batch_size=256, shuffle=True):
        optimizer.zero_grad()
        loss = (weight * (network(inputs)[:, 0].sigmoid() - truth).square()).mean()
        torch.autograd.backward(loss)
        optimizer.step()


def sweep(n: int, dim: int) -> None:
    """Five rates of a dim-256-1 head: one pass, against five loops and against bare products."""
    data = made_up(n, dim, task="ratio")
    whole = replace(data, subset=np.where(np.arange(n) < 64, 1, 0).astype(np.uint8))
    part, dev = whole.part("train"), whole.part("dev")
    standard = linear.fit_standard(part)
    start = Layer(np.zeros((1, 1, dim), np.float32), np.zeros((1, 1), np.float32))

    def run(epochs: int) -> Callable[[], object]:
        protocol = Protocol(epochs=epochs, patience=None)
        return lambda: train(
            ["1fc"], part, dev,
            standard=standard, link="sigmoid", loss="mse", start=start, protocol=protocol,
        )  # fmt: skip

    run(1)()
    rate = gemm_rate(256, dim, 256 * len(RATES))
    # Two lengths, so that what is done once (reading, standardising) drops out.
    ours = (seconds_of(run(3)) - seconds_of(run(1))) / 2
    rate = max(rate, gemm_rate(256, dim, 256 * len(RATES)))
    ideal = 4 * len(part) * dim * 256 * len(RATES) / rate
    vectors = torch.from_numpy(standard.apply(part.read()))
    targets = torch.tensor(part.targets[:, 0], dtype=torch.float32)
    weights = torch.ones(len(part))
    loops = len(RATES) * seconds_of(lambda: loop_epoch(vectors, targets, weights, 1e-3))
    print(f"{n:,} x {dim}, {dim}-256-1, {len(RATES)} rates, per epoch:")
    print(f"  one pass {ours:.2f} s; {len(RATES)} loops {loops:.2f} s: {loops / ours:.1f} x")
    print(f"  {ideal / ours:.2f} of the machine's float32 GEMM rate ({rate / 1e9:.0f} GFLOP/s)")


def tables(n: int) -> None:
    """Both tables at the paper's size: two targets on ALL and 1BBOX, three rows of heads each."""
    total = 0.0
    one_face = n * 3 // 4
    for name, rows, dim in (
        ("Inception ALL", n, 2048),
        ("Inception 1BBOX", one_face, 2048),
        ("FaceNet 1BBOX", one_face, 512),
    ):
        for task in ("ratio", "binary"):
            data = made_up(rows, dim, task=task)
            began = time.perf_counter()
            found = fit(data)
            seconds = time.perf_counter() - began
            total += seconds
            told = ", ".join(f"{row.head} {row.value:.4f}" for row in found.rows)
            print(f"  {name}, {task}: {seconds:.1f} s ({told})", flush=True)
    print(f"Tables 2 and 3 at {n:,} photos: {total:.0f} s")


def peers(n: int, dim: int) -> None:
    """The same protocol elsewhere: time and dev figure side by side."""
    from sklearn.neural_network import MLPRegressor

    data = made_up(n, dim, task="ratio")
    data = replace(data, weights=None)
    part, dev = data.part("train"), data.part("dev")
    standard = linear.fit_standard(part)
    rows, seen = standard.apply(part.read()), standard.apply(dev.read())
    truth = dev.targets[:, 0]

    def dev_mse(prediction: NDArray[np.float64]) -> float:
        return float(np.mean((prediction - truth) ** 2))

    began = time.perf_counter()
    found = fit(data, heads=["1fc"], start="constant")
    ours = time.perf_counter() - began
    row = next(row for row in found.rows if row.head == "1fc")
    print(f"{n:,} x {dim}, 20 epochs, {len(RATES)} rates, hidden 256")
    print(f"  heads.fit, ridge and intervals included: {ours:.1f} s, dev MSE {row.dev:.5f}")
    began, best = time.perf_counter(), float("inf")
    for rate in RATES:
        model = MLPRegressor(
            hidden_layer_sizes=(256,), batch_size=256, learning_rate_init=rate, max_iter=20,
            alpha=0, tol=0, n_iter_no_change=100,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(rows, part.targets[:, 0])
        best = min(best, dev_mse(model.predict(seen)))
    print(f"  MLPRegressor, last epoch: {time.perf_counter() - began:.1f} s, dev MSE {best:.5f}")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--photos", type=int, default=76_000)
    parser.add_argument("--dim", type=int, default=2048)
    chosen = parser.parse_args()
    if chosen.tables:
        tables(chosen.photos)
    elif chosen.peers:
        peers(chosen.photos, chosen.dim)
    else:
        sweep(chosen.photos, chosen.dim)


if __name__ == "__main__":
    main()
