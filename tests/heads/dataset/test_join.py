"""Labels meet vectors by id; what cannot be used is dropped by reason or refused in words."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from embedcache.errors import LabelsError
from embedcache.sharing.share import pull, push
from embedcache.store.cache import Cache
from heads import dataset
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import CacheRows
from heads.dataset.targets import parse_targets

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
        "without an imported vector": 1,
        "id not in the cache": 2,
    }
    assert found.ids == tuple(world.ids)


def test_a_pulled_cache_without_ids_says_how_it_gets_them(world: World, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    push(world.cache, str(shared))
    pulled = Cache.open(tmp_path / "pulled", create=True)
    pull(str(shared), pulled)
    with pytest.raises(LabelsError, match="ids are not shared by default") as caught:
        dataset.load(pulled, "net", world.labels, target="like_ratio")
    command = f"'embedcache extract PHOTOS --cache {pulled.path} --backbone net' once"
    assert command in str(caught.value)
    assert "--id-column" not in str(caught.value)


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


def test_a_data_frame_gives_the_dataset_of_its_file(world: World) -> None:
    expected = load(world)
    polars = pl.read_csv(world.labels)
    pandas = pytest.importorskip("pandas").read_csv(world.labels)
    for frame in (polars, pandas, pandas.set_index("user_id")):
        found = dataset.load(world.cache, "net", frame, target="like_ratio", weight="swipes")
        assert found.ids == expected.ids
        assert (found.targets == expected.targets).all()
        assert (found.subset == expected.subset).all()
        assert found.provenance.split == expected.provenance.split
        assert found.provenance.labels_name == "the DataFrame"
    assert dataset.read_table(pandas).equals(polars)
    with pytest.raises(LabelsError, match="the DataFrame has no column 'size'; it has user_id"):
        dataset.load(world.cache, "net", pandas, target="size")
    with pytest.raises(LabelsError, match="or a polars or pandas DataFrame; got a dict"):
        dataset.load(world.cache, "net", {"user_id": []}, target="size")  # type: ignore[arg-type]


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
def test_a_table_that_cannot_be_used_is_refused_with_a_reason(
    world: World, columns: dict[str, list[object]], options: dict[str, str], message: str
) -> None:
    path = world.table(user_id=world.ids, **columns)
    with pytest.raises(LabelsError, match=message):
        load(world, path, **({"target": "score", "weight": None} | options))


@pytest.mark.parametrize("spelling", ["NA", "nan", "NULL", "#N/A", "n/a", "None", " "])
def test_a_missing_label_is_no_class_in_any_spelling(world: World, spelling: str) -> None:
    path = world.table(user_id=world.ids, g=["F", "M"] * 59 + [spelling, "F"])
    shown = "is empty" if spelling == " " else f"has '{spelling}'"
    message = rf"1 of 120 .* no usable 'g' \(first: u118 {shown}\).*`drop_missing`"
    with pytest.raises(LabelsError, match=message):
        load(world, path, target="g", weight=None)
    kept = load(world, path, target="g", weight=None, drop_missing=True)
    assert kept.provenance.dropped == {"no g": 1}
    assert kept.class_counts == {"F": 60, "M": 59}
    assert "u118" not in kept.ids


def test_blanks_around_classes_and_ids_are_stripped(world: World) -> None:
    path = world.table(user_id=[f"{i} " for i in world.ids], g=["F", "F ", " M", "M"] * 30)
    assert load(world, path, target="g", weight=None).class_counts == {"F": 60, "M": 60}


def test_percents_and_decimal_commas_are_numbers_and_noted(world: World) -> None:
    path = world.table(user_id=world.ids, a=["45%", "50%"] * 60, b=["3,5", "4,25"] * 60)
    found = load(world, path, target=["a", "b"], weight=None)
    assert found.targets[:2].tolist() == [[0.45, 3.5], [0.5, 4.25]]
    assert "a: '45%' is read as 0.45" in found.notes
    assert "b: '3,5' is read as 3.5" in found.notes


def test_a_text_among_numbers_is_named(world: World) -> None:
    path = world.table(user_id=world.ids, r=[str(k) for k in range(119)] + ["abc"])
    for task in ("auto", "regression"):
        with pytest.raises(
            LabelsError, match=r"1 of 120 cells of 'r' is not a number.*u119 has 'a"
        ):
            load(world, path, target="r", weight=None, task=task)


def test_a_note_says_that_few_whole_numbers_are_fitted_as_numbers(world: World) -> None:
    path = world.table(user_id=world.ids, stars=[1, 2, 3, 4] * 30, age=[*range(20, 80)] * 2)
    (note,) = load(world, path, target="stars", weight=None).notes
    assert "4 whole numbers (1, 2, 3, 4) and is fitted as a number" in note
    assert "`task='multiclass'`" in note
    assert load(world, path, target="age", weight=None).notes == ()
    assert load(world, path, target="stars", weight=None, task="multiclass").notes == ()


def test_rows_without_a_person_stand_alone_and_are_counted(world: World) -> None:
    people = ["ann", "ann", "", "NA", "nan", "None"] * 20
    path = world.table(user_id=world.ids, score=range(120), who=people)
    found = load(world, path, target="score", weight=None, split_by="who")
    assert "80 rows have no 'who': each is a group of its own" in found.notes
    groups = found.groups[[who != "ann" for who in people]]
    assert len(set(groups.tolist())) == 80
    assert found.n["train"] < 120


def test_photos_of_one_class_are_a_warning_where_the_table_has_more(world: World) -> None:
    ids = [*world.ids, *(f"later{k}" for k in range(80))]
    path = world.table(user_id=ids, g=["F"] * 120 + ["M"] * 80)
    found = load(world, path, target="g", weight=None)
    assert found.class_counts == {"F": 120, "M": 0}
    assert any("all 120 labelled photos with a vector are 'F'" in note for note in found.notes)


def test_ids_that_an_import_recorded_do_not_hide_photos_that_a_folder_did(world: World) -> None:
    files = [f"{name}.jpg" for name in world.ids]
    digests, _ = world.cache.digests_of(world.ids)
    world.cache.record_photos("folder", files, digests)
    table = [f"x{i}" if i % 2 else name for i, name in enumerate(world.ids)]
    renamed = [f"{name}.jpg" for name in table]
    world.cache.record_photos("elsewhere", renamed, digests)
    found = load(world, world.table(user_id=table, score=range(120)), target="score", weight=None)
    assert len(found.ids) == 120
    assert not found.provenance.dropped
    assert found.notes == (
        "ids are joined by path without suffix: 'x1' is 'x1.jpg' (60 of 120 rows)",
    )


def test_ids_meet_by_file_name_and_a_note_says_so(world: World) -> None:
    path = world.table(user_id=[f"photos/{i}.jpg" for i in world.ids], score=range(120))
    found = load(world, path, target="score", weight=None)
    (note,) = found.notes
    assert note.startswith("ids are joined by file name without suffix: 'photos/u000.jpg' is 'u000")
    assert (found.vectors[np.arange(120)] == world.vectors).all()
    few = world.table(user_id=["u000", *(f"x{k}" for k in range(119))], score=range(120))
    assert load(world, few, target="score", weight=None).ids == ("u000",)


def test_the_id_column_is_the_one_that_meets_the_cache(world: World) -> None:
    path = world.table(photo_id=range(120), user_id=world.ids, score=range(120))
    found = load(world, path, target="score", weight=None)
    assert found.ids == tuple(world.ids)
    assert "other.csv: the ids are in column 'user_id'" in found.notes
    path = world.table(name=world.ids, score=range(120))
    with pytest.raises(LabelsError, match=r"no column photo_id, user_id or id; it has name, score"):
        load(world, path, target="score", weight=None)


def test_ids_of_bytes_and_lists_are_text_or_one_message(world: World, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    raw = [i.encode() for i in world.ids]
    pl.DataFrame({"user_id": raw, "score": range(120)}).write_parquet(path)
    assert load(world, path, target="score", weight=None).ids == tuple(world.ids)
    pl.DataFrame({"user_id": [[i] for i in world.ids], "score": range(120)}).write_parquet(path)
    with pytest.raises(LabelsError, match=r"'user_id' of t.parquet holds List"):
        load(world, path, target="score", weight=None)
    pl.DataFrame({"user_id": world.ids, "score": [[1.0]] * 120}).write_parquet(path)
    with pytest.raises(LabelsError, match=r"'score' holds List"):
        load(world, path, target="score", weight=None)


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
    with pytest.raises(LabelsError, match="1 vector holds NaN"):
        from_arrays([[1.0, float("nan")]], [1.0])
    with pytest.raises(LabelsError, match="as many weights"):
        from_arrays(np.ones((2, 2)), [1.0, 2.0], weights=[1.0])


def test_rows_with_equal_vectors_are_one_group() -> None:
    found = from_arrays([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]], [0.0, 5.0, 2.0])
    assert found.groups[0] == found.groups[2] != found.groups[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ids": ["a", "b"]}, "4 vectors need as many ids; got 2"),
        ({"ids": ["a", "b", "a", "c"]}, "ids name one row each; 'a' stands twice"),
        ({"groups": [1, 2, 3]}, "4 vectors need as many groups; got 3"),
        ({"subset": [0, 1, 2]}, "4 vectors need as many sides; got 3"),
        ({"subset": [0, 1, 2, 3]}, "a subset is 0 .train., 1 .dev. or 2 .test. for each row"),
        ({"subset": [0.5, 1, 2, 0]}, "a subset is 0"),
        ({"subset": [0, 1, 2, 0], "groups": ["p", "q", "p", "r"]}, "splits 1 group.*0 .train."),
        ({"subset": [0, 0, 1, 2]}, "splits 1 group.s. of the same person or the same photo"),
        ({"weights": [1, 1, 1, 1e300]}, "weights in '' lie between 1e-20 and 1e.20"),
        ({"weights": [1, 1, 1, 1e-300]}, "weights in '' lie between"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(
    given: dict[str, object], message: str
) -> None:
    vectors = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [3.0, 4.0]])  # rows 1 and 3 are one
    with pytest.raises(LabelsError, match=message):
        from_arrays(vectors, [1.0, 2.0, 3.0, 4.0], **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "days",
    [
        ["2024-01-02", "2024-03-04"],
        ["2024-01-02T10:00:00Z", "2024-03-04 11:12"],
        ["2.1.2024", "14.12.2024"],
        ["1/2/24", "12/31/24"],
        ["3 May 2024", "13 June 2025"],
        [date(2024, 1, 2), date(2024, 3, 4)],
        [datetime(2024, 1, 2, 3), datetime(2024, 3, 4, 5)],
    ],
)
@pytest.mark.parametrize("task", ["auto", "multiclass", "regression"])
def test_dates_are_no_classes(days: list[Any], task: str) -> None:
    column = pl.Series("joined", days * 3)
    with pytest.raises(LabelsError, match=r"'joined' holds dates \(first: a has '?(20|2|1|3)") as e:
        parse_targets([column], list("abcdef"), task)
    assert "days since" in str(e.value)


def test_what_is_not_all_dates_may_be_classes() -> None:
    column = pl.Series("version", ["1.2.2024", "beta", "beta", "1.2.2024"])
    assert parse_targets([column], list("abcd"), "auto").classes == ("1.2.2024", "beta")
    numbers = pl.Series("year", ["2023", "2024"] * 2)
    assert parse_targets([numbers], list("abcd"), "auto").classes == ("2023", "2024")
