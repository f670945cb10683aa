"""The photo table: which photos are wanted, under which ids, and the digest of each one's bytes.

    Photos.read(path)     a folder (searched recursively), or a .csv/.parquet table
    photos.digests(memo)  sha256 of every file, remembering what has not changed

Scope. An id says which photo somebody means, and two collections may both hold `a.jpg`. So ids
belong to a scope, which is the folder or table they were read from: its name and eight digits of
the digest of its place (`users.csv-1a2b3c4d`), which tells collections apart without giving away
where they lie. Within one scope the newest content is the id's; the older vectors stay until they
are forgotten.
"""

import errno
import hashlib
import os
import stat
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from embedcache.errors import PhotosError

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
    + [".heic", ".heif", ".avif", ".ppm", ".pgm"]
)
TABLE_SUFFIXES = (".csv", ".parquet")
MAX_FILE_BYTES = 512 * 2**20
CLOCK_RESOLUTION_NS = 2_000_000_000
"""A file changed this shortly before it was read may change again within one tick of its clock
(FAT counts two seconds), so its digest is not remembered."""

U8 = npt.NDArray[np.uint8]
_BLOCK_FILES = 4096


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
        cls, path: Path | str, *, photo_column: str = "photo", id_column: str = "photo_id"
    ) -> Self:
        """Read a folder of photos or a photo table.

        path: a folder, or a .csv/.parquet file with `photo_column` (paths relative to the table's
            own folder) and `id_column`.
        Raises PhotosError when there is no such file or column, nothing in it, or when one id names
        two photos.
        """
        path = Path(path)
        if path.is_dir():
            ids, files = _folder(path)
            if not ids:
                raise PhotosError(
                    f"no photos in {path}: looked in it and below for files named "
                    f"{', '.join(sorted(SUFFIXES))}"
                )
            return cls(tuple(ids), tuple(files), scope_of(path))
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
    ) -> "Digests":
        """sha256 of every file's bytes.

        memo: a file that remembers digests by path, size and mtime_ns; read if it is there,
            rewritten atomically when something new was learned.
        progress: called with (files done, files to read) as reading goes on.
        A file that cannot be read gets a reason instead; nothing is raised.
        """
        remembered = Memo.read(memo)
        value = np.zeros((len(self.paths), 32), np.uint8)
        reasons: dict[int, str] = {}
        fresh: list[tuple[int, str, os.stat_result]] = []
        here = os.getcwd()
        for i, name in enumerate(self.paths):
            path = name if name[:1] == os.sep else os.path.join(here, name)
            try:
                found = os.stat(path)
            except OSError as error:
                reasons[i] = reason_of(error)
                continue
            known = remembered.get(path, found)
            if known is None:
                fresh.append((i, path, found))
            else:
                value[i] = np.frombuffer(known, np.uint8)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for start in range(0, len(fresh), _BLOCK_FILES):
                block = fresh[start : start + _BLOCK_FILES]
                now = time.time_ns()
                answers = pool.map(_digest_or_reason, (path for _, path, _ in block))
                for (i, path, found), answer in zip(block, answers, strict=True):
                    if isinstance(answer, str):
                        reasons[i] = answer
                        continue
                    value[i] = np.frombuffer(answer, np.uint8)
                    remembered.put(path, found, answer, now)
                if progress is not None:
                    progress(start + len(block), len(fresh))
        remembered.write()
        return Digests(value, reasons, n_read=len(fresh))


@dataclass(frozen=True, slots=True)
class Digests:
    """Content digests of n photos, in the photos' order.

    value: uint8 (n, 32), sha256; zeros where the file could not be read.
    reasons: why, by position, for those that could not.
    n_read: files whose bytes were read; the others were remembered.
    """

    value: U8
    reasons: dict[int, str]
    n_read: int

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """bool (n,): which photos have a digest."""
        ok = np.ones(len(self.value), bool)
        ok[list(self.reasons)] = False
        return ok


