"""A declared memory limit holds: what is read of a large cache is let go again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedcache.spec import foreign
from embedcache.store.cache import Cache

ROWS, DIM, LIMIT_MB = 40_000, 512, 16

SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
import heads
from heads import dataset
from embedcache.store import Cache
folder, name, target, limit = sys.argv[1:]
limit = int(limit) or None
data = dataset.load(
    Cache.open(folder + "/c"), name, folder + "/labels.parquet", target=target, memory_bytes=limit
)
fit = heads.fit(
    data, heads=["1fc"], epochs=1, hidden=8, learning_rates=[1e-3], resamples=20,
    memory_bytes=limit, margin=0.0,
)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak": int(peak.split()[1]) * 1024, **fit.document()}))
"""


def run(folder: Path, name: str, target: str, *, limit: int) -> dict[str, Any]:
    words = [sys.executable, "-c", SCRIPT, str(folder), name, target, str(limit)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40,000 rows of 512 floats (82 MB) and of 2; the label table is in another order."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    cache = Cache.open(folder / "c", create=True)
    digests = rng.integers(0, 256, (ROWS, 32), dtype=np.uint8)
    ids = [f"u{k}" for k in range(ROWS)]
    cache.record_photos("photos", ids, digests)
    signal = rng.standard_normal(ROWS, dtype=np.float32)
    noisy = signal + rng.standard_normal(ROWS, dtype=np.float32)
    for name, dim in (("large", DIM), ("small", 2)):
        space = cache.space(foreign(name, dim), create=True)
        for start in range(0, ROWS, 10_000):
            some = slice(start, start + 10_000)
            vectors = rng.standard_normal((10_000, dim), dtype=np.float32)
            vectors[:, 0] = signal[some]
            with space.writer(n_rows=10_000, name=name, about={}) as writer:
                writer.add(digests[some], vectors)
    table = pl.DataFrame({"user_id": ids, "score": signal, "side": noisy > 0})
    table.sample(fraction=1, shuffle=True, seed=1).write_parquet(folder / "labels.parquet")
    return folder


@pytest.fixture(scope="module")
def without_vectors(folder: Path) -> int:
    """The peak, in bytes, of the same fit on vectors of 2 floats."""
    return int(run(folder, "small", "score", limit=0)["peak"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM is Linux's")
@pytest.mark.parametrize("target", ["score", pytest.param("side", marks=pytest.mark.torture)])
def test_a_fit_from_a_large_cache_stays_within_its_limit(
    folder: Path, without_vectors: int, target: str
) -> None:
    large = run(folder, "large", target, limit=LIMIT_MB * 1_000_000)
    held = run(folder, "large", target, limit=0)
    whole = ROWS * DIM * 4
    assert held["peak"] - without_vectors > whole
    # Besides the vectors: a few matrices of dim x dim in float64, and the block being read.
    work = 6 * 8 * DIM * DIM + 30_000_000
    assert large["peak"] - without_vectors < LIMIT_MB * 1_000_000 + work < 0.75 * whole
    first, second = (
        {(row["head"], row["metric"]): row["value"] for row in one["rows"]} for one in (large, held)
    )
    # Linear heads to rounding; FC heads saw their batches in another order.
    for key in first:
        tolerance = 0.1 if key[0].endswith("fc") else 1e-4
        assert first[key] == pytest.approx(second[key], rel=tolerance, abs=2e-3)
