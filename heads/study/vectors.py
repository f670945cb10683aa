"""What a cache lacks of a study: a study that lacks nothing needs no photos."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from embedcache.errors import NoSuchSpace, PhotosError
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT
from heads.study.design import Study


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

    path, rows: the table. read: reads the photos that it names. say: called with one line where no
        photo is needed. PhotosError where there are none and the cache lacks vectors.
    """
    gap = lacking(study, cache, rows[study.id_column].drop_nulls().to_list())
    if study.photo_column not in rows.columns and not gap:
        found = f"{path.name} has no column {study.photo_column!r}"
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
