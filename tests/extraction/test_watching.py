"""`info --watch`: who writes to a cache at the moment, and how fast."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedcache.display import shown_again
from embedcache.extraction.neighbours import Neighbours, Reading
from embedcache.extraction.run import extract
from embedcache.extraction.watching import CacheNow, WriterNow, WriterWatch
from embedcache.photos.table import Photos
from embedcache.spec import Json
from embedcache.store import journal
from embedcache.store.cache import Cache
from tests import stand_in

MakePhotos = Callable[..., Path]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.getcwd()}

CHILD = """
    import sys, time
    from embedcache import Cache, Photos, extract
    from embedcache.extraction.parts import WorkPart
    from tests import stand_in

    def work(n):
        time.sleep(0.02 * n)

    extract(Photos.read(sys.argv[1]), Cache.open(sys.argv[2], create=True), workers=1,
            backbone=stand_in.backbone(before=work), part=WorkPart.parse(sys.argv[3]))
"""


@contextmanager
def writers(photos: Path, cache: Path, n: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """n processes that embed at some 50 photos/s each."""
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(photos), str(cache)]
    parts = [f"{i + 1}/{n}" for i in range(n)]
    children = [subprocess.Popen([*command, part], env=ENVIRONMENT) for part in parts]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait()


def seen(watch: WriterWatch, *, until: Callable[[CacheNow], bool]) -> CacheNow:
    deadline = time.monotonic() + 60
    while not until(now := watch.look()):
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    return now


def test_writers_are_seen_with_their_rates_and_no_more_once_they_end(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(400)
    cache = Cache.open(tmp_path / "c", create=True)
    watch = WriterWatch(cache)
    assert watch.look().writers == ()
    with writers(folder, cache.path, 2) as children:
        now = seen(watch, until=lambda now: sum(w.rows > 0 for w in now.writers) == 2)
        assert {writer.process for writer in now.writers} == {child.pid for child in children}
        assert {writer.backbone for writer in now.writers} == {"stand-in"}
        assert all(writer.host for writer in now.writers)
        time.sleep(1)
        now = seen(watch, until=lambda now: all(w.photos_per_second > 0 for w in now.writers))
        for writer in now.writers:
            assert 5 < writer.photos_per_second < 60
        children[0].kill()
        children[0].wait()
        [left] = seen(watch, until=lambda now: len(now.writers) == 1).writers
        assert left.process == children[1].pid
    assert watch.look().writers == ()
    # What the killed ones had synced or written is salvaged by the next run.
    extract(Photos.read(folder), cache, backbone=stand_in.backbone())
    assert watch.look().rows == 400


def test_a_run_between_two_segments_is_still_seen(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "c", create=True)
    model = stand_in.backbone()
    space = cache.space(model.spec, create=True)
    with Neighbours(cache, [model.spec.digest]).announced():
        [writer] = WriterWatch(cache).look().writers
        assert (writer.process, writer.rows) == (os.getpid(), 0)
        # Its own journal a process must not even open: closing it would drop the lock.
        with space.writer(n_rows=5, name="net", about={}) as one:
            one.fail(bytes_of(3), ["broken"] * 3)
            [folder] = [f for f in space.segments_folder.iterdir() if (f / "writing").is_dir()]
            assert journal.look(folder) is None
            assert len(WriterWatch(cache).look().writers) == 1


def test_runs_that_read_photos_or_load_are_shown_before_they_write(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    cache, seen = Cache.open(tmp_path / "c", create=True), []
    watch = WriterWatch(cache)

    def look(now: object) -> None:
        if getattr(now, "doing", "") == "reading":
            seen.append(watch.look())

    found = extract(Photos.read(make_photos(5)), cache, backbone=stand_in.backbone(), progress=look)
    assert found.spaces[0].embedded == 5
    assert {now.starting for now in seen} == {1}
    assert "0 writers, 0.0 photos/s; 1 starting (reading photos, loading)" in str(seen[0])
    assert seen[0].document()["starting"] == 1
    with Reading(cache), Reading(Cache.open(cache.path)):  # two runs of one process
        assert watch.look().starting == 2
    assert watch.look().starting == 0


def test_runs_that_died_while_they_read_are_not_shown_and_tidied_away(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "c", create=True)
    code = """
        import os, sys
        from embedcache import Cache
        from embedcache.extraction.neighbours import Reading
        Reading(Cache.open(sys.argv[1])).__enter__()
        os._exit(1)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(cache.path)]
    subprocess.run(command, env=ENVIRONMENT, check=False)
    assert len(list((cache.local / "at-work").iterdir())) == 1
    assert WriterWatch(cache).look().starting == 0
    away = cache.local / "at-work" / "reading.all.0123abcd-89abcdef-1-1"
    away.touch()
    assert WriterWatch(cache).look().starting == 1
    os.utime(away, (time.time() - 700, time.time() - 700))
    assert WriterWatch(cache).look().starting == 0
    with Reading(cache):
        assert len(list((cache.local / "at-work").iterdir())) == 2  # its own, and that far away


