"""Push and pull: the segments, or only the rows, that the other side lacks.

    pull("s3://bucket/team", cache)            everything that is there and not here
    push(cache, "s3://bucket/team")            everything that is here and not there

Both are set unions of immutable segments, so any number of members may push and pull at any time:
nobody waits, nothing is overwritten, and rerunning an interrupted command resumes it. A segment
appears on the other side whole (its manifest comes last) or not at all. Photo ids, and with them
anything that names a person or a path, stay home unless they are asked for.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedcache import disk, locks
from embedcache.errors import CacheError, Damaged, InputError, RemoteError
from embedcache.remotes.remote import Remote
from embedcache.sharing.announcing import There, send_marks, send_refs
from embedcache.sharing.confirming import confirm, look_again, set_names
from embedcache.sharing.connecting import connect, memo_of, read_only_lock
from embedcache.sharing.listing import ROOTS
from embedcache.sharing.litter import clear_litter
from embedcache.sharing.moved import MoveCounts, Moved, OnBytes, workers
from embedcache.sharing.pull_plan import PullPlan, PullPlanner, Wanted, dead_rows_in
from embedcache.sharing.pulled_refs import take_refs
from embedcache.sharing.purging import ROUNDS
from embedcache.sharing.purging import purge as purge_segments
from embedcache.sharing.push_plan import PushPlan, PushPlanner
from embedcache.sharing.seen import SeenWhole
from embedcache.sharing.sending import Published, send
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.sharing.taking import Taking, planned
from embedcache.store.cache import Cache
from embedcache.store.tombstones import Dead
from embedcache.upkeep.local import clear_arrived, clear_leftovers, clear_outgoing
from embedcache.wording import counted

U8 = NDArray[np.uint8]


def pull(
    remote: Remote | str,
    cache: Cache,
    *,
    backbones: Sequence[str] = (),
    specs: Sequence[str] = (),
    photos: U8 | None = None,
    ref: str | None = None,
    with_ids: bool = False,
    dry_run: bool = False,
    progress: OnBytes | None = None,
) -> Moved:
    """Bring into `cache` what a shared copy holds and it lacks.

    backbones: only vectors of these, by name or spec digest, and the faces that they were cut by.
    specs: only the spaces with these digests, of specs or detectors; one may be absent.
    photos: only rows of these content digests, (n, 32); a few rows come by their byte ranges.
    ref: exactly the segments that this ref of the remote pins, and the ref itself.
    with_ids: photo ids too; with `ref`, those that it pins. dry_run: report what would move.
    progress: called with (bytes that have come, bytes that will).
    Raises InputError for options that exclude each other, and RemoteError where the remote cannot
    be reached. What is damaged there is left out and listed under `problems`.
    """
    wanted = Wanted(backbones=backbones, specs=specs, photos=photos, ref=ref, with_ids=with_ids)
    _check(wanted)
    started = time.perf_counter()
    copy = open_copy(remote, cache)
    copy.require()
    with disk.plain_errors("write to", cache.path), workers() as pool:
        counts = MoveCounts()
        dead = copy.segments.dead = _adopt_marks(copy, cache, counts, dry_run=dry_run)
        pulling = _Pulling(copy, cache, dead, pool)
        plan = pulling.plan(wanted)
        if dry_run:
            counts.add(planned(plan.pieces))
        else:
            pulling.take(plan, wanted, counts, progress)
            if plan.pieces:  # what others forgot while these came
                _adopt_marks(pulling.copy.again(), cache, counts, dry_run=False)
                plan.still_here = dead_rows_in(cache, cache.history.dead())
        copy = pulling.copy
        if not dry_run and (ref is not None or wanted.everything):
            take_refs(copy, cache, pulling.renamed, counts, ref=ref, with_ids=with_ids)
        if not dry_run:
            clear_arrived(cache.path, _waited_for(copy, cache, plan, wanted))
            clear_leftovers(cache)
    counts.problems += plan.problems
    counts.already_there += plan.already_there
    counts.withheld += plan.withheld
    counts.still_here += plan.still_here
    return _moved("pull", copy, cache, counts, dry_run=dry_run, started=started)


def _waited_for(copy: SharedCopy, cache: Cache, plan: PullPlan, wanted: Wanted) -> set[str]:
    """The segments there that are not here and that this pull was not to bring whole."""
    narrowed = wanted.ref is not None or wanted.photos is not None
    found = set[str]()
    for root in ROOTS:
        for space in copy.spaces(root).values():
            asked = wanted.with_ids if space.kind == "photos" else space.digest in plan.specs
            if narrowed or not asked:
                found |= space.segments.keys()
    here = {segment.id for store in cache.sets() for segment in store.segments()}
    return found - here - {name.partition("/")[2] for name in cache.history.log().gone}


def _check(wanted: Wanted) -> None:
    if wanted.ref is not None and (wanted.backbones or wanted.photos is not None):
        raise InputError(
            "`ref` brings exactly what the ref pins",
            advice="Leave out `backbone` and `photos`, or `ref`",
        )
    if wanted.with_ids and wanted.photos is not None:
        raise InputError(
            "`with_ids` brings all photo ids, and `photos` only some photos' rows",
            advice="Leave out one of them. 'embedcache extract PHOTOS --cache DIR --remote URL' "
            "brings the rows of your photos and records their ids",
        )


def open_copy(remote: Remote | str, cache: Cache) -> SharedCopy:
    """A shared copy, of which this cache remembers what it fetched."""
    remote = connect(remote, cache)
    return SharedCopy(remote, memo_of(cache, remote))


def _adopt_marks(copy: SharedCopy, cache: Cache, counts: MoveCounts, *, dry_run: bool) -> Dead:
    """Record here what others forgot, before anything else comes; returns the marks that hold."""
    marks = copy.marks()
    known = cache.history.dead().tombstones
    counts.tombstones += len(marks.tombstones.keys() - known.keys())
    if dry_run:
        return marks.joined(cache)
    cache.adopt(lifts=marks.lifts, tombstones=marks.tombstones)
    return cache.history.dead()


class _Pulling:
    """A pull at work. copy: the shared copy as it was listed last.

    renamed: {id of a segment that was removed here before: the new id of its rows}.
    """

    def __init__(
        self, copy: SharedCopy, cache: Cache, dead: Dead, pool: ThreadPoolExecutor
    ) -> None:
        self.copy = copy
        self.renamed: dict[str, str] = {}
        self._cache = cache
        self._dead = dead
        self._pool = pool

    def plan(self, wanted: Wanted) -> PullPlan:
        """READ: what to bring, by a listing that shows everything."""
        for _ in range(ROUNDS):
            plan = PullPlanner(self.copy, self._cache, self._dead, self._pool).plan(wanted)
            if not self.copy.is_outdated():
                break
            self.copy = self.copy.relisted()
        return plan

    def take(
        self, plan: PullPlan, wanted: Wanted, counts: MoveCounts, progress: OnBytes | None
    ) -> None:
        """Bring what is planned; rows of refused segments from others that hold them too.

        A ref is of its own segments, and of those that took their place.
        """
        taking = self._take(plan, counts, progress)
        wanted = replace(wanted, backbones=(), specs=plan.specs)
        while taking.n_lost:
            if self.copy.is_outdated():
                self.copy = self.copy.relisted()
            elif wanted.ref is not None:
                break
            again = self.plan(wanted)
            counts.problems += again.problems
            taking = self._take(again, counts, None)

    def _take(self, plan: PullPlan, counts: MoveCounts, progress: OnBytes | None) -> Taking:
        seen = SeenWhole.of(self._cache, self.copy.remote)
        taking = Taking(self.copy, self._cache, self._pool, seen=seen)
        try:
            taking.take(plan.pieces, progress)
        finally:
            seen.save()
        counts.add(taking.counts)
        self.renamed |= taking.renamed
        return taking


def available(
    remote: Remote | str, cache: Cache, *, specs: Sequence[str], photos: U8
) -> dict[str, tuple[U8, U8]]:
    """What `pull` would bring into `cache` of some contents, (n, 32); fetches no row.

    Returns {digest of a spec or detector: (contents of vectors or faces, of failures), (k, 32)}.
    Raises RemoteError where the remote cannot be reached.
    """
    copy = open_copy(remote, cache)
    copy.require()
    dead = copy.segments.dead = copy.marks().joined(cache)
    with workers() as pool:
        pulling = _Pulling(copy, cache, dead, pool)
        plan = pulling.plan(Wanted(specs=specs, photos=photos))
    copy = pulling.copy
    found: dict[str, tuple[U8, U8]] = {}
    for piece in plan.pieces:
        digests = copy.segments.column(piece.segment, "digest")
        n_ok = piece.segment.manifest.n_ok
        rows = np.arange(len(digests)) if piece.rows is None else piece.rows
        parts = digests[rows[rows < n_ok]], digests[rows[rows >= n_ok]]
        before = found.get(piece.space.digest, (digests[:0], digests[:0]))
        good, bad = (np.concatenate(pair) for pair in zip(before, parts, strict=True))
        found[piece.space.digest] = good, bad
    return found


def push(
    cache: Cache,
    remote: Remote | str,
    *,
    backbones: Sequence[str] = (),
    specs: Sequence[str] = (),
    with_ids: bool = False,
    purge: bool = False,
    dry_run: bool = False,
    progress: OnBytes | None = None,
) -> Moved:
    """Send to a shared copy what `cache` holds and it lacks; creates the shared copy if need be.

    backbones: only vectors of these, and the faces that they were cut by.
    specs: only the spaces with these digests, of specs or detectors.
    with_ids: photo ids too, which may be private; without them vectors are found by content.
    purge: remove segments with forgotten photos there, after sending their other rows again; this
        needs the right to delete. Without it forgotten rows stay there, and no pull brings them.
    Refs and tombstones are sent too. Rows of photos that either side forgot are not.
    progress: called with (bytes that have gone, bytes that will).
    Raises RemoteError where the remote cannot be reached or refuses.
    """
    started, copy = time.perf_counter(), open_copy(remote, cache)
    counts = MoveCounts(new_copy=not copy.exists())
    if counts.new_copy:
        copy.require_place()
    marks = copy.marks()
    with (
        disk.plain_errors("read", cache.path),
        _saying_what_was_removed(copy, cache, counts, dry_run=dry_run),
        alone(cache),
        workers() as pool,
    ):
        clear_outgoing(cache.path)
        seen = SeenWhole.of(cache, copy.remote)
        wanted: dict[str, Any] = {"backbones": backbones, "specs": specs, "with_ids": with_ids}
        planned = partial(_push_plan, cache, pool, seen, wanted)
        plan = planned(copy)
        if counts.new_copy and not dry_run:
            copy.begin()
        send_marks(copy, cache, counts, dry_run=dry_run)
        published, there = Published(), _there(plan, {})
        if not dry_run:
            copy, published, there = _send(copy, cache, plan, planned, pool, progress)
        if not (backbones or specs):
            send_refs(copy, cache, counts, there, with_ids=with_ids, dry_run=dry_run)
        if not dry_run:
            clear_litter(copy, cache)
        if published:
            confirm(copy, cache, pool, counts, published, marks, seen=seen)
        seen.save()
        if purge:
            purge_segments(copy, cache, pool, counts, dry_run=dry_run)
        else:
            counts.problems += _unhealed(copy, cache, plan.unhealed)
        if not dry_run:
            clear_leftovers(cache)
    _count(plan, counts)
    return _moved("push", copy, cache, counts, dry_run=dry_run, started=started)


def _push_plan(
    cache: Cache,
    pool: ThreadPoolExecutor,
    seen: SeenWhole,
    wanted: Mapping[str, Any],
    copy: SharedCopy,
) -> PushPlan:
    """What to send to a shared copy as it is listed now; wanted: see `PushPlanner.plan`."""
    dead = copy.segments.dead = copy.marks().joined(cache)
    return PushPlanner(copy, cache, dead, pool, seen=seen).plan(**wanted)


def _count(plan: PushPlan, counts: MoveCounts) -> None:
    counts.segments, counts.rows, counts.failures = plan.segments, plan.rows, plan.failures
    counts.bytes, counts.ids, counts.already_there = plan.n_bytes, plan.ids, plan.already_there
    counts.withheld, counts.still_here = plan.withheld, plan.still_here
    counts.notes += plan.notes


def _send(
    copy: SharedCopy,
    cache: Cache,
    plan: PushPlan,
    planned: Callable[[SharedCopy], PushPlan],
    pool: ThreadPoolExecutor,
    progress: OnBytes | None,
) -> tuple[SharedCopy, Published, There]:
    """Send what is planned, and plan again for what others took away meanwhile.

    Returns the shared copy as it was listed last, what is there of what was sent, and all that a
    ref may pin. What is not whole there is none of it.
    """
    sent: Published = {}
    now = plan
    for _ in range(ROUNDS):
        published = send(copy, cache, now, pool, progress if now is plan else None)
        removed, incomplete = look_again(copy, cache, pool, published)
        sent |= {name: one for name, one in published.items() if name not in removed}
        if now is not plan:
            plan.unhealed |= now.unhealed
            plan.notes += now.notes
        if not removed:
            break
        copy = copy.relisted()
        now = planned(copy)
    there = _there(now, sent)
    lost = set_names(incomplete | removed)
    return copy, sent, replace(there, segments={*there.segments} - lost)


def _there(plan: PushPlan, published: Published) -> There:
    """What the shared copy has once what is planned, and `published`, is there."""
    sent = [(set_names([key]), one.digest) for key, one in published.items()]
    made = {name: digest for names, digest in sent for name in names}
    return There(plan.there | set_names(plan.whole) | made.keys(), made, plan.stand_ins)


def _unhealed(copy: SharedCopy, cache: Cache, segments: Mapping[str, int]) -> Iterator[RemoteError]:
    """The problems of damaged segments there that hold forgotten rows: {id: how many files}."""
    for segment, n_files in segments.items():
        yield RemoteError(
            f"{counted(n_files, 'file')} of it missing or with wrong bytes, and not sent "
            "again because the segment holds rows of forgotten photos",
            asked=f"segment {segment} at {copy.remote.name}",
            advice=f"'embedcache push --purge {cache.path} {copy.remote.name}' replaces it by a "
            "segment of its other rows",
        )


@contextmanager
def _saying_what_was_removed(
    copy: SharedCopy, cache: Cache, counts: MoveCounts, *, dry_run: bool
) -> Iterator[None]:
    """A segment that another process removed meanwhile is not damaged: say so.

    What was forgotten is obeyed there all the same, though the push ends.
    """
    before = cache.history.log().n
    try:
        yield
    except Damaged:
        if cache.history.log().n == before:
            raise
        now = copy.again()
        if not dry_run and now.exists():
            send_marks(now, cache, counts, dry_run=False)
        raise CacheError(
            f"segments of {cache.path} were compacted or forgotten during the push",
            advice="Rerun the command",
        ) from None


@contextmanager
def alone(cache: Cache) -> Iterator[None]:
    """Let one process at a time push this cache: two would stage the same files."""
    if not os.access(cache.path, os.W_OK):
        with ExitStack() as held:
            with suppress(OSError):  # where a folder cannot be locked, each has a name of its own
                held.enter_context(read_only_lock(cache))
            yield
        return
    fd = os.open(cache.local / "push.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        locks.take(fd, cache.local / "push.lock", record=True, patient=True)
        yield
    finally:
        os.close(fd)


def _moved(
    direction: Literal["push", "pull"],
    copy: SharedCopy,
    cache: Cache,
    counts: MoveCounts,
    *,
    dry_run: bool,
    started: float,
) -> Moved:
    problems = map(str, [*copy.problems(), *counts.problems])
    return Moved(
        direction=direction,
        remote=copy.remote.name,
        cache=str(cache.path),
        dry_run=dry_run,
        segments=counts.segments,
        rows=counts.rows,
        failures=counts.failures,
        bytes=counts.bytes,
        already_there=counts.already_there,
        withheld=counts.withheld,
        still_here=counts.still_here,
        ids=counts.ids,
        tombstones=counts.tombstones,
        purged=counts.purged,
        new_copy=counts.new_copy,
        purged_rows=counts.purged_rows,
        refs=tuple(counts.refs),
        notes=tuple(dict.fromkeys([*copy.refusals.notes, *counts.notes])),
        problems=tuple(dict.fromkeys(problems)),
        seconds=time.perf_counter() - started,
    )
