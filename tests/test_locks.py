"""A lock that a stopped process holds is waited for a while; then a message says who has it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embedcache import disk, locks
from embedcache.errors import CacheError
from embedcache.sharing.share import push
from embedcache.store.cache import Cache
from embedcache.upkeep.pinning import delete_refs, write_ref
from heads.folders import replace_folder
from tests.upkeep.caches import make

HOLD = """
import fcntl, os, sys, time
fd = os.open(sys.argv[2], os.O_RDONLY if os.path.isdir(sys.argv[2]) else os.O_RDWR | os.O_CREAT)
getattr(fcntl, sys.argv[1])(fd, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[3]))
"""
Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Hold a lock in another process, for so many seconds; it ends with the test."""
    begun = []

    def new(how: str, path: Path, seconds: float = 60) -> "subprocess.Popen[str]":
        words = [sys.executable, "-c", HOLD, how, str(path), str(seconds)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        begun.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield new
    for process in begun:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def stop(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.4)
    return make(tmp_path / "a", 1, 2)


def test_a_deletion_of_refs_says_which_process_holds_them_and_what_to_do(
    cache: Cache, hold: Hold
) -> None:
    write_ref(cache, "one")
    process = hold("flock", cache.path / "refs")
    with pytest.raises(CacheError, match=rf"locked for 0 s by process {process.pid} \(python"):
        delete_refs(cache, ["one"])
    stop(process)
    with pytest.raises(CacheError, match=rf"is stopped.*'kill -CONT {process.pid}'"):
        delete_refs(cache, ["one"])
    process.kill()
    process.wait()
    assert delete_refs(cache, ["one"]).names == ("one",)


def test_a_push_waits_for_one_that_runs_and_not_for_one_that_is_stopped(
    cache: Cache, hold: Hold, tmp_path: Path
) -> None:
    process = hold("lockf", cache.local / "push.lock", 1.5)
    began = time.monotonic()
    push(cache, str(tmp_path / "shared"))
    assert time.monotonic() - began > 0.8
    process.wait()
    process = hold("lockf", cache.local / "push.lock")
    stop(process)
    with pytest.raises(CacheError, match=rf"push.lock is locked by process {process.pid} "):
        push(cache, str(tmp_path / "shared"))


def test_a_folder_that_a_stopped_fit_writes_is_named(
    cache: Cache, hold: Hold, tmp_path: Path
) -> None:
    process = hold("flock", tmp_path)
    stop(process)
    with pytest.raises(CacheError, match=rf"{tmp_path} is locked by process {process.pid} "):
        replace_folder(tmp_path / "fit", "fit.json", lambda folder: None)


def test_a_holder_that_is_unknown_is_another_process(
    cache: Cache, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold("flock", cache.path)
    monkeypatch.setattr(locks, "_lines", lambda path: [])
    found = pytest.raises(CacheError, match="by another process, on this machine or another")
    with found, locks.alone_in(cache.path):
        pass


def test_a_file_system_without_locks_is_no_obstacle(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locks.alone_in(cache.path):
        pass
