"""The photos of a cache by content: their ids, and where on this machine they lie."""

import hashlib
from collections.abc import Callable

from embedcache.photos.digests import DigestMemo, read_file
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.store.photo_ids import PhotoTable


def ids_of(table: PhotoTable, *, scope: str | None = None) -> dict[bytes, list[str]]:
    """The ids that stand for each content (32 bytes) now, ascending; one read in two places once.

    scope: only ids of this folder or table.
    """
    found: dict[bytes, set[str]] = {}
    for i, newest in enumerate(table.newest.tolist()):
        if newest and scope in (None, table.scopes[i]):
            found.setdefault(table.digests[i].tobytes(), set()).add(table.ids[i])
    return {content: sorted(ids) for content, ids in found.items()}


def paths_of(
    cache: Cache,
    photos: Photos | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[bytes, str]:
    """By content (sha256, 32 bytes), a file that had it when it was last read.

    photos: where to look too; otherwise only what `extract` and other commands read before.
    """
    memo = cache.path / "local" / "digests.npz"
    found = {digest: path for path, digest in DigestMemo.read(memo).files()}
    if photos is not None:
        digests = photos.digests(memo if cache.writable else None, progress=progress)
        for i, ok in enumerate(digests.readable.tolist()):
            if ok:
                found[digests.value[i].tobytes()] = photos.paths[i]
    return found


def read_original(path: str, content: bytes) -> bytes | None:
    """The bytes of a file, None where it is gone or is another photo by now."""
    try:
        data = read_file(path)
    except (OSError, ValueError):
        return None
    return data if hashlib.sha256(data).digest() == content else None
