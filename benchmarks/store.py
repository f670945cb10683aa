"""How fast the store is, as ratios to plain files and to other formats, measured in one run.

    python benchmarks/store.py [--rows 76000] [--dim 2048] [--rounds 5] [--folder DIR] [--out FILE]

Each round measures every contender once, in a new order; the table gives medians. "Cold" means that
the files were evicted from the page cache first (posix_fadvise; only on Linux).
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import zarr

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rounds import medians, print_table
from embedcache import disk
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.index import Table
from embedcache.store.space import Space
from embedcache.upkeep.compaction import compact

WRITE_ROWS = 256
Contenders = dict[str, Callable[[], object]]


def rows(what: str, took: dict[str, float], *, to: str) -> list[str]:
    """Lines of the table: medians, and `to`'s median over each."""
    return [
        f"| {what} | {name} | {seconds:.3f} s | {took[to] / seconds:.2f} |"
        for name, seconds in took.items()
    ]


def forget_pages(folder: Path) -> None:
    """Evict a folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def contents(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32), dtype=np.uint8)


def write_ours(space: Space, digests: np.ndarray, vectors: np.ndarray) -> None:
    with space.writer(n_rows=len(vectors), name="net", about={}) as writer:
        for start in range(0, len(vectors), WRITE_ROWS):
            part = slice(start, start + WRITE_ROWS)
            writer.add(digests[part], vectors[part])


def write_raw(path: Path, vectors: np.ndarray, *, sync: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for start in range(0, len(vectors), WRITE_ROWS):
        os.write(fd, vectors[start : start + WRITE_ROWS].data)
    if sync:
        os.fdatasync(fd)
    os.close(fd)


def reading(folder: Path, n: int, dim: int, rounds: int) -> list[str]:
    """Full reads, warm and cold, and 256 random rows, for each format."""
    vectors = np.random.default_rng(1).standard_normal((n, dim), np.float32)
    digests = contents(n)
    space = Cache.open(folder / "a", create=True).space(foreign("net", dim), create=True)
    for start in range(0, n, 16_384):
        write_ours(space, digests[start : start + 16_384], vectors[start : start + 16_384])
    vectors.tofile(folder / "raw")
    np.save(folder / "v.npy", vectors)
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_dataset("v", data=vectors, chunks=(WRITE_ROWS, dim), fletcher32=True)
    table = pa.table({"v": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)})
    with pa.OSFile(str(folder / "v.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as w:
        w.write_table(table)
    del table
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
    out = np.empty_like(vectors)
    segments = [segment.folder for segment in space.segments()]
    shuffled = np.random.default_rng(2).permutation(n)

    def raw() -> None:
        with (folder / "raw").open("rb", buffering=0) as file:
            view = out.data.cast("B")
            while view:
                view = view[file.readinto(view) :]

    def with_zarr() -> None:
        start = 0
        for segment in segments:
            array = zarr.open_array(segment / "embedding", mode="r")
            n_rows = array.shape[0]
            out[start : start + n_rows] = array[:]
            start += n_rows

    def with_h5py() -> None:
        with h5py.File(folder / "v.h5") as file:
            file["v"].read_direct(out)

    def with_arrow() -> None:
        column = pa.ipc.open_file(pa.memory_map(str(folder / "v.arrow"))).read_all()["v"]
        np.copyto(out, column.combine_chunks().flatten().to_numpy().reshape(n, dim))

    contenders: Contenders = {
        "raw readinto": raw,
        "embedcache, as stored": lambda: space.read(digests, out=out),
        "embedcache, shuffled": lambda: space.read(digests[shuffled], out=out),
        "np.load": lambda: np.load(folder / "v.npy"),
        "h5py, chunked, Fletcher-32": with_h5py,
        "zarr-python, CRC32C": with_zarr,
        "Arrow IPC, mapped, copied out": with_arrow,
    }
    space.read(digests, out=out)
    assert (out == vectors).all()
    lines = []
    for name, before in (("warm", lambda: None), ("cold", lambda: forget_pages(folder))):
        took = medians(contenders, rounds=rounds, before=before)
        lines += rows(f"full read, {name}", took, to="raw readinto")
    mapped = np.memmap(folder / "raw", np.float32, "r", shape=(n, dim))
    few = np.random.default_rng(3).integers(0, n, (200, 256))
    turn = iter(range(10_000))
    took = medians(
        {
            "np.memmap": lambda: np.array(mapped[few[next(turn) % 200]]),
            "embedcache": lambda: space.read(digests[few[next(turn) % 200]]),
        },
        rounds=100,
    )
    lines += [
        f"| 256 random rows, warm | {label} | {1e3 * seconds:.2f} ms | "
        f"{seconds / took['np.memmap']:.1f} x np.memmap |"
        for label, seconds in took.items()
    ]
    return lines


def writing(folder: Path, n: int, dim: int, rounds: int) -> list[str]:
    """Appends in batches of 256 rows, into the page cache and down to the disk."""
    vectors = np.random.default_rng(1).standard_normal((n, dim), np.float32)
    digests = contents(n)
    real = disk.sync, disk.sync_folder

    def ours() -> None:
        space = Cache.open(folder / "w", create=True).space(foreign("net", dim), create=True)
        for start in range(0, n, 16_384):
            write_ours(space, digests[start : start + 16_384], vectors[start : start + 16_384])

    def clean() -> None:
        """Start from nothing, in memory that this machine's host has just handed over.

        Without that a raw write of one large file takes 0.12 or 0.9 s here, by chance.
        """
        shutil.rmtree(folder / "w", ignore_errors=True)
        write_raw(folder / "raw.w", vectors, sync=False)
        (folder / "raw.w").unlink()

    lines = []
    for sync in (False, True):
        if not sync:
            disk.sync, disk.sync_folder = (lambda fd: None), (lambda path: None)
        raw = partial(write_raw, folder / "raw.w", vectors, sync=sync)
        took = medians({"raw write": raw, "embedcache": ours}, rounds=rounds, before=clean)
        disk.sync, disk.sync_folder = real
        lines += rows("append, to the disk" if sync else "append, page cache", took, to="raw write")
        clean()
    return lines


def opening(folder: Path, rounds: int) -> list[str]:
    """A cache of 1,000 segments: open, find the space by name, look up 100 photos."""
    path = folder / "many"
    real = disk.sync, disk.sync_folder
    disk.sync, disk.sync_folder = (lambda fd: None), (lambda path: None)
    space = Cache.open(path, create=True).space(foreign("net", 8), create=True)
    digests = contents(20_000)
    for start in range(0, 20_000, 20):
        write_ours(space, digests[start : start + 20], np.ones((20, 8), np.float32))
    disk.sync, disk.sync_folder = real
    Cache.open(path).find("net").status(digests[:1])

    def look() -> None:
        assert (Cache.open(path).find("net").status(digests[:100]) == 1).all()

    took = medians({"open": look}, rounds=max(rounds, 9))["open"]
    began = time.perf_counter()
    compact(Cache.open(path))
    compacted = time.perf_counter() - began
    return [
        f"| open 1,000 segments, find, look up 100 | embedcache | {1e3 * took:.1f} ms | |",
        f"| compact them | embedcache | {compacted:.2f} s | |",
    ]


def looking_up(folder: Path, rounds: int, n: int = 10_000_000) -> list[str]:
    """76,000 look-ups among 1e7 digests, in the table as it is mapped from its file."""
    digests = contents(n)
    table = Table.empty().extended([(0, digests, n)], renumbered=np.empty(0, np.int64))
    table.save(folder / "t", ["one"])
    del table
    wanted = digests[np.random.default_rng(4).integers(0, n, 76_000)].copy()
    del digests
    start = time.perf_counter()
    loaded = Table.load(folder / "t")
    load = time.perf_counter() - start
    assert loaded is not None
    assert (loaded.table.find(wanted) >= 0).all()
    find = partial(loaded.table.find, wanted)
    took = medians({"find": find}, rounds=max(rounds, 9))
    return [
        f"| 76,000 look-ups among 1e7 | embedcache | {1e3 * took['find']:.0f} ms | |",
        f"| load and check that index | embedcache | {1e3 * load:.0f} ms | |",
    ]


def memory(folder: Path, n: int, dim: int) -> list[str]:
    """Peak memory of a process that reads 10,000 rows, less that of one that reads one row."""
    script = f"""
