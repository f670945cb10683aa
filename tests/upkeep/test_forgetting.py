"""Forgetting: every trace goes, and nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedcache.errors import CacheError
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, OK
from embedcache.store.history import History
from embedcache.store.tombstones import Marks
from embedcache.upkeep.forgetting import forget, forget_forgotten
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.stores import DETECTOR, fill, model, photos
from tests.upkeep.caches import SPEC, make


def test_forgetting_removes_every_trace_and_says_which_refs_changed(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", *range(10))
    (cache.local / "digests.npz").write_bytes(b"paths")
    copy = shutil.copytree(cache.path, tmp_path / "copy")
    write_ref(cache, "table-2")
    fill(cache.space(SPEC), photos(10))
    write_ref(cache, "all")
    told = forget(cache, ["p3"])
    assert (told.ids, told.contents, told.rows) == (1, 1, 2)
    assert told.refs == ("all", "table-2")
    everything = b"".join(p.read_bytes() for p in cache.path.rglob("*") if p.is_file())
    assert photos(3).tobytes() not in everything
    assert model(photos(3)).tobytes() not in everything
    assert b"p3" not in everything
    assert not (cache.local / "digests.npz").exists()
    rest = photos(0, 1, 2, 4, 5, 6, 7, 8, 9)
    for seen in (cache, Cache.open(cache.path, ref="table-2")):
        assert (seen.space(SPEC).read(rest)[0] == model(rest)).all()
        assert seen.space(SPEC).status(photos(3)).tolist() == [ABSENT]
        assert seen.face_space(DETECTOR).status(photos(3, 4)).tolist() == [ABSENT, OK]
        assert not seen.digests_of(["p3"])[1].any()
    assert verify(cache).clean
    back = merge(cache, [Cache.open(copy)], with_ids=True)
    assert (back.rows, back.withheld, back.ids) == (0, 2, 0)
    assert cache.space(SPEC).status(photos(3)).tolist() == [ABSENT]
    with pytest.raises(CacheError, match="knows no photo id or sha256 'p3'"):
        forget(cache, ["p3"])


def test_forgetting_keeps_the_newest_of_others_the_newest(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    cache.record_photos("folder", ["p2"], photos(22))
    forget(cache, ["p1"])
    assert (cache.digests_of(["p2"])[0] == photos(22)).all()


TIME = "20300101T000000000000"


def recorded(path: Path, *parts: tuple[str, dict[str, int]], scope: str = "folder") -> Cache:
    """A cache of segments of photo ids that were all recorded in one microsecond."""
    cache = Cache.open(path, create=True)
    for digits, pairs in parts:
        cache.photo_ids.write(
            scope, [*pairs], photos(*pairs.values()), segment_id=f"{TIME}-{digits}"
        )
    return cache


@pytest.mark.parametrize("later", [{"a": 1, "b": 8}, {"a": 2, "b": 9}])
def test_which_of_two_contents_of_one_time_an_id_has_is_decided_by_these_alone(
    later: dict[str, int], tmp_path: Path
) -> None:
    """Not by the names of segments: a rewrite of one draws a new one, and so may turn them."""
    one, other = {"a": 3 - later["a"], "b": 17 - later["b"]}, later
    answers = set()
    for i, names in enumerate([("00000000", "ffffffff"), ("ffffffff", "00000000")]):
        for gone in ("", "b"):
            path = tmp_path / f"{i}{gone}"
            cache = recorded(path, (names[0], one))
            cache.digests_of(["a"])  # the table is brought up to date afterwards
            recorded(path, (names[1], other))
            if gone:
                forget(cache, [gone])
            for reader in (cache, Cache.open(path)):
                answers.add(reader.digests_of(["a"])[0].tobytes())
                table = reader.photo_table()
                answers |= {
                    table.digests[k].tobytes()
                    for k in np.flatnonzero(table.newest)
                    if table.ids[k] == "a"
                }
    assert answers == {max(photos(1).tobytes(), photos(2).tobytes())}


def test_two_copies_that_recorded_an_id_in_one_moment_agree_whatever_each_forgets(
    tmp_path: Path,
) -> None:
    one = recorded(tmp_path / "one", ("11111111", {"a": 1, "x": 5}))
    other = recorded(tmp_path / "other", ("22222222", {"a": 2, "y": 6}))
    forget(one, ["x"])
    forget(other, ["y"])
    merge(one, [other], with_ids=True)
    merge(other, [one], with_ids=True)
    assert one.digests_of(["a"])[0].tobytes() == other.digests_of(["a"])[0].tobytes()


def test_which_of_two_folders_of_one_time_is_the_last_stays_when_a_photo_is_forgotten(
    tmp_path: Path,
) -> None:
    answers = set()
    for i, names in enumerate([("00000000", "ffffffff"), ("ffffffff", "00000000")]):
        path = tmp_path / f"{i}"
        recorded(path, (names[0], {"a": 1, "b": 2}), scope="one")
        cache = recorded(path, (names[1], {"c": 1, "d": 3}), scope="two")
        for gone in ("b", "d"):
            table = cache.photo_table()
            answers.add(tuple(n for n in map(table.ids.__getitem__, table.current()) if n in "ac"))
            forget(cache, [gone])
    assert answers == {("c",)}


def test_forgetting_removes_older_photos_of_the_id_too(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    cache.record_photos("folder", ["p1"], photos(5))
    fill(cache.space(SPEC), photos(5))
    assert forget(cache, ["p1"]).contents == 2
    assert cache.space(SPEC).status(photos(1, 5, 2)).tolist() == [ABSENT, ABSENT, OK]


def test_a_photo_that_another_id_stands_for_is_kept_and_named(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    cache.record_photos("folder", ["twin"], photos(1))
    told = forget(cache, ["p1"])
    assert told.kept == ("twin",)
    assert "kept under other ids: twin" in str(told)
    assert cache.space(SPEC).status(photos(1)).tolist() == [OK]


def test_an_id_that_names_one_photo_in_two_places_is_forgotten_in_both(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    cache.record_photos("table", ["p1", "p2"], photos(1, 2))
    assert forget(cache, ["p1"]).ids == 2
    assert cache.space(SPEC).status(photos(1, 2)).tolist() == [ABSENT, OK]
    assert sorted(cache.photo_table().ids) == ["p2", "p2"]


def test_an_id_of_two_places_is_forgotten_in_the_one_named(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    cache.record_photos("elsewhere", ["p1"], photos(9))
    with pytest.raises(CacheError, match="different photos in 2 places: elsewhere, folder"):
        forget(cache, ["p1"])
    forget(cache, ["p1"], scope="folder")
    assert (cache.digests_of(["p1"])[0] == photos(9)).all()


def test_a_forgotten_photo_stays_gone_until_it_is_lifted(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    forget(cache, ["p1"])
    fill(cache.space(SPEC), photos(1, 3))  # as a nightly run over the folder would
    cache.record_photos("folder", ["p1", "p3"], photos(1, 3))
    assert cache.space(SPEC).status(photos(1, 3)).tolist() == [ABSENT, OK]
    assert cache.digests_of(["p1", "p3"])[1].tolist() == [False, True]
    assert verify(cache).clean
    assert cache.dead(photos(1, 2)).tolist() == [True, False]
    assert cache.lift(photos(1), scope="folder", ids=["p1"]) == 2
    assert cache.lift(photos(2)) == 0
    fill(cache.space(SPEC), photos(1))
    cache.record_photos("folder", ["p1"], photos(1))
    assert cache.space(SPEC).status(photos(1)).tolist() == [OK]
    assert cache.digests_of(["p1"])[1].all()
    assert verify(cache).clean
    forget(cache, ["p1"])  # a lift is of the tombstones that there were
    assert cache.space(SPEC).status(photos(1)).tolist() == [ABSENT]
    assert verify(cache).clean


def test_a_lift_is_brought_along_by_a_merge(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 1, 2), make(tmp_path / "b", 3, 4)
    forget(a, ["p1"])
    a.lift(photos(1))
    fill(a.space(SPEC), photos(1))
    assert merge(b, [a]).withheld == 0
    assert b.space(SPEC).status(photos(1, 2)).tolist() == [OK, OK]


def test_tombstones_travel_with_a_merge(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 1, 2), make(tmp_path / "b", 1, 3)
    forget(a, ["p1"])
    fresh = Cache.open(tmp_path / "c", create=True)
    told = merge(fresh, [a, b])
    assert fresh.space(SPEC).status(photos(1, 2, 3)).tolist() == [ABSENT, OK, OK]
    assert told.withheld == 2
    back = merge(b, [a])
    assert back.still_here == 2
    assert f"'embedcache forget {b.path} --forgotten' removes them" in str(back)


def test_what_others_forgot_is_forgotten_here_without_a_name(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 1, 2), make(tmp_path / "b", 1, 3)
    forget(a, ["p1"])
    merge(b, [a])
    write_ref(b, "then")
    told = forget_forgotten(b)
    assert (told.ids, told.contents, told.rows, told.refs) == (1, 1, 2, ("then",))
    assert b.space(SPEC).status(photos(1, 2, 3)).tolist() == [ABSENT, OK, OK]
    assert not b.digests_of(["p1"])[1].any()
    assert forget_forgotten(b).rows == 0
    assert forget_forgotten(Cache.open(tmp_path / "empty", create=True)).contents == 0
    fill(b.space(SPEC), photos(1))  # forgotten here, and extracted again
    assert b.space(SPEC).status(photos(1)).tolist() == [ABSENT]
    assert verify(b).clean


def test_a_photo_is_forgotten_by_its_digest_with_all_its_ids(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    cache.record_photos("folder", ["twin"], photos(1))
    told = forget(cache, [photos(1).tobytes().hex(), photos(2).tobytes().hex()[:12]])
    assert (told.ids, told.contents, told.kept) == (3, 2, ())
    assert cache.space(SPEC).status(photos(1, 2, 3)).tolist() == [ABSENT, ABSENT, OK]
    assert cache.dead(photos(1, 2, 3)).tolist() == [True, True, False]
    again = forget(cache, [photos(1).tobytes().hex()])  # what a run that was cut off left
    assert (again.ids, again.rows) == (0, 0)
    for text in (photos(9).tobytes().hex()[:63], photos(3).tobytes().hex()[:11]):
        with pytest.raises(CacheError, match="knows no photo id or sha256"):
            forget(cache, [text])
    near = photos(3).copy()
    near[0, 31] ^= 1
    fill(cache.space(SPEC), near)
    with pytest.raises(CacheError, match=r"2 sha256 in .* begin with"):
        forget(cache, [photos(3).tobytes().hex()[:20]])


def test_a_sha256_that_is_not_here_is_forgotten_in_advance(tmp_path: Path) -> None:
    cache, old = make(tmp_path / "a", 2, 3), make(tmp_path / "old", 1, 2)
    digest = photos(1).tobytes().hex()
    told = forget(cache, [digest])
    assert (told.ids, told.contents, told.rows) == (0, 1, 0)
    assert [note for note in told.notes if digest in note and "tombstone" in note]
    merge(cache, [old], with_ids=True)
    assert cache.space(SPEC).status(photos(1, 2)).tolist() == [ABSENT, OK]
    assert f"photo {digest} was forgotten already" in forget(cache, [digest]).notes
    mixed = forget(cache, ["p3", photos(4).tobytes().hex()])
    assert (mixed.ids, mixed.contents) == (1, 2)
    with pytest.raises(CacheError, match="knows no photo id or sha256"):
        forget(cache, [photos(5).tobytes().hex(), "nobody"])
    assert cache.dead(photos(5)).all()  # whom the list names beside who may be gone already
    assert verify(cache).clean


@pytest.mark.parametrize("way", ["forget", "merge"])
def test_the_advice_on_a_damaged_tombstone_works(tmp_path: Path, way: str) -> None:
    cache, old = make(tmp_path / "a", 1, 2, 3), make(tmp_path / "old", 1, 2, 3)
    forget(cache, ["p1"])
    shutil.copytree(cache.path, tmp_path / "kept")
    for path in (cache.path / "forgotten").iterdir():
        path.write_bytes(path.read_bytes().replace(b"forgotten", b"forgotteN"))
    for found in verify(cache.path, repair=True).findings:
        assert "from a copy that still has" in found.problem
        assert "by their sha256" in found.problem
    cache = Cache.open(cache.path)
    if way == "forget":
        forget(cache, [photos(1).tobytes().hex()])
    else:
        merge(cache, [Cache.open(tmp_path / "kept")])
    merge(cache, [old], with_ids=True)
    assert cache.space(SPEC).status(photos(1, 2)).tolist() == [ABSENT, OK]


@pytest.mark.parametrize("others", [["p4"], ["p4", "p5"]])
def test_a_forget_cut_off_after_its_first_tombstone_is_ended_though_others_removed_its_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[str]
) -> None:
    cache = make(tmp_path / "a", *range(8))
    real = History.forget_what

    def dies(self: History, look: Callable[[], Marks]) -> Marks:
        real(self, look)
        raise KeyboardInterrupt

    monkeypatch.setattr(History, "forget_what", dies)
    with pytest.raises(KeyboardInterrupt):
        forget(cache, ["p3"])
    monkeypatch.undo()
    assert Cache.open(cache.path).space(SPEC).status(photos(3)).tolist() == [ABSENT]
    forget(Cache.open(cache.path), others)
    forget_forgotten(Cache.open(cache.path))
    everything = b"".join(p.read_bytes() for p in cache.path.rglob("*") if p.is_file())
    assert model(photos(3)).tobytes() not in everything
    rest = photos(0, 1, 2, 6, 7)
    assert (Cache.open(cache.path).space(SPEC).status(rest) == OK).all()
    assert verify(cache).clean


def test_what_was_set_aside_and_holds_a_forgotten_row_is_named_until_it_is_deleted(
    tmp_path: Path,
) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    shard = cache.space(SPEC).segments()[0].folder / "embedding/c/0/0"
    raw = bytearray(shard.read_bytes())
    raw[1] ^= 4
    shard.write_bytes(raw)
    verify(cache, repair=True)
    assert verify(cache).clean
    forget(cache, ["p1"])
    [note] = verify(cache).notes
    assert note.startswith("damaged/")
    assert "stores 1 row of forgotten photos" in note
    shutil.rmtree(cache.path / "damaged")
    assert not verify(cache).notes


def test_a_lost_tombstone_is_told_of_until_its_photos_are_forgotten_again(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    forget(cache, ["p1"])
    [tombstone] = (cache.path / "forgotten").glob("*.json")
    kept = tombstone.read_bytes()
    tombstone.unlink()
    assert "is missing, and the removal log names it" in str(verify(cache, repair=True))
    report = verify(cache)
    assert report.clean
    assert "1 tombstone could not be read" in str(report)
    tombstone.write_bytes(kept)  # as from a copy
    assert "could not be read" not in str(verify(cache))


def test_an_id_of_another_place_than_was_named_is_not_called_unknown(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    with pytest.raises(CacheError, match=r"'p1' is not of 'nowhere' here, but of folder$"):
        forget(cache, ["p1"], scope="nowhere")
    assert cache.digests_of(["p1"])[1].all()
    assert forget(cache, ["p1"], scope="folder").ids == 1
