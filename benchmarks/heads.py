"""How fast heads train, and against what; every ratio is taken within one run.

    python benchmarks/heads.py                     the sweep, against loops and the GEMM rate
    python benchmarks/heads.py --busy 2            the same beside so many processes that compute
    python benchmarks/heads.py --tables            Tables 2 and 3 at the paper's size, from a cache
    python benchmarks/heads.py --peers             MLPRegressor and a PyTorch loop, same protocol

Vectors are made up; the labels follow from them, so that dev figures mean something.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

# As `heads.fit` has it, which cannot set it once torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

# A script's folder comes first on the path, and this file has the name of the package: step aside,
# here and where another benchmark imports the package.
sys.path[:] = [one for one in sys.path if Path(one).resolve() != Path(__file__).resolve().parent]
if __name__ == "heads":
    del sys.modules["heads"]

from benchmarks import plain_loop  # noqa: E402
from benchmarks.plain_loop import BATCH, HIDDEN  # noqa: E402
from benchmarks.tables import FITS, NETWORKS, Photos  # noqa: E402
from embedcache.spec import foreign  # noqa: E402
from embedcache.store.cache import Cache  # noqa: E402
from embedcache.store.faces import Faces  # noqa: E402
from heads import dataset, fit  # noqa: E402
from heads.dataset.arrays import from_arrays  # noqa: E402
from heads.dataset.rows import Dataset  # noqa: E402
from heads.fitting import linear  # noqa: E402
from heads.fitting.objective import Objective  # noqa: E402
from heads.fitting.protocol import RATES, Protocol  # noqa: E402
from heads.fitting.train import train  # noqa: E402
from heads.head import Layer  # noqa: E402

F32 = NDArray[np.float32]


def ratios(n: int, dim: int) -> Dataset:
    """Like ratios from one set of vectors."""
    photos = Photos(n)
    ids = [str(k) for k in range(n)]
    return from_arrays(
        photos.vectors(dim, noise=0.5), photos.ratio, weights=photos.swipes, ids=ids, groups=ids
    )


def products(dim: int, width: int, steps: int) -> float:
    """Seconds that the two products of a training step take, nothing else, `steps` times over."""
    inputs, weight = torch.randn(BATCH, dim), torch.randn(width, dim)
    slope, out = torch.randn(BATCH, width), torch.empty(width, dim)
    both = torch.empty(BATCH, width)
    began = time.perf_counter()
    for _ in range(steps):
        torch.mm(inputs, weight.T, out=both)
        torch.mm(slope.T, inputs, out=out)
    return time.perf_counter() - began


@contextmanager
def others(n: int) -> Iterator[None]:
    """n processes that compute beside this one, as on a machine that is shared."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()


