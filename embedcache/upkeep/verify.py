"""Verify a cache, every file and every row of it, and set aside what is damaged."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from embedcache import disk
from embedcache.errors import CacheError, Damaged, EmbedcacheError
from embedcache.spec import Json, Spec
from embedcache.store import journal
from embedcache.store.cache import Cache
from embedcache.store.check import check_segment
from embedcache.store.columns import Kind
from embedcache.store.history import History, missing_marks, unknown_marks
from embedcache.store.layout import (
    APART,
    CACHE_FORMAT,
    FOLDERS,
    KINDS,
    OLD_FORMAT,
    PARTS,
    check_group,
    face_digest,
    read_attributes,
    refuse_links,
    root_document,
)
from embedcache.store.log import ENTRY, PHOTOS, Entry, Log, create_entry, read_entry
from embedcache.store.log import FOLDER as LOG
from embedcache.store.manifest import HEX_DIGEST, MANIFEST, is_segment_id
from embedcache.store.photo_ids import PhotoIds, read_pairs
from embedcache.store.refs import Pins, read_ref
from embedcache.store.salvage import Leftover, leftovers, own_litter
from embedcache.store.segment import Segment, read_segment
from embedcache.store.segment_set import SegmentSet
from embedcache.store.space import FaceSpace, Space
from embedcache.store.tombstones import FOLDER as TOMBSTONES
from embedcache.store.tombstones import (
    LIFTS,
    Dead,
    Lift,
    Tombstone,
    join,
    read_lift,
    read_tombstone,
)
from embedcache.store.zarr_json import encode_document, group_document
from embedcache.upkeep.duplicates import compare_duplicates
from embedcache.upkeep.findings import ENTERED, GIVEN_UP, REWRITTEN, Finding, Report
from embedcache.upkeep.local import staged
from embedcache.upkeep.repair import Broken, move_aside, set_aside

SECOND_LOOK_SECONDS = 0.05  # at what may be gone in a moment


def verify(cache: Cache | Path | str, *, repair: bool = False) -> Report:
    """Read every file, checksum and row of a cache, and say what is wrong.

    repair: move what is damaged to <cache>/damaged, keep its good rows in a new segment, and
        rewrite group metadata that can be known; the report says which photos to extract again.
    Raises NotACache where there is no cache at all. Refs, ids, vectors, the log of removals,
    tombstones and leftovers are all checked; the report says what was not looked at.
    """
    root = cache.path if isinstance(cache, Cache) else Path(cache)
    if not any((root / name).exists() for name in ("zarr.json", *PARTS)):
        Cache.open(root)  # says that there is none
    report = Report(root)
    _Audit(root.resolve(), report, repair=repair).run()
    return report


class _Audit:
    """One walk over a cache."""

    def __init__(self, root: Path, report: Report, *, repair: bool) -> None:
        self.root = root
        self.report = report
        self.repair = repair
        self.history = History(root)
        self.format = CACHE_FORMAT
        self.log = Log()
        self.dead = Dead()
        self.manifests: dict[str, str] = {}
        self.removed: set[str] = set()
        self.names: dict[bytes, str] = {}
        self.left: list[Leftover] = []
        self.hidden: list[Path] = []

    def run(self) -> None:
        try:
            refuse_links(self.root)
        except Damaged as error:
            self._find(self.root, error.fact)
            return  # and nothing is moved, least of all to somewhere else
        self._root()
        self._log()
        self.dead = self._marks()
        for part in PARTS:
            if not (self.root / part).is_dir():
                self._find(self.root / part, "is missing, with all that it held")
                if not self.repair:
                    continue
                disk.make_folder(self.root / part)
            self._group(self.root / part, group_document({}))
        self._strangers(self.root / "photos")
        self._segments_of(self.root / "photos", "photos", "", self._photo_ids())
        for part in ("spaces", APART, "faces"):
            for name in self._children(self.root / part):
                if name != "zarr.json":
                    self._space(self.root / part / name, part)
        self._refs()
        self._leftovers()
        self._unseen()

    def _root(self) -> None:
        """The cache's own folder."""
        try:
            check_group(self.root, root_document(OLD_FORMAT))
        except CacheError:
            self._group(self.root, root_document())
        else:
            self.report.files += 1
            self.format = OLD_FORMAT
            if (self.root / LOG).exists():  # a program that knows no log might remove here
                self._group(self.root, root_document())
        for name in self._children(self.root):
            if name not in {"zarr.json", *FOLDERS}:
                self._find(self.root / name, "is not embedcache's")

    def _log(self) -> None:
        """Every entry; none is missing between two."""
        names = self._children(self.root / LOG)
        for name in names:
            if not (name.isdigit() and len(name) == 8):
                self._find(self.root / LOG / name, "is not embedcache's")
        numbers = [int(name) for name in names if name.isdigit() and len(name) == 8]
        entries: list[Entry] = []
        for number in range(1, max(numbers, default=0) + 1):
            path = self.root / LOG / f"{number:08d}"
            try:
                raw = read_entry(self.root, number)
                if raw is None:
                    raise Damaged("is missing")
                if strangers := [name for name in self._children(path) if name != ENTRY]:
                    self._find(path / strangers[0], "is not embedcache's")
                entries.append(Entry.parse(raw, number=number)[0])
            except EmbedcacheError as error:
                advice = "restore it from a backup, or what it removed may be shown again"
                self._find(path / ENTRY, f"{error.fact}: {advice}", move=path)
                entries.append(Entry())
                if self.repair:
                    create_entry(self.root, number, Entry())
            else:
                self.report.files += 1
        self.log = Log().with_entries(entries)
        self.removed = {name.partition("/")[2] for name in self.log.gone}

    def _marks(self) -> Dead:
        """Tombstones and lifts: each as it was written, and none missing that the log names."""
        tombstones: dict[str, Tombstone] = {}
        lifts: dict[str, Lift] = {}
        for folder in (TOMBSTONES, LIFTS):
            for name in self._children(self.root / folder):
                path = self.root / folder / name
                try:
                    if folder == TOMBSTONES:
                        tombstones[name] = read_tombstone(self.root, name)
                    else:
                        lifts[name] = read_lift(self.root, name)
                except EmbedcacheError as error:
                    advice = "Forget its photos again, or a merge may bring them back"
                    self._find(path, f"{error.fact}. {advice}", move=path)
                else:
                    self.report.files += 1
        dead = join(tombstones, lifts)
        for name in missing_marks(self.log, dead):
            damaged = any(finding.path == name for finding in self.report.findings)
            if self.repair:
                with disk.plain_errors("repair", self.root):
                    self.history.give_up(name)
            if not damaged:
                self._find(
                    self.root / name,
                    "is missing, and the log of removals names it. Restore it from a backup, or "
                    "forget its photos again: a merge may bring them back",
                    moved=GIVEN_UP if self.repair else "",
                )
        unknown = unknown_marks(self.log, dead) if self.format != OLD_FORMAT else []
        if unknown and self.repair:
            self.history.note()
        for name in unknown:
            self._find(
                self.root / name,
                "is named by no entry of the log of removals: the run that wrote it was cut off. "
                f"'embedcache forget {self.report.cache} --forgotten' finishes it",
                moved=ENTERED if self.repair else "",
            )
        return dead

    def _photo_ids(self) -> PhotoIds:
        return PhotoIds(self.root / "photos", history=self.history)

    def _space(self, folder: Path, part: str) -> None:
        try:
            if not HEX_DIGEST.fullmatch(folder.name) or folder.is_symlink():
                raise Damaged("is not embedcache's")
            attributes = read_attributes(folder)
            document = attributes.get("detector" if part == "faces" else "spec")
            if not isinstance(document, dict) or face_digest(document) != folder.name:
                raise Damaged("is not named after what it holds")
            of = self._store(folder, part, document)
        except CacheError as error:
            inner = folder / "segments"
            if inner.is_dir() and not inner.is_symlink():
                self._group(inner, group_document({}), quiet=True)
            try:
                document = read_attributes(folder)["detector" if part == "faces" else "spec"]
                if face_digest(document) != folder.name:
                    raise error
                of = self._store(folder, part, document)
            except (CacheError, KeyError):
                self._lose(folder, KINDS[part], error)
                return
            where = self._name(inner / "zarr.json")
            self.report.findings.append(Finding(path=where, problem=error.fact, moved=REWRITTEN))
        self.report.files += 2
        self._strangers(folder)
        segments = self._segments_of(folder, KINDS[part], folder.name[:8], of)
        try:
            self._forgotten(segments, of)
            compare_duplicates(segments, self.report, values=part != "faces")
        except EmbedcacheError:
            if all(segment.folder.exists() for segment in segments):
                raise

    def _store(self, folder: Path, part: str, document: dict[str, Json]) -> Space | FaceSpace:
        if part == "faces":
            return FaceSpace(folder, document, folder.name, history=self.history)
        return Space(folder, Spec.parse(document), history=self.history)

    def _strangers(self, folder: Path) -> None:
        for name in self._children(folder):
            if name not in ("zarr.json", "segments"):
                self._find(folder / name, "is not embedcache's")

    def _segments_of(
        self, folder: Path, kind: Kind, label: str, of: Space | FaceSpace | PhotoIds
    ) -> list[Segment]:
        segments = folder / "segments"
        if not segments.is_dir() or segments.is_symlink():
            self._find(segments, "is missing, with all that it held")
            if not self.repair or segments.is_symlink():
                return []
            disk.make_folder(segments)
        if kind == "photos":
            self._group(segments, group_document({}))
        self.left += leftovers(segments)
        space = None if kind == "photos" else folder.name
        good, broken = [], []
        for name in self._children(segments):
            path = segments / name
            if name == "zarr.json":
                continue
            if f"{of.key}/{name}" in self.log.gone:
                if not self._went(path):
                    self._find(
                        path,
                        "was removed, and is not deleted yet. 'embedcache compact "
                        f"{self.report.cache}' deletes it",
                    )
                continue
            if not is_segment_id(name) or path.is_symlink():
                self._find(path, "is not a segment", move=None if path.is_symlink() else path)
                continue
            with disk.plain_errors("read", path):  # what may not be read is not damaged
                try:
                    segment = read_segment(str(path), kind=kind, space=space)
                    if segment is None:
                        continue
                    check_segment(segment)
                    self.report.count(segment.manifest)
                except (EmbedcacheError, FileNotFoundError) as error:
                    if path.exists():  # else it was removed meanwhile
                        broken.append(Broken(path, kind, space, label, error, of))
                    continue
            if kind == "photos":
                self.names.update(
                    (content, photo) for photo, content in zip(*read_pairs(segment), strict=True)
                )
                self._forgotten([segment], of)
            good.append(segment)
            self.manifests[name] = segment.digest
        # Those whose manifest cannot be read first: they stand in the way of every look.
        for one in sorted(broken, key=lambda one: one.segment() is not None):
            self._broken(one)
        return good

    @staticmethod
    def _went(path: Path) -> bool:
        """Whether a segment that was removed is being deleted just now."""
        time.sleep(SECOND_LOOK_SECONDS)
        return not path.exists()

    def _broken(self, broken: Broken) -> None:
        """A segment that is not as it was written: say which photos are lost, and repair."""
        repaired, segment = None, broken.segment()
        n_rows, lost, name = 0, list[str](), broken.label
        if broken.kind == "photos":
            with contextlib.suppress(EmbedcacheError, OSError):
                lost = [] if segment is None else read_pairs(segment)[0]
        if self.repair:
            with disk.plain_errors("repair", self.root):
                repaired = set_aside(self.root, broken)
            if repaired is None:
                return  # it is as it should be after all, or gone
        if repaired is not None:
            n_rows, digests = repaired.n_lost, repaired.lost
        else:
            n_rows, digests = broken.lost()
        if segment is not None:
            with contextlib.suppress(EmbedcacheError, OSError):
                name = f"{segment.name}#{broken.label}" if segment.name else broken.label
        if broken.kind != "photos":
            lost = [self.names[content] for content in digests if content in self.names]
        fact = broken.error.fact if isinstance(broken.error, EmbedcacheError) else broken.error
        self._find(
            broken.path,
            str(fact),
            space=name,
            segment=broken.path.name,
            lost_rows=n_rows,
            lost=lost,
            moved="" if repaired is None else self._name(repaired.target),
        )

    def _lose(self, folder: Path, kind: Kind, error: EmbedcacheError) -> None:
        """A whole space that cannot be used: say which photos are lost with its segments."""
        n_rows, lost, name = 0, list[str](), folder.name[:8]
        inner = folder / "segments"
        for path in (inner / one for one in self._children(inner) if is_segment_id(one)):
            with contextlib.suppress(EmbedcacheError, OSError):
                segment = Segment.read(str(path), kind=kind, space=folder.name)
                n_rows += segment.manifest.n_rows
                name = f"{segment.name}#{folder.name[:8]}" if segment.name else name
                contents = [row.tobytes() for row in segment.column("digest")]
                lost += [self.names[content] for content in contents if content in self.names]
        self._find(
            folder,
            error.fact,
            space=name,
            segment=folder.name,
            lost_rows=n_rows,
            lost=lost,
            move=folder,
        )

    def _forgotten(self, segments: Sequence[Segment], of: SegmentSet) -> None:
        """Rows that were forgotten, are hidden, and are still stored."""
        for segment in segments:
            back = int(of.dead_rows(segment, self.dead).sum()) if self.dead else 0
            if back:
                what = "forgotten photo ids" if of.kind == "photos" else "rows of forgotten photos"
                self._find(
                    segment.folder,
                    f"still stores {back} {what}, which are hidden. 'embedcache forget "
                    f"{self.report.cache} --forgotten' removes them",
                )

    def _refs(self) -> None:
        for name in self._children(self.root / "refs"):
            path = self.root / "refs" / name
            try:
                pins = read_ref(self.root, path.stem)
                if path.suffix != ".json":
                    raise Damaged("is not a ref")
            except EmbedcacheError as error:
                self._find(path, error.fact, move=path)
                continue
            self.report.files += 1
            if missing := self._missing(pins):
                problem = f"pins segment {min(missing)}, which is gone or damaged"
                if len(missing) > 1:
                    problem += f", and {len(missing) - 1} others"
                if not any(segment in self.removed for segment in missing):
                    problem += ". The ref holds again once they are back (merge or pull them)"
                self._find(path, problem, move=path)
        for name in sorted(
            self.log.refs.keys() - {Path(n).stem for n in self._children(self.root / "refs")}
        ):
            self.report.notes.append(f"ref {name} was deleted: it pins nothing any more")

    def _missing(self, pins: Pins) -> list[str]:
        """The segments that a ref pins and that are not here, nor all that stands for them.

        Judged by the log as it is now: what was here when this began may have been replaced since.
        """
        while True:
            self.log = self._log_now()
            missing = [
                segment
                for key, pinned in pins.by_set().items()
                for segment, digest in pinned.items()
                if not self._held(key, segment, digest)
            ]
            if not missing or self._log_now().n == self.log.n:
                return missing

    def _log_now(self) -> Log:
        """The log, read on; as it was walked where an entry of it is damaged."""
        try:
            return self.history.log()
        except EmbedcacheError:
            return self.log

    def _held(self, key: str, segment: str, digest: str) -> bool:
        """Whether what a ref pins is here: the segment itself, or all that stands for it."""
        gone = self.log.gone.get(f"{key}/{segment}")
        if gone is None:
            return self._digest(key, segment) == digest
        standing = self.log.stands_for(key, segment)
        if gone.digest != digest or standing is None:
            return False
        return all(self._digest(key, name) is not None for name in standing)

    def _digest(self, key: str, segment: str) -> str | None:
        """The digest of a segment that is here, also of one that came after this had looked."""
        if segment not in self.manifests:
            folders = [PHOTOS] if key == PHOTOS else [f"{part}/{key}" for part in KINDS]
            for folder in folders:
                path = self.root / folder / "segments" / segment
                with contextlib.suppress(EmbedcacheError, OSError):
                    self.manifests[segment] = Segment.read(str(path), kind="vectors").digest
        return self.manifests.get(segment)

    def _leftovers(self) -> None:
        """What is being written is named; what a process that died left is a finding."""
        for part in ("", *PARTS, APART, "refs", TOMBSTONES, LIFTS, LOG):
            self.left += leftovers(self.root / part)
        self.left += staged(self.root)
        if any(not left.holder for left in self.left):
            time.sleep(SECOND_LOOK_SECONDS)  # a file that is being renamed is gone by then
        for left in self.left:
            if not left.path.exists() or self._tidied(left.path):
                continue
            self.report.leftovers += 1
            where = self._name(left.path)
            if left.holder:
                self.report.notes.append(f"{where} is being written by {left.holder}")
            elif left.path.parent.parent.name == "local" or left.path.parent.name == "local":
                self._find(
                    left.path,
                    "was left by a transfer that was cut off. Run it again, or delete it",
                )
            else:
                self._find(
                    left.path,
                    "was left by a process that is gone. 'embedcache compact "
                    f"{self.report.cache}' keeps its rows and removes it",
                )

    @staticmethod
    def _tidied(path: Path) -> bool:
        """Whether a folder that was a draft is a segment now, with nothing left of its writing."""
        return (path / MANIFEST).exists() and not (path / journal.FOLDER).exists()

    def _unseen(self) -> None:
        """What this did not look at."""
        for name, what in (("local", "this machine's own memory"), ("damaged", "set aside")):
            if any((self.root / name).glob("*")):
                self.report.unseen.append(f"{name}/ ({what})")
        self.report.unseen += [self._name(path) for path in self.hidden]

    def _group(self, folder: Path, document: dict[str, Json], *, quiet: bool = False) -> None:
        """Check a group's zarr.json; where everything in it is known, `repair` rewrites it."""
        try:
            check_group(folder, document)
        except CacheError as error:
            moved = ""
            if self.repair and not folder.is_symlink():
                disk.replace(folder / "zarr.json", encode_document(document))
                moved = REWRITTEN
            if not quiet:
                self.report.findings.append(
                    Finding(path=self._name(folder / "zarr.json"), problem=error.fact, moved=moved)
                )
        else:
            self.report.files += 1

    def _find(
        self,
        path: Path,
        problem: str,
        *,
        space: str = "",
        segment: str = "",
        lost_rows: int = 0,
        lost: Sequence[str] = (),
        move: Path | None = None,
        moved: str = "",
    ) -> None:
        if self.repair and move is not None:
            with disk.plain_errors("repair", self.root):
                moved = self._name(move_aside(self.root, move))
        self.report.findings.append(
            Finding(
                path=self._name(path),
                problem=problem.replace(f"{self.root}{os.sep}", ""),
                space=space,
                segment=segment,
                lost_rows=lost_rows,
                lost=tuple(lost),
                moved=moved,
            )
        )

    def _children(self, folder: Path) -> list[str]:
        """The names in a folder; hidden ones that are not ours are noted as not looked at."""
        if not folder.is_dir() or folder.is_symlink():
            return []
        names = sorted(os.listdir(folder))
        hidden = [name for name in names if name.startswith(".")]
        self.hidden += [folder / name for name in hidden if not own_litter(name)]
        links = [name for name in hidden if (folder / name).is_symlink()]
        return [*links, *(name for name in names if not name.startswith("."))]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()
