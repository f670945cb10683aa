"""Every code block of docs/heads.md runs as written; its tables are those of docs/paper.md."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.documentation.pages import ROOT, Run, Session, blocks

if TYPE_CHECKING:
    from tests.heads.conftest import World

HEADS, PAPER = ROOT / "docs" / "heads.md", ROOT / "docs" / "paper.md"
NAME = "facenet:vggface2"  # the page's backbone; here stand the imported vectors of `world`


def test_every_block_runs(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "reader"
    place.mkdir()
    monkeypatch.chdir(place)
    shutil.copytree(world.cache.path, "faces.cache")
    shutil.copy(world.labels, "labels.csv")
    Path("new_photos").mkdir()
    (Path("new_photos") / "somebody.jpg").write_bytes(b"not looked at")
    session = Session(run, replaced={NAME: "net"})
    played = []
    for block in blocks(HEADS):
        if not block.language:  # the list of a head's files
            for line in block.text.splitlines():
                name = line.split()[0]
                assert Path(name).exists(), name
            continue
        played.append(block.language)
        if block.language == "python":
            text = block.text.replace(NAME, "net")
            exec(compile(text, str(block), "exec"), session.names)
        else:
            session.play(block)
    assert played == ["sh", "python", "python"]
    assert Path("predictions.csv").read_text().startswith("photo_id,prediction")
    assert len(session.names["vectors"]) == 120


def marked(page: Path, name: str = "mebeauty") -> str:
    found = re.search(f"<!-- {name}: begin -->\n(.*)<!-- {name}: end -->", page.read_text(), re.S)
    assert found is not None
    return found[1]


def test_the_two_pages_agree_to_the_digit() -> None:
    """Every figure with an interval in the short tables stands in the long ones."""
    short, long = (
        re.findall(r"[\d.]+ \[[\d., ]+\]", marked(page).replace("*", "")) for page in (HEADS, PAPER)
    )
    assert len(short) >= 20
    assert set(short) <= set(long)


@pytest.mark.parametrize("name", ["coverage", "paper_protocol", "null"])
def test_measured_tables_stand_on_the_page(name: str) -> None:
    assert re.search(r"\d", marked(HEADS, name))
