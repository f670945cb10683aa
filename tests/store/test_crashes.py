"""Writers are killed at random moments; no row is lost, wrong, or there twice after a merge."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from embedcache import disk
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.store.crash_worker import SPEC
from tests.stores import fill, model, photos

ROOT = Path(__file__).parents[2]


def start(cache: Path, n_photos: int, seed: int, pause: float) -> "subprocess.Popen[bytes]":
    role = ["compact"] if seed % 3 == 0 else []
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.crash_worker", str(cache), str(n_photos), str(seed)]
        + [str(pause), *role],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )


def kill_again_and_again(
    cache: Path, *, n_workers: int, n_kills: int, n_photos: int, pause: float
) -> None:
    rng = random.Random(0)
    seeds = iter(range(10_000))
    workers = [start(cache, n_photos, next(seeds), pause) for _ in range(n_workers)]
    for _ in range(n_kills):
        time.sleep(rng.uniform(0.05, 0.9))
        victim = rng.randrange(n_workers)
        workers[victim].send_signal(signal.SIGKILL)
        _, told = workers[victim].communicate()
        assert not told, told.decode()
        assert workers[victim].returncode == -signal.SIGKILL, "it was done before it was killed"
        workers[victim] = start(cache, n_photos, next(seeds), pause)
    for worker in workers:
        _, told = worker.communicate(timeout=300)
        assert worker.returncode == 0, told.decode()


def check(path: Path, n_photos: int) -> None:
    space = Cache.open(path).space(SPEC)
    space.salvage()
    wanted = photos(*range(n_photos))
    rows, found = space.read(wanted)
    assert found.all()
    assert (rows == model(wanted, SPEC.dim)).all()
    report = verify(path)
    assert report.clean, str(report)
    assert report.differing == 0
    merged = Cache.open(path.with_name("merged"), create=True)
    merge(merged, [Cache.open(path)])
    held = np.concatenate([s.column("digest") for s in merged.space(SPEC).segments()])
    assert len(held) == n_photos
    assert len(np.unique(held, axis=0)) == n_photos
    assert (merged.space(SPEC).read(wanted)[0] == rows).all()
    assert verify(merged).clean


def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "a", n_workers=2, n_kills=6, n_photos=1500, pause=0.1)
    check(tmp_path / "a", 1500)


@pytest.mark.torture
def test_sixty_kills_over_three_writers_lose_nothing(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "a", n_workers=3, n_kills=60, n_photos=10_000, pause=0.2)
    check(tmp_path / "a", 10_000)


def test_a_killed_writer_loses_only_what_it_had_not_yet_been_given(tmp_path: Path) -> None:
    script = f"""
import os, signal
from embedcache.store import Cache
from tests.store.crash_worker import SPEC
from tests.stores import model, photos
writer = Cache.open({str(tmp_path / "a")!r}, create=True).space(SPEC, create=True).writer(
    n_rows=1000, name="net", about={{}})
for i in range(0, 500, 5):
    part = photos(*range(i, i + 5))
    writer.add(part, model(part, SPEC.dim))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    space = Cache.open(tmp_path / "a").space(SPEC)
    assert not space.digests().size
    assert space.salvage() == 500
    assert (space.read(photos(*range(500)))[0] == model(photos(*range(500)), SPEC.dim)).all()
    assert verify(tmp_path / "a").clean


def test_salvage_takes_only_rows_that_hold(tmp_path: Path) -> None:
    space = Cache.open(tmp_path / "a", create=True).space(SPEC, create=True)
    writer = space.writer(n_rows=100, name="net", about={})
    writer.add(photos(*range(10)), model(photos(*range(10)), SPEC.dim))
    writer.abandon()
    (draft,) = (p for p in space.segments_folder.iterdir() if p.is_dir())
    shard = draft / "embedding" / "c" / "0" / "0.partial"
    raw = bytearray(shard.read_bytes()[:-40])  # power was cut: the last row is short,
    raw[256 * 3 + 1] ^= 8  # and row 3 was never written out
    shard.write_bytes(raw)
    assert space.salvage() == 8
    there = space.status(photos(*range(10)))
    assert np.flatnonzero(there == 0).tolist() == [3, 9]
    assert verify(tmp_path / "a").clean


def test_a_torn_journal_is_read_up_to_the_tear(tmp_path: Path) -> None:
    space = Cache.open(tmp_path / "a", create=True).space(SPEC, create=True)
    writer = space.writer(n_rows=100, name="net", about={})
    for i in range(4):
        writer.add(photos(i), model(photos(i), SPEC.dim))
    writer.abandon()
    (journal,) = space.segments_folder.glob("*/writing/journal")
    journal.write_bytes(journal.read_bytes()[:-3])
    assert space.salvage() == 3


def test_leftovers_are_deleted_once_no_process_can_be_using_them(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "a", create=True)
    space = cache.space(SPEC, create=True)
    fill(space, photos(1))
    write_ref(cache, "r")
    mine = disk.mark_of_process()
    dead = mine.replace(f"-{os.getpid()}-", "-4194305-")  # no process has this number
    elsewhere = re.sub("-[0-9a-f]{8}-", "-01234567-", mine)
    places = [cache.path, cache.path / "spaces", cache.path / "refs", space.segments_folder]
    for place in places:
        for name in (f".r.json.{mine}", f".r.json.{dead}", ".DS_Store", ".theirs.json"):
            (place / name).write_bytes(b"x")
        for age in (3500, 3700):
            old = place / f".r.json.{age}{elsewhere[4:]}"
            old.write_bytes(b"x")
            os.utime(old, (time.time() - age,) * 2)
        (place / f".old-{mine}").mkdir()
        (place / f".old-{mine}" / "x").write_bytes(b"x")
    report = verify(cache)
    assert report.leftovers == 5 * len(places)
    assert len(report.findings) == 2 * len(places)  # two are held here, one perhaps elsewhere
    assert all("a process that has ended" in found.problem for found in report.findings)
    assert any("refs/.DS_Store" in path for path in report.unseen)
    compact(cache)
    for place in places:
        hidden = sorted(path.name for path in place.glob(".*"))
        kept = sorted([f".r.json.{mine}", f".r.json.3500{elsewhere[4:]}"])
        assert hidden == [".DS_Store", *kept, ".theirs.json"]
    assert verify(cache).clean
    assert (Cache.open(cache.path).space(SPEC).read(photos(1))[0] == model(photos(1), 64)).all()


def test_what_a_killed_recorder_of_ids_left_is_swept_away(tmp_path: Path) -> None:
    script = f"""
import os, signal
from embedcache import disk
from embedcache.store import Cache
from tests.stores import photos
cache = Cache.open({str(tmp_path / "a")!r}, create=True)
disk.publish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
cache.record_photos("folder", ["a"], photos(1))
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    cache = Cache.open(tmp_path / "a")
    assert not cache.digests_of(["a"])[1].any()
    assert len(list((cache.path / "photos" / "segments").iterdir())) == 2
    cache.record_photos("folder", ["b"], photos(2))
    assert len(list((cache.path / "photos" / "segments").iterdir())) == 2
    assert verify(cache).leftovers == 0