def bytes_of(n: int) -> NDArray[np.uint8]:
    return np.arange(32 * n, dtype=np.uint8).reshape(n, 32)


def test_the_command_prints_a_document_a_refresh_until_it_is_interrupted(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder, cache = make_photos(1200), tmp_path / "c"
    Cache.open(cache, create=True)
    command = [sys.executable, "-m", "embedcache", "info", str(cache), "--watch"]
    with writers(folder, cache, 1) as [child]:
        watcher = subprocess.Popen(
            [*command, "--json"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        assert watcher.stdout is not None
        documents = [json.loads(watcher.stdout.readline())]
        while not documents[-1]["writers"] and len(documents) < 40:  # it starts for some seconds
            documents.append(json.loads(watcher.stdout.readline()))
        watcher.send_signal(signal.SIGINT)
        rest, _ = watcher.communicate(timeout=20)
        assert watcher.returncode == 0
        assert not rest
        assert set(documents[0]) == {*("path", "rows", "photos_per_second", "starting", "writers")}
        assert all(w["process"] == child.pid for d in documents for w in d["writers"])
        assert documents[-1]["writers"]
        lines = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        assert lines.stdout is not None
        first = [lines.stdout.readline()]
        while "1 writer" not in first[-1] and len(first) < 40:
            first.append(lines.stdout.readline())
        first = [first[-1], lines.stdout.readline()]
        lines.send_signal(signal.SIGINT)
        lines.communicate(timeout=20)
        assert "1 writer" in first[0]
        assert f"process {child.pid}" in first[1]


@pytest.mark.parametrize("more", [["--photos"], ["--failed"], ["--ref", "r"]])
def test_a_watch_of_something_else_is_refused(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, more: list[str]
) -> None:
    Cache.open(tmp_path / "c", create=True)
    status, _, err = run("info", str(tmp_path / "c"), "--watch", *more)
    assert status == 1
    assert "--watch" in err
    assert run("info", "s3://bucket/team", "--watch")[0] == 1


def test_what_is_shown_names_the_silent_ones() -> None:
    writer = WriterNow(
        host="gpu1",
        process=7,
        backbone="net",
        rows=12_000,
        photos_per_second=71.04,
        quiet_seconds=44,
    )
    now = CacheNow(path="/c", rows=81_920, writers=(writer,))
    first, line = str(now).splitlines()
    assert "81,920 rows committed, 1 writer, 71.0 photos/s" in first
    assert line.split("  ") == [
        "",
        "gpu1",
        "process 7",
        "net",
        "12,000 rows",
        "71.0 photos/s",
        "quiet for 44 s",
    ]
    assert now.document()["writers"] == [writer.document()]


def test_an_interrupt_that_python_drops_ends_the_refreshes_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Result:
        def __init__(self, n: int) -> None:
            self.n = n

        def __str__(self) -> str:
            return f"refresh {self.n}"

        def document(self) -> dict[str, Json]:
            return {"n": self.n}

    def results() -> Iterator[Result]:
        yield Result(1)
        with contextlib.suppress(KeyboardInterrupt):  # as Python does amid a destructor
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        yield Result(2)
        pytest.fail("went on")

    before = signal.getsignal(signal.SIGINT)
    shown_again(results())
    assert capsys.readouterr().out == "refresh 1\n"
    assert signal.getsignal(signal.SIGINT) is before
