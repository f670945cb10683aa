"""Columns of a label table as numbers: targets, the task that they make, weights."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedcache.errors import LabelsError

Task = Literal["regression", "binary", "multiclass"]
TASKS = ("auto", "regression", "binary", "multiclass")
MAX_CLASSES = 1000
Floats = NDArray[np.float64]


def parse_targets(
    columns: Sequence[pl.Series], ids: Sequence[str], task: str
) -> tuple[Floats, Task, tuple[str, ...]]:
    """Numbers for the target columns, the task they make, and the classes."""
    if task not in TASKS:
        raise LabelsError(f"task is one of {', '.join(TASKS)}; got {task!r}")
    for column in columns:
        bad = column.is_null()
        if column.dtype.is_float():
            bad = bad | column.is_nan() | column.is_infinite()
        if column.dtype == pl.String:
            bad = bad | (column.str.strip_chars() == "")
        if (n := int(bad.sum() or 0)) > 0:
            first = ", ".join(ids[i] for i in np.flatnonzero(bad.fill_null(True).to_numpy())[:3])
            raise LabelsError(
                f"{n} of {len(column)} labelled photos have no usable {column.name or 'target'!r} "
                f"(first: {first}). Leave those rows out of the label table, or fill them in"
            )
    if len(columns) > 1:
        if not all(column.dtype.is_numeric() for column in columns) or task not in (
            "auto",
            "regression",
        ):
            raise LabelsError("several targets at once are numbers (regression); fit others alone")
        return np.stack([c.cast(pl.Float64).to_numpy() for c in columns], 1), "regression", ()
    column = columns[0]
    distinct = column.unique().sort()
    chosen = task
    if task == "auto":
        numeric = column.dtype.is_numeric()
        two = len(distinct) == 2 or column.dtype == pl.Boolean
        chosen = "binary" if two else "regression" if numeric else "multiclass"
    if chosen == "regression":
        if not column.dtype.is_numeric() and column.dtype != pl.Boolean:
            raise LabelsError(
                f"a regression needs numbers; {column.name!r} holds {distinct[0]!r}. "
                f"Leave the task on auto, or say binary"
            )
        return column.cast(pl.Float64).to_numpy().astype(np.float64), "regression", ()
    if len(distinct) < 2:
        raise LabelsError(
            f"all labelled photos have the same {column.name or 'target'}, {distinct[0]!r}; "
            f"a classifier needs two classes"
        )
    if chosen == "binary" and len(distinct) > 2:
        raise LabelsError(f"a binary task has two classes; {column.name!r} has {len(distinct)}")
    if len(distinct) > min(MAX_CLASSES, max(2, len(column) // 2)):
        raise LabelsError(
            f"{column.name!r} has {len(distinct)} different values in {len(column)} rows: too many "
            f"for classes. Name another target, or say --task regression if they are numbers"
        )
    classes = tuple(_class_name(value) for value in distinct.to_list())
    codes = distinct.search_sorted(column).to_numpy().astype(np.float64)
    return codes, "binary" if len(classes) == 2 else "multiclass", classes


def _class_name(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def parse_weights(column: pl.Series, ids: Sequence[str]) -> Floats:
    if not column.dtype.is_numeric():
        raise LabelsError(f"weights are numbers; column {column.name!r} is not")
    values = column.cast(pl.Float64).fill_null(float("nan")).to_numpy().astype(np.float64)
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise LabelsError(
            f"{int(bad.sum())} weights in {column.name!r} are negative or missing "
            f"(first: {ids[first]} has {values[first]}); a weight is zero or more"
        )
    if not values.any():
        raise LabelsError(f"all weights in {column.name!r} are zero: nothing would be learnt")
    return values


def are_counts(values: Floats, weights: Floats | None, task: Task) -> bool:
    """Whether the targets are ratios of whole successes to the whole numbers in `weights`."""
    if weights is None or task != "regression" or values.ndim != 1:
        return False
    successes = values * weights
    return bool(
        values.min() >= 0
        and values.max() <= 1
        and (weights == np.round(weights)).all()
        and weights.max() > 1
        and (np.abs(successes - np.round(successes)) <= 0.01 + 1e-4 * weights).all()
    )


def are_shares(values: Floats, task: Task) -> bool:
    """Whether targets lie between 0 and 1 by what they are: two classes, or numbers that all do."""
    if task == "binary":
        return True
    if task != "regression":
        return False
    return bool(values.min() >= 0 and values.max() <= 1)


def strata_of(values: Floats, task: Task) -> NDArray[np.int64]:
    """The class per row; for numbers, which fifth of their order."""
    if task != "regression":
        return values.astype(np.int64)
    first = values if values.ndim == 1 else values[:, 0]
    edges = np.quantile(first, [0.2, 0.4, 0.6, 0.8])
    return np.searchsorted(edges, first).astype(np.int64)
