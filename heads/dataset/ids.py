"""The photos of a cache that the ids of a table mean: as they are, by path or by file name."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import LabelsError
from embedcache.photos.matching import Matches, match_ids
from embedcache.store.cache import Cache
from embedcache.tables import ID_COLUMNS, Sheet
from embedcache.wording import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedIds:
    """The n ids of a table, and the photo of each.

    column: where they stand.  ids: as the table has them.  digests: uint8 (n, 32), sha256 of the
        photo's bytes.  known: bool (n,), whether the cache knows the photo.
    notes: how they were joined.  dropped: ids that mean no single photo, by reason.
    """

    column: str
    ids: list[str]
    digests: NDArray[np.uint8]
    known: NDArray[np.bool_]
    notes: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


def join_ids(sheet: Sheet, cache: Cache, column: str | None, scope: str | None) -> JoinedIds:
    """Join by the column that is named, or by the usual one that meets most photos.

    scope: where the photos come from, None for everywhere.
    LabelsError where the column is missing, or an id is missing or stands twice.
    """
    columns = [sheet.id_column(column)]
    if column is None:
        columns = [name for name in ID_COLUMNS if name in sheet.names]
    tried = []
    for name in columns:
        ids = _ids(sheet, name)
        tried.append((name, ids, *cache.digests_of(ids, scope=scope)))
    name, ids, digests, known = max(tried, key=lambda one: int(one[3].sum()))
    notes = [] if len(columns) == 1 else [f"{sheet.path.name}: the ids are in column {name!r}"]
    matches, held = (None, []) if known.all() else _match(ids, cache, scope)
    if matches is None:
        return JoinedIds(column=name, ids=ids, digests=digests, known=known, notes=tuple(notes))
    known = matches.at >= 0
    for i in np.flatnonzero(known).tolist():
        digests[i] = np.frombuffer(held[matches.at[i]].content, np.uint8)
    notes += filter(None, [matches.sentence(ids, [photo.id for photo in held])])
    n, reason = matches.n_ambiguous, f"several photos of one {matches.rule}"
    return JoinedIds(
        column=name,
        ids=ids,
        digests=digests,
        known=known,
        notes=tuple(notes),
        dropped={reason: n} if n else {},
    )


def ids_in_cache(
    ids: Sequence[str], cache: Cache, *, scope: str | None = None
) -> tuple[list[str], str]:
    """The ids as the cache has them where they meet one by path or file name, the others as they
    are; and how they were joined, in words, "" where no rule was needed.
    """
    if cache.digests_of(ids, scope=scope)[1].all():
        return list(ids), ""
    matches, held = _match(ids, cache, scope)
    if matches is None:
        return list(ids), ""
    found = [held[k].id if k >= 0 else ids[i] for i, k in enumerate(matches.at.tolist())]
    return found, matches.sentence(ids, [photo.id for photo in held])


class _Held(NamedTuple):
    """A photo that the cache knows: its id, where that comes from, and sha256 of its bytes."""

    id: str
    scope: str
    content: bytes


def _match(
    ids: Sequence[str], cache: Cache, scope: str | None
) -> tuple[Matches | None, list[_Held]]:
    """How ids meet the photos of a cache, and these photos."""
    table = cache.photo_table()
    held = [
        _Held(table.ids[i], table.scopes[i], table.digests[i].tobytes())
        for i in np.flatnonzero(table.newest).tolist()
        if scope in (None, table.scopes[i])
    ]
    names, scopes = [photo.id for photo in held], [photo.scope for photo in held]
    return match_ids(ids, names, [photo.content for photo in held], scopes), held


def _ids(sheet: Sheet, column: str) -> list[str]:
    """The ids of all rows: each there, and each once."""
    ids = [name for name in sheet.texts(column) if name is not None]
    if missing := sheet.n_rows - len(ids):
        raise LabelsError(f"{counted(missing, 'row')} of {sheet.path.name} without {column}")
    if len(set(ids)) < len(ids):
        twice = [name for name, times in Counter(ids).items() if times > 1]
        raise LabelsError(
            f"{counted(len(twice), 'id has', 'ids have')} more than one row in "
            f"{sheet.path.name}, for example {twice[0]!r}; a photo has one label: aggregate to one "
            "row per photo"
        )
    return ids
