"""REMOVE on a shared copy: segments with forgotten rows give way to segments without them.

As in a cache (`store.removal`): successors are published first, then an entry of the log names what
goes, created only if nobody removed anything meanwhile; then the bytes go. Anybody may finish the
last step. A storage that cannot have a log is never purged.
"""

from collections.abc import Collection
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import Damaged, RemoteError
from embedcache.remotes.remote import Denied, Unconditional, Unreachable
from embedcache.sharing.arrival import DeletedHere
from embedcache.sharing.connecting import staging_of
from embedcache.sharing.listing import ROOTS, ListedSpace
from embedcache.sharing.live_rows import pairs_of, publish_live
from embedcache.sharing.moved import MoveCounts
from embedcache.sharing.outgoing import RemovedHere
from embedcache.sharing.segments import RemoteSegment
from embedcache.sharing.shared_copy import Marks, SharedCopy
from embedcache.sharing.small_objects import TooMuch
from embedcache.store.cache import Cache
from embedcache.store.disposal import is_our_name
from embedcache.store.log import Entry, Gone, Log
from embedcache.store.manifest import MANIFEST
from embedcache.store.tombstones import Dead

ROUNDS = 20  # others may forget and push all the while
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class RemoteVictim:
    """A segment of a shared copy with dead rows. dead: which, (n,)."""

    space: ListedSpace
    segment: RemoteSegment
    dead: Bool

    @property
    def name(self) -> str:
        """Its name in the log of removals."""
        return f"{self.space.set_key}/{self.segment.id}"


