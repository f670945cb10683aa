"""Two saved heads compared on the test photos of both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import heads
from embedcache.errors import HeadError
from heads.comparison import compare
from heads.dataset import from_arrays
from heads.fitting.result import Fit

N = 240


def fitted(folder: Path, *, task: str = "regression", noise: float = 0.3, **options: Any) -> Fit:
    """A fit of planted labels from vectors that see them through `noise`, saved in a folder."""
    rng = np.random.default_rng(1)
    signal = rng.normal(size=N)
    labels = signal if task == "regression" else np.where(signal > 0, "yes", "no")
    if task == "multiclass":
        labels = np.array(["a", "b", "c"])[np.digitize(signal, [-0.5, 0.5])]
    seen = signal + noise * np.random.default_rng(2).normal(size=N)
    vectors = np.stack([seen, *rng.normal(size=(3, N))], axis=1)
    data = from_arrays(
        vectors, labels, ids=[f"p{i}" for i in range(N)], groups=[i // 2 for i in range(N)]
    )
    base = "ridge" if task == "regression" else "logistic"
    found = heads.fit(data, heads=base, **options)
    heads.save(found, folder)
    return found


@pytest.mark.parametrize("folds", [None, 5])
def test_it_is_the_comparison_of_the_fit_itself(tmp_path: Path, folds: int | None) -> None:
    fit = fitted(tmp_path / "a", folds=folds)
    found = compare(tmp_path / "a" / "ridge", tmp_path / "a" / "const")
    [row] = found.rows
    expected = fit.compare("ridge", "const")
    assert row.difference.value == pytest.approx(expected.value)
    assert (row.difference.low, row.difference.high) == pytest.approx((expected.low, expected.high))
    assert row.verdict == "first"
    assert found.n_groups == found.n / 2
    assert found.alone == (0, 0)


@pytest.mark.parametrize(
    ("task", "metrics"),
    [("binary", {"accuracy", "log_loss"}), ("multiclass", {"accuracy", "log_loss"})],
)
def test_clearer_vectors_are_found_to_be_better_at_classes(
    tmp_path: Path, task: str, metrics: set[str]
) -> None:
    fitted(tmp_path / "blurred", task=task, noise=3.0, folds=5)
    fitted(tmp_path / "clear", task=task, noise=0.1, folds=5)
    found = compare(tmp_path / "blurred" / "logistic", tmp_path / "clear" / "logistic")
    assert {row.metric for row in found.rows} == metrics
    assert {row.verdict for row in found.rows} == {"second"}
    assert "the second is better" in str(found)
    assert found.document()["rows"][0]["verdict"] == "second"


def test_a_head_beside_itself_is_undecided(tmp_path: Path) -> None:
    fitted(tmp_path / "a")
    [row] = compare(tmp_path / "a", tmp_path / "a").rows
    assert (row.difference.value, row.verdict) == (0.0, "undecided")


@pytest.mark.parametrize("task", ["regression", "binary"])
def test_a_best_head_that_is_the_constant_is_pointed_out(tmp_path: Path, task: str) -> None:
    """Else a backbone would be said to be worse whose best head did not use its vectors."""
    fitted(tmp_path / "blind", task=task, noise=1000.0)
    fitted(tmp_path / "clear", task=task)
    base = "ridge" if task == "regression" else "logistic"
    for blind, clear, words in (
        ("blind", "clear", ("first", "second")),
        ("clear", "blind", ("second", "first")),
    ):
        found = compare(tmp_path / blind, tmp_path / clear)
        assert found.notes == (
            f"the {words[1]}'s best head is {base}, the {words[0]}'s is the constant: compare "
            f"{tmp_path / blind / base} with {tmp_path / clear / base}",
        )
        assert found.notes[0] in str(found)
    assert compare(tmp_path / "blind" / "const", tmp_path / "clear").notes == ()
    assert compare(tmp_path / "blind", tmp_path / "blind").notes == ()
    assert compare(tmp_path / "blind" / base, tmp_path / "clear" / base).notes == ()


def test_a_head_that_one_fit_lacks_is_not_advised(tmp_path: Path) -> None:
    fitted(tmp_path / "blind", noise=1000.0)
    fitted(tmp_path / "clear")
    for path in (tmp_path / "blind" / "ridge").iterdir():
        path.unlink()
    assert compare(tmp_path / "blind", tmp_path / "clear").notes == ()


def test_heads_of_other_labels_are_refused(tmp_path: Path) -> None:
    fitted(tmp_path / "a")
    fitted(tmp_path / "b", task="binary")
    with pytest.raises(HeadError, match="heads of one label are compared"):
        compare(tmp_path / "a", tmp_path / "b")


def test_a_changed_label_and_a_fit_without_test_rows_are_refused(tmp_path: Path) -> None:
    fitted(tmp_path / "a")
    fitted(tmp_path / "b", dev_only=True)
    with pytest.raises(HeadError, match="fitted with dev rows only"):
        compare(tmp_path / "a", tmp_path / "b")
    table = tmp_path / "a" / "ridge" / "predictions.csv"
    titles, first, *others = table.read_text().splitlines()
    name, _, *rest = first.split(",")
    table.write_text("\n".join([titles, ",".join([name, "17.0", *rest]), *others]))
    with pytest.raises(HeadError, match="1 photo of both has another label"):
        compare(tmp_path / "a" / "ridge", tmp_path / "a" / "const")
    table.write_text("id,truth\n1,x\n")
    with pytest.raises(HeadError, match="not what a fit wrote"):
        compare(tmp_path / "a" / "ridge", tmp_path / "a" / "const")
