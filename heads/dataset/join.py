"""A label table joined to the vectors of a cache, row by row, with every row accounted for."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedcache.errors import LabelsError
from embedcache.spec import MAX_DIM
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.store.naming import without_ids
from embedcache.store.side_by_side import SideBySide
from embedcache.tables import Frame, Sheet, is_missing, open_sheet, parse
from embedcache.wording import counted
from heads.dataset import split
from heads.dataset.ids import JoinedIds, join_ids
from heads.dataset.rows import CacheRows, Dataset, OriginPart, Provenance, Vectors
from heads.dataset.targets import (
    Floats,
    Labels,
    are_counts,
    are_shares,
    parse_targets,
    parse_weights,
    strata_of,
)

U8 = NDArray[np.uint8]
Table = str | os.PathLike[str] | Frame


def read_table(table: Table, *, text: Sequence[str] = ()) -> pl.DataFrame:
    """Read a CSV or Parquet table, or a DataFrame; columns named in `text` stay text ("007" is
    not 7).

    Numbers are numbers, missing values null and blanks stripped (see `embedcache.tables`).
    LabelsError when the file is missing, of another kind, or cannot be parsed.
    """
    sheet = open_sheet(table, error=LabelsError, kind="label table")
    columns = []
    for name in sheet.names:
        if name in text:
            column = pl.Series(name, sheet.texts(name), pl.String)
        else:
            column = sheet.column(name)
            # Lists, and cells that may mean two numbers, are refused where they are used.
            with suppress(ValueError):
                column = parse(column).values
        columns.append(column.rename(name))
    return pl.DataFrame(columns)


def load(
    cache: Cache,
    backbone: str | Sequence[str],
    labels: Table,
    *,
    target: str | Sequence[str],
    id_column: str | None = None,
    weight: str | None = None,
    task: str = "auto",
    faces: int | None = None,
    split_by: str | None = None,
    split_column: str | None = None,
    stratify: bool = False,
    by: str | Sequence[str] = (),
    seed: int = 0,
    scope: str | None = None,
    subset_name: str = "ALL",
    ref: str | None = None,
    memory_bytes: int | None = None,
    drop_missing: bool = False,
    keep_together: Sequence[Mapping[bytes, int]] = (),
) -> Dataset:
    """Join a label table to the cache's vectors by photo id, and split it.

    backbone: a name as `Cache.find` takes it, or several: their vectors stand side by side, in this
        order, of the photos that have all of them. NAME#LAYER,LAYER names several.
    labels: a .csv or .parquet file, or a polars or pandas DataFrame.
    target: a column, or several for a joint regression. weight: a column of weights, 0 or more.
    id_column: None for photo_id, user_id or id, whichever meets the cache's ids. Ids that do not
        are compared by path, file name and file name without suffix.
    faces: keep only photos in which the stored detection has exactly this number of boxes.
    split_by: a column whose equal values stay on one side, as photos of equal contents do.
    split_column: take the split from a column that says train, dev or test.
    by: columns to report errors by. ref: the name that the cache was opened at, for the cards.
    memory_bytes: larger vectors are read from the cache as they are needed.
    drop_missing: leave out rows without a label, counted; otherwise they are an error.
    keep_together: group numbers by content (sha256, 32 bytes): photos of one number stay on one
        side, as near-duplicates should. One mapping for each way of telling.
    LabelsError for what cannot be used, see the first lines of `heads.dataset.rows`.
    """
    names = (target,) if isinstance(target, str) else tuple(target)
    by = (by,) if isinstance(by, str) else by
    sheet = _opened(labels, names, [weight, split_by, split_column, *by])
    space = cache.side_by_side(backbone)
    _refuse_width(space)
    rows = _present(sheet, cache, space, id_column, scope)
    rows = _chosen(rows, sheet, space, cache, faces, names if drop_missing else ())
    read = _labels(sheet, rows, names, task)
    strata = read if stratify else None
    sides = _split(sheet, rows, split_by, split_column, strata, seed, keep_together)
    about = _provenance(cache, space, rows, sides, sheet)
    return Dataset(
        ids=tuple(rows.ids),
        vectors=_vectors(space, rows.digests, memory_bytes),
        widths=space.widths if len(space.spaces) > 1 else (),
        targets=read.values,
        weights=(weights := rows.weights(sheet, weight)),
        groups=sides.groups,
        subset=sides.subset,
        task=read.task,
        target=",".join(names),
        weight=weight,
        classes=read.classes,
        counts=are_counts(read.values, weights, read.task),
        shares=are_shares(read.values, read.task),
        by={name: tuple(map(str, rows.texts(sheet, name))) for name in by},
        notes=(*rows.notes, *read.notes, *sides.notes),
        provenance=replace(
            about, backbone=_named(backbone), ref=ref, scope=scope, subset_name=subset_name
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The rows of a label table that are used.

    ids: as the table has them.  at: int64 (n,), their rows in the table.  digests: (n, 32).
    dropped: rows left out, by reason.  notes: how rows were joined.
    """

    ids: list[str]
    at: NDArray[np.int64]
    digests: U8
    dropped: Counter[str]
    notes: tuple[str, ...] = ()

    def keep(self, kept: NDArray[np.bool_], dropped: Counter[str]) -> "_Rows":
        """Only some of the rows; `dropped` counts the others."""
        return replace(
            self,
            ids=[name for name, ok in zip(self.ids, kept, strict=True) if ok],
            at=self.at[kept],
            digests=self.digests[kept],
            dropped=self.dropped + dropped,
        )

    def weights(self, sheet: Sheet, name: str | None) -> Floats | None:
        """A column of these rows as weights."""
        return None if name is None else parse_weights(sheet.column(name)[self.at], self.ids)

    def texts(self, sheet: Sheet, name: str) -> list[str | None]:
        """A column of these rows as text."""
        cells = sheet.texts(name)
        return [cells[i] for i in self.at.tolist()]


