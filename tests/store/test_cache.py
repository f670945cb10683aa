"""The cache as its users see it: spaces, rows, ids, and what happens to names and strangers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedcache import disk
from embedcache.errors import CacheError, Damaged, NoSuchSpace, NotACache
from embedcache.spec import Spec, foreign
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, FAILED, OK
from tests.stores import DETECTOR, faces_of, fill, model, photos

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests never cut the power."""
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.open(tmp_path / "a.cache", create=True)


def test_vectors_come_back_bit_for_bit_in_the_order_asked(cache: Cache) -> None:
    space = cache.space(foreign("net", 8), create=True)
    fill(space, photos(*range(50)))
    fill(space, photos(*range(50, 70)))
    wanted = photos(61, 3, 999, 3, 0, 49)
    rows, found = space.read(wanted)
    assert found.tolist() == [True, True, False, True, True, True]
    assert (rows[found] == model(wanted[found])).all()
    assert np.isnan(rows[~found]).all()
    assert (np.sort(space.digests(), axis=0) == np.sort(photos(*range(70)), axis=0)).all()


def test_rows_are_seen_by_every_open_cache_as_soon_as_they_are_committed(cache: Cache) -> None:
    space = cache.space(foreign("net", 8), create=True)
    other = Cache.open(cache.path).space(space.spec)
    writer = space.writer(n_rows=4, name="net", about={})
    writer.add(photos(1, 2), model(photos(1, 2)))
    assert other.status(photos(1)).tolist() == [ABSENT]
    assert writer.commit() is not None
    assert other.status(photos(1, 2, 3)).tolist() == [OK, OK, ABSENT]


def test_failures_keep_their_reason_until_a_good_row_replaces_them(cache: Cache) -> None:
    space = cache.space(foreign("net", 8), create=True)
    with space.writer(n_rows=3, name="net", about={}) as writer:
        writer.add(photos(1), model(photos(1)))
        writer.fail(photos(2, 3), ["no face", "zu groß"])
    assert space.status(photos(1, 2, 3, 4)).tolist() == [OK, FAILED, FAILED, ABSENT]
    assert space.reasons(photos(3, 1, 2, 4)) == ["zu groß", None, "no face", None]
    rows, found = space.read(photos(2))
    assert not found.any()
    assert np.isnan(rows).all()
    fill(space, photos(2))
    assert space.status(photos(2, 3)).tolist() == [OK, FAILED]
    counts = space.counts()
    assert (counts.ok, counts.failed, counts.segments) == (2, {"zu groß": 1}, 2)
    assert counts.names == ("net",)
    assert counts.devices == {"unknown": 1, "cpu": 1}


def test_a_segment_of_failures_only_is_one_too(cache: Cache) -> None:
    space = cache.space(foreign("net", 8), create=True)
    with space.writer(n_rows=2, name="net", about={}) as writer:
        writer.fail(photos(2, 3), ["truncated"] * 2)
    assert space.status(photos(2, 3)).tolist() == [FAILED, FAILED]
    assert not space.read(photos(2))[1].any()


def test_an_empty_writer_leaves_no_trace(cache: Cache) -> None:
    space = cache.space(foreign("net", 8), create=True)
    with space.writer(n_rows=9, name="net", about={}) as writer:
        writer.add(photos(), model(photos()))
    assert [p.name for p in space.segments_folder.iterdir()] == ["zarr.json"]
    assert writer.n_written == 0


def test_a_writer_refuses_vectors_that_are_not_finite_or_do_not_fit(cache: Cache) -> None:
    space = cache.space(foreign("net", 8), create=True)
    writer = space.writer(n_rows=2, name="net", about={})
    bad = model(photos(1, 2))
    bad[1, 3] = np.inf
    with pytest.raises(ValueError, match="vector 1 of this batch is not finite"):
        writer.add(photos(1, 2), bad)
    with pytest.raises(ValueError, match="shape"):
        writer.add(photos(1), model(photos(1), 7))
    with pytest.raises(ValueError, match="digests of shape"):
        writer.add(photos(1), model(photos(1, 2)))


@pytest.mark.parametrize("n_rows", [1, 7, 700])
def test_a_plan_that_was_too_small_or_too_large_costs_space_and_nothing_else(
    cache: Cache, n_rows: int
) -> None:
    space = cache.space(foreign("net", 8), create=True)
    with space.writer(n_rows=n_rows, name="net", about={}) as writer:
        for start in range(0, 60, 3):
            part = photos(*range(start, start + 3))
            writer.add(part, model(part))
    wanted = photos(*reversed(range(60)))
    rows, found = space.read(wanted)
    assert found.all()
    assert (rows == model(wanted)).all()


