"""How rows were computed, for their manifest; and where weights lie, for this machine only."""

import json
from collections.abc import Mapping

from embedcache import disk
from embedcache.machine import versions
from embedcache.spec import Json
from embedcache.store.cache import Cache

PACKAGES = ("embedcache", "torch", "timm", "pillow", "numpy")


def about(device: str, *, weights: Mapping[str, str] | None = None) -> dict[str, Json]:
    """Versions, device and the weights' origin; nothing that names a person or a machine."""
    found: dict[str, Json] = {"versions": dict(versions(PACKAGES)), "device": device}
    return found | {"weights": dict(weights)} if weights else found


def place_of(cache: Cache, spec_digest: str) -> str | None:
    """The name, with the path of its weights, that last gave this spec on this machine."""
    return _places(cache).get(spec_digest)


def remember_places(cache: Cache, places: Mapping[str, str]) -> None:
    """Keep, on this machine only, the name with its path for each spec digest."""
    known = _places(cache)
    if any(known.get(spec) != place for spec, place in places.items()):
        text = json.dumps(known | dict(places), indent=1)
        disk.replace(cache.local / "backbones.json", text.encode())


def _places(cache: Cache) -> dict[str, str]:
    try:
        found = json.loads((cache.local / "backbones.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {spec: place for spec, place in items if isinstance(place, str)}