@dataclass(frozen=True, slots=True)
class _Sides:
    """Group number (n,) and side (n,) per row, the rule that made them, and notes on it."""

    groups: NDArray[np.int64]
    subset: U8
    rule: str
    notes: tuple[str, ...]


def _opened(table: Table, targets: tuple[str, ...], others: Sequence[str | None]) -> Sheet:
    """The label table; refused without its columns or rows, or where targets cannot be joined."""
    sheet = open_sheet(table, error=LabelsError, kind="label table")
    for name in (*targets, *filter(None, others)):
        if name not in sheet.names:
            raise LabelsError(
                f"{sheet.path.name} has no column {name!r}; it has {', '.join(sheet.names)}"
            )
    if len(targets) > 1 and (odd := [name for name in targets if "," in name]):
        raise LabelsError(f"{odd[0]!r} has a comma in its name: fit it alone, or rename it")
    if len(set(targets)) < len(targets):
        raise LabelsError(f"a target is named twice: {', '.join(targets)}")
    if not sheet.n_rows:
        raise LabelsError(f"{sheet.path.name} has no rows")
    return sheet


def _present(
    sheet: Sheet, cache: Cache, space: SideBySide, id_column: str | None, scope: str | None
) -> _Rows:
    """The rows whose photo has a vector."""
    met = join_ids(sheet, cache, id_column, scope)
    found, dropped = met.known & (space.status(met.digests) == OK), Counter(met.dropped)
    if unknown := int((~met.known).sum()) - dropped.total():
        dropped["id not in the cache"] = unknown
    dropped.update(_without_vector(space, met.digests[met.known & ~found]))
    if not found.any():
        raise LabelsError(_no_match(met, cache, space, dropped))
    at = np.arange(len(met.ids))
    rows = _Rows(ids=met.ids, at=at, digests=met.digests, dropped=dropped, notes=met.notes)
    return rows.keep(found, Counter())


