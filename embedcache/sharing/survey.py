"""What a shared copy holds, from its manifests alone, and whether every byte of it is right."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

from embedcache.errors import EmbedcacheError
from embedcache.remotes.opening import open_remote
from embedcache.remotes.remote import Denied, Remote, Unreachable
from embedcache.sharing.moved import workers
from embedcache.sharing.shared_copy import ROOTS, Catalogue, Holding, Shared, advice
from embedcache.spec import Json


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
            f"  {self.rows:,} rows in {self.segments:,} segments, {self.bytes / 1e6:,.1f} MB, last "
            f"written {self.last[:10]} by {who} on {where}"
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
            lines.append(f"{self.tombstones} tombstones: photos that were forgotten")
        if self.unfinished:
            lines.append(_unfinished(self.unfinished))
        return "\n".join([*lines, *self.notes, *(f"problem: {text}" for text in self.problems)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What reading every byte of a shared copy found. unfinished: segments without a manifest."""

    remote: str
    segments: int
    bytes: int
    unfinished: int
    findings: tuple[str, ...]

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
            f"{self.remote}: {self.segments:,} segments ({self.bytes:,} bytes) "
            + ("as they were written" if self.clean else f"read, {len(self.findings)} problems"),
            *(f"  {text}" for text in self.findings),
        ]
        if self.unfinished:
            lines.append(_unfinished(self.unfinished))
        if not self.clean:
            lines.append(
                "To mend a segment, remove its folder there and push again from a cache that holds "
                "it"
            )
        return "\n".join(lines)


def survey(remote: Remote | str) -> Survey:
    """Say what a shared copy holds; nothing is fetched but listings, manifests and refs."""
    catalogue = Catalogue(open_remote(remote) if isinstance(remote, str) else remote)
    catalogue.require()
    spaces, unfinished = [], 0
    with workers() as pool:
        for root in ROOTS:
            for digest, holding in sorted(catalogue.holdings(root).items()):
                try:
                    found = _segments(catalogue, holding, pool)
                except Denied:
                    catalogue.locked(root)
                    continue
                unfinished += holding.unfinished
                if found:
                    spaces.append(_counted(root, digest, found))
    return Survey(
        remote=catalogue.remote.name,
        spaces=tuple(spaces),
        refs=tuple(sorted(catalogue.refs())),
        tombstones=len(catalogue.tombstones()),
        unfinished=unfinished,
        notes=tuple(catalogue.notes),
        problems=tuple(catalogue.problems),
    )


def verify_remote(remote: Remote | str) -> Checked:
    """Read every file of every segment of a shared copy against its manifest; keeps nothing."""
    catalogue = Catalogue(open_remote(remote) if isinstance(remote, str) else remote)
    catalogue.require()
    n_segments = n_bytes = unfinished = 0
    findings: list[str] = []
    there: set[str] = set()
    with workers() as pool:
        for root in ROOTS:
            for holding in catalogue.holdings(root).values():
                catalogue.check_groups(holding)
                unfinished += holding.unfinished
                if root != "photos":
                    described = catalogue.detector if root == "faces" else catalogue.spec
                    try:
                        described(holding)
                    except Unreachable:
                        raise
                    except EmbedcacheError as error:
                        findings.append(str(error))
                try:
                    segments = _segments(catalogue, holding, pool)
                except Denied:
                    catalogue.locked(root)
                    continue
                for shared in segments:
                    n_segments += 1
                    n_bytes += shared.manifest.bytes_on_disk
                    jobs = [
                        pool.submit(_wrong, catalogue.remote, shared, path)
                        for path in shared.manifest.files
                    ]
                    findings += [text for job in jobs if (text := job.result())]
                    there.add(shared.id)
    for name, (pins, _) in catalogue.refs().items() if not catalogue.notes else ():
        for part in (*pins.spaces.values(), *pins.faces.values()):
            findings += [
                f"ref {name} pins segment {one}, which is not there" for one in part.keys() - there
            ]
    catalogue.tombstones()
    # Who may not see a part cannot say that it is right.
    told = [*catalogue.problems, *catalogue.notes, *findings]
    return Checked(
        remote=catalogue.remote.name,
        segments=n_segments,
        bytes=n_bytes,
        unfinished=unfinished,
        findings=tuple(text.removesuffix(advice(catalogue.remote)).rstrip(". ") for text in told),
    )


def _unfinished(n: int) -> str:
    return f"{n} segments have no manifest: they are being pushed, or lost it; push again"


def _segments(catalogue: Catalogue, holding: Holding, pool: ThreadPoolExecutor) -> list[Shared]:
    return catalogue.all_shared(holding, holding.segments, pool=pool)


def _wrong(remote: Remote, shared: Shared, path: str) -> str:
    """What is wrong with one file of a segment; "" for nothing."""
    size, digest = shared.manifest.files[path]
    running, got = sha256(), 0
    try:
        for block in remote.blocks(f"{shared.key}/{path}", length=size + 1):
            running.update(block)
            got += len(block)
            if got > size:
                break
    except FileNotFoundError:
        return f"segment {shared.id}: {path} is missing"
    except Denied as error:
        return f"segment {shared.id}: {error}"
    if got != size or running.hexdigest() != digest:
        return f"segment {shared.id}: {path} is not what was written"
    return ""


def _counted(root: str, digest: str, found: list[Shared]) -> SharedSpace:
    manifests = [shared.manifest for shared in found]
    geometries = {m.geometry.dim for m in manifests if m.geometry is not None}
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
