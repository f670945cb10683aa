"""A cluster that is lost in the midst of a run: what is said, what is kept; and tokens."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.extraction import answering
from embedcache.extraction.answering import LOCAL, no_answer, set_token
from tests.extraction.test_cluster import wait_for_rows

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


def test_a_cluster_that_is_named_gets_the_token_that_is_here_if_it_asks(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def asks(address: str) -> bool:
        asked.append(address)
        return len(asked) > 1

    monkeypatch.setattr(answering, "_asks_for_token", asks)
    set_token("10.0.0.1:6379")
    assert asked == []
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("0" * 64)
    set_token("10.0.0.1:6379")
    assert "RAY_AUTH_MODE" not in os.environ
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
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_token_that_is_here_is_no_matter_to_a_cluster_without(
    make_photos: MakePhotos, tiny_weights: Path, tmp_path: Path, mode: str
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("0" * 64)
    environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environ["HOME"] = str(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    start += [f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    command = [sys.executable, "-m", "embedcache", "extract", str(make_photos(40))]
    command += ["--cache", str(tmp_path / "c"), "--backbone", f"local-dir:{tiny_weights}"]
    command += ["--ray", f"127.0.0.1:{port}", "--json"]
    with subprocess.Popen(start, env=environ | {"RAY_AUTH_MODE": mode}) as head:
        try:
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        finally:
            head.terminate()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["spaces"][0]["embedded"] == 40


@pytest.mark.torture
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("lost", "n", "seconds"), [("ray::PartQueue", 6000, 20), ("gcs_server", 25_000, 55)]
)
def test_a_run_whose_cluster_is_lost_says_so_and_is_finished_by_the_next(
    make_photos: MakePhotos, tiny_weights: Path, tmp_path: Path, lost: str, n: int, seconds: int
) -> None:
    cache = tmp_path / "c"
    folder = make_photos(n)
    asked = ["extract", folder, "--cache", cache, "--backbone", f"local-dir:{tiny_weights}"]
    command = [sys.executable, "-m", "embedcache", *map(str, asked), "--batch-size", "1"]
    command += ["--ray=", "--json"]
    before = processes(lost)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        wait_for_rows(cache, 300, of=driver)
        for pid in processes(lost) - before:
            os.kill(pid, signal.SIGKILL)
        assert driver.stderr is not None
        began, said = time.monotonic(), ""
        for said in driver.stderr:
            if said.startswith("error:"):
                break
        took = time.monotonic() - began
        driver.kill()
        assert driver.stdout is not None
        assert driver.stdout.read() == ""
    assert "What its workers have committed is kept: run the command again" in said
    assert took < seconds
    done = subprocess.run(command[:-2] + ["--json"], capture_output=True, text=True, check=True)
    [space] = json.loads(done.stdout)["spaces"]
    assert space["hit"] >= 300
    assert space["hit"] + space["embedded"] == n
    assert not [*(cache / "local").glob("ray-*")]


def processes(name: str) -> set[int]:
    listed = subprocess.run(["pgrep", "-f", name], capture_output=True, text=True, check=False)
    return {int(pid) for pid in listed.stdout.split()}


def test_the_seconds_that_a_silent_cluster_gets_are_less_than_rays_own() -> None:
    from embedcache.extraction import cluster

    assert cluster.NODES_SECONDS + cluster.SILENT_SECONDS < answering.RAY_ENDS_SECONDS
