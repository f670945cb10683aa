"""What a run writes into a user's folder: only its own files are replaced or removed."""

from pathlib import Path

from heads.outputs import LIST, Outputs, listed


def run(folder: Path, **files: str) -> list[str]:
    outputs = Outputs(folder)
    written = [outputs.write(f"figures/{name}.png", text.encode()) for name, text in files.items()]
    outputs.finish()
    return [path.relative_to(folder).as_posix() for path in written]


def test_files_of_an_earlier_run_are_replaced_and_those_no_longer_written_go(
    tmp_path: Path,
) -> None:
    assert run(tmp_path, one="1", photo="a face") == ["figures/one.png", "figures/photo.png"]
    assert run(tmp_path, one="2") == ["figures/one.png"]
    assert (tmp_path / "figures" / "one.png").read_text() == "2"
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["one.png"]
    run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LIST]


def test_files_of_others_stay_and_ours_lie_beside_them(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("one.png", "my_plot.png"):
        (tmp_path / "figures" / name).write_text("mine")
    for text in ("1", "2"):  # the second run replaces what the first one wrote
        assert run(tmp_path, one=text) == ["figures/one-1.png"]
        assert (tmp_path / "figures" / "one-1.png").read_text() == text
    found = {path.name: path.read_text() for path in (tmp_path / "figures").iterdir()}
    assert found == {"one.png": "mine", "my_plot.png": "mine", "one-1.png": "2"}


def test_a_file_that_was_changed_is_not_ours_any_more(tmp_path: Path) -> None:
    run(tmp_path, one="1", two="1")
    for name in ("one.png", "two.png"):
        (tmp_path / "figures" / name).write_text("annotated")
    assert run(tmp_path, one="2") == ["figures/one-1.png"]
    assert (tmp_path / "figures" / "one.png").read_text() == "annotated"
    assert (tmp_path / "figures" / "two.png").read_text() == "annotated"


def test_a_list_names_nothing_outside_its_folder_and_no_link(tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("1")
    run(out, one="1")
    digest = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"  # of "1"
    (out / "link").symlink_to(victim)
    names = ("../victim", str(victim), "link")
    (out / LIST).write_text(
        "{" + '"files": {' + ", ".join(f'"{name}": "{digest}"' for name in names) + "}}"
    )
    run(out, two="2")
    assert victim.read_text() == "1"
    assert (out / "link").is_symlink()


def test_a_list_that_is_none_makes_nothing_ours(tmp_path: Path) -> None:
    run(tmp_path, one="1")
    for text in ("", "[]", '{"files": 3}', "{"):
        (tmp_path / LIST).write_text(text)
        assert run(tmp_path / ".", one="2") != ["figures/one.png"]


def test_two_runs_at_once_both_stand_in_the_list(tmp_path: Path) -> None:
    first, second = Outputs(tmp_path), Outputs(tmp_path)
    first.write("page.html", b"one")
    second.write("page.html", b"two")
    second.write("table.md", b"two")
    first.write("chart.png", b"one")
    first.finish()
    second.finish()
    assert listed(tmp_path).keys() == {"page.html", "page-1.html", "table.md", "chart.png"}
    third = Outputs(tmp_path)
    assert third.write("page.html", b"three").name == "page.html"
    third.finish()
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", LIST}
