"""Labels meet vectors by id; what cannot be used is dropped by reason or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from embedcache.errors import LabelsError
from embedcache.sharing.share import pull, push
from embedcache.store.cache import Cache
from heads import dataset
from heads.dataset.join import from_arrays
from heads.dataset.rows import CacheRows

if TYPE_CHECKING:
    from tests.heads.conftest import World


def load(world: World, path: Path | None = None, **options: object) -> dataset.Dataset:
    options = {"target": "like_ratio", "weight": "swipes"} | options
    return dataset.load(world.cache, "net", path or world.labels, **options)  # type: ignore[arg-type]


def test_rows_are_joined_by_id_whatever_their_order(world: World) -> None:
    table = pl.read_csv(world.labels).reverse()
    table.write_csv(world.labels)
    found = load(world)
    assert found.ids == tuple(reversed(world.ids))
    assert (found.vectors[np.arange(120)] == world.vectors[::-1]).all()
    assert found.targets == pytest.approx(table["like_ratio"].to_numpy())
    assert found.counts
    assert found.task == "regression"
    assert found.provenance.spec_digest == world.cache.find("net").digest
    assert sum(found.n.values()) == 120


def test_two_values_make_a_binary_task_whose_classes_are_remembered(world: World) -> None:
    found = load(world, target="gender", weight=None)
    assert found.task == "binary"
    assert found.classes == ("F", "M")
    assert set(found.targets) == {0.0, 1.0}


def test_photos_without_a_vector_are_dropped_and_counted_by_reason(world: World) -> None:
    failed = world.contents("broken")
    with world.cache.find("net").writer(n_rows=1, name="net", about={}) as writer:
        writer.fail(failed, ["truncated"])
    known = world.contents("later")
    world.cache.record_photos("photos", ["x1", "x2"], np.concatenate([failed, known]))
    ids = [*world.ids, "x1", "x2", "x3", "x4"]
    found = load(world, world.table(user_id=ids, score=range(124)), target="score", weight=None)
    assert found.provenance.dropped == {
        "truncated": 1,
        "not embedded yet": 1,
        "id not in the cache": 2,
    }
    assert found.ids == tuple(world.ids)


def test_a_pulled_cache_without_ids_says_how_it_gets_them(world: World, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    push(world.cache, str(shared))
    pulled = Cache.open(tmp_path / "pulled", create=True)
    pull(str(shared), pulled)
    with pytest.raises(LabelsError, match="stay home when vectors are shared") as told:
        dataset.load(pulled, "net", world.labels, target="like_ratio")
    command = f"'embedcache extract PHOTOS --cache {pulled.path} --backbone net' once"
    assert command in str(told.value)
    assert "--id-column" not in str(told.value)


def test_only_photos_with_one_face_are_kept_on_request(world: World) -> None:
    found = load(world, faces=1)
    assert len(found.ids) == 108
    assert found.provenance.dropped == {"2 faces": 12}


def test_equal_contents_and_equal_people_stand_on_one_side(world: World) -> None:
    twins = [f"twin{k}" for k in range(60)]
    world.cache.record_photos("photos", twins, world.digests[:60])
    ids = world.ids + twins
    person = [str(k // 3) for k in range(180)]
    path = world.table(user_id=ids, score=range(180), person=person)
    found = load(world, path, target="score", weight=None, split_by="person")
    side = dict(zip(found.ids, found.subset, strict=True))
    assert all(side[twin] == side[first] for twin, first in zip(twins, world.ids, strict=False))
    for value in set(person):
        assert len({side[i] for i, p in zip(ids, person, strict=True) if p == value}) == 1


def test_a_planted_duplicate_across_a_given_split_is_caught(world: World) -> None:
    world.cache.record_photos("photos", ["copy"], world.digests[:1])
    ids = [*world.ids, "copy"]
    path = world.table(user_id=ids, score=range(121), side=["train"] * 120 + ["test"])
    with pytest.raises(LabelsError, match=r"u000 \(train\), copy \(test\)"):
        load(world, path, target="score", weight=None, split_column="side")


def test_ids_of_digits_stay_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user_id,x\n007,1\n")
    assert dataset.read_table(tmp_path / "t.csv", text=["user_id"])["user_id"].to_list() == ["007"]


def test_parquet_and_csv_tables_read_the_same(world: World) -> None:
    table = dataset.read_table(world.labels)
    table.write_parquet(world.labels.with_suffix(".parquet"))
    assert dataset.read_table(world.labels.with_suffix(".parquet")).equals(table)


def test_vectors_larger_than_the_limit_stay_in_the_cache(world: World) -> None:
    lazy = load(world, memory_bytes=100)
    rows = np.array([5, 2, 90])
    assert isinstance(lazy.vectors, CacheRows)
    assert (lazy.vectors[rows] == world.vectors[rows]).all()


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"score": [1] * 120}, {"target": "love"}, "no column 'love'; it has user_id, score"),
        ({"score": [1] * 119 + [""]}, {}, r"1 of 120 .* no usable 'score'.*u119"),
        ({"score": ["NaN"] + [1.5] * 119}, {}, r"1 of 120 .* no usable 'score'.*u000"),
        ({"score": ["F"] * 120}, {}, "same score, 'F'; a classifier needs two"),
        ({"score": range(120)}, {"task": "binary"}, "two classes; 'score' has 120"),
        ({"score": ["a", "b"] * 60}, {"task": "regression"}, "needs numbers; 'score' holds 'a'"),
        ({"score": [f"c{k}" for k in range(120)]}, {}, "too many for classes"),
        ({"score": range(120), "w": [0] * 120}, {"weight": "w"}, "all weights in 'w' are zero"),
        ({"score": range(120), "w": [-1] * 120}, {"weight": "w"}, "negative or missing"),
        ({"score": range(120), "w": ["", *[1] * 119]}, {"weight": "w"}, "negative or missing"),
        ({"score": range(120), "w": ["x"] * 120}, {"weight": "w"}, "weights are numbers"),
        ({"score": range(120)}, {"faces": 7}, "exactly 7 face"),
        ({"score": range(120)}, {"task": "ranking"}, "task is one of auto"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_words(
    world: World, columns: dict[str, list[object]], options: dict[str, str], message: str
) -> None:
    path = world.table(user_id=world.ids, **columns)
    with pytest.raises(LabelsError, match=message):
        load(world, path, **({"target": "score", "weight": None} | options))


def test_labels_that_match_no_photo_show_ids_of_both_sides(world: World) -> None:
    path = world.table(user_id=["a.jpg", "b.jpg"], score=[1, 2])
    with pytest.raises(LabelsError, match=r"like 'a.jpg', 'b.jpg'; the cache has 'u0"):
        load(world, path, target="score", weight=None)


def test_an_id_with_two_labels_is_refused(world: World) -> None:
    path = world.table(user_id=["u000", "u000"], score=[1, 2])
    with pytest.raises(LabelsError, match=r"more than one row.*'u000'"):
        load(world, path, target="score", weight=None)


@pytest.mark.parametrize(
    ("name", "message"), [("no.csv", "no label table"), ("t.xls", "is a .csv")]
)
def test_a_table_that_is_not_there_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(LabelsError, match=message):
        dataset.read_table(tmp_path / name)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LabelsError, match="as many targets"):
        from_arrays(np.ones((3, 2)), [1.0, 2.0])
    with pytest.raises(LabelsError, match="hold NaN"):
        from_arrays([[1.0, float("nan")]], [1.0])
    with pytest.raises(LabelsError, match="as many weights"):
        from_arrays(np.ones((2, 2)), [1.0, 2.0], weights=[1.0])


def test_rows_with_equal_vectors_are_one_group() -> None:
    found = from_arrays([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]], [0.0, 5.0, 2.0])
    assert found.groups[0] == found.groups[2] != found.groups[1]
