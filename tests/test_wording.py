"""Counts stand with their nouns, and names of strangers cannot move a terminal's cursor."""

import re

import pytest

from embedcache.photos.kinds import Reason, in_words
from embedcache.wording import columns, counted, printable
from tests.documentation.pages import ROOT

_BARE = re.compile(
    r"\{[^{}]*(?::,|\bn\w*|len\([^{}]*\))\} (\w+ )?(photo id|photo|row|segment|vector|place)s\b"
)


@pytest.mark.parametrize(("n", "text"), [(0, "0 rows"), (1, "1 row"), (2_000, "2,000 rows")])
def test_a_count_stands_with_its_noun(n: int, text: str) -> None:
    assert counted(n, "row") == text
    assert counted(n, "box", "boxes").startswith(f"{n:,} box")


def test_what_stage_one_prints_has_no_bare_plural_after_a_count() -> None:
    """`1 photos` is a fault wherever a result prints itself."""
    for path in sorted(ROOT.glob("embedcache/**/*.py")):
        text = path.read_text("utf-8")
        for shown in re.findall(
            r"def __str__.*?(?=^    def |^    @|^\S|\Z)", text, re.DOTALL | re.M
        ):
            assert not (found := _BARE.search(shown)), f"{path}: {found}"


def test_cells_stand_below_each_other_and_cannot_move_the_cursor() -> None:
    assert columns([["id", "n"], ["a\x1b[2J", "1"]]) == ["id        n", "a\\x1b[2J  1"]
    assert printable("é\r") == "é\\r"


def test_every_reason_has_plain_words() -> None:
    for reason in Reason:
        assert "_" not in in_words(reason)
    assert in_words("no face") == "no face"
