"""A damaged segment: `verify --repair` keeps what its manifest and its rows' own CRCs prove."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedcache.errors import CacheError
from embedcache.store.cache import Cache
from embedcache.store.checksums import crc32c, one_wrong_byte
from embedcache.store.columns import ABSENT, FAILED, OK
from embedcache.store.segment import Segment
from embedcache.upkeep.findings import Report
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.stores import DETECTOR, faces_of, model, photos
from tests.upkeep.caches import SPEC

GOOD, FAILURES = (0, 1, 2, 3, 4), (5, 6)


def make(path: Path) -> Cache:
    """A segment of each kind, of good rows and failures, and a ref that pins all."""
    cache = Cache.open(path, create=True)
    with cache.space(SPEC, create=True).writer(n_rows=7, name="net", about={}) as writer:
        writer.add(photos(*GOOD), model(photos(*GOOD)))
        writer.fail(photos(*FAILURES), ["no face", "truncated"])
    with cache.face_space(DETECTOR, create=True).writer(n_rows=7, about={}) as faces:
        faces.add(photos(*GOOD), faces_of([1, 0, 2, 1, 1]))
        faces.fail(photos(*FAILURES), ["truncated", "truncated"])
    every = (*GOOD, *FAILURES)
    cache.record_photos("folder", [f"p{n}" for n in every], photos(*every))
    write_ref(cache, "r")
    return cache


def segments(cache: Cache) -> list[Segment]:
    [space], [faces] = cache.spaces(), cache.face_spaces()
    return [*space.segments(), *faces.segments(), *cache.photo_ids.segments()]


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x24
    path.write_bytes(raw)


def blank(path: Path) -> None:
    """As where a disk gives back zeros."""
    path.write_bytes(bytes(path.stat().st_size))


def lost_of(report: Report) -> set[tuple[str, int, tuple[str, ...]]]:
    return {(one.path, one.lost_rows, one.lost) for one in report.findings if one.segment}


def repaired(cache: Cache) -> Report:
    """Repair, of which a look before told the same; what is left is right and verifies clean."""
    before = verify(cache)
    done = verify(cache, repair=True)
    assert lost_of(done) == lost_of(before)
    assert verify(cache).clean, str(verify(cache))
    return done


def check_vectors(cache: Cache, *numbers: int) -> None:
    for ref in (None, "r"):
        space = Cache.open(cache.path, ref=ref).space(SPEC)
        read, found = space.read(photos(*numbers))
        assert found.all()
        assert (read == model(photos(*numbers))).all()


def test_one_wrong_byte_outside_the_vectors_costs_no_row(tmp_path: Path) -> None:
    """Whatever file it is in, at both of its ends and between: its sha256 proves what it was."""
    names = {
        (i, path)
        for i, segment in enumerate(segments(make(tmp_path / "a")))
        for path in segment.manifest.files
        if not path.startswith("embedding/c")
    }
    assert len(names) > 30
    for i, name in sorted(names):
        for at in (0, 0.4, -1):
            cache = make(tmp_path / f"{i}-{name.replace('/', '-')}-{at}")
            path = segments(cache)[i].folder / name
            flip(path, at if isinstance(at, int) else int(at * path.stat().st_size))
            [finding] = repaired(cache).findings
            assert finding.lost_rows == 0, (name, at)
            check_vectors(cache, *GOOD)
            [faces] = cache.face_spaces()
            assert faces.counts_of(photos(*GOOD)).tolist() == [1, 0, 2, 1, 1]
            assert faces.reasons(photos(5)) == ["truncated"]
            assert cache.space(SPEC).reasons(photos(*FAILURES)) == ["no face", "truncated"]
            assert len(Cache.open(cache.path, ref="r").photo_table()) == 7


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.97, "self", "key"])
def test_one_wrong_byte_of_a_manifest_costs_no_row(tmp_path: Path, where: float | str) -> None:
    for i in range(3):
        cache = make(tmp_path / f"{i}")
        segment = segments(cache)[i]
        path = segment.folder / "manifest.json"
        raw = path.read_bytes()
        key = raw.rfind(b'"self":"')
        places: dict[object, int] = {"self": key + 20, "key": key + 3}
        flip(path, places.get(where, int(len(raw) * where) if isinstance(where, float) else 0))
        [finding] = repaired(cache).findings
        assert (finding.lost_rows, finding.moved) == (0, "restored"), (i, finding)
        assert path.read_bytes() == raw
        check_vectors(cache, *GOOD)


@pytest.mark.parametrize("damage", [blank, Path.unlink])
def test_files_that_the_others_imply_cost_no_row(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for name in ("zarr.json", "embedding/zarr.json", "status/c/0", "row_crc/c/0"):
        cache = make(tmp_path / name.replace("/", "-"))
        damage(segments(cache)[0].folder / name)
        [finding] = repaired(cache).findings
        assert finding.lost_rows == 0, name
        check_vectors(cache, *GOOD)
        assert cache.space(SPEC).reasons(photos(*FAILURES)) == ["no face", "truncated"]


def test_a_shards_index_and_what_follows_a_cut_cost_only_rows_that_are_cut(tmp_path: Path) -> None:
    shard = "embedding/c/0/0"
    cache = make(tmp_path / "index")
    flip(segments(cache)[0].folder / shard, -9)
    assert repaired(cache).findings[0].lost_rows == 0
    check_vectors(cache, *GOOD)
    cache = make(tmp_path / "cut")
    path = segments(cache)[0].folder / shard
    path.write_bytes(path.read_bytes()[: 3 * 32 + 5])  # three rows and a part of the fourth
    [finding] = repaired(cache).findings
    assert finding.lost == ("p3", "p4")
    check_vectors(cache, 0, 1, 2)


def test_a_wrong_row_beside_damaged_row_crcs_costs_its_chunk(tmp_path: Path) -> None:
    """The manifest refutes the chunk, and no row proves itself by a file that is wrong too."""
    cache = make(tmp_path / "a")
    folder = segments(cache)[0].folder
    flip(folder / "embedding/c/0/0", 2 * 32)
    flip(folder / "row_crc/c/0", 1)
    flip(folder / "row_crc/c/0", 4 * 4)
    [finding] = repaired(cache).findings
    assert finding.lost == ("p0", "p1", "p2", "p3", "p4")


@pytest.mark.parametrize("name", ["reason_text/c/0", "reason_offset/c/0"])
def test_lost_reasons_cost_failures_only(tmp_path: Path, name: str) -> None:
    for i in (0, 1):
        cache = make(tmp_path / f"{i}")
        blank(segments(cache)[i].folder / name)
        [finding] = repaired(cache).findings
        assert finding.lost == ("p5", "p6")
        assert "the failures" in finding.problem
        check_vectors(cache, *GOOD)
        [faces] = cache.face_spaces()
        assert faces.counts_of(photos(*GOOD)).tolist() == [1, 0, 2, 1, 1]
        states = (cache.space(SPEC), faces)[i].status(photos(*FAILURES)).tolist()
        assert states == [ABSENT, ABSENT]


def test_lost_boxes_cost_faces_and_not_the_failures_beside_them(tmp_path: Path) -> None:
    cache = make(tmp_path / "a")
    blank(segments(cache)[1].folder / "box/c/0/0")
    [finding] = repaired(cache).findings
    assert finding.lost == ("p0", "p1", "p2", "p3", "p4")
    assert "without `box`" in finding.problem
    [faces] = cache.face_spaces()
    assert faces.status(photos(0, 5)).tolist() == [ABSENT, FAILED]


def test_without_its_digests_nobody_can_say_whose_rows_they_are(tmp_path: Path) -> None:
    cache = make(tmp_path / "a")
    blank(segments(cache)[0].folder / "digest/c/0/0")
    [finding] = [found for found in repaired(cache).findings if found.segment]
    assert finding.lost_rows == 7
    assert "nothing else says which photos its rows belong to" in finding.problem


def test_a_lost_manifest_is_reported_by_the_photos_that_its_digests_name(tmp_path: Path) -> None:
    cache = make(tmp_path / "a")
    blank(segments(cache)[0].folder / "manifest.json")
    [finding] = [found for found in repaired(cache).findings if found.segment]
    assert finding.lost == tuple(f"p{n}" for n in range(7))
    assert cache.space(SPEC).status(photos(0)).tolist() == [ABSENT]


@pytest.mark.parametrize("n", [1, 2, 5, 4096, 70_001])
def test_where_one_byte_is_wrong_its_crc_says_which(n: int) -> None:
    data = np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8)
    for at in {0, n // 2, n - 1}:
        wrong = data.copy()
        wrong[at] ^= 77
        assert (at, 77) in list(one_wrong_byte(wrong, crc32c(data)))


def test_rows_that_were_good_stay_good_when_all_kinds_are_hit_at_once(tmp_path: Path) -> None:
    cache = make(tmp_path / "a")
    for segment, name in zip(
        segments(cache), ("status/c/0", "digest/c/0/0", "id_text/c/0"), strict=True
    ):
        flip(segment.folder / name, 1)
        flip(segment.folder / "manifest.json", 77)
    repaired(cache)
    check_vectors(cache, *GOOD)
    assert cache.space(SPEC).status(photos(0, 5)).tolist() == [OK, FAILED]
    assert len(cache.photo_table()) == 7


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_what_the_machine_refuses_is_no_damage(
    number: int, repair: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else too many open files would make repair give up rows that are whole."""
    cache = make(tmp_path / "a")
    [first, *_] = segments(cache)
    flip(first.folder / "embedding/c/0/0", 0)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("embedcache.store.space.read_rows", refuse)
        patch.setattr("embedcache.store.space.read_rows_singly", refuse)
        with pytest.raises(CacheError, match=r"cannot (read|repair)"):
            verify(cache, repair=repair)
    assert first.folder.exists()
    assert repaired(cache).findings[0].lost == ("p0",)


def test_rows_of_another_segment_are_not_proven_by_its_row_crcs(tmp_path: Path) -> None:
    """As after a restore that mixed two segments up: the manifest's chunk CRCs know better."""
    cache = Cache.open(tmp_path / "c", create=True)
    space = cache.space(SPEC, create=True)
    for first in (0, 5):
        with space.writer(n_rows=5, name="net", about={}) as writer:
            some = photos(*range(first, first + 5))
            writer.add(some, model(some))
    one, other = (segment.folder for segment in space.segments())
    for name in ("embedding/c", "row_crc/c"):
        shutil.copytree(other / name, one / name, dirs_exist_ok=True)
    assert not verify(cache, repair=False).clean
    verify(cache, repair=True)
    again = Cache.open(tmp_path / "c")
    [space] = again.spaces()
    rows, found = space.read(photos(*range(10)))
    assert found.sum() == 5
    assert (rows[found] == model(photos(*range(10)))[found]).all()
    assert verify(again).clean
