"""--explain: a head as torch sees it, names of pictures, and what is never touched."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import heads
from embedcache.errors import HeadError
from embedcache.spec import FaceCrop, Preprocessing, Spec, foreign
from heads.dataset.rows import Dataset
from heads.head import linked
from heads.predict import Predictions
from heads.saliency import README, check_explainable, draw, file_name, picture, score_of

Run = Callable[..., tuple[int, str, str]]
Sample = Callable[..., Dataset]


@pytest.mark.parametrize(
    ("task", "name"),
    [("binary", "logistic"), ("binary", "2fc"), ("real", "ridge"), ("real", "1fc")],
)
def test_the_score_through_the_link_is_the_prediction(sample: Sample, task: str, name: str) -> None:
    head = heads.fit(sample(task=task), heads=(name,)).heads[name]
    vectors = np.random.default_rng(0).normal(size=(7, 12)).astype(np.float32)
    seen = score_of(head, 0)(torch.from_numpy(vectors)).numpy()[:, None]
    expected = linked(seen.astype(np.float64), head.link)[:, 0]
    np.testing.assert_allclose(expected, head.predict(vectors), rtol=1e-4)


def test_of_several_classes_it_is_the_log_odds_of_one(sample: Sample) -> None:
    head = heads.fit(sample(task="classes"), heads=("logistic",)).heads["logistic"]
    vectors = np.random.default_rng(0).normal(size=(7, 12)).astype(np.float32)
    chance = head.predict(vectors)[:, 1]
    seen = score_of(head, 1)(torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(seen, np.log(chance / (1 - chance)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["../../x", "a/b.jpg", "/etc/passwd", ".hidden", "-rf", "n\nl", "é" * 200, "CON:", "\0"]
)
def test_no_id_leads_out_of_the_folder_or_hides_a_picture(name: str) -> None:
    found = file_name(name)
    assert Path(found).name == found
    assert not found.startswith((".", "-"))
    assert found.isascii()
    assert len(found) < 200
    assert found.endswith(".png")


def test_two_long_ids_have_two_names() -> None:
    assert file_name("x" * 300 + "a") != file_name("x" * 300 + "b")
    assert file_name("a/b") != file_name("a%2Fb")


def test_red_raises_and_blue_lowers() -> None:
    pixels = np.full((160, 160, 3), 128, np.uint8)
    found = np.zeros((160, 160), np.float32)
    found[20:60, 20:60], found[100:140, 100:140] = 1, -1
    shown = np.asarray(Image.open(io.BytesIO(picture(pixels, found)))).astype(int)
    assert shown.shape == (320, 640, 3)
    raised, lowered = shown[80, 320 + 80], shown[240, 320 + 240]
    assert raised[0] > raised[2] + 80
    assert lowered[2] > lowered[0] + 80
    assert np.ptp(shown[10, 630]) == 0


def test_others_files_stay(sample: Sample, tmp_path: Path) -> None:
    head = heads.fit(sample(task="binary"), heads=("logistic",)).heads["logistic"]
    (tmp_path / "p1.png").write_bytes(b"mine")
    (tmp_path / README).write_bytes(b"mine too")
    pixels = np.full((32, 32, 3), 128, np.uint8)
    seen = pixels, lambda score: np.ones(pixels.shape[:2], np.float32)
    for _ in range(2):  # the second run replaces what the first wrote
        drawn = draw(
            head,
            [("p1", np.array(0.5), seen), ("p2", np.array(0.5), "vanished")],
            tmp_path,
            progress=lambda done: None,
        )
        assert (drawn.pictures, drawn.lost) == (1, {"p2": "vanished"})
    assert (tmp_path / "p1.png").read_bytes() == b"mine"
    assert (tmp_path / README).read_bytes() == b"mine too"
    names = {path.name for path in tmp_path.iterdir()} - {".embedcache-files.json"}
    assert names == {"p1.png", README, "p1-1.png", "README-1.txt"}
    assert "It is not a cause" in (tmp_path / "README-1.txt").read_text()


def test_heads_without_a_network_are_refused(sample: Sample, tmp_path: Path) -> None:
    fitted = heads.fit(sample(task="binary"), heads=("logistic",))
    with pytest.raises(HeadError, match=r"computed elsewhere.*; without `explain` it predicts"):
        check_explainable(fitted.heads["logistic"], tmp_path)


@pytest.mark.parametrize(("task", "other"), [("regression", "ridge"), ("binary", "logistic")])
def test_for_a_constant_head_the_folder_of_another_is_named(
    sample: Sample, tmp_path: Path, task: str, other: str
) -> None:
    head = heads.fit(sample(task=task), heads=(other,)).heads["const"]
    spec = spec_of()
    one = {"backbone": "net", "spec_digest": spec.digest, "spec": spec.document()}
    head = replace(head, card={**head.card, **one, "classes": ["a", "b"] * (task != "regression")})
    with pytest.raises(HeadError, match=f"as HEAD_DIR/{other}, can be named instead"):
        check_explainable(head, tmp_path)
    made = Predictions(ids=(), values=np.zeros(0), found=np.ones(1, bool), reasons=(), head=head)
    assert f"HEAD_DIR/{other}, can be named" in made.warnings("net", imported=False)[0]


def spec_of(
    *, face: FaceCrop | None = None, size: int = 96, resize: Any = "shortest", crop: float = 0.9
) -> Spec:
    given = Preprocessing(
        size=(size, size), resize=resize, crop_fraction=crop, interpolation="bicubic",
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), decode="images-1-full",
    )  # fmt: skip
    return Spec(
        kind="computed", architecture=f"net{size}", dim=6, weights="a" * 64,
        preprocessing=given, face=face,
    )  # fmt: skip


FACE = FaceCrop(detector="d" * 64, select="only", margin=0.45)


@pytest.mark.parametrize(
    ("specs", "sentence"),
    [
        ([spec_of(), spec_of(size=160)], ""),
        ([spec_of(crop=0.9), spec_of(crop=1.0, size=64)], ""),
        ([spec_of(face=FACE, resize="squash"), spec_of(face=FACE, resize="squash", size=64)], ""),
        ([spec_of(), spec_of(face=FACE)], "the whole photo, its middle; .* 45 % around it"),
        ([spec_of(face=FACE), spec_of(face=replace(FACE, margin=0.0))], "45 % .* 0 % around"),
        ([spec_of(face=FACE), spec_of(face=replace(FACE, select="largest"))], "largest face"),
        ([spec_of(), spec_of(resize="squash")], "its middle; .* all of it, squashed"),
        ([spec_of(), foreign("theirs", 6)], r"computed elsewhere \(net1\)"),
    ],
)
def test_several_backbones_are_explained_where_they_see_the_same_of_a_photo(
    sample: Sample, tmp_path: Path, specs: list[Spec], sentence: str
) -> None:
    head = heads.fit(sample(task="binary"), heads=("logistic",)).heads["logistic"]
    parts = [
        {"backbone": f"net{k}", "spec_digest": spec.digest, "spec": spec.document()}
        for k, spec in enumerate(specs)
    ]
    head = replace(head, card={"together": parts, "classes": ["a", "b"]})
    if not sentence:
        check_explainable(head, tmp_path)
        return
    with pytest.raises(HeadError, match=f"{sentence}.*; without `explain` it predicts"):
        check_explainable(head, tmp_path)


@pytest.fixture
def bright(
    run: Run, make_photos: Callable[..., Path], tiny_weights: Path, tmp_path: Path
) -> tuple[Path, Path, Path]:
    """Photos, a cache that has 30 of them, and a head for a label."""
    folder = make_photos(30)
    table = pl.DataFrame(
        {
            "photo_id": [f"p{i:03}.jpg" for i in range(30)],
            "bright": ["yes" if i % 2 else "no" for i in range(30)],
        }
    )
    table.write_csv(tmp_path / "labels.csv")
    cache, out = tmp_path / "c", tmp_path / "head"
    name = f"local-dir:{tiny_weights}"
    assert run("extract", folder, "--cache", cache, "--backbone", name)[0] == 0
    words = ("--labels", tmp_path / "labels.csv", "--target", "bright", "--head", "logistic")
    assert run("fit-head", "--cache", cache, "--backbone", name, *words, "--out", out)[0] == 0
    return folder, cache, out


def test_predict_draws_a_picture_of_every_photo(
    run: Run, bright: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    folder, cache, head = bright
    few = tmp_path / "few"
    few.mkdir()
    for name in ("p001.jpg", "p002.jpg"):
        (few / name).write_bytes((folder / name).read_bytes())
    (few / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    words = ("--cache", cache, "--out", tmp_path / "p.csv", "--explain", tmp_path / "why")
    status, _, err = run("predict", head, few, *words)
    assert status == 0, err
    assert "wrote 2 pictures" in err
    assert "not a cause" in err
    names = sorted(path.name for path in (tmp_path / "why").iterdir())
    assert names == [".embedcache-files.json", "README.txt", "p001.jpg.png", "p002.jpg.png"]


def test_pictures_of_several_backbones_and_layers(
    run: Run, bright: tuple[Path, Path, Path], tiny_weights: Path, tmp_path: Path
) -> None:
    folder, cache, head = bright
    larger = tmp_path / "larger"
    larger.mkdir()
    config = (tiny_weights / "config.json").read_text()
    (larger / "config.json").write_text(config.replace("96", "128"))
    (larger / "model.safetensors").write_bytes((tiny_weights / "model.safetensors").read_bytes())
    names = [f"local-dir:{tiny_weights}#layer2,layer3", f"local-dir:{larger}", "local-dir:tiny"]
    words = [word for name in names for word in ("--backbone", name)]
    extract = ("extract", folder, "--cache", cache, *words[:4])
    assert run(*extract)[0] == 0
    labels = ("--labels", tmp_path / "labels.csv", "--target", "bright", "--head", "logistic")
    status, _, err = run("fit-head", "--cache", cache, *words, *labels, "--out", head)
    assert status == 0, err
    few = tmp_path / "few"
    few.mkdir()
    (few / "p001.jpg").write_bytes((folder / "p001.jpg").read_bytes())
    out = ("--cache", cache, "--out", tmp_path / "p.csv", "--explain", tmp_path / "why")
    status, _, err = run("predict", head / "logistic", few, *out)
    assert status == 0, err
    assert "wrote 1 picture" in err
    assert (tmp_path / "why" / "p001.jpg.png").exists()


def test_a_head_on_imported_vectors_has_no_picture(
    run: Run, make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_photos(30)
    ids = [f"p{i:03}.jpg" for i in range(30)]
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32))
    pl.DataFrame({"photo_id": ids}).write_csv(tmp_path / "ids.csv")
    pl.DataFrame({"photo_id": ids, "y": list(range(30))}).write_csv(tmp_path / "labels.csv")
    cache = tmp_path / "c"
    words = ("--ids", tmp_path / "ids.csv", "--photos", folder, "--name", "theirs")
    assert run("import", cache, tmp_path / "v.npy", *words)[0] == 0
    labels = ("--labels", tmp_path / "labels.csv", "--target", "y", "--head", "ridge")
    fit = ("fit-head", "--cache", cache, "--backbone", "theirs", *labels, "--out", tmp_path / "h")
    assert run(*fit)[0] == 0
    places = ("--cache", cache, "--out", tmp_path / "p.csv", "--explain", tmp_path / "why")
    status, out, err = run("predict", tmp_path / "h", folder, *places)
    assert (status, out) == (1, "")
    assert "computed elsewhere" in err
    assert "; without --explain it predicts" in err
    assert not (tmp_path / "why").exists()
    assert not (tmp_path / "p.csv").exists()
