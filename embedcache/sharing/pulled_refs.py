"""The refs that come with a pull: written once all that they pin is here."""

from collections.abc import Mapping
from dataclasses import replace

from embedcache import disk
from embedcache.errors import RemoteError
from embedcache.sharing.moved import MoveCounts
from embedcache.sharing.ref_changes import SealedRef, Standing, adapted, same_ref
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.store.cache import Cache
from embedcache.store.refs import MAX_REF_BYTES, read_ref
from embedcache.store.sealed import unseal
from embedcache.upkeep.pinning import enter_ref


def take_refs(
    copy: SharedCopy,
    cache: Cache,
    renamed: Mapping[str, str],
    counts: MoveCounts,
    *,
    ref: str | None,
    with_ids: bool,
) -> None:
    """Write `ref`, or with None every ref of the shared copy, where its segments are all here.

    renamed: {segment: the new id of its rows here}, for ids that were removed here before.
    A ref of the same name here that pins something else is a problem, and stays.
    """
    held = {store.key: {s.id: s.digest for s in store.segments()} for store in cache.sets()}
    for name, theirs in copy.refs().items():
        if ref is not None and name != ref:
            continue
        if (cache.path / "refs" / f"{name}.json").exists():
            if not same_ref(read_local_ref(cache, name), theirs):
                counts.problems.append(
                    RemoteError(
                        f"ref {name} was not pulled: ref {name} here pins other segments than "
                        f"that of {copy.remote.name}",
                        advice="Refs never change: one of the two needs another name",
                    )
                )
            continue
        standing = {
            key: [
                _standing(copy, cache, held.get(key, {}), renamed, key, segment, digest)
                for segment, digest in pinned.items()
            ]
            for key, pinned in {**theirs.pins.spaces, **theirs.pins.faces}.items()
        }
        n_lacking = sum(found is None for some in standing.values() for found in some)
        if n_lacking and name == ref:
            counts.problems.append(RemoteError(f"ref {name} lacks {n_lacking} of its segments"))
        elif n_lacking:
            counts.notes.append(
                f"ref {name} was not pulled: {n_lacking} of its segments are not here. "
                f"'embedcache pull --ref {name} {copy.remote.name} {cache.path}' brings them"
            )
        else:
            complete = {key: [one for one in some if one] for key, some in standing.items()}
            _write(cache, theirs, complete, held, counts, with_ids=with_ids)


def _write(
    cache: Cache,
    theirs: SealedRef,
    standing: Mapping[str, list[Standing]],
    held: Mapping[str, Mapping[str, str]],
    counts: MoveCounts,
    *,
    with_ids: bool,
) -> None:
    pins, changes = adapted(theirs, standing)
    ids = (pins.photos or {}).items()
    here = held.get(cache.photo_ids.key, {})
    if not with_ids or any(here.get(segment) != digest for segment, digest in ids):
        pins = replace(pins, photos=None)
    if enter_ref(cache, pins, changes=changes):
        counts.refs.append(pins.name)
    else:
        counts.problems.append(
            RemoteError(
                f"segments of ref {pins.name} were removed here while it was written",
                advice="Rerun the command",
            )
        )


def _standing(
    copy: SharedCopy,
    cache: Cache,
    held: Mapping[str, str],
    renamed: Mapping[str, str],
    key: str,
    segment: str,
    digest: str,
) -> Standing | None:
    """What holds a pinned segment's rows here, without the forgotten ones; None where nothing does.

    held: {segment id: manifest digest} of that set of segments here.
    """
    logs = cache.history.log(), copy.log.known

    def find(name: str, digest: str | None) -> dict[str, str] | None:
        if name in held and digest in (None, held[name]):
            return {name: held[name]}
        if name in renamed:
            new = renamed[name]
            return {new: held[new]} if new else {}
        for log in logs:
            standing = log.stands_for(key, name)
            if standing is None or standing == [name]:
                continue
            parts = [find(successor, None) for successor in standing]
            if None not in parts:
                return {s: d for part in parts if part for s, d in part.items()}
        return None

    became = find(segment, digest)
    return None if became is None else Standing(segment, digest, became)


def read_local_ref(cache: Cache, name: str) -> SealedRef:
    """A ref of this cache. Raises Damaged for one that is not as it was written."""
    pins = read_ref(cache.path, name)
    raw = disk.read_inside(cache.path, f"refs/{name}.json", limit=MAX_REF_BYTES)
    document, _ = unseal(raw, what=f"ref {name}", limit=MAX_REF_BYTES)
    return SealedRef(pins, document["changes"], raw)
