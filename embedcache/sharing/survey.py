"""What a shared copy holds, from its manifests alone, and a check of every byte there."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from embedcache.errors import Damaged, EmbedcacheError, RemoteError
from embedcache.remotes.opening import open_remote
from embedcache.remotes.remote import Denied, Remote, Unreachable
from embedcache.sharing.listing import ROOTS, ListedSpace
from embedcache.sharing.litter import abandoned, advice_on
from embedcache.sharing.moved import workers
from embedcache.sharing.ref_changes import emptied
from embedcache.sharing.refusals import advice
from embedcache.sharing.remnants import may_hold_forgotten, not_deleted
from embedcache.sharing.segments import RemoteSegment, has_bytes
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.sharing.small_objects import TooMuch
from embedcache.sharing.strangers import strangers
from embedcache.spec import Json
from embedcache.store.manifest import MANIFEST
from embedcache.wording import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSpace:
    """One space of a shared copy. rows counts a photo once per segment that holds it.

    writers, devices: how many of its segments each wrote.
    """

    root: str
    digest: str
    names: tuple[str, ...]
    dim: int | None
    rows: int
    failures: int
    segments: int
    bytes: int
    writers: dict[str, int]
    devices: dict[str, int]
    first: str
    last: str

    def document(self) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            found[name] = list(value) if isinstance(value, tuple) else value
        return found

    def __str__(self) -> str:
        name = " = ".join(self.names) or self.root
        shape = "" if self.dim is None else f"  {self.dim}-d"
        who, where = (", ".join(sorted(found)) for found in (self.writers, self.devices))
        return (
            f"{name}{shape}  {self.root}/{self.digest[:8]}\n"
            f"  {counted(self.rows, 'row')} in {counted(self.segments, 'segment')}, "
            f"{self.bytes / 1e6:,.1f} MB, last written {self.last[:10]} by {who} on {where}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a shared copy holds; prints itself."""

    remote: str
    spaces: tuple[SharedSpace, ...]
    refs: tuple[str, ...]
    tombstones: int
    unfinished: int
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def document(self) -> dict[str, Json]:
        return {
            "remote": self.remote,
            "format": 1,
            "spaces": [s.document() for s in self.spaces if s.root not in ("faces", "photos")],
            "faces": [s.document() for s in self.spaces if s.root == "faces"],
            "photos": [s.document() for s in self.spaces if s.root == "photos"],
            "refs": list(self.refs),
            "tombstones": self.tombstones,
            "unfinished": self.unfinished,
            "notes": list(self.notes),
            "problems": list(self.problems),
        }

    def __str__(self) -> str:
        lines = [f"{self.remote}: a shared copy, format 1", *map(str, self.spaces)]
        if self.refs:
            lines.append(f"refs: {', '.join(self.refs)}")
        if self.tombstones:
            lines.append(f"{counted(self.tombstones, 'tombstone')} of forgotten photos")
        if self.unfinished:
            lines.append(_unfinished(self.unfinished))
        return "\n".join([*lines, *self.notes, *(f"problem: {text}" for text in self.problems)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What reading every byte of a shared copy found.

    unfinished: segments without a manifest. is_damaged: whether bytes of a segment are wrong.
    """

    remote: str
    segments: int
    bytes: int
    unfinished: int
    findings: tuple[str, ...]
    is_damaged: bool = False

    @property
    def clean(self) -> bool:
        return not self.findings

    def document(self) -> dict[str, Json]:
        return {
            "clean": self.clean,
            "remote": self.remote,
            "segments": self.segments,
            "bytes": self.bytes,
            "unfinished": self.unfinished,
            "findings": list(self.findings),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.remote}: {counted(self.segments, 'segment')} ({self.bytes:,} bytes) "
            + ("intact" if self.clean else f"read, {counted(len(self.findings), 'problem')}"),
            *(f"  {text}" for text in self.findings),
        ]
        if self.unfinished:
            lines.append(_unfinished(self.unfinished))
        if self.is_damaged:
            lines.append(
                "To repair a segment, remove its folder there and push again from a cache that "
                "holds it"
            )
        return "\n".join(lines)


def survey(remote: Remote | str) -> Survey:
    """Describe a shared copy; fetches only listings, manifests and refs."""
    copy = _open(remote)
    spaces, unfinished = [], 0
    with workers() as pool:
        for root in ROOTS:
            for digest, space in sorted(copy.spaces(root).items()):
                try:
                    found = copy.segments.all(space, space.segments, pool=pool)
                except Denied:
                    copy.refusals.note_locked(root)
                    continue
                unfinished += space.unfinished
                if found:
                    spaces.append(_counted(root, digest, found))
    return Survey(
        remote=copy.remote.name,
        spaces=tuple(spaces),
        refs=tuple(sorted(copy.refs())),
        tombstones=len(copy.marks().tombstones),
        unfinished=unfinished,
        notes=tuple(copy.refusals.notes),
        problems=tuple(map(str, copy.refusals.problems)),
    )


def verify_remote(remote: Remote | str) -> Checked:
    """Read every file of every segment of a shared copy against its manifest; keeps nothing.

    Raises RemoteError where it cannot be reached, or where damage hides what was removed there.
    """
    copy = _open(remote)
    try:
        return _verify(copy)
    except RemoteError as error:
        if error.advice != advice(copy.remote):  # which names this very check
            raise
        raise RemoteError(
            error.found,
            asked=error.asked,
            advice="Nothing else was checked. Restore this file from a backup, or push to a new "
            "place from a cache that holds the rows",
        ) from error


def _verify(copy: SharedCopy) -> Checked:
    checked: dict[str, RemoteSegment] = {}
    findings: list[str] = []
    damage: dict[str, list[str]] = {}
    unfinished = 0
    copy.check_parts()
    with workers() as pool:
        for root in ROOTS:
            for space in copy.spaces(root).values():
                copy.check_groups(space)
                unfinished += space.unfinished
                findings += _wrong_space(copy, space)
                try:
                    segments = copy.segments.all(space, space.segments, pool=pool)
                except Denied:
                    copy.refusals.note_locked(root)
                    continue
                for segment in segments:
                    wrong = partial(_wrong_file, copy.remote, segment)
                    name = f"{space.set_key}/{segment.id}"
                    damage[name] = [*filter(None, pool.map(wrong, segment.manifest.files))]
                    checked[name] = segment
    forgotten = _forgotten(copy, checked)
    if forgotten or any(damage.values()):  # READ: it may have been removed meanwhile
        gone = copy.log.read().gone
        damage = {name: found for name, found in damage.items() if name not in gone}
    for name, found in damage.items():
        findings += [*found, *([forgotten[name]] if name in forgotten else [])]
    findings += _missing_pins(copy, {*checked})
    findings += _emptied_refs(copy)
    findings += strangers(copy)
    findings += _left_behind(copy)
    findings += may_hold_forgotten(copy)
    findings += not_deleted(copy)
    # A part that this member may not read is a finding too: nobody checked it.
    refused = [problem.fact for problem in copy.problems()]
    return Checked(
        remote=copy.remote.name,
        segments=len(checked),
        bytes=sum(segment.manifest.bytes_on_disk for segment in checked.values()),
        unfinished=unfinished,
        findings=(*refused, *copy.refusals.notes, *findings),
        is_damaged=any(damage.values()) or copy.refusals.has_segments,
    )


def _open(remote: Remote | str) -> SharedCopy:
    copy = SharedCopy(open_remote(remote) if isinstance(remote, str) else remote)
    copy.require()
    return copy


def _wrong_space(copy: SharedCopy, space: ListedSpace) -> list[str]:
    """What is wrong with the document that describes a space."""
    if space.root == "photos":
        return []
    try:
        _ = copy.detector(space) if space.root == "faces" else copy.spec(space)
    except Unreachable:
        raise
    except EmbedcacheError as error:
        return [error.fact]
    return []


def _wrong_file(remote: Remote, segment: RemoteSegment, path: str) -> str:
    """What is wrong with one file of a segment; "" for nothing."""
    size, digest = segment.manifest.files[path]
    try:
        right = has_bytes(remote, f"{segment.key}/{path}", size=size, digest=digest)
    except FileNotFoundError:
        return f"segment {segment.id}: {path} is missing"
    except Denied as error:
        return f"segment {segment.id}: {error}"
    return "" if right else f"segment {segment.id}: {path} is not what was written"


def _forgotten(copy: SharedCopy, segments: Mapping[str, RemoteSegment]) -> dict[str, str]:
    """What is wrong with segments, by name, that still store rows of forgotten photos.

    Marks are read after the segments were listed. Where nothing was forgotten nothing is read.
    """
    dead, found = copy.marks().dead(), {}
    for name, segment in segments.items() if dead else ():
        try:
            n_dead = int(copy.segments.dead_rows(segment, dead).sum())
        except (Unreachable, TooMuch):
            raise
        except (RemoteError, Damaged):  # named as damaged, or removed meanwhile
            continue
        if n_dead:
            what = "photo id" if segment.manifest.kind == "photos" else "row"
            found[name] = (
                f"segment {segment.id}: still stores {counted(n_dead, what)} of forgotten photos, "
                f"which no pull brings. 'embedcache push --purge DIR {copy.remote.name}' removes "
                "what is forgotten there"
            )
    return found


def _missing_pins(copy: SharedCopy, there: set[str]) -> list[str]:
    """Pinned segments that are absent or incomplete, unless this member cannot see everything.

    there: the segments that have a manifest, by their names in the log.
    """
    if copy.refusals.notes:
        return []
    if copy.pinned().keys() <= there:
        return []
    copy = copy.again()  # what is pinned may have come, or been replaced, meanwhile
    copy.log.read()
    parts = set[str]()
    for root in ROOTS:
        for space in copy.spaces(root).values():
            whole = {name for name, files in space.segments.items() if MANIFEST in files}
            there = there.union(f"{space.set_key}/{name}" for name in whole)
            parts.update(f"{space.set_key}/{name}" for name in space.segments.keys() - whole)
    findings = []
    for name, ref in copy.pinned().items():
        what = "has no manifest" if name in parts else "is not there"
        end = f"'embedcache push DIR {copy.remote.name}' from a cache that holds it sends it again"
        if name in copy.log.known.gone:
            what, end = "was removed", "Its rows are not there as the ref has them: delete the ref"
        if name not in there:
            findings.append(
                f"ref {ref} pins segment {name.rpartition('/')[2]}, which {what}. {end}"
            )
    return findings


def _emptied_refs(copy: SharedCopy) -> list[str]:
    """What is wrong with refs that pin nothing in the place of a segment that they were made of.

    Such a segment may have held forgotten rows only: so nothing is said where the log there says
    so, or where anybody forgot anything.
    """
    if copy.marks().tombstones:
        return []
    log = copy.log.known
    return [
        f"ref {name} pins nothing in the place of segment {segment}: its rows were lost before the "
        f"ref was pushed, and no tombstone there says that photos were forgotten. Delete the ref "
        f"there; 'embedcache push DIR {copy.remote.name}' from a cache that holds it sends it again"
        for name, ref in copy.refs().items()
        for key, segment in emptied(ref)
        if log.stands_for(key, segment) != []
    ]


def _left_behind(copy: SharedCopy) -> list[str]:
    """What processes that have ended left in a folder, half written."""
    return [
        f"{key} was left by a process that has ended. {advice_on(copy, key)}"
        for key in abandoned(copy)
    ]


def _unfinished(n: int) -> str:
    return (
        f"{counted(n, 'segment')} without a manifest: being pushed now, or lost it. Push again "
        "from a cache that holds the rows"
    )


def _counted(root: str, digest: str, found: list[RemoteSegment]) -> SharedSpace:
    manifests = [segment.manifest for segment in found]
    cuts = [m.geometry for m in manifests if m.geometry is not None]
    geometries = {cut.dim for cut in cuts if cut.stored == "float32"}
    created = sorted(m.created for m in manifests)
    names = () if root == "photos" else tuple(dict.fromkeys(m.name for m in manifests if m.name))
    return SharedSpace(
        root=root,
        digest=digest,
        names=names,
        dim=min(geometries, default=None),
        rows=sum(m.n_ok for m in manifests),
        failures=sum(m.n_rows - m.n_ok for m in manifests),
        segments=len(found),
        bytes=sum(m.bytes_on_disk for m in manifests),
        writers=dict(Counter(str(m.about.get("writer", "unnamed")) for m in manifests)),
        devices=dict(Counter(str(m.about.get("device", "unknown")) for m in manifests)),
        first=created[0],
        last=created[-1],
    )
