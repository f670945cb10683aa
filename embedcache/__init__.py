"""Stage one: run frozen backbones once over photos and keep the vectors in a cache.

    import embedcache

    photos = embedcache.Photos.read("photos/")
    cache = embedcache.Cache.open("team.cache", create=True)
    print(embedcache.extract(photos, cache, backbone="inception_v3.tf_in1k"))
    vectors, found = cache.vectors("inception_v3.tf_in1k", photos.ids)   # (n, 2048), (n,)

Names are loaded when they are first used: `import embedcache` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcache.extraction.run import extract
    from embedcache.photos.table import Photos
    from embedcache.store.cache import Cache

__all__ = ["Cache", "Photos", "extract"]
__version__ = "0.1.0"

_HOMES = {"Cache": "store.cache", "Photos": "photos.table", "extract": "extraction.run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedcache' has no attribute {name!r}")
    return getattr(import_module(f"embedcache.{_HOMES[name]}"), name)
