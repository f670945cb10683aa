"""40 million swipes to labels and Table 1 in bounded memory, compared with plain pandas.

    python benchmarks/labels.py                      40 million swipes; pandas on 4 million of them
    python benchmarks/labels.py --swipes 4000000     smaller

Each measurement runs in its own process, so that peak memory is per measurement. The log is
simulated (heads/labels/simulate.py) and written as CSV: parsing is part of the job.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from heads.labels import build as labels
from heads.labels import simulate


def with_pandas(users_path: Path, swipes_path: Path, out: Path) -> dict[str, Any]:
    """The same labels and Table 1, written as in a notebook."""
    import pandas as pd

    users = pd.read_csv(users_path, parse_dates=["photo_updated_at"])
    swipes = pd.read_csv(swipes_path, parse_dates=["swiped_at"])
    joined = swipes.merge(users, left_on="recipient_id", right_on="user_id")
    joined = joined[joined.photo.notna() & (joined.sender_id != joined.recipient_id)]
    after = joined.photo_updated_at.isna() | (joined.swiped_at >= joined.photo_updated_at)
    kept = joined[after].drop_duplicates(list(swipes.columns))
    table = kept.groupby("recipient_id").liked.agg(like_ratio="mean", swipes="size")
    users.merge(table, left_on="user_id", right_index=True).to_csv(out, index=False)
    rates = kept.groupby(["sender_gender", "gender"]).liked.mean()
    return {
        "swipes_kept": len(kept),
        "table1": {s: {r: float(rates[s, r]) for r in ("F", "M")} for s in ("F", "M")},
    }


def with_embedcache(users_path: Path, swipes_path: Path, out: Path) -> dict[str, Any]:
    document = labels.build(users_path, swipes_path, out).document()
    return {name: document[name] for name in ("swipes_kept", "table1")}


def measure(which: str, folder: Path) -> dict[str, Any]:
    """Run one version in a fresh process; wall seconds without the interpreter's start."""
    command = [sys.executable, __file__, "--only", which, "--folder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{which} failed with status {process.returncode}")
    found: dict[str, Any] = json.loads(printed)
    return found | {"peak_bytes": usage.ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=85_000)
    parser.add_argument("--swipes", type=int, default=40_000_000)
    parser.add_argument("--pandas-swipes", type=int, default=4_000_000)
    parser.add_argument("--only", choices=("embedcache", "pandas"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        run = with_pandas if asked.only == "pandas" else with_embedcache
        began = time.perf_counter()
        found = run(
            asked.folder / "users.csv", asked.folder / "swipes.csv", asked.folder / "labels.csv"
        )
        print(json.dumps(found | {"seconds": time.perf_counter() - began}))
        return
    print(f"{'':<12}{'swipes':>12}{'kept':>12}{'seconds':>10}{'swipes/s':>12}{'peak MB':>10}")
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        sizes = {asked.pandas_swipes: ("pandas", "embedcache"), asked.swipes: ("embedcache",)}
        for n, versions in sizes.items():
            folder = Path(scratch) / str(n)
            simulate.write(folder, users=asked.users, swipes=n)
            seen = []
            for which in versions:
                found = measure(which, folder)
                seen.append((found["swipes_kept"], json.dumps(found["table1"])[:12]))
                print(
                    f"{which:<12}{n:>12,}{found['swipes_kept']:>12,}{found['seconds']:>10.1f}"
                    f"{n / found['seconds']:>12,.0f}{found['peak_bytes'] / 1e6:>10,.0f}",
                    flush=True,
                )
                assert which == "pandas" or found["peak_bytes"] < 4e9, "over 4 GB"
            assert len(set(seen)) == 1, f"the versions disagree: {seen}"


if __name__ == "__main__":
    main()
