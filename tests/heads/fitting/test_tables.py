"""The paper's tables on a device: the form that a bare machine runs, on a few photos."""

import json
import subprocess
import sys
from typing import Any

from benchmarks.tables import compare_with_cpu, tables_on

SMALL: dict[str, Any] = {
    "epochs": 1, "hidden": 8, "learning_rates": (1e-3,), "resamples": 20
}  # fmt: skip


def test_the_tables_say_where_the_time_went_and_every_figure() -> None:
    so_far: list[int] = []
    found = tables_on("cpu", 150, report=lambda one: so_far.append(len(one["fits"])), **SMALL)
    assert so_far == [1, 2, 3, 4, 5, 6]
    assert json.loads(json.dumps(found)) is not None
    for one in found["fits"]:
        seconds = one["seconds"]
        parts = seconds["linear"] + seconds["training"] + seconds["rest"]
        assert abs(seconds["fit"] - parts) < 0.01
        assert {"const", "0fc", "1fc", "2fc"} < {row["head"] for row in one["figures"]}
        assert sum(one["n"].values()) == (150 if one["subset"] == "ALL" else 112)


def test_the_cpu_agrees_with_itself() -> None:
    found = compare_with_cpu("cpu", 150, **SMALL)
    assert found["agree"]
    assert all(row["cpu"]["value"] == row["device"]["value"] for row in found["rows"])


def test_they_run_where_nothing_but_the_fits_needs_is_installed() -> None:
    """A device machine has no package of stage one; a module set to None counts as missing."""
    code = (
        "import sys\n"
        "for name in ('google_crc32c', 'cyclopts', 'timm', 'zarr', 'torchvision', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "from benchmarks.tables import tables_on\n"
        f"print(len(tables_on('cpu', 120, heads='1fc', **{SMALL!r})['fits']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["6"]
