"""Splits that would fool a reader: refused where nothing can be said, noted where little can."""

from collections import Counter

import numpy as np

from embedcache import wording
from embedcache.errors import LabelsError
from heads.dataset.rows import Dataset
from heads.fitting import metrics

LARGE_GROUP = 0.15
FEW_ROWS = 20
FEW_OF_A_CLASS = 5
_LEAST = {"train": 2, "dev": 1, "test": 1}


def require_sides(dataset: Dataset, *, sides: tuple[str, ...] = ("train", "dev", "test")) -> None:
    """LabelsError for a split on which no head can be fitted, chosen or judged.

    sides: those that are used; without "test" where only dev figures are wanted.
    """
    n = dataset.n
    if any(n[side] < _LEAST[side] for side in sides):
        sizes = ", ".join(f"{count} {side}" for side, count in n.items())
        raise LabelsError(
            f"{len(dataset.ids)} labelled photos make {sizes}: too few to fit, choose and judge. "
            f"Label more photos, use another `seed` or `folds`, or give a `split_column`"
        )
    for side in sides:
        part = dataset.part(side) if side != "test" else None
        if part is not None and part.weights is not None and not part.weights.any():
            raise LabelsError(f"all weights of the {side} rows are zero")
    if dataset.task == "regression":
        return
    if len(np.unique(dataset.targets)) < 2:
        return  # only one class of the table has vectors: `load` has warned of it
    if len(seen := np.unique(dataset.part("train").targets)) < 2:
        raise LabelsError(
            f"all {n['train']} train rows are {dataset.classes[int(seen[0])]!r}; a classifier "
            f"needs two classes there. Label more photos, or stratify the split"
        )


def notes_on(dataset: Dataset, *, n_folds: int | None) -> list[str]:
    """What a reader should know about the rows, as sentences.

    Looks at the labels of test rows for how many there are of each class and whether they differ at
    all, and at nothing else of them.
    """
    notes = _flat_targets(dataset)
    sizes = np.bincount(dataset.groups)
    if len(sizes) > 1 and sizes.max() > LARGE_GROUP * sizes.sum():
        share = 100 * sizes.max() / sizes.sum()
        notes.append(
            f"one group holds {share:.0f} % of the rows: the figures depend mostly on it; "
            f"check the column that groups the rows"
        )
    n = dataset.n
    for side in ("dev", "test"):
        if n_folds is None and n[side] < FEW_ROWS:
            notes.append(
                f"{n[side]} {side} rows are too few to {'choose' if side == 'dev' else 'judge'} "
                f"by: label more photos, or use `folds`"
            )
    if n_folds is not None and min(n["dev"], n["test"]) < FEW_ROWS:
        notes.append(f"a fold has fewer than {FEW_ROWS} rows: dev's choice in it is unreliable")
    return notes + (_class_notes(dataset) if n_folds is None else _rare_classes(dataset, n_folds))


def _flat_targets(dataset: Dataset) -> list[str]:
    columns = dataset.targets.reshape(len(dataset.targets), -1).T
    return [
        f"every {name} is {values[0]:g}: there is nothing to learn"
        if np.ptp(values) == 0
        else f"{name} varies by less than a head can follow (32-bit floats around "
        f"{values.mean():g}): subtract its mean, or scale it"
        for name, values in zip(dataset.target_names, columns, strict=True)
        if dataset.task == "regression" and metrics.flat(values)
    ]


def _rare_classes(dataset: Dataset, n_folds: int) -> list[str]:
    return [
        f"class {name!r} has {wording.counted(n, 'row')} for {n_folds} folds: some test none, "
        f"and how often it is right is hardly known"
        for name, n in dataset.class_counts.items()
        if n < n_folds
    ]


def _class_notes(dataset: Dataset) -> list[str]:
    notes = []
    for code, name in enumerate(dataset.classes):
        inside = dataset.targets == code
        missing = [
            side for place, side in ((1, "dev"), (2, "test"))
            if not (inside & (dataset.subset == place)).any()
        ]  # fmt: skip
        if missing:
            notes.append(
                f"class {name!r} has no {' and no '.join(missing)} row: its errors stay unknown. "
                f"Stratify the split, or use `folds`"
            )
        elif (n := int((inside & (dataset.subset == 2)).sum())) < FEW_OF_A_CLASS:
            notes.append(
                f"class {name!r} has {wording.counted(n, 'test row')}: how often it is right is "
                "hardly known"
            )
    return notes


def counted(notes: list[tuple[str, ...]]) -> list[str]:
    """The notes of every fold once each, with the number of folds that have it."""
    if len(notes) == 1:
        return list(notes[0])
    found = Counter(note for one in notes for note in one)
    return [f"{note} (in {n} of {len(notes)} folds)" for note, n in found.items()]