def purge(
    copy: SharedCopy,
    cache: Cache,
    pool: ThreadPoolExecutor,
    counts: MoveCounts,
    *,
    only: Collection[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Remove the rows of forgotten photos from a shared copy, and report what may still hold some.

    only: ids of the segments to look at; None for all. A ref there follows the successors.
    Raises Denied for a member who may not delete.
    """
    try:
        copy.log.require_conditional()
    except Unconditional as error:
        counts.problems.append(
            RemoteError(
                f"{error.found}, so nothing was removed from it: two members who purge at once "
                "could lose rows",
                advice="Move the shared copy to a storage with conditional writes, such as S3",
            )
        )
        return
    if not dry_run:
        copy.bring_over()
    now = copy.again()
    for _ in range(ROUNDS):
        now.log.read()
        victims, marks = _find(now, cache, pool, only)
        if dry_run:
            _count(victims, counts)
            return
        if not victims and not now.is_outdated():
            _finish(now, cache, pool, counts, only)
            counts.problems += now.problems()  # they may hold forgotten rows
            return
        _count([v for v in victims if _replace(now, cache, pool, v, marks)], counts)
        now = now.relisted()
    counts.problems.append(
        RemoteError(
            f"{copy.remote.name} kept changing while this command ran",
            advice="Rerun the command",
        )
    )


def _find(
    copy: SharedCopy, cache: Cache, pool: Executor, only: Collection[str] | None
) -> tuple[list[RemoteVictim], Marks]:
    """The segments there with dead rows; segments are listed before the marks."""
    spaces = [space for root in ROOTS for space in copy.spaces(root).values()]
    marks = copy.marks()
    dead = copy.segments.dead = marks.joined(cache)
    victims = []
    for space in spaces if dead else ():
        names = [s for s in space.segments if only is None or s in only]
        for segment in copy.segments.all(space, names, pool=pool):
            rows = _dead_rows(copy, cache, segment, dead)
            if rows.any():
                victims.append(RemoteVictim(space, segment, rows))
    return victims, marks


def _dead_rows(copy: SharedCopy, cache: Cache, segment: RemoteSegment, dead: Dead) -> Bool:
    """Which rows are dead; none of a segment that is refused, for its bytes are wrong or gone."""
    try:
        ids, digests = pairs_of(copy, cache, segment)
    except (Unreachable, TooMuch):
        raise
    except (RemoteError, Damaged) as error:
        copy.segments.refuse(segment, error)
        return np.zeros(0, dtype=np.bool_)
    if segment.manifest.kind != "photos":
        return dead.of(digests)
    return dead.of_pairs(segment.manifest.name, ids, digests)


def _count(victims: Collection[RemoteVictim], counts: MoveCounts) -> None:
    counts.purged += len(victims)
    counts.purged_rows += sum(int(victim.dead.sum()) for victim in victims)


def _replace(
    copy: SharedCopy, cache: Cache, pool: ThreadPoolExecutor, victim: RemoteVictim, marks: Marks
) -> bool:
    """Publish a victim's live rows, enter its removal in the log, and delete it.

    Returns False, and removes nothing, where others removed it or changed the marks meanwhile, and
    where it is refused because its bytes are wrong.
    """
    successors: tuple[str, ...] = ()
    live = np.flatnonzero(~victim.dead)
    if len(live):
        try:
            successors = publish_live(copy, cache, pool, victim.space, victim.segment, live)
        except (Unreachable, Denied):
            raise
        except (DeletedHere, RemovedHere):
            return False
        except (RemoteError, Damaged) as error:
            copy.segments.refuse(victim.segment, error)
            return False

    def decide(log: Log) -> Entry | None:
        if victim.name in log.gone or copy.again().marks() != marks:
            return None
        gone = Gone(victim.segment.manifest.digest, successors)
        return Entry(segments={victim.name: gone})

    if not copy.log.append(decide):
        return False
    delete_segment(copy, victim.space, victim.segment.id)
    return True


def delete_segment(copy: SharedCopy, space: ListedSpace, segment: str) -> None:
    """Delete a segment that the log names, its manifest first; files of others stay."""
    key = f"{space.key}/segments/{segment}"
    copy.remote.delete(f"{key}/{MANIFEST}", ours=is_our_name)
    for path in space.segments.get(segment, {}):
        if path != MANIFEST and is_our_name(path):
            copy.remote.delete(f"{key}/{path}")


def end_deletions(copy: SharedCopy) -> list[str]:
    """Delete what the log names and still lies there, as after a run that was cut off.

    Returns sentences about files of others, which stay.
    """
    gone, notes = copy.log.known.gone, list[str]()
    for root in ROOTS:
        for space in copy.listing.spaces(root).values():
            for segment, files in space.segments.items():
                if f"{space.set_key}/{segment}" in gone:
                    delete_segment(copy, space, segment)
                    if not all(map(is_our_name, files)):
                        notes.append(_of_others(copy, f"{space.key}/segments/{segment}"))
            for key in copy.remote.leftovers(f"{space.key}/segments"):
                if key.rpartition("/")[2].startswith((".gone-", ".old-")):
                    _delete_hidden(copy, key, notes)
    return notes


def _delete_hidden(copy: SharedCopy, key: str, notes: list[str]) -> None:
    copy.remote.delete(key, ours=is_our_name)
    if next(iter(copy.remote.list(f"{key}/")), None) is not None:
        notes.append(_of_others(copy, key))


def _finish(
    copy: SharedCopy,
    cache: Cache,
    pool: ThreadPoolExecutor,
    counts: MoveCounts,
    only: Collection[str] | None,
) -> None:
    """Finish deletions that were cut off, and name what may still hold forgotten rows."""
    counts.notes += end_deletions(copy)
    own = f"-{staging_of(cache)}"
    pinned = copy.pinned()
    unread = any(copy.refusals.of(entry.key) for entry in copy.listing.entries("refs"))
    digests = _segments_of(cache)
    for root in ROOTS:
        for space in copy.spaces(root).values():
            for segment in list(space.segments):
                name = f"{space.set_key}/{segment}"
                if MANIFEST in space.segments[segment] or only is not None:
                    continue
                if ref := pinned.get(name):
                    counts.problems.append(_pinned(copy, space, segment, ref))
                elif name in digests and not unread:
                    counts.problems += _withdraw(copy, cache, pool, space, segment, digests[name])
                else:
                    counts.notes.append(_unfinished(copy, f"{space.key}/segments/{segment}"))
            for key in copy.remote.leftovers(f"{space.key}/segments"):
                name = key.rpartition("/")[2]
                if name.endswith(own):
                    _delete_hidden(copy, key, counts.notes)
                elif name.startswith(".push-") and only is None:
                    counts.notes.append(_unfinished(copy, key))


def _segments_of(cache: Cache) -> dict[str, str]:
    """The segments that this cache has or had, by their names in the log, with their digests."""
    here = {f"{store.key}/{s.id}": s.digest for store in cache.sets() for s in store.segments()}
    return {name: gone.digest for name, gone in cache.history.log().gone.items()} | here


def _withdraw(
    copy: SharedCopy,
    cache: Cache,
    pool: ThreadPoolExecutor,
    space: ListedSpace,
    segment: str,
    digest: str,
) -> list[RemoteError]:
    """Delete a segment of this cache that was sent in part; returns problems.

    A copy of this cache, or a member who pulled the segment, may be sending it at this moment. So
    it is entered in the log first: whoever sends it looks there once it is whole, and sends its
    rows under a new id. Where it became whole between the last look and the entry, its rows are
    published again here.
    """
    name = f"{space.set_key}/{segment}"

    def decide(log: Log) -> Entry | None:
        now = copy.again()
        found = now.listing.spaces(space.root).get(space.digest)
        is_whole = found is not None and MANIFEST in found.segments.get(segment, {})
        if is_whole or name in log.gone or name in now.pinned(log) or now.refusals.problems:
            return None
        return Entry(segments={name: Gone(digest, None)})

    if not copy.log.append(decide) and name not in copy.log.known.gone:
        return []  # it is whole now, or pinned: the next purge looks at it
    now = copy.again()
    found = now.listing.spaces(space.root).get(space.digest)
    if found is None or segment not in found.segments:
        return []
    if MANIFEST in found.segments[segment] and (whole := now.segments.one(found, segment)):
        try:
            dead = now.segments.dead = now.marks().joined(cache)
            live = np.flatnonzero(~_dead_rows(now, cache, whole, dead))
            if len(live):
                publish_live(now, cache, pool, found, whole, live)
        except (DeletedHere, RemovedHere):
            pass  # another purge is at it
        except (Unreachable, Denied):
            raise
        except (RemoteError, Damaged) as error:
            return [RemoteError(error.found, asked=f"segment {segment} at {copy.remote.name}")]
    delete_segment(now, found, segment)
    return []


def _of_others(copy: SharedCopy, key: str) -> str:
    return (
        f"{key} of {copy.remote.name} was a segment with forgotten rows; it still has files that "
        "embedcache did not write: move them out of the shared copy"
    )


def _pinned(copy: SharedCopy, space: ListedSpace, segment: str, ref: str) -> RemoteError:
    return RemoteError(
        f"{space.key}/segments/{segment} of {copy.remote.name} has no manifest and is pinned by "
        f"ref {ref} there, so it was not deleted; it may hold rows of forgotten photos",
        advice=f"'embedcache push --purge DIR {copy.remote.name}' from a cache that holds it "
        "replaces it; if nobody has it or needs the ref, delete the ref there, then rerun the "
        "command",
    )


def _unfinished(copy: SharedCopy, key: str) -> str:
    return (
        f"{key} of {copy.remote.name} is an unfinished push, perhaps with forgotten rows: "
        "the member who began it finishes it by pushing again; if nobody does, remove it there"
    )