def _without_vector(space: SideBySide, digests: U8) -> Counter[str]:
    """Why each of (n, 32) digests has no vector; of several backbones the first that lacks it."""
    counts: Counter[str] = Counter()
    for one, name in zip(space.spaces, space.names, strict=True):
        if not len(digests):
            break
        lacking = one.status(digests) != OK
        for reason in one.reasons(digests[lacking]):
            why = reason or one.absent
            counts[f"{why} ({name})" if len(space.spaces) > 1 else why] += 1
        digests = digests[~lacking]
    return counts


def _refuse_width(space: SideBySide) -> None:
    if space.dim > MAX_DIM:
        raise LabelsError(
            f"{len(space.spaces)} backbones side by side make vectors of {space.dim:,} floats, and "
            f"a head takes {MAX_DIM:,} at most: name fewer"
        )


def _named(backbone: str | Sequence[str]) -> str:
    """What was asked for, in one line."""
    return backbone if isinstance(backbone, str) else " + ".join(backbone)


def _no_match(met: JoinedIds, cache: Cache, space: SideBySide, dropped: Counter[str]) -> str:
    if met.known.any():
        reasons = "; ".join(f"{n} {reason}" for reason, n in dropped.most_common(4))
        return (
            f"no labelled photo has a vector: {reasons}. Run 'embedcache extract' for this backbone"
        )
    held = ", ".join(map(repr, cache.some_ids(3)))
    if not held:
        return without_ids(cache.path, space.spaces[0])
    return (
        f"none of the {len(met.ids)} ids of the label table is in the cache, and none is the path "
        f"or file name of one photo. Column {met.column!r} has ids like "
        f"{', '.join(map(repr, met.ids[:3]))}; the cache has {held}. Name the matching column with "
        "`id_column`"
    )


def _chosen(
    rows: _Rows,
    sheet: Sheet,
    space: SideBySide,
    cache: Cache,
    faces: int | None,
    needed: Sequence[str],
) -> _Rows:
    """The rows with this number of faces, and with a value of every column that is needed."""
    if faces is not None:
        rows = _with_faces(rows, cache, space, faces)
    return _with_labels(rows, sheet, needed) if needed else rows


def _with_faces(rows: _Rows, cache: Cache, space: SideBySide, faces: int) -> _Rows:
    """The rows whose photo has exactly this number of detected faces."""
    detectors = list(cache.face_spaces())
    named = {one.spec.face.detector for one in space.spaces if one.spec.face is not None}
    if named:
        detectors = [d for d in detectors if d.digest in named]
    if len(detectors) != 1:
        found = "no face detections" if not detectors else f"{len(detectors)} face detectors' boxes"
        raise LabelsError(
            f"only photos with {faces} face(s) were asked for, and the cache holds {found} for "
            f"this backbone. Run 'embedcache extract' with a backbone ending in @face"
            + (", or use a @face backbone here" if detectors else "")
        )
    dropped: Counter[str] = Counter()
    counts = detectors[0].counts_of(rows.digests)
    for count in counts[counts != faces]:
        reason = "faces not detected yet" if count < 0 else f"{count} faces"
        dropped["1 face" if count == 1 else reason] += 1
    if not (counts == faces).any():
        raise LabelsError(f"no labelled photo has exactly {faces} face(s): {dict(dropped)}")
    return rows.keep(counts == faces, dropped)


def _with_labels(rows: _Rows, sheet: Sheet, names: Sequence[str]) -> _Rows:
    """The rows that have a value of every target."""
    kept = np.ones(len(rows.ids), np.bool_)
    dropped: Counter[str] = Counter()
    for name in names:
        try:
            missing = parse(sheet.column(name)).missing[rows.at]
        except ValueError:
            continue  # `parse_targets` raises it with the advice
        dropped[f"no {name}"] += int((kept & missing).sum())
        kept &= ~missing
    if not kept.any():
        raise LabelsError(f"no row of {sheet.path.name} has a value of {', '.join(names)}")
    return rows.keep(kept, +dropped)


