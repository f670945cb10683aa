"""Servers on loopback, proxies that break connections, and a cache to send."""

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embedcache.remotes import opening, patience
from embedcache.remotes.patience import TRIES, Patient
from embedcache.remotes.remote import Remote
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from tests.stores import fill, model, photos

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server did not come up")


class Proxy:
    """Passes TCP connections on to a server; `cuts` says after how many bytes each one breaks."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.n_connections = 0
        self.cuts: Callable[[int], int | None] = lambda number: None
        self._target = target
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.n_connections += 1
            budget = [self.cuts(self.n_connections)]
            server = socket.create_connection(("127.0.0.1", self._target))
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(*ends, budget), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, budget: list[int | None]) -> None:
        try:
            while data := one.recv(65_536):
                if budget[0] is not None:
                    data, budget[0] = data[: budget[0]], budget[0] - len(data)
                    if budget[0] <= 0:
                        break
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Faulty:
    """Passes HTTP requests on to a server; `fault` says what happens to the n-th one instead.

    An HTTP status is answered; "silence" answers nothing; "cut" breaks the answer off half way;
    "late" does the work, and then the answer is lost.
    """

    def __init__(self, target: int) -> None:
        self.fault: Callable[[int], int | str] = lambda number: ""
        self.n_requests = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with outer._lock:
                    outer.n_requests += 1
                    fault = outer.fault(outer.n_requests)
                if isinstance(fault, int):
                    self.send_response(fault)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.close_connection = bool(fault)
                if fault == "silence":
                    time.sleep(0.6)
                    return
                wire = HTTPConnection("127.0.0.1", target, timeout=30)
                wire.request(self.command, self.path, body, dict(self.headers.items()))
                found = wire.getresponse()
                raw = found.read()
                wire.close()
                if fault == "late":
                    return
                self.send_response(found.status)
                kept = {"etag", "last-modified", "content-range", "content-type"}
                for name, value in found.getheaders():
                    if name.lower() in kept:
                        self.send_header(name, value)
                size = found.getheader("Content-Length") if self.command == "HEAD" else len(raw)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                self.wfile.write(raw[: len(raw) // 2] if fault == "cut" else raw)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def unhurried(url: str, monkeypatch: pytest.MonkeyPatch, *, tries: int = TRIES) -> Remote:
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.001)
    return Patient(opening.choose(url, "test"), tries=tries)


def two_segments(path: Path) -> Cache:
    a = Cache.open(path, create=True)
    space = a.space(foreign("net", 8), create=True)
    fill(space, photos(0, 1, 2))
    fill(space, photos(3, 4))
    return a


def complete(cache: Cache) -> bool:
    rows, found = cache.space(foreign("net", 8)).read(photos(*range(5)))
    return bool(found.all() and (rows == model(photos(*range(5)), 8)).all())
