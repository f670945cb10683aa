"""WRITE, after publishing: a push succeeded once its segments are seen, without forgotten rows."""

import contextlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from embedcache.errors import RemoteError
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import Denied, ListedObject
from embedcache.sharing.listing import ListedSpace
from embedcache.sharing.moved import MoveCounts
from embedcache.sharing.purging import delete_segment, purge
from embedcache.sharing.seen import SeenWhole
from embedcache.sharing.sending import Published, send_again
from embedcache.sharing.shared_copy import Marks, SharedCopy
from embedcache.store.cache import Cache
from embedcache.store.manifest import MANIFEST, Manifest
from embedcache.store.sealed import MAX_MANIFEST_BYTES

Name = tuple[str, str]  # key of a space, segment id


def look_again(
    copy: SharedCopy, cache: Cache, pool: ThreadPoolExecutor, published: Published
) -> tuple[set[Name], set[Name]]:
    """Look at what was published before anything is announced: (removed, incomplete).

    Segments that the log names as removed, as a purge took them for abandoned: what is left of them
    is deleted, and their rows need new ids. And those whose files are not all there, after what is
    missing was sent again.
    """
    if not published:
        return set(), set()
    now = copy.again()
    gone = now.log.read().gone
    removed = {name for name in published if "/".join(_in_log(name)) in gone}
    incomplete = set[Name]()
    here = {
        (store.key, segment.id): segment for store in cache.sets() for segment in store.segments()
    }
    for root in sorted({key.split("/")[0] for key, _ in published}):
        spaces = {space.key: space for space in now.listing.spaces(root).values()}
        for name in (one for one in published if one[0].split("/")[0] == root):
            key, segment = name
            space = spaces.get(key, ListedSpace(root, key.partition("/")[2]))
            if name in removed:
                with contextlib.suppress(Denied):  # any purge may end it
                    delete_segment(now, space, segment)
                continue
            listed = space.segments.get(segment, {})
            if _is_there(now, f"{key}/segments/{segment}", published[name], listed):
                continue
            files = published[name].files
            lacking = [p for p, (n, _) in files.items() if p not in listed or listed[p].size != n]
            lacking += [MANIFEST] if MANIFEST not in listed else []
            source = here.get(_in_log(name))
            if source is not None and source.manifest.files == files:
                send_again(now, key, source, (*lacking,), pool)
            else:
                incomplete.add(name)
    return removed, incomplete


def _in_log(name: Name) -> tuple[str, str]:
    """(name of the set, segment id), as the log has it."""
    key, segment = name
    return key.partition("/")[2] or key, segment


def confirm(
    copy: SharedCopy,
    cache: Cache,
    pool: ThreadPoolExecutor,
    counts: MoveCounts,
    published: Published,
    marks: Marks,
    *,
    seen: SeenWhole,
) -> None:
    """Look at what was published in a fresh listing, and take its dead rows away.

    marks: the lifts and tombstones that were obeyed. Photos may have been forgotten there while
    rows of them were on their way. seen: gains what is whole there.
    """
    now = copy.again()
    gone = now.log.read().gone
    for root in {key.split("/")[0] for key, _ in published}:
        spaces = now.listing.spaces(root)
        for (key, segment), manifest in published.items():
            digest = key.partition("/")[2]
            if key.split("/")[0] != root or f"{digest or root}/{segment}" in gone:
                continue
            listed = spaces[digest].segments.get(segment, {}) if digest in spaces else {}
            if not _is_there(now, f"{key}/segments/{segment}", manifest, listed):
                counts.problems.append(
                    RemoteError(
                        f"segment {segment} was published at {copy.remote.name} but is incomplete "
                        "there: somebody deleted some of its files",
                        advice="Rerun the command",
                    )
                )
            elif MANIFEST in listed:
                seen.add(spaces[digest], segment)
    latest = now.marks()
    if latest.tombstones.keys() <= marks.tombstones.keys():
        return
    try:
        purge(now, cache, pool, counts, only={segment for _, segment in published})
    except Denied:
        counts.problems.append(_left(copy))


def _is_there(
    copy: SharedCopy, key: str, manifest: Manifest, listed: dict[str, ListedObject]
) -> bool:
    """Whether a segment is whole; one that an old listing does not show is opened by name."""
    if MANIFEST in listed:
        return all(
            path in listed and listed[path].size == size
            for path, (size, _) in manifest.files.items()
        )
    try:
        read_small(copy.remote, f"{key}/{MANIFEST}", limit=MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        return False
    return True


def _left(copy: SharedCopy) -> RemoteError:
    return RemoteError(
        "photos were forgotten during the push: pulls skip their rows, which are still stored "
        f"at {copy.remote.name}",
        advice="Ask somebody who may delete there to run 'embedcache push --purge'",
    )


def set_names(published: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """(key of a space, segment id) as the log of removals names them: (set, segment id)."""
    return {*map(_in_log, published)}
