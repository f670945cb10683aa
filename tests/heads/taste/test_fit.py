"""A taste is found where there is one, is 0 where there is none, and never harms a newcomer."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from embedcache.errors import HeadError, LabelsError
from heads.dataset import split
from heads.taste.fit import fit
from heads.taste.learning import Moments, Rows, dev_and_train, directions_by, fit_common
from heads.taste.model import owned_by
from heads.taste.ratings import Ratings
from heads.taste.result import TasteFit
from tests.heads.taste.worlds import Simulated, simulated


@pytest.fixture(scope="module")
def world() -> Simulated:
    return simulated()


@pytest.fixture(scope="module")
def fitted(world: Simulated) -> TasteFit:
    return fit(world.ratings)


def test_known_tastes_are_found(world: Simulated, fitted: TasteFit) -> None:
    new = world.ratings.vectors[world.ratings.subset == split.TEST]
    truth = world.truth[:, world.ratings.subset == split.TEST]
    seen = np.stack([fitted.taste.predict(new, name) for name in world.ratings.raters])
    assert np.sqrt(np.mean((seen - truth) ** 2)) < world.noise
    learned = np.linalg.qr(fitted.taste.directions[1:].astype(float).T)[0]
    found = np.linalg.norm(learned.T @ world.directions.T, axis=0)  # 1: lies in what was learned
    assert (found > 0.95).all()


def test_the_error_of_seen_viewers_nears_the_noise(world: Simulated, fitted: TasteFit) -> None:
    whole = fitted.trial.figure("taste", None)
    assert world.noise**2 < whole.value < 1.4 * world.noise**2
    assert fitted.trial.figure("common + bias", None).value > 1.5


def test_more_ratings_never_make_a_taste_worse(fitted: TasteFit) -> None:
    by = [fitted.trial.figure("taste", shown).value for shown in (0, 5, 20, 50, None)]
    assert by == sorted(by, reverse=True)


def test_a_viewer_without_ratings_gets_exactly_the_common_part(fitted: TasteFit) -> None:
    gap = fitted.trial.difference("taste", "common", 0)
    assert (gap.value, gap.low, gap.high) == (0, 0, 0)


def test_an_unknown_viewer_gets_the_common_part(world: Simulated, fitted: TasteFit) -> None:
    new = world.ratings.vectors[:5]
    assert fitted.taste.predict(new, "nobody").tolist() == fitted.taste.predict(new).tolist()
    assert fitted.taste.predict(new, "r001").tolist() != fitted.taste.predict(new).tolist()


def test_a_new_viewer_is_adapted_to_without_a_fit(world: Simulated, fitted: TasteFit) -> None:
    mine = world.ratings.rater == 7
    train = mine & (world.ratings.side == split.TRAIN)
    vectors = world.ratings.vectors[world.ratings.photo[train]]
    owned = fitted.taste.adapt(vectors, world.ratings.value[train])
    np.testing.assert_allclose(owned, fitted.taste.owned[7], atol=2e-3)


def test_no_taste_is_seen_where_viewers_agree() -> None:
    found = fit(simulated(taste=0.0, n_raters=40, noise=1.0).ratings)
    gap = found.trial.difference("taste", "common + bias", None)
    assert gap.low < 0.05
    assert abs(gap.value) < 0.05


def test_the_same_seed_gives_the_same_figures(world: Simulated, fitted: TasteFit) -> None:
    again = fit(world.ratings)
    assert again.rows() == fitted.rows()
    assert again.taste.owned.tobytes() == fitted.taste.owned.tobytes()


def test_no_test_rating_reaches_the_model(world: Simulated, fitted: TasteFit) -> None:
    ratings = world.ratings
    value = np.where(ratings.side == split.TEST, -ratings.value, ratings.value)
    other = fit(_with(ratings, value))
    assert other.taste.owned.tobytes() == fitted.taste.owned.tobytes()
    assert other.chosen == fitted.chosen


def _with(ratings: Ratings, value: NDArray[np.float64]) -> Ratings:
    return replace(ratings, value=value)


def test_what_a_viewer_owns_is_the_least_squares_solution_of_numpy() -> None:
    rng = np.random.default_rng(0)
    features, residual = rng.normal(size=(30, 4)), rng.normal(size=30)
    penalty = np.array([1.0, 2.0, 3.0, 4.0])
    longer = np.vstack([features, np.diag(np.sqrt(penalty))])
    expected = np.linalg.lstsq(longer, np.append(residual, np.zeros(4)), rcond=None)[0]
    np.testing.assert_allclose(owned_by(features, residual, penalty), expected, atol=1e-10)


def test_alternating_steps_find_the_directions(world: Simulated) -> None:
    train, dev = dev_and_train(world.ratings)
    common = fit_common(world.ratings, train, dev)
    moments = Moments.of(train, common, len(world.ratings.raters))
    (directions,) = directions_by(moments, 2, (20.0,), np.array([3.0, 10.0]), seed=0)
    basis = np.linalg.qr((directions @ common.basis).T)[0]
    assert (np.linalg.norm(basis.T @ world.directions.T, axis=0) > 0.95).all()


def test_vectors_of_another_length_are_refused(fitted: TasteFit) -> None:
    with pytest.raises(HeadError, match="takes vectors of 20 floats"):
        fitted.taste.predict(np.zeros((2, 3), np.float32))


def test_too_few_raters_are_refused() -> None:
    with pytest.raises(LabelsError, match="at least 3 raters"):
        simulated(n_raters=2)


@pytest.mark.parametrize("offset", [1e9, -1e6, 1e5 * np.pi])
def test_ratings_that_hardly_differ_for_their_size_are_refused(
    world: Simulated, offset: float
) -> None:
    """A taste keeps its numbers in float32: the seven digits of such ratings would not tell them
    apart."""
    with pytest.raises(LabelsError, match="subtract the same number from all"):
        _with(world.ratings, world.ratings.value + offset).checked()


@pytest.mark.parametrize("value", [5.0, 0.1, 1e9])
def test_ratings_that_are_all_the_same_are_not_refused(world: Simulated, value: float) -> None:
    _with(world.ratings, np.full(len(world.ratings.value), value)).checked()


def test_an_offset_that_is_taken_changes_no_figure(world: Simulated, fitted: TasteFit) -> None:
    moved = fit(_with(world.ratings, world.ratings.value + 5000).checked())
    for shown in (0, None):
        expected = fitted.trial.figure("taste", shown).value
        assert moved.trial.figure("taste", shown).value == pytest.approx(expected, rel=2e-3)
    new = world.ratings.vectors[:50]
    gap = moved.taste.predict(new, "r003") - 5000 - fitted.taste.predict(new, "r003")
    assert np.abs(gap).max() < 0.01


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e30])
def test_the_table_shows_four_digits_at_any_scale(
    world: Simulated, fitted: TasteFit, scale: float
) -> None:
    errors = {name: one * scale**2 for name, one in fitted.trial.errors.items()}
    text = str(replace(fitted, trial=replace(fitted.trial, errors=errors)))
    line = next(line for line in text.splitlines() if line.startswith("taste  "))
    cells = line.replace("(", " ").replace(")", " ").replace(" to ", " ").split()[1:]
    expected = fitted.trial.figure("taste", 0).value * scale**2
    assert float(cells[0]) == pytest.approx(expected, rel=1e-3)
    assert max(map(len, cells)) <= 11


def test_ratings_that_leave_nothing_to_choose_on_are_refused() -> None:
    whole = simulated(n_raters=3, n_photos=40, per_rater=30).ratings
    dev = whole.side == split.DEV
    kept = ~dev | (whole.rater == 0)
    rows = Rows.of(whole, kept)
    thin = replace(whole, rater=rows.rater, photo=rows.photo, value=rows.value)
    with pytest.raises(LabelsError, match="too few ratings"):
        fit(thin)
