"""What a push says beside its rows: which photos were forgotten, and which refs there are."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from embedcache.errors import RemoteError
from embedcache.remotes.remote import Unconditional
from embedcache.sharing.listing import ROOTS
from embedcache.sharing.moved import MoveCounts
from embedcache.sharing.pulled_refs import read_local_ref
from embedcache.sharing.ref_changes import SealedRef, Standing, adapted, same_ref
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.log import PHOTOS, Entry, Log
from embedcache.store.refs import MAX_REF_BYTES, Pins, encode_ref, ref_names
from embedcache.store.sealed import own_digest
from embedcache.store.tombstones import FOLDER as TOMBSTONES
from embedcache.store.tombstones import LIFTS


@dataclass(frozen=True, slots=True)
class There:
    """What a shared copy holds, by (name of the set, segment id).

    segments: all that is there now. made: the manifests' digests of what this push made.
    stand_ins: as `PushPlan` has them.
    """

    segments: Collection[tuple[str, str]]
    made: Mapping[tuple[str, str], str]
    stand_ins: Mapping[tuple[str, str], str]


def send_marks(copy: SharedCopy, cache: Cache, counts: MoveCounts, *, dry_run: bool) -> None:
    """Send the lifts and tombstones that the shared copy lacks, so that pulls of others obey them.

    Lifts first: a tombstone that was lifted here never holds there.
    """
    theirs, (lifts, tombstones) = copy.marks(), cache.history.files()
    fresh = {f"{LIFTS}/{name}": raw for name, raw in lifts.items() if name not in theirs.lifts}
    for name, raw in tombstones.items():
        if name not in theirs.tombstones:
            fresh[f"{TOMBSTONES}/{name}"] = raw
            counts.tombstones += 1
    if dry_run:
        return
    if fresh:
        copy.bring_over()
    for key, raw in fresh.items():
        copy.remote.create(key, raw)
    lifts, tombstones = {**theirs.lifts, **lifts}, {**theirs.tombstones, **tombstones}

    def decide(log: Log) -> Entry | None:
        named = Entry(
            forgotten=_unnamed(tombstones, log.forgotten),
            remembered=_unnamed(lifts, log.remembered),
        )
        return named if named.forgotten or named.remembered else None

    # A purge that has looked before must look again. Without a log there are no purges.
    if decide(copy.log.known) is not None:  # also where an earlier push was cut off here
        with contextlib.suppress(Unconditional):
            copy.log.append(decide)


def _unnamed(marks: Mapping[str, bytes], known: Mapping[str, str]) -> dict[str, str]:
    return {name: str(own_digest(raw)) for name, raw in marks.items() if name not in known}


def send_refs(
    copy: SharedCopy,
    cache: Cache,
    counts: MoveCounts,
    there: There,
    *,
    with_ids: bool,
    dry_run: bool,
) -> None:
    """Send the refs that the shared copy lacks; none is ever replaced.

    A ref of the same name there that pins something else is a problem.
    """
    theirs = copy.refs()
    for name in ref_names(cache.path):
        mine = read_local_ref(cache, name)
        if name in theirs:
            if not same_ref(mine, theirs[name]):
                counts.problems.append(
                    RemoteError(
                        f"ref {name} was not pushed: ref {name} of {copy.remote.name} pins "
                        "other segments",
                        advice="Refs never change: one of the two needs another name",
                    )
                )
            continue
        try:
            pins, changes = _adapted(copy, cache, mine, there)
        except RemoteError as error:
            counts.problems.append(error)
            continue
        photos = _pinned_ids(copy, cache, mine, there) if with_ids else None
        raw = encode_ref(replace(pins, photos=photos), changes=changes)
        if len(raw) > MAX_REF_BYTES:
            continue
        if dry_run or _enter(copy, replace(pins, photos=photos), raw):
            counts.refs.append(name)
        else:
            counts.problems.append(
                RemoteError(
                    f"ref {name} was not sent: {copy.remote.name} was changed meanwhile",
                    advice="Rerun the command",
                )
            )


def _pinned_ids(
    copy: SharedCopy, cache: Cache, ref: SealedRef, there: There
) -> dict[str, str] | None:
    """The segments of photo ids that a ref pins there; None where one of them is not there."""
    if ref.pins.photos is None:
        return None
    held = {segment.id: segment.digest for segment in cache.photo_segments()}
    found: dict[str, str] = {}
    for segment, digest in ref.pins.photos.items():
        for log in (copy.log.known, cache.history.log()):
            names = log.stands_for(PHOTOS, segment)
            if names is not None and all((PHOTOS, name) in there.segments for name in names):
                digests = {
                    name: digest
                    if name == segment
                    else _digest(copy, {PHOTOS: held}, there, PHOTOS, name)
                    for name in names
                }
                found |= {name: known for name, known in digests.items() if known}
                break
        else:
            return None
    return found


def _adapted(
    copy: SharedCopy, cache: Cache, ref: SealedRef, there: There
) -> tuple[Pins, list[Json]]:
    """A ref for the shared copy; RemoteError where what it pins has nothing in its place there."""
    standing: dict[str, list[Standing]] = {}
    held = {store.key: {s.id: s.digest for s in store.segments()} for store in cache.stores()}
    for key, pinned in {**ref.pins.spaces, **ref.pins.faces}.items():
        for segment, digest in pinned.items():
            names = _standing(copy, cache, there, key, segment)
            if names is None:
                raise _not_pushed(copy, cache, ref, key, segment)
            became = {segment: digest}
            if names != [segment]:
                digests = {name: _digest(copy, held, there, key, name) for name in names}
                became = {name: found for name, found in digests.items() if found}
            standing.setdefault(key, []).append(Standing(segment, digest, became))
    return adapted(ref, standing)


def _standing(
    copy: SharedCopy, cache: Cache, there: There, key: str, segment: str
) -> list[str] | None:
    """The segments there that hold the rows of a pinned one; None where there are none."""
    if (key, segment) in there.segments:
        return [segment]
    here = cache.history.log().stands_for(key, segment)
    became = None  # lost here: which is not the same as a segment of which all was forgotten
    if here is not None:
        became = [there.stand_ins.get((key, name), name) for name in here]
    looks = (became if became != here else None, copy.log.known.stands_for(key, segment), here)
    made = set(there.stand_ins.values())
    for names in looks:
        if names is not None and all(
            (key, name) in there.segments or name in made for name in names
        ):
            return names
    return None


def _not_pushed(
    copy: SharedCopy, cache: Cache, ref: SealedRef, key: str, segment: str
) -> RemoteError:
    """Why a ref cannot be sent, of whose segments this one has nothing in its place there."""
    name, dead = ref.pins.name, copy.marks().joined(cache)
    for store in cache.stores():
        if store.key == key and any(store.dead_rows(s, dead).any() for s in store.segments()):
            return RemoteError(
                f"ref {name} was not pushed: it pins segments with forgotten photos",
                advice=f"Run 'embedcache pull {copy.remote.name} {cache.path}', 'embedcache "
                f"forget {cache.path} --forgotten', then push again",
            )
    return RemoteError(
        f"ref {name} was not pushed: it pins segment {segment}, and neither {copy.remote.name} "
        "nor this cache has one with its rows",
        advice=f"Run 'embedcache verify {cache.path}'",
    )


def _digest(
    copy: SharedCopy,
    held: Mapping[str, Mapping[str, str]],
    there: There,
    key: str,
    segment: str,
) -> str | None:
    """The digest of a segment's manifest, here or there."""
    if found := there.made.get((key, segment)) or held.get(key, {}).get(segment):
        return found
    for root in ROOTS:
        space = copy.spaces(root).get("" if key == PHOTOS else key)
        if space is not None and segment in space.segments:
            listed = copy.segments.one(space, segment)
            return None if listed is None else listed.manifest.digest
    return None


def _enter(copy: SharedCopy, pins: Pins, raw: bytes) -> bool:
    """REF: write a ref and enter it in the log, from when on nobody removes what it pins."""
    key = f"refs/{pins.name}.json"
    if not copy.remote.create(key, raw):
        return False

    def decide(log: Log) -> Entry | None:
        removed = (
            f"{part}/{segment}" in log.gone
            for part, pinned in pins.by_set().items()
            for segment in pinned
        )
        return None if any(removed) else Entry(ref=(pins.name, str(own_digest(raw))))

    try:
        held = copy.log.append(decide)
    except Unconditional:
        return True  # nothing is ever removed there
    if not held:
        copy.remote.delete(key)
    return held
