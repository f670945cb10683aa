"""The photos of a cache by content: their ids, and where on this machine they lie."""

import hashlib
from collections import Counter
from collections.abc import Callable

from embedcache.photos.digests import read_file
from embedcache.photos.memo import MEMO, DigestMemo
from embedcache.photos.table import Photos, is_table
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


def copies_in(cache: Cache, *, scope: str | None = None) -> dict[bytes, list[str]]:
    """The ids that stand for different files of each content, ascending.

    A folder and a table may name one file in two ways. Where this machine has read the files, their
    number says whether all ids count, or only those of the place that gives a content most of them.
    Elsewhere the names in folders count, and a table's where no folder has one.
    scope: only ids of this folder or table.
    """
    table = cache.photo_table()
    n_files = Counter(content for _, content in _memo(cache).files())
    places = sorted({*table.scopes} if scope is None else {scope})
    of_a_place = {place: ids_of(table, scope=place) for place in places}
    found = {}
    for content, everywhere in ids_of(table, scope=scope).items():
        named = {place: ids[content] for place, ids in of_a_place.items() if content in ids}
        most = max(named.values(), key=len)
        in_folders = {name for place, ids in named.items() if not is_table(place) for name in ids}
        if n := n_files[content]:
            found[content] = everywhere if n > len(most) else most
        else:
            found[content] = sorted(in_folders) or most
    return found


def paths_of(
    cache: Cache,
    photos: Photos | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[bytes, str]:
    """By content (sha256, 32 bytes), a file that had it when it was last read.

    photos: where to look too; otherwise only what `extract` and other commands read before.
    """
    found = {digest: path for path, digest in _memo(cache).files()}
    if photos is not None:
        digests = photos.digests(cache if cache.writable else None, progress=progress)
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


def _memo(cache: Cache) -> DigestMemo:
    return DigestMemo(cache.remembered(MEMO))
