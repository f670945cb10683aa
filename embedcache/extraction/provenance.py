"""What a manifest says of how its rows came about, and what only this machine needs to know."""

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from embedcache.spec import Json
from embedcache.store.cache import Cache

PACKAGES = ("embedcache", "torch", "timm", "pillow", "numpy")


def about(device: str) -> dict[str, Json]:
    """Versions and device, nothing that names a person or a machine."""
    versions: dict[str, Json] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a source tree
            continue
    return {"versions": versions, "device": device}


def place_of(cache: Cache, spec_digest: str) -> str | None:
    """How the backbone of a spec was last named on this machine, with the path of its weights."""
    return _places(cache).get(spec_digest)


def remember_places(cache: Cache, places: Mapping[str, str]) -> None:
    """Keep, on this machine only, where the weights of each spec digest were found."""
    known = _places(cache)
    if any(known.get(spec) != place for spec, place in places.items()):
        path = cache.local / "backbones.json"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known | dict(places), indent=1), "utf-8")
        temporary.replace(path)


def _places(cache: Cache) -> dict[str, str]:
    try:
        found = json.loads((cache.local / "backbones.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {spec: place for spec, place in items if isinstance(place, str)}
