"""A table of ratings joined to the vectors of a cache: who rated which photo, and how."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedcache.errors import LabelsError
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.store.naming import without_ids
from embedcache.store.side_by_side import SideBySide
from embedcache.store.space import Space
from embedcache.tables import ID_COLUMNS, Sheet, is_missing, open_sheet, parse
from embedcache.wording import counted
from heads.dataset import split
from heads.dataset.ids import JoinedIds, join_ids
from heads.dataset.join import Table
from heads.dataset.rows import Provenance

RATER_COLUMNS = ("rater_id", "viewer_id", "sender_id", "rater", "viewer")
PHOTO_COLUMNS = (*ID_COLUMNS, "recipient_id")
LARGEST = 1e100
RATING_COLUMNS = ("rating", "score", "liked")
LEAST_PHOTOS = {"train": 10, "dev": 3, "test": 3}
LEAST_RATERS = 3
LEAST_SPREAD = 1e-4
"""Of the ratings' standard deviation, in units of their mean: a taste keeps float32 numbers, of
seven digits, and the first ones would go to what all ratings share."""
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """m ratings of n photos by v raters.

    vectors: float32 (n, d), one per distinct content, each on one side: `subset` uint8 (n,).
    raters: v ids, sorted.  rater, photo: int64 (m,), places in these.  value: float64 (m,).
    """

    vectors: NDArray[np.float32]
    subset: NDArray[np.uint8]
    raters: tuple[str, ...]
    rater: Ints
    photo: Ints
    value: Floats
    notes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def side(self) -> NDArray[np.uint8]:
        """The side of each rating's photo (m,)."""
        return self.subset[self.photo]

    @property
    def n(self) -> dict[str, dict[str, int]]:
        """Photos and ratings per side."""
        sides = enumerate(split.SUBSETS)
        return {
            name: {
                "photos": int((self.subset == place).sum()),
                "ratings": int((self.side == place).sum()),
            }
            for place, name in sides
        }

    def checked(self) -> "Ratings":
        """These ratings; LabelsError where there are too few to learn from and to judge by, or
        where they hardly differ for their size."""
        n = {name: counts["photos"] for name, counts in self.n.items()}
        short = [f"{n[side]} in {side}" for side, least in LEAST_PHOTOS.items() if n[side] < least]
        if short or len(self.raters) < LEAST_RATERS:
            least = ", ".join(f"{count} in {side}" for side, count in LEAST_PHOTOS.items())
            raise LabelsError(
                f"the ratings are of {counted(len(self.vectors), 'photo')} with a vector, by "
                f"{counted(len(self.raters), 'rater')}; at least {LEAST_RATERS} raters are needed, "
                f"and photos: {least}" + (f" (there are {', '.join(short)})" if short else "")
            )
        level, differ = float(self.value.mean()), bool(np.ptp(self.value))
        if differ and (spread := float(self.value.std())) < LEAST_SPREAD * abs(level):
            raise LabelsError(
                f"the ratings are around {level:.6g} and differ by {spread:.2g} only (standard "
                "deviation), which the seven digits of a taste's numbers would not show: subtract "
                f"the same number from all, such as {level:.3g}"
            )
        return self


