"""A dataset from arrays that are already in memory, for notebooks, estimators and simulations."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from embedcache.errors import LabelsError
from embedcache.spec import Spec
from embedcache.wording import counted
from heads.dataset import split
from heads.dataset.rows import Dataset, Provenance
from heads.dataset.targets import (
    Floats,
    are_counts,
    are_shares,
    parse_targets,
    parse_weights,
    strata_of,
)


def from_arrays(
    vectors: ArrayLike,
    targets: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: Sequence[object] | None = None,
    ids: Sequence[str] | None = None,
    subset: ArrayLike | None = None,
    task: str = "auto",
    target: str | None = None,
    stratify: bool = False,
    seed: int = 0,
    spec: Spec | None = None,
    widths: Sequence[int] = (),
) -> Dataset:
    """A dataset from arrays already in memory: vectors (n, d), targets (n,) or (n, k).

    groups: rows with equal values stay on one side; without it, rows with equal vectors do.
    widths: floats of each backbone whose vectors stand side by side; they add up to d.
    subset: 0 train, 1 dev, 2 test per row; by hash when left out.
    LabelsError for an argument of another length, and for a subset that parts a group.
    """
    held, raw = _checked(vectors, np.asarray(targets))
    if widths and (sum(widths) != held.shape[1] or min(widths) < 1):
        raise LabelsError(f"widths add up to {held.shape[1]} floats; got {tuple(widths)}")
    sides_given = None if subset is None else np.asarray(subset).ravel()
    for name, given in (("ids", ids), ("groups", groups), ("sides", sides_given)):
        if given is not None and len(given) != len(held):
            raise LabelsError(f"{len(held)} vectors need as many {name}; got {len(given)}")
    named = [str(i) for i in (range(len(held)) if ids is None else ids)]
    if len(set(named)) < len(named):
        twice = next(name for name, n in Counter(named).items() if n > 1)
        raise LabelsError(f"ids name one row each; {twice!r} stands twice")
    columns = [pl.Series(raw[:, k] if raw.ndim == 2 else raw) for k in range(raw[:1].size)]
    labels = parse_targets(columns, named, task)
    values = labels.values[:, None] if raw.ndim == 2 > labels.values.ndim else labels.values
    checked = _weights(weights, named)
    same = groups if groups is not None else [_content(row) for row in held]
    numbers, names = split.join_groups([split.keys_of(same)], named)
    strata = strata_of(values, labels.task) if stratify else None
    if sides_given is None:
        sides = split.by_hash(numbers, names, seed=seed, strata=strata)
    else:
        sides = split.numbered(sides_given, numbers, named)
    joint = [f"target{k}" for k in range(len(columns))] if raw.ndim == 2 else ["target"]
    return Dataset(
        ids=tuple(named),
        vectors=held,
        widths=tuple(widths),
        targets=values,
        weights=checked,
        groups=numbers,
        subset=sides,
        task=labels.task,
        target=target or ",".join(joint),
        weight=None if weights is None else "weight",
        classes=labels.classes,
        counts=are_counts(values, checked, labels.task),
        shares=are_shares(values, labels.task),
        notes=labels.notes,
        provenance=Provenance(
            spec=spec.document() if spec else None,
            spec_digest=spec.digest if spec else "",
            split=split.digest(named, sides),
            split_rule="given" if subset is not None else f"hash, seed {seed}",
        ),
    )


def _checked(
    vectors: ArrayLike, targets: NDArray[np.generic]
) -> tuple[NDArray[np.float32], NDArray[np.generic]]:
    """Vectors (n, d) of finite floats, and n targets."""
    held = np.ascontiguousarray(vectors, np.float32)
    if held.ndim != 2 or not held.size:
        raise LabelsError(f"vectors are a table of (photos, floats); got shape {held.shape}")
    if not np.isfinite(held).all():
        n = int((~np.isfinite(held).all(1)).sum())
        raise LabelsError(f"{counted(n, 'vector holds', 'vectors hold')} NaN or infinity")
    if targets.ndim not in (1, 2) or len(targets) != len(held):
        raise LabelsError(f"{len(held)} vectors need as many targets; got shape {targets.shape}")
    return held, targets


def _weights(weights: ArrayLike | None, ids: Sequence[str]) -> Floats | None:
    if weights is None:
        return None
    found = parse_weights(pl.Series(np.asarray(weights)), ids)
    if len(found) != len(ids):
        raise LabelsError(f"{len(ids)} vectors need as many weights; got {len(found)}")
    return found


def _content(row: NDArray[np.float32]) -> str:
    return hashlib.sha256(row.tobytes()).hexdigest()
