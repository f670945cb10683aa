"""A label table joined to the vectors of a cache, row by row, with every row accounted for."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from embedcache.errors import LabelsError
from embedcache.spec import Spec
from embedcache.store.cache import Cache, without_ids
from embedcache.store.columns import OK
from embedcache.store.space import Space
from heads.dataset import split
from heads.dataset.rows import CacheRows, Dataset, Provenance, Vectors
from heads.dataset.targets import (
    are_counts,
    are_shares,
    parse_targets,
    parse_weights,
    strata_of,
)


def read_table(path: str | Path, *, text: Sequence[str] = ()) -> pl.DataFrame:
    """Read a CSV or Parquet table; columns named in `text` stay text ("007" is not 7).

    LabelsError when the file is missing, of another kind, or cannot be parsed.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise LabelsError(f"a label table is a .csv or .parquet file; got {path.name!r}")
    if not path.is_file():
        raise LabelsError(f"no label table at {path}")
    try:
        if path.suffix.lower() == ".parquet":
            table = pl.read_parquet(path)
            return table.with_columns(
                pl.col(name).cast(pl.String) for name in text if name in table.columns
            )
        header = pl.read_csv(path, n_rows=0, infer_schema=False).columns
        return pl.read_csv(
            path,
            infer_schema_length=None,
            schema_overrides={name: pl.String for name in text if name in header},
        )
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LabelsError(f"{path} cannot be read as a table: {reason}") from None


def load(
    cache: Cache,
    backbone: str,
    labels_path: str | Path,
    *,
    target: str | Sequence[str],
    id_column: str = "user_id",
    weight: str | None = None,
    task: str = "auto",
    faces: int | None = None,
    split_by: str | None = None,
    split_column: str | None = None,
    stratify: bool = False,
    by: Sequence[str] = (),
    seed: int = 0,
    scope: str | None = None,
    subset_name: str = "ALL",
    ref: str | None = None,
    memory_bytes: int | None = None,
) -> Dataset:
    """Join a label table to the cache's vectors by photo id, and split it.

    cache: an open `embedcache.store.Cache`. target: a column, or several for a joint regression.
    weight: a column of non-negative weights (swipes per photo, say).
    faces: keep only photos in which the stored detection has exactly so many boxes.
    split_by: a column whose equal values stay on one side; equal photo contents always do.
    split_column: take the split from a column that says train, dev or test.
    by: columns to report errors by. ref: the name that the cache was opened at, for the cards.
    memory_bytes: when the vectors are larger, read them from the
        cache as they are needed instead of holding them.
    LabelsError for what cannot be used, see the module's first lines.
    """
    names = (target,) if isinstance(target, str) else tuple(target)
    table = read_table(labels_path, text=(id_column,))
    asked = [id_column, *names, *filter(None, (weight, split_by, split_column)), *by]
    if absent := [name for name in asked if name not in table.columns]:
        raise LabelsError(
            f"{Path(labels_path).name} has no column {absent[0]!r}; "
            f"it has {', '.join(table.columns)}"
        )
    if len(names) > 1 and (odd := [name for name in names if "," in name]):
        raise LabelsError(f"{odd[0]!r} has a comma in its name: fit it alone, or rename it")
    if len(set(names)) < len(names):
        raise LabelsError(f"a target is named twice: {', '.join(names)}")
    if table.is_empty():
        raise LabelsError(f"{Path(labels_path).name} has no rows")
    space = cache.find(backbone)
    dropped: Counter[str] = Counter()
    table, digests = _present(table, cache, space, id_column, scope, dropped)
    if faces is not None:
        table, digests = _with_faces(table, digests, cache, space, faces, dropped)
    ids = table[id_column].to_list()
    values, found_task, classes = parse_targets([table[name] for name in names], ids, task)
    weights = None if weight is None else parse_weights(table[weight], ids)
    content = [row.tobytes().hex() for row in digests]
    people = split.keys_of(table[split_by].to_list()) if split_by else None
    groups, group_names = split.join_groups([people, content] if people else [content], ids)
    if split_column:
        told = table[split_column].cast(pl.String).to_list()
        subset = split.given(told, groups, ids, column=split_column)
    else:
        strata = strata_of(values, found_task) if stratify else None
        subset = split.by_hash(groups, group_names, seed=seed, strata=strata)
    rule = f"column {split_column}" if split_column else f"hash, seed {seed}"
    if len(ids) * space.dim * 4 <= (memory_bytes or 1 << 62):
        vectors: Vectors = space.read(digests)[0]
    else:
        vectors = CacheRows.of(space, digests)
    return Dataset(
        ids=tuple(ids),
        vectors=vectors,
        targets=values,
        weights=weights,
        groups=groups,
        subset=subset,
        task=found_task,
        target=",".join(names),
        weight=weight,
        classes=classes,
        counts=are_counts(values, weights, found_task),
        shares=are_shares(values, found_task),
        by={name: tuple(map(str, table[name].to_list())) for name in by},
        provenance=Provenance(
            backbone=backbone,
            spec=space.spec.document(),
            spec_digest=space.digest,
            cache=cache.path.name,
            ref=ref,
            scope=scope,
            subset_name=subset_name,
            labels_name=Path(labels_path).name,
            labels=hashlib.sha256(Path(labels_path).read_bytes()).hexdigest(),
            split=split.digest(ids, subset),
            split_rule=rule + (f", grouped by {split_by}" if split_by else ""),
            dropped=dict(dropped),
        ),
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
) -> Dataset:
    """A dataset from arrays already in memory: vectors (n, d), targets (n,) or (n, k).

    groups: rows with equal values stay on one side; without it, rows with equal vectors do.
    subset: 0 train, 1 dev, 2 test per row; by hash when left out.
    """
    held = np.ascontiguousarray(vectors, np.float32)
    if held.ndim != 2 or not held.size:
        raise LabelsError(f"vectors are a table of (photos, floats); got shape {held.shape}")
    if not np.isfinite(held).all():
        raise LabelsError(f"{(~np.isfinite(held).all(1)).sum()} vectors hold NaN or infinity")
    raw = np.asarray(targets)
    if raw.ndim not in (1, 2) or len(raw) != len(held):
        raise LabelsError(f"{len(held)} vectors need as many targets; got shape {raw.shape}")
    named = [str(i) for i in range(len(held))] if ids is None else [str(i) for i in ids]
    columns = [pl.Series(raw[:, k] if raw.ndim == 2 else raw) for k in range(raw[:1].size)]
    values, found_task, classes = parse_targets(columns, named, task)
    if raw.ndim == 2 and values.ndim == 1:
        values = values[:, None]
    checked = None if weights is None else parse_weights(pl.Series(np.asarray(weights)), named)
    if checked is not None and len(checked) != len(held):
        raise LabelsError(f"{len(held)} vectors need as many weights; got {len(checked)}")
    same = groups if groups is not None else [_content(row) for row in held]
    numbers, names = split.join_groups([split.keys_of(same)], named)
    if subset is not None:
        sides = np.asarray(subset, np.uint8)
    else:
        strata = strata_of(values, found_task) if stratify else None
        sides = split.by_hash(numbers, names, seed=seed, strata=strata)
    joint = [f"target{k}" for k in range(len(columns))] if raw.ndim == 2 else ["target"]
    return Dataset(
        ids=tuple(named),
        vectors=held,
        targets=values,
        weights=checked,
        groups=numbers,
        subset=sides,
        task=found_task,
        target=target or ",".join(joint),
        weight=None if weights is None else "weight",
        classes=classes,
        counts=are_counts(values, checked, found_task),
        shares=are_shares(values, found_task),
        provenance=Provenance(
            spec=spec.document() if spec else None,
            spec_digest=spec.digest if spec else "",
            split=split.digest(named, sides),
            split_rule="given" if subset is not None else f"hash, seed {seed}",
        ),
    )


