"""A cluster that is lost in the midst of a run: what is said, what is kept; and tokens."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.extraction import answering
from embedcache.extraction.answering import LOCAL, no_answer, set_token
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from tests import stand_in
from tests.extraction.test_cluster import DRIVER, wait_for_rows

pytest.importorskip("ray")

MakePhotos = Callable[..., Path]
VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own, no variable of Ray's tokens, and ray not imported yet."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is as before, afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    return tmp_path


def test_a_cluster_of_our_own_has_a_token_that_no_file_keeps(home: Path) -> None:
    set_token(LOCAL)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert list(home.iterdir()) == []


def test_a_cluster_that_is_named_gets_the_token_that_is_here(home: Path) -> None:
    set_token("10.0.0.1:6379")
    assert "RAY_AUTH_MODE" not in os.environ
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("0" * 64)
    set_token("10.0.0.1:6379")
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.usefixtures("home")
def test_who_says_how_ray_is_trusted_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    set_token(LOCAL)
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert "token" in str(no_answer("a:1", "InvalidAuthToken: no"))


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lost", ["ray::PartQueue", "gcs_server"])
def test_a_run_whose_cluster_is_lost_says_so_and_is_finished_by_the_next(
    make_photos: MakePhotos, tmp_path: Path, lost: str
) -> None:
    from ray.cluster_utils import Cluster

    n = 3000
    photos = Photos.read(make_photos(n))
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    folder = Path(photos.paths[0]).parent
    for number in range(2):
        before = processes(lost)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        command = [sys.executable, str(script), str(folder), str(tmp_path / "c"), nodes.address]
        try:
            with subprocess.Popen(
                command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as driver:
                if number == 0:
                    wait_for_rows(tmp_path / "c", n // 5)
                    for pid in processes(lost) - before:
                        os.kill(pid, signal.SIGKILL)
                began = time.monotonic()
                out, errors = driver.communicate(timeout=300)
                took = time.monotonic() - began
        finally:
            nodes.shutdown()
        if number == 0:
            assert driver.returncode == 1
            assert "ClusterGone" in errors.strip().splitlines()[-1]
            assert "run the command again" in errors
            assert took < 60
    assert driver.returncode == 0, errors
    embedded, hit = map(int, out.split())
    assert embedded + hit == n
    assert hit >= n // 5
    cache = Cache.open(tmp_path / "c")
    assert len(stand_in.vectors(cache, photos)) == n
    assert not [*cache.local.glob("ray-*")]


def processes(name: str) -> set[int]:
    listed = subprocess.run(["pgrep", "-f", name], capture_output=True, text=True, check=False)
    return {int(pid) for pid in listed.stdout.split()}


def test_the_seconds_that_a_silent_cluster_gets_are_less_than_rays_own() -> None:
    from embedcache.extraction import cluster

    assert cluster.NODES_SECONDS + cluster.SILENT_SECONDS < answering.RAY_ENDS_SECONDS
