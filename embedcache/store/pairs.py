"""The pairs (id, content) of one scope, in the order in which they were recorded.

Arrays and no objects: 69 bytes for a pair, of an id of 17 bytes. They lie in a few runs, each with
its own ids in order of their hash, so that a few new pairs cost a little whatever there is already.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from embedcache.store.columns import check_text
from embedcache.store.manifest import moment_of
from embedcache.store.segment import Segment
from embedcache.store.tombstones import Dead
from embedcache.texts import Texts, last_of, met, places

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
Bool = NDArray[np.bool_]
Part = tuple[Texts, U8]

BLOCK_IDS = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """n pairs. hashes: of their ids, (n,), ascending; rows: whose each is, (n,) uint32, and of one
    hash ascending."""

    ids: Texts
    digests: U8
    hashes: U64
    rows: U32

    @classmethod
    def of(cls, ids: Texts, digests: U8) -> "Run":
        hashes = ids.hashes()
        rows = np.argsort(hashes, kind="stable").astype(np.uint32)
        return cls(ids, digests, hashes[rows], rows)

    def __len__(self) -> int:
        return len(self.ids)

    def last(self, asked: Texts, hashes: U64, at: I64) -> I64:
        """The last row of each of k ids, asked[at], with these hashes; -1 for none: (k,)."""
        return last_of(self.ids, self.hashes, self.rows, asked, hashes, at)

    def first(self) -> I64 | None:
        """The first row with the id of each row, (n,); None where every id occurs once."""
        again = np.flatnonzero(self.hashes[1:] == self.hashes[:-1]) + 1
        if not len(again):
            return None
        found = np.arange(len(self))
        rows = self.rows.astype(np.int64)
        same = self.ids.same(rows[again - 1], self.ids, rows[again])
        starts = np.ones(len(self), np.bool_)
        starts[again] = False
        first = np.maximum.accumulate(np.where(starts, np.arange(len(self)), 0))
        found[rows] = rows[first]
        for start in np.unique(first[again[~same]]).tolist():  # several ids with one hash
            stop = start + int(np.searchsorted(self.hashes[start:], self.hashes[start], "right"))
            known: dict[str, int] = {}
            for row in rows[start:stop].tolist():
                found[row] = known.setdefault(self.ids[row], row)
        return found


class Pairs:
    """All pairs of a scope that are not dead; new ones make another `Pairs`."""

    def __init__(self, scope: str, runs: Sequence[Run] = ()) -> None:
        self.scope = scope
        self._runs = tuple(runs)

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def extended(self, segments: Sequence[Segment], dead: Dead) -> "Pairs":
        """With the pairs of later segments, lowest id first, that are not dead."""
        ids, digests = _gathered(_living(self.scope, segments, dead), segments)
        runs = [*self._runs, Run.of(ids, digests)] if len(ids) else [*self._runs]
        while len(runs) > 1 and len(runs[-2]) < 2 * len(runs[-1]):
            runs[-2:] = [_joined(runs[-2:])]
        return Pairs(self.scope, runs)

    def without(self, dead: Dead) -> "Pairs":
        """The pairs that are not dead."""
        runs = []
        for run in self._runs:
            stay = np.concatenate(
                [
                    ~dead.of_pairs(
                        self.scope,
                        run.ids[start : start + BLOCK_IDS],
                        run.digests[start : start + BLOCK_IDS],
                    )
                    for start in range(0, len(run), BLOCK_IDS)
                ]
            )
            if stay.all():
                runs.append(run)
            elif stay.any():
                rows = np.flatnonzero(stay)
                runs.append(Run.of(run.ids.take(rows), run.digests[rows]))
        return Pairs(self.scope, runs)

    def contents(self, ids: Sequence[str]) -> tuple[U8, Bool]:
        """The newest content of n ids: ((n, 32), which are known)."""
        contents = np.zeros((len(ids), 32), np.uint8)
        known = np.zeros(len(ids), np.bool_)
        for start in range(0, len(ids) if self._runs else 0, BLOCK_IDS):
            asked = Texts.of(ids[start : start + BLOCK_IDS])
            hashes = asked.hashes()
            order = np.argsort(hashes)  # neighbours share cache lines
            for run in reversed(self._runs):
                rows = run.last(asked, hashes[order], order)
                there = rows >= 0
                contents[start + order[there]] = run.digests[rows[there]]
                known[start + order[there]] = True
                order = order[~there]
        return contents, known

    def hold(self, ids: Sequence[str], digests: U8) -> Bool:
        """Which of n ids have these contents, (n, 32), as their newest."""
        found = np.zeros(len(ids), np.bool_)
        for start in range(0, len(ids) if self._runs else 0, BLOCK_IDS):
            part = slice(start, start + BLOCK_IDS)
            contents, known = self.contents(ids[part])
            found[part] = known & (contents == digests[part]).all(axis=1)
        return found

    def table(self) -> tuple[Texts, U8, Bool]:
        """Each id with each of its contents once, the newest first: ids in the order in which they
        were first recorded, contents (n, 32), which pairs are the newest of their ids (n,)."""
        if not self._runs:
            return Texts.of([]), np.empty((0, 32), np.uint8), np.empty(0, np.bool_)
        run = self._runs[0] if len(self._runs) == 1 else _joined(self._runs)
        first = run.first()
        if first is None:
            return run.ids, run.digests, np.ones(len(run), np.bool_)
        several = first != np.arange(len(run))
        several[first[several]] = True
        rows = np.flatnonzero(several)
        words = np.ascontiguousarray(run.digests[rows]).view(np.uint64)
        order = np.lexsort((rows, *words.T, first[rows]))
        rows, words = rows[order], words[order]
        last = np.ones(len(rows), np.bool_)  # of one content of an id
        last[:-1] = (words[1:] != words[:-1]).any(axis=1) | (first[rows[1:]] != first[rows[:-1]])
        kept = np.concatenate([np.flatnonzero(~several), rows[last]])
        kept = kept[np.lexsort((-kept, first[kept]))]
        newest = np.ones(len(kept), np.bool_)
        newest[1:] = first[kept[1:]] != first[kept[:-1]]
        return run.ids.take(kept), run.digests[kept], newest


def held_as_newest(asked: Run, scope: str, segments: Sequence[Segment], dead: Dead) -> Bool:
    """Which of n pairs are the newest of their ids in the segments of a scope, lowest id first.

    For more pairs than should be in memory: the segments are read one by one, the latest first.
    """
    held, pending = np.zeros(len(asked), np.bool_), np.ones(len(asked), np.bool_)
    unique = not (asked.hashes[1:] == asked.hashes[:-1]).any()
    for group in reversed(_by_moment(segments)):
        if not pending.any():
            break
        run, at = _met(asked, *_pairs_of(group), scope, dead)
        if not unique:
            at = places(at, np.searchsorted(asked.hashes, asked.hashes[at], "right") - at)
        at = at[pending[asked.rows[at]]]
        rows = asked.rows[at].astype(np.int64)
        found = run.last(asked.ids, asked.hashes[at], rows)
        rows, found = rows[found >= 0], found[found >= 0]
        held[rows] = (run.digests[found] == asked.digests[rows]).all(axis=1)
        pending[rows] = False
    return held


def _met(asked: Run, ids: Texts, digests: U8, scope: str, dead: Dead) -> tuple[Run, I64]:
    """Those of some pairs that are not dead and whose hash is asked for, and where each of their
    hashes begins in `asked`, ascending."""
    order, hashes, at = met(asked.hashes, ids.hashes())
    if dead:
        stay = np.flatnonzero(~dead.of_pairs(scope, ids.take(order), digests[order]))
        order, hashes, at = order[stay], hashes[stay], at[stay]
    rows = np.arange(len(order), dtype=np.uint32)
    begins = np.flatnonzero(np.diff(at, prepend=-1))
    return Run(ids.take(order), digests[order], hashes, rows), at[begins]


def _by_moment(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments, lowest id first, in groups of one moment."""
    return [[*some] for _, some in groupby(segments, key=lambda one: moment_of(one.id))]


