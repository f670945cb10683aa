"""Tables as people have them: what a cell means, and which line an error names."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embedcache.errors import LabelsError
from embedcache.tables import Sheet, is_missing, open_sheet, parse


def sheet(tmp_path: Path, text: str | bytes) -> Sheet:
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_sheet(path, error=LabelsError)


def test_blank_lines_comments_and_blanks_around_cells_are_skipped(tmp_path: Path) -> None:
    found = sheet(tmp_path, "# made by Ann, 2024\n id , x \nu1, F \n\n   \n#\n# end\nu2,\n\n\n")
    assert found.names == ("id", "x")
    assert found.texts("id") == ["u1", "u2"]
    assert found.texts("x") == ["F", None]


def test_a_row_that_begins_with_a_hash_is_a_row(tmp_path: Path) -> None:
    assert sheet(tmp_path, "id,x\n#12,F\n#a,b,c\n").texts("id") == ["#12"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_is_found_in_the_header(tmp_path: Path, separator: str) -> None:
    found = sheet(tmp_path, f"\ufeffid{separator}x\nu1{separator}3\n")
    assert (found.names, found.texts("x")) == (("id", "x"), ["3"])


def test_quoted_cells_may_hold_separators_and_lines(tmp_path: Path) -> None:
    assert sheet(tmp_path, 'id,x\n"a,b","c\nd"\n').texts("x") == ["c\nd"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,x\nu1,2\nu2,3,4\n", "line 3: 3 cells where the header has 2"),
        ("id,x\n\nu1\n", "line 3: 1 cell where the header has 2"),
        ('id,x\nu1,"' + "a" * 200_000, "line 2: field larger than field limit"),
        ("id,id\n1,2\n", "two columns named 'id'"),
        ("\n\n", "is empty"),
        (b"id,x\ncaf\xe9,2\n", "not UTF-8 text .byte 0xe9."),
    ],
)
def test_a_csv_that_cannot_be_read_is_refused_with_its_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(LabelsError, match=message):
        sheet(tmp_path, text)


def test_trailing_separators_are_no_cells(tmp_path: Path) -> None:
    assert sheet(tmp_path, "id,x,\nu1,2,\nu2,3\n").texts("x") == ["2", "3"]


def test_a_large_csv_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcache.tables._BLOCK_ROWS", 3)
    text = "id,x\n" + "".join(f"u{i},{i}\n" for i in range(10))
    assert sheet(tmp_path, text).texts("x") == [str(i) for i in range(10)]


@pytest.mark.parametrize(
    "cell", ["", " ", "NA", "n/a", "#N/A", "nan", "NULL", "None", "<NA>", "-", "?", "#DIV/0!"]
)
def test_a_missing_value_is_known_in_every_spelling(cell: str) -> None:
    assert is_missing(cell)
    found = parse(pl.Series("x", ["F", cell, "M"]))
    assert found.missing.tolist() == [False, True, False]
    assert parse(pl.Series("x", ["1", cell, "2"])).values.to_list() == [1, None, 2]


@pytest.mark.parametrize("cell", ["F", "0", "unknown", "no", "nana", "NAN1"])
def test_other_words_are_values(cell: str) -> None:
    assert not is_missing(cell)


def test_a_minus_beside_a_plus_is_a_class() -> None:
    assert not parse(pl.Series("x", ["+", "-"])).missing.any()


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "2"], [1, 2]),
        (["1", "2.5"], [1.0, 2.5]),
        (["3,5", "4"], [3.5, 4.0]),
        (["0,125", "1,234"], [0.125, 1.234]),
        (["1,234.5", "2"], [1234.5, 2.0]),
        (["45%", "50 %"], [0.45, 0.5]),
        (["3,5%", "4%"], [0.035, 0.04]),
        (["1e3", "-2"], [1000.0, -2.0]),
        (["True", "false"], [True, False]),
        (["F", "M"], ["F", "M"]),
    ],
)
def test_cells_are_the_numbers_they_mean(cells: list[str], values: list[object]) -> None:
    assert parse(pl.Series("x", cells)).values.to_list() == pytest.approx(values)


@pytest.mark.parametrize("cells", [["1,234", "2,345"], ["45%", "3"]])
def test_cells_that_may_mean_two_numbers_are_refused(cells: list[str]) -> None:
    with pytest.raises(ValueError, match=r"may mean|write all of its numbers"):
        parse(pl.Series("x", cells))


def test_the_texts_among_numbers_are_named() -> None:
    assert parse(pl.Series("x", ["1", "2", "x3", "4", "5"])).odd == (2,)
    assert parse(pl.Series("x", ["a", "b", "3"])).odd == ()


def test_parquet_types_become_text_or_one_message(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "whole": [7.0, 8.5, None],
            "bytes": [b"u1", b" u2 ", None],
            "kind": pl.Series(["a", "b", None], dtype=pl.Categorical),
            "list": [[1], [2], [3]],
            "odd": [b"\xff", b"\xfe", b"a"],
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    found = open_sheet(tmp_path / "t.parquet", error=LabelsError)
    assert found.texts("whole") == ["7", "8.5", None]
    assert found.texts("bytes") == ["u1", "u2", None]
    assert found.texts("kind") == ["a", "b", None]
    with pytest.raises(LabelsError, match=r"column 'list' of t.parquet holds List\(Int64\) values"):
        found.texts("list")
    with pytest.raises(LabelsError, match="bytes that are not UTF-8"):
        found.texts("odd")
    with pytest.raises(ValueError, match="a number or a text in each row"):
        parse(found.column("list"))


def test_a_damaged_parquet_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + b"\0" * 40 + b"PAR1")
    with pytest.raises(LabelsError, match="cannot be read as Parquet"):
        open_sheet(tmp_path / "t.parquet", error=LabelsError)


CELLS = {"id": ["a", "b", "c"], "x": [1.0, None, 2.5], "kind": ["u", " v ", None], "n": [7, 8, 9]}


def frames() -> dict[str, object]:
    pandas = pytest.importorskip("pandas")
    import pyarrow

    plain = pandas.DataFrame(CELLS)
    return {
        "polars": pl.DataFrame(CELLS),
        "polars with categories": pl.DataFrame(CELLS).cast({"kind": pl.Categorical}),
        "pandas": plain,
        "pandas with ids in its index": plain.set_index("id"),
        "pandas of some rows": pandas.concat([plain, plain])[:3],
        "pyarrow": pyarrow.table(CELLS),
    }


@pytest.mark.parametrize("name", frames())
def test_a_data_frame_is_a_table(name: str) -> None:
    found = open_sheet(frames()[name], error=LabelsError)  # type: ignore[arg-type]
    assert set(found.names) >= {*CELLS}
    assert (found.n_rows, found.id_column(None)) == (3, "id")
    assert found.texts("id") == ["a", "b", "c"]
    assert found.texts("n") == ["7", "8", "9"]
    assert found.column("x").to_list() == CELLS["x"]
    kinds = [value and value.strip() for value in found.texts("kind")]
    assert kinds == ["u", "v", None]
    same = open_sheet(frames()[name], error=LabelsError)  # type: ignore[arg-type]
    assert same.sha256 == found.sha256
    other = open_sheet(pl.DataFrame(CELLS | {"x": [1.0, 2.0, 2.5]}), error=LabelsError)
    assert other.sha256 != found.sha256
    with pytest.raises(LabelsError, match="the DataFrame has no column 'y'; it has"):
        found.column("y")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": [1]}, "a table is a .csv or .parquet file, or a polars or pandas DataFrame; got"),
        (pl.LazyFrame({"a": [1]}), r"got a LazyFrame"),
        (None, r"got a NoneType"),
        (np.zeros(3), r"got a ndarray"),
    ],
)
def test_what_is_no_table_is_refused_in_one_sentence(table: object, message: str) -> None:
    with pytest.raises(LabelsError, match=message):
        open_sheet(table, error=LabelsError)  # type: ignore[arg-type]


@pytest.mark.parametrize("cells", [{"o": [1, "x"]}, [[1, 2]]])
def test_a_pandas_frame_that_arrow_cannot_hold_is_refused(cells: object) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(cells, columns=["a", "a"] if isinstance(cells, list) else None)
    with pytest.raises(LabelsError, match="the DataFrame cannot be read: "):
        open_sheet(frame, error=LabelsError)
