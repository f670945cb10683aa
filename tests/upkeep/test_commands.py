"""Refs, merging, compacting and forgetting: what stays, what goes, what is told."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache import disk
from embedcache.errors import CacheError, Damaged
from embedcache.spec import foreign
from embedcache.store import refs, removal
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, FAILED, OK
from embedcache.store.index import Table
from embedcache.store.space import Space
from embedcache.store.tombstones import content_mark
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget, forget_forgotten
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import pin, write_ref
from embedcache.upkeep.verify import verify
from tests.stores import DETECTOR, faces_of, fill, model, photos

SPEC = foreign("net", 8)


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)


def make(path: Path, *numbers: int, segments: int = 2) -> Cache:
    """A cache of photos pN with vectors (in so many segments), faces and ids."""
    cache = Cache.open(path, create=True)
    space = cache.space(SPEC, create=True)
    for part in np.array_split(np.array(numbers), segments):
        fill(space, photos(*part.tolist()))
    with cache.face_space(DETECTOR, create=True).writer(n_rows=9, about={}) as writer:
        writer.add(photos(*numbers), faces_of([n % 3 for n in numbers]))
    cache.record_photos("folder", [f"p{n}" for n in numbers], photos(*numbers))
    return cache


def rows(space: Space) -> int:
    """Stored good rows, each as often as it is stored."""
    return sum(segment.manifest.n_ok for segment in space.segments())


def test_a_whole_cache_verifies_clean(tmp_path: Path) -> None:
    report = verify(make(tmp_path / "a", *range(20)))
    assert report.clean, str(report)
    assert report.rows == 60
    assert "bytes: as written" in str(report)
    assert report.document()["findings"] == []


def test_merge_copies_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", *range(10)), make(tmp_path / "b", *range(5, 30))
    told = merge(a, [b])
    assert (told.rows, told.already_here, told.differing, told.ids) == (20 + 20, 5 + 5, 0, 0)
    space = a.space(SPEC)
    assert rows(space) == 30
    wanted = photos(*range(30))
    assert (space.read(wanted)[0] == model(wanted)).all()
    assert (a.face_space(DETECTOR).counts_of(wanted) == np.arange(30) % 3).all()
    assert len(a.photo_table()) == 10
    again = merge(a, [b], with_ids=True)
    assert (again.rows, again.segments, again.ids) == (0, 0, 20)
    assert rows(space) == 30
    assert verify(a).clean


def test_merge_into_an_empty_cache_copies_segments_byte_for_byte(tmp_path: Path) -> None:
    b = make(tmp_path / "b", *range(30))
    a = Cache.open(tmp_path / "a", create=True)
    merge(a, [b])
    mine, theirs = a.space(SPEC).segments(), b.space(SPEC).segments()
    assert [s.manifest for s in mine] == [s.manifest for s in theirs]


def test_merge_reports_rows_that_differ_and_keeps_ours(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 1, 2, 3), Cache.open(tmp_path / "b", create=True)
    with b.space(SPEC, create=True).writer(n_rows=2, name="net", about={}) as writer:
        writer.add(photos(3, 4), model(photos(3, 4)) + np.float32(0.5))
    told = merge(a, [b])
    assert (told.rows, told.differing) == (1, 1)
    assert told.largest_difference == pytest.approx(0.5, rel=1e-4)
    assert "1 row differs from those here, by at most 0.5" in str(told)
    assert (a.space(SPEC).read(photos(3))[0] == model(photos(3))).all()


def test_merge_believes_no_damaged_segment(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 1), make(tmp_path / "b", 2)
    (shard,) = b.space(SPEC).segments_folder.glob("*/embedding/c/0/0")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged):
        merge(a, [b])
    assert a.space(SPEC).status(photos(1, 2)).tolist() == [OK, ABSENT]
    assert verify(a).clean


def test_merge_prefers_a_good_row_to_a_failure(tmp_path: Path) -> None:
    a, b = Cache.open(tmp_path / "a", create=True), Cache.open(tmp_path / "b", create=True)
    for cache, bad in ((a, photos(1, 2)), (b, photos(2, 3))):
        with cache.space(SPEC, create=True).writer(n_rows=2, name="n", about={}) as writer:
            writer.fail(bad, ["why"] * 2)
    fill(b.space(SPEC), photos(1))
    told = merge(a, [b])
    assert (told.rows, told.failures) == (1, 1)
    assert a.space(SPEC).status(photos(1, 2, 3)).tolist() == [OK, FAILED, FAILED]


def test_compacting_changes_no_row(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", *range(40), segments=20)
    space = cache.space(SPEC)
    fill(space, photos(*range(3)))
    with space.writer(n_rows=2, name="net", about={}) as writer:
        writer.fail(photos(0, 77), ["now good", "no face"])
    reader = Cache.open(cache.path).space(SPEC)
    reader.read(photos(1))
    told = compact(cache)
    assert (told.before, told.after, told.rows) == (23, 2, 41)
    assert len(space.segments()) == 1
    assert rows(space) == 40
    wanted = photos(*range(40))
    for seen in (space, reader):
        assert (seen.read(wanted)[0] == model(wanted)).all()
        assert seen.reasons(photos(77, 0)) == ["no face", None]
    assert space.counts().devices == {"cpu": 1}
    assert verify(cache).clean
    assert compact(cache).rows == 0


def test_compacting_leaves_pinned_segments(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", *range(8), segments=4)
    write_ref(cache, "table-2")
    before = [segment.id for segment in cache.space(SPEC).segments()]
    fill(cache.space(SPEC), photos(8))
    fill(cache.space(SPEC), photos(9))
    told = compact(cache)
    assert "pinned by refs" in str(told)
    after = [segment.id for segment in cache.space(SPEC).segments()]
    assert after[:4] == before
    assert len(after) == 5


def test_a_ref_shows_the_cache_as_it_was(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    assert write_ref(cache, "table-2").segments == 4
    fill(cache.space(SPEC), photos(4))
    fill(cache.space(foreign("later", 8), create=True), photos(4))
    cache.record_photos("folder", ["p1"], photos(4))
    then = Cache.open(cache.path, ref="table-2")
    assert then.space(SPEC).status(photos(1, 4)).tolist() == [OK, ABSENT]
    assert len(then.spaces()) == 1
    assert (then.digests_of(["p1"])[0] == photos(1)).all()
    with pytest.raises(CacheError, match="opened at a ref"):
        then.space(SPEC).writer(n_rows=1, name="net", about={})
    with pytest.raises(CacheError, match="opened at a ref"):
        then.record_photos("folder", ["x"], photos(1))
    with pytest.raises(CacheError, match="refs never change"):
        write_ref(cache, "table-2")
    with pytest.raises(CacheError, match="no ref 'table-3'; it has table-2"):
        Cache.open(cache.path, ref="table-3")
    with pytest.raises(CacheError, match="a ref's name has"):
        write_ref(cache, "../table")


def test_a_ref_to_a_segment_that_is_gone_says_so(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    write_ref(cache, "r")
    shutil.rmtree(cache.space(SPEC).segments()[0].folder)
    with pytest.raises(Damaged, match="which the ref pins, is gone"):
        Cache.open(cache.path, ref="r").space(SPEC).status(photos(1))
    assert "which is gone or damaged" in str(verify(cache))


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
    with pytest.raises(CacheError, match="knows no photo id or content 'p3'"):
        forget(cache, ["p3"])


def test_forgetting_keeps_the_newest_of_others_the_newest(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    cache.record_photos("folder", ["p2"], photos(22))
    forget(cache, ["p1"])
    assert (cache.digests_of(["p2"])[0] == photos(22)).all()


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
    assert "stays under other ids: twin" in str(told)
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


def test_verify_reports_a_removed_segment_that_was_put_back_by_hand(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    segment = cache.space(SPEC).segments()[0].folder
    shutil.copytree(segment, tmp_path / "kept")
    forget(cache, ["p1"])
    shutil.copytree(tmp_path / "kept", segment)
    assert "was removed, and is not deleted yet" in str(verify(cache))
    assert cache.space(SPEC).status(photos(1)).tolist() == [ABSENT]
    compact(cache)
    assert not segment.exists()
    assert verify(cache).clean


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
    for text in (photos(9).tobytes().hex(), photos(3).tobytes().hex()[:11]):
        with pytest.raises(CacheError, match="knows no photo id or content"):
            forget(cache, [text])
    near = photos(3).copy()
    near[0, 31] ^= 1
    fill(cache.space(SPEC), near)
    with pytest.raises(CacheError, match=r"2 contents in .* begin with"):
        forget(cache, [photos(3).tobytes().hex()[:20]])


def test_verify_tells_duplicates_and_their_distance(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    with cache.space(SPEC).writer(n_rows=2, name="net", about={}) as writer:
        writer.add(photos(1, 2), model(photos(1, 2)) + np.array([[0], [0.25]], np.float32))
    report = verify(cache)
    assert report.clean
    assert (report.duplicates, report.differing) == (2, 1)
    assert "1 of them different, by at most 0.25" in str(report)
    assert (cache.space(SPEC).read(photos(2))[0] == model(photos(2))).all()


def test_repair_sets_a_damaged_segment_aside_and_says_what_to_extract(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", *range(10))
    first, second = cache.space(SPEC).segments()
    shard = first.folder / "embedding" / "c" / "0" / "0"
    shard.write_bytes(b"\0" + shard.read_bytes()[1:])
    with pytest.raises(Damaged):
        cache.space(SPEC).read(photos(0))
    report = verify(cache)
    assert not report.clean
    assert f"Run 'embedcache verify --repair {cache.path}'" in str(report)
    fixed = verify(cache, repair=True)
    (finding,) = fixed.findings
    assert finding.lost == ("p0",)  # the other rows of its segment are kept
    assert "extract again for net#" in str(fixed)
    assert (cache.path / finding.moved / "manifest.json").exists()
    assert verify(cache).clean
    assert cache.space(SPEC).status(photos(0, 7)).tolist() == [ABSENT, OK]
    after = [segment.id for segment in cache.space(SPEC).segments()]
    assert len(after) == 2
    assert second.id in after
    assert first.id not in after


@pytest.mark.parametrize("lost", ["zarr.json", "spaces/zarr.json", "photos/segments/zarr.json"])
def test_repair_writes_group_metadata_that_can_be_known(tmp_path: Path, lost: str) -> None:
    cache = make(tmp_path / "a", 1, 2)
    (cache.path / lost).unlink()
    with pytest.raises(CacheError):
        Cache.open(cache.path)
    assert f"{lost}: " in str(verify(cache.path))
    verify(cache.path, repair=True)
    assert verify(cache.path).clean
    assert Cache.open(cache.path).space(SPEC).status(photos(1)).tolist() == [OK]


def test_the_saved_index_is_a_convenience_that_nothing_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.store.rows.INDEX_SEGMENTS", 3)
    cache = make(tmp_path / "a", *range(12), segments=4)
    cache.space(SPEC).status(photos(1))
    saved = cache.path / "local" / "index" / f"{SPEC.digest}.table"
    loaded = Table.load(saved)
    assert loaded is not None
    assert len(loaded.segments) == 4
    wanted = photos(*range(12))
    whole = saved.read_bytes()
    for raw in (whole, whole[:-1], b"", whole[:40] + b"?" + whole[41:], b"\xff" * 200):
        saved.write_bytes(raw)
        assert (Cache.open(cache.path).space(SPEC).read(wanted)[0] == model(wanted)).all()
    fill(cache.space(SPEC), photos(20))
    compact(cache)
    assert (Cache.open(cache.path).space(SPEC).read(wanted)[0] == model(wanted)).all()


def test_contents_that_share_their_first_bytes_are_told_apart() -> None:
    digests = np.repeat(photos(1), 6, axis=0)
    digests[:, 31] = [5, 3, 5, 1, 3, 9]
    none = np.empty(0, np.int64)
    table = Table.empty().extended([(1, digests[:4], 2), (0, digests[4:], 2)], renumbered=none)
    at = table.find(digests)
    assert len(table.keys) == 4
    assert (table.digests[at] == digests).all()
    assert table.segment[at].tolist() == [1, 0, 1, 1, 0, 0]
    assert table.ok[at].tolist() == [True, True, True, False, True, True]
    digests[:, 31] = 200
    assert (table.find(digests) == -1).all()


def test_pinning_twice_makes_one_ref_and_new_rows_make_another(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "pinned", create=True)
    cache.record_photos("here", ["a"], np.zeros((1, 32), np.uint8))
    first = pin(cache)
    assert pin(Cache.open(cache.path)) == first
    cache.record_photos("here", ["b"], np.ones((1, 32), np.uint8))
    assert pin(cache) != first
    assert Cache.open(cache.path, ref=first).ref == first
    assert Cache.open(cache.path, ref=first).digests_of(["a", "b"])[1].tolist() == [True, False]


def meanwhile(
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    name: str,
    deed: Callable[[], object],
    *,
    first: bool,
) -> None:
    """Have another process do something before (or after) the first call of `where`.`name`."""
    real = getattr(where, name)
    left = [deed]

    def call(*arguments: Any, **options: Any) -> Any:
        if first and left:
            left.pop()()
        result = real(*arguments, **options)
        if left:
            left.pop()()
        return result

    monkeypatch.setattr(where, name, call)


STEPS = [
    (Space, "rewrite"),
    (Space, "settle"),
    (Space, "held_in"),
    (removal, "pinned_ids"),
    (removal, "create_entry"),
    (removal, "finish"),
]


@pytest.mark.parametrize(("where", "name"), STEPS)
@pytest.mark.parametrize("first", [True, False])
def test_a_photo_forgotten_while_others_compact_stays_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str, first: bool
) -> None:
    cache = make(tmp_path / "a", *range(8), segments=4)
    deed = lambda: forget(Cache.open(cache.path), ["p3"])  # noqa: E731
    meanwhile(monkeypatch, where, name, deed, first=first)
    compact(cache)
    compact(cache)
    space = Cache.open(cache.path).space(SPEC)
    wanted = photos(0, 1, 2, 4, 5, 6, 7)
    assert (space.read(wanted)[0] == model(wanted)).all()
    assert space.status(photos(3)).tolist() == [ABSENT]
    space.salvage()
    assert space.status(photos(3)).tolist() == [ABSENT]
    assert len(space.segments()) == 1
    assert verify(cache).clean, str(verify(cache))


def test_what_forget_has_named_and_not_reached_is_not_compacted(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", *range(8), segments=4)
    cache.history.forget(contents=[content_mark(photos(3).tobytes())])
    compact(cache)
    assert cache.space(SPEC).status(photos(3, 4)).tolist() == [ABSENT, OK]
    assert "still stores 1 forgotten photo ids" in str(verify(cache))  # forget was cut off
    forget(cache, ["p3"])
    assert verify(cache).clean


def test_what_a_dead_writer_left_is_not_salvaged_once_it_is_forgotten(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    writer = cache.space(SPEC).writer(n_rows=2, name="net", about={})
    writer.add(photos(3, 4), model(photos(3, 4)))
    cache.record_photos("folder", ["p3"], photos(3))
    assert "is being written by process" in str(forget(cache, ["p3"]))
    writer.abandon()
    assert cache.space(SPEC).salvage() == 1
    assert cache.space(SPEC).status(photos(3, 4)).tolist() == [ABSENT, OK]
    assert verify(cache).clean


@pytest.mark.parametrize(("where", "name"), [STEPS[0], STEPS[2], STEPS[3], STEPS[4]])
def test_a_ref_written_while_others_compact_keeps_its_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str
) -> None:
    cache = make(tmp_path / "a", *range(8), segments=4)
    then = {segment.id for segment in cache.space(SPEC).segments()}
    deed = lambda: write_ref(Cache.open(cache.path), "r")  # noqa: E731
    meanwhile(monkeypatch, where, name, deed, first=True)
    assert compact(cache).pinned >= 4
    assert then <= {segment.id for segment in cache.space(SPEC).segments()}
    at_ref = Cache.open(cache.path, ref="r").space(SPEC)
    assert at_ref.read(photos(*range(8)))[1].all()
    assert verify(cache).clean


def test_a_ref_pins_what_is_there_once_it_is_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(tmp_path / "a", *range(8), segments=4)

    def late(*arguments: Any, **options: Any) -> str:
        compact(Cache.open(cache.path))
        return refs.write_ref(*arguments, **options)

    monkeypatch.setattr("embedcache.upkeep.pinning._write_ref", late)
    assert write_ref(cache, "r").segments == 3  # of what was there at the second try
    assert Cache.open(cache.path, ref="r").space(SPEC).read(photos(*range(8)))[1].all()
    assert verify(cache).clean
