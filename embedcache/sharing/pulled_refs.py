"""The refs that come with a pull: written once every segment that they pin is here."""

from dataclasses import replace

from embedcache import disk
from embedcache.errors import RemoteError
from embedcache.sharing.moved import MoveCounts
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.store.cache import Cache
from embedcache.store.refs import MAX_REF_BYTES, Pins, encode_ref, read_ref, repin, same_pins
from embedcache.store.sealed import unseal

Successors = dict[str, dict[str, str]]


def take_refs(
    copy: SharedCopy,
    cache: Cache,
    successors: Successors,
    counts: MoveCounts,
    *,
    ref: str | None,
    with_ids: bool,
) -> None:
    """Write `ref`, or with None every ref of the shared copy, where its segments are all here.

    successors: {pinned segment: what took its place here}, for segments with forgotten rows.
    """
    held = {segment.id: segment.digest for segment in cache.photo_segments()}
    for store in [*cache.spaces(), *cache.face_spaces()]:
        held |= {segment.id: segment.digest for segment in store.segments()}
    for name, (theirs, raw) in copy.refs().items():
        if ref is not None and name != ref:
            continue
        if (cache.path / "refs" / f"{name}.json").exists():
            if not same_pins(read_ref(cache.path, name), theirs):
                counts.notes.append(f"ref {name} here pins other segments than there")
            continue
        n_lacking = sum(
            held.get(segment) != digest and segment not in successors
            for pinned in (*theirs.spaces.values(), *theirs.faces.values())
            for segment, digest in pinned.items()
        )
        if n_lacking and name == ref:
            counts.problems.append(RemoteError(f"ref {name} lacks {n_lacking} of its segments"))
        elif n_lacking:
            counts.notes.append(
                f"ref {name} was not written: {n_lacking} of its segments are not here. "
                f"'embedcache pull --ref {name} {copy.remote.name} {cache.path}' brings them"
            )
        else:
            ids = (theirs.photos or {}).items()
            if not with_ids or any(held.get(segment) != digest for segment, digest in ids):
                theirs = replace(theirs, photos=None)
            _write(cache, theirs, raw, successors, counts)


def _write(
    cache: Cache, pins: Pins, raw: bytes, successors: Successors, counts: MoveCounts
) -> None:
    document, _ = unseal(raw, what=f"ref {pins.name}", limit=MAX_REF_BYTES)
    changes = document.get("changes")
    if not isinstance(changes, list):
        problem = f"ref {pins.name} has no list of its changes: left out"
        counts.problems.append(RemoteError(problem))
        return
    path = cache.path / "refs" / f"{pins.name}.json"
    path.parent.mkdir(exist_ok=True)
    disk.publish(path, encode_ref(pins, changes=changes))
    for old, new in successors.items():
        repin(cache.path, old, new)
    counts.refs.append(pins.name)
