"""What a run has to do: what is wanted and not yet present, as arrays.

A plan costs some 50 bytes per photo, whatever the number of backbones; the jobs that threads work
on are made from it a thousand at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from embedcache.backbones.loading import Backbone, leaders_of, shorter_side
from embedcache.extraction.clock import SpaceTally
from embedcache.extraction.face_finder import FaceFinder, boxes_for
from embedcache.extraction.pixels import KeptPixels
from embedcache.extraction.prefetch import Job, Need
from embedcache.photos.digests import Digests
from embedcache.photos.table import Photos
from embedcache.store.columns import ABSENT, FAILED, OK
from embedcache.store.index import distinct
from embedcache.store.rows import RowSet

CHUNK = 1024
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Plan:
    """The m contents that some backbone lacks, in the order of their first photo.

    digests: uint8 (m, 32).  positions: int64 (m,), the first photo of each content.
    copies: int64 (m,), photos of the run with that content.
    wanted: bool (m, k): which of the k backbones lack it.
    """

    digests: U8
    positions: npt.NDArray[np.int64]
    copies: npt.NDArray[np.int64]
    wanted: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.digests)

    def jobs(
        self,
        photos: Photos,
        backbones: Sequence[Backbone],
        faces: FaceFinder,
        kept: KeptPixels | None = None,
    ) -> Iterator[Job]:
        """One job per content; what the cache knows of its faces decides what it needs.

        kept: pixels of the cache, which are read in place of photos.
        """
        leaders = leaders_of(backbones)
        templates = [need(b, backbone) for b, backbone in enumerate(backbones)]
        sees_face = np.array([b.spec.face is not None for b in backbones], bool)
        for start in range(0, len(self), CHUNK):
            chunk = slice(start, start + CHUNK)
            digests, wanted = self.digests[chunk], self.wanted[chunk]
            of_faces = np.flatnonzero((wanted & sees_face).any(axis=1))
            row_of = dict(zip(of_faces.tolist(), range(len(of_faces)), strict=True))
            known = faces.known(digests[of_faces]) if len(of_faces) else None
            readers = {} if kept is None else kept.readers(digests)
            for i in range(len(digests)):
                mine = np.flatnonzero(wanted[i]).tolist()
                needs, detect, refused = [], [], []
                for b in dict.fromkeys(leaders[b] for b in mine):
                    face = backbones[b].spec.face
                    if face is None:
                        own = readers[b][i] if b in readers else None
                        needs.append(replace(templates[b], kept=own) if own else templates[b])
                        continue
                    assert known is not None
                    if not known[1][row_of[i]]:
                        detect.append(b)
                        continue
                    boxes = boxes_for(face, known[0], row_of[i])
                    if isinstance(boxes, str):
                        refused += [(other, boxes) for other in mine if leaders[other] == b]
                    else:
                        needs.append(replace(templates[b], boxes=boxes))
                yield Job(
                    path=photos.paths[self.positions[start + i]],
                    digest=digests[i].tobytes(),
                    wanted=tuple(mine),
                    needs=tuple(needs),
                    detect=tuple(detect),
                    refused=tuple(refused),
                    copies=int(self.copies[start + i]),
                )


def plan(
    photos: Photos, digests: Digests, spaces: Sequence[RowSet | None], *, retry_failed: bool
) -> tuple[Plan, list[SpaceTally]]:
    """Compare the photos with what k spaces hold; None stands for a space that does not exist.

    Returns the plan and, for each space, the counts so far: hits, known failures, and photos that
    were forgotten, which are never wanted, also where another id keeps their content.
    """
    readable = digests.readable
    known = next((space for space in spaces if space is not None), None)
    forgotten = np.zeros(len(photos), np.bool_)
    if known is not None and (dead := known.history.dead()):
        forgotten = dead.of(digests.value) & readable
        left = np.flatnonzero(dead.of_left(digests.value) & readable)
        ids = [photos.ids[i] for i in left.tolist()]
        forgotten[left] |= dead.of_pairs(photos.scope, ids, digests.value[left])
    present = readable & ~forgotten
    wanted = np.zeros((len(photos), len(spaces)), np.bool_)
    tallies = []
    for k, space in enumerate(spaces):
        tally = SpaceTally(wanted=len(photos), forgotten=int(forgotten.sum()))
        tally.failed.update(digests.reasons.values())
        wanted[:, k] = present
        if space is not None:
            status = space.status(digests.value)
            tally.hit = int((present & (status == OK)).sum())
            wanted[:, k] &= status == ABSENT
            failed = np.flatnonzero(present & (status == FAILED))
            if retry_failed:
                wanted[failed, k] = True
            else:
                reasons = space.reasons(digests.value[failed])
                tally.failed.update(reason or "unknown" for reason in reasons)
        tallies.append(tally)
    return _lacking(digests.value, wanted), tallies


def _lacking(digests: U8, wanted: NDArray[np.bool_]) -> Plan:
    """The plan of n photos with contents (n, 32), of which (n, k) are wanted.

    Only what is wanted is compared with itself.
    """
    positions = np.flatnonzero(wanted.any(axis=1))
    some = digests if len(positions) == len(digests) else digests[positions]
    first, copies = distinct(some)
    if len(first) < len(some):
        positions, some = positions[first], some[first]
    return Plan(some, positions, copies, wanted[positions])


def need(b: int, backbone: Backbone) -> Need:
    """What backbone number b needs of a photo; the boxes, if any, are still to be set."""
    p = backbone.preprocessing
    return Need(b, p, shorter_side(p), face=backbone.spec.face)


def subset(todo: Plan, at: NDArray[np.int64]) -> Plan:
    """The rows `at` of a plan."""
    return Plan(todo.digests[at], todo.positions[at], todo.copies[at], todo.wanted[at])
