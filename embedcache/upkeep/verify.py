"""Verify a cache, every file and every row of it, and set aside what is damaged."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, Damaged, EmbedcacheError, NotACache
from embedcache.spec import Json, Spec
from embedcache.store import memory
from embedcache.store.cache import Cache
from embedcache.store.check import check_segment
from embedcache.store.columns import Kind
from embedcache.store.disposal import FOLDER as DAMAGED
from embedcache.store.history import History
from embedcache.store.layout import (
    APART,
    FOLDERS,
    KINDS,
    OLD_FORMAT,
    PARTS,
    LaterFormat,
    check_group,
    face_digest,
    own_attributes,
    refuse_links,
    root_document,
)
from embedcache.store.log import FOLDER as LOG
from embedcache.store.manifest import HEX_DIGEST, is_segment_id
from embedcache.store.photo_ids import PhotoIds, read_pairs
from embedcache.store.remains import contents_named
from embedcache.store.removal import finish
from embedcache.store.salvage import leftovers, leftovers_inside
from embedcache.store.segment import Segment, read_segment
from embedcache.store.segment_set import SegmentSet
from embedcache.store.space import FaceSpace, Space
from embedcache.store.subject import proven_subject
from embedcache.store.tombstones import Dead
from embedcache.store.zarr_json import group_document
from embedcache.upkeep.duplicates import compare_duplicates
from embedcache.upkeep.findings import (
    LINK,
    MADE,
    NO_FOLDER,
    REMOVED,
    RESTORED,
    STRANGE,
    Report,
)
from embedcache.upkeep.history_audit import HistoryAudit
from embedcache.upkeep.local import staged, work_folders
from embedcache.upkeep.recording import Record
from embedcache.upkeep.repair import Broken, set_aside
from embedcache.wording import counted

U8 = NDArray[np.uint8]
GONE = "is missing, with everything in it"


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
        self.record = Record(root, report, repair=repair)
        self.history = History(root)
        self.past = HistoryAudit(self.record, self.history)
        self.dead = Dead()
        self.names: dict[bytes, str] = {}

    def run(self) -> None:
        try:
            refuse_links(self.root)
        except Damaged as error:
            self.record.find(self.root, error.fact)
            return  # and nothing is moved, least of all to somewhere else
        try:
            is_old = self._root()
        except LaterFormat as error:
            self.record.find(self.root / "zarr.json", error.fact)
            return  # nobody here knows what belongs in it
        self.past.read_log()
        self.dead = self.past.read_marks(is_old=is_old)
        for part in PARTS:
            if not (self.root / part).is_dir():
                self.record.find(self.root / part, GONE, mends=MADE)
                if not self.repair:
                    continue
                disk.make_folder(self.root / part, below=self.root)
            self.record.group(self.root / part, group_document({}))
        self._strangers(self.root / "photos")
        self._segments_of(self.root / "photos", "photos", "", self._photo_ids())
        for part in ("spaces", APART, "faces"):
            for name in self.record.children(self.root / part):
                if name != "zarr.json":
                    self._space(self.root / part / name, part)
        self.past.read_refs()
        for folder in work_folders(self.root):
            self.record.left += leftovers(folder)
        self.record.left += staged(self.root)
        self._remembered()
        self._set_aside()
        self.record.finish()
        self._unseen()

    def _root(self) -> bool:
        """The cache's own folder; whether it is of the older format."""
        is_old = False
        try:
            check_group(self.root, root_document(OLD_FORMAT))
        except LaterFormat:
            raise
        except CacheError:
            self.record.group(self.root, root_document())
        else:
            self.report.files += 1
            is_old = True
            if (self.root / LOG).exists():  # a program that knows no log might remove here
                self.record.group(self.root, root_document())
        for name in self.record.children(self.root):
            if name not in {"zarr.json", *FOLDERS}:
                self.record.find(self.root / name, STRANGE)
        return is_old

    def _remembered(self) -> None:
        """What this machine remembered before photos were forgotten."""
        with contextlib.suppress(Damaged):  # of the tombstones, which is named where they are read
            for path in [*memory.outdated(self.root)]:
                problem = (
                    "is remembered from before photos were forgotten, perhaps of these. "
                    f"'embedcache compact {self.report.cache}' deletes it"
                )
                self.record.find(path, problem, mends=REMOVED, passing=True)
            if self.repair:
                with disk.plain_errors("repair", self.root):
                    memory.delete_outdated(self.root)

    def _set_aside(self) -> None:
        """Tell of rows of forgotten photos in damaged/, which is no part of the cache: nobody but
        the user deletes there."""
        if not self.dead or (self.root / DAMAGED).is_symlink():
            return
        for path in sorted((self.root / DAMAGED).glob("*")):
            n_rows = sum(int(self.dead.of(rows).sum()) for rows in _contents_below(path))
            if n_rows:
                self.report.notes.append(
                    f"{self.record.name(path)} was set aside, and stores "
                    f"{counted(n_rows, 'row')} of forgotten photos: keep what is yours, then "
                    "delete it"
                )

    def _unseen(self) -> None:
        """What this did not look at."""
        for name, what in (
            ("local", "this machine's indexes, which are rebuilt"),
            ("damaged", "what was set aside"),
        ):
            if any((self.root / name).glob("*")):
                self.report.unseen.append(f"{name}/ ({what})")
        self.report.unseen += [self.record.name(path) for path in self.record.hidden]

    def _photo_ids(self) -> PhotoIds:
        return PhotoIds(self.root / "photos", history=self.history)

    def _space(self, folder: Path, part: str) -> None:
        if folder.is_symlink():
            self.record.find(folder, LINK)
            return
        try:
            if not HEX_DIGEST.fullmatch(folder.name):
                raise Damaged("does not belong in a cache")
            of = self._store(folder, part, self._subject(folder, part))
        except CacheError as error:
            self._lose(folder, KINDS[part], error)
            return
        self._strangers(folder)
        segments = self._segments_of(folder, KINDS[part], folder.name[:8], of)
        try:
            self._forgotten(segments, of)
            compare_duplicates(segments, self.report, values=part != "faces")
        except EmbedcacheError:
            if all(segment.folder.exists() for segment in segments):
                raise

    def _subject(self, folder: Path, part: str) -> dict[str, Json]:
        """The document of a space; CacheError where its own is damaged and nothing proves it."""
        key = "detector" if part == "faces" else "spec"
        try:
            document = own_attributes(folder).get(key)
            if not isinstance(document, dict) or face_digest(document) != folder.name:
                raise Damaged("is not named after what it holds")
            self.report.files += 1
        except CacheError:
            document = proven_subject(folder, key=key)
            if document is None:
                raise
            self.record.group(folder, group_document({"embedcache": {key: document}}))
        return document

    def _store(self, folder: Path, part: str, document: dict[str, Json]) -> Space | FaceSpace:
        if part == "faces":
            return FaceSpace(folder, document, folder.name, history=self.history)
        return Space(folder, Spec.parse(document), history=self.history)

    def _strangers(self, folder: Path) -> None:
        for name in self.record.children(folder):
            if name not in ("zarr.json", "segments"):
                self.record.find(folder / name, STRANGE)

    def _segments_of(
        self, folder: Path, kind: Kind, label: str, of: Space | FaceSpace | PhotoIds
    ) -> list[Segment]:
        segments = folder / "segments"
        if not self._is_folder(segments):
            return []
        self.record.group(segments, group_document({}))
        if self.repair:
            self._end_removals(of)
        self.record.left += leftovers(segments)
        space = None if kind == "photos" else folder.name
        good, broken = [], []
        for name in self.record.children(segments):
            path = segments / name
            if name == "zarr.json":
                continue
            if f"{of.key}/{name}" in self.past.log.gone:
                problem = (
                    "was removed but is not deleted yet. 'embedcache compact "
                    f"{self.report.cache}' deletes it"
                )
                self.record.find(path, problem, passing=True)
                continue
            if not is_segment_id(name) or path.is_symlink():
                if path.is_symlink():
                    self.record.find(path, LINK)
                else:
                    self.record.find(path, "is not a segment", move=path)
                continue
            segment = _checked(path, kind, space)
            if segment is None:
                continue
            if isinstance(segment, NotACache):
                self.record.find(path, segment.fact)  # of a later format: nobody here knows more
                continue
            if isinstance(segment, Exception):
                broken.append(Broken(path, kind, space, label, segment, of))
                continue
            self.report.count(segment.manifest)
            if kind == "photos":
                self.names.update(
                    (content, photo) for photo, content in zip(*read_pairs(segment), strict=True)
                )
                self._forgotten([segment], of)
            self.record.left += leftovers_inside(segment)
            good.append(segment)
            self.past.manifests[name] = segment.digest
        # Those whose manifest cannot be read first: they stand in the way of every look.
        for one in sorted(broken, key=Broken.has_manifest):
            self._broken(one)
        if self.repair:  # the draft of a repair that was killed, for example
            with contextlib.suppress(CacheError, OSError):
                of.salvage()
        return good

    def _is_folder(self, path: Path) -> bool:
        """Whether there is a folder, also one that repair has just made; says why not."""
        if path.is_dir() and not path.is_symlink():
            return True
        if os.path.lexists(path):
            self.record.find(path, LINK if path.is_symlink() else NO_FOLDER)
            return False
        self.record.find(path, GONE, mends=MADE)
        if self.repair:
            disk.make_folder(path, below=self.root)
        return self.repair

    def _end_removals(self, of: Space | FaceSpace | PhotoIds) -> None:
        """What a repair that was killed has entered in the log, and not yet moved or deleted."""
        with contextlib.suppress(Damaged):  # of the log, which this looks at elsewhere
            for name in sorted(of.history.log().gone):
                key, _, segment = name.partition("/")
                path = of.segments_folder / segment
                if key == of.key and path.is_dir():
                    space = None if of.kind == "photos" else of.key
                    if isinstance(_checked(path, of.kind, space), EmbedcacheError):
                        self.record.find(path, "was removed by a repair", move=path)
            with disk.plain_errors("repair", self.root):
                finish(of)

    def _broken(self, broken: Broken) -> None:
        """A segment that is not as it was written: say which photos are lost, and repair."""
        repaired, name = None, broken.label
        if self.repair:
            with disk.plain_errors("repair", self.root):
                repaired = set_aside(self.root, broken)
            if repaired is None:
                return  # it is as it should be after all, or gone
        with disk.plain_errors("read", broken.path):
            left = broken.left() if repaired is None else repaired.left
        if left.segment is not None and left.segment.name:
            name = f"{left.segment.name}#{broken.label}" if broken.label else left.segment.name
        lost = left.ids
        if broken.kind != "photos":
            lost = [self.names[content] for content in left.contents if content in self.names]
        moved = ""
        if repaired is not None and repaired.restored:
            moved = RESTORED
        elif repaired is not None and repaired.target is not None:
            moved = self.record.name(repaired.target)
        fact = broken.error.fact if isinstance(broken.error, EmbedcacheError) else broken.error
        self.record.find(
            broken.path,
            f"{fact}; {left.why}" if left.why else str(fact),
            space=name,
            segment=broken.path.name,
            lost_rows=left.n_lost,
            lost=lost,
            move=None if self.repair else broken.path,
            moved=moved,
        )

    def _lose(self, folder: Path, kind: Kind, error: EmbedcacheError) -> None:
        """A whole space that cannot be used: say which photos are lost with its segments."""
        n_rows, lost, name = 0, list[str](), folder.name[:8]
        inner = folder / "segments"
        for path in (inner / one for one in self.record.children(inner) if is_segment_id(one)):
            with contextlib.suppress(EmbedcacheError, OSError):
                segment = Segment.read(str(path), kind=kind, space=folder.name)
                n_rows += segment.manifest.n_rows
                name = f"{segment.name}#{folder.name[:8]}" if segment.name else name
                contents = [row.tobytes() for row in segment.column("digest")]
                lost += [self.names[content] for content in contents if content in self.names]
        self.record.find(
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
                self.record.find(
                    segment.folder,
                    f"still stores {back} {what}, which are hidden. 'embedcache forget "
                    f"{self.report.cache} --forgotten' removes them",
                    passing=True,
                )


def _contents_below(folder: Path) -> Iterator[U8]:
    """The contents, (n, 32), that each segment in a folder names, where these can be read."""
    for parent, folders, _ in os.walk(folder):
        if "digest" in folders:
            yield np.frombuffer(b"".join(contents_named(Path(parent))), np.uint8).reshape(-1, 32)


def _checked(path: Path, kind: Kind, space: str | None) -> Segment | Exception | None:
    """A segment, read whole; what is wrong with it; None for a draft, and for one that went.

    Looked at twice before it is called wrong: a draft may just have become a segment.
    """
    with disk.plain_errors("read", path):  # what may not be read is not damaged
        for look in (1, 2):
            try:
                segment = read_segment(str(path), kind=kind, space=space)
                if segment is not None:
                    check_segment(segment)
                return segment
            except (EmbedcacheError, FileNotFoundError) as error:
                if not path.exists():
                    return None
                if look == 2:
                    return error
    raise AssertionError("unreachable")
