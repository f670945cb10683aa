"""The estimators do what scikit-learn's own tools expect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator

from embedcache.errors import InputError
from heads.fitting import candidates
from heads.fitting.estimator import HeadClassifier, HeadRegressor
from heads.fitting.protocol import Protocol
from tests.documentation.pages import ROOT

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(240, 6))
QUICK: dict[str, Any] = {"protocol": Protocol(epochs=5, hidden=8, learning_rates=(1e-2,))}


def test_a_classifier_keeps_its_labels_and_scores_in_cross_validation() -> None:
    labels = np.where(ROWS[:, 0] > 0, "yes", "no")
    scores = cross_val_score(HeadClassifier(**QUICK), ROWS, labels, cv=3)
    assert scores.mean() > 0.9
    model = HeadClassifier(head="2fc", **QUICK).fit(ROWS, labels)
    assert model.classes_.tolist() == ["no", "yes"]
    assert model.predict_proba(ROWS).sum(1) == pytest.approx(1)
    assert set(model.predict(ROWS)) == {"no", "yes"}


def test_three_classes_work_in_a_pipeline_and_a_grid() -> None:
    labels = np.digitize(ROWS[:, 0], [-0.5, 0.5])
    pipe = make_pipeline(StandardScaler(), HeadClassifier(**QUICK))
    grid = GridSearchCV(pipe, {"headclassifier__head": ["0fc", "1fc"]}, cv=2).fit(ROWS, labels)
    assert grid.best_score_ > 0.8


def test_a_regressor_takes_weights_groups_and_several_targets() -> None:
    targets = np.stack([ROWS[:, 0] * 5 + 30, ROWS[:, 1]], 1)
    model = HeadRegressor(**QUICK)
    model.fit(ROWS, targets, sample_weight=np.arange(240.0), groups=(np.arange(240) // 4).tolist())
    assert model.predict(ROWS).shape == (240, 2)
    assert model.score(ROWS, targets) > 0.95
    assert cross_val_score(HeadRegressor(**QUICK), ROWS, targets[:, 0], cv=3).min() > 0.9


# What scikit-learn's checks expect and these estimators do not do, with the reason; the same list
# stands in docs/how-to/scikit-learn.md.
EXCEPTIONS = {
    "check_sample_weight_equivalence_on_dense_data": "which rows choose depends on the rows given",
    "check_methods_sample_order_invariance": "float32 products differ in the last digit by order",
    "check_methods_subset_invariance": "float32 products differ in the last digit by size",
}


def unlike_scikit_learn(model: Any) -> dict[str, str]:
    """The checks that fail and are no named exception."""
    found = check_estimator(
        model, expected_failed_checks=EXCEPTIONS, on_fail=None, on_skip=None
    )  # the only check that is skipped needs an environment variable of SciPy's
    return {one["check_name"]: str(one["exception"]) for one in found if one["status"] == "failed"}


def test_a_regressor_passes_scikit_learns_checks() -> None:
    assert unlike_scikit_learn(HeadRegressor(head="ridge")) == {}


@pytest.mark.torture
@pytest.mark.parametrize("model", [HeadClassifier(head="logistic"), HeadRegressor(head="1fc")])
def test_a_classifier_and_an_fc_head_pass_scikit_learns_checks(model: Any) -> None:
    assert unlike_scikit_learn(model) == {}


@pytest.mark.parametrize("name", [
    "check_estimators_unfitted", "check_classifiers_one_label",
    "check_classifiers_regression_target", "check_sample_weights_shape",
    "check_all_zero_sample_weights_error", "check_set_params",
    "check_parameters_default_constructible", "check_fit2d_1sample", "check_n_features_in",
])  # fmt: skip
def test_a_classifier_refuses_what_scikit_learns_do(name: str) -> None:
    getattr(estimator_checks, name)("HeadClassifier", HeadClassifier(head="const"))


def test_the_exceptions_stand_in_the_documentation() -> None:
    page = (ROOT / "docs" / "how-to" / "scikit-learn.md").read_text()
    assert all(name in page for name in EXCEPTIONS)


def test_parameters_are_stored_as_given_and_cloned() -> None:
    chosen = Protocol(hidden=7, learning_rates=(0.5,))
    model = HeadRegressor(protocol=chosen)
    assert model.get_params(deep=False)["protocol"] is chosen
    assert clone(model).get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        model.predict(ROWS)


def test_with_folds_every_row_trains_and_chooses() -> None:
    model = HeadRegressor(head="1fc", folds=3, **QUICK).fit(ROWS, ROWS[:, 0])
    assert len(model.epochs_) == len(model.learning_rates_) == 3
    assert model.head_.layers[0].weight.shape[0] == 3  # one member per fold, averaged
    assert model.score(ROWS, ROWS[:, 0]) > 0.9
    with pytest.raises(InputError, match="2 folds of 240 groups"):
        HeadRegressor(folds=2, **QUICK).fit(ROWS, ROWS[:, 0])


def test_rows_without_a_group_stand_alone() -> None:
    groups = [None, float("nan"), ""] * 80
    model = HeadRegressor(head="ridge", **QUICK).fit(ROWS, ROWS[:, 0], groups=groups)
    assert model.score(ROWS, ROWS[:, 0]) > 0.99


def chosen_rows(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray[Any, Any]]:
    """Which rows choose, (n,), of each fit from now on."""
    found: list[np.ndarray[Any, Any]] = []
    real = candidates.fit_candidates

    def seen(*words: Any, **options: Any) -> Any:
        found.append(options["dataset"].subset == 1)
        return real(*words, **options)

    monkeypatch.setattr("heads.fitting.estimator.fit_candidates", seen)
    return found


@pytest.mark.parametrize("folds", [None, 3])
def test_groups_of_several_kinds_stand_on_one_side(
    monkeypatch: pytest.MonkeyPatch, folds: int | None
) -> None:
    """Near-duplicates and persons: what either joins, and what both join together."""
    rng = np.random.default_rng(0)
    near = [f"n{i // 2}" if i < 120 else None for i in range(240)]
    person = np.where(rng.random(240) < 0.5, rng.integers(0, 60, 240), -1)
    persons = [None if p < 0 else int(p) for p in person]
    both = list(zip(near, persons, strict=True))
    chosen = chosen_rows(monkeypatch)
    model = HeadRegressor(head="ridge", folds=folds, **QUICK)
    model.fit(ROWS, ROWS[:, 0], groups=both)
    assert len(chosen) == (folds or 1)
    for dev in chosen:
        assert dev.any()
        for kind in (near, persons):
            for value in {one for one in kind if one is not None}:
                mine = [one == value for one in kind]
                assert len(set(dev[mine].tolist())) == 1


def test_groups_of_a_dataset_go_through_cross_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.arange(240) // 4
    chosen = chosen_rows(monkeypatch)
    with sklearn.config_context(enable_metadata_routing=True):
        model = HeadRegressor(head="ridge", **QUICK).set_fit_request(groups=True)
        scores = cross_val_score(
            model, ROWS, ROWS[:, 0], cv=GroupKFold(3), params={"groups": groups}
        )
    assert scores.min() > 0.9
    assert len(chosen) == 3
    for dev in chosen:  # GroupKFold keeps the order of rows: four by four
        assert (dev.reshape(-1, 4).sum(1) % 4 == 0).all()


@pytest.mark.parametrize("groups", [[1] * 239, np.zeros((2, 240)), np.zeros((240, 2, 2))])
def test_groups_of_another_shape_are_refused(groups: Any) -> None:
    with pytest.raises(InputError, match=r"groups are \(240,\) or \(240, k\)"):
        HeadRegressor(head="ridge", **QUICK).fit(ROWS, ROWS[:, 0], groups=groups)


def test_single_fields_of_the_protocol_can_be_set_and_searched() -> None:
    model = HeadRegressor(**QUICK).set_params(protocol__hidden=5, head="2fc")
    assert model.get_params()["protocol__hidden"] == 5
    assert (model.get_params()["protocol__epochs"], model.head) == (5, "2fc")
    grid = GridSearchCV(model, {"protocol__hidden": [4, 8]}, cv=2).fit(ROWS, ROWS[:, 0])
    assert grid.best_params_["protocol__hidden"] in (4, 8)
    with pytest.raises(InputError, match="hidden must be a whole number; got 'wide'"):
        model.set_params(protocol__hidden="wide")
    plain = HeadRegressor().set_params(protocol__epochs=2)
    assert plain.get_params()["protocol__epochs"] == 2


def test_rows_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(InputError, match="one group"):
        HeadRegressor(**QUICK).fit(ROWS[:5], np.arange(5.0), groups=[1] * 5)
    with pytest.raises(InputError, match="unknown head 'tree'"):
        HeadRegressor(head="tree").fit(ROWS, ROWS[:, 0])
