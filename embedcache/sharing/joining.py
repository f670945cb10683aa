"""Compaction of a shared copy: its small segments give way to larger ones, each photo once.

What is there is pulled into a cache of its own, every row checked, and joined there. What was made
is sent; then one entry of the log takes away the segments whose rows are all in others. An object
store is compacted so, where nobody can open the shared copy as a cache.
"""

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from embedcache import disk
from embedcache.errors import RemoteError
from embedcache.remotes.remote import Remote
from embedcache.sharing.confirming import confirm
from embedcache.sharing.listing import ListedSpace
from embedcache.sharing.litter import clear_litter
from embedcache.sharing.moved import MoveCounts, workers
from embedcache.sharing.purging import delete_segment, end_deletions
from embedcache.sharing.seen import SeenWhole
from embedcache.sharing.segments import RemoteSegment
from embedcache.sharing.sending import Published, send_segment
from embedcache.sharing.share import alone, open_copy, pull
from embedcache.sharing.shared_copy import Marks, SharedCopy
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, OK
from embedcache.store.log import MAX_SEGMENTS, Entry, Gone, Log
from embedcache.store.manifest import MANIFEST
from embedcache.store.sealed import MAX_LIST_BYTES
from embedcache.upkeep.compaction import COMPACT_ROWS, Compacted
from embedcache.upkeep.compaction import compact as join
from embedcache.upkeep.local import clear_leftovers, clear_outgoing
from embedcache.wording import counted

ROWS = ("spaces", "face-spaces", "faces")  # photo ids are never joined: their time counts
Victim = tuple[ListedSpace, RemoteSegment]


def compact_remote(
    remote: Remote | str, cache: Cache, *, target_rows: int = COMPACT_ROWS
) -> Compacted:
    """Join the small segments of a shared copy into larger ones of up to `target_rows` rows.

    cache: any that can be written; all rows of the shared copy pass through its `local/`, twice.
    Segments that a ref there pins stay. Needs the right to delete, and a storage that creates an
    object only if it does not exist. Raises RemoteError where something there is damaged, or was
    changed meanwhile: nothing is removed then.
    """
    copy = open_copy(remote, cache)
    copy.require()
    copy.log.require_conditional()
    folder = cache.local / f"outgoing-{disk.mark_of_process()}"
    with disk.plain_errors("write to", cache.path), alone(cache), workers() as pool:
        clear_outgoing(cache.path)  # that of one which was killed
        try:
            scratch = Cache.open(folder, create=True)
            problems = pull(copy.remote, scratch).problems
            if problems:
                more = f", for {counted(len(problems), 'problem')}" if problems[1:] else ""
                raise RemoteError(problems[0], asked=f"nothing was joined{more}")
            join(scratch, target_rows=target_rows)
            sending = _Sending.of(cache, copy.remote)
            done = _exchange(copy.again(), cache, scratch, pool, sending)
            sending.end(copy.again())
            clear_litter(copy.again(), cache)
            return done
        finally:
            disk.remove_folder(folder)
            clear_leftovers(cache)


def _exchange(
    copy: SharedCopy,
    cache: Cache,
    scratch: Cache,
    pool: ThreadPoolExecutor,
    sending: "_Sending",
) -> Compacted:
    """Send the segments of `scratch` that are not there; remove those that it makes needless."""
    spaces = {space.digest: space for root in ROWS for space in copy.spaces(root).values()}
    n_before = sum(len(space.segments) - space.unfinished for space in spaces.values())
    lifts, tombstones = scratch.history.files()
    marks = Marks(lifts=lifts, tombstones=tombstones)  # those that its rows obey
    copy.segments.dead = marks.joined(cache)  # what `cache` remembers of the remote obeys both
    made = {store.key: store.segments() for store in scratch.stores()}
    holders = {f"{key}/{segment.id}" for key, some in made.items() for segment in some}
    # A removed id is never sent again, and neither is a row that was forgotten since it came.
    _require_unchanged(copy, holders, copy.log.read(), marks)
    lacking = {
        key: [one for one in some if MANIFEST not in spaces[key].segments.get(one.id, {})]
        for key, some in made.items()
    }
    sending.begin(f"{key}/{one.id}" for key, some in lacking.items() for one in some)
    published: Published = {}
    victims, rows = list[Victim](), 0
    for key, some in made.items():
        space = spaces[key]
        for segment in some:
            if segment in lacking[key]:
                send_segment(copy, space.key, segment, pool, lambda n: None)
                published[space.key, segment.id] = segment.manifest
                rows += segment.manifest.n_rows
        needless = _needless(copy, scratch, space, pool)
        victims += [(space, one) for one in needless]
    counts = MoveCounts()
    if published:
        seen = SeenWhole.of(scratch, copy.remote)
        confirm(copy, scratch, pool, counts, published, marks, seen=seen)
    if counts.problems:
        raise counts.problems[0]
    gone = _remove(copy, victims, holders, marks)
    freed = sum(one.manifest.bytes_on_disk for _, one in gone)
    return Compacted(
        before=n_before,
        after=n_before - len(gone) + len(published),
        rows=rows,
        bytes_freed=freed - sum(manifest.bytes_on_disk for manifest in published.values()),
        pinned=len(victims) - len(gone),
    )


