"""Several extractions at once into one cache: they see each other and share the work."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedcache.backbones.loading import Backbone
from embedcache.extraction import neighbours
from embedcache.extraction.handed_work import Job, work
from embedcache.extraction.handing import Others
from embedcache.extraction.neighbours import Neighbours
from embedcache.extraction.part_queue import HandedPart, PartQueue
from embedcache.extraction.plan import plan
from embedcache.extraction.run import Watch, extract
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests import stand_in
from tests.stand_in import vectors

MakePhotos = Callable[..., Path]
SPEC = "ab" * 32

CHILD = """
    import sys, time
    import numpy as np
    from embedcache import Cache, Photos, disk, extract
    from tests import stand_in

    disk.sync = disk.sync_folder = lambda _: None
    seen = []

    def work(n):
        seen.append(n)
        time.sleep(0.004 * n)

    photos = Photos.read(sys.argv[1])
    order = np.random.default_rng(int(sys.argv[3])).permutation(len(photos))
    some = sorted(order[: len(photos) // 2])
    ids, paths = ([all[i] for i in some] for all in (photos.ids, photos.paths))
    half = Photos(tuple(ids), tuple(paths), photos.scope)
    found = extract(half, Cache.open(sys.argv[2], create=True),
                    backbone=stand_in.backbone(before=work), workers=1).spaces[0]
    assert found.left == found.failed == 0, found
    print(sum(seen))
"""


def pictures(folder: Path, n: int) -> Path:
    folder.mkdir()
    for i in range(n):
        Image.new("RGB", (4, 4), (i % 256, i // 256, 9)).save(folder / f"{i:05}.png")
    return folder


def test_eight_processes_over_overlapping_photos_share_the_work(tmp_path: Path) -> None:
    n, folder = 2400, pictures(tmp_path / "photos", 2400)
    Cache.open(tmp_path / "c", create=True)
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), str(tmp_path / "c")]
    children = [
        subprocess.Popen(
            [*command, str(seed)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        for seed in range(8)
    ]
    embedded = [int(child.communicate()[0]) for child in children]
    cache = Cache.open(tmp_path / "c")
    held = cache.space(stand_in.backbone().spec).counts().ok
    assert all(child.returncode == 0 for child in children)
    assert 0.99 * n <= held <= n
    print(sum(embedded) / held, embedded)
    assert sum(embedded) <= 1.5 * held  # 1.26 on a busy machine, and 4 without sharing
    assert verify(cache).clean
    assert not list((cache.local / "at-work").iterdir())


def test_a_run_that_was_alone_shares_its_work_with_those_who_come_later(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "LOOK_SECONDS", 0.1)
    folder = pictures(tmp_path / "photos", 900)
    photos, embedded = Photos.read(folder), [0, 0]
    Cache.open(tmp_path / "c", create=True)

    def run(k: int) -> None:
        def work(n: int) -> None:
            embedded[k] += n
            time.sleep(0.003 * n)

        cache = Cache.open(tmp_path / "c")
        space = extract(photos, cache, backbone=stand_in.backbone(before=work), workers=1).spaces[0]
        assert space.hit + space.embedded == len(photos)

    first = threading.Thread(target=run, args=(0,))
    first.start()
    time.sleep(0.8)
    run(1)
    first.join()
    assert min(embedded) > 100
    assert sum(embedded) < 1.4 * len(photos), embedded
    alone = Cache.open(tmp_path / "alone", create=True)
    extract(photos, alone, backbone=stand_in.backbone())
    np.testing.assert_array_equal(
        vectors(Cache.open(tmp_path / "c"), photos), vectors(alone, photos)
    )


STOPPED = """
    import sys, time
    from embedcache import Cache, Photos, extract
    from tests import stand_in

    seen = []

    def work(n):
        seen.append(n)
        time.sleep(0.02 * n)

    print("begun", flush=True)
    found = extract(Photos.read(sys.argv[1]), Cache.open(sys.argv[2]),
                    backbone=stand_in.backbone(before=work), workers=1).spaces[0]
    assert found.left == found.failed == 0, found
    print(sum(seen))
"""


def test_a_run_that_was_stopped_looks_at_what_others_did_meanwhile(tmp_path: Path) -> None:
    folder, cache = pictures(tmp_path / "photos", 500), Cache.open(tmp_path / "c", create=True)
    command = [sys.executable, "-c", textwrap.dedent(STOPPED), str(folder), str(cache.path)]
    environ = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        segments, until = cache.path / "spaces", time.monotonic() + 60
        while not list(segments.glob("*/segments/*/writing/*")):  # it has begun to write
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGSTOP)
        done: list[int] = []
        model = stand_in.backbone(before=done.append)
        other = extract(Photos.read(folder), cache, backbone=model).spaces[0]
        assert other.left == 0
        os.kill(child.pid, signal.SIGCONT)
        embedded = int(child.communicate(timeout=60)[0])
    assert child.returncode == 0
    assert sum(done) + embedded <= 1.3 * 500, (sum(done), embedded)
    assert verify(cache).clean


def test_a_run_alone_writes_one_segment_and_leaves_no_file(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    cache = Cache.open(tmp_path / "c", create=True)
    model = stand_in.backbone()
    extract(Photos.read(make_photos(150)), cache, backbone=model)
    assert len(cache.space(model.spec).segments()) == 1
    assert not list((cache.local / "at-work").iterdir())


def test_only_living_runs_on_the_same_space_are_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache.open(tmp_path / "c", create=True)
    mine, theirs = Neighbours(cache, [SPEC]), Neighbours(cache, [SPEC])
    other_space = Neighbours(cache, ["cd" * 32])
    with mine.announced(), other_space.announced():
        assert not mine.present(now=True)
        with theirs.announced():
            assert mine.present(now=True)
        assert not mine.present(now=True)
        # A process that died on this machine, and one on another that has long been silent.
        dead = subprocess.run(
            [
                *(sys.executable, "-c"),
                "from embedcache import disk; print(disk.mark_of_process())",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        (cache.local / "at-work" / f"{SPEC[:16]}.{dead}").touch()
        assert not mine.present(now=True)
        away = cache.local / "at-work" / f"{SPEC[:16]}.0123abcd-89abcdef-1-1"
        away.touch()
        assert mine.present(now=True)
        os.utime(away, (time.time() - 700, time.time() - 700))
        assert not mine.present(now=True)
    assert not list((cache.local / "at-work").iterdir())


def test_workers_of_one_crew_are_no_neighbours_of_each_other(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "c", create=True)
    plain = Neighbours(cache, [SPEC])
    one, two = (Neighbours(cache, [SPEC], crew="0a") for _ in range(2))
    other = Neighbours(cache, [SPEC], crew="0b")
    with one.announced(), two.announced():
        assert not one.present(now=True)
        with other.announced():
            assert one.present(now=True)
        with plain.announced():
            assert two.present(now=True)
            assert plain.present(now=True)


def test_a_crew_and_a_plain_run_share_the_work_and_count_their_own(tmp_path: Path) -> None:
    n, folder = 2400, pictures(tmp_path / "photos", 2400)
    photos, cache = Photos.read(folder), Cache.open(tmp_path / "c", create=True)
    computed = {"plain": 0, "crew": 0}

    def model(who: str) -> Backbone:
        def pause(n: int) -> None:
            computed[who] += n
            time.sleep(0.002 * n)

        return stand_in.backbone(before=pause)

    crew = model("crew")
    digests = photos.digests(cache)
    space = cache.space(crew.spec, create=True)
    todo, _ = plan(photos, digests, [space], retry_failed=False)
    queue = PartQueue(len(todo), n_workers=2, buckets=todo.digests[:, 0].copy())
    job = Job(
        cache=cache.path,
        folder=tmp_path,
        marker=cache.path,
        backbones=(crew,),
        loading={"device": "cpu", "precision": "float32", "decode": "full"},
        detector="mtcnn",
        embedding={"batch_size": None, "compiling": "off", "writer": ""},
        workers=1,
        retry_failed=False,
        remote=None,
        crew="0a",
    )

    def ask(name: str) -> Callable[[Others], HandedPart | None]:
        def asked(others: Others) -> HandedPart | None:
            while True:
                part, more = queue.next(name, others())
                if part is not None or not more:
                    return part
                time.sleep(0.05)

        return asked

    def worker(name: str) -> None:
        assert queue.begin(name, "here")
        watch = Watch(lambda now: None, lambda line: None, lambda: False)
        work(
            *(Cache.open(cache.path), job, photos, todo, watch),
            name=name,
            n_workers=2,
            ask=ask(name),
            done=lambda *what: queue.done(name, *what),
        )

    threads = [threading.Thread(target=worker, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    found = extract(photos, Cache.open(cache.path), backbone=model("plain"), workers=1).spaces[0]
    for thread in threads:
        thread.join()
    print(computed)
    assert found.hit + found.embedded == n
    assert found.embedded == computed["plain"]
    assert queue.embedded() == (computed["crew"],)
    assert min(computed.values()) > n / 6
    assert sum(computed.values()) <= 1.15 * n, computed
    assert verify(cache).clean


def test_a_cache_whose_local_folder_is_closed_is_still_filled(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache.open(tmp_path / "c", create=True)
    (cache.local / "at-work").write_text("not a folder")
    found = extract(Photos.read(make_photos(5)), cache, backbone=stand_in.backbone()).spaces[0]
    assert found.embedded == 5
