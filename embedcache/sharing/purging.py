"""The bytes of forgotten photos, removed from a shared copy."""

from collections.abc import Mapping, Sequence

from embedcache.errors import RemoteError
from embedcache.sharing.moved import MoveCounts
from embedcache.sharing.push_plan import Doomed
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT
from embedcache.store.manifest import MANIFEST
from embedcache.store.refs import Pins
from embedcache.store.tombstones import Tombstones, forgotten


def purge(
    copy: SharedCopy,
    cache: Cache,
    doomed: Sequence[Doomed],
    gone: Tombstones,
    counts: MoveCounts,
    *,
    sent_refs: Mapping[str, Pins],
    dry_run: bool,
) -> None:
    """Remove segments with forgotten rows, whose other rows have been sent in new segments.

    A segment stays, with a problem that says why, while a ref there pins it, or while it holds
    rows that this cache lacks. sent_refs: refs that this push has sent.
    """
    refs = {name: pins for name, (pins, _) in copy.refs().items()} | dict(sent_refs)
    pinning = {one: name for name, pins in refs.items() for part in pins.parts for one in part}
    where = copy.remote.name
    for each in doomed:
        held = f"segment {each.segment} of {where} holds rows of forgotten photos"
        if ref := pinning.get(each.segment):
            counts.problems.append(
                RemoteError(
                    f"{held}, and ref {ref} there pins it",
                    advice=f"Run 'embedcache pull --ref {ref} {where} {cache.path}', 'embedcache "
                    f"forget {cache.path} --forgotten', then push --purge again",
                )
            )
            continue
        banned = forgotten(each.digests, gone)
        if not (each.store.status(each.digests[~banned]) != ABSENT).all():
            counts.problems.append(
                RemoteError(
                    f"{held}, and other rows that are not in {cache.path}",
                    advice="Pull, then push --purge again",
                )
            )
            continue
        counts.purged += 1
        counts.purged_rows += int(banned.sum())
        if not dry_run:
            key = f"{each.space.key}/segments/{each.segment}"
            copy.remote.delete(f"{key}/{MANIFEST}")  # first: without it the segment is not there
            for path in each.space.segments[each.segment]:
                if path != MANIFEST:
                    copy.remote.delete(f"{key}/{path}")
