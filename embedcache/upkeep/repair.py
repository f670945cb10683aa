"""Setting damaged segments aside, and keeping the rows of theirs that can still be read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import EmbedcacheError
from embedcache.store import disposal
from embedcache.store.check import check_segment
from embedcache.store.columns import Kind
from embedcache.store.layout import bring_over
from embedcache.store.log import UNKNOWN, Entry, Gone, Log, append
from embedcache.store.manifest import replacement_id
from embedcache.store.photo_ids import PhotoIds
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

    def segment(self) -> Segment | None:
        """The segment, where its manifest can be read."""
        try:
            segment = Segment.read(str(self.path), kind=self.kind, space=self.space)
            segment.manifest.check_files()
        except (EmbedcacheError, OSError):
            return None
        return segment

    def readable(self) -> NDArray[np.bool_] | None:
        """Which of its rows can still be read, (n,); None where that cannot be known."""
        segment = self.segment()
        try:
            return None if segment is None else self.of.readable(segment)
        except (EmbedcacheError, OSError):
            return None

    def lost(self) -> tuple[int, list[bytes]]:
        """How many rows cannot be read, and their contents as far as these are known."""
        segment, readable = self.segment(), self.readable()
        if segment is None:
            return 0, []
        if readable is not None:
            return int((~readable).sum()), _contents(segment, ~readable)
        every = np.ones(segment.manifest.n_rows, dtype=np.bool_)
        return len(every), _contents(segment, every)


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was done. lost: contents of lost rows.

    target: where the damaged segment is now; None where others have moved or deleted it.
    """

    target: Path | None
    n_lost: int
    lost: list[bytes]


def set_aside(root: Path, broken: Broken) -> Repaired | None:
    """Take a damaged segment out of the cache, by the log, and move it to damaged/.

    Rows of it that can be read stay, in a segment of their own that refs follow. Returns None
    where the segment is whole after all, or gone.
    """
    if not _still_broken(broken):
        return None
    n_lost, lost = broken.lost()
    segment, readable = broken.segment(), broken.readable()
    targets: list[Path] = []
    bring_over(root)
    if segment is not None and readable is not None and readable.any():
        keep = readable & ~broken.of.dead_rows(segment, broken.of.history.dead())
        successors: tuple[str, ...] = ()
        if keep.any():
            new = broken.of.rewrite(
                [(segment, np.flatnonzero(keep))],
                about=segment.manifest.about,
                segment_id=replacement_id(segment.id),
            )
            successors = () if new is None else (new,)
        victim = Victim(segment, successors, ~readable)
        broken.of.remove(
            [victim], aside=lambda _: targets.append(disposal.set_aside(root, broken.path))
        )
    else:
        name = f"{broken.of.key}/{broken.path.name}"
        gone = Gone(UNKNOWN if segment is None else segment.digest, None)

        def decide(log: Log) -> Entry | None:
            return None if name in log.gone else Entry(segments={name: gone})

        append(root, broken.of.history.log(), decide)
        targets.append(disposal.set_aside(root, broken.path))
    return Repaired(targets[0] if targets else None, n_lost, lost)


def _still_broken(broken: Broken) -> bool:
    try:
        segment = read_segment(str(broken.path), kind=broken.kind, space=broken.space)
        if segment is not None:
            check_segment(segment)
    except (EmbedcacheError, FileNotFoundError):
        return broken.path.exists()
    return False


def _contents(segment: Segment, rows: NDArray[np.bool_]) -> list[bytes]:
    try:
        return [row.tobytes() for row in segment.column("digest")[rows]]
    except (EmbedcacheError, OSError):
        return []
