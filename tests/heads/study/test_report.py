"""The page: what stands on it, what does not, and how it behaves in a real browser."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from heads.study import figures, findings, report
from heads.study.design import Study
from heads.study.results import Results
from tests.heads.study.browser import CHROMIUM, Tab, browser

CONTRAST = """(() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m };
  const lum = ([r, g, b]) => { const f = [r, g, b].map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2] };
  const low = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !e.getClientRects().length) continue;
    if (e.closest("script, style, .skip")) continue;
    const fg = parse(e.namespaceURI.endsWith("svg") ? getComputedStyle(e).fill : getComputedStyle(e).color);
    let b = e; while (b && parse(getComputedStyle(b).backgroundColor)[3] === 0) b = b.parentElement;
    const bg = parse(getComputedStyle(b).backgroundColor);
    const [x, y] = [lum(fg), lum(bg)].sort((p, q) => q - p);
    if ((x + 0.05) / (y + 0.05) < 4.5) low.push(`${e.tagName} ${walk.currentNode.textContent.trim()} ${fg} on ${bg}`);
  }
  return low;
})()"""  # noqa: E501


@pytest.fixture(scope="module")
def written(results: Results, tmp_path_factory: pytest.TempPathFactory) -> report.WrittenReport:
    return report.write(results, tmp_path_factory.mktemp("page"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out, for tests that look at the rest: it takes seconds."""

    def blank(*arguments: Any) -> None:
        arguments[-1].write_bytes(b"drawn")

    monkeypatch.setattr(figures, "png", blank)
    monkeypatch.setattr(figures, "gallery_png", blank)
    monkeypatch.setattr(figures, "svg", lambda _panel, alt: f'<svg aria-label="{alt}"></svg>')


