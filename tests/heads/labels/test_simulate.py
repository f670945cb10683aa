"""The simulated population: the paper's rates, its truth, and planted violations."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embedcache.errors import LabelsError
from heads.labels import build as labels
from heads.labels import simulate


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[simulate.Simulation, labels.Labels]:
    folder = tmp_path_factory.mktemp("simulated")
    simulation = simulate.write(folder, users=8_000, swipes=1_200_000, violations=50)
    built = labels.build(simulation.users_path, simulation.swipes_path, folder / "labels.csv")
    return simulation, built


def test_the_filters_remove_exactly_what_was_planted(
    made: tuple[simulate.Simulation, labels.Labels],
) -> None:
    simulation, built = made
    assert simulation.removed.keys() == set(labels.REASONS)
    assert built.removed == simulation.removed
    assert built.swipes == simulation.swipes == 1_200_200
    assert built.users == simulation.users == 8_000


def test_it_looks_like_the_papers_population(
    made: tuple[simulate.Simulation, labels.Labels],
) -> None:
    _, built = made
    for s, sender in enumerate(simulate.GENDERS):
        for r, recipient in enumerate(simulate.GENDERS):
            assert built.table1[sender][recipient] == pytest.approx(simulate.TABLE1[s, r], abs=0.02)
    groups = built.by_gender
    assert groups["F"].users / built.users == pytest.approx(32 / 85, abs=0.01)
    assert groups["F"].users_with_photo / built.users_with_photo == pytest.approx(0.42, abs=0.02)
    assert groups["F"].swipes_made / built.swipes == pytest.approx(7.8 / 39.8, abs=0.01)
    assert built.swipes_kept / built.swipes == pytest.approx(11 / 40, abs=0.03)


def test_ratios_scatter_around_the_truth_as_the_number_of_swipes_implies(
    made: tuple[simulate.Simulation, labels.Labels],
) -> None:
    table = pl.read_csv(made[1].path).filter(pl.col("swipes") >= 20)
    truth = table[simulate.TRUTH].to_numpy()
    scatter = (table["like_ratio"].to_numpy() - truth) / np.sqrt(
        truth * (1 - truth) / table["swipes"].to_numpy()
    )
    assert abs(float(scatter.mean())) < 0.1
    assert float(scatter.std()) == pytest.approx(1.0, abs=0.1)


def test_swipes_before_the_photo_change_would_have_biased_the_ratios(
    made: tuple[simulate.Simulation, labels.Labels],
) -> None:
    log = pl.read_csv(made[0].swipes_path).group_by("recipient_id").agg(pl.col("liked").mean())
    table = pl.read_csv(made[1].path).join(log, left_on="user_id", right_on="recipient_id")
    table = table.filter(pl.col("swipes") >= 50)
    error = {
        name: float(((table[name] - table[simulate.TRUTH]) ** 2).mean())  # type: ignore[arg-type]
        for name in ("like_ratio", "liked")
    }
    assert error["liked"] > 3 * error["like_ratio"]


def test_the_same_seed_gives_the_same_tables_in_either_format(tmp_path: Path) -> None:
    first = simulate.write(tmp_path / "a", users=200, swipes=3_000, seed=4, violations=2)
    again = simulate.write(
        tmp_path / "b", users=200, swipes=3_000, seed=4, violations=2, suffix=".parquet"
    )
    other = simulate.write(tmp_path / "c", users=200, swipes=3_000, seed=5, violations=2)
    built = [
        labels.build(s.users_path, s.swipes_path, tmp_path / f"{i}.csv")
        for i, s in enumerate((first, again, other))
    ]
    assert built[0].table1 == built[1].table1 != built[2].table1
    assert built[0].removed == built[1].removed
    assert first.swipes_path.read_bytes() != other.swipes_path.read_bytes()


def test_batches_are_in_time_order_and_nobody_swipes_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "_BATCH", 700)
    log = pl.read_csv(simulate.write(tmp_path, users=20, swipes=5_000).swipes_path)
    assert log.height == 5_000
    assert log["swiped_at"].is_sorted()
    assert not (log["sender_id"] == log["recipient_id"]).any()


def test_everything_says_that_it_is_simulated(tmp_path: Path) -> None:
    made = simulate.write(tmp_path, users=50, swipes=100)
    assert "SIMULATED" in str(made)
    assert "SIMULATED" in (tmp_path / "README").read_text()
    assert made.document()["simulated"] is True
    users = pl.read_csv(made.users_path)
    assert simulate.TRUTH in users.columns
    assert users["user_id"].str.starts_with("sim").all()


def test_a_log_for_given_photos_follows_their_truth() -> None:
    truth = pl.DataFrame({"user_id": ["a", "b", "c"], "probability": [0.0, 0.7, 1.0]})
    log = simulate.swipes(truth, mean_swipes=400, n_senders=2_000, seed=1)
    assert log.equals(simulate.swipes(truth, mean_swipes=400, n_senders=2_000, seed=1))
    assert not log.select("sender_id", "recipient_id").is_duplicated().any()
    ratio = dict(log.group_by("recipient_id").agg(pl.col("liked").mean()).iter_rows())
    assert ratio["a"] == 0.0
    assert ratio["b"] == pytest.approx(0.7, abs=0.15)
    assert ratio["c"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": 3}, "at least 10 users"),
        ({"swipes": 0}, "1 swipe"),
        ({"suffix": ".xlsx"}, "as .csv or .parquet; got '.xlsx'"),
    ],
)
def test_an_impossible_simulation_is_refused(
    tmp_path: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(LabelsError, match=message):
        simulate.write(tmp_path, **{"users": 100, "swipes": 100, **options})  # type: ignore[arg-type]


def test_probabilities_outside_0_to_1_are_refused() -> None:
    with pytest.raises(LabelsError, match="probabilities"):
        simulate.swipes(pl.DataFrame({"user_id": ["a"], "probability": [1.5]}))
