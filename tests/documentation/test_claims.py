"""What the documents say is so: their code runs, their tables and links match the project."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documentation.pages import ROOT, blocks, shape

README = ROOT / "README.md"
RECORDS = sorted(ROOT.glob("docs/decisions/[0-9]*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("data/*.md")])
STATUS = re.compile(
    r"^Status: (accepted|superseded by \d{3}|rejected) \((20\d\d-\d\d-\d\d)\)", re.MULTILINE
)


def test_the_tree_of_the_readme_names_every_room() -> None:
    (tree,) = [block.text for block in blocks(README) if not block.language]
    for package in ("embedcache", "heads"):
        part = tree[tree.index(f"{package}/") :]
        rooms = [
            path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()
        ]
        assert rooms
        for room in rooms:
            assert f"  {room}/" in part, f"{package}/{room}"
        for file in (ROOT / package).glob("[a-z]*.py"):
            assert re.search(rf"^  .*\b{file.stem}\b", part, re.MULTILINE), f"{package}/{file.name}"


def test_every_command_is_in_the_readme_and_every_command_there_exists() -> None:
    known = set(command_names())
    text = README.read_text("utf-8")
    table = text[text.index("## Commands") : text.index("## Source tree")]
    named = set(re.findall(r"^\|(.*?)\|", table, re.MULTILINE))
    words = {
        word
        for cell in named
        for quoted in re.findall(r"`([^`]+)`", cell)
        for word in quoted.split()
    }
    assert known <= words, known - words
    for page in PAGES:
        for used in re.findall(
            r"\bembedcache ([a-z][a-z-]+)\b(?= |`|$)", code_of(page), re.MULTILINE
        ):
            assert used in known, f"{page.name}: embedcache {used}"


def command_names() -> Iterator[str]:
    import typer

    import cli

    yield from typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def code_of(page: Path) -> str:
    """The code of a page: its blocks, indented lines, and quoted commands."""
    text = page.read_text("utf-8")
    indented = "\n".join(re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE))
    quoted = "\n".join(re.findall(r"`(embedcache [^`]+)`", text))
    return "\n".join([*(block.text for block in blocks(page)), indented, quoted])


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for used in re.findall(r"\bmake ([a-z]+)\b", code_of(page)):
            assert used in targets, f"{page.name}: make {used}"


def test_what_the_documents_install_is_what_the_project_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {re.split(r"[=<>\[]", one)[0] for extra in extras.values() for one in extra}
    for page in [README, *ROOT.glob("docs/*.md")]:
        for line in re.findall(r"pip install ([^`#\n]+)", page.read_text("utf-8")):
            for word in line.split():
                if page == README and word == "embedcache":
                    continue  # quoted as what not to do
                name = re.split(r"[=<>\[]", word.strip("'"))[0]
                own = name in ("", ".") or name.startswith("-")
                assert own or name in declared, f"{page.name}: pip install {line}"


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_record_has_a_number_a_status_and_a_row_in_the_index(record: Path) -> None:
    text = record.read_text("utf-8")
    title = text.splitlines()[0].removeprefix("# ")
    assert title.startswith(f"{record.name[:3]} ")
    found = STATUS.search(text)
    assert found, "a line `Status: accepted (YYYY-MM-DD)`"
    index = (record.parent / "README.md").read_text("utf-8")
    assert f"| [{title}]({record.name}) | {found[1]} | {found[2]} |" in index


def test_numbers_of_records_are_unique() -> None:
    numbers = [record.name[:3] for record in RECORDS]
    assert len(set(numbers)) == len(numbers)


def test_the_version_is_the_same_everywhere() -> None:
    import embedcache

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == embedcache.__version__
    assert f"## {embedcache.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_shape_of_a_line_ignores_numbers_and_columns_only() -> None:
    assert shape("ridge  mse  0.0130  3e-05  -") == shape("ridge mse 1.2 0.1 4")
    assert shape("a (read 2%, decode 10%)") == shape("a (read 3%)")
    assert shape("ridge mse 0.01") != shape("const mse 0.01")
    assert shape("spec 4ae396da") == shape("spec 4ae396da")
