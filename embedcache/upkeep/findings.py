"""What `verify` found, for people and for machines."""

from dataclasses import dataclass, field
from pathlib import Path

from embedcache.spec import Json
from embedcache.store.manifest import Manifest
from embedcache.wording import counted

REWRITTEN = "rewritten"
RESTORED = "restored"
GIVEN_UP = "marked as lost"
ENTERED = "added to the removal log"
MADE = "made anew"
REMOVED = "removed"
PUT_BACK = "put back"
_DONE = (REWRITTEN, RESTORED, GIVEN_UP, ENTERED, MADE, REMOVED, PUT_BACK)
LINK = "is a link, which may lead anywhere: move it out of the cache"
NO_FILE = "is a folder in a file's place: move it out of the cache, then rerun this"
NO_FOLDER = "is a file in a folder's place: move it out of the cache, then rerun this"
STRANGE = "is not embedcache's: move it out of the cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be. path is relative to the cache.

    segment: the segment that is damaged. moved: where `repair` put it, or REWRITTEN.
    lost: photos whose rows cannot be read any more, by id where that is known.
    mendable: whether `repair` changes anything about it; otherwise `problem` says what to do.
    """

    path: str
    problem: str
    space: str = ""
    segment: str = ""
    lost_rows: int = 0
    lost: tuple[str, ...] = ()
    moved: str = ""
    mendable: bool = False


@dataclass(slots=True)
class Report:
    """What `verify` found.

    leftovers: files and folders of work in progress, whoever they belong to. notes: what is being
    written, by whom, and what else is no fault. unseen: what was not looked at.
    """

    cache: Path
    files: int = 0
    bytes_read: int = 0
    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    duplicates: int = 0
    differing: int = 0
    largest_difference: float = 0.0
    leftovers: int = 0
    notes: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def count(self, manifest: Manifest) -> None:
        """Add a segment that was read whole."""
        self.files += len(manifest.files) + 1
        self.bytes_read += manifest.bytes_on_disk
        self.rows += manifest.n_rows

    @property
    def clean(self) -> bool:
        return not self.findings

    def document(self) -> dict[str, Json]:
        """The same facts for machines."""
        return {
            "clean": self.clean,
            "files": self.files,
            "bytes": self.bytes_read,
            "rows": self.rows,
            "duplicates": {
                "rows": self.duplicates,
                "differing": self.differing,
                "largest_difference": self.largest_difference,
            },
            "leftovers": self.leftovers,
            "notes": list(self.notes),
            "unseen": list(self.unseen),
            "findings": [
                {
                    "path": found.path,
                    "problem": found.problem,
                    "space": found.space,
                    "lost_rows": found.lost_rows,
                    "lost": list(found.lost),
                    "moved": found.moved,
                }
                for found in self.findings
            ],
        }

    def __str__(self) -> str:
        lines = [
            f"{self.cache}: {counted(self.rows, 'row')} of vectors, failures, faces and photo ids "
            f"in {counted(self.files, 'file')}, {self.bytes_read:,} bytes: "
            + ("as written" if self.clean else counted(len(self.findings), "problem"))
        ]
        for found in self.findings:
            lines.append(f"  {found.path}: {found.problem}")
            if found.moved:
                done = found.moved in (
                    REWRITTEN,
                    RESTORED,
                    GIVEN_UP,
                    ENTERED,
                    MADE,
                    REMOVED,
                    PUT_BACK,
                )
                lines.append(f"    {found.moved if done else f'set aside in {found.moved}'}")
            if found.lost_rows:
                some = ", ".join(found.lost[:5]) + (", ..." if len(found.lost) > 5 else "")
                lines.append(
                    f"    extract again{f' for {found.space}' if found.space else ''}: "
                    f"{counted(found.lost_rows, 'photo')}"
                    f"{f' ({some})' if some else ''}"
                )
        if self.duplicates:
            lines.append(
                f"  {counted(self.duplicates, 'row')} stored more than once, {self.differing:,} "
                f"of them different, by at most {self.largest_difference:.3g}. Readers take "
                "the oldest"
            )
        lines += [f"  {note}" for note in self.notes]
        if self.unseen:
            lines.append(f"  not checked: {', '.join(self.unseen)}")
        helpless = [found for found in self.findings if "'embedcache " not in found.problem]
        if any(found.mendable and not found.moved for found in helpless):
            lines.append(
                f"Run 'embedcache verify --repair {self.cache}': it keeps all that is right, and "
                "sets the rest aside"
            )
        return "\n".join(lines)
