"""Where an extraction may run: threads, forked processes, a part of the machine's processors."""

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache import machine
from embedcache.extraction.prefetch import Gate
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from tests import stand_in

MakePhotos = Callable[..., Path]


def test_an_extraction_runs_in_a_thread_also_as_commands_start_it(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedcache.commands import embedding
    from embedcache.extraction import networks

    monkeypatch.setattr(networks, "load_several", lambda *_, **__: [stand_in.backbone()])
    photos, embedded = Photos.read(make_photos(9)), list[int]()

    def work() -> None:
        cache = Cache.open(tmp_path / "c", create=True)
        found = embedding.embed_photos(photos, cache, ["stand-in"])
        embedded.append(found.spaces[0].embedded)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert embedded == [9]


FORK = """
    import os, sys
    from embedcache import Cache, Photos, extract
    from embedcache.errors import EmbedcacheError

    photos, cache, weights = sys.argv[1:]
    def run(part):
        some = Photos(photos.ids[part], photos.paths[part], photos.scope)
        return extract(some, Cache.open(cache, create=True), backbone=f"local-dir:{weights}")

    photos = Photos.read(photos)
    print(run(slice(0, 3)).spaces[0].embedded, flush=True)
    if os.fork() == 0:
        try:
            run(slice(3, 6))
        except EmbedcacheError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
    print(run(slice(3, 6)).spaces[0].embedded)
"""


def test_a_process_that_was_forked_after_an_extraction_is_refused_and_does_not_hang(
    make_photos: MakePhotos, tiny_weights: Path, tmp_path: Path
) -> None:
    words = [str(make_photos(6)), str(tmp_path / "c"), str(tiny_weights)]
    printed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORK), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ).stdout.splitlines()
    assert (printed[0], printed[2]) == ("3", "3")
    assert "get_context('spawn')" in printed[1]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux's affinity")
def test_only_the_processors_that_the_process_may_use_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    for allowed, quota, n in (({3}, None, 1), (set(range(64)), None, 64), ({1, 2, 5}, 1.5, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, allowed=allowed: allowed)
        monkeypatch.setattr(machine, "cpu_quota", lambda quota=quota: quota)
        assert machine.processors() == n
        assert Gate(None).workers == min(16, n)
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.25)
    assert machine.processors() == 1


def test_the_quota_of_a_container_is_read_in_both_versions(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "self"
    inner = root / "slice" / "pod"
    inner.mkdir(parents=True)
    own.write_text("0::/slice/pod\n")
    assert machine.cpu_quota(root, own) is None
    (inner / "cpu.max").write_text("max 100000\n")
    assert machine.cpu_quota(root, own) is None
    (root / "slice" / "cpu.max").write_text("250000 100000\n")  # of a group above
    assert machine.cpu_quota(root, own) == 2.5
    (inner / "cpu.max").write_text("nonsense\n")
    assert machine.cpu_quota(root, own) == 2.5

    old = root / "cpu" / "docker" / "x"
    old.mkdir(parents=True)
    own.write_text("3:memory:/docker/x\n5:cpu,cpuacct:/docker/x\n")
    (old / "cpu.cfs_quota_us").write_text("200000\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cpu_quota(root, own) == 2.0
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    assert machine.cpu_quota(root, own) is None
    assert machine.cpu_quota(root, tmp_path / "missing") is None
