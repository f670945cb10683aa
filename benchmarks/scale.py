"""What a cache of 1e7 rows costs: seconds and peak memory of each command, in a process of its own.

    python benchmarks/scale.py [--rows 10000000] [--segments 700] [--dim 16] [--planned 1000000]
                               [--peer] [--folder DIR] [--out FILE]
    python benchmarks/scale.py --laws      what a row and a segment cost, and 1e9 rows by that

The cache is synthetic: digests and vectors are random, photos have ids and no files. All of it is
written through the store's own writers, and as many ids are recorded as there are rows. The default
size takes some 3 GB of disk while it runs. The peer is one Parquet file with an id and a vector in
each row, read by Polars.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from embedcache import disk
from embedcache.spec import foreign
from embedcache.store.cache import Cache

if TYPE_CHECKING:
    from embedcache.extraction.plan import Plan

NAME, SCOPE, LOOKED_UP, PULLED, PUSHED = "net", "photos-00000000", 76_000, 500, 10
ID_ROWS = 1 << 18  # in a segment of ids, as `Cache.record_photos` writes them
AIM_BYTES = 1.5e9
BILLION, BILLION_SEGMENTS = 10**9, 10**9 // 65_536 + 1
# Above a million rows, where ids and index are no longer kept in memory.
LAWS = ((1_200_000, 50), (1_600_000, 50), (2_400_000, 50), (1_200_000, 1_500))


def contents(first: int, last: int) -> np.ndarray:
    """The digests of photos number `first` to `last`, (n, 32): the same whoever asks."""
    found = np.empty((last - first, 32), np.uint8)
    for block in range(first // ID_ROWS, -(-last // ID_ROWS)):
        all_of_it = np.random.default_rng(block).integers(0, 256, (ID_ROWS, 32), dtype=np.uint8)
        start = block * ID_ROWS
        mine = all_of_it[max(0, first - start) : last - start]
        at = max(first, start) - first
        found[at : at + len(mine)] = mine
    return found


def ids(numbers: Sequence[int]) -> list[str]:
    """Photo ids as a folder of shards has them, 17 bytes each."""
    return [f"{i // 10_000:04}/{i:08}.jpg" for i in numbers]


def some(n: int, rows: int) -> list[int]:
    """Up to n of the photos, by their numbers, from all parts of the cache and in no order."""
    n = min(n, rows)
    return [i * rows // n for i in np.random.default_rng(4).permutation(n).tolist()]


def digests_of(numbers: Sequence[int]) -> np.ndarray:
    """The digests of some photos, (n, 32), in their order."""
    wanted = np.array(numbers)
    found = np.empty((len(wanted), 32), np.uint8)
    for block in np.unique(wanted // ID_ROWS).tolist():
        mine = np.flatnonzero(wanted // ID_ROWS == block)
        start = block * ID_ROWS
        found[mine] = contents(start, start + ID_ROWS)[wanted[mine] - start]
    return found


def fill(path: Path, *, first: int, last: int, segments: int, dim: int) -> None:
    """Write vectors and ids of some photos, without waiting for the disk."""
    disk.sync, disk.sync_folder = (lambda fd: None), (lambda path: None)
    cache = Cache.open(path, create=True)
    space = cache.space(foreign(NAME, dim), create=True)
    rng, cuts = np.random.default_rng(1), np.linspace(first, last, segments + 1).astype(int)
    shown = time.monotonic()
    for number, (a, b) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)):
        digests = contents(a, b)
        with space.writer(n_rows=b - a, name=NAME, about={"device": "cpu"}) as writer:
            for start in range(0, b - a, 4096):
                part = digests[start : start + 4096]
                writer.add(part, rng.standard_normal((len(part), dim), np.float32))
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{number + 1:,} of {segments:,} segments", file=sys.stderr, flush=True)
    before = ""
    for start in range(first, last, ID_ROWS):
        stop = min(start + ID_ROWS, last)
        before = new_id(before)
        names = ids(range(start, stop))
        cache.photo_ids.write(SCOPE, names, contents(start, stop), segment_id=before)


def new_id(before: str) -> str:
    """A segment id later than one before."""
    from embedcache.store.manifest import new_segment_id

    return new_segment_id(after=before)


def fill_all(given: argparse.Namespace) -> str:
    fill(given.at / "c", first=0, last=given.rows, segments=given.segments, dim=given.dim)
    size = sum(path.stat().st_size for path in (given.at / "c").rglob("*") if path.is_file())
    return f"{size / 1e9:.2f} GB"


def opening(given: argparse.Namespace) -> str:
    space = Cache.open(given.at / "c").find(NAME)
    assert (space.status(digests_of(some(100, given.rows))) == 1).all()
    return "100 photos found"


def looking_up(given: argparse.Namespace) -> str:
    names = ids(some(LOOKED_UP, given.rows))
    vectors, found = Cache.open(given.at / "c").vectors(NAME, names, scope=SCOPE)
    assert found.all()
    return f"{len(vectors):,} vectors"


def informing(given: argparse.Namespace) -> str:
    from embedcache.upkeep.inventory import summarise

    found = summarise(Cache.open(given.at / "c"))
    return f"{found.spaces[0][2].ok:,} photos, {found.n_ids:,} ids"


def planning(given: argparse.Namespace, *, n: int) -> str:
    """What a rerun does between the digests and the end: plan, and record the ids."""
    from embedcache.extraction.plan import plan
    from embedcache.photos.digests import Digests
    from embedcache.photos.table import Photos
    from embedcache.texts import Below, Growing, Texts, few_as_tuple

    names = Growing()
    for start in range(0, n, ID_ROWS):
        names.add(ids(range(start, min(start + ID_ROWS, n))))
    listed = few_as_tuple(Texts(*names.arrays()))
    photos = Photos(listed, Below("/photos", listed), SCOPE)  # as `Photos.read` makes them
    digests = Digests(contents(0, n), {}, 0, np.empty(0, np.int64))
    given.began = time.perf_counter()  # the photos' own list is not the plan's
    cache = Cache.open(given.at / "c")
    cache.record_photos(SCOPE, photos.ids, digests.value)
    todo: tuple[Plan, Any] = plan(photos, digests, [cache.find(NAME)], retry_failed=False)
    assert len(todo[0]) == 0
    return f"{todo[1][0].hit:,} present"


def reading(given: argparse.Namespace) -> str:
    from embedcache.photos.table import Photos

    with (given.at / "photos.csv").open("w") as file:
        file.write("photo_id,photo\n")
        for start in range(0, given.rows, ID_ROWS):
            names = ids(range(start, min(start + ID_ROWS, given.rows)))
            file.writelines(f"{name},photos/{name}\n" for name in names)
    given.began = time.perf_counter()
    return f"{len(Photos.read(given.at / 'photos.csv')):,} photos"


def pushing(given: argparse.Namespace) -> str:
    from embedcache.sharing.share import push

    moved = push(Cache.open(given.at / "c"), str(given.at / "shared"))
    assert not moved.problems
    return f"{moved.rows:,} rows"


def adding(given: argparse.Namespace) -> str:
    fill(given.at / "c", first=given.rows, last=given.rows + PUSHED, segments=1, dim=given.dim)
    return f"{PUSHED} photos"


def pulling(given: argparse.Namespace) -> str:
    from embedcache.sharing.share import pull

    wanted = digests_of(some(PULLED, given.rows))
    given.began = time.perf_counter()  # making the digests is not the pull's
    into = Cache.open(given.at / "few", create=True)
    moved = pull(str(given.at / "shared"), into, photos=wanted)
    assert moved.rows == min(PULLED, given.rows), moved
    return f"{moved.bytes / 1e6:.2f} MB"


def forgetting(given: argparse.Namespace) -> str:
    from embedcache.upkeep.forgetting import forget

    done = forget(Cache.open(given.at / "c"), ids([given.rows // 2 + 1]), scope=SCOPE)
    assert (done.ids, done.rows) == (1, 1), done
    return "1 row"


def writing_peer(given: argparse.Namespace) -> str:
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [("photo_id", pa.string()), ("vector", pa.list_(pa.float32(), given.dim))]
    with pq.ParquetWriter(given.at / "peer.parquet", pa.schema(fields)) as file:
        for start in range(0, given.rows, ID_ROWS):
            names = ids(range(start, min(start + ID_ROWS, given.rows)))
            flat = np.random.default_rng(start).standard_normal(len(names) * given.dim, np.float32)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), given.dim)
            file.write_table(pa.table([pa.array(names), vectors], schema=pa.schema(fields)))
    return f"polars {pl.__version__}"


def looking_up_in_peer(given: argparse.Namespace) -> str:
    import polars as pl

    wanted = pl.LazyFrame({"photo_id": ids(some(LOOKED_UP, given.rows))})
    scan = pl.scan_parquet(given.at / "peer.parquet")
    found = scan.join(wanted, on="photo_id", how="semi").collect(engine="streaming")
    return f"{len(found):,} vectors"


STEPS: dict[str, Callable[[argparse.Namespace], str]] = {
    "write all of it": fill_all,
    "open, without an index": opening,
    "open": opening,
    "info": informing,
    "look up 76,000 ids": looking_up,
    "plan a rerun of PLANNED": lambda given: planning(given, n=min(given.planned, given.rows)),
    "plan a rerun of all": lambda given: planning(given, n=given.rows),
    "read a .csv table of all": reading,
    "push all of it to a folder": pushing,
    "add ten photos": adding,
    "push ten photos": pushing,
    "pull 500 into an empty cache": pulling,
    "forget one": forgetting,
    "open after that": opening,
    "info after that": informing,
    "write one Parquet file": writing_peer,
    "look up 76,000 ids in it": looking_up_in_peer,
}


def measured(given: argparse.Namespace) -> Iterator[tuple[str, float, float, str]]:
    """(step, seconds, peak bytes, what it found) of each step, in its own process."""
    for step in STEPS:
        if ("Parquet" in step or step.endswith("in it")) and not given.peer:
            continue
        words = [f"--{name}={getattr(given, name)}" for name in ("rows", "segments", "dim")]
        words += [f"--planned={given.planned}", f"--at={given.at}", f"--step={step}"]
        done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{step!r} failed with status {done.returncode}")
        seconds, peak, found = json.loads(done.stdout.splitlines()[-1])
        print(f"{step}: {seconds:.1f} s, {peak / 1e6:,.0f} MB", file=sys.stderr, flush=True)
        yield step.replace("PLANNED", f"{min(given.planned, given.rows):,}"), seconds, peak, found


def peak_bytes() -> float:
    """The most memory that this process has held, mapped files included."""
    try:  # not ru_maxrss: a child begins with the peak of its parent
        status = Path("/proc/self/status").read_text()
        return 1024 * float(status.split("VmHWM:")[1].split()[0])
    except OSError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def table(given: argparse.Namespace) -> list[str]:
    """The lines of the table for one size."""
    lines = [
        f"{given.rows:,} rows x {given.dim} float32 in {given.segments:,} segments, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.system()}, "
        f"numpy {np.__version__}.",
        "",
        "| what | seconds | peak memory | found |",
        "|---|---|---|---|",
    ]
    for step, seconds, peak, found in measured(given):
        over = "" if peak <= AIM_BYTES else " **over 1.5 GB**"
        lines.append(f"| {step} | {seconds:.2f} | {peak / 1e6:,.0f} MB{over} | {found} |")
    return lines


def laws(given: argparse.Namespace) -> list[str]:
    """Costs of a row and of a segment, fitted to a few sizes, and what they say of 1e9 rows."""
    costs: dict[str, list[tuple[float, float]]] = {}
    for given.rows, given.segments in LAWS:
        given.planned, given.at = given.rows, Path(tempfile.mkdtemp(dir=given.folder))
        try:
            for step, seconds, peak, _ in measured(given):
                if step != f"plan a rerun of {given.rows:,}":  # as much as that of all
                    costs.setdefault(step.split(" of ")[0], []).append((seconds, peak))
        finally:
            shutil.rmtree(given.at)
    sizes = np.array([[1, rows, segments] for rows, segments in LAWS], float)
    lines = [
        "Fitted to " + ", ".join(f"{rows:,} rows in {n:,} segments" for rows, n in LAWS) + ".",
        "",
        "| what | bytes a row | bytes a segment | s per 1e6 rows | s per 1,000 segments "
        f"| 1e9 rows in {BILLION_SEGMENTS:,} segments |",
        "|---|---|---|---|---|---|",
    ]
    for step, found in costs.items():
        fits, *_ = np.linalg.lstsq(sizes, np.array(found), rcond=None)
        (_, s_row, s_segment), (_, b_row, b_segment) = fits.T.tolist()
        seconds, peak = np.array([1, BILLION, BILLION_SEGMENTS]) @ fits
        lines.append(
            f"| {step} | {b_row:,.0f} | {b_segment:,.0f} | {1e6 * s_row:.2f} | "
            f"{1e3 * s_segment:.2f} | {max(0, peak) / 1e9:,.0f} GB, "
            f"{max(0, seconds) / 60:,.0f} min |"
        )
    return lines


def main(words: Sequence[str] | None = None) -> list[str]:
    """Measure, print the table, and return its lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("rows", 10_000_000), ("segments", 700), ("dim", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--planned", type=int, default=1_000_000)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--laws", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.step:
        given.began = time.perf_counter()
        found = STEPS[given.step](given)
        print(json.dumps([time.perf_counter() - given.began, peak_bytes(), found]))
        return []
    if given.laws:
        lines = laws(given)
    else:
        given.at = Path(tempfile.mkdtemp(dir=given.folder))
        try:
            lines = table(given)
        finally:
            shutil.rmtree(given.at)
    print("\n".join(lines))
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")
    return lines


if __name__ == "__main__":
    main()
