"""Refs: a name for exactly the segments that a cache holds now."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from embedcache.errors import CacheError
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.refs import Pins
from embedcache.store.refs import write_ref as _write_ref
from embedcache.store.segment import Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """A ref that was written."""

    name: str
    segments: int

    def document(self) -> dict[str, Json]:
        return {"ref": self.name, "segments": self.segments}

    def __str__(self) -> str:
        return f"ref {self.name} pins {self.segments} segments"


def write_ref(cache: Cache, name: str) -> Ref:
    """Pin all segments that `cache` holds now under `name`, once and for all."""
    return Ref(name=name, segments=_pin(cache, _all_pins(cache, name)))


def pin(cache: Cache) -> str:
    """Pin what `cache` holds now under a name made of it, and return the name.

    The same segments get the same name, so that pinning twice makes one ref.
    """
    pins = _all_pins(cache, "")
    held = [dict(pins.spaces), dict(pins.faces), dict(pins.photos or {})]
    text = json.dumps(held, default=dict, sort_keys=True)
    name = f"as-of-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not (cache.path / "refs" / f"{name}.json").exists():
        _pin(cache, replace(pins, name=name))
    return name


def _all_pins(cache: Cache, name: str) -> Pins:
    return Pins(
        name=name,
        spaces={space.digest: _pins(space.segments()) for space in cache.spaces()},
        faces={space.digest: _pins(space.segments()) for space in cache.face_spaces()},
        photos=_pins(cache.photo_segments()),
    )


def _pins(segments: Sequence[Segment]) -> dict[str, str]:
    return {segment.id: segment.digest for segment in segments}


def _pin(cache: Cache, pins: Pins) -> int:
    """Write a ref, and take it back unless all that it pins is still there; returns how many."""
    _write_ref(cache.path, pins.name, pins=pins)
    now = _all_pins(cache, pins.name)
    for then, held in zip(
        (pins.spaces, pins.faces, {"": pins.photos or {}}),
        (now.spaces, now.faces, {"": now.photos or {}}),
        strict=True,
    ):
        for key, pinned in then.items():
            if pinned.items() - held.get(key, {}).items():
                (cache.path / "refs" / f"{pins.name}.json").unlink()
                raise CacheError(
                    f"{cache.path} was compacted, or photos forgotten, while ref {pins.name!r} was "
                    "written: run the same command again"
                )
    return sum(map(len, pins.parts))