def test_rows_of_a_writer_that_failed_are_salvaged(cache: Cache) -> None:
    space = cache.space(foreign("net", 8), create=True)

    def run() -> None:
        with space.writer(n_rows=100, name="net", about={"device": "cpu"}) as writer:
            writer.add(photos(*range(10)), model(photos(*range(10))))
            writer.fail(photos(10), ["too small"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    assert space.status(photos(0)).tolist() == [ABSENT]
    assert space.salvage() == 11
    assert (space.read(photos(*range(10)))[0] == model(photos(*range(10)))).all()
    assert space.reasons(photos(10)) == ["too small"]
    assert space.names == ("net",)
    assert space.salvage() == 0
    assert len(list(space.segments_folder.iterdir())) == 2


def test_a_living_writer_is_not_salvaged(cache: Cache) -> None:
    space = cache.space(foreign("net", 8), create=True)
    writer = space.writer(n_rows=4, name="net", about={})
    writer.add(photos(1), model(photos(1)))
    assert space.salvage() == 0
    script = f"""
from embedcache.store import Cache
print(Cache.open({str(cache.path)!r}).find({space.digest!r}).salvage())
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == b"0"
    writer.add(photos(2), model(photos(2)))
    writer.commit()
    assert space.status(photos(1, 2)).tolist() == [OK, OK]


def test_faces_come_back_with_their_photos(cache: Cache) -> None:
    space = cache.face_space(DETECTOR, create=True)
    faces = faces_of([2, 0, 1])
    with space.writer(n_rows=3, about={}) as writer:
        writer.add(photos(1, 2, 3), faces)
        writer.fail(photos(4), ["truncated"])
    found, there = space.read(photos(3, 9, 1, 4, 2, 3))
    assert there.tolist() == [True, False, True, False, True, True]
    assert found.counts.tolist() == [1, 0, 2, 0, 0, 1]
    assert (found.of(2).box == faces.of(0).box).all()
    assert (found.of(5).landmark == faces.of(2).landmark).all()
    assert space.counts_of(photos(1, 2, 3, 4)).tolist() == [2, 0, 1, -1]
    assert space.status(photos(4)).tolist() == [FAILED]
    assert [s.digest for s in cache.face_spaces()] == [space.digest]
    assert Cache.open(cache.path).face_space(DETECTOR).document == DETECTOR


def test_faces_of_a_writer_that_failed_are_salvaged(cache: Cache) -> None:
    space = cache.face_space(DETECTOR, create=True)
    writer = space.writer(n_rows=3, about={})
    writer.add(photos(1, 2), faces_of([2, 1]))
    writer.add(photos(3), faces_of([1]))
    writer.abandon()
    assert space.salvage() == 3
    assert space.counts_of(photos(1, 2, 3)).tolist() == [2, 1, 1]
    assert (space.read(photos(1, 2))[0].landmark == faces_of([2, 1]).landmark).all()


def test_names_are_found_as_users_type_them(cache: Cache) -> None:
    fill(cache.space(foreign("a", 8), create=True), photos(1), name="local-dir:lite0@face")
    fill(cache.space(foreign("b", 8), create=True), photos(1), name="inception_v3.tf_in1k")
    b = cache.space(foreign("b", 8))
    assert cache.find("local-dir:/somewhere/else/lite0@face").spec.architecture == "a"
    assert cache.find("local-dir:lite0@face").spec.architecture == "a"
    assert cache.find("inception_v3.tf_in1k").digest == b.digest
    assert cache.find(f"inception_v3.tf_in1k#{b.digest[:6]}").digest == b.digest
    assert cache.find(b.digest[:6]).digest == b.digest
    with pytest.raises(NoSuchSpace, match=r"no vectors of 'local-dir:/x/lite0'.*lite0@face#"):
        cache.find("local-dir:/x/lite0")
    fill(cache.space(foreign("c", 8), create=True), photos(1), name="inception_v3.tf_in1k")
    with pytest.raises(NoSuchSpace, match=f"holds 2 sets.*inception_v3.tf_in1k#{b.digest[:8]}"):
        cache.find("inception_v3.tf_in1k")


def test_an_id_stands_for_its_newest_photo(cache: Cache) -> None:
    cache.record_photos("folder one", ["a", "b"], photos(1, 2))
    cache.record_photos("folder one", ["a"], photos(3))
    digests, known = cache.digests_of(["b", "a", "c"])
    assert known.tolist() == [True, True, False]
    assert (digests[:2] == photos(2, 3)).all()
    before = sorted((cache.path / "photos" / "segments").iterdir())
    cache.record_photos("folder one", ["a", "b"], photos(3, 2))
    assert sorted((cache.path / "photos" / "segments").iterdir()) == before
    cache.record_photos("folder one", ["a"], photos(1))
    assert (Cache.open(cache.path).digests_of(["a"])[0] == photos(1)).all()
    table = cache.photo_table()
    assert sorted(zip(table.ids, table.newest.tolist(), strict=True)) == [
        ("a", False),
        ("a", True),
        ("b", True),
    ]


def test_one_id_in_two_places_must_be_told_apart(cache: Cache) -> None:
    cache.record_photos("one", ["a", "b"], photos(1, 2))
    cache.record_photos("two", ["a", "b"], photos(7, 2))
    assert (cache.digests_of(["b"])[0] == photos(2)).all()
    assert (cache.digests_of(["a"], scope="two")[0] == photos(7)).all()
    assert not cache.digests_of(["a"], scope="three")[1].any()
    with pytest.raises(CacheError, match=r"'a' stands for different photos.*one, two"):
        cache.digests_of(["a"])


def test_vectors_by_id(cache: Cache) -> None:
    space = cache.space(foreign("net", 8), create=True)
    fill(space, photos(1, 2))
    cache.record_photos("one", ["a", "b", "c"], photos(1, 2, 3))
    rows, found = cache.vectors("net", ["c", "b", "zzz", "a"])
    assert found.tolist() == [False, True, False, True]
    assert (rows[found] == model(photos(2, 1))).all()
    assert np.isnan(rows[~found]).all()
    assert cache.vectors("net", ["a", "b"])[1].all()


def test_a_folder_that_is_not_a_cache_is_refused_and_unchanged(tmp_path: Path) -> None:
    with pytest.raises(NotACache, match="there is no cache at"):
        Cache.open(tmp_path / "missing")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    for create in (False, True):
        with pytest.raises(NotACache, match=r"letters is a folder, but"):
            Cache.open(tmp_path / "letters", create=create)
    assert [p.name for p in (tmp_path / "letters").iterdir()] == ["dear.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotACache, match="is a file"):
        Cache.open(tmp_path / "file", create=True)


def test_two_processes_may_make_one_cache_at_the_same_time(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".zarr.json.0123abcd-00000000-7-7").write_bytes(b"")  # the other one is at it
    assert Cache.open(tmp_path / "a", create=True).spaces() == []
    assert Cache.open(tmp_path / "a").spaces() == []


def test_a_cache_of_a_later_format_says_update(cache: Cache) -> None:
    path = cache.path / "zarr.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(NotACache, match=r"format 3.*Update embedcache"):
        Cache.open(cache.path)


def test_a_wrong_byte_in_a_vector_is_never_returned(cache: Cache) -> None:
    space = cache.space(foreign("net", 8), create=True)
    fill(space, photos(*range(30)))
    (shard,) = space.segments_folder.glob("*/embedding/c/0/0")
    raw = bytearray(shard.read_bytes())
    raw[5 * 32 + 2] ^= 1
    shard.write_bytes(raw)
    for wanted in (photos(5), photos(*range(30))):
        with pytest.raises(Damaged, match=r"CRC32C.*verify --repair"):
            space.read(wanted)
    assert (space.read(photos(4))[0] == model(photos(4))).all()


def test_the_store_loads_neither_torch_nor_zarr_nor_polars(cache: Cache) -> None:
    fill(cache.space(foreign("net", 8), create=True), photos(1, 2))
    script = f"""
import sys
from embedcache.store import Cache
cache = Cache.open({str(cache.path)!r})
print([space.counts() for space in cache.spaces()])
heavy = {{"torch", "timm", "zarr", "polars", "pyarrow", "PIL"}} & set(sys.modules)
assert not heavy, heavy
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=ROOT)
    assert b"ok=2" in told.stdout


def test_spec_digests_separate_spaces(cache: Cache) -> None:
    one, two = Spec(kind="foreign", architecture="x", dim=4), foreign("x", 5)
    cache.space(one, create=True)
    with pytest.raises(NoSuchSpace):
        cache.space(two)
    cache.space(two, create=True)
    assert [space.spec for space in cache.spaces()] == sorted([one, two], key=lambda s: s.digest)
