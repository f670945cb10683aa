"""How rows were computed, for their manifest."""

from collections.abc import Mapping

from embedcache.machine import versions
from embedcache.spec import Json

PACKAGES = ("embedcache", "torch", "timm", "pillow", "numpy")


def about(device: str, *, weights: Mapping[str, str] | None = None) -> dict[str, Json]:
    """Versions, device and the weights' origin; nothing that names a person or a machine."""
    found: dict[str, Json] = {"versions": dict(versions(PACKAGES)), "device": device}
    return found | {"weights": dict(weights)} if weights else found
