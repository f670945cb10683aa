"""What a notebook shows of a dataset, a fit and a head fits on a screen and escapes names."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import pytest

import heads
from heads import dataset
from heads.fitting.result import Fit

if TYPE_CHECKING:
    from tests.heads.conftest import World


@pytest.fixture
def fit(world: World) -> Fit:
    kind = ["<b>cat" if x > 0 else "dog" for x in world.vectors[:, 0]]
    table = world.table(user_id=world.ids, kind=kind, gender=["F", "M"] * 60)
    data = dataset.load(world.cache, "net", table, target="kind", by=["gender"])
    return heads.fit(data, heads=["logistic"], folds=3, resamples=20)


def test_a_dataset_is_one_line_and_a_small_table(fit: Fit) -> None:
    data = fit.dataset
    line = repr(data)
    assert line.startswith("<Dataset: photos 120; vectors 8 floats from net; target kind (binary)")
    assert len(line) < 300
    page = ElementTree.fromstring(data._repr_html_())
    cells = {row[0].text: row[1].text for row in page.iter("tr")}
    assert cells["photos"] == "120"
    assert str(cells["classes"]).startswith("<b>cat (")
    assert "<b>" not in data._repr_html_()


def test_a_fit_is_one_line_and_the_printed_table(fit: Fit) -> None:
    assert repr(fit) == "<Fit: kind (binary), 3 folds; const, logistic; best logistic>"
    page = ElementTree.fromstring(f"<div>{fit._repr_html_().replace('<br>', '<br/>')}</div>")
    rows = [[cell.text for cell in row] for row in page.iter("tr")]
    assert rows[0][:3] == ["head", "metric", "test"]
    assert len(rows) == 1 + len(fit.rows)
    for row, line in zip(rows[1:], fit.rows, strict=True):
        assert row[0] == line.head
        assert row[2] == f"{line.value:.4f}"
    text = "".join(page.itertext())
    for line_of in str(fit).splitlines()[-4:]:
        assert line_of in text


def test_a_head_is_one_line(fit: Fit) -> None:
    assert repr(fit.heads["logistic"]) == (
        "<Head: logistic, from 8 floats, of classes <b>cat, dog>"
    )
