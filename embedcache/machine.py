"""What this process may use of the machine: processors, memory, versions of installed packages."""

import math
import os
import platform
import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OWN_PROCESSORS = "EMBEDCACHE_PROCESSORS"
"""The environment variable that bounds `processors`, for workers that share a machine."""
CGROUPS = Path("/sys/fs/cgroup")


def processors() -> int:
    """Processors that this process may use: its affinity, and the CPU quota of its container.

    A quota of 1.5 processors counts as 2. EMBEDCACHE_PROCESSORS bounds it further.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    n = len(affinity(0)) if affinity else os.cpu_count() or 1
    bounds = [n]
    if (quota := cpu_quota()) is not None:
        bounds.append(math.ceil(quota))
    if (own := os.environ.get(OWN_PROCESSORS, "")).isdecimal():
        bounds.append(int(own))
    return max(1, min(bounds))


def cpu_quota(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processors' worth of time that the control group and those above it allow; None: no limit.

    root: where the control groups are mounted.  own: names the group of this process.
    """
    try:
        entries = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    quotas = []
    for entry in entries:
        if len(entry) != 3:
            continue
        _, controllers, path = entry
        if not controllers:  # version 2
            mounts = [root]
        elif "cpu" in controllers.split(","):
            mounts = [root / "cpu", root / "cpu,cpuacct"]
        else:
            continue
        # In a container the path may be the host's; its own group is then the mount itself.
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for mount in mounts:
            for depth in range(len(parts) + 1):
                found = _quota_in(mount.joinpath(*parts[:depth]))
                if found is not None:
                    quotas.append(found)
    return min(quotas, default=None)


def _quota_in(folder: Path) -> float | None:
    """The CPU quota of one control group: version 2 in one file, version 1 in two."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        if quota in ("max", "-1"):
            return None
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def address_space_left() -> int | None:
    """Bytes of address space that this process may still take; None: no limit is known."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return None
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return None
    return max(0, most - taken)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The version of Python and of each package that is installed, by name."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


_LAUNCHING = threading.Lock()


@contextmanager
def arithmetic(*, tf32: bool) -> Iterator[None]:
    """Launch work on a CUDA device whose float32 products may be rounded to TF32, or may not.

    torch has one switch for the process and reads it at each launch, so one thread at a time
    launches. A CUDA graph keeps what it was recorded with.
    """
    import torch

    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    with _LAUNCHING:
        convolutions.allow_tf32 = products.allow_tf32 = tf32
        try:
            yield
        finally:
            convolutions.allow_tf32 = products.allow_tf32 = False
