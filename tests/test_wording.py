"""Counts stand with their nouns, and names of strangers cannot move a terminal's cursor."""

import re
from io import StringIO

import pytest

from embedcache.display import counts_on
from embedcache.photos.kinds import Reason, in_words
from embedcache.wording import columns, counted, printable
from tests.documentation.pages import ROOT

_BARE = re.compile(
    r"\{[^{}]*(?::,|\bn\w*|len\([^{}]*\))\} (\w+ )?"
    r"(photo id|photo|row|segment|vector|place|viewer|rater|rating|file|group)s\b"
)


@pytest.mark.parametrize(("n", "text"), [(0, "0 rows"), (1, "1 row"), (2_000, "2,000 rows")])
def test_a_count_stands_with_its_noun(n: int, text: str) -> None:
    assert counted(n, "row") == text
    assert counted(n, "box", "boxes").startswith(f"{n:,} box")


def test_what_is_printed_has_no_bare_plural_after_a_count() -> None:
    """`1 photos` is a fault wherever a result prints itself."""
    for path in sorted([*ROOT.glob("embedcache/**/*.py"), *ROOT.glob("heads/**/*.py")]):
        text = path.read_text("utf-8")
        for shown in re.findall(
            r"def __str__.*?(?=^    def |^    @|^\S|\Z)", text, re.DOTALL | re.M
        ):
            assert not (found := _BARE.search(shown)), f"{path}: {found}"


def test_one_thing_is_not_told_as_several() -> None:
    """A verb in the plural after `counted`, which gives `1 group hang together`."""
    verbs = re.compile(
        r"counted\((?:[^()]|\([^()]*\))*?'[\w ]+'\)\}[\"\s f]*"
        r"(?:of both )?(?:are|were|have|hang|do|match|hold|belong|stand|need|lack)\b"
    )
    for path in sorted([*ROOT.glob("embedcache/**/*.py"), *ROOT.glob("heads/**/*.py")]):
        found = verbs.findall(path.read_text("utf-8"))
        assert not found, f"{path}: {found}"


def test_progress_counts_one_thing_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcache.display.QUIET_SECONDS", 0.0)
    for counts, what, text in (
        ((1,), "photos explained", "1 photo explained"),
        ((2,), "photos explained", "2 photos explained"),
        ((1, 2), "fits of a taste", "1 of 2 fits of a taste"),
        ((1, 1), "pairs of photos compared", "1 of 1 pair of photos compared"),
        ((1200, 9000), "epochs", "1,200 of 9,000 epochs"),
    ):
        stream = StringIO()
        counts_on(what, stream)(*counts)
        assert stream.getvalue() == f"{text}\n"


def test_cells_stand_below_each_other_and_cannot_move_the_cursor() -> None:
    assert columns([["id", "n"], ["a\x1b[2J", "1"]]) == ["id        n", "a\\x1b[2J  1"]
    assert printable("é\r") == "é\\r"


def test_every_reason_has_plain_words() -> None:
    for reason in Reason:
        assert "_" not in in_words(reason)
    assert in_words("no face") == "no face"
