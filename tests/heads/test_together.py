"""Several backbones under one head: side by side, each standardised for itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

import heads
from embedcache.errors import HeadError, LabelsError, NoSuchSpace, SpecMismatch
from embedcache.spec import foreign
from heads import dataset
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import CacheRows
from heads.fitting import linear
from heads.fitting.estimator import HeadRegressor
from heads.fitting.logistic import logistic
from heads.predict import predict
from heads.study import run as studies
from heads.study.design import NamedBackbone, Study
from tests.heads.study.studies import planted

if TYPE_CHECKING:
    from tests.heads.conftest import World

Run = Callable[..., tuple[int, str, str]]
QUICK: dict[str, Any] = {"epochs": 2, "hidden": 8, "resamples": 20}


@pytest.fixture
def wide(world: World) -> NDArray[np.float32]:
    """A second set of vectors, "wide", for all photos but u003 (failed) and u005 (absent)."""
    rng = np.random.default_rng(5)
    vectors = (1000 * rng.normal(size=(120, 30))).astype(np.float32)
    kept = [i for i in range(120) if i not in (3, 5)]
    with world.cache.space(foreign("wide", 30), create=True).writer(
        n_rows=120, name="wide", about={}
    ) as writer:
        writer.add(world.digests[kept], vectors[kept])
        writer.fail(world.digests[3:4], ["no_face"])
    return vectors


def test_vectors_stand_side_by_side_in_the_order_given(
    world: World, wide: NDArray[np.float32]
) -> None:
    for names, parts in (
        (["net", "wide"], (world.vectors, wide)),
        (["wide", "net"], (wide, world.vectors)),
    ):
        data = dataset.load(world.cache, names, world.labels, target="like_ratio")
        rows = [int(name[1:]) for name in data.ids]
        assert data.widths == tuple(part.shape[1] for part in parts)
        expected = np.concatenate([part[rows] for part in parts], axis=1)
        np.testing.assert_array_equal(data.vectors[np.arange(len(rows))], expected)
        assert data.provenance.backbone == " + ".join(names)
        assert data.provenance.dropped == {
            "no_face (wide)": 1,
            "without an imported vector (wide)": 1,
        }
    streamed = dataset.load(
        world.cache, names, world.labels, target="like_ratio", memory_bytes=1000
    )
    assert isinstance(streamed.vectors, CacheRows)
    np.testing.assert_array_equal(streamed.part("train").read(), data.part("train").read())


def test_one_backbone_in_a_list_is_that_backbone(world: World) -> None:
    alone = dataset.load(world.cache, "net", world.labels, target="like_ratio")
    listed = dataset.load(world.cache, ["net"], world.labels, target="like_ratio")
    assert listed.provenance == alone.provenance
    assert listed.widths == alone.widths == ()


def world_fit(run: Run, world: World, *names: str) -> tuple[int, str, str]:
    """fit-head on some backbones of the small world."""
    words = [word for name in names for word in ("--backbone", name)]
    labels = ("--labels", world.labels, "--target", "like_ratio", "--head", "ridge")
    return run(
        "fit-head", "--cache", world.cache.path, *words, *labels, "--out", world.labels.parent / "h"
    )


def test_a_backbone_named_twice_or_missing_is_refused(
    run: Run, world: World, wide: NDArray[np.float32]
) -> None:
    for names, word in ((["net", "net#9"], "no vectors of 'net#9'"), (["other"], "other")):
        with pytest.raises(NoSuchSpace, match=word):
            dataset.load(world.cache, names, world.labels, target="like_ratio")
    digest = world.cache.find("net").digest
    with pytest.raises(NoSuchSpace, match="the same vectors"):
        dataset.load(world.cache, ["net", f"net#{digest[:8]}"], world.labels, target="like_ratio")
    with pytest.raises(NoSuchSpace, match="'net' is named twice: name it once"):
        dataset.load(world.cache, ["net", "wide", "net"], world.labels, target="like_ratio")
    status, _, err = world_fit(run, world, "net", "net")
    assert (status, err.count("\n")) == (1, 1)
    assert "'net' is named twice" in err


def test_each_backbone_is_scaled_for_itself() -> None:
    rng = np.random.default_rng(0)
    small = rng.normal(size=(200, 5)) * 1e-3 * [1, 2, 3, 4, 5]
    large = rng.normal(size=(200, 40)) * 1e3
    target = 1000 * small.sum(1) + 0.1 * rng.normal(size=200)
    both = np.concatenate([small, large], 1)
    data = from_arrays(both, target, groups=range(200), widths=(5, 40))
    standard = linear.fit_standard(data.part("train"))
    centred = linear.centred(standard, data.widths)
    assert np.unique(centred.scale[:5]).size == np.unique(centred.scale[5:]).size == 1
    scaled = centred.apply(data.part("train").read())
    assert (scaled[:, :5] ** 2).mean() == pytest.approx(1, rel=1e-3)
    assert (scaled[:, 5:] ** 2).mean() == pytest.approx(1, rel=1e-3)
    alone = linear.centred(linear.fit_standard(from_arrays(small, target).part("train")))
    np.testing.assert_allclose(alone.scale, alone.scale[0])


@pytest.mark.parametrize("widths", [(3, 4), (5, 0), (13,)])
def test_widths_that_do_not_add_up_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(LabelsError, match="widths add up to"):
        from_arrays(np.ones((9, 5)), np.arange(9.0), widths=widths)


def test_the_head_remembers_every_spec_and_predicts_from_all(
    world: World, wide: NDArray[np.float32], tmp_path: Path
) -> None:
    data = dataset.load(world.cache, ["wide", "net"], world.labels, target="gender")
    folder = heads.fit(data, heads=["1fc"], **QUICK).save(tmp_path / "h")
    head = heads.load(folder)
    assert head.dim == 38
    card = head.card
    assert (card["backbone"], card["spec"]) == ("wide + net", None)
    assert card["spec_digest"] == " ".join(part["spec_digest"] for part in card["together"])
    assert [part["backbone"] for part in card["together"]] == ["wide", "net"]
    found = predict(folder, ["u009", "u003", "u005", "nobody"], world.cache)
    expected = head.predict(np.concatenate([wide[9:10], world.vectors[9:10]], 1))
    assert found.values[0] == pytest.approx(expected[0])
    assert found.reasons == (None, "no_face", "without an imported vector", "not in the cache")

    def embed(ids: Sequence[str]) -> None:
        assert ids == ["u005"]
        with world.cache.find("wide").writer(n_rows=1, name="wide", about={}) as writer:
            writer.add(world.digests[5:6], wide[5:6])

    assert predict(folder, ["u009", "u005"], world.cache, embed=embed).found.all()


def test_a_cache_without_one_of_the_specs_is_refused_by_its_name(
    world: World, wide: NDArray[np.float32], tmp_path: Path
) -> None:
    from embedcache.store.cache import Cache

    data = dataset.load(world.cache, ["net", "wide"], world.labels, target="gender")
    folder = heads.fit(data, heads=["logistic"], **QUICK).save(tmp_path / "h")
    other = Cache.open(tmp_path / "other", create=True)
    for name, dim in (("net", 8), ("wide", 31)):
        with other.space(foreign(name, dim), create=True).writer(
            n_rows=1, name=name, about={}
        ) as writer:
            writer.add(world.digests[:1], np.zeros((1, dim), np.float32))
    with pytest.raises(SpecMismatch, match="dim: 30, 31"):
        predict(folder, ["u000"], other)


@pytest.mark.parametrize("change", ["order", "digest", "name of a spec"])
def test_a_card_whose_parts_were_changed_is_refused(
    world: World, wide: NDArray[np.float32], tmp_path: Path, change: str
) -> None:
    from heads.documents import digest_of

    data = dataset.load(world.cache, ["net", "wide"], world.labels, target="gender")
    folder = heads.fit(data, heads=["logistic"], **QUICK).save(tmp_path / "h") / "logistic"
    card = json.loads((folder / "card.json").read_text())
    if change == "order":
        card["together"].reverse()
    elif change == "digest":
        card["together"][0]["spec_digest"] = "0" * 64
    else:
        card["together"][0]["spec"]["architecture"] = "other"
    card["digest"] = digest_of(card)
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(HeadError, match="do not belong together"):
        heads.load(folder)


def test_the_command_fits_and_predicts_with_both(
    world: World, wide: NDArray[np.float32], tmp_path: Path, run: Run
) -> None:
    words = ["--cache", world.cache.path, "--labels", world.labels, "--target", "like_ratio"]
    words += ["--head", "ridge", "--out", tmp_path / "h", "--json"]
    status, out, err = run("fit-head", *words, "--backbone", "net", "--backbone", "wide")
    assert status == 0, err
    found = json.loads(out)
    assert found["backbone"] == "net + wide"
    assert sum(found["dropped"].values()) == 2
    assert heads.load(tmp_path / "h").dim == 38


def test_the_estimator_takes_widths() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 12)) * np.repeat([1e-3, 1e3], 6)
    target = 1000 * rows[:, 0] + 0.1 * rng.normal(size=200)
    model = HeadRegressor(head="ridge", widths=(6, 6)).fit(rows, target)
    assert np.corrcoef(model.predict(rows), target)[0, 1] > 0.95
    with pytest.raises(LabelsError, match="widths add up"):
        HeadRegressor(head="ridge", widths=(6, 7)).fit(rows, target)
    assert model.get_params()["widths"] == (6, 6)


def sparse(n: int, dim: int) -> dataset.Dataset:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    score = vectors[:, :20].sum(1)
    return from_arrays(vectors, np.where(score > 0, "a", "b"), groups=range(n))


def test_logistic_among_rows_is_the_same_regression() -> None:
    data = sparse(150, 400)
    train, dev = data.part("train"), data.part("dev")
    standard = linear.fit_standard(train)
    found = logistic(train, dev, standard, outputs=1, strengths=(0.01,)).layer
    rows = standard.apply(train.read()).astype(float)
    model = LogisticRegression(C=0.01, tol=1e-10, max_iter=5000).fit(rows, train.targets[:, 0])
    assert found.weight[0] == pytest.approx(model.coef_, abs=1e-6)
    limited = logistic(
        train, dev, standard, outputs=1, strengths=(0.01,), memory_bytes=10_000
    ).layer
    assert limited.weight[0] == pytest.approx(found.weight[0], abs=1e-6)


def test_ten_thousand_columns_need_no_square_of_them() -> None:
    data = sparse(600, 10_000)
    train, dev = data.part("train"), data.part("dev")
    standard = linear.fit_standard(train)
    began = time.process_time()
    linear.ridge(replace(train, targets=train.targets + 0.0), dev, standard)
    logistic(train, dev, standard, outputs=1)
    assert time.process_time() - began < 40  # of a processor; the square takes minutes


def test_a_study_takes_several_backbones_as_one(tmp_path: Path) -> None:
    cache = planted(tmp_path)
    document = {
        "users": "users.csv",
        "swipes": "swipes.csv",
        "heads": ["ridge"],
        "protocols": ["warm"],
        "target": [{"column": "like_ratio", "weight": "swipes"}],
        "subset": [{"name": "1BBOX", "faces": 1}],
        "backbone": [{"name": "whole"}, {"name": ["whole", "net@face"], "label": "both"}],
    }
    study = Study.parse(document, folder=tmp_path)
    results = studies.run(study, cache, lambda _: None, tmp_path / "out")
    assert [fit.backbone for fit in results.fits] == ["whole", "both"]
    digests = [cache.find(name).digest for name in ("whole", "net@face")]
    assert [fit.spec for fit in results.fits] == [digests[0], " ".join(digests)]
    found = {fit.backbone: fit.row("ridge")["value"] for fit in results.fits}
    assert found["both"] < found["whole"]
    assert studies.run(study, cache, lambda _: None, tmp_path / "out").reused == 2
    turned = document | {"backbone": [{"name": ["net@face", "whole"], "label": "both"}]}
    again = studies.run(
        Study.parse(turned, folder=tmp_path), cache, lambda _: None, tmp_path / "out"
    )
    assert again.reused == 0


def test_several_backbones_of_a_study_have_a_name_and_see_faces() -> None:
    both = NamedBackbone(name=("local-dir:/a/net@face#layer1,layer2", "inception_v3.tf_in1k"))
    assert both.shown == "net@face layer1 layer2 + inception_v3.tf_in1k"
    assert both.sees_face
    assert not NamedBackbone(name="resnet18#layer1").sees_face
    assert NamedBackbone(name="facenet:vggface2#repeat_1").sees_face


def test_a_head_of_before_is_read_and_predicts(world: World, tmp_path: Path) -> None:
    """A card without `together`, as every version has written it."""
    data = dataset.load(world.cache, "net", world.labels, target="gender")
    folder = heads.fit(data, heads=["logistic"], **QUICK).save(tmp_path / "h")
    card = json.loads((folder / "logistic" / "card.json").read_text())
    assert "together" not in card
    assert "together" not in json.loads((folder / "fit.json").read_text())
    assert predict(folder, ["u001"], world.cache).found.all()
    assert isinstance(pl.read_csv(folder / "logistic" / "predictions.csv"), pl.DataFrame)
