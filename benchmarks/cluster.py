"""Does `extract --ray` on one machine keep the rate of the plain command?

    EMBEDCACHE_REAL_DATA=... python benchmarks/cluster.py [--rounds 3] [--out FILE]

Compared with: the same command without `--ray`. Photos are MEBeauty's, the network is EfficientNet
Lite0 with its real weights. Both forms run on a few photos and on all of them, in a new order each
round, each time into a cache of its own; the rate is of the photos between the two, so that Python,
Ray and the network's loading do not count. They are in the column of the few.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rounds import medians

FEW = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    data = os.environ.get("EMBEDCACHE_REAL_DATA")
    if not data:
        print("no EMBEDCACHE_REAL_DATA: nothing to measure")
        return
    photos = sorted((Path(data) / "data/mebeauty/photos").resolve().rglob("*.jpg"))
    network = f"local-dir:{Path(data).resolve() / 'weights/efficientnet_lite0'}"
    scratch = Path(tempfile.mkdtemp())
    try:
        tables = {}
        for n in (FEW, len(photos)):
            tables[n] = scratch / f"{n}.csv"
            lines = ["id,photo", *(f"{photo.stem},{photo}" for photo in photos[:n])]
            tables[n].write_text("\n".join(lines) + "\n")
        forms = {"plain": (), "--ray": ("--ray=",)}
        seconds = medians(
            {
                f"{form} {n}": partial(extract, table, network, scratch, extra, n)
                for form, extra in forms.items()
                for n, table in tables.items()
            },
            rounds=given.rounds,
        )
    finally:
        shutil.rmtree(scratch)
    more = len(photos) - FEW
    rates = {f: more / (seconds[f"{f} {len(photos)}"] - seconds[f"{f} {FEW}"]) for f in forms}
    lines = [
        f"{len(photos):,} photos, {given.rounds} interleaved rounds, {os.cpu_count()} cores.",
        "",
        f"| command | {FEW} photos | all | photos/s after the start | of the plain command |",
        "|---|---|---|---|---|",
        *(
            f"| {form} | {seconds[f'{form} {FEW}']:.1f} s | "
            f"{seconds[f'{form} {len(photos)}']:.1f} s | {rate:.1f} | {rate / rates['plain']:.2f} |"
            for form, rate in rates.items()
        ),
    ]
    print("\n".join(lines))
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


def extract(table: Path, network: str, scratch: Path, extra: tuple[str, ...], n: int) -> None:
    """Run the command once, into a new cache, and check that it embedded everything."""
    cache = Path(tempfile.mkdtemp(dir=scratch)) / "cache"
    asked = ["extract", table, "--cache", cache, "--backbone", network, *extra, "--json"]
    command = [sys.executable, "-m", "embedcache", *map(str, asked)]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    (space,) = json.loads(found.stdout)["spaces"]
    assert space["embedded"] + space["failed"] == n, space


if __name__ == "__main__":
    main()