def load(
    cache: Cache,
    backbone: str | Sequence[str],
    ratings: Table,
    *,
    rater_column: str | None = None,
    id_column: str | None = None,
    rating_column: str | None = None,
    seed: int = 0,
    scope: str | None = None,
    ref: str | None = None,
    among: Sequence[Sequence[str]] = (),
    keep_together: Sequence[Mapping[bytes, int]] = (),
) -> Ratings:
    """Join a table of ratings to the cache's vectors, and split the photos.

    backbone: a name, or several: their vectors stand side by side, brought to one scale.
    ratings: a .csv or .parquet file or a DataFrame, one row per rating. The columns are found by
        their usual names (RATER_COLUMNS, PHOTO_COLUMNS, RATING_COLUMNS) unless they are named.
    among: other backbones, as the first: only photos that have a vector of all are used.
    keep_together: group numbers by content (sha256, 32 bytes), as `heads.dataset.load` takes them.
    Photo ids meet the cache as those of labels do. Equal contents are one photo. Rows without a
    rater, an id, a rating or a vector are left out and counted.
    LabelsError for a table that cannot be used.
    """
    sheet = _opened(ratings)
    raters = sheet.texts(_column(sheet, rater_column, RATER_COLUMNS, "rater_column"))
    rating_name = _column(sheet, rating_column, RATING_COLUMNS, "rating_column")
    value, notes = _numbers(sheet, rating_name)
    met, place = _joined(sheet, cache, id_column, scope)
    asked = [backbone] if isinstance(backbone, str) else list(backbone)
    space = cache.find(asked[0]) if len(asked) == 1 else cache.side_by_side(asked)
    has_vector = met.known & (space.status(met.digests) == OK)
    for other in among:
        has_vector &= cache.side_by_side(other).status(met.digests) == OK
    missing = {f"no {rating_name}": np.isnan(value), f"an infinite {rating_name}": np.isinf(value)}
    kept, dropped = _usable(met, place, has_vector, missing, raters)
    if not kept.any():
        raise LabelsError(_nothing(sheet, met, cache, space, dropped))
    digests, photo = np.unique(met.digests[place[kept]], axis=0, return_inverse=True)
    names, rater = np.unique(np.array(raters, object)[kept].astype(str), return_inverse=True)
    repeats = int(kept.sum()) - len(np.unique(np.stack([rater, photo.ravel()]), axis=1).T)
    if repeats:
        again = counted(repeats, "rating repeats", "ratings repeat")
        notes = (*notes, f"{again} a rater's rating of a photo: all are used")
    content = [row.tobytes().hex() for row in digests]
    near = [_keys(digests, one) for one in keep_together]
    groups, keys = split.join_groups([content, *near])
    subset = split.by_hash(groups, keys, seed=seed)
    return Ratings(
        vectors=_vectors(space, digests),
        subset=subset,
        raters=tuple(names.tolist()),
        rater=rater.astype(np.int64),
        photo=photo.ravel().astype(np.int64),
        value=value[kept],
        notes=(*met.notes, *notes),
        provenance=Provenance(
            backbone=" + ".join(asked),
            spec=space.spec.document() if isinstance(space, Space) else None,
            spec_digest=" ".join(one.digest for one in _spaces(space)),
            cache=cache.path.name,
            ref=ref,
            scope=scope,
            labels_name=sheet.path.name,
            labels=sheet.sha256,
            split=split.digest(content, subset),
            split_rule=f"photos by hash, seed {seed}",
            dropped=dict(+dropped),
        ),
    ).checked()


def check(
    ratings: Table, *, rater_column: str | None, id_column: str | None, rating_column: str | None
) -> None:
    """LabelsError where a table of ratings cannot be read, or has no such columns."""
    sheet = _opened(ratings)
    _column(sheet, rater_column, RATER_COLUMNS, "rater_column")
    _column(sheet, id_column, PHOTO_COLUMNS, "id_column")
    _column(sheet, rating_column, RATING_COLUMNS, "rating_column")


def _opened(ratings: Table) -> Sheet:
    return open_sheet(ratings, error=LabelsError, kind="table of ratings")


def _spaces(space: Space | SideBySide) -> tuple[Space, ...]:
    return space.spaces if isinstance(space, SideBySide) else (space,)


