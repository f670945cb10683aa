"""Refs: a name for exactly the segments that a cache holds now."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.disposal import set_aside
from embedcache.store.layout import bring_over
from embedcache.store.log import Entry, Log, append
from embedcache.store.refs import (
    Pins,
    RefTaken,
    dangling,
    encode_ref,
    read_ref,
    ref_digest,
    refs_aside,
)
from embedcache.store.refs import write_ref as _write_ref
from embedcache.store.sealed import own_digest
from embedcache.store.segment import Segment
from embedcache.store.withdrawal import bring_back, delete_ref, stands, withdraw_ref
from embedcache.upkeep.local import clear_hidden
from embedcache.wording import counted

TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """A ref that was written."""

    name: str
    segments: int

    def document(self) -> dict[str, Json]:
        return {"ref": self.name, "segments": self.segments}

    def __str__(self) -> str:
        return f"ref {self.name} pins {counted(self.segments, 'segment')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpinned:
    """Refs that were deleted."""

    names: tuple[str, ...]

    def document(self) -> dict[str, Json]:
        return {"deleted": [*self.names]}

    def __str__(self) -> str:
        refs = "refs" if len(self.names) > 1 else "ref"
        return (
            f"deleted {refs} {', '.join(self.names)}; no vector was removed. What no ref pins "
            "may go now, by 'embedcache compact' or 'embedcache forget --space'"
        )


def delete_refs(cache: Cache, names: Sequence[str]) -> Unpinned:
    """Delete refs of `cache`; what they pin stays until something removes it.

    A shared copy that has them keeps them, and a later pull brings them again.
    Raises CacheError, before any is deleted, for a name that is none, and Damaged for a ref that is
    not as it was written.
    """
    names = tuple(dict.fromkeys(names))
    once = cache.history.log().refs
    for name in names:
        if _is_there(cache, name) or name not in once:  # else a run before this has deleted it
            read_ref(cache.path, name)
    for name in names:
        delete_ref(cache.path, name)
    clear_hidden(cache.path)  # what a run that was killed has left
    return Unpinned(names=names)


def _is_there(cache: Cache, name: str) -> bool:
    return (cache.path / "refs" / f"{name}.json").exists()


def write_ref(cache: Cache, name: str) -> Ref:
    """Pin all segments that `cache` holds now under `name`, once and for all.

    Raises CacheError for a name that is taken, or was before and meant something else.
    """
    for _ in range(TRIES):
        pins = _all_pins(cache, name)
        finish_ref(cache, name)
        before = cache.history.log().refs.get(name)
        same = before in (None, own_digest(encode_ref(pins, changes=[])))
        if not same and not _is_there(cache, name):
            raise CacheError(
                f"{cache.path} had a ref {name!r} before, which pinned other segments. A name is "
                "used once, so that nobody cites the wrong state: choose another"
            )
        try:
            entered = enter_ref(cache, pins)
        finally:
            clear_hidden(cache.path)  # what a run that was killed has left
        if entered:
            return Ref(name=name, segments=sum(map(len, pins.parts)))
    raise CacheError(
        f"{cache.path} kept changing (compact or forget) while ref {name!r} was written: "
        "rerun the command"
    )


def pin(cache: Cache) -> str:
    """Pin what `cache` holds now under a name made of it, and return the name.

    The same segments get the same name, so that pinning twice makes one ref.
    """
    for _ in range(TRIES):
        pins = _all_pins(cache, "")
        held = [dict(pins.spaces), dict(pins.faces), dict(pins.photos or {})]
        text = json.dumps(held, default=dict, sort_keys=True)
        name = f"as-of-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        try:
            if _is_there(cache, name) or enter_ref(cache, replace(pins, name=name)):
                return name
        except RefTaken:  # another process pins the same at this moment
            return name
    raise CacheError(f"{cache.path} kept changing while this command ran: rerun it")


def enter_ref(cache: Cache, pins: Pins, *, changes: Sequence[Json] = ()) -> bool:
    """REF: write a ref and enter it in the log, from when on nobody removes what it pins.

    changes: how it differs from the ref of another copy that it was taken from.

    Returns False, and leaves no ref, where a segment of `pins` was removed meanwhile.
    Raises CacheError for a name that is taken.
    """
    finish_ref(cache, pins.name)
    digest = _write_ref(cache.path, pins.name, pins=pins, changes=changes)
    if not _enter(cache, pins, digest):
        withdraw_ref(cache.path, pins.name, digest=digest)
        return False
    if not stands(cache.path, pins.name, digest=digest):
        raise CacheError(
            f"ref {pins.name!r} of {cache.path} was written by another process: choose another name"
        )
    return True


def finish_ref(cache: Cache, name: str) -> None:
    """Take back a ref that a process that died left, where it pins what was removed since.

    One that was only put aside by such a process gets its name again.

    The log may name it: the same ref was there before, and was deleted.
    """
    bring_back(cache.path, name)
    digest = ref_digest(cache.path, name)
    if digest is None:
        return
    pins, log = read_ref(cache.path, name), cache.history.log()
    if dangling(pins, log) and log.refs.get(name) == digest:
        with disk.plain_errors("write to", cache.path), contextlib.suppress(FileNotFoundError):
            set_aside(cache.path, cache.path / "refs" / f"{name}.json")  # perhaps it counted
    elif dangling(pins, log):
        withdraw_ref(cache.path, name, digest=digest)


def _enter(cache: Cache, pins: Pins, digest: str) -> bool:
    held = True

    def decide(log: Log) -> Entry | None:
        nonlocal held
        others = (one for one in refs_aside(cache.path, pins.name) if one.digest != digest)
        if any((one.pins.name, one.digest) in log.acknowledged for one in others):
            held = False  # that of another process counts, and gets its name back
            return None
        removed = any(
            f"{key}/{segment}" in log.gone
            for key, pinned in pins.by_set().items()
            for segment in pinned
        )
        held = not removed
        return None if removed else replace(cache.history.entry(log), ref=(pins.name, digest))

    with disk.plain_errors("write to", cache.path):
        bring_over(cache.path)
        append(cache.path, cache.history.log(), decide)
    return held


def _all_pins(cache: Cache, name: str) -> Pins:
    return Pins(
        name=name,
        spaces={
            space.digest: _pins(space.segments())
            for space in cache.spaces()
            if space.spec.kind != "pixels"  # which are made again, bit by bit, from the photos
        },
        faces={space.digest: _pins(space.segments()) for space in cache.face_spaces()},
        photos=_pins(cache.photo_segments()),
    )


def _pins(segments: Sequence[Segment]) -> dict[str, str]:
    return {segment.id: segment.digest for segment in segments}
