"""Vectors in and out as plain files: .npy with a list of ids, or Parquet.

An import is a space of its own, declared foreign: nothing is known of it but a name, so it never
mixes with vectors that were computed here.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, InputError, NoSuchSpace
from embedcache.machine import address_space_left
from embedcache.photos.matching import match_ids
from embedcache.spec import MAX_DIM, Json, foreign
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.store.disposal import noting_aside
from embedcache.store.naming import without_ids
from embedcache.store.side_by_side import SideBySide
from embedcache.tables import ID_COLUMNS
from embedcache.upkeep.local import clear_leftovers
from embedcache.wording import counted, reason

U8 = NDArray[np.uint8]

BLOCK_ROWS = 4096
GROUP_BYTES = 32 << 20  # of a Parquet file, which a reader takes at a time
BLOCK_BYTES = 8 << 20
# What polars takes of the address space, most of it never touched: 1.8 GB were seen on 16 threads.
PARQUET_BYTES = 2_000_000_000
SEGMENT_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote. skipped: ids that have no vector.

    shape: height, width and 3 of kept pixels, () of vectors.
    """

    files: tuple[str, ...]
    rows: int
    dim: int
    skipped: int
    shape: tuple[int, ...] = ()

    def document(self) -> dict[str, Json]:
        return {
            "files": list(self.files),
            "rows": self.rows,
            "dim": self.dim,
            "skipped": self.skipped,
        }

    def __str__(self) -> str:
        what = "vector"
        wrote = f"{counted(self.rows, what)} of {counted(self.dim, 'float')}"
        if self.shape:
            what = "photo"
            wrote = f"{counted(self.rows, what)} of {self.shape[0]} x {self.shape[1]} pixels"
        lacking = "a vector" if what == "vector" else "pixels"
        return f"wrote {wrote} to {' and '.join(self.files)}" + (
            f"; left out: {counted(self.skipped, 'id')} without {lacking}" if self.skipped else ""
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import brought in.

    already_here: rows that were here before. forgotten: rows of photos that a tombstone keeps out.
    ids_forgotten: ids that were not recorded because they were forgotten, while their photo is kept
        under others.
    """

    name: str
    spec: str
    rows: int
    already_here: int
    dim: int
    forgotten: int = 0
    ids_forgotten: int = 0

    def document(self) -> dict[str, Json]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        n_ids = self.ids_forgotten
        return (
            f"imported {counted(self.rows, 'vector')} of {counted(self.dim, 'float')} as "
            f"{self.name} (spec {self.spec[:8]}); {self.already_here:,} here already"
            + (f"; left out {counted(self.forgotten, 'forgotten photo')}" if self.forgotten else "")
            + (f"; not recorded: {counted(n_ids, 'forgotten id')}" if n_ids else "")
        )


def export(
    cache: Cache,
    backbone: str | Sequence[str],
    out: Path | str,
    *,
    ids: Sequence[str] | None = None,
    scope: str | None = None,
    every_scope: bool = False,
) -> Exported:
    """Write vectors and their photo ids to `out`; each file appears whole or not at all.

    out: F.npy, which gets F.ids.csv beside it (column photo_id, same order), or F.parquet with the
        columns photo_id and vector (a list of `dim` floats). Kept pixels go into F.npy only, as
        uint8 (n, height, width, 3). An older export is replaced, and anything else that has such a
        name is refused.
    backbone: one, or several whose vectors stand side by side; a photo is written if it has all.
    ids: which photos, in which order; all that the cache knows (of `scope`) by default. Ids without
        a vector are left out and counted.
    every_scope: write a photo once for each folder or table that it was read from; by default only
        under its ids of the last one.
    """
    out = Path(out)
    _check_target(out)
    space = cache.side_by_side(backbone, pixels=True)
    is_pixels = len(space.row_shape) > 1
    if is_pixels and out.suffix != ".npy":
        raise InputError(
            f"{space.names[0]} are pixels, which go into a .npy file; got {out.name!r}"
        )
    if ids is None:
        table = cache.photo_table()
        at = table.current(scope=scope, every_scope=every_scope)
        names, digests = [table.ids[i] for i in at], table.digests[at]
    else:
        names = list(ids)
        digests, known = cache.digests_of(names, scope=scope)
        digests[~known] = 0
    found = space.status(digests) == OK
    kept = [name for name, there in zip(names, found, strict=True) if there]
    digests = digests[found]
    if not kept and not cache.some_ids(1):
        raise NoSuchSpace(without_ids(cache.path, space.spaces[0]))
    if not kept:
        raise NoSuchSpace(
            f"none of {counted(len(names), 'photo id')} has {'' if is_pixels else 'a vector of '}"
            f"{' and '.join(space.names)} in {cache.path}"
        )
    with disk.plain_errors("write", out):
        if out.suffix == ".parquet":
            files = _write_parquet(space, kept, digests, out)
        else:
            files = _write_npy(space, kept, digests, out)
    return Exported(
        files=tuple(map(str, files)),
        rows=len(kept),
        dim=space.dim,
        skipped=len(names) - len(kept),
        shape=space.row_shape if is_pixels else (),
    )


def import_vectors(
    cache: Cache,
    vectors: Path | str,
    ids_csv: Path | str,
    *,
    ids: Sequence[str],
    digests: U8,
    name: str,
    scope: str | None = None,
) -> Imported:
    """Take vectors that were computed elsewhere, as the foreign space `name`.

    vectors: a .npy file of shape (n, dim), floats. ids_csv: n photo ids in the same order: the
        column photo_id, user_id or id, or the only column.
    ids, digests: the photos, (m,) and (m, 32); each imported id must be one of them, or the path
        or file name of one.
    scope: where the ids come from; with it the photos are recorded in the cache too.
    Raises InputError for shapes that do not fit, NaN, infinities, and ids that are missing, listed
    twice, or match no photo.
    """
    matrix = _load(Path(vectors))
    names = read_ids(Path(ids_csv))
    if len(names) != len(matrix):
        raise InputError(
            f"{vectors} has {len(matrix):,} rows and {ids_csv} has {len(names):,} ids: "
            "give exactly one id per row, in the same order, under a line with the column's name"
        )
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise InputError(f"{ids_csv} has photo id {twice!r} more than once")
    positions = _places(names, ids, digests, ids_csv)
    _check_finite(matrix, names, Path(vectors))
    rows = np.ascontiguousarray(digests[positions])
    space = cache.space(foreign(name, matrix.shape[1]), create=True)
    with noting_aside(cache.path):
        space.salvage()
    missing = np.flatnonzero(space.status(rows) != OK)
    about: dict[str, Json] = {"imported_from": Path(vectors).name, "dtype": str(matrix.dtype)}
    for start in range(0, len(missing), SEGMENT_ROWS):
        part = missing[start : start + SEGMENT_ROWS]
        with space.writer(n_rows=len(part), name=name, about=about) as writer:
            for at in range(0, len(part), BLOCK_ROWS):
                block = part[at : at + BLOCK_ROWS]
                writer.add(rows[block], matrix[block].astype(np.float32))
    named = [ids[i] for i in positions]
    if scope is not None:
        cache.record_photos(scope, named, rows)
    clear_leftovers(cache)
    forgotten = cache.dead(rows)  # before, or meanwhile
    unnamed = forgotten if scope is None else cache.dead_pairs(scope, named, rows)
    brought = int((~forgotten[missing]).sum())
    return Imported(
        name=name,
        spec=space.digest,
        rows=brought,
        already_here=len(names) - int(forgotten.sum()) - brought,
        dim=space.dim,
        forgotten=int(forgotten.sum()),
        ids_forgotten=int((unnamed & ~forgotten).sum()),
    )


def _places(names: Sequence[str], ids: Sequence[str], digests: U8, listed: Path | str) -> list[int]:
    """The position among `ids` of each name: as it is, or by path or file name."""
    matches = match_ids(names, ids, [row.tobytes() for row in digests], [""] * len(ids))
    at = np.full(len(names), -1) if matches is None else matches.at
    lost = np.flatnonzero(at < 0).tolist()
    if not lost:
        return [int(i) for i in at]
    joined = "" if matches is None else matches.sentence(names, ids)
    raise InputError(
        f"{len(lost):,} of {counted(len(names), 'id')} in {listed} "
        f"{'matches' if len(lost) == 1 else 'match'} none of the photos, for example "
        f"{names[lost[0]]!r}; the photos have ids like {', '.join(map(repr, list(ids)[:3]))}"
        + (f". The other {joined}" if joined else "")
    )


def read_ids(path: Path) -> list[str]:
    """Photo ids from a CSV: photo_id, user_id or id, else the only column; a header is needed."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            if not header:
                raise InputError(f"{path} is empty; it should have a header and one id per row")
            column = next((header.index(name) for name in ID_COLUMNS if name in header), 0)
            if header[column] not in ID_COLUMNS and len(header) > 1:
                raise InputError(
                    f"{path} has the columns {', '.join(header)}; rename the id column to photo_id"
                )
            return [row[column] for row in reader if row]
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from None
    except (UnicodeDecodeError, csv.Error, IndexError) as error:
        raise InputError(f"{path} is not a UTF-8 CSV with an id in every row: {error}") from None


def _load(path: Path) -> Any:
    """A .npy matrix, mapped; nothing in it is executed, and no size is believed."""
    if path.is_file() and path.suffix.lower() != ".npy":
        raise InputError(
            f"vectors are a .npy file, as numpy.save writes it; got {path.name}. From a table: "
            "numpy.save('vectors.npy', frame.to_numpy())"
        )
    try:
        matrix = np.lib.format.open_memmap(path, mode="r")  # takes .npy only, never a pickle
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise InputError(f"{path} is not a .npy file of numbers: {reason(error)}") from None
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or not 1 <= matrix.shape[1] <= MAX_DIM:
        raise InputError(
            f"{path} holds {matrix.dtype} of shape {matrix.shape}; a matrix of floats, one row per "
            f"photo and 1 to {MAX_DIM:,} columns, is needed"
        )
    return matrix


def _check_finite(matrix: Any, names: Sequence[str], path: Path) -> None:
    for start in range(0, len(matrix), BLOCK_ROWS):
        with np.errstate(over="ignore"):
            fine = np.isfinite(matrix[start : start + BLOCK_ROWS].astype(np.float32)).all(axis=1)
        if not fine.all():
            row = start + int(np.flatnonzero(~fine)[0])
            raise InputError(
                f"row {row} of {path} (photo {names[row]!r}) holds NaN or a number that float32 "
                "cannot hold"
            )


def _blocks(space: SideBySide, digests: U8) -> Iterator[NDArray[Any]]:
    step = _rows_of(space, BLOCK_BYTES)
    for start in range(0, len(digests), step):
        rows, found = space.read(digests[start : start + step])
        if not found.all():
            raise NoSuchSpace("rows were forgotten during the export: rerun the command")
        yield rows


def _rows_of(space: SideBySide, n_bytes: int) -> int:
    return max(1, n_bytes // (4 * space.dim))


def _check_target(out: Path) -> None:
    """InputError unless an export can be written to `out`."""
    if out.suffix not in (".npy", ".parquet"):
        raise InputError(f"an export is a .npy or .parquet file; got {out.name!r}")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent} to write {out.name} to: make it first")
    if out.is_dir():
        raise InputError(f"{out} is a folder: name a file to write")
    _check_replaceable(out)


def _check_replaceable(out: Path) -> None:
    """Refuse, before any work, to write over files that are not an export."""
    if out.suffix == ".parquet":
        named, replaceable = out, _is_parquet_export(out)
    else:
        listed = _list_of(out)
        n_ids = _n_ids(listed)
        if _is_empty(out):
            named, replaceable = listed, n_ids == 0
        else:
            # A list of no ids lies beside the matrix of an export that was cut off.
            n_rows = None if _is_empty(listed) else _n_rows(out)
            named, replaceable = out, n_rows is not None and n_ids in (0, n_rows)
    if not replaceable:
        raise InputError(f"{named} holds something other than an export: name another file")


def _is_empty(path: Path) -> bool:
    return not path.exists() or not path.stat().st_size


def _list_of(out: Path) -> Path:
    """The list of ids beside a matrix."""
    return out.with_suffix(".ids.csv")


def _n_ids(listed: Path) -> int | None:
    """How many ids an export's list has; 0 where there is no file; None for another file."""
    if _is_empty(listed):
        return 0
    try:
        with listed.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            if next(rows, None) != ["photo_id"]:
                return None
            widths = [len(row) for row in rows]
    except (UnicodeDecodeError, csv.Error):
        return None
    return len(widths) if set(widths) <= {1} else None


def _n_rows(out: Path) -> int | None:
    """How many rows an export's matrix has; None for another file."""
    try:
        matrix = np.lib.format.open_memmap(out, mode="r")
    except (ValueError, OSError, EOFError, OverflowError):
        return None
    vectors = matrix.dtype == np.dtype("<f4") and matrix.ndim == 2
    photos = matrix.dtype == np.uint8 and matrix.ndim == 4 and matrix.shape[3] == 3
    return len(matrix) if vectors or photos else None


def _is_parquet_export(out: Path) -> bool:
    if _is_empty(out):
        return True
    import polars as pl

    try:
        return list(pl.read_parquet_schema(out)) == ["photo_id", "vector"]
    except Exception:  # whatever polars raises on what is no Parquet file
        return False


def _write_npy(space: SideBySide, ids: Sequence[str], digests: U8, out: Path) -> list[Path]:
    listed = _list_of(out)
    with disk.replacing(listed, text=True) as text:
        with disk.replacing(out) as file:
            descr, shape = space.spaces[0].dtype.str, (len(ids), *space.row_shape)
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for rows in _blocks(space, digests):
                file.write(rows.data)
            # Ids that fit another matrix must never lie beside it, wherever this is cut off; a
            # list of none says that the matrix is an export's.
            disk.replace(listed, b"photo_id\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["photo_id"])
        writer.writerows([name] for name in ids)
    return [out, listed]


def _write_parquet(space: SideBySide, ids: Sequence[str], digests: U8, out: Path) -> list[Path]:
    left = address_space_left()
    if left is not None and left < PARQUET_BYTES:  # polars ends the process where it gets no more
        raise CacheError(
            f"cannot write {out}: Parquet needs {PARQUET_BYTES // 10**6:,} MB of address space, "
            f"and the limit of this process leaves {left // 10**6:,} MB. Raise the limit with "
            f"'ulimit -v', or write {out.with_suffix('.npy').name}, which needs little"
        )
    import polars as pl
    from polars.io.plugins import register_io_source

    vector = pl.Array(pl.Float32, space.dim)
    problems: list[Exception] = []

    def frames(*_: object) -> Iterator[pl.DataFrame]:
        start = 0
        try:
            for rows in _blocks(space, digests):
                names = pl.Series(ids[start : start + len(rows)], dtype=pl.String)
                yield pl.DataFrame({"photo_id": names, "vector": pl.Series(rows, dtype=vector)})
                start += len(rows)
        except Exception as error:
            problems.append(error)
            raise

    table = register_io_source(frames, schema={"photo_id": pl.String, "vector": vector})
    with disk.replacing(out) as file:
        try:
            # Block by block: the whole matrix is never in memory.
            table.sink_parquet(file, row_group_size=_rows_of(space, GROUP_BYTES))
        except Exception as error:
            if problems:  # which polars reports as one of its own
                raise problems[0] from None
            raise disk.system_error_in(error) or error from None
    return [out]
