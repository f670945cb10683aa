"""A run on Ray gives what one process gives, also when workers, nodes and the driver are killed."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache.backbones.loading import Backbone
from embedcache.commands.embedding import _refuse_failures
from embedcache.errors import EmbedcacheError, InputError
from embedcache.extraction import answering, cluster, connection
from embedcache.extraction.cluster import extract_on_ray
from embedcache.extraction.part_queue import LOST_SECONDS
from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests import stand_in

ray = pytest.importorskip("ray")

MakePhotos = Callable[..., Path]
SECONDS_PER_BATCH = 0.02


def slow_backbone() -> Backbone:
    """The stand-in, with a pause so that a run lasts long enough to be interrupted."""
    return stand_in.backbone(before=lambda n: time.sleep(SECONDS_PER_BATCH))


@pytest.fixture(scope="module")
def no_token() -> Iterator[None]:
    """Ray writes no token into the home folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def local_ray(no_token: None) -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=100 * 2**20,
        )
    except Exception as error:  # a machine whose limits Ray does not fit into
        pytest.skip(f"Ray does not start here: {error}")
    yield
    ray.shutdown()


def same(found: Cache, expected: Cache, photos: Photos) -> None:
    """Row by row, and nothing twice."""
    np.testing.assert_array_equal(
        stand_in.vectors(found, photos), stand_in.vectors(expected, photos)
    )
    [one], [other] = found.spaces(), expected.spaces()
    np.testing.assert_array_equal(one.digests(), other.digests())
    assert verify(found).clean


def workers_of(pids: set[int]) -> list[int]:
    """The processes of our workers, but for those in `pids`."""
    listed = subprocess.run(
        ["pgrep", "-f", "ray::Worker"], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in listed.stdout.split() if int(pid) not in pids]


