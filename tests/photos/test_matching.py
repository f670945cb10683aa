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
    assert f"by {rule}: {asked[0]!r} is '2024/u1.jpg' (2 of 2" in found.sentence(asked, HELD)


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


def test_ids_of_a_table_and_of_a_folder_meet_side_by_side() -> None:
    """Half of the photos were imported under the table's ids, all were extracted as files."""
    asked = [f"u{i}" for i in range(10)]
    files = [f"{name}.jpg" for name in asked]
    for n_exact in range(11):
        held = asked[:n_exact] + files
        scopes = ["table"] * n_exact + ["folder"] * 10
        contents = [name[:2].encode() for name in held]
        found = match_ids(asked, held, contents, scopes)
        assert found is not None
        met = [contents[i] for i in found.at.tolist()]
        assert met == [name.encode() for name in asked], n_exact
        assert found.by_rule.sum() == 10 - n_exact
        assert found.sentence(asked, held).endswith("(10 of 10 rows)") == (n_exact == 0)


def test_an_id_that_is_a_photos_own_means_that_photo() -> None:
    held = ["u1", "u1.jpg", "u2.jpg", "u3.jpg", "u4.jpg"]
    scopes = ["table", *["folder"] * 4]
    found = match_ids(["u1", "u2", "u3"], held, [name.encode() for name in held], scopes)
    assert found is not None
    assert (found.at.tolist(), found.n_ambiguous) == ([0, 2, 3], 0)


def test_where_a_folders_own_ids_meet_no_other_photo_stands_in_for_one_that_is_gone() -> None:
    held = ["2023/u2.jpg", "2023/u3.jpg", "2024/u1.jpg"]
    found = match(["2023/u1.jpg", "2023/u2.jpg", "2023/u3.jpg"], held)
    assert found is not None
    assert found.at.tolist() == [-1, 0, 1]
