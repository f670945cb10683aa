"""Refs: named, write-once lists of segments, each pinned by its manifest's digest."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from embedcache import disk
from embedcache.errors import CacheError, Damaged
from embedcache.spec import Json
from embedcache.store.manifest import HEX_DIGEST, SEGMENT_ID
from embedcache.store.sealed import FORMAT, MAX_LIST_BYTES, seal, unseal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_REF_BYTES = MAX_LIST_BYTES
Pinned = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """The segments that a ref names: {segment id: manifest digest}, by space and detector.

    photos: None for a ref that came without ids: those that are here now are meant.
    """

    name: str
    spaces: Mapping[str, Pinned]
    faces: Mapping[str, Pinned]
    photos: Pinned | None

    @property
    def parts(self) -> list[Pinned]:
        """All that is pinned, one mapping per space, detector and for the ids."""
        return [*self.spaces.values(), *self.faces.values(), self.photos or {}]

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
    return parse_ref(raw, name=name, where=str(cache))


def parse_ref(raw: bytes, *, name: str, where: str) -> Pins:
    """What a ref's bytes (untrusted) pin; Damaged says what is wrong with them."""
    document, _ = unseal(raw, what=f"ref {name}", limit=MAX_REF_BYTES)
    try:
        pins = Pins(
            name=document["name"],
            spaces={key: dict(pinned) for key, pinned in document["spaces"].items()},
            faces={key: dict(pinned) for key, pinned in document["faces"].items()},
            photos=None if document["photos"] is None else dict(document["photos"]),
        )
        for digest in (*pins.spaces, *pins.faces):
            if not HEX_DIGEST.fullmatch(digest):
                raise ValueError(f"it names {digest!r:.80}")
        for pinned in pins.parts:
            for segment, manifest in pinned.items():
                if not (SEGMENT_ID.fullmatch(segment) and HEX_DIGEST.fullmatch(manifest)):
                    raise ValueError(f"it names {segment!r:.80}")
        if pins.name != name:
            raise ValueError(f"it is ref {pins.name!r:.80}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"ref {name} of {where} is refused: {error}") from None
    return pins


def write_ref(cache: Path, name: str, *, pins: Pins) -> None:
    """Write refs/`name`.json; CacheError for a name that is taken or cannot be one."""
    if not NAME.fullmatch(name):
        raise CacheError(
            f"a ref's name has up to 100 letters, digits, dots, dashes and underscores, and starts "
            f"with a letter or digit; got {name!r:.120}"
        )
    path = cache / "refs" / f"{name}.json"
    with disk.plain_errors("write", path):
        path.parent.mkdir(exist_ok=True)
        try:
            disk.publish(path, encode_ref(pins, changes=[]))
        except FileExistsError:
            raise CacheError(f"{cache} has a ref {name!r} already, and refs never change") from None


def repin(cache: Path, old: str, new: Mapping[str, str]) -> list[str]:
    """In every ref, put segments `new` ({id: manifest digest}) in the place of segment `old`.

    Only `forget` does this: what it removes must not be claimed by anybody. Returns the names of
    the refs that changed; each records when.
    """
    changed = []
    for path in sorted((cache / "refs").glob("*.json")):
        pins = read_ref(cache, path.stem)
        if any(old in pinned for pinned in pins.parts):
            document, _ = unseal(path.read_bytes(), what=path.name, limit=MAX_REF_BYTES)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            changes = [*document["changes"], {"when": now, "why": "forget", "segment": old}]

            def swap(pinned: Pinned) -> dict[str, str]:
                if old not in pinned:
                    return dict(pinned)
                return {key: digest for key, digest in pinned.items() if key != old} | dict(new)

            replaced = Pins(
                name=pins.name,
                spaces={key: swap(pinned) for key, pinned in pins.spaces.items()},
                faces={key: swap(pinned) for key, pinned in pins.faces.items()},
                photos=None if pins.photos is None else swap(pins.photos),
            )
            disk.replace(path, encode_ref(replaced, changes=changes))
            changed.append(pins.name)
    return changed


def pinned_segments(cache: Path) -> dict[str, list[str]]:
    """{segment id: names of the refs that pin it}."""
    found: dict[str, list[str]] = {}
    for path in sorted((cache / "refs").glob("*.json")):
        pins = read_ref(cache, path.stem)
        for pinned in pins.parts:
            for segment in pinned:
                found.setdefault(segment, []).append(pins.name)
    return found


def encode_ref(pins: Pins, *, changes: list[Json]) -> bytes:
    """A ref's bytes."""
    return seal(
        {
            "format": FORMAT,
            "kind": "ref",
            "name": pins.name,
            "spaces": {key: dict(pinned) for key, pinned in pins.spaces.items()},
            "faces": {key: dict(pinned) for key, pinned in pins.faces.items()},
            "photos": None if pins.photos is None else dict(pins.photos),
            "changes": changes,
        }
    )


def same_pins(one: Pins, other: Pins) -> bool:
    """Whether two refs mean the same vectors and faces; ids may have stayed home."""
    mine, theirs = (
        {key: dict(pinned) for key, pinned in {**pins.spaces, **pins.faces}.items() if pinned}
        for pins in (one, other)
    )
    return mine == theirs
