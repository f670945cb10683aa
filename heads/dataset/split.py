"""The side of each row: train, dev or test, whole groups at a time.

A group is the set of rows that must stay together: equal photo contents, equal values of the
column that names the person, and near-duplicates where they are kept together. Where these overlap,
their union. A group's side follows from a hash
of its key and the seed, so that adding photos moves no photo that was there before, unless it joins
two groups.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import LabelsError

SUBSETS = ("train", "dev", "test")
TRAIN, DEV, TEST = range(3)
SHARES = (0.70, 0.15, 0.15)
_ALIASES = {
    "train": TRAIN,
    "training": TRAIN,
    "dev": DEV,
    "val": DEV,
    "valid": DEV,
    "validation": DEV,
    "test": TEST,
}


def near_duplicates(keep_together: str) -> float | None:
    """The threshold of `near-duplicates` or `near-duplicates:0.9`; None for the measured one.

    LabelsError for anything else, and for a threshold that is not above 0 and at most 1.
    """
    found = re.fullmatch(r"near-duplicates(?::([0-9.]+))?", keep_together)
    try:
        threshold = None if found is None or found[1] is None else float(found[1])
    except ValueError:
        found, threshold = None, None
    if found is None or (threshold is not None and not 0 < threshold <= 1):
        raise LabelsError(
            f"`keep_together` is near-duplicates, or near-duplicates:X with a cosine X above 0 and "
            f"at most 1; got {keep_together!r}"
        )
    return threshold


def keys_of(values: Iterable[object]) -> list[str | None]:
    """Values as keys of groups; a missing one (null, NaN, blank) is None and joins nothing."""
    return [
        None if value is None or value != value or not str(value).strip() else str(value)
        for value in values
    ]


def join_groups(
    keys: Sequence[Sequence[str | None]], ids: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], list[str]]:
    """Join rows that share a key of any kind.

    keys: one sequence of n keys per kind; None joins nothing. The first kind that gives a row a key
        names its group.
    ids: n names, for rows that have no key of any kind: each is a group of its own.
    Returns the group number per row (n,), and per group its name: the smallest key of the first
    kind found in it, so that it does not depend on the order of the rows.
    """
    n = len(keys[0])
    parent = list(range(n))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for kind in keys:
        first: dict[str, int] = {}
        for row, key in enumerate(kind):
            if key is not None:
                parent[root(row)] = root(first.setdefault(key, row))
    roots = [root(row) for row in range(n)]
    number = {row: place for place, row in enumerate(dict.fromkeys(roots))}
    groups = np.array([number[row] for row in roots], np.int64)
    names: list[tuple[int, str] | None] = [None] * len(number)
    for rank, kind in enumerate(keys):
        for group, key in zip(groups, kind, strict=True):
            if key is not None:
                best = names[group]
                names[group] = (rank, key) if best is None else min(best, (rank, key))
    alone = dict(zip(groups.tolist(), range(n) if ids is None else ids, strict=True))
    return groups, [
        f"{name[0]}:{name[1]}" if name else f"alone:{alone[i]}" for i, name in enumerate(names)
    ]


def folds(
    groups: NDArray[np.int64],
    ids: Sequence[str],
    count: int,
    *,
    seed: int,
    strata: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """The fold of each row (n,), 0 to count - 1: groups ranked by hash, cut into equal parts.

    A group is named by the smallest id in it, so that the order of rows does not matter.
    strata (n,): the class of each row. Every fold then gets its share of each class (a group counts
        with its commonest): a fold with more of one leaves less of it to learn from, and by such
        folds even the constant is right less often than the larger class is large.
    LabelsError when there are fewer groups than folds.
    """
    n_groups = int(groups.max(initial=-1)) + 1
    if not 3 <= count <= n_groups:
        raise LabelsError(
            f"{count} folds of {n_groups} groups: use 3 or more folds (one tests, one chooses, the "
            f"rest trains), and at most as many as there are groups. For one split name no folds"
        )
    names: dict[int, str] = {}
    for group, name in zip(groups.tolist(), ids, strict=True):
        names[group] = min(name, names.get(group, name))
    order = np.argsort([_uniform(seed, names[group]) for group in range(n_groups)], kind="stable")
    size = np.bincount(groups, minlength=n_groups)[order]
    fold = np.empty(n_groups, np.int64)
    if strata is None:
        middle = np.cumsum(size) - size / 2
        fold[order] = np.minimum((middle / size.sum() * count).astype(np.int64), count - 1)
    else:
        fold[order] = _dealt(_commonest(groups, strata, n_groups)[order], size, count)
    if empty := sorted(set(range(count)) - set(fold.tolist())):
        raise LabelsError(
            f"{len(empty)} of {count} folds get no group, because one group holds "
            f"{size.max()} of {size.sum()} rows: use fewer folds, or another `split_by`"
        )
    return fold[groups]


def _commonest(
    groups: NDArray[np.int64], strata: NDArray[np.int64], n_groups: int
) -> NDArray[np.int64]:
    """The commonest class of each group (n_groups,)."""
    classes = int(strata.max(initial=0)) + 1
    votes = np.bincount(groups * classes + strata, minlength=n_groups * classes)
    found: NDArray[np.int64] = votes.reshape(-1, classes).argmax(1)
    return found


def _dealt(stratum: NDArray[np.int64], size: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The fold of each group: where its class has the fewest rows, and of these the fewest rows."""
    of_class = np.zeros((int(stratum.max()) + 1, count), np.int64)
    rows = np.zeros(count, np.int64)
    fold = np.empty(len(stratum), np.int64)
    for at in np.argsort(stratum, kind="stable"):
        mine = of_class[stratum[at]]
        fold[at] = place = int(np.lexsort((rows, mine))[0])
        mine[place] += size[at]
        rows[place] += size[at]
    return fold


