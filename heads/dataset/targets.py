"""Columns of a label table as numbers: targets, the task that they make, weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedcache.errors import LabelsError
from embedcache.tables import MISSING, Parsed, parse
from embedcache.wording import counted

Task = Literal["regression", "binary", "multiclass"]
TASKS = ("auto", "regression", "binary", "multiclass")
MAX_CLASSES = 1000
MAX_GRADES = 12
MAX_TARGET = 1e18
_LEAST_WEIGHT = 1e-20
"""So few whole numbers may be classes: a note says that they are fitted as numbers."""
_DATE = (
    r"^(\d{4}([-./])\d{1,2}([-./])\d{1,2}([T ].*)?"
    r"|\d{1,2}[-./]\d{1,2}[-./](\d{4}|\d{2})( .*)?"
    r"|\d{1,2}\.? [A-Za-z]{3,9}\.? \d{4}( .*)?|[A-Za-z]{3,9}\.? \d{1,2},? \d{4}( .*)?)$"
)
"""2024-01-31, 31.1.2024, 1/31/24, 31 January 2024, Jan 31, 2024; with a time or without."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Targets as numbers.

    values: float64 (n,), or (n, k) for several regression targets; class numbers for a classifier.
    classes: what the numbers stand for, in order.  notes: how cells were read, in sentences.
    """

    values: Floats
    task: Task
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def parse_targets(
    columns: Sequence[pl.Series],
    ids: Sequence[str],
    task: str,
    *,
    whole: Sequence[pl.Series] = (),
) -> Labels:
    """Read the target columns, and find the task they make.

    task: "auto" for two classes where there are two values, a regression for other numbers, and
        else classes.
    whole: the same columns of the whole label table: its classes count where the rows with a vector
        all have one.
    LabelsError where a cell is missing or is no number where numbers are needed, naming it.
    """
    if task not in TASKS:
        raise LabelsError(f"task is one of {', '.join(TASKS)}; got {task!r}")
    for column in columns:
        _refuse_dates(column, ids)
    read = [_read(column, ids) for column in columns]
    notes = tuple(f"{c.name}: {p.note}" for c, p in zip(columns, read, strict=True) if p.note)
    if len(columns) > 1:
        if task not in ("auto", "regression") or not all(p.values.dtype.is_numeric() for p in read):
            raise LabelsError("several targets must all be numbers (regression); fit others alone")
        pairs = zip(columns, read, strict=True)
        values = np.stack([_numbers(column, found, ids) for column, found in pairs], 1)
        return Labels(values=values, task="regression", notes=notes)
    column, values_of = columns[0], read[0].values
    distinct = values_of.unique().sort()
    numeric = values_of.dtype.is_numeric()
    if len(distinct) == 1 and not numeric and whole:
        distinct, note = _classes_of_table(distinct, parse(whole[0]).values, len(column))
        notes += note
    chosen = task
    if task == "auto":
        two = len(distinct) == 2 or values_of.dtype == pl.Boolean
        chosen = "binary" if two else "regression" if numeric else "multiclass"
    if chosen == "regression" or (task == "auto" and read[0].odd):
        if not numeric and values_of.dtype != pl.Boolean:
            raise LabelsError(_no_number(column, read[0], ids, task))
        if task == "auto" and _are_grades(distinct):
            shown = ", ".join(map(_class_name, distinct.to_list()))
            notes += (
                f"{column.name!r} holds {len(distinct)} whole numbers ({shown}) and is fitted as a "
                "number; if they are classes, add `task='multiclass'`",
            )
        return Labels(values=_numbers(column, read[0], ids), task="regression", notes=notes)
    _check_classes(column, distinct, chosen)
    classes = tuple(_class_name(value) for value in distinct.to_list())
    codes = distinct.search_sorted(values_of).to_numpy().astype(np.float64)
    found: Task = "binary" if len(classes) == 2 else "multiclass"
    return Labels(values=codes, task=found, classes=classes, notes=notes)


def _refuse_dates(column: pl.Series, ids: Sequence[str]) -> None:
    """LabelsError for a column all of whose cells are dates or times."""
    dated = column.dtype.is_temporal()
    if column.dtype == pl.String:
        cells = column.str.strip_chars()
        cells = cells.filter(~cells.str.to_lowercase().is_in([*MISSING]).fill_null(True))
        dated = bool(len(cells)) and bool(cells.str.contains(_DATE).all())
    if dated:
        i = int(column.is_not_null().arg_max() or 0)
        shown = column[i] if column.dtype == pl.String else str(column[i])
        raise LabelsError(
            f"{column.name or 'target'!r} holds dates (first: {ids[i]} has {shown!r}), which are "
            "no classes. Name another target, or make numbers of them, such as days since the first"
        )


def _classes_of_table(
    distinct: pl.Series, whole: pl.Series, n: int
) -> tuple[pl.Series, tuple[str, ...]]:
    """The classes of a table whose photos with a vector all have one of them, and a warning."""
    found = whole.drop_nulls().unique().sort()
    if len(found) < 2 or found.dtype != distinct.dtype:
        return distinct, ()
    others = ", ".join(map(repr, found.filter(found != distinct[0]).to_list()[:5]))
    return found, (
        f"warning: all {n:,} labelled photos with a vector are {distinct[0]!r} and none is "
        f"{others}: the figures below are meaningless. Extract the other photos too",
    )


def _read(column: pl.Series, ids: Sequence[str]) -> Parsed:
    """A column's cells; LabelsError where some are missing, naming them."""
    name = column.name or "target"
    try:
        found = parse(column)
    except ValueError as error:
        raise LabelsError(f"{name!r} {error}") from None
    bad = np.flatnonzero(found.missing)
    if len(bad):
        cells = column.cast(pl.String)
        first = ", ".join(
            f"{ids[i]} is empty" if cells[i] in (None, "") else f"{ids[i]} has {cells[i]!r}"
            for i in bad[:3].tolist()
        )
        raise LabelsError(
            f"{len(bad)} of {len(column)} labelled photos have no usable {name!r} (first: {first})."
            " Leave those rows out with `drop_missing`, or fill them in"
        )
    return found


