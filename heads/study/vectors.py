"""What a cache lacks of a study: a study that lacks nothing needs no photos."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from embedcache.errors import NoSuchSpace, PhotosError
from embedcache.photos.table import Photos, scope_of
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT
from embedcache.wording import counted
from heads.dataset.split import near_duplicates
from heads.study.design import Study
from heads.study.joined import files_of

WARNING_SAMPLE = 100
"""Photos by which a study that does not keep near-duplicates together measures what they are."""


def photos_of(
    study: Study,
    cache: Cache,
    path: Path,
    rows: pl.DataFrame,
    *,
    read: Callable[[], Photos],
    say: Callable[[str], None],
) -> Photos | None:
    """The photos of a study's table; None where none is there and the cache lacks nothing.

    Where the table names none they are those that this machine read for the cache, and rows that
    the cache does not know are left out.
    path, rows: the table. read: reads the photos that it names. say: called with one line where no
        photo is needed, and of rows left out. PhotosError where there are none and the cache lacks
        vectors.
    """
    ids = _wanted(study, cache, rows)
    gap = lacking(study, cache, ids)
    if study.photo_column not in rows.columns and not gap:
        if n_lost := rows[study.id_column].drop_nulls().len() - len(ids):
            say(
                f"{counted(n_lost, 'row')} of {path.name} left out: the cache does not have these "
                "photos, or they were forgotten"
            )
        files = files_of(study, cache, rows)
        read_before = Photos(tuple(files), tuple(files.values()), scope_of(path))
        found = f"{path.name} has no column {study.photo_column!r}"
        if read_before.any_here():
            if len(files) < len(ids):
                say(
                    f"{found}, and this machine remembers where {len(files):,} of {len(ids):,} "
                    "photos lie: the page shows these"
                )
            return read_before
    else:
        try:
            table = read()
        except PhotosError as error:
            if study.photo_column in rows.columns:
                raise
            raise PhotosError(
                f"{error}. Only a cache with all vectors needs none, and {gap}: if another cache "
                "has them, name it with `cache`"
            ) from None
        if gap or table.any_here():
            return table
        found = f"none of the photos of {path.name} is here"
    say(f"{found}; the cache has all vectors, and the page shows no photos")
    return None


def to_embed(study: Study, cache: Cache, rows: pl.DataFrame) -> list[str]:
    """The backbones of a study that a network gives, each once: all but imported vectors.

    rows: the table; where it names no photos, the cache has all vectors, and there are none.
    """
    ids = _wanted(study, cache, rows)
    if study.photo_column not in rows.columns and not lacking(study, cache, ids):
        return []
    imported = {s.spec.architecture for s in cache.spaces() if s.spec.kind == "foreign"}
    names = dict.fromkeys(name for backbone in study.backbone for name in backbone.names)
    return [name for name in names if name not in imported]


def _wanted(study: Study, cache: Cache, rows: pl.DataFrame) -> list[str]:
    """The ids of a table; where it names no photos, those that the cache knows, if it knows any."""
    ids = rows[study.id_column].drop_nulls().to_list()
    if study.photo_column in rows.columns:
        return ids
    known = cache.digests_of(ids, scope=study.scope)[1].tolist()
    return [name for name, ok in zip(ids, known, strict=True) if ok] or ids


def alike_by(study: Study) -> dict[str, Any]:
    """How a study's near-duplicates are found, as options: by the backbone that it names for that,
    by its first one of whole photos, else by its first; from fewer photos where it only warns.
    """
    asked = study.keep_together
    first = next((b for b in study.backbone if not b.sees_face), study.backbone[0])
    return {
        "backbone": study.near_duplicates_by or first.names[0],
        "threshold": near_duplicates(asked) if asked else None,
        "sample": None if asked else WARNING_SAMPLE,
    }


def lacking(study: Study, cache: Cache, ids: list[str]) -> str:
    """What the cache lacks of the rows of a study, as a sentence; "" for nothing."""
    digests, known = cache.digests_of(ids, scope=study.scope)
    if n := int((~known).sum()):
        return f"{cache.path} does not have {n:,} of {len(ids):,} photo ids"
    for name in dict.fromkeys(name for backbone in study.backbone for name in backbone.names):
        try:
            absent = cache.side_by_side(name).status(digests) == ABSENT
        except NoSuchSpace as error:
            return error.fact
        if n := int(absent.sum()):
            return f"{cache.path} lacks {n:,} of {len(ids):,} vectors of {name}"
    return ""