def _present(
    table: pl.DataFrame,
    cache: Cache,
    space: Space,
    id_column: str,
    scope: str | None,
    dropped: Counter[str],
) -> tuple[pl.DataFrame, NDArray[np.uint8]]:
    """The rows whose photo has a vector, and their photos' digests (n, 32)."""
    ids = table[id_column].to_list()
    if missing := sum(value is None for value in ids):
        raise LabelsError(f"{missing} rows of the label table have no {id_column}")
    if len(set(ids)) < len(ids):
        twice = [name for name, times in Counter(ids).items() if times > 1]
        raise LabelsError(
            f"{len(twice)} ids have more than one row in the label table, {twice[0]!r} for one; "
            f"a photo has one label: join the rows first"
        )
    digests, known = cache.digests_of(ids, scope=scope)
    found = known & (space.status(digests) == OK)
    if unknown := int((~known).sum()):
        dropped["id not in the cache"] = unknown
    lost = np.flatnonzero(known & ~found)
    if lost.size:
        for reason in space.reasons(digests[lost]):
            dropped[reason or "not embedded yet"] += 1
    if not found.any():
        raise LabelsError(_no_match(ids, cache, known, space, dropped))
    return table.filter(pl.Series(found)), digests[found]


def _no_match(
    ids: list[str], cache: Cache, known: NDArray[np.bool_], space: Space, dropped: Counter[str]
) -> str:
    label_ids = ", ".join(map(repr, ids[:3]))
    if known.any():
        told = "; ".join(f"{n} {reason}" for reason, n in dropped.most_common(4))
        return f"no labelled photo has a vector: {told}. Run 'embedcache extract' for this backbone"
    held = ", ".join(map(repr, cache.some_ids(3)))
    if not held:
        return without_ids(cache, space)
    return (
        f"none of the {len(ids)} ids of the label table is in the cache. The table has ids like "
        f"{label_ids}; the cache has {held}. Name the matching column with --id-column"
    )


def _with_faces(
    table: pl.DataFrame,
    digests: NDArray[np.uint8],
    cache: Cache,
    space: Space,
    faces: int,
    dropped: Counter[str],
) -> tuple[pl.DataFrame, NDArray[np.uint8]]:
    detectors = list(cache.face_spaces())
    if space.spec.face is not None:
        detectors = [d for d in detectors if d.digest == space.spec.face.detector]
    if len(detectors) != 1:
        found = "no face detections" if not detectors else f"{len(detectors)} face detectors' boxes"
        raise LabelsError(
            f"only photos with {faces} face(s) were asked for, and the cache holds {found} for "
            f"this backbone. Run 'embedcache extract' with a backbone ending in @face"
            + (", or use a @face backbone here" if detectors else "")
        )
    counts = detectors[0].counts_of(digests)
    for count in counts[counts != faces]:
        reason = "faces not looked for" if count < 0 else f"{count} faces"
        dropped["1 face" if count == 1 else reason] += 1
    kept = counts == faces
    if not kept.any():
        raise LabelsError(f"no labelled photo has exactly {faces} face(s): {dict(dropped)}")
    return table.filter(pl.Series(kept)), digests[kept]


def _content(row: NDArray[np.float32]) -> str:
    return hashlib.sha256(row.tobytes()).hexdigest()
