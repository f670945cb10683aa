"""How often an FC head is called best where the truth is linear, and nothing else could be right.

python -m benchmarks.null               100 runs of each protocol
python -m benchmarks.null --runs 20     quicker
"""

import argparse

import numpy as np
import torch

import heads
from heads.dataset.arrays import from_arrays
from heads.fitting.protocol import FC_NAMES, protocol_of


def best_heads(runs: int, *, name: str, n: int = 700, dim: int = 32) -> list[str]:
    """The head that dev chose, run by run: n rows, a linear truth and noise of the same size."""
    found = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(n, dim)).astype(np.float32)
        target = vectors @ rng.normal(size=dim) / np.sqrt(dim) + rng.normal(size=n)
        data = from_arrays(vectors, target, groups=range(n), task="regression", seed=seed)
        options = {"seed": seed, "hidden": 64}
        fit = heads.fit(data, protocol=protocol_of(options, name=name), dev_only=True)
        found.append(fit.best)
    return found


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    for name in ("warm", "paper"):
        best = best_heads(runs, name=name)
        deep = sum(head in FC_NAMES for head in best)
        counts = ", ".join(f"{head} {best.count(head)}" for head in sorted(set(best)))
        print(f"{name}: an FC head is best in {deep} of {runs} runs ({counts})", flush=True)


if __name__ == "__main__":
    main()