def _vectors(space: Space | SideBySide, digests: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The vectors (n, d); of several backbones each brought to one scale, so that none drowns the
    others among the leading components."""
    vectors: NDArray[np.float32] = space.read(digests)[0]
    if isinstance(space, SideBySide):
        first = 0
        for width in space.widths:
            block = vectors[:, first : first + width]
            block /= float(block.std(0, dtype=np.float64).mean()) or 1.0
            first += width
    return vectors


def _keys(digests: NDArray[np.uint8], number_of: Mapping[bytes, int]) -> list[str | None]:
    """The group of each content (n, 32) as a key; None for one that stands alone."""
    found = (number_of.get(row.tobytes()) for row in digests)
    return [None if number is None else str(number) for number in found]


def _column(sheet: Sheet, named: str | None, usual: tuple[str, ...], parameter: str) -> str:
    """The column that is named, or the first usual one."""
    found = named if named is not None else next((c for c in usual if c in sheet.names), None)
    if found is None or found not in sheet.names:
        asked = repr(named) if named is not None else f"{', '.join(usual[:-1])} or {usual[-1]}"
        raise LabelsError(
            f"{sheet.path.name} has no column {asked}; it has {', '.join(sheet.names)}. "
            f"Name the column with `{parameter}`"
        )
    return found


def _numbers(sheet: Sheet, name: str) -> tuple[Floats, tuple[str, ...]]:
    """A column as float64 (rows,), NaN where missing, infinite where it says so; and notes.

    LabelsError where a cell is no number.
    """
    column = sheet.column(name)
    try:
        found = parse(column)
    except ValueError as error:
        raise LabelsError(f"column {name!r} of {sheet.path.name} {error}") from None
    values = found.values
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean) and not found.missing.all():
        first = next(cell for cell, gone in zip(values, found.missing, strict=True) if not gone)
        odd = column[found.odd[0]] if found.odd else first
        raise LabelsError(
            f"column {name!r} of {sheet.path.name} holds {odd!r}, which is no number; a rating is "
            "a number in each row"
        )
    numbers = np.full(len(values), np.nan)
    there = ~found.missing
    numbers[there] = values.filter(pl.Series(there)).cast(pl.Float64).to_numpy()
    if there.any() and np.nanmax(np.abs(numbers)) > LARGEST:
        raise LabelsError(
            f"column {name!r} of {sheet.path.name} has ratings beyond {LARGEST:g}, whose squares "
            "have no number"
        )
    if values.dtype.is_float():
        infinite = values.is_infinite().fill_null(False).to_numpy()
        numbers[infinite] = np.inf
    return numbers, ((f"{name}: {found.note}",) if found.note else ())


def _joined(
    sheet: Sheet, cache: Cache, id_column: str | None, scope: str | None
) -> tuple[JoinedIds, Ints]:
    """The distinct photo ids as the cache knows them, and the place of each row's (-1: no id).

    By the column that is named, or by the usual one that meets most photos.
    """
    columns = [_column(sheet, id_column, PHOTO_COLUMNS, "id_column")]
    if id_column is None:
        columns = [name for name in PHOTO_COLUMNS if name in sheet.names]
    tried = []
    for name in columns:
        cells = sheet.texts(name)
        distinct = {cell: k for k, cell in enumerate(dict.fromkeys(filter(None, cells)))}
        if distinct:
            one = open_sheet(pl.DataFrame({name: list(distinct)}), error=LabelsError)
            met = join_ids(replace(one, path=sheet.path), cache, name, scope)
            place = np.array([distinct.get(cell or "", -1) for cell in cells], np.int64)
            tried.append((met, place))
    if not tried:
        raise LabelsError(f"{sheet.path.name} has no photo ids in column {', '.join(columns)}")
    return max(tried, key=lambda one: int(one[0].known.sum()))


def _usable(
    met: JoinedIds,
    place: Ints,
    has_vector: NDArray[np.bool_],
    missing: Mapping[str, NDArray[np.bool_]],
    raters: Sequence[str | None],
) -> tuple[NDArray[np.bool_], Counter[str]]:
    """Which rows (m,) can be used, and how many cannot, by the first reason.

    place: int64 (m,), of each row's photo in `met`, -1 for none.  has_vector: of the photos there.
    """
    dropped: Counter[str] = Counter()
    kept = np.ones(len(place), np.bool_)
    for reason, gone in (
        *missing.items(),
        ("no rater", np.array([is_missing(name) for name in raters], np.bool_)),
        ("no photo id", place < 0),
        ("photo not in the cache", ~np.append(met.known, False)[place]),
        ("photo without a vector", ~np.append(has_vector, False)[place]),
    ):
        dropped[reason] += int((kept & gone).sum())
        kept &= ~gone
    return kept, dropped


def _nothing(
    sheet: Sheet,
    met: JoinedIds,
    cache: Cache,
    space: Space | SideBySide,
    dropped: Counter[str],
) -> str:
    if met.known.any():
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in (+dropped).most_common())
        return f"no rating of {sheet.path.name} can be used: {reasons}"
    held = ", ".join(map(repr, cache.some_ids(3)))
    if not held:
        return without_ids(cache.path, _spaces(space)[0])
    return (
        f"no photo of {sheet.path.name} is in the cache. Column {met.column!r} has ids like "
        f"{', '.join(map(repr, met.ids[:3]))}; the cache has {held}. Name the matching column "
        "with `id_column`"
    )
