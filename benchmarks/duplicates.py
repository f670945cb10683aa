"""How long near-duplicates take in a large cache, what memory, and whether a library is faster.

    python benchmarks/duplicates.py [--rows 76000] [--dim 2048] [--threshold 0.9] [--out FILE]
        [--whole]  all cosines as well, for comparison
        [--faiss]  faiss's exact range search as well, where faiss-cpu is installed

Question: does `embedcache duplicates` compare 76,000 x 2,048 vectors with each other in 180 s on
two cores within 1 GB? Each contender runs in a process of its own, whose peak of resident memory is
printed, on a cache of two kinds: "normal" vectors, in which no direction stands out (the hardest
case), and "network" vectors, positive and correlated as a last layer's are. In each, 1,000 rows are
near-copies of others.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from embedcache.alike import linking
from embedcache.alike.groups import alike_contents
from embedcache.spec import foreign
from embedcache.store.cache import Cache

COPIES = 1000
STEP = 2000


def make(folder: Path, *, rows: int, dim: int, kind: str) -> None:
    """A cache of so many vectors."""
    cache = Cache.open(folder, create=True)
    space = cache.space(foreign("net", dim), create=True)
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((64, dim)).astype(np.float32)
    last = np.empty((0, dim), np.float32)
    with space.writer(n_rows=rows, name="net", about={}) as writer:
        for start in range(0, rows, STEP):
            n = min(STEP, rows - start)
            block = rng.standard_normal((n, dim)).astype(np.float32)
            if kind == "network":
                inner = rng.standard_normal((n, 64)).astype(np.float32)
                block = np.maximum(inner @ mix / 8 + 0.3 * block, 0)
            n_copies = min(len(last), n, COPIES * STEP // rows)
            noise = rng.standard_normal((n_copies, dim)).astype(np.float32)
            size = np.linalg.norm(last[:n_copies], axis=1, keepdims=True) / np.sqrt(dim)
            block[:n_copies] = last[:n_copies] + 0.2 * size * noise
            digests = rng.integers(0, 256, (n, 32), dtype=np.uint8)
            writer.add(digests, block)
            last = block
        writer.commit()


def ours(folder: Path, threshold: float) -> str:
    """What the command does after the threshold."""
    cache = Cache.open(folder)
    [space] = cache.spaces()
    contents = [row.tobytes() for row in space.digests()]
    found = alike_contents(cache, space, threshold, contents=contents)
    return f"{int(found.degree.sum()) // 2} pairs"


def whole(folder: Path, threshold: float) -> str:
    """The same without bounds: every cosine is computed."""
    linking._basis = lambda *_: None
    return ours(folder, threshold)


def faiss(folder: Path, threshold: float) -> str:
    """faiss: an exact index of all vectors in memory, and a range search of each block."""
    import faiss as library  # type: ignore[import-not-found]

    [space] = Cache.open(folder).spaces()
    rows, _ = space.read(space.digests())
    linking.unit(rows)
    index = library.IndexFlatIP(space.dim)
    index.add(rows)
    del rows
    n = 0
    for start in range(0, index.ntotal, 2048):
        block = index.reconstruct_n(start, min(2048, index.ntotal - start))
        limits, _, _ = index.range_search(block, threshold)
        n += int(limits[-1]) - len(block)
    return f"{n // 2} pairs"


CONTENDERS = {"ours": ours, "whole": whole, "faiss": faiss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=76_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--faiss", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        said = CONTENDERS[given.run[0]](Path(given.run[1]), given.threshold)
        used = resource.getrusage(resource.RUSAGE_SELF)
        processor = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        seconds = time.perf_counter() - started
        print(f"{seconds:.1f} s | {processor:.0f} s | {used.ru_maxrss / 1024:,.0f} MB | {said} |")
        return
    names = ["ours", *(["whole"] if given.whole else []), *(["faiss"] if given.faiss else [])]
    lines = [
        f"{given.rows:,} x {given.dim:,} float32, threshold {given.threshold}, {os.cpu_count()} "
        f"cores, load {os.getloadavg()[0]:.1f}, {platform.system()}, numpy {np.__version__}.",
        "",
        "| vectors | how | seconds | of processors | peak memory | found |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for kind in ("normal", "network"):
            make(Path(folder, kind), rows=given.rows, dim=given.dim, kind=kind)
            for name in names:
                command = [sys.executable, __file__, "--threshold", str(given.threshold)]
                done = subprocess.run(
                    [*command, "--run", name, str(Path(folder, kind))],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                lines.append(f"| {kind} | {name} | {done.stdout.strip()}")
                for kept in Path(folder, kind, "local").rglob("*.groups"):
                    kept.unlink()
    print("\n".join(lines))
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
