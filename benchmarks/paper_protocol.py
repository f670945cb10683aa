"""The paper's protocol against a plain PyTorch loop: equal in distribution over seeds.

    python -m benchmarks.paper_protocol              12 seeds, three truths, all depths
    python -m benchmarks.paper_protocol --seeds 4    quicker

The loop is what one writes by hand: torch.nn.Linear layers as PyTorch initialises them, the last
bias at the mean, Adam, batches of 256 in a new order each epoch, 20 epochs, the rate decayed
100-fold by step, six rates, dev picks rate and epoch. Both see the same standardised vectors; the
seed differs in split, initialisation and order. Test MSE over its noise is compared by a paired t
test over the seeds (the split is shared, the start and the order are not).
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

import heads
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import Dataset
from heads.fitting.linear import fit_standard
from heads.fitting.protocol import FC_NAMES, PAPER_RATES, protocol_of

Floats = NDArray[np.float64]
TRUTHS = ("linear", "mixed", "nonlinear")
HIDDEN, EPOCHS, BATCH = 256, 20, 256


def data_of(truth: str, seed: int, *, n: int = 1500, dim: int = 32) -> Dataset:
    """n rows whose target is a line, a line and a curve, or a curve of the vector, and noise."""
    rng = np.random.default_rng([seed, TRUTHS.index(truth)])
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    line = vectors @ rng.normal(size=dim) / np.sqrt(dim)
    curve = np.tanh(2 * vectors[:, :4]) @ rng.normal(size=4) * np.sign(vectors[:, 4])
    share = {"linear": 0.0, "mixed": 0.5, "nonlinear": 1.0}[truth]
    target = (1 - share) * line + share * curve + 0.5 * rng.normal(size=n)
    return from_arrays(vectors, target, groups=range(n), task="regression", seed=seed)


def ours(data: Dataset, name: str, seed: int) -> float:
    """The test MSE of a head fitted by the paper's protocol."""
    fit = heads.fit(data, heads=[name], protocol=protocol_of({"seed": seed}, name="paper"))
    return next(row.value for row in fit.rows if row.head == name)


def plain(data: Dataset, name: str, seed: int, *, rates: tuple[float, ...] = PAPER_RATES) -> float:
    """The test MSE of the loop."""
    train, dev, test = (data.part(side) for side in ("train", "dev", "test"))
    standard = fit_standard(train)
    rows = [torch.from_numpy(standard.apply(part.read())) for part in (train, dev, test)]
    mean, spread = train.targets.mean(), train.targets.std()
    wanted = torch.tensor((train.targets - mean) / spread, dtype=torch.float32)
    best = (np.inf, np.nan)
    for place, rate in enumerate(rates):
        torch.manual_seed(1000 * (seed + 1) + place)
        model = _network(rows[0].shape[1], FC_NAMES.index(name))
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        steps = EPOCHS * -(-len(wanted) // BATCH)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))
        for _ in range(EPOCHS):
            for batch in torch.split(torch.randperm(len(wanted)), BATCH):
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(model(rows[0][batch]), wanted[batch])
                torch.autograd.backward(loss)
                optimizer.step()
                decay.step()
            with torch.no_grad():
                errors = [
                    float(np.mean((model(r).numpy() * spread + mean - p.targets) ** 2))
                    for r, p in zip(rows[1:], (dev, test), strict=True)
                ]
            best = min(best, (errors[0], errors[1]))
    return best[1]


def _network(dim: int, depth: int) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for _ in range(depth):
        layers += [torch.nn.Linear(dim, HIDDEN), torch.nn.ReLU()]
        dim = HIDDEN
    last = torch.nn.Linear(dim, 1)
    torch.nn.init.zeros_(last.bias)  # the mean, on the scale of standardised targets
    return torch.nn.Sequential(*layers, last)


def compared(truth: str, name: str, seeds: int, *, n: int = 1500) -> tuple[Floats, Floats, float]:
    """Test MSE of both, per seed, and the p of a paired t test."""
    sets = [data_of(truth, seed, n=n) for seed in range(seeds)]
    mine = np.array([ours(data, name, seed) for seed, data in enumerate(sets)])
    theirs = np.array([plain(data, name, seed) for seed, data in enumerate(sets)])
    return mine, theirs, float(stats.ttest_rel(mine, theirs).pvalue)


def table(seeds: int) -> Iterator[str]:
    """A line per truth and head: mean test MSE of both, their ratio with its spread, p."""
    yield "| truth | head | `--protocol paper` | plain loop | ratio (sd over seeds) | p |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for truth in TRUTHS:
        for name in FC_NAMES:
            mine, theirs, p = compared(truth, name, seeds)
            ratio = mine / theirs
            yield (
                f"| {truth} | {name} | {mine.mean():.4f} | {theirs.mean():.4f} | "
                f"{ratio.mean():.3f} ({ratio.std(ddof=1):.3f}) | {p:.2f} |"
            )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    torch.set_num_threads(1)
    for line in table(parser.parse_args().seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
