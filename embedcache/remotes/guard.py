"""A proxy on loopback that connects to the hosts of one store only.

The library that speaks S3 follows redirects, and takes the session token and the data along. It has
no option against that, so its requests pass through here: a request to any other host is refused.
TLS stays between the library and the store; this module sees only encrypted bytes.
"""

import base64
import contextlib
import fcntl
import os
import re
import socket
import threading
from collections.abc import Callable
from functools import cache
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

CONNECT_SECONDS = 5.0
HEAD_BYTES = 65_536
BUFFER_BYTES = 256 << 10
PIPE_BYTES = 1 << 20
# Where cloud machines give credentials to the library: link-local, never on the internet.
_CREDENTIALS = re.compile(r"169\.254\.\d{1,3}\.\d{1,3}")
_AMAZON = re.compile(r"[a-z0-9.-]+\.amazonaws\.com(\.cn)?")


@cache
def guard(endpoint: str) -> "Guard":
    """The proxy for the store at `endpoint`; "" stands for Amazon's own."""
    if not endpoint:
        return Guard(lambda host, port: bool(_AMAZON.fullmatch(host)) and port == 443)
    parts = urlsplit(endpoint)
    named, at = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)

    def allowed(host: str, port: int) -> bool:
        return port == at and (host == named or host.endswith(f".{named}"))

    return Guard(allowed)


class Guard:
    """The listening socket, and two threads for each connection; it ends with the process.

    url: where it listens. refused: the hosts that were asked for and are not the store's.
    """

    def __init__(self, allowed: Callable[[str, int], bool]) -> None:
        self.refused: list[str] = []
        self._allowed = allowed
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, name="embedcache-guard", daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._server.accept()
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            head, rest = _read_head(client)
            method, target, version = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
            tunnel = method == "CONNECT"
            parts = urlsplit(f"//{target}" if tunnel else target)
            host, port = parts.hostname or "", parts.port or (443 if tunnel else 80)
            if not (self._allowed(host, port) or _CREDENTIALS.fullmatch(host)):
                self.refused.append(f"{host}:{port}")
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            with _reach(host, port, tunnel=tunnel) as server:
                if tunnel:
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                else:  # one request for each connection, so that the next one is checked as well
                    server.sendall(_to_origin(head, method, target, version))
                server.sendall(rest)
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join()


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    """A request's head, and the bytes after it that have come already."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(HEAD_BYTES)
        if not more or len(data) > HEAD_BYTES:
            raise ValueError("no head")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _to_origin(head: bytes, method: str, target: str, version: str) -> bytes:
    """A request to a proxy as the server itself expects it, for one connection."""
    parts = urlsplit(target)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kept = [
        line
        for line in head.split(b"\r\n")[1:]
        if line.split(b":")[0].lower() not in (b"connection", b"proxy-connection")
    ]
    first = f"{method} {path} {version}".encode("ascii")
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""])


def _reach(host: str, port: int, *, tunnel: bool) -> socket.socket:
    """A connection to the host, through the proxy that the environment names for it, if any."""
    proxy = getproxies().get("https" if tunnel else "http")
    if not proxy or not tunnel or proxy_bypass(f"{host}:{port}"):
        return _quick(socket.create_connection((host, port), CONNECT_SECONDS))
    parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    found = socket.create_connection((parts.hostname or "", parts.port or 80), CONNECT_SECONDS)
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    login = b"Proxy-Authorization: Basic " + base64.b64encode(user) + b"\r\n"
    name = f"{host}:{port}"
    found.sendall(
        f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n".encode()
        + (login if parts.username else b"")
        + b"\r\n"
    )
    answer, _ = _read_head(found)
    if answer.split(b" ")[1:2] != [b"200"]:
        found.close()
        raise OSError(f"the proxy refuses {name}")
    return _quick(found)


def _quick(found: socket.socket) -> socket.socket:
    found.settimeout(None)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes one way until either side ends."""
    with contextlib.suppress(OSError):
        if hasattr(os, "splice"):
            _splice(source.fileno(), target.fileno())
        else:
            buffer = memoryview(bytearray(BUFFER_BYTES))
            while n := source.recv_into(buffer):
                target.sendall(buffer[:n])
    for end, how in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
        with contextlib.suppress(OSError):
            end.shutdown(how)


def _splice(source: int, target: int) -> None:
    """Copy bytes within the kernel, where there is such a call (Linux)."""
    out, into = os.pipe()
    try:
        with contextlib.suppress(OSError, AttributeError):  # larger where it may be
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        while n := os.splice(source, into, PIPE_BYTES):
            while n:
                n -= os.splice(out, target, n)
    finally:
        os.close(out)
        os.close(into)