def _pairs_of(segments: Sequence[Segment]) -> Part:
    """The pairs of segments of one moment, of which the greater digests count: they come last."""
    parts = [(texts_of(segment), segment.column("digest")) for segment in segments]
    if len(parts) == 1:
        return parts[0]
    digests = np.concatenate([some for _, some in parts])
    order = np.argsort(digests.view("S32").reshape(-1), kind="stable")
    return Texts.joined([ids for ids, _ in parts]).take(order), digests[order]


def _living(scope: str, segments: Sequence[Segment], dead: Dead) -> Iterator[Part]:
    """The pairs of segments that are not dead, as they count: the later ones over others."""
    for group in _by_moment(segments):
        ids, digests = _pairs_of(group)
        if dead:
            stay = np.flatnonzero(~dead.of_pairs(scope, ids, digests))
            if len(stay) < len(ids):
                ids, digests = ids.take(stay), digests[stay]
        yield ids, digests


def texts_of(segment: Segment) -> Texts:
    """The ids of one photo segment, in row order; Damaged where they are no text."""
    offsets, text = segment.column("id_offset"), segment.column("id_text")
    check_text(offsets, text, segment.folder)
    return Texts(offsets, text)


def _gathered(parts: Iterator[Part], segments: Sequence[Segment]) -> Part:
    """The pairs of some segments, one after another, without having them in memory twice."""
    n, size = (
        sum(segment.manifest.lengths[name] for segment in segments)
        for name in ("digest", "id_text")
    )
    offsets, digests = np.zeros(n + 1, np.int64), np.empty((n, 32), np.uint8)
    text = np.empty(size, np.uint8)
    n = size = 0
    for ids, some in parts:
        offsets[n : n + len(ids) + 1] = ids.offsets + size
        digests[n : n + len(ids)] = some
        text[size : size + len(ids.text)] = ids.text
        n, size = n + len(ids), size + len(ids.text)
    return Texts(offsets[: n + 1], text[:size]), digests[:n]


def _joined(runs: Sequence[Run]) -> Run:
    """Several runs as one."""
    ends = np.cumsum([len(run) for run in runs])
    rows = np.concatenate(
        [run.rows + np.uint32(end - len(run)) for run, end in zip(runs, ends, strict=True)]
    )
    hashes = np.concatenate([run.hashes for run in runs])
    order = np.argsort(hashes, kind="stable")
    return Run(
        Texts.joined([run.ids for run in runs]),
        np.concatenate([run.digests for run in runs]),
        hashes[order],
        rows[order],
    )
