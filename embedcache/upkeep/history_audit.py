"""Verify what a cache says of removals: its log, tombstones, lifts and refs."""

import contextlib
import os
from pathlib import Path

from embedcache import disk
from embedcache.errors import Damaged, EmbedcacheError
from embedcache.store.history import LOST, History, missing_marks, unknown_marks
from embedcache.store.layout import KINDS
from embedcache.store.log import ENTRY, PHOTOS, Entry, Log, create_entry, read_entry
from embedcache.store.log import FOLDER as LOG
from embedcache.store.refs import Pins, read_ref, refs_aside
from embedcache.store.segment import Segment
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
from embedcache.upkeep.findings import ENTERED, GIVEN_UP, STRANGE
from embedcache.upkeep.recording import Record
from embedcache.wording import counted

# Of a tombstone that is lost.
_ADVICE = (
    "Repair the cache, then merge or pull from a copy that still has the file, or forget its "
    "photos again by their sha256: until then an extract, merge or pull may bring them back"
)


class HistoryAudit:
    """Reads each of them once. log: what the entries say.

    manifests: {id: manifest digest} of the segments that are here.
    """

    def __init__(self, record: Record, history: History) -> None:
        self.record = record
        self.history = history
        self.log = Log()
        self.manifests: dict[str, str] = {}

    def read_log(self) -> None:
        """Every entry; none is missing between two."""
        folder = self.record.root / LOG
        names = self.record.children(folder)
        numbers = {int(name) for name in names if name.isdigit() and len(name) == 8}
        written = [n for n in numbers if os.path.lexists(folder / f"{n:08d}" / ENTRY)]
        last = max(written, default=0)
        while last + 1 in numbers:  # its file was lost
            last += 1
        for name in names:
            path = folder / name
            if not (name.isdigit() and len(name) == 8):
                self.record.find(path, STRANGE)
            elif int(name) > last:
                self.record.find(path, "is not embedcache's", move=path)
        entries: list[Entry] = []
        for number in range(1, last + 1):
            path = folder / f"{number:08d}"
            try:
                raw = read_entry(self.record.root, number)
                if raw is None:
                    raise Damaged("is missing")
                if strangers := [name for name in self.record.children(path) if name != ENTRY]:
                    self.record.find(path / strangers[0], STRANGE)
                entries.append(Entry.parse(raw, number=number)[0])
            except EmbedcacheError as error:
                advice = "restore it from a backup, or what it removed may be shown again"
                problem = f"{error.fact}: {advice}"
                self.record.find(path / ENTRY, problem, move=path, mends=GIVEN_UP)
                entries.append(Entry())
                if self.record.repair:
                    create_entry(self.record.root, number, Entry())
            else:
                self.record.report.files += 1
        self.log = Log().with_entries(entries)

    def read_marks(self, *, is_old: bool) -> Dead:
        """Tombstones and lifts: each as it was written, and none missing that the log names."""
        tombstones: dict[str, Tombstone] = {}
        lifts: dict[str, Lift] = {}
        for folder in (TOMBSTONES, LIFTS):
            for name in self.record.children(self.record.root / folder):
                path = self.record.root / folder / name
                try:
                    if folder == TOMBSTONES:
                        tombstones[name] = read_tombstone(self.record.root, name)
                    else:
                        lifts[name] = read_lift(self.record.root, name)
                except EmbedcacheError as error:
                    self.record.find(path, f"{error.fact}. {_ADVICE}", move=path)
                else:
                    self.record.report.files += 1
        dead = join(tombstones, lifts)
        for name in missing_marks(self.log, dead):
            damaged = any(finding.path == name for finding in self.record.report.findings)
            if self.record.repair:
                with disk.plain_errors("repair", self.record.root):
                    self.history.give_up(name)
            if not damaged:
                self.record.find(
                    self.record.root / name,
                    f"is missing, and the removal log names it. {_ADVICE}",
                    mends=GIVEN_UP,
                )
        lost = [name for name, digest in self.log.forgotten.items() if digest == LOST]
        if lost := sorted({*lost} - tombstones.keys()):
            self.record.report.notes.append(
                f"{counted(len(lost), 'tombstone')} could not be read, and repair went on without, "
                f"such as {lost[0]}: whom it named comes back with the next extract or pull. "
                "Forget these photos again, where you know them"
            )
        unknown = unknown_marks(self.log, dead) if not is_old else []
        if unknown and self.record.repair:
            self.history.note()
        for name in unknown:
            self.record.find(
                self.record.root / name,
                "is named by no entry of the removal log: the run that wrote it was interrupted. "
                f"'embedcache forget {self.record.report.cache} --forgotten' finishes it",
                mends=ENTERED,
            )
        return dead

    def read_refs(self) -> None:
        for name in self.record.children(self.record.root / "refs"):
            path = self.record.root / "refs" / name
            try:
                pins = read_ref(self.record.root, path.stem)
                if path.suffix != ".json":
                    raise Damaged("is not a ref")
            except EmbedcacheError as error:
                self.record.find(path, error.found, move=path)
                continue
            self.record.report.files += 1
            if missing := self._missing(pins):
                problem = f"pins segment {min(missing)}, which is gone or damaged"
                if len(missing) > 1:
                    problem += f", and {counted(len(missing) - 1, 'other')}"
                removed = {gone.partition("/")[2] for gone in self.log.gone}
                if not removed & {*missing}:
                    problem += ". Merge or pull what is missing to make the ref work again"
                self.record.find(path, problem, move=path)
        there = {Path(name).stem for name in self.record.children(self.record.root / "refs")}
        there |= {aside.pins.name for aside in refs_aside(self.record.root)}
        for name in sorted(self.log.refs.keys() - there):
            self.record.report.notes.append(f"ref {name} was deleted: it no longer pins anything")

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
        """The log, read on; as it was walked where an entry of it is damaged or missing."""
        try:
            now = self.history.log()
        except EmbedcacheError:
            return self.log
        return now if now.n >= self.log.n else self.log

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
                path = self.record.root / folder / "segments" / segment
                with contextlib.suppress(EmbedcacheError, OSError):
                    self.manifests[segment] = Segment.read(str(path), kind="vectors").digest
        return self.manifests.get(segment)
