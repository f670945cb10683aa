"""fit-taste as users call it, and what it writes: columns, odd tables, a folder that is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as bytes_of

import heads
from embedcache.errors import HeadError
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from tests.heads.conftest import World
from tests.heads.taste.worlds import simulated

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ratings(world: World) -> dict[str, list[object]]:
    """The columns of a table: 6 viewers rate the 120 photos of the small world."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(6, 8))
    value = 5 + world.vectors @ own.T + 0.1 * rng.normal(size=(120, 6))
    return {
        "rater_id": [f"r{k}" for _ in world.ids for k in range(6)],
        "photo_id": [name for name in world.ids for _ in range(6)],
        "rating": list(value.ravel().tolist()),
    }


@pytest.fixture
def fit_taste(run: Run, world: World, tmp_path: Path) -> Run:
    def call(*words: object, **columns: list[object]) -> tuple[int, str, str]:
        return run(
            *("fit-taste", "--cache", world.cache.path, "--backbone", "net"),
            *("--ratings", world.table(**columns), "--out", tmp_path / "taste", *words),
        )

    return call


def test_the_keys_of_the_contract(fit_taste: Run, ratings: dict[str, list[object]]) -> None:
    status, out, err = fit_taste("--json", **ratings)
    assert status == 0, err
    found = json.loads(out)
    for row in found["rows"]:
        assert {"model", "metric", "value", "low", "high", "by_ratings"} <= set(row)
        assert list(row["by_ratings"]) == ["0", "5", "20", "50", "all"]
    models = [row["model"] for row in found["rows"] if row["metric"] == "mse"]
    assert {"taste", "common", "own head", "photo's mean", "viewer's mean"} <= set(models)
    assert found["raters"] == 6


def test_the_taste_is_loaded_and_predicts(
    fit_taste: Run, ratings: dict[str, list[object]], world: World, tmp_path: Path
) -> None:
    assert fit_taste(**ratings)[0] == 0
    taste = heads.load_taste(tmp_path / "taste")
    seen = taste.predict(world.vectors, "r3")
    truth = np.array(ratings["rating"]).reshape(120, 6)[:, 3]
    assert np.corrcoef(seen, truth)[0, 1] > 0.9
    assert taste.card["ratings"]["file"] == "other.csv"
    assert fit_taste(**ratings)[0] == 0  # in place of the first
    (tmp_path / "taste" / "notes.txt").write_text("mine")
    assert fit_taste(**ratings)[0] == 0
    assert (tmp_path / "taste" / "notes.txt").read_text() == "mine"


def test_other_usual_columns_and_named_ones(
    fit_taste: Run, ratings: dict[str, list[object]]
) -> None:
    one, two, three = ratings.values()
    assert fit_taste(sender_id=one, recipient_id=two, liked=three)[0] == 0
    status, _, err = fit_taste(who=one, what=two, stars=three)
    assert (status, err.count("\n")) == (1, 1)
    assert "--rater-column" in err
    named = ("--rater-column", "who", "--id-column", "what", "--rating-column", "stars")
    assert fit_taste(*named, who=one, what=two, stars=three)[0] == 0


def test_a_taste_takes_one_backbone(fit_taste: Run, ratings: dict[str, list[object]]) -> None:
    for more in (("--backbone", "other"), ("--backbone=net",), ("--backbone", "a", "--backbone=b")):
        status, out, err = fit_taste(*more, **ratings)
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert "fit-taste takes one backbone; a study tries tastes on several" in err


def test_infinite_ratings_are_counted_as_such(
    fit_taste: Run, ratings: dict[str, list[object]]
) -> None:
    ratings["rating"][0] = "inf"
    ratings["rating"][1] = "-Infinity"
    ratings["rating"][2] = "nan"
    ratings["rating"][3] = ""
    status, out, err = fit_taste("--json", **ratings)
    assert status == 0, err
    assert json.loads(out)["dropped"] == {"no rating": 2, "an infinite rating": 2}
    out = fit_taste(**ratings)[1]
    assert "ratings left out: 2 with no rating, 2 with an infinite rating" in out


def test_one_of_anything_is_counted_in_the_singular(
    fit_taste: Run, ratings: dict[str, list[object]]
) -> None:
    ratings["rater_id"] = ["r0"] * len(ratings["rater_id"])
    status, _, err = fit_taste(**ratings)
    assert status == 1
    assert "by 1 rater;" in err
    assert "120 photos" in err


def test_rows_that_say_nothing_are_counted(
    fit_taste: Run, ratings: dict[str, list[object]]
) -> None:
    ratings["rating"][0] = "NA"
    ratings["rater_id"][1] = ""
    ratings["photo_id"][2] = "unknown"
    ratings["photo_id"][3] = ""
    status, out, err = fit_taste("--json", **ratings)
    assert status == 0, err
    assert json.loads(out)["dropped"] == {
        "no rating": 1,
        "no rater": 1,
        "photo not in the cache": 1,
        "no photo id": 1,
    }


def test_a_rating_that_is_no_number_is_refused(
    fit_taste: Run, ratings: dict[str, list[object]]
) -> None:
    ratings["rating"][5] = "very nice"
    status, out, err = fit_taste(**ratings)
    assert (status, out) == (1, "")
    assert "'very nice', which is no number" in err