@pytest.mark.usefixtures("local_ray")
def test_the_rows_are_those_of_one_machine_though_a_worker_is_killed(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos = Photos.read(make_photos(300))
    alone = Cache.open(tmp_path / "alone", create=True)
    extract(photos, alone, backbone=stand_in.backbone())
    before = set(workers_of(set()))

    def kill_one() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if mine := workers_of(before):
                time.sleep(0.5)
                os.kill(mine[0], signal.SIGKILL)
                return
            time.sleep(0.1)

    killing = threading.Thread(target=kill_one)
    killing.start()
    cache = Cache.open(tmp_path / "c", create=True)
    found = extract_on_ray(photos, cache, backbone=slow_backbone(), cores=1)
    killing.join()
    assert not found.interrupted
    assert stand_in.counts(found) == (300, 0, 300, 0)
    assert 3 <= len(found.nodes) <= 4
    assert sum(node.embedded for node in found.nodes) <= 300
    same(cache, alone, photos)
    again = extract_on_ray(photos, cache, backbone=slow_backbone(), cores=1)
    assert stand_in.counts(again) == (300, 300, 0, 0)
    assert again.nodes == ()


def deadly_backbone() -> Backbone:
    """The stand-in, whose process is killed by a white photo."""
    plain = stand_in.backbone()
    network = plain.open()
    [forward] = network.lanes

    def deadly(pixels: Any) -> Any:
        if (np.asarray(pixels) == 255).all(axis=(1, 2, 3)).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(pixels)

    return replace(plain, open=lambda: replace(network, lanes=(deadly,)))


@pytest.mark.usefixtures("local_ray")
def test_a_photo_that_kills_its_worker_takes_no_other_with_it(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(60)
    Image.new("RGB", (20, 20), "white").save(folder / "deadly.png")
    photos, cache = Photos.read(folder), Cache.open(tmp_path / "c", create=True)
    said: list[str] = []
    found = extract_on_ray(photos, cache, backbone=deadly_backbone(), cores=2, log=said.append)
    assert found.spaces[0].embedded == 60
    assert found.spaces[0].failures == {"worker_ended": 1}
    assert found.spaces[0].left == 0
    assert found.given_up == 1
    [line] = [line for line in said if "deadly.png" in line]
    assert "`retry_failed`" in line
    assert "batches of None" not in str(found)
    again = extract_on_ray(photos, cache, backbone=deadly_backbone(), cores=2)
    assert stand_in.counts(again) == (61, 60, 0, 1)
    cured = extract(photos, cache, backbone=stand_in.backbone(), retry_failed=True)
    assert cured.spaces[0].failed == 0
    assert verify(cache).clean


@pytest.mark.usefixtures("local_ray")
def test_photos_that_fail_are_counted_and_a_stop_keeps_what_is_done(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder = make_photos(200)
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    photos = Photos.read(folder)
    cache = Cache.open(tmp_path / "c", create=True)
    shown: list[int] = []
    found = extract_on_ray(
        photos,
        cache,
        backbone=stand_in.backbone(before=lambda n: time.sleep(0.3)),
        cores=2,
        progress=lambda now: None if now.doing else shown.append(now.done),
        stop=lambda: bool(shown) and shown[-1] > 5,
    )
    assert found.interrupted
    assert found.spaces[0].left > 0
    assert len(cache.spaces()[0].digests()) == found.spaces[0].embedded > 0
    rest = extract_on_ray(photos, cache, backbone=stand_in.backbone(), cores=2)
    assert rest.spaces[0].failed == 1
    assert rest.spaces[0].left == 0


@pytest.mark.usefixtures("local_ray")
def test_photos_are_found_from_where_the_command_runs(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_photos(20)
    monkeypatch.chdir(folder.parent)  # and not where Ray was started
    cache = Cache.open(tmp_path / "c", create=True)
    photos = Photos.read(Path(folder.name))
    found = extract_on_ray(photos, cache, backbone=stand_in.backbone(), cores=4)
    assert stand_in.counts(found) == (20, 0, 20, 0)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("seen_here", [False, True])
def test_photos_that_vanish_have_failed_and_those_that_only_workers_lack_are_left(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_here: bool
) -> None:
    photos, cache = Photos.read(make_photos(20)), Cache.open(tmp_path / "c", create=True)
    marked = cluster._marked

    def gone(marker: Path) -> Any:
        for path in photos.paths[:5]:  # after they were looked at
            Path(path).unlink()
        return marked(marker)

    monkeypatch.setattr(cluster, "_marked", gone)
    if seen_here:  # as where the command's machine has a folder that the workers' have not
        monkeypatch.setattr(os, "access", lambda path, mode: True)
    said: list[str] = []
    found = extract_on_ray(photos, cache, backbone=stand_in.backbone(), cores=4, log=said.append)
    [space] = found.spaces
    if not seen_here:  # as of the plain command
        assert (space.embedded, space.failures, space.left) == (15, {"vanished": 5}, 0)
        _refuse_failures(found, None)
        return
    assert (space.embedded, space.failures, space.left) == (15, {}, 5)
    [line] = [line for line in said if "5 photos not seen by" in line]
    assert socket.gethostname() in line
    assert photos.paths[0] in line
    with pytest.raises(EmbedcacheError, match="5 of 20 photos left: changed or gone"):
        _refuse_failures(found, None)


def test_a_stop_ends_the_wait_for_an_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    began = time.monotonic()
    answering.require_answer(f"127.0.0.1:{port}", stop=lambda: time.monotonic() > began + 1)
    assert time.monotonic() - began < 20


@pytest.mark.usefixtures("local_ray")
def test_a_run_of_few_photos_ends_well_every_time(make_photos: MakePhotos, tmp_path: Path) -> None:
    photos = Photos.read(make_photos(3))
    for i in range(4):
        cache = Cache.open(tmp_path / str(i), create=True)
        found = extract_on_ray(photos, cache, backbone=stand_in.backbone(), cores=4)
        assert stand_in.counts(found) == (3, 0, 3, 0)


@pytest.mark.usefixtures("local_ray")
def test_a_cache_that_workers_do_not_see_is_refused_or_filled_by_the_remote(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = Photos.read(make_photos(40))
    cache = Cache.open(tmp_path / "c", create=True)
    monkeypatch.setattr(cluster, "_marked", _unmarked)
    with pytest.raises(InputError, match="does not see"):
        extract_on_ray(photos, cache, backbone=stand_in.backbone(), cores=2)
    shared = (tmp_path / "shared").as_uri()
    found = extract_on_ray(
        photos, cache, backbone=stand_in.backbone(), cores=2, remote=shared, offer=True
    )
    assert stand_in.counts(found) == (40, 0, 40, 0)
    assert found.taken == 40


def _unmarked(marker: Path) -> Any:
    """As on a machine that does not see the cache."""
    import contextlib

    return contextlib.nullcontext()


def test_an_address_where_no_cluster_is_and_a_missing_package_are_one_message(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = Photos.read(make_photos(2))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="pip install ray"):
        extract_on_ray(
            photos, Cache.open(tmp_path / "c", create=True), backbone=stand_in.backbone()
        )


def test_a_package_that_cannot_be_imported_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/__init__.py").write_text("raise ImportError('libfoo.so: no such file')")
    monkeypatch.delitem(sys.modules, "ray")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"cannot import it \(libfoo.so: no such file\)"):
        connection.ray_package()


def test_who_waits_for_the_processors_of_a_cluster_says_so_once() -> None:
    said: list[str] = []
    crew: Any = SimpleNamespace(
        _free=None,
        _said_waiting=False,
        _ray=SimpleNamespace(available_resources=lambda: {"memory": 1.0}),
        _answered=lambda ask: ask(),
        _places={"a": answering.Place("1", "host", 8, 0)},
        _watch=SimpleNamespace(log=said.append),
    )
    cluster._Crew._say_waiting(crew, cluster.WAIT_SECONDS - 1)
    assert not crew._free
    cluster._Crew._say_waiting(crew, cluster.WAIT_SECONDS + 1)
    asked: Any = crew._free
    asked.result(10)
    for _ in range(3):
        cluster._Crew._say_waiting(crew, cluster.WAIT_SECONDS + 1)
    [line] = said
    assert "a worker needs 8 processors, and other work on the cluster leaves 0" in line


def test_workers_that_are_all_silent_are_replaced_once_and_then_the_run_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    done: list[tuple[str, str]] = []
    crew: Any = SimpleNamespace(
        _replaced=0.0,
        _n_replaced=0,
        _runs={object(): "a"},
        _actors={"a": "actor"},
        _places={"a": answering.Place("1", "host", 8, 0)},
        _ray=SimpleNamespace(kill=lambda actor: done.append(("killed", actor))),
        _queue=SimpleNamespace(lost=SimpleNamespace(remote=lambda name: name)),
        _ask=lambda name: done.append(("lost", name)),
        _employ=lambda name, place: done.append(("began", name)),
    )
    cluster._Crew._replace_silent(crew, LOST_SECONDS)  # slow, and it still says that it lives
    assert done == []
    for _ in range(2):
        cluster._Crew._replace_silent(crew, LOST_SECONDS + 1)
    assert done == [("killed", "actor"), ("lost", "a"), ("began", "a-1")]
    now[0] += LOST_SECONDS + 1
    with pytest.raises(EmbedcacheError, match=r"no worker .* has answered for 122 s"):
        cluster._Crew._replace_silent(crew, 122.0)
    cluster._Crew._replace_silent(crew, 0.0)  # one lives again
    assert crew._replaced == 0.0


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "[::1]:{port}", "no-such-host.invalid:1"])
def test_an_address_where_nobody_answers_ends_the_command_and_records_nothing(
    make_photos: MakePhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(answering, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    photos, cache = Photos.read(make_photos(2)), Cache.open(tmp_path / "c", create=True)
    before = sorted(cache.path.rglob("*"))
    with pytest.raises(InputError, match="no Ray cluster answers"):
        extract_on_ray(
            photos, cache, backbone=stand_in.backbone(), address=address.format(port=port)
        )
    assert sorted(cache.path.rglob("*")) == before


def test_photos_after_the_option_are_not_taken_for_an_address(
    run: Callable[..., tuple[int, str, str]], make_photos: MakePhotos, tmp_path: Path
) -> None:
    table = tmp_path / "photos.csv"
    table.write_text("path\n")
    for photos in (make_photos(2), table):
        words = ("extract", "--ray", str(photos), "--cache", str(tmp_path / "c"))
        for more in ([], [str(photos)]):
            status, _, err = run(*words, *more)
            assert status == 1
            assert "PHOTOS before --ray" in err
    assert not (tmp_path / "c").exists()


DRIVER = """
    import sys, time
    from pathlib import Path
    from embedcache.extraction.cluster import extract_on_ray
    from embedcache.photos.table import Photos
    from embedcache.store.cache import Cache
    from tests import stand_in

    def work(n):
        time.sleep(0.02)

    if __name__ == "__main__":
        photos = Photos.read(Path(sys.argv[1]))
        cache = Cache.open(Path(sys.argv[2]), create=True)
        found = extract_on_ray(
            photos, cache, address=sys.argv[3], cores=1, backbone=stand_in.backbone(before=work)
        )
        print(found.spaces[0].embedded, found.spaces[0].hit)
"""


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("no_token")
def test_twenty_thousand_photos_survive_workers_a_node_and_the_driver(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    n = 20_000
    folder = make_photos(n)
    photos = Photos.read(folder)
    alone = Cache.open(tmp_path / "alone", create=True)
    extract(photos, alone, backbone=stand_in.backbone())
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    lost = nodes.add_node(num_cpus=2)
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    command = [sys.executable, str(script), str(folder), str(tmp_path / "c"), nodes.address]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        with subprocess.Popen(command, env=environ) as driver:
            wait_for_rows(tmp_path / "c", n // 5, of=driver)
            for pid in workers_of(set())[:2]:
                os.kill(pid, signal.SIGKILL)
            wait_for_rows(tmp_path / "c", 2 * n // 5, of=driver)
            nodes.remove_node(lost, allow_graceful=False)
            wait_for_rows(tmp_path / "c", 3 * n // 5, of=driver)
            driver.kill()
        time.sleep(5)
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    finally:
        nodes.shutdown()
    cache = Cache.open(tmp_path / "c")
    same(cache, alone, photos)
    written = sum(s.manifest.n_ok for s in cache.spaces()[0].segments())
    print(f"{done.stdout.strip()}; {written - n} of {n} rows were computed twice")
    assert written - n <= 0.02 * n


def wait_for_rows(path: Path, n: int, *, of: subprocess.Popen[Any]) -> None:
    """Wait until a cache holds n rows, written by a process or for it."""
    until = time.monotonic() + 900
    while time.monotonic() < until:
        assert of.poll() is None, f"the process ended with status {of.returncode}"
        try:
            spaces = Cache.open(path).spaces()
            if spaces and len(spaces[0].digests()) >= n:
                return
        except Exception:  # it is just being made
            pass
        time.sleep(0.5)
    raise TimeoutError(f"{path} has no {n} rows")
