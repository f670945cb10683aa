"""Refs: named, write-once lists of segments, each pinned by its manifest's digest."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from embedcache import disk
from embedcache.errors import CacheError, Damaged
from embedcache.manifest import HEX_DIGEST, SEGMENT_ID, unseal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_REF_BYTES = 64 << 20
Pinned = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """The segments that a ref names: {segment id: manifest digest}, by space and detector."""

    name: str
    spaces: Mapping[str, Pinned]
    faces: Mapping[str, Pinned]
    photos: Pinned

    def of(self, part: str, digest: str) -> Pinned:
        """The pinned segments of one space ("spaces") or detector ("faces")."""
        pinned: Pinned = getattr(self, part).get(digest, {})
        return pinned


def read_ref(cache: Path, name: str) -> Pins:
    """Read refs/`name`.json; CacheError where there is none, Damaged where it is not as written."""
    try:
        if not NAME.fullmatch(name):
            raise FileNotFoundError
        raw = disk.read_inside(cache, f"refs/{name}.json", limit=MAX_REF_BYTES)
    except FileNotFoundError:
        known = sorted(path.stem for path in (cache / "refs").glob("*.json"))
        raise CacheError(
            f"{cache} has no ref {name!r}; it has {', '.join(known) or 'none'}. "
            "'embedcache ref' makes one"
        ) from None
    document, _ = unseal(raw, what=f"ref {name}", limit=MAX_REF_BYTES)
    try:
        pins = Pins(
            name=document["name"],
            spaces=dict(document["spaces"]),
            faces=dict(document["faces"]),
            photos=dict(document["photos"]),
        )
        for digest in (*pins.spaces, *pins.faces):
            if not HEX_DIGEST.fullmatch(digest):
                raise ValueError(f"it names {digest!r:.80}")
        for pinned in (*pins.spaces.values(), *pins.faces.values(), pins.photos):
            for segment, manifest in pinned.items():
                if not (SEGMENT_ID.fullmatch(segment) and HEX_DIGEST.fullmatch(manifest)):
                    raise ValueError(f"it names {segment!r:.80}")
        if pins.name != name:
            raise ValueError(f"it is ref {pins.name!r:.80}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"ref {name} of {cache} is refused: {error}") from None
    return pins