import sys
import numpy as np
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from embedcache.store import Cache
space = Cache.open({str(folder / "a")!r}).find("net")
digests = np.random.default_rng(0).integers(0, 256, ({n}, 32), dtype=np.uint8)
space.read(digests[np.random.default_rng(5).permutation({n})[:int(sys.argv[1])]])
# Not ru_maxrss: a child inherits the peak of its parent.
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
    peak = []
    for rows in (1, 10_000):
        command = [sys.executable, "-c", script, str(rows)]
        peak.append(int(subprocess.run(command, check=True, capture_output=True).stdout) / 1024)
    subset = 10_000 * dim * 4 / 2**20
    return [
        f"| peak memory above the subset of {subset:.0f} MiB | embedcache | "
        f"{peak[1] - peak[0] - subset:.0f} MiB | |"
    ]


def measured(given: argparse.Namespace, folder: Path) -> list[str]:
    return [
        "| what | who | median | raw / this |",
        "|---|---|---|---|",
        *reading(folder, given.rows, given.dim, given.rounds),
        *memory(folder, given.rows, given.dim),
        *writing(folder, given.rows, given.dim, given.rounds),
        *opening(folder, given.rounds),
        *looking_up(folder, given.rounds),
    ]


if __name__ == "__main__":
    print_table(
        __doc__,
        measured,
        rows=76_000,
        rounds=5,
        versions=f"zarr {zarr.__version__}, numpy {np.__version__}",
    )
