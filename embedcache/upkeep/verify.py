"""Verify a cache, every file and every row of it, and set aside what is damaged."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, Damaged, EmbedcacheError
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.check import check_segment
from embedcache.store.columns import Kind
from embedcache.store.index import repeats
from embedcache.store.layout import (
    APART,
    FOLDERS,
    KINDS,
    PARTS,
    check_group,
    face_digest,
    read_attributes,
    refuse_links,
    root_document,
)
from embedcache.store.manifest import HEX_DIGEST, SEGMENT_ID
from embedcache.store.photo_ids import read_pairs
from embedcache.store.reader import read_rows
from embedcache.store.refs import read_ref
from embedcache.store.segment import Segment, read_segment
from embedcache.store.tombstones import FOLDER as TOMBSTONES
from embedcache.store.tombstones import Tombstones, forgotten, newer, read_tombstone
from embedcache.store.zarr_json import encode_document, group_document
from embedcache.upkeep.findings import REWRITTEN, Finding, Report

U8 = NDArray[np.uint8]

BLOCK_ROWS = 1024


def verify(cache: Cache | Path | str, *, repair: bool = False) -> Report:
    """Read every file, checksum and row of a cache, and say what is wrong.

    repair: move what is damaged to <cache>/damaged and rewrite group metadata that can be known;
        the report then says which photos to extract again.
    Raises NotACache where there is no cache at all. Refs, ids and vectors are all checked; local/
    and damaged/ are not part of a cache.
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
        self.manifests: dict[str, str] = {}
        self.names: dict[bytes, str] = {}

    def run(self) -> None:
        try:
            refuse_links(self.root)
        except Damaged as error:
            self._find(self.root, str(error))
            return  # and nothing is moved, least of all to somewhere else
        self._group(self.root, root_document())
        for name in self._children(self.root):
            if self._leftover(self.root / name):
                continue
            if name not in {"zarr.json", *FOLDERS}:
                self._find(self.root / name, "is not embedcache's")
        for part in PARTS:
            if not (self.root / part).is_dir():
                self._find(self.root / part, "is missing, with all that it held")
                if not self.repair:
                    continue
                (self.root / part).mkdir()
            self._group(self.root / part, group_document({}))
        self._strangers(self.root / "photos")
        self._segments_of(self.root / "photos", "photos", None, "")
        gone = self._tombstones()
        for part in ("spaces", APART, "faces"):
            for name in self._children(self.root / part):
                if name != "zarr.json" and not self._leftover(self.root / part / name):
                    self._space(self.root / part / name, part, gone)
        self._refs()

    def _space(self, folder: Path, part: str, gone: Tombstones) -> None:
        try:
            if not HEX_DIGEST.fullmatch(folder.name) or folder.is_symlink():
                raise Damaged("is not embedcache's")
            attributes = read_attributes(folder)
            document = attributes.get("detector" if part == "faces" else "spec")
            if not isinstance(document, dict) or face_digest(document) != folder.name:
                raise Damaged("is not named after what it holds")
        except CacheError as error:
            inner = folder / "segments"
            if inner.is_dir() and not inner.is_symlink():
                self._group(inner, group_document({}), quiet=True)
            try:
                read_attributes(folder)
            except CacheError:
                paths = [inner / name for name in self._children(inner) if SEGMENT_ID.match(name)]
                self._lose(folder, paths, KINDS[part], folder.name, folder.name[:8], error)
                return
            where = self._name(inner / "zarr.json")
            self.report.findings.append(Finding(path=where, problem=str(error), moved=REWRITTEN))
        self.report.files += 2
        self._strangers(folder)
        segments = self._segments_of(folder, KINDS[part], folder.name, folder.name[:8])
        try:
            self._across(segments, part, gone)
        except EmbedcacheError:
            if all(segment.folder.exists() for segment in segments):
                raise

    def _strangers(self, folder: Path) -> None:
        for name in self._children(folder):
            if name not in ("zarr.json", "segments") and not self._leftover(folder / name):
                self._find(folder / name, "is not embedcache's")

    def _segments_of(
        self, folder: Path, kind: Kind, space: str | None, label: str
    ) -> list[Segment]:
        segments = folder / "segments"
        if not segments.is_dir() or segments.is_symlink():
            self._find(segments, "is missing, with all that it held")
            if not self.repair or segments.is_symlink():
                return []
            segments.mkdir()
        if kind == "photos":
            self._group(segments, group_document({}))
        good = []
        for name in self._children(segments):
            path = segments / name
            if name == "zarr.json" or self._leftover(path):
                continue
            if not SEGMENT_ID.fullmatch(name) or path.is_symlink():
                self._find(path, "is not a segment")
                continue
            with disk.plain_errors("read", path):  # what may not be read is not damaged
                segment = self._segment(path, kind, space, label)
            if segment is not None:
                good.append(segment)
                self.manifests[name] = segment.digest
        return good

    def _segment(self, path: Path, kind: Kind, space: str | None, label: str) -> Segment | None:
        """A segment that is as it was written; None for one that is not, or not yet there."""
        try:
            segment = read_segment(str(path), kind=kind, space=space)
            if segment is None:
                self.report.leftovers += 1
                return None
            check_segment(segment)
            self.report.count(segment.manifest)
        except (EmbedcacheError, FileNotFoundError) as error:
            if path.exists():  # else it was compacted away, or forgotten, meanwhile
                self._lose(path, [path], kind, space, label, error)
            return None
        if kind == "photos":
            for photo, content in zip(*read_pairs(segment), strict=True):
                self.names[content] = photo
        return segment

    def _lose(
        self,
        path: Path,
        segments: Sequence[Path],
        kind: Kind,
        space: str | None,
        label: str,
        error: Exception,
    ) -> None:
        """What lies at `path` is damaged: say which photos are lost with its segments."""
        n_rows, lost, name = 0, [], label
        for folder in segments:
            with contextlib.suppress(EmbedcacheError, OSError):
                segment = Segment.read(str(folder), kind=kind, space=space)
                n_rows += segment.manifest.n_rows
                name = f"{segment.manifest.name}#{label}" if segment.manifest.name else name
                if kind == "photos":
                    lost += read_pairs(segment)[0]
                else:
                    raw = segment.column("digest").tobytes()
                    contents = [raw[i : i + 32] for i in range(0, len(raw), 32)]
                    lost += [self.names[content] for content in contents if content in self.names]
        self._find(
            path,
            str(error),
            space=name,
            segment=path.name,
            lost_rows=n_rows,
            lost=lost,
            move=path,
        )

    def _across(self, segments: Sequence[Segment], part: str, gone: Tombstones) -> None:
        """Rows stored twice (do they differ?), and rows that were forgotten and are still here."""
        number, row, digests = [], [], []
        for i, segment in enumerate(segments):
            mine = segment.column("digest")
            if back := int(forgotten(mine, newer(gone, segment.id)).sum()):
                self._find(segment.folder, f"holds {back} forgotten photos: forget them again")
            n_ok = segment.manifest.n_ok
            digests.append(mine[:n_ok])
            number.append(np.full(n_ok, i))
            row.append(np.arange(n_ok))
        if not digests:
            return
        places = np.stack([np.concatenate(number), np.concatenate(row)], axis=1)
        again = [
            ((int(a[0]), int(a[1])), (int(b[0]), int(b[1])))
            for a, b in zip(*(places[at] for at in repeats(np.concatenate(digests))), strict=True)
        ]
        self.report.duplicates += len(again)
        if part == "faces":
            return
        for start in range(0, len(again), BLOCK_ROWS):
            block = again[start : start + BLOCK_ROWS]
            ours = _rows_at(segments, [place for place, _ in block])
            theirs = _rows_at(segments, [place for _, place in block])
            distance = np.abs(ours - theirs).max(axis=1)
            self.report.differing += int((distance > 0).sum())
            self.report.largest_difference = max(
                self.report.largest_difference, float(distance.max())
            )

    def _tombstones(self) -> Tombstones:
        gone: dict[bytes, str] = {}
        for name in self._children(self.root / TOMBSTONES):
            path = self.root / TOMBSTONES / name
            if self._leftover(path):
                continue
            try:
                gone |= dict.fromkeys(read_tombstone(self.root, name), name)
            except EmbedcacheError as error:
                told = f"{error}. Forget its photos again, or a merge may bring them back"
                self._find(path, told, move=path)
            else:
                self.report.files += 1
        return gone

    def _refs(self) -> None:
        folder = self.root / "refs"
        if not folder.exists():
            return
        for name in self._children(folder):
            path = folder / name
            if self._leftover(path):
                continue
            try:
                pins = read_ref(self.root, path.stem)
                if path.suffix != ".json":
                    raise Damaged("is not a ref")
            except EmbedcacheError as error:
                self._find(path, str(error), move=path)
                continue
            self.report.files += 1
            wanted = [pinned.items() - self.manifests.items() for pinned in pins.parts]
            if missing := sorted(name for part in wanted for name, _ in part):
                told = f"pins segment {missing[0]}, which is gone or damaged"
                if len(missing) > 1:
                    told += f", and {len(missing) - 1} others"
                told += ". The ref holds again once they are back (merge or pull them)"
                self._find(path, told, move=path)

    def _group(self, folder: Path, document: dict[str, Json], *, quiet: bool = False) -> None:
        """Check a group's zarr.json; where everything in it is known, `repair` writes it anew."""
        try:
            check_group(folder, document)
        except CacheError as error:
            moved = ""
            if self.repair and not folder.is_symlink():
                disk.replace(folder / "zarr.json", encode_document(document))
                moved = REWRITTEN
            if not quiet:
                self.report.findings.append(
                    Finding(path=self._name(folder / "zarr.json"), problem=str(error), moved=moved)
                )
        else:
            self.report.files += 1

    def _leftover(self, path: Path) -> bool:
        """Hidden names are work in progress, or what a crash left of it."""
        if path.name.startswith(".") and not path.is_symlink():
            self.report.leftovers += 1
            return True
        return False

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
    ) -> None:
        moved = ""
        if self.repair and move is not None:
            with disk.plain_errors("repair", self.root):
                target = self.root / "damaged" / "-".join(move.relative_to(self.root).parts)
                target.parent.mkdir(exist_ok=True)
                if target.exists():
                    shutil.rmtree(target)
                move.rename(target)
            moved = self._name(target)
        self.report.findings.append(
            Finding(
                path=self._name(path),
                problem=problem.replace(f"{self.root}{os.sep}", "").partition(". Run 'embed")[0],
                space=space,
                segment=segment,
                lost_rows=lost_rows,
                lost=tuple(lost),
                moved=moved,
            )
        )

    def _children(self, folder: Path) -> list[str]:
        return sorted(os.listdir(folder)) if folder.is_dir() and not folder.is_symlink() else []

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _rows_at(segments: Sequence[Segment], places: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    geometry = segments[places[0][0]].manifest.geometry
    assert geometry is not None
    out = np.empty((len(places), geometry.dim), dtype="<f4")
    owner = np.array([number for number, _ in places])
    row = np.array([row for _, row in places])
    for number in np.unique(owner).tolist():
        slots = np.flatnonzero(owner == number)
        segment = segments[number]
        columns = {"row_crc": segment.column("row_crc")}
        read_rows([(segment, columns, row[slots], slots)], out, n_rows=len(slots))
    return out
