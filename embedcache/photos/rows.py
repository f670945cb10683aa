"""The photos of a table: a path in each row, or the bytes of the photo itself."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcache.errors import PhotosError
from embedcache.photos.digests import InlinePhoto
from embedcache.photos.kinds import SNIFF_BYTES, DecodeError, kind_of
from embedcache.tables import ID_COLUMNS, Sheet, is_missing
from embedcache.texts import Below, Growing, Texts, few_as_tuple, repeated, some_of
from embedcache.wording import counted

if TYPE_CHECKING:
    import polars as pl

PHOTO_COLUMNS = ("photo", "image", "path", "file_name")
"""The columns that hold photos where none is named, the first that a table has."""
MAX_INLINE_BYTES = 2**31
BLOCK_ROWS = 1 << 16  # of paths and ids that are objects at a time
_URLS = ("http://", "https://", "ftp://", "s3://", "gs://", "data:")


@dataclass(frozen=True, slots=True)
class Rows:
    """Ids and paths of a table's photos, and how they were found."""

    ids: Sequence[str]
    paths: Sequence[str]
    n_without_photo: int
    column: str
    notes: tuple[str, ...]


def photos_in(sheet: Sheet, photo_column: str | None, id_column: str | None) -> Rows:
    """Read ids and photos; PhotosError for missing ids, ids of two photos, and URLs."""
    column = _photo_column(sheet, photo_column)
    cells = sheet.column(column)
    whole = _paths(sheet, cells) if _holds_bytes(cells) else []
    inline = any(isinstance(photo, InlinePhoto) for photo in whole)
    by_path = id_column is None and inline and not {*ID_COLUMNS} & {*sheet.names}
    id_name = "path" if by_path else sheet.id_column(id_column)
    names_of = None if by_path else sheet.column(id_name)
    ids, paths, given = Growing(), Growing(), list[str]()
    n_without = n_missing = 0
    for start in range(0, len(cells), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        photos = whole[part] or _paths(sheet, cells[part])
        names = photos if names_of is None else sheet.texts_of(names_of[part])
        n_missing += sum(name is None for name in names) if names_of is not None else 0
        pairs = [
            (str(name), photo)
            for name, photo in zip(names, photos, strict=True)
            if name is not None and photo is not None
        ]
        n_without += len(photos) - len(pairs)
        ids.add([name for name, _ in pairs])
        if inline:
            given += [photo for _, photo in pairs]
        else:
            paths.add([photo for _, photo in pairs])
    if n_missing:
        raise PhotosError(f"{sheet.path}: {counted(n_missing, 'row')} without {id_name!r}")
    found = _each_id_once(sheet, Texts(*ids.arrays()), given if inline else Texts(*paths.arrays()))
    if not len(found[0]):
        raise PhotosError(f"{sheet.path} names no photo: its column {column!r} is empty")
    notes = _notes(sheet, "" if by_path else id_name, named=id_column is not None)
    kept, files = map(few_as_tuple, found)
    return Rows(kept, files, n_without, column, notes)


def _holds_bytes(cells: "pl.Series") -> bool:
    """Whether a column may hold photos themselves."""
    import polars as pl

    return isinstance(cells.dtype, pl.Struct) or cells.dtype == pl.Binary


def _each_id_once(
    sheet: Sheet, ids: Texts, photos: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """The ids with their photos as paths; PhotosError for an id of two photos."""
    first: dict[str, str] = {}
    again, twice = [], {}
    for row in repeated(ids).tolist():
        name, photo = ids[row], photos[row]
        if name in first:
            again.append(row)
            if not _same(first[name], photo):
                twice[name] = photo
        else:
            first[name] = photo
    if twice:
        raise PhotosError(
            f"{sheet.path}: {counted(len(twice), 'id names', 'ids name')} more than one photo, the "
            f"first is {next(iter(twice))!r}"
        )
    if again:
        rows = np.setdiff1d(np.arange(len(ids)), again)
        ids, photos = ids.take(rows), some_of(photos, rows)
    folder = os.fspath(sheet.path.parent)
    if isinstance(photos, Texts):
        return ids, Below(folder, photos)
    joined = (one if isinstance(one, InlinePhoto) else os.path.join(folder, one) for one in photos)
    return ids, tuple(joined)


def _photo_column(sheet: Sheet, named: str | None) -> str:
    known = (named,) if named is not None else PHOTO_COLUMNS
    found = next((name for name in known if name in sheet.names), None)
    if found is None:
        raise PhotosError(
            f"{sheet.path} has no column {named or PHOTO_COLUMNS[0]!r}; it has "
            f"{', '.join(sheet.names) or 'none'}. Name the photo column with `photo_column`"
        )
    return found


def _notes(sheet: Sheet, id_name: str, *, named: bool) -> tuple[str, ...]:
    """How the ids were found. id_name: their column, "" for the photos' own paths."""
    if not id_name:
        return (f"{sheet.path.name} has no id column: the photos' paths are used as ids",)
    usual = named or id_name == ID_COLUMNS[0]
    return () if usual else (f"{sheet.path.name}: the ids are in column {id_name!r}",)


def _paths(sheet: Sheet, column: "pl.Series") -> "list[str | None]":
    """The photo of each row, None where there is none."""
    import polars as pl

    name = column.name
    if isinstance(column.dtype, pl.Struct):
        return _of_structs(sheet, column)
    if column.dtype == pl.Binary:
        values = column.to_list()
        return _inline(sheet, name, values, [f"{name}-{i}" for i in range(len(values))])
    paths = [None if is_missing(path) else path for path in sheet.texts_of(column)]
    for path in filter(None, paths):
        if "\0" in path:
            raise PhotosError(f"{sheet.path}: column {name!r} holds a path with a zero byte")
        if path.lower().startswith(_URLS):
            raise PhotosError(
                f"{sheet.path}: column {name!r} holds addresses such as {path[:80]!r}, and photos "
                "are read from files: download them, and write their paths"
            )
    return [_local(path) for path in paths]


def _local(path: str | None) -> str | None:
    """A `file://` address as the path it names."""
    if path is None or not path.lower().startswith("file://"):
        return path
    from urllib.parse import unquote, urlsplit

    return unquote(urlsplit(path).path)


def _of_structs(sheet: Sheet, column: "pl.Series") -> "list[str | None]":
    """Hugging Face's form of a photo: {bytes, path}, either of which may be empty."""
    fields = {field.name for field in column.dtype.fields}  # type: ignore[attr-defined]
    if not fields & {"bytes", "path"}:
        raise PhotosError(
            f"{sheet.path}: column {column.name!r} holds {column.dtype}; photos are paths, bytes, "
            "or structs with the fields bytes and path"
        )
    empty: list[Any] = [None] * len(column)
    values = column.struct.field("bytes").to_list() if "bytes" in fields else empty
    paths = column.struct.field("path").to_list() if "path" in fields else empty
    names = [path or f"{column.name}-{i}" for i, path in enumerate(paths)]
    inline = _inline(sheet, column.name, values, names)
    return [found or path or None for found, path in zip(inline, paths, strict=True)]


def _inline(
    sheet: Sheet, column: str, values: list[bytes | None], names: list[str]
) -> "list[str | None]":
    """Bytes as photos; bytes that are no picture may be a path, as some programs write text."""
    if (n_bytes := sum(map(len, filter(None, values)))) > MAX_INLINE_BYTES:
        raise PhotosError(
            f"{sheet.path}: column {column!r} holds {n_bytes / 1e9:.1f} GB of photos; at most "
            f"{MAX_INLINE_BYTES / 1e9:.1f} GB are read from one table: split it, or write the "
            "photos to files"
        )
    found: list[str | None] = []
    for value, name in zip(values, names, strict=True):
        if not value:
            found.append(None)
        elif _is_path(value):
            found.append(value.decode())
        else:
            found.append(InlinePhoto.of(name, value))
    return found


def _is_path(value: bytes) -> bool:
    try:
        kind_of(value[:SNIFF_BYTES])
    except DecodeError:
        try:
            return len(value) < 4096 and value.decode().isprintable()
        except UnicodeDecodeError:
            return False
    return False


def _same(one: str, other: str) -> bool:
    mine, theirs = (getattr(photo, "data", None) for photo in (one, other))
    return one == other and mine == theirs
