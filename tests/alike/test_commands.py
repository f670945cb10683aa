"""`similar` and `duplicates` as they are typed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.store import Cache
from tests.alike import copies

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def filled(run: Run, tiny_weights: Path, tmp_path: Path) -> tuple[Path, str, Path]:
    """A cache of 60 photos, an exact copy of one, and near-copies of nine."""
    photos = tmp_path / "photos"
    made = copies.make(photos, 60)
    shutil.copy(made[5], photos / "again.jpg")
    copies.plant(made[20:29], photos)
    cache, name = tmp_path / "c.cache", f"local-dir:{tiny_weights}"
    status, _, err = run("extract", photos, "--cache", cache, "--backbone", name)
    assert status == 0, err
    return cache, name, photos


def answer(run: Run, *words: object) -> dict[str, Any]:
    status, out, err = run(*words, "--json")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_photo_is_not_its_own_match_and_its_copy_is(
    run: Run, filled: tuple[Path, str, Path]
) -> None:
    cache, name, photos = filled
    by_id = answer(run, "similar", cache, "p005.jpg", "--backbone", name, "--top", 3)
    assert by_id["matches"][0] == {"id": "again.jpg", "similarity": pytest.approx(1, abs=1e-6)}
    assert len(by_id["matches"]) == 3
    assert "p005.jpg" not in {match["id"] for match in by_id["matches"]}
    by_file = answer(run, "similar", cache, photos / "p005.jpg", "--backbone", name, "--top", 3)
    assert by_file == by_id


def test_the_nearest_are_those_of_all_cosines(run: Run, filled: tuple[Path, str, Path]) -> None:
    cache, name, _ = filled
    opened = Cache.open(cache)
    ids = sorted(opened.photo_table().ids)
    vectors, found = opened.vectors(name, ids)
    assert found.all()
    whole = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = whole @ whole[ids.index("p011.jpg")]
    expected = [ids[i] for i in np.argsort(-cosine) if ids[i] != "p011.jpg"][:7]
    got = answer(run, "similar", cache, "p011.jpg", "--backbone", name, "--top", 7)["matches"]
    assert [match["id"] for match in got] == expected


def test_a_new_file_is_embedded_and_nothing_is_stored(
    run: Run, filled: tuple[Path, str, Path], tmp_path: Path
) -> None:
    cache, name, photos = filled
    copies.resized(photos / "p040.jpg", tmp_path / "new.jpg")
    before = {p: p.read_bytes() for p in cache.rglob("*") if p.is_file()}
    found = answer(run, "similar", cache, tmp_path / "new.jpg", "--backbone", name)
    assert found["photo"] is None
    assert found["matches"][0]["id"] == "p040.jpg"
    after = {p: p.read_bytes() for p in cache.rglob("*") if p.is_file()}
    assert {p for p in after if after[p] != before.get(p)} <= {cache / "local" / "specs.json"}
    assert before.keys() <= after.keys()


def test_a_forgotten_photo_is_nobodys_match(run: Run, filled: tuple[Path, str, Path]) -> None:
    cache, name, photos = filled
    groups = answer(run, "duplicates", cache, "--backbone", name, "--photos", photos)["groups"]
    assert any("again.jpg" in group for group in groups)
    assert run("forget", cache, "again.jpg")[0] == 0
    again = answer(run, "duplicates", cache, "--backbone", name)
    assert not any("again.jpg" in group for group in again["groups"])
    found = answer(run, "similar", cache, "p005.jpg", "--backbone", name, "--top", 99)
    assert "again.jpg" not in {match["id"] for match in found["matches"]}
    content = copies_of(photos / "p021.jpg")
    assert run("forget", cache, "p021.jpg")[0] == 0
    for file in cache.rglob("*"):
        if file.is_file() and "tombstones" not in file.parts:
            assert content not in file.read_bytes(), file


def test_a_forgotten_photo_is_not_embedded_to_be_compared(
    run: Run, filled: tuple[Path, str, Path]
) -> None:
    cache, name, photos = filled
    assert run("forget", cache, "p030.jpg")[0] == 0
    renamed = photos.parent / "renamed.jpg"
    shutil.copy(photos / "p030.jpg", renamed)
    status, out, err = run("similar", cache, renamed, "--backbone", name)
    assert (status, out) == (1, "")
    assert "was forgotten" in err


def copies_of(path: Path) -> bytes:
    import hashlib

    return hashlib.sha256(path.read_bytes()).digest()


def test_planted_copies_are_found_at_the_measured_threshold(
    run: Run, filled: tuple[Path, str, Path]
) -> None:
    cache, name, photos = filled
    found = answer(run, "duplicates", cache, "--backbone", name, "--photos", photos)
    assert found["measured"]["source"] == "measured"
    assert found["threshold"] == found["measured"]["value"]
    assert all(found["measured"]["recall"][k] >= 0.99 for k in ("quality 60", "size 80 %"))
    group_of = {one: i for i, group in enumerate(found["groups"]) for one in group}
    assert group_of["again.jpg"] == group_of["p005.jpg"]
    planted = [path.name for path in photos.glob("*-p*.jpg")]
    assert len(planted) == 9
    for copy in planted:
        assert group_of[copy] == group_of[copy.partition("-")[2]]


def test_exact_copies_are_found_at_a_threshold_of_1(
    run: Run, filled: tuple[Path, str, Path]
) -> None:
    cache, name, _ = filled
    found = answer(run, "duplicates", cache, "--backbone", name, "--threshold", 1)
    assert found["groups"] == [["again.jpg", "p005.jpg"]]
    assert found["exact"] == [0]
    assert (found["threshold"], found["measured"]["source"]) == (1, "given")


def test_without_the_photos_the_default_is_used_and_says_why(
    run: Run, filled: tuple[Path, str, Path]
) -> None:
    cache, name, photos = filled
    shutil.rmtree(photos)
    shutil.rmtree(cache / "local" / "memory", ignore_errors=True)
    status, out, err = run("duplicates", cache, "--backbone", name)
    assert status == 0, err
    assert "the default, because only 0 of 69 photos can be found on this machine" in out
    assert "does not tell all near-duplicates from other photos" in out  # a random network at 0.95


def test_the_threshold_is_kept_and_holds_no_photo(
    run: Run, filled: tuple[Path, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, name, photos = filled
    first = answer(run, "duplicates", cache, "--backbone", name, "--photos", photos)
    from embedcache.alike import embed, linking

    monkeypatch.setattr(embed.Embedder, "of", lambda *_, **__: pytest.fail("embedded again"))
    monkeypatch.setattr(linking, "link", lambda *_, **__: pytest.fail("compared again"))
    monkeypatch.setattr("embedcache.alike.groups.link", linking.link)
    assert answer(run, "duplicates", cache, "--backbone", name) == first
    [kept] = (cache / "local" / "alike").glob("*.json")
    text = kept.read_text()
    assert ".jpg" not in text
    assert all(path.name not in text for path in photos.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("similar", "nobody.jpg"), "no photo id"),
        (("duplicates", "--threshold", "0"), "above 0"),
        (("duplicates", "--backbone", "other"), "has no vectors of 'other'"),
    ],
)
def test_a_mistake_is_one_message(
    run: Run, filled: tuple[Path, str, Path], words: tuple[str, ...], message: str
) -> None:
    cache, name, _ = filled
    backbone = () if "--backbone" in words else ("--backbone", name)
    status, _, err = run(words[0], cache, *words[1:], *backbone)
    assert status == 1
    assert message in err
    assert "Traceback" not in err


def test_a_backbone_that_was_forgotten_has_no_groups_and_is_not_offered(
    run: Run, filled: tuple[Path, str, Path], tmp_path: Path
) -> None:
    cache, name, photos = filled
    np.save(tmp_path / "v.npy", np.eye(3, 4, dtype=np.float32))
    (tmp_path / "ids.csv").write_text("photo_id\np001.jpg\np002.jpg\np003.jpg\n")
    words = ("--ids", tmp_path / "ids.csv", "--photos", photos, "--name", "theirs")
    assert run("import", cache, tmp_path / "v.npy", *words)[0] == 0
    assert run("forget", cache, "--space", name)[0] == 0
    for command in (("duplicates", cache), ("similar", cache, "p001.jpg")):
        status, out, err = run(*command, "--backbone", name)
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert f"has no vectors of '{name}'" in err
        assert "'embedcache extract'" in err
    status, _, err = run("duplicates", cache, "--backbone", "other")
    assert (status, "local-dir:tiny" in err) == (1, False)
    assert "it holds theirs#" in err
    assert run("forget", cache, "--space", "theirs")[0] == 0
    assert "it holds no vectors" in run("duplicates", cache, "--backbone", "other")[2]


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("local-dir:{}/nonexist", "there is no folder {}/nonexist"),
        ("local-dir:{}/nonexist@face#layer1", "there is no folder {}/nonexist"),
        ("facenet:{}/two.pt", "there is no file {}/two.pt"),
        ("local-dir:nonexist", ""),
        ("facenet:casia-webface", ""),
    ],
)
def test_weights_that_are_not_there_are_pointed_out(
    run: Run, filled: tuple[Path, str, Path], tmp_path: Path, name: str, there: str
) -> None:
    status, _, err = run("similar", filled[0], "p001.jpg", "--backbone", name.format(tmp_path))
    assert (status, err.count("\n")) == (1, 1)
    assert "has no vectors of" in err
    assert ("there is no" in err) == bool(there)
    assert there.format(tmp_path) in err


def test_an_interrupted_run_keeps_nothing_half_done_and_the_next_one_ends(
    run: Run, filled: tuple[Path, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, name, photos = filled
    words = ("duplicates", cache, "--backbone", name, "--photos", photos)
    with monkeypatch.context() as patch:
        patch.setattr("embedcache.alike.embed.cut", interrupt)
        assert run(*words)[0] == 130
    assert not [*(cache / "local").glob("alike/*")]
    with monkeypatch.context() as patch:
        patch.setattr("embedcache.alike.groups.link", interrupt)
        assert run(*words)[0] == 130
    assert [path.suffix for path in (cache / "local").glob("alike/*")] == [".json"]
    assert run(*words)[0] == 0


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_photo_forgotten_while_photos_are_compared_is_in_no_group_and_in_no_file(
    run: Run, filled: tuple[Path, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedcache.alike import linking
    from embedcache.upkeep.forgetting import forget

    cache, name, photos = filled
    gone = copies_of(photos / "again.jpg")

    def meanwhile(*words: Any, **options: Any) -> linking.Links:
        found = linking.link(*words, **options)
        forget(Cache.open(cache), ["p020.jpg", "p005.jpg", "again.jpg"])
        return found

    monkeypatch.setattr("embedcache.alike.groups.link", meanwhile)
    words = ("duplicates", cache, "--backbone", name, "--photos", photos)
    shown = {one for group in answer(run, *words)["groups"] for one in group}
    assert not shown & {"p020.jpg", "p005.jpg", "again.jpg"}
    assert not [*(cache / "local").rglob("*.groups")]
    assert all(gone not in path.read_bytes() for path in (cache / "local").glob("alike/*"))


def test_a_table_of_the_same_files_makes_no_photo_its_own_copy(
    run: Run, filled: tuple[Path, str, Path], tmp_path: Path
) -> None:
    cache, name, photos = filled
    table = tmp_path / "users.csv"
    rows = [f"u{i},photos/{path.name}" for i, path in enumerate(sorted(photos.iterdir()))]
    table.write_text("\n".join(["user_id,photo", *rows]) + "\n")
    assert run("extract", table, "--cache", cache, "--backbone", name)[0] == 0
    found = answer(run, "duplicates", cache, "--backbone", name, "--threshold", 1)
    assert [len(group) for group in found["groups"]] == [2]  # again.jpg and p005.jpg, named once
    assert found["photos"] == len(rows)


def test_a_copy_in_another_folder_is_a_copy(
    run: Run, filled: tuple[Path, str, Path], tmp_path: Path
) -> None:
    cache, name, photos = filled
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "p007.jpg", tmp_path / "more" / "other.jpg")
    assert run("extract", tmp_path / "more", "--cache", cache, "--backbone", name)[0] == 0
    found = answer(run, "duplicates", cache, "--backbone", name, "--threshold", 1)
    assert found["groups"] == [["again.jpg", "p005.jpg"], ["other.jpg", "p007.jpg"]]