def sweep(n: int, dim: int, rounds: int, *, busy: int) -> None:
    """Five rates of a dim-256-1 head: one pass, against five loops and against bare products.

    A round is 32 steps of each in turn, so that a ratio is of figures half a second apart: other
    work on the machine then spoils rounds and not the median. busy: processes that compute beside.
    """
    whole = ratios(n, dim)
    whole = replace(whole, subset=np.where(np.arange(n) < 64, 1, 0).astype(np.uint8))
    part, dev = whole.part("train"), whole.part("dev")
    standard = linear.fit_standard(part)
    rows = TensorDataset(
        torch.from_numpy(standard.apply(part.read())),
        torch.tensor(part.targets[:, 0], dtype=torch.float32),
        torch.tensor(part.share * len(part), dtype=torch.float32),
    )
    width, steps, five = HIDDEN * len(RATES), 32, len(RATES)
    found: list[tuple[float, float, float]] = []
    batches = Objective.batches

    def watched(self: Objective, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of an epoch; after every 32 the clock stops and the peers run."""
        began, taken = time.perf_counter(), 0
        for batch in batches(self, epoch):
            yield batch
            taken += 1
            if taken == steps:
                ours = time.perf_counter() - began
                found.append((ours, products(dim, width, steps), five * loop()))
                began, taken = time.perf_counter(), 0

    Objective.batches = watched  # type: ignore[method-assign]
    per_epoch = -(-len(part) // BATCH)
    protocol = Protocol(epochs=max(1, rounds * steps // per_epoch), patience=None)
    start = Layer(np.zeros((1, 1, dim), np.float32), np.zeros((1, 1), np.float32))
    with plain_loop.apart(rows, steps) as loop, others(busy):
        train(
            ["1fc"], part, dev,
            standard=standard, link="sigmoid", loss="mse", start=start, protocol=protocol,
        )  # fmt: skip
    Objective.batches = batches  # type: ignore[method-assign]
    ours, bare, loops = (np.array(one[2:]) for one in zip(*found, strict=True))

    def told(values: NDArray[np.float64], digits: int) -> str:
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    epoch = per_epoch / steps
    print(f"{n:,} x {dim}, {dim}-256-1, {five} rates, {torch.get_num_threads()} threads, ", end="")
    print(f"{busy} busy processes beside; ", end="")
    print(f"an epoch in seconds, median and quartiles of {len(ours)} rounds")
    print(f"  one pass: {told(epoch * ours, 2)}")
    print(f"  {five} DataLoader loops: {told(epoch * loops, 2)}; {told(loops / ours, 2)} x")
    rate = steps * 4 * BATCH * dim * width / np.median(bare) / 1e9
    print(f"  bare products: {told(epoch * bare, 2)}, {rate:.0f} GFLOP/s")
    print(f"  share of the GEMM rate: {told(bare / ours, 2)}")
    if busy:
        return
    model = plain_loop.network(dim)
    began = time.perf_counter()
    plain_loop.epoch(model, plain_loop.adam(model), rows, workers=2)
    print(f"  {five} loops, num_workers=2, one epoch times {five}: ", end="")
    print(f"{five * (time.perf_counter() - began):.1f}", flush=True)


def make_cache(folder: Path, n: int) -> Path:
    """A cache of both vectors of n photos, three quarters with one face, and a label table."""
    photos = Photos(n)
    ids = [f"u{k:06}" for k in range(n)]
    digests = np.random.default_rng(1).integers(0, 256, (n, 32), dtype=np.uint8)
    cache = Cache.open(folder / "photos.cache", create=True)
    cache.record_photos("photos", ids, digests)
    for name, dim, noise in NETWORKS:
        space = cache.space(foreign(name, dim), create=True)
        vectors = photos.vectors(dim, noise=noise)
        for start in range(0, n, 16_384):
            some = slice(start, start + 16_384)
            with space.writer(n_rows=len(digests[some]), name=name, about={}) as writer:
                writer.add(digests[some], vectors[some])
    counts = np.where(photos.one_face, 1, 2)
    total = int(counts.sum())
    faces = Faces(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.zeros((total, 4), np.float32),
        np.ones(total, np.float32),
        np.zeros((total, 5, 2), np.float32),
    )
    with cache.face_space({"name": "detector"}, create=True).writer(n_rows=n, about={}) as writer:
        writer.add(digests, faces)
    table = {"user_id": ids, "like_ratio": photos.ratio, "swipes": photos.swipes}
    pl.DataFrame(table | {"gender": photos.gender}).write_csv(folder / "labels.csv")
    return folder / "labels.csv"


def evict(folder: Path) -> None:
    """Ask the kernel to forget the files' pages, so that they are read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def tables(n: int, place: Path, numbers: list[int], options: dict[str, Any]) -> None:
    """Both tables at the paper's size: two targets on ALL and 1BBOX, from a cache on disk."""
    place.mkdir(parents=True, exist_ok=True)
    labels = place / "labels.csv"
    labels = labels if labels.is_file() else make_cache(place, n)
    evict(place / "photos.cache")
    reading = fitting = 0.0
    for number in numbers:
        target, name, faces = FITS[number]
        began = time.perf_counter()
        data = dataset.load(
            Cache.open(place / "photos.cache"), name, labels, target=target, faces=faces,
            weight="swipes" if target == "like_ratio" else None,
        )  # fmt: skip
        read = time.perf_counter() - began
        found = fit(data, **options)
        metric = "mse" if target == "like_ratio" else "accuracy"
        told = ", ".join(
            f"{row.head} {row.value:.4f} ({row.seconds:.1f} s, epoch {row.epoch})"
            for row in found.rows
            if row.metric == metric
        )
        print(
            f"  {name} {'1BBOX' if faces else 'ALL'}, {target}: read {read:.1f} s, fitted "
            f"{found.seconds:.1f} s: {told}",
            flush=True,
        )
        reading += read
        fitting += found.seconds
    print(
        f"{len(numbers)} of {len(FITS)} fits of Tables 2 and 3, {n:,} photos, "
        f"{options['device']}: {reading + fitting:.0f} s, of which reading the cache {reading:.1f}"
    )


def peers(n: int, dim: int) -> None:
    """The same protocol elsewhere: batch, epochs, rates, decay, and dev choosing epoch and rate."""
    data = replace(ratios(n, dim), weights=None, counts=False)
    part, dev = data.part("train"), data.part("dev")
    print(f"{n:,} x {dim}, hidden {HIDDEN}, 20 epochs, {len(RATES)} rates; dev MSE, seconds")
    for name, more in (
        ("heads.fit as it comes", {}),
        ("heads.fit, the paper's start", {"start": "constant", "margin": 0.0, "patience": None}),
    ):
        found = fit(data, heads=["1fc"], **more)  # type: ignore[arg-type]
        row = next(row for row in found.rows if row.head == "1fc")
        print(f"  {name}, baselines and intervals too: {row.dev:.6f}, {found.seconds:.1f}")
    standard = linear.fit_standard(part)
    held, seen = standard.apply(part.read()), standard.apply(dev.read())
    truth = dev.targets[:, 0]
    began = time.perf_counter()
    best = min(loop_dev(held, part.targets[:, 0], seen, truth, rate) for rate in RATES)
    print(
        f"  a DataLoader loop with Adam: {best:.6f}, {time.perf_counter() - began:.1f}", flush=True
    )
    began = time.perf_counter()
    best = min(scikit_dev(held, part.targets[:, 0], seen, truth, rate) for rate in RATES)
    print(f"  MLPRegressor: {best:.6f}, {time.perf_counter() - began:.1f}", flush=True)


def loop_dev(
    rows: F32, targets: NDArray[np.float64], seen: F32, truth: NDArray[np.float64], rate: float
) -> float:
    """The best dev MSE of 20 epochs, the rate decayed 100-fold by step."""
    torch.manual_seed(0)
    model = plain_loop.network(rows.shape[1])
    optimizer = plain_loop.adam(model, rate)
    ones = torch.ones(len(rows))
    held = TensorDataset(torch.from_numpy(rows), torch.tensor(targets, dtype=torch.float32), ones)
    steps = 20 * -(-len(rows) // BATCH)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.01 ** (step / steps))
    optimizer.register_step_post_hook(lambda *_: decay.step())
    best = float("inf")
    for _ in range(20):
        plain_loop.epoch(model, optimizer, held)
        with torch.no_grad():
            guess = model(torch.from_numpy(seen))[:, 0].numpy()
        best = min(best, float(np.mean((guess - truth) ** 2)))
    return best


def scikit_dev(
    rows: F32, targets: NDArray[np.float64], seen: F32, truth: NDArray[np.float64], rate: float
) -> float:
    """The same with MLPRegressor, whose output is linear; the rate decays epoch by epoch."""
    from sklearn.neural_network import MLPRegressor

    model = MLPRegressor(
        hidden_layer_sizes=(HIDDEN,), batch_size=BATCH, learning_rate_init=rate, alpha=0,
        random_state=0,
    )  # fmt: skip
    best = float("inf")
    for epoch in range(20):
        if epoch:
            model._optimizer.learning_rate_init = rate * 0.01 ** (epoch / 20)
        model.partial_fit(rows, targets)
        best = min(best, float(np.mean((model.predict(seen) - truth) ** 2)))
    return best


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--photos", type=int, default=76_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--folder", type=Path, help="keep the tables' cache here")
    parser.add_argument("--fit", type=int, action="append", help="only these of the tables' fits")
    parser.add_argument("--patience", type=int, default=4, help="0 runs all 20 epochs")
    parser.add_argument("--busy", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.tables:
        options = {"patience": chosen.patience or None, "device": "cpu"}
        with tempfile.TemporaryDirectory() as scratch:
            place = chosen.folder or Path(scratch)
            numbers = chosen.fit or list(range(len(FITS)))
            tables(chosen.photos, place, numbers, options)
            if torch.cuda.is_available():
                tables(chosen.photos, place, numbers, options | {"device": "cuda"})
            else:
                print("no CUDA device here")
    elif chosen.peers:
        peers(chosen.photos, chosen.dim)
    else:
        sweep(chosen.photos, chosen.dim, chosen.rounds, busy=chosen.busy)


if __name__ == "__main__":
    main()
