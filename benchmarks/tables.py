"""Tables 2 and 3 of the paper at its size, on a device, from vectors in memory.

    python -m benchmarks.tables                        on the CPU
    python -m benchmarks.tables --device cuda          on a CUDA device, and whether its figures are
                                                       the CPU's on a small size
    python -m benchmarks.tables --compare 3000         the CPU and the device on 3,000 photos, only

Two targets, on Inception's vectors of all photos and of those with one face, and FaceNet's of those
with one face: the constant, ridge or logistic regression, and three depths at five rates each.
Vectors are made up; the labels follow from them, so that figures mean something. Nothing is read
from a cache, so that a bare machine with torch, numpy, scipy, polars and msgspec runs it.
`benchmarks/heads.py --tables` reads the same vectors from a cache.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# As `heads.fit` has it, which cannot set it once torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "4000")
if find_spec("google_crc32c") is None:  # the checksums of caches, of which there is none here
    sys.modules["google_crc32c"] = ModuleType("google_crc32c")

import numpy as np
import torch
from numpy.typing import NDArray

from heads import fit
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import Dataset
from heads.fitting.result import Fit

F32 = NDArray[np.float32]
PAPER_PHOTOS = 76_000
DEEP = ("0fc", "1fc", "2fc")
NETWORKS = (("inception", 2048, 0.5), ("facenet", 512, 0.1))  # floats, and the noise in them
FITS = [
    (target, *subset)
    for target in ("like_ratio", "gender")
    for subset in (("inception", None), ("inception", 1), ("facenet", 1))
]
COMPARED = [FITS[0], FITS[2], FITS[5]]


class Photos:
    """n photos of people who differ in 64 ways, seen by two networks, with votes and a gender."""

    def __init__(self, n: int, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.hidden = rng.standard_normal((n, 64), dtype=np.float32)
        score = 3 * np.tanh(self.hidden[:, :16] @ rng.normal(size=(16, 8)) / 3)
        score = score @ rng.normal(size=8) / 3
        self.swipes = rng.integers(20, 300, n)
        self.ratio = rng.binomial(self.swipes, 1 / (1 + np.exp(score.mean() - score))) / self.swipes
        told = self.hidden[:, 16:24] @ rng.normal(size=8)
        told += 2 * np.tanh(self.hidden[:, 24:32] @ rng.normal(size=8)) * self.hidden[:, 32]
        self.gender = np.where(told + 0.5 * rng.standard_normal(n) > 0, "F", "M")
        self.one_face = np.arange(n) % 4 != 0

    def vectors(self, dim: int, *, noise: float) -> F32:
        """Float32 (n, dim): rectified mixtures of what people differ in, and noise."""
        rng = np.random.default_rng(dim)
        mix = rng.standard_normal((64, dim), dtype=np.float32) / 8
        seen = self.hidden @ mix
        seen += np.float32(noise) * rng.standard_normal(seen.shape, dtype=np.float32)
        return np.maximum(seen, 0, out=seen)


def tables_on(
    device: str,
    n_photos: int = PAPER_PHOTOS,
    *,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    **options: Any,
) -> dict[str, Any]:
    """All six fits on a device: where the time went, in seconds, and every figure.

    report: called with what there is so far, after each fit.
    options: of `heads.fit`, for example `patience=None` for all 20 epochs of every rate.
    Of a JSON document: device, n_photos, options, fits (a list, see `_one`), seconds (their sums),
    seconds_all. `making` and `dataset` count before the fits and are no part of seconds_all.
    """
    found: dict[str, Any] = {"device": device, "name": _name(device), "n_photos": n_photos}
    found |= {"options": options, "fits": [], "seconds": {}, "seconds_all": 0.0}
    for target, network, faces, data, making, joining in _datasets(n_photos, FITS):
        one = _one(data, device, options)
        one |= {"target": target, "vectors": network, "subset": "1BBOX" if faces else "ALL"}
        one["seconds"] |= {"making": making, "dataset": joining}
        found["fits"].append(one)
        found["seconds"] = {
            name: round(sum(each["seconds"][name] for each in found["fits"]), 3)
            for name in one["seconds"]
        }
        found["seconds_all"] = found["seconds"]["fit"]
        report(found)
    return found


def compare_with_cpu(device: str, n_photos: int = 4000, **options: Any) -> dict[str, Any]:
    """Three small fits on the CPU and on a device: each figure of the one in the other's interval.

    Returns n_photos, rows (fit, head, metric, cpu and device with value, low, high, rate, epoch),
    and agree: whether all are. A rate or an epoch may differ where dev scores two alike.
    """
    rows = []
    for target, network, faces, data, _, _ in _datasets(n_photos, COMPARED):
        here, there = (_one(data, where, options)["figures"] for where in ("cpu", device))
        for mine, theirs in zip(here, there, strict=True):
            inside = theirs["low"] <= mine["value"] <= theirs["high"]
            inside &= mine["low"] <= theirs["value"] <= mine["high"]
            fitted = f"{target}, {network} {'1BBOX' if faces else 'ALL'}"
            row = {"fit": fitted, "head": mine["head"], "metric": mine["metric"]}
            rows.append(row | {"cpu": mine, "device": theirs, "agree": inside})
    return {"n_photos": n_photos, "agree": all(row["agree"] for row in rows), "rows": rows}


def _datasets(
    n: int, fits: Sequence[tuple[str, str, int | None]]
) -> Iterator[tuple[str, str, int | None, Dataset, float, float]]:
    """Per fit: target, network, faces, dataset, and the seconds that making and joining took."""
    photos = Photos(n)
    ids = np.array([f"u{k:06}" for k in range(n)])
    for network, dim, noise in NETWORKS:
        began = time.perf_counter()
        vectors = photos.vectors(dim, noise=noise)
        making = time.perf_counter() - began
        for target, _, faces in (one for one in fits if one[1] == network):
            began = time.perf_counter()
            rows = np.flatnonzero(photos.one_face) if faces else np.arange(n)
            values = photos.ratio if target == "like_ratio" else photos.gender
            weights = photos.swipes[rows] if target == "like_ratio" else None
            named = ids[rows].tolist()
            data = from_arrays(
                vectors[rows], values[rows], weights=weights, ids=named, groups=named, target=target
            )
            yield target, network, faces, data, making, time.perf_counter() - began
            making = 0.0


def _one(data: Dataset, device: str, options: dict[str, Any]) -> dict[str, Any]:
    """One fit: seconds by part, figures, warnings, and the device's most memory in MiB.

    Seconds: linear (standardising, ridge or logistic regression on both scalings), training (FC
    heads, with the copy to the device), rest (dev and test figures, intervals); fit is all three.
    """
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fit(data, device=device, **options)
    rows = {row.head: row for row in found.rows}
    linear = sum(rows[name].seconds for name in ("ridge", "logistic") if name in rows)
    training = max((rows[name].seconds for name in DEEP if name in rows), default=0.0)
    seconds = {"fit": found.seconds, "linear": linear, "training": training}
    seconds["rest"] = found.seconds - linear - training
    return {
        "n": found.n,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "figures": _figures(found),
        "warnings": sorted({str(one.message) for one in caught}),
        "peak_mib": round(torch.cuda.max_memory_allocated(device) / 2**20) if cuda else None,
    }


def _figures(found: Fit) -> list[dict[str, Any]]:
    return [
        {
            "head": row.head,
            "metric": row.metric,
            "value": row.value,
            "low": row.low,
            "high": row.high,
            "dev": row.dev,
            "rate": None if np.isnan(row.learning_rate) else row.learning_rate,
            "epoch": row.epoch,
        }
        for row in found.rows
    ]


def _name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


def _line(one: dict[str, Any]) -> str:
    """A fit in one line."""
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in one["seconds"].items())
    metric = "mse" if one["target"] == "like_ratio" else "accuracy"
    figures = ", ".join(
        f"{row['head']} {row['value']:.4f}" + (f" (epoch {row['epoch']})" if row["epoch"] else "")
        for row in one["figures"]
        if row["metric"] == metric
    )
    return f"  {one['vectors']} {one['subset']}, {one['target']}: {seconds} s; {figures}"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--photos", type=int, default=PAPER_PHOTOS)
    parser.add_argument("--patience", type=int, default=4, help="0 runs all 20 epochs")
    parser.add_argument("--compare", type=int, help="compare with the CPU on so many photos only")
    parser.add_argument("--products", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    options = {"patience": chosen.patience or None, "products": chosen.products}
    found: dict[str, Any] = {}
    if not chosen.compare:
        found = tables_on(
            chosen.device, chosen.photos, **options,
            report=lambda so_far: print(_line(so_far["fits"][-1]), file=sys.stderr, flush=True),
        )  # fmt: skip
        said = f"{found['seconds_all']:.1f} s: {found['seconds']}"
        print(f"{chosen.photos:,} photos, {found['name']}: {said}", file=sys.stderr)
    if chosen.compare or chosen.device != "cpu":
        found["compared"] = compare_with_cpu(chosen.device, chosen.compare or 4000, **options)
        for row in found["compared"]["rows"]:
            ours, theirs = row["cpu"]["value"], row["device"]["value"]
            said = "" if row["agree"] else ": OUTSIDE the interval"
            print(f"  {row['fit']}, {row['head']} {row['metric']}: ", end="", file=sys.stderr)
            print(f"{ours:.6f} on the CPU, {theirs:.6f} there{said}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
