"""The parcels of a push on their way: each segment's data first, and its manifest last."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from hashlib import sha256

from embedcache import disk
from embedcache.errors import Damaged, EmbedcacheError, RemoteError
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import BLOCK_BYTES, Denied, ListedObject, Remote
from embedcache.sharing.listing import ROOTS
from embedcache.sharing.moved import SEGMENTS_AT_ONCE, CountBytes, OnBytes, counter
from embedcache.sharing.outgoing import RemovedHere, outgoing
from embedcache.sharing.push_plan import Parcel, PushPlan, rewriting
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.store.cache import Cache
from embedcache.store.manifest import MANIFEST, Manifest
from embedcache.store.sealed import MAX_MANIFEST_BYTES
from embedcache.store.segment import Segment, advice

Published = dict[tuple[str, str], Manifest]
LOOKS = 2  # at what was sent, before the manifest says that it is whole


def send(
    copy: SharedCopy,
    cache: Cache,
    plan: PushPlan,
    pool: ThreadPoolExecutor,
    on_bytes: OnBytes | None,
) -> Published:
    """Send everything that is planned; returns {(key of the space, segment id): manifest}.

    Raises RemoteError where the remote refuses, Damaged for a file that is not as it was written,
    and RemovedHere for a segment that was removed meanwhile.
    """
    count = counter(on_bytes, plan.n_bytes)
    known = {key for root in ROOTS for key in copy.listing.keys(root)}
    for key, raw in plan.documents.items():
        if key not in known:
            copy.remote.create(key, raw)
    for key, raw in plan.rewritten.items():
        try:
            copy.remote.write(key, partial(iter, [raw]), size=len(raw))
        except Denied:
            plan.notes.remove(rewriting(key))
            plan.notes.append(f"{key} there is damaged, and you have no right to replace it")
    whole = [parcel for parcel in plan.parcels if parcel.rows is None]
    with ThreadPoolExecutor(SEGMENTS_AT_ONCE) as segments:
        _finish([segments.submit(_send, copy, parcel, pool, count) for parcel in whole])
    published = {(parcel.key, parcel.segment.id): parcel.segment.manifest for parcel in whole}
    for parcel in plan.parcels:
        if parcel.rows is not None:
            assert parcel.store is not None
            kind = parcel.store.subject
            name = parcel.segment_id
            with outgoing(
                cache, parcel.segment, parcel.rows, kind=kind, segment_id=name
            ) as segment:
                send_segment(copy, parcel.key, segment, pool, count)
                published[parcel.key, segment.id] = segment.manifest
    return published


def send_again(
    copy: SharedCopy, key: str, segment: Segment, files: tuple[str, ...], pool: ThreadPoolExecutor
) -> None:
    """Send again some files of a segment that has its manifest there."""
    _send(copy, Parcel(key, segment, None, files, mends=True), pool, _nobody)


def send_segment(
    copy: SharedCopy, key: str, segment: Segment, pool: ThreadPoolExecutor, count: CountBytes
) -> None:
    """Send a whole segment into the space at `key`."""
    _send(copy, Parcel(key, segment, None, tuple(segment.manifest.files)), pool, count)


def _send(copy: SharedCopy, parcel: Parcel, pool: ThreadPoolExecutor, count: CountBytes) -> None:
    remote, segment, manifest = copy.remote, parcel.segment, parcel.segment.manifest
    key = f"{parcel.key}/segments/{segment.id}"
    there = {} if parcel.mends else _sizes(remote.unfinished(key))

    def send_file(path: str) -> None:
        size, digest = manifest.files.get(path) or (len(raw), sha256(raw).hexdigest())
        if there.get(f"{key}/{path}") != size:
            blocks = _checked(segment, path, size, digest)
            remote.write(f"{key}/{path}", blocks, size=size)
        count(size)

    try:
        raw = disk.read_inside(segment.folder, MANIFEST, limit=MAX_MANIFEST_BYTES)
        _finish([pool.submit(send_file, path) for path in parcel.files])
        if parcel.mends:
            return
        count = _nobody
        for _ in range(LOOKS):  # a purge may have taken for abandoned what has come so far
            there = _sizes(remote.unfinished(key))
            if not _all_there(there, key, parcel):
                there |= _sizes(remote.list(f"{key}/"))  # in a folder that lacks only its manifest
            if _all_there(there, key, parcel) or f"{key}/{MANIFEST}" in there:
                break
            _finish([pool.submit(send_file, path) for path in parcel.files])
        if remote.create(f"{key}/{MANIFEST}", raw):
            return
    except FileNotFoundError:
        raise _lacking(remote, segment) from None
    if read_small(remote, f"{key}/{MANIFEST}", limit=MAX_MANIFEST_BYTES) != raw:
        raise RemoteError(
            f"{remote.name} holds another segment with the id {segment.id}",
            advice="Ids are random, so somebody copied or changed it by hand: find out who writes "
            "there",
        )


def _sizes(entries: Iterable[ListedObject]) -> dict[str, int]:
    return {entry.key: entry.size for entry in entries}


def _all_there(there: Mapping[str, int], key: str, parcel: Parcel) -> bool:
    files = parcel.segment.manifest.files
    return all(there.get(f"{key}/{path}") == files[path][0] for path in parcel.files)


def _nobody(n: int) -> None:
    """Counts nothing: these bytes were counted when they were sent first."""


def _lacking(remote: Remote, segment: Segment) -> EmbedcacheError:
    """Why a file was not found: here or there, with the whole segment or without."""
    if not segment.folder.exists():
        return RemovedHere(segment)
    for path in (MANIFEST, *segment.manifest.files):
        if not (segment.folder / path).exists():
            return Damaged(f"{segment.folder / path} is missing", advice=advice(segment.path))
    return RemoteError(
        f"files of segment {segment.id} at {remote.name} were deleted during the push",
        advice="Rerun the command",
    )


def _checked(segment: Segment, path: str, size: int, digest: str) -> Callable[[], Iterator[bytes]]:
    """A file's blocks. Damaged after the last one, so that nothing is stored, for a wrong file."""

    def blocks() -> Iterator[bytes]:
        running, at = sha256(), 0
        fd = disk.open_inside(segment.folder, path)
        try:
            while block := os.pread(fd, BLOCK_BYTES, at):
                running.update(block)
                at += len(block)
                yield block
        finally:
            os.close(fd)
        if at != size or running.hexdigest() != digest:
            raise Damaged(
                f"{path} is not what was written, so it was not pushed",
                asked=f"segment {segment.id}",
                advice=f"Run 'embedcache verify --repair {segment.cache}'",
            )

    return blocks


def _finish(jobs: list["Future[None]"]) -> None:
    """Wait for all jobs; the first error cancels those that have not begun, and is raised."""
    try:
        for job in jobs:
            job.result()
    finally:
        for job in jobs:
            job.cancel()
