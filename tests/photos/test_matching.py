"""Ids that meet: by path, by file name, and never two photos at once."""

import pytest

from embedcache.photos.matching import Matches, match_ids

HELD = ["2024/u1.jpg", "2024/u2.PNG", "2023/john.doe.jpg"]


def match(asked: list[str], held: list[str] = HELD) -> Matches | None:
    return match_ids(asked, held, [name.encode() for name in held], ["photos"] * len(held))


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (["./2024/u1.jpg", "2024\\u2.PNG"], "path"),
        (["2024/u1", "2024/u2"], "path without suffix"),
        (["photos/u1.jpg", "/data/u2.PNG"], "file name"),
        (["u1", "u2"], "file name without suffix"),
        (["u1.png", "u2.jpeg"], "file name without suffix"),
    ],
)
def test_the_rule_under_which_most_ids_meet_is_used(asked: list[str], rule: str) -> None:
    found = match(asked)
    assert found is not None
    assert (found.rule, found.at.tolist(), found.n_ambiguous) == (rule, [0, 1], 0)
    assert found.example(asked, HELD) == f"{asked[0]!r} is '2024/u1.jpg'"


def test_a_dot_in_a_name_is_no_suffix() -> None:
    found = match(["john.doe", "u1"])
    assert found is not None
    assert found.at.tolist() == [2, 0]


def test_a_name_of_two_photos_meets_neither() -> None:
    held = ["a/u1.jpg", "b/u1.jpg", "a/u2.jpg", "a/u3.jpg"]
    found = match(["u1", "u2", "u3"], held)
    assert found is not None
    assert (found.at.tolist(), found.n_ambiguous) == ([-1, 2, 3], 1)
    same = match_ids(["u1"], held[:2], [b"same", b"same"], ["s", "s"])
    assert same is not None
    assert same.at.tolist() == [0]


def test_two_ids_that_share_a_name_meet_nothing() -> None:
    found = match(["x/u1.jpg", "y/u1.jpg", "u2.PNG", "john.doe.jpg"])
    assert found is not None
    assert (found.at.tolist(), found.n_ambiguous) == ([-1, -1, 1, 2], 2)


def test_too_few_meetings_are_chance() -> None:
    held = [f"p{i}.jpg" for i in range(100)]
    assert match([f"u{i}" for i in range(90)] + ["p1"], held) is None
    assert match([f"u{i}" for i in range(90)], held) is None
    few = match([f"p{i}" for i in range(1000)], held)  # the table is larger than the cache
    assert few is not None
    assert few.n == 100
