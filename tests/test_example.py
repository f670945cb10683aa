"""The embedded example: made offline, the same for a seed, and clear about what it holds."""

import csv
import importlib.util
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedcache import example
from embedcache.errors import InputError
from heads.dataset import split
from heads.study import design

if importlib.util.find_spec("skimage") is None:
    pytest.skip("scikit-image is not installed", allow_module_level=True)

N = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> example.Example:
    return example.make(tmp_path_factory.mktemp("example"), n_photos=N)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_user_has_a_square_photo_of_400_to_500_pixels(made: example.Example) -> None:
    users = rows(made.users)
    assert len(users) == len({user["user_id"] for user in users}) == N
    assert {user["gender"] for user in users} == {"F", "M"}
    assert {user["light"] for user in users} == {"warm", "cool"}
    contents = set()
    for user in users:
        path = made.folder / user["photo"]
        contents.add(path.read_bytes())
        with Image.open(path) as photo:
            assert photo.width == photo.height
            assert 400 <= photo.width <= 500
    assert len(contents) == N


def test_the_truth_is_the_stated_function_of_the_stated_factors(made: example.Example) -> None:
    users = {user["user_id"]: user for user in rows(made.users)}
    found = []
    for row in rows(made.truth):
        row_id = row.pop("user_id")
        user = users[row_id]
        probability = float(row.pop("like_probability"))
        assert row["pictures"] == users[row_id]["pictures"]
        factors = example.Factors(
            pictures=row.pop("pictures"),
            subject=row.pop("subject"),
            faces=int(row.pop("faces")),
            **{name: float(value) for name, value in row.items()},
        )
        assert probability == pytest.approx(factors.like_probability, abs=1e-6)
        assert float(user["simulated_truth"]) == probability
        assert user["light"] == ("warm" if factors.warmth > 0 else "cool")
        found.append(probability)
    assert 0.1 < float(np.std(found)) < 0.3
    assert made.n_by_faces[1] > made.n_by_faces[0] > made.n_by_faces[2] > 0


def test_ids_and_order_reveal_nothing(made: example.Example) -> None:
    users = [user["user_id"] for user in rows(made.users)]
    assert users == sorted(users)
    truth = [float(row["like_probability"]) for row in rows(made.truth)]
    assert abs(np.corrcoef(np.arange(N), truth)[0, 1]) < 0.4


def test_no_picture_stands_on_two_sides_of_the_demos_split(made: example.Example) -> None:
    pictures = [name for one in example.SETS for name in one.name.split()]
    assert sorted(pictures) == sorted(Path(name).stem for name in example.SOURCES)
    study = tomllib.loads(design.template("demo.toml"))
    assert study["split_by"] == "pictures"
    users = rows(made.users)
    groups, names = split.join_groups([[user["pictures"] for user in users]])
    for number, _ in enumerate(study["subset"]):  # a study gives each subset a seed of its own
        sides = split.by_hash(groups, names, seed=study["seed"] + number)
        found = {(user["pictures"], int(side)) for user, side in zip(users, sides, strict=True)}
        assert found == {(one.name, side) for side, one in enumerate(example.SETS)}
    faces = {(row["pictures"], row["faces"]) for row in rows(made.truth)}
    assert {(one.name, "1") for one in example.SETS} <= faces


def test_the_truth_does_not_depend_on_the_picture(made: example.Example) -> None:
    factors = [f.name for f in fields(example.Factors) if f.name not in ("pictures", "subject")]
    values = dict.fromkeys(factors, 1.0) | {"faces": 1}
    likely = {
        one.name: example.Factors(pictures=one.name, subject="portrait", **values).like_probability  # type: ignore[arg-type]
        for one in example.SETS
    }
    assert len(set(likely.values())) == 1


def test_warm_photos_are_warmer_than_cool_ones(made: example.Example) -> None:
    """The second target is a property of the pixels, not only of the table."""
    balance: dict[tuple[str, str], list[float]] = {}
    subject = {row["user_id"]: row["subject"] for row in rows(made.truth)}
    for user in rows(made.users):
        if subject[user["user_id"]] == "portrait" and user["pictures"].startswith("astro"):
            red, _, blue = np.asarray(Image.open(made.folder / user["photo"])).mean(axis=(0, 1))
            balance.setdefault(("portrait", user["light"]), []).append(float(red / blue))
    warm, cool = balance["portrait", "warm"], balance["portrait", "cool"]
    assert np.mean(warm) > np.mean(cool) + 0.1


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    def contents(folder: Path, seed: int) -> dict[str, bytes]:
        example.make(folder, n_photos=6, seed=seed)
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    first = contents(tmp_path / "a", 3)
    assert contents(tmp_path / "b", 3) == first
    tables = {"users.csv", "truth.csv", "README.txt"}
    assert contents(tmp_path / "c", 4).keys() & first.keys() == tables


def test_the_readme_names_every_picture_and_what_is_simulated(made: example.Example) -> None:
    text = (made.folder / "README.txt").read_text(encoding="utf-8")
    assert all(name in text for name in example.SOURCES)
    assert "drawn at random" in text


def test_the_detector_sees_about_the_faces_that_were_laid_in(made: example.Example) -> None:
    pytest.importorskip("facenet_pytorch")
    from embedcache.faces.detector import Detector

    truth = [row for row in rows(made.truth) if float(row["blur"]) < 1]
    photos = [Image.open(made.folder / "photos" / f"{row['user_id']}.jpg") for row in truth]
    seen = Detector(min_face_size=40).detect(photos).counts
    agree = np.mean([int(row["faces"]) == count for row, count in zip(truth, seen, strict=True)])
    assert agree > 0.85


def test_without_scikit_image_the_message_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install scikit-image"):
        example.make(tmp_path, n_photos=2)


def test_what_may_be_concluded_is_part_of_the_demo() -> None:
    assert "may not conclude" in example.CONCLUSIONS
    assert '"' not in example.CONCLUSIONS  # it is written into TOML


def test_an_impossible_number_of_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got 0"):
        example.make(tmp_path, n_photos=0)


def test_making_it_loads_neither_scikit_image_nor_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from embedcache.example import make; make(sys.argv[1], n_photos=1); "
        "sys.exit('torch' in sys.modules or 'skimage.io' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
