"""Setting damaged segments aside, and keeping the rows of theirs that can still be proven."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged, EmbedcacheError
from embedcache.store import disposal
from embedcache.store.check import check_segment
from embedcache.store.columns import Kind
from embedcache.store.layout import bring_over
from embedcache.store.log import UNKNOWN, Entry, Gone, Log, append
from embedcache.store.manifest import MANIFEST, replacement_id
from embedcache.store.photo_ids import PhotoIds, ids_of
from embedcache.store.remains import IDS, Remains, contents_named, remains_of
from embedcache.store.removal import Victim
from embedcache.store.segment import Segment, read_segment
from embedcache.store.space import FaceSpace, Space


@dataclass(frozen=True, slots=True)
class Broken:
    """A segment's folder that is not as it was written. of: the set that it lies in."""

    path: Path
    kind: Kind
    space: str | None
    label: str
    error: Exception
    of: Space | FaceSpace | PhotoIds

    def has_manifest(self) -> bool:
        """Whether its manifest is as it was written."""
        try:
            Segment.read(str(self.path), kind=self.kind, space=self.space)
        except (EmbedcacheError, FileNotFoundError):
            return False
        return True

    def left(self) -> "Left":
        """What can still be proven of it."""
        segment = remains_of(self.path, kind=self.kind, space=self.space)
        if segment is None:
            named = contents_named(self.path)
            return Left(None, np.zeros(len(named), np.bool_), contents=named)
        try:
            readable = self.of.readable(segment) & ~segment.unproven()
        except (Damaged, FileNotFoundError):
            readable = np.zeros(segment.manifest.n_rows, np.bool_)
        rows = np.flatnonzero(~readable)
        contents, ids = list[bytes](), list[str]()
        if "digest" not in segment.lost:
            contents = [row.tobytes() for row in segment.column("digest")[rows]]
        if self.kind == "photos" and not segment.lost & IDS:
            with contextlib.suppress(Damaged):
                every = ids_of(segment)
                ids = [every[row] for row in rows.tolist()]
        return Left(segment, readable, contents=contents, ids=ids)


@dataclass(frozen=True, slots=True, eq=False)
class Left:
    """What is left of a broken segment, and which of its rows can be read, (n,).

    segment: None where not even its manifest can be known; the rows are then those that its
        digests name.
    contents, ids: of the rows that are lost, as far as these are known; ids of photo segments.
    """

    segment: Remains | None
    readable: NDArray[np.bool_]
    contents: Sequence[bytes] = ()
    ids: Sequence[str] = ()

    @property
    def n_lost(self) -> int:
        return int((~self.readable).sum())

    @property
    def why(self) -> str:
        return "" if self.segment is None else self.segment.why()


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was done. left: what could be kept of the segment.

    target: where the damaged segment is now; None where others have moved or deleted it, and
        where nothing but its manifest was wrong, which is restored.
    """

    left: Left
    target: Path | None
    restored: bool = False


def set_aside(root: Path, broken: Broken) -> Repaired | None:
    """Take a damaged segment out of the cache, by the log, and move it to damaged/.

    Rows of it that can be read stay, in a segment of their own that refs follow. A manifest that
    proves what it was is put back in place. Returns None where the segment is whole after all, or
    gone.
    """
    if not _is_broken(broken):
        return None
    left = broken.left()
    if left.segment is not None and not broken.has_manifest():
        try:
            disk.replace(broken.path / MANIFEST, left.segment.raw)
        except FileNotFoundError:
            return None
        if not _is_broken(broken):
            return Repaired(left, None, restored=True)
    bring_over(root)
    try:
        target = _keep(root, broken, left) if left.readable.any() else _give_up(root, broken, left)
    except (Damaged, FileNotFoundError):
        if broken.path.exists():
            raise
        return None  # another repair was faster
    return Repaired(left, target) if target is not None or broken.path.exists() else None


def _keep(root: Path, broken: Broken, left: Left) -> Path | None:
    """Publish the rows that are left, and take the segment away; where it is now, if that is ours.

    Where another repair was faster, what was written here for nothing goes again.
    """
    segment, of = left.segment, broken.of
    assert segment is not None
    successors: tuple[str, ...] = ()
    keep = left.readable & ~of.dead_rows(segment, of.history.dead())
    if keep.any():
        new = of.rewrite(
            [(segment, np.flatnonzero(keep))],
            about=segment.manifest.about,
            segment_id=replacement_id(segment.id),
        )
        successors = () if new is None else (new,)
    targets: list[Path] = []
    victim = Victim(segment, successors, ~left.readable)
    gone = of.remove(
        [victim], aside=lambda _: targets.append(disposal.set_aside(root, broken.path))
    )
    if not gone and f"{of.key}/{broken.path.name}" in of.history.log().gone:
        vain = [one for one in of.segments() if one.id in successors]
        of.remove([Victim(one) for one in vain])  # each row only where another segment holds it
    return targets[0] if targets else None


def _give_up(root: Path, broken: Broken, left: Left) -> Path | None:
    """Enter a segment of which nothing is left, and move it aside; where it is now, if here."""
    name = f"{broken.of.key}/{broken.path.name}"
    gone = Gone(UNKNOWN if left.segment is None else left.segment.digest, None)

    def decide(log: Log) -> Entry | None:
        return None if name in log.gone else Entry(segments={name: gone})

    append(root, broken.of.history.log(), decide)
    with contextlib.suppress(FileNotFoundError):  # another repair was faster
        return disposal.set_aside(root, broken.path)
    return None


def _is_broken(broken: Broken) -> bool:
    """Whether the segment is, now, there and not as it was written."""
    try:
        segment = read_segment(str(broken.path), kind=broken.kind, space=broken.space)
        if segment is not None:
            check_segment(segment)
    except (EmbedcacheError, FileNotFoundError):
        return broken.path.exists()
    return False
