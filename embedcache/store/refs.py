"""Refs: named, write-once lists of segments, each pinned by its manifest's digest."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcache import disk
from embedcache.errors import CacheError, Damaged
from embedcache.spec import Json
from embedcache.store.log import PHOTOS, Log, read_log
from embedcache.store.manifest import HEX_DIGEST, is_segment_id
from embedcache.store.sealed import FORMAT, MAX_LIST_BYTES, own_digest, seal, unseal

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

    def by_set(self) -> dict[str, Pinned]:
        """What is pinned of each set of segments, by its key in the log of removals."""
        return {**self.spaces, **self.faces, PHOTOS: self.photos or {}}


def read_ref(cache: Path, name: str) -> Pins:
    """Read refs/`name`.json; CacheError where there is none, Damaged where it is not as written."""
    try:
        if not NAME.fullmatch(name):
            raise FileNotFoundError
        raw = _read_file(cache, name)
    except FileNotFoundError:
        known = sorted(path.stem for path in (cache / "refs").glob("*.json"))
        raise NoSuchRef(
            f"{cache} has no ref {name!r}; it has {', '.join(known) or 'none'}. "
            "'embedcache ref' makes one"
        ) from None
    try:
        return parse_ref(raw, name=name, where=str(cache))
    except Damaged as error:
        raise Damaged(
            error.found,
            asked=f"{cache}/refs/{name}.json",
            advice=f"Restore it from a backup, or run 'embedcache verify --repair {cache}', which "
            "sets it aside",
        ) from None


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
                if not (is_segment_id(segment) and HEX_DIGEST.fullmatch(manifest)):
                    raise ValueError(f"it names {segment!r:.80}")
        if pins.name != name:
            raise ValueError(f"it is ref {pins.name!r:.80}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"ref {name} of {where} is refused: {error}") from None
    return pins


class NoSuchRef(CacheError):
    """There is no ref of that name."""


class RefTaken(CacheError):
    """A ref of that name is there already."""


def write_ref(cache: Path, name: str, *, pins: Pins, changes: Sequence[Json] = ()) -> str:
    """Write refs/`name`.json and return its digest; nothing holds what it pins until it is entered.

    Raises RefTaken for a name that is taken, CacheError for one that cannot be a name.
    """
    if not NAME.fullmatch(name):
        raise CacheError(
            f"a ref's name has up to 100 letters, digits, dots, dashes and underscores, and starts "
            f"with a letter or digit; got {name!r:.120}"
        )
    path, raw = cache / "refs" / f"{name}.json", encode_ref(pins, changes=[*changes])
    with disk.plain_errors("write", path):
        disk.make_folder(path.parent, below=cache)
        try:
            disk.publish(path, raw, contested=True)
        except FileExistsError:
            raise RefTaken(f"{cache} has a ref {name!r} already, and refs never change") from None
    return str(own_digest(raw))


def _read_file(cache: Path, name: str) -> bytes:
    """The bytes of a ref; of one that counts and lies aside, those. FileNotFoundError for none."""
    own = f"refs/{name}.json"
    try:
        return disk.read_inside(cache, own, limit=MAX_REF_BYTES)
    except FileNotFoundError:
        aside = refs_aside(cache, name)
        log = read_log(cache) if aside else Log()
        for one in aside:
            raw = disk.read_kept(one.path, limit=MAX_REF_BYTES)
            if raw is not None and counts(one, log):
                return raw
        return disk.read_inside(cache, own, limit=MAX_REF_BYTES)  # it may just have come back


def ref_digest(cache: Path, name: str) -> str | None:
    """The digest of refs/`name`.json; None where there is none, or it is not as it was written."""
    try:
        return own_digest(disk.read_inside(cache, f"refs/{name}.json", limit=MAX_REF_BYTES))
    except (FileNotFoundError, Damaged):
        return None


def dangling(pins: Pins, log: Log) -> list[str]:
    """Pinned segments that the log names as removed with nothing in their place."""
    return sorted(
        f"{key}/{segment}"
        for key, pinned in pins.by_set().items()
        for segment in pinned
        if log.stands_for(key, segment) is None
    )


def pinned_ids(cache: Path, key: str, log: Log, *, names: Sequence[str] | None = None) -> set[str]:
    """The segments of one set that refs pin, or that stand for those that they pin.

    names: of the refs; None for all.
    """
    refs = _all_refs(cache) if names is None else [read_ref(cache, name) for name in names]
    found: set[str] = set()
    for pins in refs:
        for segment in pins.by_set().get(key, {}):
            found.update(log.stands_for(key, segment) or [])
    return found


def _all_refs(cache: Path) -> list[Pins]:
    """All refs, also those that lie aside: they may go back at any moment.

    One that goes back between two looks is in neither, so it is looked for once more.
    """
    found: dict[str, Pins] = {}
    while True:
        for name in ref_names(cache):
            try:
                found.setdefault(name, read_ref(cache, name))
            except NoSuchRef:
                if not NAME.fullmatch(name):
                    raise  # else it was deleted, or put aside: that is looked for below
        aside = [one.pins for one in refs_aside(cache)]
        if found.keys() >= {*ref_names(cache)}:
            return [*found.values(), *aside]


@dataclass(frozen=True, slots=True)
class Aside:
    """A ref that somebody looks at under a hidden name, `path`, or did so when it was killed."""

    path: Path
    pins: Pins
    digest: str


def refs_aside(cache: Path, name: str = "*") -> list[Aside]:
    """The refs that lie aside, of one name or of all; what is half written is none."""
    found = (read_aside(cache, path) for path in sorted((cache / "refs").glob(f".{name}.json.*")))
    return [one for one in found if one is not None]


def read_aside(cache: Path, path: Path) -> Aside | None:
    """A ref under a hidden name in refs/; None where that holds no ref of its name."""
    name, dot, _ = path.name[1:].partition(".json.")
    raw = disk.read_kept(path, limit=MAX_REF_BYTES) if dot and path.name[:1] == "." else None
    if raw is not None:
        with contextlib.suppress(Damaged):
            return Aside(path, parse_ref(raw, name=name, where=str(cache)), str(own_digest(raw)))
    return None


def counts(ref: Aside, log: Log) -> bool:
    """Whether the log acknowledges a ref that lies aside, and what it pins is still there."""
    return (ref.pins.name, ref.digest) in log.acknowledged and not dangling(ref.pins, log)


def ref_names(cache: Path) -> list[str]:
    """The names of all refs."""
    return sorted(path.stem for path in (cache / "refs").glob("[!.]*.json"))


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
