"""What a run needs to know of a Ray cluster, without Ray: who answers, by which token, who does not
any more, and where workers have room. Ray itself would wait without end, or end the process.
"""

import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import EmbedcacheError, InputError

LOCAL = "local"
CORES = 8
"""Processors of a worker without a GPU; more serve better as a second worker."""

MAX_PORT = 65_535
ANSWER_SECONDS = 60.0
"""How long a cluster that is being started may take."""
AGAIN_SECONDS, CONNECT_SECONDS = 0.5, 5.0
SILENT_SECONDS = 30.0
"""A cluster that answers nothing for so long is none, or has gone."""
ASK = [sys.executable, "-m", "ray.scripts.scripts", "status"]
RAY_ENDS_SECONDS = 60.0
"""After so long without the head node Ray ends every process of the cluster, ours too."""


class ClusterGone(EmbedcacheError):
    """A cluster, or what of it ran for this command, that does not answer any more."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"the Ray cluster does not answer any more ({first_line(problem)}). What its workers "
            "have committed is kept: run the command again"
        )


def set_token(address: str, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Let Ray's processes know each other by a token, before ray is imported.

    Ray writes a token into the home folder for a cluster of its own, after which every 'ray start'
    asks for it; and it sends none to a cluster that is named. So a cluster of our own has a token
    of its own, and one that is named gets the token that is here if it asks for one: a cluster that
    asks for none takes whoever expects one for dead.
    Raises InputError where a named cluster does not answer, or refuses the token that is here.
    """
    settled = "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ
    variables = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if address == LOCAL:
        if not settled:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            if not variables:
                os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return
    here = variables or (Path.home() / ".ray/auth_token").exists()
    if "://" in address:  # a kind of address that cannot be asked
        if here and not settled:
            os.environ["RAY_AUTH_MODE"] = "token"
        return
    mode = os.environ.get("RAY_AUTH_MODE", "disabled")
    refused = _refuses(address, mode, stop=stop)
    if refused and here and not settled:
        mode = "token"
        refused = _refuses(address, mode, stop=stop)
    if refused:
        raise InputError(
            f"the Ray cluster at {address!r} "
            + ("refuses the token that is here" if mode == "token" else "asks for a token"),
            advice="Copy its ~/.ray/auth_token here, or set RAY_AUTH_TOKEN (and no RAY_AUTH_MODE)",
        )
    if mode == "token" and not settled:
        os.environ["RAY_AUTH_MODE"] = mode


def _refuses(address: str, mode: str, *, stop: Callable[[], bool]) -> bool:
    """Whether a cluster wants another token than it gets where that is sent as `mode` says.

    Ray itself would try for 20 seconds and not say it, and wait without end for an address that
    takes connections and says nothing: InputError for that one.
    """
    environ = os.environ | {"RAY_AUTH_MODE": mode, "RAY_ADDRESS": address}
    with subprocess.Popen(
        ASK,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as asking:
        until = time.monotonic() + SILENT_SECONDS
        while True:
            try:
                said = asking.communicate(timeout=AGAIN_SECONDS)[1]
            except subprocess.TimeoutExpired:
                if stop() or time.monotonic() > until:
                    asking.kill()
                    asking.communicate()
                    if stop():
                        return False
                    raise no_answer(
                        address, "it takes connections, and does not answer as Ray does"
                    ) from None
            else:
                return asking.returncode != 0 and "AuthenticationError" in said


def require_answer(address: str, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Raise InputError where nobody listens at host:port within ANSWER_SECONDS, unless `stop`.

    Other forms of an address ("local", "auto", ray://...) are left to Ray.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or "/" in host or not port.isdecimal():
        return
    if int(port) > MAX_PORT:
        raise InputError(f"the port of {address!r} is above {MAX_PORT:,}")
    until = time.monotonic() + ANSWER_SECONDS
    while not stop():
        left = until - time.monotonic()
        try:
            with socket.create_connection((host, int(port)), min(max(left, 0.1), CONNECT_SECONDS)):
                return
        except (OSError, OverflowError, UnicodeError) as error:
            if left <= AGAIN_SECONDS or not isinstance(
                error, ConnectionRefusedError | TimeoutError
            ):
                raise no_answer(address, str(error)) from error
        time.sleep(AGAIN_SECONDS)


def no_answer(address: str, problem: str) -> InputError:
    """The error where no cluster is; problem: its first line is shown."""
    if address == LOCAL:
        return InputError(f"Ray does not start on this machine ({first_line(problem)})")
    return InputError(
        f"no Ray cluster answers at {address!r} ({first_line(problem)})",
        advice="Start one with 'ray start --head', or leave the address out",
    )


def aside(ask: Callable[[], Any]) -> "Future[Any]":
    """What a call gives that may wait for a lost cluster without end: nothing waits for it."""
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:  # raised where the answer is taken
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer


@dataclass(frozen=True, slots=True)
class Place:
    """Room for one worker on a node."""

    node: str
    host: str
    cpus: int
    gpus: int


def places_on(nodes: Sequence[dict[str, Any]], *, cores: int | None) -> list[Place]:
    """Room for workers on nodes that live: one per GPU, else one per so many processors."""
    found = []
    for node in nodes:
        has = node["Resources"] if node["Alive"] else {}
        cpus, gpus = int(has.get("CPU", 0)), int(has.get("GPU", 0))
        each = max(1, cpus // gpus) if gpus else min(cores or CORES, max(1, cpus))
        n = gpus or cpus // each
        found += [Place(node["NodeID"], node["NodeManagerHostname"], each, min(gpus, 1))] * n
    return found


def last_line(problem: str) -> str:
    """The last line of a traceback, without colours: what it comes to."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", problem).strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""


def first_line(problem: str) -> str:
    """A problem in one line."""
    return (problem.strip().splitlines() or ["no reason is known"])[0][:200]