def _needless(
    copy: SharedCopy, scratch: Cache, space: ListedSpace, pool: ThreadPoolExecutor
) -> list[RemoteSegment]:
    """The segments of a space whose live rows are all in segments of `scratch`, but not in it."""
    [store] = [one for one in scratch.stores() if one.key == space.digest]
    ours = {segment.id for segment in store.segments()}
    found = []
    names = [name for name in space.segments if name not in ours]
    for segment in copy.segments.all(space, names, pool=pool):
        digests = copy.segments.column(segment, "digest")
        live = np.flatnonzero(~scratch.dead(digests))
        status = store.status(digests[live])
        needed = live < segment.manifest.n_ok  # a good row needs a good one, a failure any
        if (status[needed] == OK).all() and (status[~needed] != ABSENT).all():
            found.append(segment)
    return found


def _remove(
    copy: SharedCopy, victims: list[Victim], holders: Collection[str], marks: Marks
) -> list[Victim]:
    """REMOVE: enter in the log, and delete, the victims that no ref pins; returns those."""
    removed: list[Victim] = []
    copy.bring_over()
    for start in range(0, len(victims), MAX_SEGMENTS):
        some = victims[start : start + MAX_SEGMENTS]
        chosen: list[Victim] = []

        def decide(log: Log, some: list[Victim] = some, chosen: list[Victim] = chosen) -> Entry:
            now = copy.again()
            _require_unchanged(now, holders, log, marks)
            kept = _pinned(now, log) | log.gone.keys()
            chosen[:] = [(space, one) for space, one in some if _name(space, one) not in kept]
            gone = {_name(s, one): Gone(one.manifest.digest, None) for s, one in chosen}
            return Entry(segments=gone)

        copy.log.append(decide)
        removed += chosen
    end_deletions(copy)  # also what somebody who was cut off has left
    return removed


@dataclass(slots=True)
class _Sending:
    """What compactions of one shared copy by one cache began to send, on disk until they end.

    Each time they make segments of their own, so that nothing else knows half-sent ones by name.
    path: a file with a line for each, by its name in the log.
    """

    path: Path
    names: set[str]

    @classmethod
    def of(cls, cache: Cache, remote: Remote) -> "_Sending":
        path = cache.local / f"joining-{sha256(remote.name.encode()).hexdigest()[:16]}"
        raw = disk.read_kept(path, limit=MAX_LIST_BYTES) or b""
        return cls(path, {*raw.decode("ascii", "replace").split()})

    def begin(self, names: Iterable[str]) -> None:
        self.names.update(names)
        if self.names:
            disk.replace(self.path, "\n".join(sorted(self.names)).encode())

    def end(self, copy: SharedCopy) -> None:
        """Delete what was sent in part by a run that was cut off, then the file."""
        kept = _pinned(copy, copy.log.read()) if self.names else set[str]()
        for root in ROWS if self.names else ():
            for space in copy.spaces(root).values():
                for segment, files in list(space.segments.items()):
                    name = f"{space.set_key}/{segment}"
                    if MANIFEST not in files and name in self.names and name not in kept:
                        delete_segment(copy, space, segment)
        self.path.unlink(missing_ok=True)


def _require_unchanged(copy: SharedCopy, holders: Collection[str], log: Log, marks: Marks) -> None:
    """RemoteError where others removed a holder, or forgot or lifted photos."""
    if any(name in log.gone for name in holders) or marks != copy.marks():
        raise RemoteError(
            f"{copy.remote.name} was changed while it was compacted", advice="Rerun the command"
        )


def _name(space: ListedSpace, segment: RemoteSegment) -> str:
    return f"{space.set_key}/{segment.id}"


def _pinned(copy: SharedCopy, log: Log) -> set[str]:
    """The segments there that refs pin, or that stand for those; RemoteError for a damaged ref."""
    pinned = copy.pinned(log)
    if problems := copy.problems():
        raise problems[0]
    return {*pinned}
