"""The photos of a table: a path in each row, or the bytes of the photo itself."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedcache.errors import PhotosError
from embedcache.photos.digests import InlinePhoto
from embedcache.photos.kinds import SNIFF_BYTES, DecodeError, kind_of
from embedcache.tables import ID_COLUMNS, Sheet, is_missing
from embedcache.wording import counted

if TYPE_CHECKING:
    import polars as pl

PHOTO_COLUMNS = ("photo", "image", "path", "file_name")
"""The columns that hold photos where none is named, the first that a table has."""
MAX_INLINE_BYTES = 2**31
_URLS = ("http://", "https://", "ftp://", "s3://", "gs://", "data:")


@dataclass(frozen=True, slots=True)
class Rows:
    """Ids and paths of a table's photos, and how they were found."""

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    n_without_photo: int
    column: str
    notes: tuple[str, ...]


def photos_in(sheet: Sheet, photo_column: str | None, id_column: str | None) -> Rows:
    """Read ids and photos; PhotosError for missing ids, ids of two photos, and URLs."""
    column = _photo_column(sheet, photo_column)
    photos = _paths(sheet, column)
    id_name, ids, notes = _ids(sheet, id_column, photos)
    if missing := sum(name is None for name in ids):
        raise PhotosError(f"{sheet.path}: {counted(missing, 'row')} without {id_name!r}")
    pairs: dict[str, str] = {}
    twice = {}
    n_without = 0
    for name, photo in zip(ids, photos, strict=True):
        if photo is None or name is None:
            n_without += 1
        elif not _same(pairs.setdefault(name, photo), photo):
            twice[name] = photo
    if twice:
        raise PhotosError(
            f"{sheet.path}: {counted(len(twice), 'id names', 'ids name')} more than one photo, the "
            f"first is {next(iter(twice))!r}"
        )
    if not pairs:
        raise PhotosError(f"{sheet.path} names no photo: its column {column!r} is empty")
    folder = os.fspath(sheet.path.parent)
    paths = tuple(
        photo if isinstance(photo, InlinePhoto) else os.path.join(folder, photo)
        for photo in pairs.values()
    )
    return Rows(tuple(pairs), paths, n_without, column, notes)


def _photo_column(sheet: Sheet, named: str | None) -> str:
    known = (named,) if named is not None else PHOTO_COLUMNS
    found = next((name for name in known if name in sheet.names), None)
    if found is None:
        raise PhotosError(
            f"{sheet.path} has no column {named or PHOTO_COLUMNS[0]!r}; it has "
            f"{', '.join(sheet.names) or 'none'}. Name the photo column with `photo_column`"
        )
    return found


def _ids(
    sheet: Sheet, named: str | None, photos: "list[str | None]"
) -> tuple[str, list[str | None], tuple[str, ...]]:
    """(column, ids, how they were found); photos stored in a table go by their own paths."""
    inline = any(isinstance(photo, InlinePhoto) for photo in photos)
    if named is None and inline and not {*ID_COLUMNS} & {*sheet.names}:
        note = f"{sheet.path.name} has no id column: the photos' paths are used as ids"
        return "path", [str(photo) for photo in photos], (note,)
    column = sheet.id_column(named)
    usual = named is not None or column == ID_COLUMNS[0]
    notes = () if usual else (f"{sheet.path.name}: the ids are in column {column!r}",)
    return column, sheet.texts(column), notes


def _paths(sheet: Sheet, name: str) -> "list[str | None]":
    """The photo of each row, None where there is none."""
    import polars as pl

    column = sheet.column(name)
    if isinstance(column.dtype, pl.Struct):
        return _of_structs(sheet, column)
    if column.dtype == pl.Binary:
        values = column.to_list()
        return _inline(sheet, name, values, [f"{name}-{i}" for i in range(len(values))])
    paths = [None if is_missing(path) else path for path in sheet.texts(name)]
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
