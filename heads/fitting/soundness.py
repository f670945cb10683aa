"""Splits that would fool a reader: refused where nothing can be said, noted where little can."""

from collections import Counter

import numpy as np

from embedcache import wording
from embedcache.errors import LabelsError
from heads.dataset.rows import Dataset
from heads.fitting import metrics
from heads.fitting.intervals import FEW

LARGE_GROUP = 0.15
FEW_ROWS = 20
FEW_OF_A_CLASS = 5
INTERVALS = "intervals may be too narrow"
CLASSES = "how often a class is right is hardly known"
MORE = "label more photos"
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


def notes_on(dataset: Dataset, *, n_folds: int | None, n_effective: float | None) -> list[str]:
    """What a reader should know about the rows, as sentences.

    n_effective: Kish's effective number of test rows; None where nothing was tested.
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
    if n_folds is not None:
        return notes + _few_in_folds(dataset, n_folds, n_effective)
    return notes + _few_rows(dataset, n_effective) + _lost_classes(dataset)


def _few_rows(dataset: Dataset, n_effective: float | None) -> list[str]:
    """One sentence on all that is few in one split."""
    n, said, meaning = dataset.n, list[str](), list[str]()
    if n["dev"] < FEW_ROWS:
        said.append(wording.counted(n["dev"], "dev row chooses", "dev rows choose"))
        meaning.append("the choice may be luck")
    if n_effective is not None:
        few = _test_rows_of_classes(dataset)
        weak = n["test"] < FEW_ROWS or n_effective < FEW
        if weak or few:
            judges = wording.counted(n["test"], "test row judges", "test rows judge")
            if round(n_effective) < n["test"] and weak:
                judges += f", which count as {n_effective:.0f}"
            said.append(", ".join([judges, *few]))
        meaning += [INTERVALS] * weak + [CLASSES] * bool(few)
    return _sentence(said, meaning, advice=f"{MORE}, or use `folds`")


def _few_in_folds(dataset: Dataset, n_folds: int, n_effective: float | None) -> list[str]:
    """One sentence on all that is few where every photo is tested once."""
    said, meaning = list[str](), list[str]()
    if min(dataset.n["dev"], dataset.n["test"]) < FEW_ROWS:
        said.append(f"a fold has fewer than {FEW_ROWS}")
        meaning.append("dev's choice in it is unreliable")
    if n_effective is not None and n_effective < FEW:
        said.append(f"all test rows count as {n_effective:.0f}")
        meaning.append(INTERVALS)
    rare = [
        f"class {name!r} has {wording.counted(n, 'row')} for {n_folds} folds"
        for name, n in dataset.class_counts.items()
        if n < n_folds
    ]
    return _sentence([*said, *rare], [*meaning, *[CLASSES] * bool(rare)], advice=MORE)


def _sentence(said: list[str], meaning: list[str], *, advice: str) -> list[str]:
    """`few rows: SAID; SAID. Meaning, meaning, and meaning: advice`, or nothing."""
    if not said:
        return []
    *first, last = meaning
    means = f"{', '.join(first)}{',' * (len(first) > 1)} and {last}" if first else last
    return [f"few rows: {'; '.join(said)}. {means[0].upper()}{means[1:]}: {advice}"]


def _test_rows_of_classes(dataset: Dataset) -> list[str]:
    """`3 of class 'a'` for each class that few test rows have, but some."""
    test = dataset.targets[dataset.subset == 2]
    counts = [int((test == code).sum()) for code in range(len(dataset.classes))]
    return [
        f"{n} of class {name!r}"
        for name, n in zip(dataset.classes, counts, strict=True)
        if 0 < n < FEW_OF_A_CLASS
    ]


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


def _lost_classes(dataset: Dataset) -> list[str]:
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
    return notes


def counted(notes: list[tuple[str, ...]]) -> list[str]:
    """The notes of every fold once each, with the number of folds that have it."""
    if len(notes) == 1:
        return list(notes[0])
    found = Counter(note for one in notes for note in one)
    return [f"{note} (in {n} of {len(notes)} folds)" for note, n in found.items()]
