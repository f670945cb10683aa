"""The versions that a saved head and a study record. One list, read in one place."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    ("embedcache", "numpy", "scipy", "scikit-learn", "polars", "safetensors")
    + ("torch", "timm", "facenet-pytorch")
)  # fmt: skip


def versions() -> dict[str, str]:
    """Version by package name, Python first; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional part, or a source tree
            continue
    return found
