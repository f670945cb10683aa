"""The tutorial from an empty folder, and each how-to on a folder of photos, labels and weights."""

import shutil
from pathlib import Path

import pytest

from tests.documentation.pages import ROOT, Run, Session, blocks, demo_without_its_study

HOW_TO = sorted(ROOT.glob("docs/how-to/*.md"))


@pytest.mark.timeout(900)
def test_every_line_of_the_tutorial_runs_from_an_empty_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.chdir(tmp_path)
    demo = demo_without_its_study(tmp_path / "made")
    session = Session(run, replaced={"embedcache demo --out demo": f"cp -r {demo} demo"})
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        session.play(block)
    assert session.names["found"].all()
    assert (tmp_path / "team-copy" / "zarr.json").exists()


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_every_line_of_a_how_to_runs(page: Path, world: Path, run: Run, no_network: None) -> None:
    session = Session(run)
    if page.stem in ("scikit-learn", "imported-vectors"):  # these begin where a cache is
        run(
            *("extract", "photos", "--cache", "my.cache"),
            *("--backbone", "local-dir:weights/efficientnet_lite0"),
        )
    if page.stem == "no-internet":
        (world / "my-network").mkdir()
    if page.stem == "new-backbone":
        other_network(world / "weights" / "efficientnet_lite0", world / "weights" / "new_network")
    if page.stem == "keep-pixels":
        first, second = (world / "weights" / name for name in ("efficientnet_lite0", "new_network"))
        config = first / "config.json"
        config.write_text(config.read_text().replace("[3, 96, 96]", "[3, 224, 224]"))
        other_network(first, second)
    found = blocks(page)
    assert found or page.stem == "sharing"
    for block in found:
        session.play(block)


def other_network(folder: Path, target: Path) -> None:
    """A copy of a network's folder with other weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    weights = load_file(folder / "model.safetensors")
    save_file({name: 0.9 * w for name, w in weights.items()}, target / "model.safetensors")