def _people(
    rows: _Rows, sheet: Sheet, column: str | None
) -> tuple[list[str | None] | None, tuple[str, ...]]:
    """Whom each photo shows, None for nobody known; and a note where some are."""
    if column is None:
        return None, ()
    people = [None if is_missing(cell) else cell for cell in rows.texts(sheet, column)]
    n_alone = people.count(None)
    if not n_alone:
        return people, ()
    return people, (
        f"{counted(n_alone, 'row has', 'rows have')} no {column!r}: each is a group of its own",
    )


def _split(
    sheet: Sheet,
    rows: _Rows,
    split_by: str | None,
    split_column: str | None,
    strata: Labels | None,
    seed: int,
    near: Sequence[Mapping[bytes, int]],
) -> _Sides:
    """strata: labels of which each class is cut at the shares, or None. near: as `load` has it."""
    people, alone = _people(rows, sheet, split_by)
    content = [row.tobytes() for row in rows.digests]
    kinds = [people] if people else []
    kinds.append([one.hex() for one in content])
    for numbers in near:  # last: a group that they do not join keeps its name, and so its side
        found = [numbers.get(one) for one in content]
        kinds.append([None if number is None else str(number) for number in found])
    groups, names = split.join_groups(kinds)
    rule = f"column {split_column}" if split_column else f"hash, seed {seed}"
    if near:
        alone = (*alone, _joined(split.join_groups(kinds[: -len(near)])[0], groups))
    if split_column:
        given = rows.texts(sheet, split_column)
        subset = split.given(given, groups, rows.ids, column=split_column, nearly=bool(near))
    else:
        classes = strata_of(strata.values, strata.task) if strata else None
        subset = split.by_hash(groups, names, seed=seed, strata=classes)
    by = [split_by] if split_by else []
    by += ["near-duplicates"] if near else []
    return _Sides(groups, subset, rule + (f", grouped by {' and '.join(by)}" if by else ""), alone)


def _joined(before: NDArray[np.int64], groups: NDArray[np.int64]) -> str:
    """What keeping near-duplicates together joined, of groups (n,) that were there before."""
    n_before, n_after = (int(one.max(initial=-1)) + 1 for one in (before, groups))
    largest = int(np.bincount(groups).max(initial=0))
    return (
        f"near-duplicates are kept together: {n_before:,} groups became {n_after:,}, the largest "
        f"of {largest:,} of {len(groups):,} photos"
    )


def _labels(sheet: Sheet, rows: _Rows, names: Sequence[str], task: str) -> Labels:
    whole = [sheet.column(name) for name in names]
    return parse_targets([column[rows.at] for column in whole], rows.ids, task, whole=whole)


def _provenance(
    cache: Cache, space: SideBySide, rows: _Rows, sides: _Sides, sheet: Sheet
) -> Provenance:
    parts = [
        OriginPart(name, one.digest, one.spec.document())
        for name, one in zip(space.names, space.spaces, strict=True)
    ]
    return Provenance(
        spec=parts[0].spec if len(parts) == 1 else None,
        spec_digest=" ".join(part.spec_digest for part in parts),
        together=tuple(parts) if len(parts) > 1 else (),
        cache=cache.path.name,
        labels_name=sheet.path.name,
        labels=sheet.sha256,
        split=split.digest(rows.ids, sides.subset),
        split_rule=sides.rule,
        dropped=dict(rows.dropped),
    )


def _vectors(space: SideBySide, digests: U8, memory_bytes: int | None) -> Vectors:
    """The vectors of (n, 32) digests, held in memory where they are within the limit."""
    if len(digests) * space.dim * 4 <= (memory_bytes or 1 << 62):
        vectors: NDArray[np.float32] = space.read(digests)[0]
        return vectors
    return CacheRows.of(space, digests)