def test_ids_of_other_photos_are_refused(fit_taste: Run, ratings: dict[str, list[object]]) -> None:
    ratings["photo_id"] = [f"x{name}" for name in ratings["photo_id"]]
    status, _, err = fit_taste(**ratings)
    assert status == 1
    assert "no photo of other.csv is in the cache" in err
    assert "--id-column" in err


def test_a_folder_of_something_else_is_left_alone(
    fit_taste: Run, ratings: dict[str, list[object]], tmp_path: Path
) -> None:
    (tmp_path / "taste").mkdir()
    (tmp_path / "taste" / "photo.jpg").write_bytes(b"mine")
    status, _, err = fit_taste(**ratings)
    assert status == 1
    assert "holds something other" in err
    assert [path.name for path in (tmp_path / "taste").iterdir()] == ["photo.jpg"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from heads.taste.fit import fit

    small = simulated(n_photos=60, n_raters=5, per_rater=50, dim=4, rank=1)
    return fit(small.ratings).save(tmp_path_factory.mktemp("tastes") / "taste")


def test_a_taste_is_not_taken_for_a_head(saved: Path) -> None:
    with pytest.raises(HeadError, match="is a taste"):
        heads.load(saved)


@pytest.mark.parametrize("name", ["taste.json", "weights.safetensors", "raters.json"])
@pytest.mark.parametrize("change", ["cut", "flipped", "grown", "missing"])
def test_a_changed_file_is_refused(saved: Path, tmp_path: Path, name: str, change: str) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    heads.load_taste(tmp_path)
    raw = (tmp_path / name).read_bytes()
    if change == "missing":
        (tmp_path / name).unlink()
    else:
        middle = len(raw) // 2
        flipped = raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]
        new = {"cut": raw[:middle], "flipped": flipped, "grown": raw + b"0"}[change]
        (tmp_path / name).write_bytes(new)
    with pytest.raises(HeadError):
        heads.load_taste(tmp_path)


def test_tensors_that_the_card_does_not_imply_are_refused(saved: Path, tmp_path: Path) -> None:
    """Also where somebody has written hashes and digest anew."""
    import hashlib

    from embedcache.spec import canonical_json

    card = json.loads((saved / "taste.json").read_text())
    tensors = tensors_of((saved / "weights.safetensors").read_bytes())
    (tmp_path / "raters.json").write_bytes((saved / "raters.json").read_bytes())
    for wrong in (
        {"owned": tensors["owned"][:, :-1].copy()},
        {"penalty": -tensors["penalty"]},
        {"common.weight": np.full_like(tensors["common.weight"], np.nan)},
    ):
        raw = bytes_of(tensors | wrong)
        other = card | {
            "weights_sha256": hashlib.sha256(raw).hexdigest(),
            "weights_bytes": len(raw),
        }
        del other["digest"]
        other["digest"] = hashlib.sha256(canonical_json(other)).hexdigest()
        (tmp_path / "weights.safetensors").write_bytes(raw)
        (tmp_path / "taste.json").write_text(json.dumps(other))
        with pytest.raises(HeadError):
            heads.load_taste(tmp_path)


def test_equal_photos_are_one_photo(tmp_path: Path, world: World) -> None:
    from heads.taste.ratings import load

    digests = world.contents(*(f"u{k // 2:03}" for k in range(120)))
    cache = Cache.open(tmp_path / "twins.cache", create=True)
    space = cache.space(foreign("net", 8), create=True)
    with space.writer(n_rows=60, name="net", about={}) as writer:
        writer.add(digests[::2], world.vectors[::2])
    cache.record_photos("photos", world.ids, digests)
    table = world.table(
        rater_id=[f"r{k % 5}" for k in range(240)],
        photo_id=[*world.ids, *world.ids],
        rating=list(range(240)),
    )
    found = load(cache, "net", table)
    assert len(found.vectors) == 60
    assert len(found.value) == 240


def test_predict_applies_the_taste_of_a_viewer_or_what_all_share(
    fit_taste: Run, ratings: dict[str, list[object]], world: World, run: Run, tmp_path: Path
) -> None:
    from heads.predict import predict
    from heads.taste.viewer import load_for

    assert fit_taste(**ratings)[0] == 0
    folder = tmp_path / "taste"
    taste = heads.load_taste(folder)
    for viewer in (None, "r3"):
        found = predict(load_for(folder, viewer), world.ids, world.cache)
        assert found.found.all()
        assert found.values == pytest.approx(taste.predict(world.vectors, viewer), abs=1e-4)
    with pytest.raises(HeadError, match="viewer 'nobody' rated nothing in training"):
        load_for(folder, "nobody")


def test_a_viewer_goes_with_a_taste_only(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.jpg").touch()
    words = ("predict", tmp_path, tmp_path, "--cache", tmp_path / "c", "--out", tmp_path / "o.csv")
    status, _, err = run(*words, "--viewer", "r3")
    assert (status, err.count("\n")) == (1, 1)
    assert "--viewer goes with a taste" in err
