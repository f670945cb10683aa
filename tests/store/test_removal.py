"""REMOVE, the log and tombstones: what may go, what may not, and what a reader sees meanwhile."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache import disk
from embedcache.errors import CacheError, Damaged
from embedcache.spec import foreign
from embedcache.store import removal
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, OK
from embedcache.store.log import Entry, create_entry, read_log
from embedcache.store.manifest import is_segment_id, new_segment_id, time_of
from embedcache.store.photo_ids import PhotoIds
from embedcache.store.refs import Pins
from embedcache.store.refs import write_ref as write_ref_file
from embedcache.store.removal import Victim
from embedcache.store.space import Space
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.stores import fill, model, photos

SPEC = foreign("net", 8)
GOLDEN = Path(__file__).parents[1] / "golden"


def make(path: Path, *segments: tuple[int, ...]) -> Cache:
    cache = Cache.open(path, create=True)
    space = cache.space(SPEC, create=True)
    numbers = sorted({n for some in segments for n in some})
    cache.record_photos("f", [f"p{n}" for n in numbers], photos(*numbers))
    for some in segments:
        fill(space, photos(*some))
    return cache


def holds(cache: Cache, *numbers: int) -> bool:
    rows, found = cache.space(SPEC).read(photos(*numbers))
    return bool(found.all()) and bool((rows == model(photos(*numbers))).all())


def bytes_left(path: Path, n: int) -> list[str]:
    """The files below `path` that hold the vector of photo `n`."""
    row = model(photos(n)).tobytes()
    files = (file for file in path.rglob("*") if file.is_file())
    return [str(file.relative_to(path)) for file in files if row in file.read_bytes()]


def test_of_two_segments_that_hold_each_others_rows_only_one_goes(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", (1, 2), (1, 2))
    space = cache.space(SPEC)
    one, other = space.segments()
    assert space.remove([Victim(one), Victim(other)]) == []  # each for the other
    assert [segment.id for segment in space.remove([Victim(one)])] == [one.id]
    assert space.remove([Victim(other)]) == []
    assert holds(cache, 1, 2)


def test_a_duplicate_whose_vector_is_damaged_is_no_reason_to_remove(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", (1, 2), (1, 2))
    one, other = cache.space(SPEC).segments()
    shard = other.folder / "embedding" / "c" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    raw[40] ^= 1
    shard.write_bytes(raw)
    assert Cache.open(cache.path).space(SPEC).remove([Victim(one)]) == []
    assert holds(cache, 1, 2)


def test_a_removal_that_loses_the_race_decides_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(tmp_path / "a", (1, 2), (1, 2), (3,))
    one, other, _ = cache.space(SPEC).segments()
    real = create_entry

    def late(*arguments: Any) -> bool:
        monkeypatch.undo()
        elsewhere = Cache.open(cache.path).space(SPEC)
        assert elsewhere.remove([Victim(other)])  # by the same right, a moment before
        return real(*arguments)

    monkeypatch.setattr(removal, "create_entry", late)
    assert cache.space(SPEC).remove([Victim(one)]) == []
    assert holds(cache, 1, 2, 3)


def test_a_row_that_is_lifted_meanwhile_keeps_its_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lift is an entry of the log: else a removal of what was dead takes what is alive again."""
    cache = make(tmp_path / "a", (1, 2))
    real = create_entry

    def late(*arguments: Any) -> bool:
        monkeypatch.undo()
        again = Cache.open(cache.path)
        assert again.lift(photos(1)) == 1
        assert again.space(SPEC).status(photos(1)).tolist() == [OK]  # so it is not embedded anew
        return real(*arguments)

    monkeypatch.setattr(removal, "create_entry", late)
    forget(cache, [photos(1).tobytes().hex()])
    assert holds(cache, 1, 2)


