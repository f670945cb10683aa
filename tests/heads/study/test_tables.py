"""The tables of a study, as the paper prints them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from heads.study import tables
from heads.study.results import Results


def test_table_2_stands_as_in_the_paper(results: Results) -> None:
    table = tables.table_of(results.rows(), "like_ratio")
    assert table.head == ("Model", "ALL", "1BBOX")
    names = [row[0].text for row in table.rows]
    assert names[:2] == ["Const baseline", "Const by gender"]
    backbones, heads = ("Inception", "FaceNet"), ("0FC", "1FC", "2FC", "dev's choice")
    paper = [f"{name}-{head}" for name in backbones for head in ("ridge", *heads)]
    warm = [f"{name}-{head} (warm)" for name in backbones for head in heads]
    assert names[2:] == [*paper, tables.BLOCK, *warm, "Dev's choice of all"]
    first = [row[1].text for row in table.rows if row[0].text.startswith("FaceNet")]
    assert first == ["-"] * 9
    assert sum(cell.best for row in table.rows for cell in row) == 2


def test_tables_have_the_papers_numbers_beside_table_1_and_count_without_it(
    results: Results,
) -> None:
    def numbers(shown: list[tables.PrintedTable]) -> list[str]:
        return [table.title.partition(".")[0] for table in shown if table.name != "breakdown"]

    rows = results.rows()
    whole = tables.all_tables(rows, results.label_counts)
    assert numbers(whole) == ["Table 1", "Table 2", "Table 3"]
    alone = replace(results, label_counts=None)
    shown = tables.all_tables(rows, None)
    assert numbers(shown) == ["Table 1", "Table 2"]
    assert [table.name for table in shown] == ["table1_like_ratio", "table2_gender"]
    assert all(table.title in str(alone) for table in shown)
    turned = tables.all_tables(sorted(rows, key=lambda row: row.target), None)
    assert [table.name for table in turned] == ["table1_gender", "table2_like_ratio"]


def test_tables_hold_the_same_figures_in_every_form(results: Results) -> None:
    for table in tables.all_tables(results.rows(), results.label_counts):
        for row in table.rows:
            for cell in row:
                for text in (table.as_markdown(), table.as_latex()):
                    shown = cell.text.replace("%", r"\%") if "tabular" in text else cell.text
                    assert shown.replace("→", r"$\to$" if "tabular" in text else "→") in text
        lines = table.as_csv().splitlines()
        assert len(lines) == 1 + len(table.rows)
        assert table.as_latex().count("&") == (len(table.head) - 1) * (len(table.rows) + 1)
    assert r"\textbf{" in tables.table_of(results.rows(), "gender").as_latex()


def test_table_1_of_the_study_equals_a_plain_mean(folder: Path, results: Results) -> None:
    log = pl.read_csv(folder / "swipes.csv").join(
        pl.read_csv(folder / "users.csv"), left_on="recipient_id", right_on="user_id"
    )
    assert results.label_counts is not None
    cell = log.filter(sender_gender="F", gender="M")["liked"].to_numpy()
    assert results.label_counts["table1"]["F"]["M"] == pytest.approx(float(np.mean(cell)))