def by_hash(
    groups: NDArray[np.int64],
    names: Sequence[str],
    *,
    seed: int,
    shares: Sequence[float] = SHARES,
    strata: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """Give each row its side (n,): 0 train, 1 dev, 2 test.

    groups: group number per row; names: per group, what is hashed.
    strata: class per row; when given, each class is cut at the shares separately (a group counts
        with its commonest class). Shares then hold closely in each class, but a photo near a cut
        may change sides when photos are added.
    """
    at = np.array([_uniform(seed, name) for name in names])
    if strata is not None:
        stratum = _commonest(groups, strata, len(names))
        size = np.bincount(groups, minlength=len(names))
        for value in np.unique(stratum):
            inside = np.flatnonzero(stratum == value)
            inside = inside[np.argsort(at[inside], kind="stable")]
            ends = np.cumsum(size[inside])
            at[inside] = (ends - size[inside] / 2) / ends[-1]
    side = np.searchsorted(np.cumsum(shares)[:-1], at, side="right").astype(np.uint8)
    return side[groups]


def given(
    values: Sequence[str | None],
    groups: NDArray[np.int64],
    ids: Sequence[str],
    *,
    column: str,
    nearly: bool = False,
) -> NDArray[np.uint8]:
    """Read each row's side from a column; refuse a group that is on two sides.

    nearly: groups may be of near-duplicates.
    LabelsError for a value other than train, dev (val, valid, validation) or test.
    """
    sides = np.zeros(len(values), np.uint8)
    for row, value in enumerate(values):
        side = _ALIASES.get((value or "").strip().lower())
        if side is None:
            raise LabelsError(
                f"column {column!r} says train, dev or test for every row; "
                f"{ids[row]!r} has {value!r}"
            )
        sides[row] = side
    of = f"in column {column!r} "
    _whole(sides, groups, ids, of=of, otherwise="omit `split_column`", nearly=nearly)
    return sides


def numbered(
    values: NDArray[np.generic], groups: NDArray[np.int64], ids: Sequence[str]
) -> NDArray[np.uint8]:
    """Sides (n,) given as numbers; LabelsError as `given` has it."""
    if values.dtype.kind not in "iu" or not np.isin(values, range(len(SUBSETS))).all():
        raise LabelsError("a subset is 0 (train), 1 (dev) or 2 (test) for each row")
    sides = values.astype(np.uint8)
    _whole(sides, groups, ids, of="", otherwise="leave the subset out")
    return sides


def _whole(
    sides: NDArray[np.uint8],
    groups: NDArray[np.int64],
    ids: Sequence[str],
    *,
    of: str,
    otherwise: str,
    nearly: bool = False,
) -> None:
    """LabelsError where a group stands on two sides."""
    if len(sides):
        low, high = np.full(groups.max() + 1, 9), np.zeros(groups.max() + 1, int)
        np.minimum.at(low, groups, sides)
        np.maximum.at(high, groups, sides)
        if (torn := np.flatnonzero(low < high)).size:
            rows = np.flatnonzero(groups == torn[0])
            rows_text = ", ".join(f"{ids[r]} ({SUBSETS[sides[r]]})" for r in rows[:4])
            which = "the same person or the same photo" + (" or near-duplicates" if nearly else "")
            raise LabelsError(
                f"the split {of}splits {torn.size} group(s) of {which}, which would leak test "
                f"answers into training: {rows_text}. Put each group in one of train, dev and "
                f"test, or {otherwise}"
            )


def digest(ids: Sequence[str], sides: NDArray[np.uint8]) -> str:
    """sha256 (hex) of which row is on which side; the order of the rows does not matter."""
    digested = hashlib.sha256()
    for line in sorted(f"{SUBSETS[side]}\t{name}\n" for name, side in zip(ids, sides, strict=True)):
        digested.update(line.encode())
    return digested.hexdigest()


def _uniform(seed: int, name: str) -> float:
    hashed = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return int.from_bytes(hashed[:8], "big") / 2.0**64