def _numbers(column: pl.Series, found: Parsed, ids: Sequence[str]) -> Floats:
    """A column as float64 (n,); LabelsError for numbers whose squares 32-bit floats cannot hold."""
    values = found.values.cast(pl.Float64).to_numpy().astype(np.float64)
    if (far := np.flatnonzero(np.abs(values) > MAX_TARGET)).size:
        raise LabelsError(
            f"{column.name or 'target'!r} lies beyond {MAX_TARGET:g} (first: {ids[far[0]]} has "
            f"{column[int(far[0])]}): divide it first"
        )
    return values


def _no_number(column: pl.Series, found: Parsed, ids: Sequence[str], task: str) -> str:
    """What to say of a regression whose target holds texts."""
    if not found.odd:
        return f"a regression needs numbers; {column.name!r} holds {found.values.sort()[0]!r}"
    first = found.odd[0]
    return (
        f"{len(found.odd)} of {counted(len(column), 'cell')} of {column.name!r} "
        f"{'is not a number' if len(found.odd) == 1 else 'are not numbers'} (first: "
        f"{ids[first]} has {found.values[first]!r}): fix or remove them"
        + ("" if task == "regression" else ", or use `task='multiclass'` if all are class names")
    )


def _are_grades(distinct: pl.Series) -> bool:
    """Whether a few whole numbers may be classes rather than amounts."""
    if not 3 <= len(distinct) <= MAX_GRADES:
        return False
    return all(float(value).is_integer() for value in distinct.to_list())


def _check_classes(column: pl.Series, distinct: pl.Series, task: str) -> None:
    name = column.name or "target"
    if len(distinct) < 2:
        raise LabelsError(
            f"all labelled photos have the same {name}, {distinct[0]!r}; a classifier needs two "
            "classes"
        )
    if task == "binary" and len(distinct) > 2:
        raise LabelsError(f"a binary task has two classes; {name!r} has {len(distinct)}")
    if len(distinct) > min(MAX_CLASSES, max(2, len(column) // 2)):
        raise LabelsError(
            f"{name!r} has {len(distinct)} different values in {len(column)} rows: too many "
            f"for classes. Name another target, or use `task='regression'` if they are numbers"
        )


def _class_name(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def parse_weights(column: pl.Series, ids: Sequence[str]) -> Floats:
    """Weights as float64 (n,): finite, none below zero, not all zero; else LabelsError."""
    try:
        found = parse(column)
    except ValueError as error:
        raise LabelsError(f"weights are numbers; column {column.name!r} {error}") from None
    if found.values.dtype == pl.Null or found.missing.all():
        values = np.full(len(column), np.nan)
    elif not found.values.dtype.is_numeric():
        cell = next((f": {ids[i]} has {found.values[i]!r}" for i in found.odd[:1]), "")
        raise LabelsError(f"weights are numbers; column {column.name!r} is not{cell}")
    else:
        filled = found.values.cast(pl.Float64).fill_null(float("nan"))
        values = filled.to_numpy().astype(np.float64)
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise LabelsError(
            f"{counted(n := int(bad.sum()), 'weight')} in {column.name!r} "
            f"{'is' if n == 1 else 'are'} negative or missing "
            f"(first: {ids[first]} has {column[first]}); a weight is zero or more"
        )
    extreme = (values > 1 / _LEAST_WEIGHT) | ((values > 0) & (values < _LEAST_WEIGHT))
    if extreme.any():  # beyond what 32-bit floats can add up
        first = int(np.flatnonzero(extreme)[0])
        raise LabelsError(
            f"weights in {column.name!r} lie between {_LEAST_WEIGHT:g} and {1 / _LEAST_WEIGHT:g}, "
            f"or are 0; {ids[first]} has {column[first]}"
        )
    if not values.any():
        raise LabelsError(f"all weights in {column.name!r} are zero: give positive weights")
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
