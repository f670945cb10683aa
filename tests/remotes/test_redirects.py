"""A store that redirects elsewhere, or sends a byte now and then: refused, and given up."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from embedcache.errors import RemoteError
from embedcache.remotes import listing, objects, opening, patience
from embedcache.remotes.opening import open_remote
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import Remote, Unreachable

SECRET = "the-session-token"


class Server(ThreadingHTTPServer):
    """Answers every request by `answer`, and keeps what it was sent."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.seen: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.seen.append(f"{self.headers} {body!r}")
                answer(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.0)


REQUESTS: dict[str, Callable[[Remote], object]] = {
    "list": lambda remote: list(remote.list("spaces/")),
    "read": lambda remote: read_small(remote, "zarr.json", limit=100),
    "stream": lambda remote: b"".join(remote.blocks("big")),
    "create": lambda remote: remote.create("refs/a.json", b"private"),
    "write": lambda remote: remote.write("a", lambda: iter([b"private"]), size=7),
    "delete": lambda remote: remote.delete("a"),
}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_redirect_to_another_host_is_refused(
    request_: str, status: int, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")

    def accept(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Location", f"{other.url}{handler.path}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with Server(accept) as other, Server(redirect) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        began = time.monotonic()
        with pytest.raises(RemoteError, match="redirects to another place") as caught:
            REQUESTS[request_](open_remote("s3://team/x"))
        assert not isinstance(caught.value, Unreachable)  # nobody retries it
        assert time.monotonic() - began < 10
        assert store.seen
        assert other.seen == []
        for server in (other, store):
            server.shutdown()


@pytest.fixture
def trickle() -> Iterator[int]:
    """The port of a server that sends a byte ten times a second, for ever."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(client: socket.socket) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nETag: x\r\n"
        head += b"Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n"
        try:
            client.recv(65_536)
            client.sendall(head)
            while True:
                client.sendall(b"x")
                time.sleep(0.1)
        except OSError:
            client.close()

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(client,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


@pytest.mark.parametrize("request_", ["list", "read", "create"])
def test_a_small_request_has_a_deadline(
    request_: str, trickle: int, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setattr(opening, "DEADLINE_SECONDS", 0.5)
    monkeypatch.setattr(listing, "PAGE_SECONDS", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{trickle}")
    remote = patience.Patient(opening.choose("s3://team/x", "test"), tries=2)
    began = time.monotonic()
    if request_ == "create":  # an answer's body does not count: its head is enough
        assert remote.create("a", b"x")
    else:
        with pytest.raises(Unreachable):
            REQUESTS[request_](remote)
    assert time.monotonic() - began < 8


def test_the_deadlines_end_a_command_within_a_minute_and_a_half() -> None:
    tries = 1 + patience.PATIENCE_SECONDS / objects.DEADLINE_SECONDS
    assert tries * objects.DEADLINE_SECONDS < 90
