"""Connections that break, and servers that fail, fall silent or never answer."""

import contextlib
import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from embedcache.remotes import opening, patience
from embedcache.remotes.patience import TRIES, Patient, read_small
from embedcache.remotes.remote import Unreachable
from embedcache.sharing.moved import Moved
from embedcache.sharing.share import pull, push
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.remotes.servers import (
    Faulty,
    Proxy,
    complete,
    two_segments,
    unhurried,
)
from tests.sharing.members import intact

FAULTS: tuple[int | str, ...] = (503, 500, 429, "silence", "cut", "late")


def first_four(first: int, size: int) -> Callable[[int], int | None]:
    """Four connections after number `first` break after `size` bytes."""
    return lambda number: size if number - first < 4 else None


def test_a_broken_connection_is_retried(
    s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = two_segments(tmp_path / "a")
    for seed, size in enumerate((0, 150, 1200)):
        url = f"s3://team/{os.urandom(4).hex()}"
        b = Cache.open(tmp_path / f"b{seed}", create=True)
        first = s3.n_connections
        s3.cuts = first_four(first, size)
        push(a, unhurried(url, monkeypatch))
        first = s3.n_connections
        pull(unhurried(url, monkeypatch), b)
        assert complete(b)


def test_a_connection_that_stays_broken_is_reported(
    s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.cuts = lambda n: 10
    with pytest.raises(Unreachable, match="rerun the command") as caught:
        push(two_segments(tmp_path / "a"), unhurried("s3://team/x", monkeypatch))
    for secret in ("AKIDSECRETID", "secretsecret"):
        assert secret not in str(caught.value)


@contextlib.contextmanager
def mute() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_never_answers_is_reported_and_given_up(
    s3: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(patience, "QUIET_SECONDS", 0.1)
    lines: list[str] = []
    with mute() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        silent = Patient(opening.choose("s3://team/x", "test"), tell=lines.append)
        began = time.monotonic()
        with pytest.raises(Unreachable):
            silent._patiently(lambda: read_small(silent._remote, "zarr.json", limit=9), 0.5)
    assert time.monotonic() - began < 2.5
    [line] = lines
    assert line.startswith("s3://team/x does not answer; retrying for up to")


def test_a_dead_port_is_reported_once_and_a_quick_failure_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
    for quiet, n_lines in ((True, 0), (False, 1)):
        lines: list[str] = []
        dead = fakes.Flaky(fakes.folder(Path("absent")), lambda n: "before")
        silent = Patient(dead, sleep=lambda s: None, tell=lines.append, tries=2 if quiet else TRIES)
        with pytest.raises(Unreachable):
            silent.create("a", b"")
        assert len(lines) == n_lines


def test_a_long_write_has_no_overall_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    flaky = fakes.Flaky(fakes.folder(Path("absent")), fakes.since(1, "before"))
    patient = Patient(flaky, sleep=lambda seconds: None, tell=lambda line: None)
    with pytest.raises(Unreachable):
        patient.write("a", lambda: iter([b""]), size=0)
    assert flaky.n_requests == TRIES
    with pytest.raises(Unreachable):
        patient.create("a", b"")
    assert flaky.n_requests == TRIES + 2


def reached(faulty: Faulty, k: int, fault: int | str, work: Callable[[], Moved]) -> bool:
    """Whether there was a k-th request; it fails once, and the work is still done."""
    first = faulty.n_requests
    faulty.fault = lambda number: fault if number - first == k else ""
    assert work().problems == ()
    return faulty.n_requests - first >= k


def broken_off(faulty: Faulty, k: int, fault: int | str, work: Callable[[], Moved]) -> bool:
    """Whether there was a k-th request; it and all later ones fail, and that is reported."""
    first, done = faulty.n_requests, False
    faulty.fault = lambda number: fault if number - first >= k else ""
    with contextlib.suppress(Unreachable):
        assert work().problems == ()
        done = True
    return not done


def check_faults(
    s3_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, numbers: Iterable[int]
) -> None:
    """The k-th HTTP request fails, for each k, in each way in turn: permanently, then once."""
    monkeypatch.setattr(opening, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(opening, "ANSWER_SECONDS", 0.3)
    faulty, a = Faulty(s3_port), two_segments(tmp_path / "a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{faulty.port}")
    for number in numbers:
        k, fault = number // len(FAULTS) + 1, FAULTS[number % len(FAULTS)]
        again = False
        for works in (broken_off, reached):
            url = f"s3://team/{os.urandom(4).hex()}"
            b = Cache.open(tmp_path / f"b{number}", create=True)
            again |= works(faulty, k, fault, partial(push, a, unhurried(url, monkeypatch, tries=3)))
            faulty.fault = lambda number: ""
            push(a, unhurried(url, monkeypatch))
            again |= works(faulty, k, fault, partial(pull, unhurried(url, monkeypatch, tries=3), b))
            assert intact(b), (k, fault)
            assert not b.spaces() or len(b.spaces()[0].digests()) in (0, 2, 3, 5)
            faulty.fault = lambda number: ""
            pull(unhurried(url, monkeypatch), b)
            assert complete(b), (k, fault)
            assert verify(b).clean, (k, fault)
            shutil.rmtree(b.path)
        if not again:  # more requests than there are
            break
    faulty.close()


def test_a_server_that_throttles_fails_or_falls_silent_is_retried(
    s3_port: int, s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [len(FAULTS) * k + way for way, k in enumerate((0, 30, 0, 1, 7, 16)) if k]
    check_faults(s3_port, monkeypatch, tmp_path, sorted(some))


@pytest.mark.torture
@pytest.mark.parametrize("shift", range(len(FAULTS)))
def test_a_server_that_fails_at_any_request_in_any_way_is_retried(
    shift: int, s3_port: int, s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = len(FAULTS)
    check_faults(
        s3_port, monkeypatch, tmp_path, (ways * k + (k + shift) % ways for k in range(200))
    )
