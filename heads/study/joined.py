"""The label table of a study: read, checked, joined to a cache, and cut to its subsets."""

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from embedcache.errors import LabelsError
from embedcache.photos.memo import MEMO, DigestMemo
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.tables import open_sheet
from heads import dataset
from heads.study.design import NamedBackbone, Study, Subset, Target
from heads.study.tastes import check_ratings


def labelled(study: Study, path: Path, cache: Cache) -> tuple[Study, pl.DataFrame, str]:
    """The study with its id column, its label table, and how its ids were joined, in words.

    Where the table names no photos, its ids are those that the cache has under their path or file
    name. LabelsError where it lacks a column that the study names, or the study's table of ratings
    cannot be used.
    """
    ids = open_sheet(path, error=LabelsError, kind="label table").id_column(study.id_column or None)
    study = msgspec.structs.replace(study, id_column=ids)
    table = dataset.read_table(path, text=(ids,))
    needed = [study.split_by, *study.report_by]
    for target in study.target:
        needed += [target.column, target.weight]
    if missing := [name for name in needed if name is not None and name not in table.columns]:
        raise LabelsError(
            f"{path.name} has no column {missing[0]!r}; it has {', '.join(table.columns)}"
        )
    for target in study.target:
        _refuse_several_classes(study, target, table)
    check_ratings(study)
    if study.photo_column in table.columns or table[ids].null_count():
        return study, table, ""
    found, how = dataset.ids_in_cache(table[ids].to_list(), cache, scope=study.scope)
    return study, table.with_columns(pl.Series(ids, found)), how


def _refuse_several_classes(study: Study, target: Target, table: pl.DataFrame) -> None:
    """LabelsError where a target has several classes in every subset: no cell could be fitted."""
    if target.task != "multiclass" and table[target.column].dtype != pl.String:
        return
    counts = [where(table, one)[target.column].drop_nulls().n_unique() for one in study.subset]
    if min(counts) > 2:
        raise LabelsError(
            f"target {target.column!r} has {min(counts)} classes; a study's targets are numbers or "
            "two classes. 'embedcache fit-head' fits it"
        )


def where(table: pl.DataFrame, subset: Subset) -> pl.DataFrame:
    """The rows that match a condition. Polars' SQL knows columns and functions, no files."""
    if subset.where is None:
        return table
    try:
        chosen = table.filter(pl.sql_expr(subset.where))
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise LabelsError(
            f"subset {subset.name!r}: {subset.where!r} is not a condition on the label table: "
            f"{str(error).splitlines()[0]}. Write, for example, \"gender = 'F'\""
        ) from None
    if chosen.is_empty():
        raise LabelsError(f"subset {subset.name!r}: no row matches {subset.where!r}")
    return chosen


def common(
    table: pl.DataFrame, cache: Cache, backbones: list[NamedBackbone], study: Study
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows whose photo every backbone has a vector of, and why the others are left out.

    A column of a table then compares like with like.
    """
    ids = table[study.id_column].to_list()
    if table[study.id_column].null_count():
        raise LabelsError(f"the label table has rows without {study.id_column}")
    digests, found = cache.digests_of(ids, scope=study.scope)
    why = Counter({"not in the cache": int((~found).sum())})
    for backbone in backbones:
        space = cache.side_by_side(backbone.names)
        there = space.status(digests) == OK
        for reason in space.reasons(digests[found & ~there]):
            why[f"{reason or space.absent} ({backbone.shown})".replace("_", " ")] += 1
        found &= there
    if not np.any(found):
        raise LabelsError(
            f"no labelled photo has a vector of every backbone: "
            f"{', '.join(backbone.shown for backbone in backbones)}. The label table has ids like "
            f"{', '.join(map(repr, ids[:3]))}; see 'embedcache info'"
        )
    return table.filter(pl.Series(found)), {reason: n for reason, n in why.items() if n}


def files_of(study: Study, cache: Cache, table: pl.DataFrame) -> dict[str, str]:
    """By id the file that this machine read for the cache, of the rows whose file is known."""
    ids = table[study.id_column].drop_nulls().to_list()
    digests, known = cache.digests_of(ids, scope=study.scope)
    memo = DigestMemo(cache.remembered(MEMO))
    files = {content: path for path, content in memo.files()}
    found = zip(ids, (files.get(row.tobytes()) for row in digests), known.tolist(), strict=True)
    return {name: path for name, path, ok in found if ok and path}
