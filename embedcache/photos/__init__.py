"""The photos of a run: their table, their content digests, and their pixels.

This room owns the way from a path or a byte string to an upright RGB image or a typed reason. It
imports `errors`, `spec`, `disk` and `tables`, and knows nothing of caches or networks.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcache.photos.table import Photos

__all__ = [
    "Photos",
    "digests",
    "folder",
    "images",
    "kinds",
    "matching",
    "memo",
    "resampling",
    "resizing",
    "rows",
    "table",
]


def __getattr__(name: str) -> Any:
    if name != "Photos":
        raise AttributeError(f"module 'embedcache.photos' has no attribute {name!r}")
    from embedcache.photos.table import Photos

    return Photos