def test_two_that_forget_rows_of_one_segment_forget_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(tmp_path / "a", (1, 2, 3))
    real = Space.rewrite

    def late(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        forget(Cache.open(cache.path), ["p2"])
        return real(*arguments, **options)

    monkeypatch.setattr(Space, "rewrite", late)
    forget(cache, ["p1"])
    assert cache.space(SPEC).status(photos(1, 2, 3)).tolist() == [ABSENT, ABSENT, OK]
    assert not bytes_left(cache.path, 1) + bytes_left(cache.path, 2)
    assert len(cache.space(SPEC).segments()) == 1
    assert verify(cache).clean, str(verify(cache))


def test_a_ref_reads_as_pinned_less_what_was_forgotten(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", (1, 2, 3), (4,), (5,))
    write_ref(cache, "r")
    raw = (cache.path / "refs" / "r.json").read_bytes()
    fill(cache.space(SPEC), photos(6))
    forget(cache, ["p2"])
    compact(cache)
    forget(cache, ["p4"])
    compact(cache)
    at_ref = Cache.open(cache.path, ref="r")
    status = at_ref.space(SPEC).status(photos(1, 2, 3, 4, 5, 6))
    assert status.tolist() == [OK, ABSENT, OK, ABSENT, OK, ABSENT]
    assert at_ref.digests_of(["p1", "p2"])[1].tolist() == [True, False]
    assert (cache.path / "refs" / "r.json").read_bytes() == raw  # refs are never rewritten
    assert not bytes_left(cache.path, 2) + bytes_left(cache.path, 4)
    assert verify(cache).clean, str(verify(cache))


def test_an_id_that_was_removed_never_returns(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", (1,), (2,))
    copy = shutil.copytree(cache.path, tmp_path / "copy")
    before = {segment.id for segment in cache.space(SPEC).segments()}
    compact(cache)
    forget(cache, ["p1"])
    cache.lift(photos(1))
    merge(cache, [Cache.open(copy)])
    after = {segment.id for segment in cache.space(SPEC).segments()}
    assert not before & after
    assert holds(cache, 1, 2)
    assert verify(cache).clean


@pytest.mark.parametrize("look", [1, 2])
def test_two_ids_of_one_photo_forgotten_at_once_leave_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    cache = make(tmp_path / "a", (1, 2))
    cache.record_photos("f", ["twin"], photos(1))
    real, looks = PhotoIds.pairs_of, 0

    def late(self: PhotoIds, **asked: Any) -> Any:
        nonlocal looks
        looks += not asked.get("dead")  # a look at what lives
        if looks == look and not asked.get("dead"):
            forget(Cache.open(cache.path), ["twin"])
        return real(self, **asked)

    monkeypatch.setattr(PhotoIds, "pairs_of", late)
    forget(cache, ["p1"])
    assert cache.space(SPEC).status(photos(1, 2)).tolist() == [ABSENT, OK]
    assert not bytes_left(cache.path, 1)


def test_deleted_tombstones_are_reported_and_can_be_given_up(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", (1, 2))
    forget(cache, ["p1"])
    for path in (cache.path / "forgotten").iterdir():
        path.unlink()
    report = verify(cache)
    assert len(report.findings) == 1
    assert "is missing, and the removal log names it" in str(report)
    verify(cache, repair=True)
    assert verify(cache).clean


def test_a_deleted_log_is_reported(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", (1, 2))
    forget(cache, ["p1"])
    shutil.rmtree(cache.path / "removed")
    assert "is named by no entry of the removal log" in str(verify(cache.path))


def test_entry_numbers_exist_once_however_many_try(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "a", create=True)
    won = []

    def race() -> None:
        won.append(create_entry(cache.path, 1, Entry()))

    threads = [threading.Thread(target=race) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 15 + [True]
    assert read_log(cache.path).n == 1
    assert [path.name for path in (cache.path / "removed").iterdir()] == ["00000001"]


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_without_links_one_writer_of_a_ref_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    def no_link(*_: object, **__: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)
    cache = make(tmp_path / "a", (1,))
    for number in range(60):
        told: list[str] = []

        def race(mark: str, number: int = number, won: list[str] = told) -> None:
            pins = Pins(name=f"r{number}", spaces={mark * 64: {}}, faces={}, photos=None)
            try:
                write_ref_file(cache.path, f"r{number}", pins=pins)
            except CacheError:
                return
            won.append(mark)

        threads = [threading.Thread(target=race, args=(mark,)) for mark in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(told) == 1
        kept = json.loads((cache.path / "refs" / f"r{number}.json").read_text())
        assert list(kept["spaces"]) == [told[0] * 64]


def test_a_claim_whose_owner_died_is_finished_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    claim = disk.claim_of(path)
    claim.mkdir()
    (claim / "claimed").touch()
    (claim / "r.json").write_bytes(b"first")

    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(FileExistsError):
        disk.publish(path, b"second", contested=True)
    assert path.read_bytes() == b"first"


YEARS_TO_SECONDS = ((1960, 3100), (0, 14), (0, 33), (0, 26), (0, 62), (0, 100))


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("20261125T235959999999-0123abcd", True),
        ("20240229T000000000000-0123abcd", True),
        ("99999999T999999999999-0123abcd", False),
        ("20261325T000000000000-0123abcd", False),
        ("20260230T000000000000-0123abcd", False),
        ("20261125T240000000000-0123abcd", False),
        ("99991231T235959999999-0123abcd", False),
        ("20261125T1000000000000-0123abcd", False),
        ("２0261125T000000000000-0123abcd", False),
    ],
)
def test_a_segments_name_holds_a_moment(name: str, fits: bool) -> None:
    assert is_segment_id(name) == fits


def test_a_name_is_an_id_where_it_holds_a_moment() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        year, *rest = (int(rng.integers(low, high)) for low, high in YEARS_TO_SECONDS)
        name = f"{year:04}{rest[0]:02}{rest[1]:02}T{rest[2]:02}{rest[3]:02}{rest[4]:02}000001"
        assert is_segment_id(f"{name}-0123abcd") == (time_of(f"{name}-0123abcd") is not None)


def test_new_ids_follow_any_id_and_are_ids() -> None:
    for after in ("99981231T235959999999-0123abcd", "20991231T235999999999-0123abcd"):
        assert is_segment_id(after)
        new = new_segment_id(after=after)
        assert new > after
        assert len(new) == len(after)


def test_a_photo_segment_whose_name_is_no_date_is_refused_and_repaired(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", (1, 2))
    [segment] = cache.photo_segments()
    poison = segment.folder.with_name("99999999T999999999999-0123abcd")
    shutil.copytree(segment.folder, poison)
    with pytest.raises(Damaged, match=r"is not a segment. 'embedcache verify --repair"):
        Cache.open(cache.path).photo_table()
    verify(cache.path, repair=True)
    assert verify(cache.path).clean
    cache = Cache.open(cache.path)
    cache.record_photos("f", ["p3"], photos(3))
    assert cache.digests_of(["p1", "p3"])[1].all()


def test_a_format_1_cache_is_upgraded_by_its_first_removal(tmp_path: Path) -> None:
    path = shutil.copytree(GOLDEN / "format-1", tmp_path / "golden")
    cache = Cache.open(path)
    assert json.loads((path / "zarr.json").read_text())["attributes"]["embedcache"]["format"] == 1
    forget(cache, ["b.jpg"])
    assert json.loads((path / "zarr.json").read_text())["attributes"]["embedcache"]["format"] == 2
    assert verify(path).clean, str(verify(path))
    at_ref = Cache.open(path, ref="pinned")
    assert at_ref.digests_of(["a.jpg", "b.jpg"])[1].tolist() == [True, False]


def test_an_older_version_refuses_a_newer_cache(tmp_path: Path) -> None:
    """What format 1 checked of a root document, word for word; it compared whole documents."""
    cache = make(tmp_path / "a", (1,))
    raw = (cache.path / "zarr.json").read_bytes()
    before = json.dumps(
        {"zarr_format": 3, "node_type": "group", "attributes": {"embedcache": {"format": 1}}},
        indent=1,
        sort_keys=True,
    )
    assert raw != before.encode()
    ours = json.loads(raw)["attributes"]["embedcache"]
    assert type(ours["format"]) is int
    assert ours["format"] > 1  # so it says "is a cache of format 2 ... Update embedcache"


def test_hidden_files_of_others_are_never_deleted(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", (1,), (2,))
    theirs = [
        cache.path / ".git" / "HEAD",
        cache.path / "spaces" / ".snapshot" / "x",
        cache.space(SPEC).segments_folder / ".nfs0000000012345678",
        cache.path / "refs" / ".notes.txt",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        os.utime(path, (0, 0))
        os.utime(path.parent, (0, 0))
    compact(cache)
    forget(cache, ["p1"])
    assert all(path.read_text() == "mine" for path in theirs)


def test_forget_leaves_no_byte_below_the_cache(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", (1, 2), (1, 3), (4, 1))
    segment = cache.space(SPEC).segments()[0]
    write_ref(cache, "r")
    for name in (
        "spaces/.old-0123abcd-00000000-7-7",
        "local/incoming/x",
        "local/outgoing-0123abcd",
    ):
        shutil.copytree(segment.folder, cache.path / name)
    hidden = segment.folder.with_name(".old-0123abcd-00000000-7-7")
    shutil.copytree(segment.folder, hidden)
    forget(cache, ["p1"])
    compact(cache)
    assert bytes_left(cache.path, 1) == []
    assert holds(cache, 2, 3, 4)
    assert verify(cache).clean, str(verify(cache))


def test_a_reader_beside_endless_compaction_misses_no_row(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", *[(n,) for n in range(12)])
    script = f"""
import sys
from embedcache.store import Cache
from embedcache.upkeep.compaction import compact
from tests.stores import fill, photos
cache = Cache.open({str(cache.path)!r})
[space] = cache.spaces()
for _ in range(25):
    fill(space, photos(0))
    compact(cache)
"""
    worker = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    n_looks = 0
    while worker.poll() is None:
        assert holds(Cache.open(cache.path), *range(12))
        n_looks += 1
    assert worker.returncode == 0
    assert n_looks > 3
    assert np.isin(cache.space(SPEC).status(photos(*range(12))), [OK]).all()
