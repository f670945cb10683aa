"""What an audit of a cache takes down, and what it takes back after a second look."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.spec import Json
from embedcache.store import journal
from embedcache.store.disposal import set_aside
from embedcache.store.layout import check_group
from embedcache.store.log import read_log
from embedcache.store.manifest import MANIFEST
from embedcache.store.refs import counts, read_aside
from embedcache.store.salvage import Leftover, collect, own_litter
from embedcache.store.zarr_json import encode_document
from embedcache.upkeep.findings import NO_FILE, PUT_BACK, REMOVED, REWRITTEN, Finding, Report

# Rows may be in these: a cache's own commands and a push know how to keep or remove them.
_WITH_ROWS = (".new-", ".in-", ".draft-", ".gone-", ".push-")
SECOND_LOOK_SECONDS = 0.2  # at what may be gone in a moment


class Record:
    """The findings of one audit.

    root: of the cache. left: work in progress that was met. hidden: names that are not ours.
    """

    def __init__(self, root: Path, report: Report, *, repair: bool) -> None:
        self.root = root
        self.report = report
        self.repair = repair
        self.left: list[Leftover] = []
        self.hidden: list[Path] = []
        self._found: list[tuple[Finding, Path]] = []
        self._passing: list[Path] = []

    def find(
        self,
        path: Path,
        problem: str,
        *,
        space: str = "",
        segment: str = "",
        lost_rows: int = 0,
        lost: Sequence[str] = (),
        move: Path | None = None,
        mends: str = "",
        moved: str = "",
        passing: bool = False,
    ) -> None:
        """Take down what is wrong with a path.

        move: what `repair` sets aside; mends: what `repair` does instead. Without either, repair
            leaves it alone, and `problem` says what to do.
        moved: where the caller has set it aside, or how it has repaired it.
        passing: somebody alive may be about to remove it.
        """
        if self.repair:
            moved = moved or mends
        if self.repair and move is not None:
            with disk.plain_errors("repair", self.root), contextlib.suppress(FileNotFoundError):
                moved = self.name(set_aside(self.root, move))
        finding = Finding(
            path=self.name(path),
            problem=problem.replace(f"{self.root}{os.sep}", ""),
            space=space,
            segment=segment,
            lost_rows=lost_rows,
            lost=tuple(lost),
            moved=moved,
            mendable=bool(move or mends or moved),
        )
        self.report.findings.append(finding)
        if not moved and os.path.lexists(path):
            self._found.append((finding, path))
        if passing:
            self._passing.append(path)

    def group(self, folder: Path, document: dict[str, Json]) -> None:
        """Check a group's zarr.json; where everything in it is known, `repair` rewrites it."""
        try:
            check_group(folder, document)
        except CacheError as error:
            file = folder / "zarr.json"
            if file.is_dir() and not file.is_symlink():
                self.find(file, NO_FILE)
                return
            mendable = not folder.is_symlink()
            if self.repair and mendable:
                disk.replace(file, encode_document(document))
            self.report.findings.append(
                Finding(
                    path=self.name(file),
                    problem=error.fact,
                    moved=REWRITTEN if self.repair and mendable else "",
                    mendable=mendable,
                )
            )
        else:
            self.report.files += 1

    def children(self, folder: Path) -> list[str]:
        """The names in a folder; hidden ones that are not ours are noted as not looked at."""
        if not folder.is_dir() or folder.is_symlink():
            return []
        names = sorted(os.listdir(folder))
        hidden = [name for name in names if name.startswith(".")]
        self.hidden += [folder / name for name in hidden if not own_litter(name)]
        links = [name for name in hidden if (folder / name).is_symlink()]
        return [*links, *(name for name in names if not name.startswith("."))]

    def name(self, path: Path) -> str:
        """A path as the report shows it."""
        return path.relative_to(self.root).as_posix()

    def finish(self) -> None:
        """Look again at what may be gone by now, and take down what is still left."""
        idle = [left.path for left in self.left if not left.holder]
        _wait_for([*idle, *self._passing])
        for left in self.left:
            if left.path.exists() and not _is_tidied(left.path):
                self._find_left(left)
        # What is gone was taken away by somebody alive: nothing is wrong with it any more.
        gone = {id(found) for found, path in self._found if not os.path.lexists(path)}
        self.report.findings = [f for f in self.report.findings if id(f) not in gone]

    def _find_left(self, left: Leftover) -> None:
        """What is being written is named; what a process that died left is a finding."""
        self.report.leftovers += 1
        if left.holder and left.path.name.startswith(".push-"):
            self.report.notes.append(
                f"{self.name(left.path)} is an unfinished push: it runs, or was cut off and ends "
                "with the next push from the same cache. What it holds is not looked at here: "
                f"'embedcache verify {self.root.as_uri()}' does"
            )
        elif left.holder:
            self.report.notes.append(f"{self.name(left.path)} is being written by {left.holder}")
        elif left.path.name.startswith(".") and not left.path.name.startswith(_WITH_ROWS):
            aside = read_aside(self.root, left.path) if left.path.parent.name == "refs" else None
            is_ref = aside is not None and counts(aside, read_log(self.root))
            if self.repair and not collect(left.path, cache=self.root):
                return  # somebody is at work on it after all, or has removed it
            if aside is not None and is_ref:
                what = f"is ref {aside.pins.name}, put aside by a process that has ended"
                self.find(left.path, what, mends=PUT_BACK)
            else:
                self.find(left.path, "was left by a process that has ended", mends=REMOVED)
        elif left.path.name.startswith("outgoing-"):
            self.find(
                left.path,
                "was left by an interrupted push or compact of a shared copy, and holds only "
                f"copies of rows. 'embedcache compact {self.report.cache}' deletes it, and so does "
                "rerunning the command",
            )
        elif "local" in (left.path.parent.name, left.path.parent.parent.name):
            self.find(
                left.path,
                "was left by an interrupted pull or purge: rerun it to use what has come, "
                "or delete this",
            )
        elif _has_lost_its_lease(left.path):
            if not (left.path / journal.FOLDER).is_dir():
                return  # it has been published between two looks
            self.find(
                left.path,
                f"has no {journal.FOLDER}/lease.json that can be read, and nobody writes it. "
                f"'embedcache compact {self.report.cache}' keeps the rows that it can, and moves "
                "what it cannot use to damaged/",
            )
        else:
            self.find(
                left.path,
                "was left by a process that has ended. 'embedcache compact "
                f"{self.report.cache}' keeps its rows and removes it",
            )


def _has_lost_its_lease(path: Path) -> bool:
    """Whether a draft has no lease that can be read; under a hidden name it may have none yet."""
    named = not path.name.startswith(".") and (path / journal.FOLDER).is_dir()
    return named and not journal.has_lease(path)


def _wait_for(paths: Sequence[Path]) -> None:
    """Wait while some of these go: whoever removes them is at it, and may not be done."""
    n_before = len(paths) + 1
    while paths and len(paths) < n_before:
        time.sleep(SECOND_LOOK_SECONDS)
        n_before, paths = len(paths), [path for path in paths if os.path.lexists(path)]


def _is_tidied(path: Path) -> bool:
    """Whether a folder that was a draft is a segment now, with nothing left of its writing."""
    hidden = path.name.startswith(".")
    return not hidden and (path / MANIFEST).exists() and not (path / journal.FOLDER).exists()
