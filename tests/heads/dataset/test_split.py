"""Groups stay whole, and adding photos moves nobody."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import LabelsError
from heads.dataset import split


def sides(keys: list[str], seed: int = 0) -> np.ndarray:
    return split.by_hash(*split.join_groups([keys]), seed=seed)


def test_shares_are_about_seventy_fifteen_fifteen() -> None:
    found = sides([f"p{k}" for k in range(20_000)])
    assert np.bincount(found) / 20_000 == pytest.approx([0.70, 0.15, 0.15], abs=0.01)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1), unique=True, min_size=2), st.integers(0, 99))
def test_adding_photos_in_any_order_moves_no_other_photo(keys: list[str], seed: int) -> None:
    half = keys[: len(keys) // 2]
    before = dict(zip(half, sides(half, seed), strict=True)) if half else {}
    after = dict(zip(reversed(keys), sides(keys[::-1], seed), strict=True))
    assert all(after[key] == side for key, side in before.items())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([None, "ann", "bob", "cy", "di"]), st.integers(0, 12)),
        min_size=1,
        max_size=40,
    )
)
def test_one_person_or_one_content_is_never_split(rows: list[tuple[str | None, int]]) -> None:
    people, content = [who for who, _ in rows], [str(what) for _, what in rows]
    groups, names = split.join_groups([people, content])
    found = split.by_hash(groups, names, seed=3)
    for key in (people, content):
        for value in set(key) - {None}:
            assert len({s for s, k in zip(found, key, strict=True) if k == value}) == 1
    turned, turned_names = split.join_groups([people[::-1], content[::-1]])
    assert (split.by_hash(turned, turned_names, seed=3)[::-1] == found).all()


def test_stratified_shares_hold_in_a_rare_class() -> None:
    keys = [f"p{k}" for k in range(1000)]
    rare = (np.arange(1000) % 50 == 0).astype(np.int64)
    groups, names = split.join_groups([keys])
    found = split.by_hash(groups, names, seed=0, strata=rare)
    assert np.bincount(found[rare == 1]).tolist() == [14, 3, 3]


def test_another_seed_is_another_split() -> None:
    keys = [f"p{k}" for k in range(200)]
    assert (sides(keys, 0) != sides(keys, 1)).any()


def test_a_given_split_that_splits_a_group_is_refused() -> None:
    groups, _ = split.join_groups([["ann", "ann", "bob"]])
    with pytest.raises(LabelsError, match=r"splits 1 group.*a \(train\), b \(test\)"):
        split.given(["train", "test", "val"], groups, ["a", "b", "c"], column="side")
    assert split.given(["train", "train", "val"], groups, list("abc"), column="s").tolist() == [
        0,
        0,
        1,
    ]


def test_a_given_split_of_other_words_is_refused() -> None:
    with pytest.raises(LabelsError, match=r"'b' has 'holdout'"):
        split.given(["train", "holdout"], np.array([0, 1]), ["a", "b"], column="side")


def test_the_digest_of_a_split_does_not_depend_on_the_order_of_rows() -> None:
    one = split.digest(["a", "b"], np.array([0, 2], np.uint8))
    assert one == split.digest(["b", "a"], np.array([2, 0], np.uint8))
    assert one != split.digest(["a", "b"], np.array([0, 1], np.uint8))
