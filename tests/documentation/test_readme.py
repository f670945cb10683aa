"""The README's code runs: its first screen from an empty folder, the rest on photos and a log."""

from pathlib import Path

import pytest

from tests.documentation.pages import ROOT, Run, Session, blocks

README = ROOT / "README.md"


@pytest.mark.timeout(900)
def test_the_first_screen_of_the_readme_runs_from_an_empty_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.chdir(tmp_path)
    # Fewer photos here; nothing else is replaced.
    session = Session(run, replaced={"demo --out demo": "demo --out demo --photos 60"})
    (screen,) = [block for block in blocks(README) if block.language == "console"]
    session.play(screen)
    assert (tmp_path / "predictions.csv").exists()


@pytest.mark.timeout(900)
def test_every_other_block_of_the_readme_runs(world: Path, run: Run, online_once: None) -> None:
    (world / "labels.csv").unlink()  # a line makes it
    session = Session(run)
    found = [block for block in blocks(README) if block.language not in ("", "console")]
    assert {block.language for block in found} == {"sh", "python"}
    for block in found:
        session.play(block)
    assert (world / "results" / "report.html").exists()
