"""The README's code runs: its first screen from an empty folder, the rest on photos and a log."""

from pathlib import Path

import pytest

from tests.documentation.pages import ROOT, Run, Session, blocks, demo_without_its_study

README = ROOT / "README.md"


@pytest.mark.timeout(900)
def test_the_first_screen_of_the_readme_runs_from_an_empty_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.chdir(tmp_path)
    demo = demo_without_its_study(tmp_path / "made")
    session = Session(run, replaced={"embedcache demo --out demo": f"cp -r {demo} demo"})
    (screen,) = [block for block in blocks(README) if block.language == "console"]
    session.play(screen)


@pytest.mark.timeout(900)
def test_its_first_line_writes_a_page_without_a_network(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None, short_fits: None
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run("demo", "--out", "demo", "--photos", 60)
    assert status == 0, err
    assert "demo/report.html" in out
    assert (tmp_path / "demo" / "report.html").exists()


@pytest.mark.timeout(900)
def test_every_other_block_of_the_readme_runs(
    world: Path, run: Run, online_once: None, short_fits: None
) -> None:
    (world / "labels.csv").unlink()  # a line makes it
    session = Session(run)
    found = [block for block in blocks(README) if block.language not in ("", "console")]
    assert {block.language for block in found} == {"sh", "python"}
    for block in found:
        session.play(block)
    assert (world / "results" / "report.html").exists()
