"""Tables as people have them: CSV and Parquet with blanks, comments, missing values, percents.

    sheet = open_sheet("labels.csv", error=LabelsError)   or a polars or pandas DataFrame
    sheet.names                  ("user_id", "gender", "ratio")
    sheet.texts("user_id")       ["u1", "u2", None, ...]: blanks stripped, None where empty
    parse(sheet.column("ratio")) numbers where the cells are numbers ("3,5", "45%"), else texts

In a CSV the separator is a comma, semicolon or tab; blank lines and lines that begin with "#" are
skipped; a row of another width than the header is an error that names its line.
"""

import csv
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import InputError
from embedcache.wording import counted

if TYPE_CHECKING:
    import polars as pl

SUFFIXES = (".csv", ".parquet")
ID_COLUMNS = ("photo_id", "user_id", "id")
"""The columns that hold photo ids where none is named, the first that a table has."""
MISSING = frozenset(
    ["", "na", "n/a", "n.a.", "<na>", "#n/a", "#na", "nan", "-nan", "+nan", "nat", "null", "nil"]
    + ["none", "missing", "-", "--", "?", ".", "#null!", "#value!", "#div/0!", "#ref!", "#name?"]
    + ["#num!", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"]
)
"""How a missing value is spelled, in lower case: by people, spreadsheets, R, pandas and SQL."""
_BLOCK_ROWS = 100_000
_SEPARATORS = ",;\t"

Bool = NDArray[np.bool_]


class Frame(Protocol):
    """A DataFrame of polars or pandas, or another table that gives an Arrow stream."""

    def __arrow_c_stream__(self, requested_schema: object = None, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table whose columns are read by name. error: the exception for what cannot be used.

    path: the file's; of a DataFrame, what messages call it.
    cells: of a CSV, all text, or of a DataFrame; None for Parquet.
    """

    path: Path
    names: tuple[str, ...]
    n_rows: int
    error: type[InputError]
    cells: "pl.DataFrame | None" = None
    from_file: bool = True

    @property
    def sha256(self) -> str:
        """sha256 (hex) of the file's bytes, or of a DataFrame's names, types and values."""
        if self.from_file:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
        assert self.cells is not None
        digest = hashlib.sha256()
        for column in self.cells:
            digest.update(repr((column.name, str(column.dtype), column.to_list())).encode())
        return digest.hexdigest()

    def column(self, name: str) -> "pl.Series":
        """One column: text of a CSV (None where empty), the Parquet type else.

        Raises `error` where there is no such column, naming those there are.
        """
        import polars as pl

        if name not in self.names:
            raise self.error(
                f"{self.path.name} has no column {name!r}; it has {', '.join(self.names)}"
            )
        if self.cells is not None:  # those of a CSV were stripped as they were read
            return self.cells[name] if self.from_file else _plain(self.cells[name])
        with _readable(self):
            column = pl.read_parquet(self.path, columns=[name])[name]
        return _plain(column)

    def texts(self, name: str) -> list[str | None]:
        """One column as text, blanks stripped, None where empty; 7.0 is "7" and bytes are UTF-8."""
        return self.texts_of(self.column(name))

    def texts_of(self, column: "pl.Series") -> list[str | None]:
        """One of the columns, or some rows of it, as text: see `texts`."""
        import polars as pl

        name = column.name
        if column.dtype.is_nested() or column.dtype == pl.Object:
            raise self.error(
                f"column {name!r} of {self.path.name} holds {column.dtype} values; a text or a "
                "number in each row is needed"
            )
        if column.dtype == pl.Binary:
            try:
                found = [None if value is None else value.decode() for value in column.to_list()]
            except UnicodeDecodeError:
                raise self.error(
                    f"column {name!r} of {self.path.name} holds bytes that are not UTF-8 text"
                ) from None
            return [value.strip() or None if value else None for value in found]
        if column.dtype.is_float():
            return [_number_text(value) for value in column.to_list()]
        return list(column.cast(pl.String).to_list())

    def id_column(self, named: str | None) -> str:
        """The column of ids: `named`, or the first of ID_COLUMNS that the table has."""
        if named is not None:
            if named not in self.names:
                raise self.error(
                    f"{self.path.name} has no column {named!r}; it has "
                    f"{', '.join(self.names)}. Name the id column with `id_column`"
                )
            return named
        found = next((name for name in ID_COLUMNS if name in self.names), None)
        if found is None:
            raise self.error(
                f"{self.path.name} has no column {', '.join(ID_COLUMNS[:-1])} or "
                f"{ID_COLUMNS[-1]}; it has {', '.join(self.names)}. Name the id column with "
                "`id_column`"
            )
        return found


@dataclass(frozen=True, slots=True)
class Parsed:
    """A column read as numbers or left as text.

    values: Int64, Float64 or Boolean where every cell that is not missing is one, else String;
        null where missing. missing: bool (n,).
    odd: positions of the texts that are no numbers, where most are. note: how cells were read.
    """

    values: "pl.Series"
    missing: Bool
    odd: tuple[int, ...] = ()
    note: str = ""


def open_sheet(
    table: str | os.PathLike[str] | Frame, *, error: type[InputError], kind: str = "table"
) -> Sheet:
    """Open a .csv or .parquet file, or a polars or pandas DataFrame.

    Raises `error` where it is missing, empty or cannot be parsed.
    """
    if not isinstance(table, str | os.PathLike):
        return _of_frame(table, error, kind)
    path = Path(table)
    if path.suffix.lower() not in SUFFIXES:
        raise error(f"a {kind} is a .csv or .parquet file; got {path.name!r}")
    if not path.is_file():
        raise error(f"no {kind} at {path}")
    if path.suffix.lower() == ".csv":
        cells = _read_csv(path, error)
        return Sheet(path, tuple(cells.columns), len(cells), error, cells)
    import polars as pl

    sheet = Sheet(path, (), 0, error)
    with _readable(sheet):
        names = tuple(pl.read_parquet_schema(path))
        n_rows = int(pl.scan_parquet(path).select(pl.len()).collect().item())
    return Sheet(path, names, n_rows, error)


def _of_frame(frame: Frame, error: type[InputError], kind: str) -> Sheet:
    """A DataFrame as a sheet; the named index of a pandas one is a column."""
    import polars as pl

    if not hasattr(frame, "__arrow_c_stream__"):
        raise error(
            f"a {kind} is a .csv or .parquet file, or a polars or pandas DataFrame; got a "
            f"{type(frame).__name__}"
        )
    try:
        cells = frame if isinstance(frame, pl.DataFrame) else pl.DataFrame(_Stream(frame))
    except (ValueError, TypeError, ImportError, pl.exceptions.PolarsError) as bad:
        reason = str(bad).strip().splitlines()[0]
        raise error(f"the DataFrame cannot be read: {reason}. Or give a .csv file") from None
    return Sheet(Path("the DataFrame"), tuple(cells.columns), len(cells), error, cells, False)


@dataclass(frozen=True, slots=True)
class _Stream:
    """A DataFrame's Arrow stream alone: polars would drop the index of a pandas one."""

    frame: Frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.frame.__arrow_c_stream__(requested_schema)


def is_missing(text: str | None) -> bool:
    """Whether a cell spells a missing value."""
    return text is None or text.strip().lower() in MISSING


def parse(column: "pl.Series") -> Parsed:
    """Read a column's cells as numbers where they are numbers.

    Raises ValueError, with a sentence, for cells that may mean two numbers.
    """
    import polars as pl

    if column.dtype.is_nested() or column.dtype == pl.Object:
        raise ValueError(f"holds {column.dtype} values; a number or a text in each row is needed")
    if column.dtype == pl.Binary:
        column = column.cast(pl.String, strict=False)
    if column.dtype.is_float():
        return Parsed(column, (column.is_null() | ~column.is_finite().fill_null(False)).to_numpy())
    if column.dtype != pl.String:
        return Parsed(column, column.is_null().to_numpy())
    texts = column.str.strip_chars()
    lower = texts.str.to_lowercase()
    missing = lower.is_null() | lower.is_in(list(MISSING))
    if (texts == "+").any():  # beside a plus, a minus is a class
        missing = missing & (texts != "-")
    texts = texts.set(missing, None)
    numbers, note = _numbers(texts)
    odd = np.flatnonzero((numbers.is_null() & ~missing).to_numpy())
    n_present = int((~missing).sum())
    if not n_present:
        return Parsed(texts, missing.to_numpy())
    if not len(odd):
        whole = texts.str.contains(r"^[+-]?\d{1,18}$").all()
        values = numbers.cast(pl.Int64) if whole else numbers
        infinite = (~numbers.is_finite()).fill_null(False)
        return Parsed(values, (missing | infinite).to_numpy(), note=note)
    if lower.filter(~missing).is_in(["true", "false"]).all():
        return Parsed((lower == "true").set(missing, None), missing.to_numpy())
    most = len(odd) * 2 < n_present
    return Parsed(texts, missing.to_numpy(), odd=tuple(odd.tolist()) if most else ())


def _numbers(texts: "pl.Series") -> "tuple[pl.Series, str]":
    """Float64 of texts, null where they are none; and how percents and commas were read."""
    import polars as pl

    notes = []
    percent = texts.str.ends_with("%").fill_null(False)
    bare = texts.str.strip_suffix("%").str.strip_chars_end()
    comma = bare.str.contains(r"^[+-]?\d*,\d+$").fill_null(False)
    grouped = bare.str.contains(r"^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$").fill_null(False)
    if comma.any() and (grouped | ~comma).all() and not bare.str.contains(r"\..*\d").any():
        numeric = bare.filter(~comma).cast(pl.Float64, strict=False)
        if numeric.null_count() == bare.filter(~comma).null_count():
            raise ValueError(
                f"holds {bare.filter(comma)[0]!r}, which may mean a decimal comma or thousands: "
                "write its numbers without the comma"
            )
    decimal = comma & ~(grouped & bare.str.contains(r"\.").fill_null(False))
    bare = (
        pl.select(
            pl.when(decimal)
            .then(bare.str.replace(",", ".", literal=True))
            .when(grouped)
            .then(bare.str.replace_all(",", "", literal=True))
            .otherwise(bare)
        )
        .to_series()
        .rename(texts.name)
    )
    numbers = bare.cast(pl.Float64, strict=False)
    if decimal.any():
        first = texts.filter(decimal)[0]
        notes.append(f"{first!r} is read as {numbers.filter(decimal)[0]:g}")
    if percent.any():
        if not percent.filter(numbers.is_not_null()).all():
            raise ValueError(
                f"holds {texts.filter(percent)[0]!r} and "
                f"{texts.filter(~percent & numbers.is_not_null())[0]!r}: write all of its numbers "
                "with a percent sign, or none"
            )
        numbers = numbers / 100
        notes.append(f"{texts.filter(percent)[0]!r} is read as {numbers.filter(percent)[0]:g}")
    return numbers, "; ".join(notes)


def _number_text(value: float | None) -> str | None:
    if value is None or value != value:
        return None
    return str(int(value)) if float(value).is_integer() else repr(value)


def _plain(column: "pl.Series") -> "pl.Series":
    """A Parquet column in a type that the rest of the program knows."""
    import polars as pl

    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype == pl.Decimal:
        return column.cast(pl.Float64)
    if column.dtype == pl.String:
        text = column.str.strip_chars()
        return text.set(text == "", None)
    return column


class _readable:
    """Turn what polars raises for a file into the sheet's error, in one line."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> None:
        import polars as pl

        known = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
        if isinstance(error, known):
            reason = str(error).strip().splitlines()[0] if str(error).strip() else kind.__name__
            raise self._sheet.error(
                f"{self._sheet.path} cannot be read as Parquet: {reason}"
            ) from None


def _read_csv(path: Path, error: type[InputError]) -> "pl.DataFrame":
    import polars as pl

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, rows = _rows(path, file, error)
            blocks = []
            for block in _blocks(rows):
                columns = zip(*block, strict=True)
                series = (pl.Series(n, c, pl.String) for n, c in zip(header, columns, strict=True))
                blocks.append(pl.DataFrame(list(series)))
    except UnicodeDecodeError as bad:
        raise error(
            f"{path} is not UTF-8 text (byte {bad.object[bad.start]:#04x}): save it as UTF-8"
        ) from None
    except OSError as bad:
        raise error(f"cannot read {path}: {bad.strerror}") from None
    if not blocks:
        return pl.DataFrame(schema=dict.fromkeys(header, pl.String))
    return pl.concat(blocks, rechunk=True)


def _rows(
    path: Path, file: IO[str], error: type[InputError]
) -> tuple[list[str], Iterator[list[str | None]]]:
    """The header and an iterator over the rows, each as wide as the header."""
    start = file.tell()
    line = next((line for line in file if line.strip() and not line.startswith("#")), "")
    if not line:
        raise error(f"{path} is empty: its first line should name the columns")
    separator = max(_SEPARATORS, key=line.count)
    file.seek(start)
    reader = csv.reader(file, delimiter=separator)
    header: list[str] = []

    def records() -> Iterator[list[str]]:
        while True:
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error as bad:
                raise error(f"{path}, line {reader.line_num}: {bad}") from None

    source = records()
    for cells in source:
        if not _is_skipped(cells, 0):
            header = [name.strip() for name in cells]
            break
    while header and not header[-1]:
        header.pop()
    header = [name or f"column_{i}" for i, name in enumerate(header)]
    if twice := [name for i, name in enumerate(header) if name in header[:i]]:
        raise error(f"{path} has two columns named {twice[0]!r}: rename one")

    def rows() -> Iterator[list[str | None]]:
        for cells in source:
            if _is_skipped(cells, len(header)):
                continue
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(header):
                raise error(
                    f"{path}, line {reader.line_num}: {counted(len(cells), 'cell')} where the "
                    "header has "
                    f"{len(header)}. Put a cell that holds {separator!r} between quotes, or fix "
                    "the line"
                )
            yield [cell.strip() or None for cell in cells]

    return header, rows()


def _is_skipped(cells: Sequence[str], width: int) -> bool:
    """Whether a line is blank or a comment: it begins with "#" and is no row of the table."""
    if not any(cell.strip() for cell in cells):
        return True
    first = cells[0].lstrip()
    return first.startswith("#") and (
        len(cells) != width or bool(re.match(r"#[\s#]|#$", first)) or not width
    )


def _blocks(rows: Iterator[list[str | None]]) -> Iterator[list[list[str | None]]]:
    block: list[list[str | None]] = []
    for row in rows:
        block.append(row)
        if len(block) == _BLOCK_ROWS:
            yield block
            block = []
    if block:
        yield block
