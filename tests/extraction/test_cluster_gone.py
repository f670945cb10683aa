"""A cluster that is lost in the midst of a run: what is said, what is kept; and tokens."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.errors import InputError
from embedcache.extraction import answering
from embedcache.extraction.answering import LOCAL, set_token
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
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
    wants = ["disabled"]  # who asks for no token refuses whoever sends one
    monkeypatch.setattr(answering, "_refuses", lambda address, mode, stop: mode not in wants)
    set_token("10.0.0.1:6379")
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("0" * 64)
    set_token("10.0.0.1:6379")
    assert "RAY_AUTH_MODE" not in os.environ
    wants = ["token"]
    set_token("10.0.0.1:6379")
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.usefixtures("home")
def test_who_says_how_ray_is_trusted_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    set_token(LOCAL)
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize(
    ("token", "said"), [(None, "asks for a token"), ("0" * 64, "refuses the token that is here")]
)
def test_a_token_that_is_missing_or_wrong_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, said: str
) -> None:
    if token is not None:
        (home / ".ray").mkdir()
        (home / ".ray/auth_token").write_text(token)
    answers = [  # as a cluster gives them: what Ray prints, and its status
        "raise SystemExit('ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken')"
    ]
    monkeypatch.setattr(answering, "ASK", [sys.executable, "-c", *answers])
    with pytest.raises(InputError, match=said) as found:
        set_token("10.0.0.1:6379")
    assert "auth_token" in str(found.value)
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.usefixtures("home")
def test_an_address_that_takes_connections_and_says_nothing_ends_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answering, "SILENT_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        answering.require_answer(address)
        with pytest.raises(InputError, match="does not answer as Ray does"):
            set_token(address)
        set_token(address, stop=lambda: True)


@pytest.mark.parametrize("status", [0, 1])
def test_a_command_ends_with_its_status_though_the_end_of_ray_hangs(status: int) -> None:
    """Python's own end beside such a thread is a segmentation fault."""
    code = f"""
        import atexit, os, threading, types, typer
        from embedcache.commands import shell
        from embedcache.extraction import connection

        app = typer.Typer()

        @app.command()
        def command() -> None:
            atexit.register(os.abort)
            connection.END_SECONDS = 0.1
            connection._disconnect(types.SimpleNamespace(shutdown=threading.Event().wait))
            print("said")
            raise typer.Exit({status})

        shell.run(app)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "said\n"), done.stderr


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


@pytest.mark.timeout(120)
def test_a_run_that_is_terminated_ends_as_after_ctrl_c(
    make_photos: MakePhotos, tiny_weights: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "c"
    asked = ["extract", make_photos(3000), "--cache", cache]
    command = [sys.executable, "-m", "embedcache", *map(str, asked), "--batch-size", "1"]
    command += ["--backbone", f"local-dir:{tiny_weights}", "--ray=", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        wait_for_rows(cache, 100, of=driver)
        driver.terminate()
        out, err = driver.communicate()
    assert driver.returncode == 130, err
    assert "stopping: committing what is done" in err
    [space] = json.loads(out)["spaces"]
    assert 0 < space["embedded"] < 3000
    assert len(Cache.open(cache).spaces()[0].digests()) == space["embedded"]
    assert verify(cache).clean, str(verify(cache))


def test_why_no_worker_can_begin_is_told_in_one_line() -> None:
    raised = "ray::Worker()\n  File x\n\x1b[36mImportError: no module named foo\x1b[39m\n"
    assert answering.last_line(raised) == "ImportError: no module named foo"


def test_a_port_that_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="is above 65,535"):
        answering.require_answer("127.0.0.1:99999")


def processes(name: str) -> set[int]:
    listed = subprocess.run(["pgrep", "-f", name], capture_output=True, text=True, check=False)
    return {int(pid) for pid in listed.stdout.split()}


def test_the_seconds_that_a_silent_cluster_gets_are_less_than_rays_own() -> None:
    from embedcache.extraction import cluster

    assert cluster.NODES_SECONDS + answering.SILENT_SECONDS < answering.RAY_ENDS_SECONDS
