"""The rows of a segment there that nobody forgot, published again so that the segment can go.

They are read under their CRCs wherever they are good: in the same segment here, in the shared copy,
or in other segments of this cache. A segment of which a live row is found nowhere stays.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import Damaged, RemoteError
from embedcache.remotes.remote import Denied, Unreachable
from embedcache.sharing.arrival import DeletedHere, arriving
from embedcache.sharing.listing import ListedSpace
from embedcache.sharing.outgoing import Kind, RemovedHere, outgoing
from embedcache.sharing.segments import RemoteSegment
from embedcache.sharing.sending import send_segment
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.sharing.small_objects import TooMuch
from embedcache.store.cache import Cache
from embedcache.store.manifest import are_twins, replacement_id
from embedcache.store.photo_ids import ids_of
from embedcache.store.segment import Segment
from embedcache.wording import counted

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
Pairs = tuple[list[str], U8]  # an id, "" but for photo ids, and a content, (n, 32), for each row


def pairs_of(copy: SharedCopy, cache: Cache, segment: RemoteSegment) -> Pairs:
    """What each row of a segment there is of, in order: from there, else from the same one here.

    Raises RemoteError where neither can be read.
    """
    try:
        if segment.manifest.kind == "photos":
            return copy.segments.ids(segment)
        return [""] * segment.manifest.n_rows, copy.segments.column(segment, "digest")
    except (Unreachable, Denied, TooMuch):
        raise
    except (RemoteError, Damaged) as error:
        with contextlib.suppress(Damaged, FileNotFoundError):
            if (same := _here(cache, segment)) is not None:
                return _pairs(same)
        raise RemoteError(
            f"{error.found}, and {cache.path} does not hold this segment: 'embedcache push "
            "--purge' by a member whose cache holds it replaces it"
        ) from error


def publish_live(
    copy: SharedCopy,
    cache: Cache,
    pool: ThreadPoolExecutor,
    space: ListedSpace,
    segment: RemoteSegment,
    live: I64,
) -> tuple[str, ...]:
    """Publish the live rows, at least one, of a segment there; returns the ids of their segments.

    Raises RemoteError, and publishes nothing, where a row is good neither there nor here.
    """
    kind = _kind(copy, space)

    def send(source: Segment, rows: I64) -> str:
        name = replacement_id(segment.id)
        with outgoing(cache, source, rows, kind=kind, segment_id=name) as successor:
            send_segment(copy, space.key, successor, pool, lambda n: None)
        return name

    # A segment here may be damaged, or be removed meanwhile, and nothing is wrong there.
    with contextlib.suppress(Damaged, RemovedHere):
        if (same := _here(cache, segment)) is not None:
            return (send(same, live),)
    try:
        with (
            ThreadPoolExecutor(1) as syncing,
            arriving(
                segment,
                copy.remote,
                cache.local / "incoming",
                fetching=pool,
                syncing=syncing,
                count=lambda n: None,
            ) as whole,
        ):
            return (send(whole, live),)
    except (Unreachable, Denied, DeletedHere, RemovedHere):
        raise
    except (RemoteError, Damaged) as error:
        if f"{space.set_key}/{segment.id}" in copy.log.read().gone:
            raise  # others removed it meanwhile
        ids, digests = pairs_of(copy, cache, segment)
        n_ok = segment.manifest.n_ok
        wanted = {(ids[row], bytes(digests[row]), row < n_ok) for row in live.tolist()}
        parts = list(_parts(cache, space, segment, wanted))
        if wanted:
            raise RemoteError(
                f"{error.found}, and {cache.path} lacks {counted(len(wanted), 'row')} of it that "
                "nobody forgot: 'embedcache push --purge' by a member who holds all of these "
                "replaces it"
            ) from error
        return tuple(send(part, rows) for part, rows in parts)


def _parts(
    cache: Cache, space: ListedSpace, segment: RemoteSegment, wanted: set[tuple[str, bytes, bool]]
) -> Iterator[tuple[Segment, I64]]:
    """Good rows of segments here that stand for the wanted ones; what is found leaves `wanted`.

    wanted: (id, content, whether it is a good row). Any row of its content stands for a failure,
    and only the same pair in a segment of the same scope and time for a photo id.
    """
    for store in cache.sets():
        if store.key != space.set_key:
            continue
        for part in store.segments():
            photos = part.manifest.kind == "photos"
            if photos and not are_twins(part.manifest, segment.manifest):
                continue
            with contextlib.suppress(Damaged, FileNotFoundError):  # what cannot be read
                ids, digests = _pairs(part)
                n_ok, rows = part.manifest.n_ok, list[int]()
                stands: list[set[tuple[str, bytes, bool]]] = [
                    {(name, bytes(content), good) for good in (False, row < n_ok)}
                    for row, (name, content) in enumerate(zip(ids, digests, strict=True))
                ]
                if not any(fits & wanted for fits in stands):
                    continue
                for row in np.flatnonzero(store.readable(part)).tolist():
                    if stands[row] & wanted:
                        wanted -= stands[row]
                        rows.append(row)
                if rows:
                    yield part, np.array(rows, dtype=np.int64)


def _pairs(segment: Segment) -> Pairs:
    photos = segment.manifest.kind == "photos"
    ids = ids_of(segment) if photos else [""] * segment.manifest.n_rows
    return ids, segment.column("digest")


def _here(cache: Cache, segment: RemoteSegment) -> Segment | None:
    """The segment of this cache that is the same as one there."""
    same = (segment.id, segment.manifest.digest)
    segments = (one for store in cache.sets() for one in store.segments())
    return next((one for one in segments if (one.id, one.digest) == same), None)


def _kind(copy: SharedCopy, space: ListedSpace) -> Kind:
    if space.kind == "photos":
        return None
    return copy.detector(space) if space.kind == "faces" else copy.spec(space)
