"""Predictions through the cache, and only with the vectors that the head knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import heads
from embedcache.errors import HeadError, NoSuchSpace, SpecMismatch
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from heads import dataset
from heads.predict import check_sortable, predict

if TYPE_CHECKING:
    from tests.heads.conftest import World


@pytest.fixture
def saved(world: World, tmp_path: Path) -> Path:
    data = dataset.load(world.cache, "net", world.labels, target="gender")
    fit = heads.fit(data, heads=["1fc"], epochs=3, hidden=8, resamples=20)
    return fit.save(tmp_path / "gender")


def test_predictions_come_in_the_order_asked_for_with_reasons(world: World, saved: Path) -> None:
    found = predict(saved, ["u007", "stranger", "u003"], world.cache)
    assert found.found.tolist() == [True, False, True]
    assert found.reasons == (None, "not in the cache", None)
    expected = heads.load(saved).predict(world.vectors[[7, 3]])
    assert found.values[[0, 2]] == pytest.approx(expected)
    assert np.isnan(found.values[1])
    assert str(found).startswith("2 photos predicted")


def test_the_best_come_first_with_their_ids_and_those_without_a_score_last(
    world: World, saved: Path, tmp_path: Path
) -> None:
    asked = ["u007", "stranger", "u003", "u003", "u010", "nobody"]
    found = predict(saved, asked, world.cache)
    best = found.best_first()
    assert sorted(best.ids) == sorted(asked)
    assert best.ids[-2:] == ("stranger", "nobody")
    assert best.reasons[-1] == "not in the cache"
    assert (np.diff(best.values[:4]) <= 0).all()
    one = dict(zip(found.ids, found.values, strict=True))
    assert all(one[i] == value for i, value in zip(best.ids[:4], best.values[:4], strict=True))
    best.write(tmp_path / "p.csv")
    assert [line.split(",")[0] for line in (tmp_path / "p.csv").read_text().splitlines()] == [
        "photo_id",
        *best.ids,
    ]


def test_several_scores_have_no_order(world: World, tmp_path: Path) -> None:
    kinds = np.array(["a", "b", "c"])[np.arange(len(world.ids)) % 3]
    table = world.table(user_id=world.ids, kind=kinds.tolist())
    data = dataset.load(world.cache, "net", table, target="kind")
    folder = heads.fit(data, heads=["logistic"]).save(tmp_path / "kind")
    with pytest.raises(HeadError, match="gives 3 scores a photo: prediction_a, prediction_b"):
        check_sortable(heads.load(folder))


def test_photos_without_a_vector_are_embedded_through_the_function_handed_in(
    world: World, saved: Path
) -> None:
    new = world.contents("new")
    asked: list[list[str]] = []

    def embed(ids: Sequence[str]) -> None:
        asked.append(list(ids))
        world.cache.record_photos("photos", ["new"], new)
        with world.cache.find("net").writer(n_rows=1, name="net", about={}) as writer:
            writer.add(new, world.vectors[:1])

    found = predict(saved, ["u001", "new"], world.cache, embed=embed)
    assert asked == [["new"]]
    assert found.found.all()
    assert found.values[1] == pytest.approx(heads.load(saved).predict(world.vectors[:1])[0])
    predict(saved, ["u001", "new"], world.cache, embed=embed)
    assert len(asked) == 1


def test_vectors_of_another_spec_are_refused_field_by_field(saved: Path, tmp_path: Path) -> None:
    other = Cache.open(tmp_path / "other.cache", create=True)
    with pytest.raises(NoSuchSpace):
        predict(saved, ["a"], other)
    space = other.space(foreign("net2", 8), create=True)
    digest = np.zeros((1, 32), np.uint8)
    with space.writer(n_rows=1, name="net", about={}) as writer:
        writer.add(digest, np.zeros((1, 8), np.float32))
    with pytest.raises(SpecMismatch, match="architecture: 'net', 'net2'"):
        predict(saved, ["a"], other)


def test_a_head_fitted_on_an_array_says_how_to_use_it(world: World, tmp_path: Path) -> None:
    data = dataset.from_arrays(world.vectors, world.vectors[:, 0], groups=range(120))
    folder = heads.fit(data, heads=["ridge"], resamples=20).save(tmp_path / "array")
    with pytest.raises(HeadError, match="was fitted on an array"):
        predict(folder, ["u001"], world.cache)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_only_predictions_are_replaced_by_predictions(
    world: World, saved: Path, tmp_path: Path, suffix: str
) -> None:
    found = predict(saved, ["u007", "u003"], world.cache)
    out = tmp_path / f"p{suffix}"
    found.write(out)
    found.write(out)
    labels = tmp_path / f"labels{suffix}"
    labels.write_bytes(world.labels.read_bytes())
    with pytest.raises(HeadError, match="something other than predictions"):
        found.write(labels)
    assert labels.read_bytes() == world.labels.read_bytes()
