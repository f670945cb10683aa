"""The photo table: which photos are wanted, under which ids, and the digest of each one's bytes.

    Photos.read(path)     a folder (searched recursively), or a .csv/.parquet table
    photos.digests(memo)  sha256 of every file, remembering what has not changed

Scope. An id says which photo somebody means, and two collections may both hold `a.jpg`. So ids
belong to a scope, which is the folder or table they were read from: its name and eight digits of
the digest of its place (`users.csv-1a2b3c4d`), which tells collections apart without giving away
where they lie. Within one scope the newest content is the id's; the older vectors stay until they
are forgotten.
"""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from embedcache.errors import PhotosError
from embedcache.photos.digests import Digests, digest_files

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
    + [".heic", ".heif", ".avif", ".ppm", ".pgm"]
)
TABLE_SUFFIXES = (".csv", ".parquet")
_TICK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Photos:
    """n photos: `ids[i]` is the photo in the file `paths[i]`.

    ids: unique text, as the table has them, or paths relative to the folder ("/" between parts).
    paths: as opened; a file that is missing is found out when it is read.
    scope: where the ids come from (see the module's text).
    n_without_photo: rows of the table whose photo column is empty; they are left out.
    """

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    scope: str
    n_without_photo: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def read(
        cls,
        path: Path | str,
        *,
        photo_column: str = "photo",
        id_column: str = "photo_id",
        progress: Callable[[int], None] | None = None,
    ) -> Self:
        """Read a folder of photos or a photo table.

        path: a folder, or a .csv/.parquet file with `photo_column` (paths relative to the table's
            own folder) and `id_column`.
        progress: called with the photos found so far, at most ten times a second, while a folder
            is listed.
        Raises PhotosError when there is no such file or column, nothing in it, or when one id names
        two photos.
        """
        path = Path(path)
        if path.is_dir():
            ids, files = _folder(path, progress)
            if not ids:
                raise PhotosError(
                    f"no photos in {path}: looked in it and below for files named "
                    f"{', '.join(sorted(SUFFIXES))}"
                )
            return cls(ids, files, scope_of(path))
        if not path.exists():
            raise PhotosError(f"no such folder or table: {path}")
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise PhotosError(
                f"{path} is neither a folder nor a table: give a folder of photos, or a .csv or "
                f".parquet file with the columns {photo_column!r} and {id_column!r}"
            )
        return cls(*_table(path, photo_column, id_column))

    def digests(
        self,
        memo: Path | None = None,
        *,
        workers: int = 4,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Digests:
        """sha256 of every file's bytes.

        memo: a file that remembers digests by path, size and mtime_ns; read if it is there,
            rewritten atomically when something new was learned.
        progress: called ten times a second, in the calling thread, with (files looked at, files),
            and once at the end.
        stop: asked ten times a second; True ends the reading, also within a large file. What was
            learned is in the memo, and the files that were not come to are `unread`.
        A file that cannot be read gets a reason instead; nothing is raised.
        """
        return digest_files(self.paths, memo, workers=workers, progress=progress, stop=stop)


def scope_of(path: Path) -> str:
    """The scope of ids read from this folder or table."""
    place = path.resolve()
    mark = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
    return f"{_text(place.name or 'root')}-{mark}"


def _folder(
    root: Path, progress: Callable[[int], None] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and paths of the photos below `root`, sorted; links are followed, loops are not.

    A folder that cannot be listed stands in the table itself, its id ending in "/": reading it
    fails, and so it is in the ledger and the other folders are not lost.
    """
    top = os.path.join(root, "")
    names: list[str] = []
    waiting = [("", frozenset({_mark(os.stat(top))}))]
    told = time.monotonic()
    while waiting:
        prefix, above = waiting.pop()
        try:
            with os.scandir(top + prefix) as entries:
                found = list(entries)
        except OSError as error:
            if not prefix:
                raise PhotosError(f"cannot list {root}: {error.strerror}") from None
            names.append(prefix)
            continue
        for entry in found:
            name = entry.name
            if name[0] == ".":
                continue
            try:
                below = _mark(entry.stat()) if entry.is_dir() else None
            except OSError:  # a link to itself, or into a folder that is closed
                below = None
            if below is None:
                if name[name.rfind(".") :].lower() in SUFFIXES:
                    names.append(prefix + name)
            elif below not in above:
                waiting.append((f"{prefix}{name}/", above | {below}))
        if progress is not None and (now := time.monotonic()) - told >= _TICK_SECONDS:
            told = now
            progress(len(names))
    names.sort()
    return _ids(names), tuple([top + name for name in names])


def _mark(status: os.stat_result) -> tuple[int, int]:
    """What tells a folder from all others."""
    return status.st_dev, status.st_ino


def _ids(names: list[str]) -> tuple[str, ...]:
    """File names as unique ids."""
    ids = [_text(name) for name in names]
    if len(set(ids)) < len(ids):  # a name with a literal \\xNN beside one with that byte
        taken = {name for name, text in zip(names, ids, strict=True) if name == text}
        for i, name in enumerate(names):
            if ids[i] != name:
                while ids[i] in taken:
                    ids[i] += "\\0"
                taken.add(ids[i])
    return tuple(ids)


def _table(
    path: Path, photo_column: str, id_column: str
) -> tuple[tuple[str, ...], tuple[str, ...], str, int]:
    import polars as pl  # half a second; a folder needs none of it

    try:
        if path.suffix.lower() == ".csv":
            table = pl.read_csv(path, infer_schema=False)
        else:
            table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise PhotosError(f"cannot read the table {path}: {error}") from None
    for column in (id_column, photo_column):
        if column not in table.columns:
            raise PhotosError(
                f"{path} has no column {column!r}; it has {', '.join(table.columns) or 'none'}. "
                "Name them with --id-column and --photo-column."
            )
    pairs = table.select(
        pl.col(id_column).cast(pl.String).alias("id"),
        pl.col(photo_column).cast(pl.String).str.strip_chars().alias("photo"),
    )
    if pairs["id"].null_count():
        raise PhotosError(f"{path}: {pairs['id'].null_count()} rows have no {id_column!r}")
    with_photo = pairs.filter(pl.col("photo").is_not_null() & (pl.col("photo") != ""))
    n_without = len(pairs) - len(with_photo)
    with_photo = with_photo.unique(maintain_order=True)
    twice = with_photo.filter(pl.col("id").is_duplicated())
    if len(twice):
        raise PhotosError(
            f"{path}: {twice['id'].n_unique()} ids name more than one photo, "
            f"the first is {twice['id'][0]!r}"
        )
    if with_photo["photo"].str.contains("\0", literal=True).any():
        raise PhotosError(f"{path}: the column {photo_column!r} holds a path with a zero byte")
    if not len(with_photo):
        raise PhotosError(f"{path} names no photo: its column {photo_column!r} is empty")
    folder = os.fspath(path.parent)
    files = tuple(os.path.join(folder, photo) for photo in with_photo["photo"])
    return tuple(with_photo["id"]), files, scope_of(path), n_without


def _text(name: str) -> str:
    """A file name as valid Unicode: bytes that are none become \\xNN."""
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")