class Memo:
    """Digests remembered by path, size and mtime_ns, in one npz file (no pickle).

    A lost or damaged memo costs time and nothing else, so it is read leniently and two processes
    that write it at once leave one of the two.
    """

    def __init__(self, path: Path | None, entries: dict[str, tuple[int, int, bytes]]) -> None:
        self._path = path
        self._entries = entries
        self._changed = False

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """The memo in `path`, empty when there is none or it cannot be read."""
        entries: dict[str, tuple[int, int, bytes]] = {}
        with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            if path is not None:
                with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                    names = stored["paths"].tobytes().decode("utf-8", "surrogateescape")
                    blob = stored["digests"].tobytes()
                    digests = [blob[i : i + 32] for i in range(0, len(blob), 32)]
                    numbers = zip(
                        stored["sizes"].tolist(), stored["mtimes"].tolist(), digests, strict=True
                    )
                    entries = dict(zip(names.split("\0"), numbers, strict=True))
        return cls(path, entries)

    def get(self, path: str, found: os.stat_result) -> bytes | None:
        """The digest of the file, if it has not changed since it was remembered."""
        entry = self._entries.get(path)
        if entry is None or entry[0] != found.st_size or entry[1] != found.st_mtime_ns:
            return None
        return entry[2]

    def put(self, path: str, found: os.stat_result, digest: bytes, now_ns: int) -> None:
        """Remember `digest`, unless the file is so new that it may change unnoticed."""
        if now_ns - found.st_mtime_ns > CLOCK_RESOLUTION_NS:
            self._entries[path] = (found.st_size, found.st_mtime_ns, digest)
            self._changed = True

    def write(self) -> None:
        """Store what was learned; a full disk or a read-only folder is no error here."""
        if self._path is None or not self._changed:
            return
        names = "\0".join(self._entries).encode("utf-8", "surrogateescape")
        sizes, mtimes, digests = zip(*self._entries.values(), strict=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.npz")
        try:
            np.savez(
                temporary,
                paths=np.frombuffer(names, np.uint8),
                sizes=np.array(sizes, np.int64),
                mtimes=np.array(mtimes, np.int64),
                digests=np.frombuffer(b"".join(digests), np.uint8),
            )
            temporary.replace(self._path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()


def scope_of(path: Path) -> str:
    """The scope of ids read from this folder or table."""
    place = path.resolve()
    mark = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
    return f"{_text(place.name or 'root')}-{mark}"


def read_file(path: str) -> bytes:
    """The file's bytes; OSError as the system says it, and for a file that is too large to be one
    photo (MAX_FILE_BYTES) or is no regular file."""
    # Without O_NONBLOCK a named pipe among the photos would stop the run for good.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, "too large for a photo")
        return file.read(MAX_FILE_BYTES)


def reason_of(error: OSError) -> str:
    """The ledger's word for a file that could not be read."""
    if isinstance(error, FileNotFoundError):
        return "vanished"
    return "too_large_file" if error.errno == errno.EFBIG else "unreadable"


def _digest_or_reason(path: str) -> bytes | str:
    try:
        return hashlib.sha256(read_file(path)).digest()
    except OSError as error:
        return reason_of(error)


def _folder(root: Path) -> tuple[list[str], list[str]]:
    """Ids and paths of the photos below `root`, sorted; links are followed, loops are not."""
    found: list[tuple[str, str]] = []
    top = os.fspath(root)
    status = os.stat(top)
    waiting = [("", top, frozenset({(status.st_dev, status.st_ino)}))]
    while waiting:
        prefix, folder, above = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise PhotosError(f"cannot list {folder}: {error.strerror}") from None
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            if os.path.splitext(name)[1].lower() in SUFFIXES and not entry.is_dir():
                found.append((prefix + name, entry.path))
            elif entry.is_dir():
                status = entry.stat()
                mark = (status.st_dev, status.st_ino)
                if mark not in above:
                    waiting.append((f"{prefix}{name}/", entry.path, above | {mark}))
    found.sort()
    return [_text(name) for name, _ in found], [path for _, path in found]


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
    return os.fsencode(name).decode("utf-8", "backslashreplace")
