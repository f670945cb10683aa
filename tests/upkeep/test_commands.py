"""Verifying, merging, compacting and pinning: what stays, what goes, what is reported."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.errors import CacheError, Damaged
from embedcache.spec import foreign
from embedcache.store import refs, removal
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, FAILED, OK
from embedcache.store.index import Table
from embedcache.store.space import Space
from embedcache.store.tombstones import content_mark
from embedcache.upkeep import pinning
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import pin, write_ref
from embedcache.upkeep.verify import verify
from tests.stores import DETECTOR, fill, model, photos
from tests.upkeep.caches import SPEC, make, rows


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


def test_verify_reports_a_removed_segment_that_was_put_back_by_hand(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    segment = cache.space(SPEC).segments()[0].folder
    shutil.copytree(segment, tmp_path / "kept")
    forget(cache, ["p1"])
    shutil.copytree(tmp_path / "kept", segment)
    assert "was removed but is not deleted yet" in str(verify(cache))
    assert cache.space(SPEC).status(photos(1)).tolist() == [ABSENT]
    compact(cache)
    assert not segment.exists()
    assert verify(cache).clean


def test_verify_reports_duplicates_and_their_distance(tmp_path: Path) -> None:
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
    saved = cache.remembered(f"index/{SPEC.digest}.table")
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


def test_two_that_pin_the_same_at_one_moment_both_get_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache.open(tmp_path / "pinned", create=True)
    cache.record_photos("here", ["a"], np.zeros((1, 32), np.uint8))
    other: list[str] = []
    meanwhile(
        *(monkeypatch, pinning, "enter_ref", lambda: other.append(pin(Cache.open(cache.path)))),
        first=True,
    )
    assert [pin(cache)] == other
    assert verify(cache).clean


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