class Page(HTMLParser):
    """Which tags stand on a page, with their attributes, and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_all_files_of_the_study_are_written(written: report.WrittenReport) -> None:
    out = written.page.parent
    assert json.loads((out / "results.json").read_text())["simulated"] is True
    stems = {"breakdown", "table1", "table2_like_ratio", "table3_gender"}
    for suffix in (".md", ".csv", ".tex"):
        assert {path.stem for path in (out / "tables").glob(f"*{suffix}")} == stems
    names = {path.name for path in (out / "figures").glob("*.png")}
    assert {"figure1_all_like_ratio.png", "figure2_all_gender_inception.png"} <= names
    assert {"figure3_1bbox_gender_facenet.png", "learning_curves_like_ratio.png"} <= names
    assert all(path.is_file() for path in written.files)
    assert str(written.page) in str(written)


def test_a_page_without_the_swipe_log_counts_its_tables_from_one(
    results: Results, tmp_path: Path
) -> None:
    alone = replace(results, label_counts=None)
    page = report.write(alone, tmp_path, photos=False).page.read_text()
    for title in ("Table 1. Like ratio: MSE losses on test.", "Table 2. Gender: classification"):
        assert page.count(f"<h3>{title}") == 1
    assert "Table 3" not in page
    stems = {path.stem for path in (tmp_path / "tables").iterdir()}
    assert stems == {"table1_like_ratio", "table2_gender"}


def test_results_json_holds_every_row(results: Results, written: report.WrittenReport) -> None:
    document = json.loads((written.page.parent / "results.json").read_text())
    assert len(document["rows"]) == len(results.rows())
    keys = {"target", "subset", "backbone", "head", "metric", "value", "low", "high", "dev"}
    keys |= {"learning_rate", "epoch", "seconds", "spec", "labels", "split", "best", "name"}
    assert keys <= set(document["rows"][0])


def test_the_page_is_well_formed_and_asks_for_nothing_from_outside(
    written: report.WrittenReport,
) -> None:
    text = written.page.read_text()
    page = Page(text)
    assert page.open == []
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    assert len(text) < 3_000_000


def test_every_image_has_a_text_and_every_heading_its_place(written: report.WrittenReport) -> None:
    page = Page(written.page.read_text())
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) > 50
    for attributes in images:
        text = attributes["alt"] or ""
        assert re.match(r"Test photo: predicted .+, true .+; .+", text)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in drawings)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for tag, attributes in page.tags if "id" in attributes and tag == "div"]
    assert len(ids) == len(set(ids))


def test_a_simulated_study_says_so_at_the_top(
    results: Results, written: report.WrittenReport
) -> None:
    text = written.page.read_text()
    assert results.simulated
    assert "Simulated data: no number on this page is about a real person" in text
    assert "How much of the truth was recovered" in text


def test_nothing_on_the_page_identifies_a_photo(written: report.WrittenReport) -> None:
    for path in (written.page, written.page.parent / "results.json"):
        text = re.sub(r"base64,[^\"]*", "", path.read_text())
        assert not re.search(r"\bu\d{4}\b", text)
        assert ".jpg" not in text
        assert str(written.page.parent.parent) not in text


@pytest.mark.usefixtures("undrawn")
def test_without_photos_no_photo_is_left_anywhere(results: Results, tmp_path: Path) -> None:
    report.write(results, tmp_path)
    made = report.write(results, tmp_path, photos=False)
    text = made.page.read_text()
    assert "image/jpeg" not in text
    assert "shows no photo" in text
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {path.name for path in made.files if path.suffix == ".png"}
    assert not any(name.startswith("figure") for name in names)


@pytest.mark.usefixtures("undrawn")
def test_thumbnails_can_lie_beside_the_page(results: Results, tmp_path: Path) -> None:
    made = report.write(results, tmp_path, link=True)
    found = re.findall(r'src="(thumbnails/\d+\.jpg)"', made.page.read_text())
    assert found
    assert all((tmp_path / name).is_file() for name in found)
    report.write(results, tmp_path, photos=False)
    assert not (tmp_path / "thumbnails").exists()


@pytest.mark.usefixtures("undrawn")
def test_names_from_outside_are_shown_as_text(results: Results, tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    fits = tuple(
        msgspec.structs.replace(fit, classes=(evil, "M") if fit.classes else ())
        for fit in results.fits
    )
    captions = dict.fromkeys(results.captions, evil)
    made = report.write(replace(results, title=evil, fits=fits, captions=captions), tmp_path)
    assert evil not in made.page.read_text()
    assert "&lt;script&gt;" in made.page.read_text()


def test_the_study_on_the_page_reads_back(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(report._toml(results.study))
    assert Study.read(path).document() == results.study


def test_the_steps_import_what_was_imported_and_report_by_group(results: Results) -> None:
    steps = report._commands(replace(results, imported=("net@face",)))
    assert "--backbone whole\n" in steps
    assert "--backbone net@face" not in steps.partition("fit-head")[0]
    assert "embedcache import photos.cache VECTORS --name net@face" in steps
    assert steps.count("--by gender") == 2


def test_a_headline_over_folds_says_what_each_of_them_chose(results: Results) -> None:
    pooled = [row for row in results.rows() if row.name == "Dev's choice of all"]
    assert pooled
    texts = " ".join(one.text for one in findings.findings(results))
    for row in pooled:
        assert row.chosen is not None
        assert sum(row.chosen.values()) == 5
        if row.subset == "1BBOX":
            assert all(f"{name} ({n})" in texts for name, n in row.chosen.items())
    single = [row for row in results.rows() if row.head == "dev's choice" and row not in pooled]
    assert all(row.chosen and sum(row.chosen.values()) == 5 for row in single)


def test_findings_say_what_the_rows_say(results: Results) -> None:
    found = findings.findings(results)
    assert len(found) == 6  # two headlines; face against whole, twice per target
    best = results.best("gender", "1BBOX")
    quoted = best.row("dev's choice")  # chosen inside each fold, so that it may be quoted
    assert any(f"{100 * quoted['value']:.1f} %" in one.figure for one in found)
    assert all("95 % interval" in one.text + one.label for one in found)
    assert sum(": face vectors beat" in one.text for one in found) == 4
    real = findings.findings(replace(results, simulated=False))
    assert sum(": as in the paper, face vectors beat" in one.text for one in real) == 4


def test_recovery_is_better_than_the_votes_alone_where_vectors_know_more(results: Results) -> None:
    lines = {subset: rest for _, subset, *rest in report.recovery(results)}
    rank, votes, share, explained = lines["1BBOX"]
    assert 0.8 < rank <= 1
    assert 0.8 < votes <= 1
    assert 0.6 < share <= 1
    assert 0.4 < explained < 1.2


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with browser() as found:
        yield found


@pytest.mark.parametrize("width", [1280, 768, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_reads_well_in_a_browser(
    tab: Tab, written: report.WrittenReport, width: int, scheme: str
) -> None:
    tab.errors.clear()
    tab.requests.clear()
    tab.resize(width)
    tab.scheme(scheme)
    tab.open(written.page)
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("[...document.images].filter((i) => i.complete && !i.naturalWidth).length") == 0
    tab.run("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    assert tab.run(CONTRAST) == []
    dark = tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(22, 19, 15)"
    assert dark == (scheme == "dark")
    assert tab.errors == []
    assert all(url.startswith(("file:", "data:")) for url in tab.requests)


@pytest.mark.usefixtures("undrawn")
def test_long_names_make_a_table_scroll_in_its_box_and_never_the_page(
    tab: Tab, results: Results, tmp_path: Path
) -> None:
    name = "vit_so150m2_patch16_reg1_gap_448.sbb_e200_in12k_ft_in1k"
    fits = tuple(
        msgspec.structs.replace(
            fit, backbone=name + "@face" * fit.face, subset=f"{fit.subset}_women_of_25_to_39_years"
        )
        for fit in results.fits
    )
    long = replace(results, fits=fits, title="a_title_" * 12, skipped={name: f"no {name * 2}"})
    tab.open(report.write(long, tmp_path).page)
    for width in (1280, 1024, 768, 375):
        tab.resize(width)
        assert tab.run("document.documentElement.scrollWidth") <= width
        wide = (
            "[...document.querySelectorAll('.scroll')].some((s) => s.scrollWidth > s.clientWidth)"
        )
        assert tab.run(wide)
        tall = "Math.max(...[...document.querySelectorAll('thead')].map((t) => t.clientHeight))"
        assert tab.run(tall) < 120  # pixels: a column's title is not broken inside its words


def test_every_tab_and_every_column_works_by_mouse_and_keyboard(
    tab: Tab, written: report.WrittenReport
) -> None:
    tab.errors.clear()
    tab.resize(1280)
    tab.open(written.page)
    tabs = tab.run("[...document.querySelectorAll('[role=tab]')].map((t) => t.textContent)")
    assert tabs == ["ALL", "1BBOX", "Inception, ALL", "FaceNet, 1BBOX"]
    shown = "[...document.querySelectorAll('[role=tabpanel]')].map((p) => !p.hidden)"
    assert tab.run(shown) == [True, False, True, False]
    tab.run("document.querySelectorAll('[role=tab]')[1].click()")
    assert tab.run(shown) == [False, True, True, False]
    tab.run("document.querySelectorAll('[role=tab]')[1].focus()")
    tab.press("ArrowRight")
    assert tab.run(shown) == [True, False, True, False]
    assert tab.run("document.activeElement.textContent") == "ALL"
    tab.press("End")
    assert tab.run("document.activeElement.textContent") == "1BBOX"

    n_columns = tab.run("document.querySelectorAll('th button').length")
    assert n_columns >= 6
    for column in range(n_columns):
        for wanted in ("ascending", "descending"):
            tab.run(f"document.querySelectorAll('th button')[{column}].click()")
            there = f"document.querySelectorAll('th button')[{column}].parentElement"
            assert tab.run(f"{there}.getAttribute('aria-sort')") == wanted
            values = tab.run(
                f"[...{there}.closest('table').tBodies[0].rows].map((r) => "
                f"r.cells[{there}.cellIndex].dataset.value).filter((v) => v !== undefined)"
                ".map(Number)"
            )
            assert values == sorted(values, reverse=wanted == "descending")
    for link in tab.run("[...document.querySelectorAll('nav a')].map((a) => a.hash)"):
        assert tab.run(f"document.querySelector('{link}') !== null")
    assert tab.errors == []


@pytest.mark.usefixtures("undrawn")
def test_the_page_without_photos_works_too(tab: Tab, results: Results, tmp_path: Path) -> None:
    tab.errors.clear()
    tab.resize(375)
    tab.open(report.write(results, tmp_path, photos=False).page)
    assert tab.run("document.images.length") == 0
    assert tab.run("document.documentElement.scrollWidth") <= 375
    assert tab.errors == []


def test_a_difference_that_may_be_none_gets_no_large_figure(results: Results) -> None:
    one = results.comparisons()[0]
    assert findings.versus(one, simulated=True, n_comparisons=4).figure.endswith("%")
    unclear = findings.versus(replace(one, low=-1.0, high=1.0), simulated=True, n_comparisons=4)
    assert unclear.figure == "≈"
    assert "undecided whether" in unclear.text


@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_to_three_groups_of_test_photos_give_no_headline_and_say_why(
    results: Results, n: int
) -> None:
    fits = []
    for fit in results.fits:
        rows = [row | {"low": None, "high": None} for row in fit.rows]
        groups = tuple(k % n for k in range(len(fit.ids)))
        fits.append(msgspec.structs.replace(fit, rows=tuple(rows), groups=groups))
    few = replace(results, fits=tuple(fits))
    compared = few.comparisons()
    assert [one.verdict for one in compared] == [0] * 4
    for found in findings.findings(few):
        assert "nan" not in found.text + found.label
        assert "below 0.001" not in found.text
    for one in compared:
        text = findings.versus(one, simulated=False, n_comparisons=2).text
        assert ("no interval and no p" in text) == (n == 1)
        assert np.isnan([one.low, one.high, one.p]).all() == (n == 1)
        assert ("undecided: one group" in text) == (n == 1)
        assert n == 1 or "undecided whether" in text
    if n == 1:
        assert all("belong to one group" in one.text for one in findings.findings(few))
