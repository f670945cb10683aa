"""How one ref looks in two copies that hold its rows in different segments.

A ref never changes where it was written. A copy that holds some of its rows in other segments
(without forgotten rows, or under a new id because the old one was removed there) writes which ones
under `changes`, so that everybody can tell that both are the same ref.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from embedcache.spec import Json
from embedcache.store.refs import Pinned, Pins, same_pins

MOVED = "moved"


@dataclass(frozen=True, slots=True)
class SealedRef:
    """A ref as it was read: what it pins, how that changed, and its bytes."""

    pins: Pins
    changes: Sequence[Json]
    raw: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """What a copy pins in the place of one segment: {segment id: manifest digest}."""

    segment: str
    digest: str
    became: Pinned

    @property
    def moved(self) -> bool:
        return dict(self.became) != {self.segment: self.digest}


def adapted(ref: SealedRef, standing: Mapping[str, Sequence[Standing]]) -> tuple[Pins, list[Json]]:
    """A ref for another copy: (pins, changes). standing: by set of segments, for all it pins."""
    changes: list[Json] = [*ref.changes]
    parts: dict[str, dict[str, str]] = {}
    for key, found in standing.items():
        parts[key] = {}
        for one in found:
            parts[key].update(one.became)
            if one.moved:
                changes.append(
                    {
                        "why": MOVED,
                        "set": key,
                        "segment": one.segment,
                        "digest": one.digest,
                        "became": dict(one.became),
                    }
                )
    pins = replace(
        ref.pins,
        spaces={key: parts.get(key, {}) for key in ref.pins.spaces},
        faces={key: parts.get(key, {}) for key in ref.pins.faces},
    )
    return pins, changes


def same_ref(one: SealedRef, other: SealedRef) -> bool:
    """Whether two copies' refs of one name were the same when they were written."""
    return same_pins(_original(one), _original(other))


def _original(ref: SealedRef) -> Pins:
    """What a ref pinned before it was adapted."""
    parts = {key: dict(pinned) for key, pinned in {**ref.pins.spaces, **ref.pins.faces}.items()}
    for change in reversed(ref.changes):
        match change:
            case {
                "why": "moved",
                "set": str(key),
                "segment": str(segment),
                "digest": str(digest),
                "became": dict(became),
            }:
                kept = {s: d for s, d in parts.get(key, {}).items() if s not in became}
                parts[key] = {**kept, segment: digest}
    return replace(
        ref.pins,
        spaces={key: parts.get(key, {}) for key in ref.pins.spaces},
        faces={key: parts.get(key, {}) for key in ref.pins.faces},
    )


def emptied(ref: SealedRef) -> list[tuple[str, str]]:
    """(set, segment id) of the segments that a ref was made of and has nothing in the place of."""
    return [
        (str(change["set"]), str(change["segment"]))
        for change in ref.changes
        if isinstance(change, dict)
        and change.get("why") == MOVED
        and change.get("became") == {}
        and {"set", "segment"} <= change.keys()
    ]
