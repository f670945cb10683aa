"""Near-duplicates on two sides of a split: which test photos they concern, and what they change.

A head that saw a copy of a test photo while it was trained, or that was chosen by one, may remember
in place of predicting. The cheapest honest measure needs no further fit: the figures of the same
head, on the same test photos without those that have a near-duplicate elsewhere. A second fit with
the groups kept together would test other photos, and differ for that reason too.
"""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from embedcache.wording import counted
from heads.study.kept import KeptFit

Bool = NDArray[np.bool_]


def parted(fit: KeptFit, group_of: Mapping[str, int]) -> Bool:
    """Which of the n test photos of a fit have a near-duplicate on another side, (n,).

    group_of: the number of each id's group; ids without near-duplicates are not in it.
    """
    place = np.array(fit.fold) if fit.folds else np.zeros(len(fit.ids), np.int64)
    sides: dict[int, set[int]] = {}
    for name, side in zip(fit.ids, place.tolist(), strict=True):
        if name in group_of:
            sides.setdefault(group_of[name], set()).add(side)
    for name in fit.others:
        if name in group_of:
            sides.setdefault(group_of[name], set()).add(-1)
    return np.array([len(sides.get(group_of.get(name, -1), ())) > 1 for name in fit.ids], np.bool_)


def remark(fit: KeptFit, torn: Bool) -> str:
    """What near-duplicates on two sides do to the figure of the head that dev chose."""
    n, head = int(torn.sum()), fit.chosen_head()
    which = (
        f"{n:,} of {counted(len(torn), 'test photo')} {'has' if n == 1 else 'have'} a "
        "near-duplicate on another side of the split"
    )
    if n == len(torn):
        return f"{which}: the figures say nothing of new photos"
    mass, losses = fit.sample().mass, fit.losses(head)
    whole, without = (
        float(np.average(losses[rows], weights=mass[rows]))
        for rows in (np.ones(len(torn), np.bool_), ~torn)
    )
    what, scale, digits = (
        ("mean squared error", 1, 4)
        if fit.task == "regression"
        else (
            "share of wrong answers in %",
            100,
            1,
        )
    )
    return (
        f"{which}. Without them the {what} of {head} is {scale * without:.{digits}f} in place of "
        f'{scale * whole:.{digits}f}. `keep_together` = "near-duplicates" keeps them on one side'
    )


def with_remarks(
    fits: Sequence[KeptFit], group_of: Mapping[str, int]
) -> tuple[list[KeptFit], list[str]]:
    """The fits, those whose split parts near-duplicates with a note; and a warning per subset."""
    found: list[KeptFit] = []
    warnings: dict[str, str] = {}
    for fit in fits:
        torn = parted(fit, group_of)
        if torn.any():
            note = remark(fit, torn)
            fit = msgspec.structs.replace(fit, notes=(*fit.notes, note))
            warnings.setdefault(fit.subset, f"{fit.target} on {fit.subset}: {note}")
        found.append(fit)
    return found, list(warnings.values())


def numbers(
    ids: Sequence[str], digests: NDArray[np.uint8], near: Mapping[bytes, int]
) -> dict[str, int]:
    """The number of the group of each id that has near-duplicates.

    digests: (n, 32), the ids' contents; zeros for an id that the cache does not know.
    near: the number of each content that has near-duplicates.
    """
    found = zip(ids, (near.get(row.tobytes()) for row in digests), strict=True)
    return {name: number for name, number in found if number is not None}


def partition(digests: NDArray[np.uint8], together: Mapping[bytes, int]) -> str:
    """sha256 of which of n contents (n, 32) stand together, whatever their groups' numbers are; ""
    where nothing does."""
    if not together:
        return ""
    first: dict[int, int] = {}
    found = [together.get(row.tobytes()) for row in digests]
    places = [-1 if k is None else first.setdefault(k, i) for i, k in enumerate(found)]
    return hashlib.sha256(np.array(places, "<i8").tobytes()).hexdigest()
