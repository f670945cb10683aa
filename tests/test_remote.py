"""The remotes themselves: real servers on loopback, broken wires, URLs that hold too much."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from embedcache import remote as remote_module
from embedcache.errors import RemoteError
from embedcache.remote import TRIES, Patient, Remote, Unreachable, open_remote, read_small
from embedcache.share import Moved, pull, push
from embedcache.spec import foreign
from embedcache.store import Cache
from embedcache.upkeep import verify
from tests import remotes
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


@pytest.fixture(scope="module")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real S3 protocol server, in a process of its own."""
    pytest.importorskip("moto.server")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path_factory.mktemp("s3"),
    )
    try:
        wait_for(port)
        urlopen(Request(f"http://127.0.0.1:{port}/team", method="PUT"), timeout=30).close()
        yield port
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to that server, which can be broken."""
    proxy = Proxy(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDSECRETID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secretsecret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    yield proxy
    proxy.close()


def unhurried(url: str, monkeypatch: pytest.MonkeyPatch, *, tries: int = TRIES) -> Remote:
    monkeypatch.setattr(remote_module, "FIRST_WAIT_SECONDS", 0.001)
    return Patient(remote_module._open(url, "test"), tries=tries)


@pytest.fixture(params=["folder", "memory", "s3", "ssh"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    if request.param == "folder":
        return Patient(remotes.folder(tmp_path / "shared"))
    if request.param == "memory":
        pytest.importorskip("obstore")
        return Patient(remotes.memory())
    if request.param == "ssh":
        return open_remote(f"{request.getfixturevalue('ssh')}{tmp_path}/shared")
    request.getfixturevalue("s3")
    return open_remote(f"s3://team/{os.urandom(4).hex()}")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A real sshd for this user alone: (port, folder with the keys)."""
    pytest.importorskip("paramiko")
    if SSHD is None:
        pytest.skip("no sshd is installed")
    home = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)]
        subprocess.run(command, check=True)
    shutil.copy(home / "user.pub", home / "authorized")
    port = free_port()
    host_key = (home / "host.pub").read_text().split()
    (home / "known").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    (home / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nPidFile none\n"
        f"AuthorizedKeysFile {home}/authorized\nStrictModes no\nPasswordAuthentication no\n"
        "Subsystem sftp internal-sftp\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
    server = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(home / "config")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield port, home
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def ssh(sshd: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    port, home = sshd
    monkeypatch.setenv("EMBEDCACHE_SSH_KEY", str(home / "user"))
    monkeypatch.setenv("EMBEDCACHE_KNOWN_HOSTS", str(home / "known"))
    return f"ssh://127.0.0.1:{port}"


def two_segments(path: Path) -> Cache:
    a = Cache.open(path, create=True)
    space = a.space(foreign("net", 8), create=True)
    fill(space, photos(0, 1, 2))
    fill(space, photos(3, 4))
    return a


def complete(cache: Cache) -> bool:
    rows, found = cache.space(foreign("net", 8)).read(photos(*range(5)))
    return bool(found.all() and (rows == model(photos(*range(5)), 8)).all())


def test_every_remote_does_what_the_interface_says(remote: Remote) -> None:
    assert list(remote.list("spaces/")) == []
    assert remote.create("refs/a.json", b"first")
    assert not remote.create("refs/a.json", b"second")
    assert read_small(remote, "refs/a.json", limit=100) == b"first"
    with pytest.raises(RemoteError, match="over 3 bytes"):
        read_small(remote, "refs/a.json", limit=3)
    with pytest.raises(FileNotFoundError):
        read_small(remote, "refs/b.json", limit=3)
    big = os.urandom(10 << 20)
    remote.write("spaces/x/big", lambda: iter([big[:100], big[100:]]), size=len(big))
    assert b"".join(remote.blocks("spaces/x/big")) == big
    assert (
        b"".join(remote.blocks("spaces/x/big", start=5_000_000, length=77))
        == (big[5_000_000:5_000_077])
    )
    [entry] = remote.list("spaces/")
    assert (entry.key, entry.size) == ("spaces/x/big", len(big))
    remote.delete("spaces/x/big")
    remote.delete("spaces/x/big")
    assert list(remote.list("spaces/")) == []


def test_a_write_that_fails_at_its_end_leaves_nothing(remote: Remote) -> None:
    def blocks() -> Iterator[bytes]:
        yield bytes(9 << 20)
        raise RemoteError("not what was written")

    for size in (9 << 20, 100):
        with pytest.raises(RemoteError):
            remote.write("spaces/x", blocks, size=size)
    assert list(remote.list("spaces/")) == []
    with pytest.raises(FileNotFoundError):
        read_small(remote, "spaces/x", limit=10)


def test_push_and_pull_over_every_remote(remote: Remote, tmp_path: Path) -> None:
    a, b = two_segments(tmp_path / "a"), Cache.open(tmp_path / "b", create=True)
    assert push(a, remote).rows == 5
    assert pull(remote, b).rows == 5
    assert complete(b)
    assert verify(b).clean


def first_four(first: int, size: int) -> Callable[[int], int | None]:
    """Four connections after number `first` break after `size` bytes."""
    return lambda number: size if number - first < 4 else None


def test_a_wire_that_breaks_is_tried_again(
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


def test_a_wire_that_stays_broken_says_so(
    s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.cuts = lambda n: 10
    with pytest.raises(Unreachable, match="run the same command again") as told:
        push(two_segments(tmp_path / "a"), unhurried("s3://team/x", monkeypatch))
    for secret in ("AKIDSECRETID", "secretsecret"):
        assert secret not in str(told.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/x",
        "s3://bucket/x?X-Amz-Signature=secret",
        "ssh://ben:secret@host/x",
        "az://container@account/secret",
        "s3://bucket/x;AWSAccessKeyId=secret",
        "https://bucket/x?sig=secret",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RemoteError, match="leave it out") as told:
        open_remote(url)
    assert "secret" not in str(told.value)


def test_a_credential_in_an_endpoint_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    for name, value in (
        ("AWS_ENDPOINT_URL", "http://ada:secret1@127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "secret2"),
        ("AWS_SECRET_ACCESS_KEY", "secret3"),
        ("AWS_SESSION_TOKEN", "secret4"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(RemoteError) as told:
        push(two_segments(tmp_path / "a"), unhurried("s3://team/x", monkeypatch))
    assert "secret" not in str(told.value)
    files = (path for path in tmp_path.rglob("*") if path.is_file())
    assert not any(b"secret" in path.read_bytes() for path in files)


def test_an_unknown_scheme_is_told_what_there_is() -> None:
    with pytest.raises(RemoteError, match=r"no remote can be a ftp:// URL\. Name a folder, s3://"):
        open_remote("ftp://host/x")


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("s3:/bucket/x", r"did you mean s3://bucket/x\?"),
        ("gs:bucket/x", r"did you mean gs://bucket/x\?"),
        ("s3:/key:secret@bucket/x?sig=secret", r"did you mean s3://bucket/x\?"),
        ("nas:/srv/faces", "a URL has // after its scheme"),
        ("root@host:/srv/x", r"did you mean ssh://root@host/srv/x\?"),
        ("file://host/srv/x", "file:///host/srv/x or ssh://host/srv/x"),
        ("none", "extract --remote none"),
        ("ssh://root@host:notaport/x", r"the port in ssh://host:\.\.\. is not a number"),
        ("ssh://root@host:99999/x", "the port in"),
        ("ssh://[::1/x", "cannot be read"),
        ("s3:///x", "names no host or bucket"),
        ("~nobody-of-this-name/x", "home of nobody"),
    ],
)
def test_a_mistyped_address_is_refused_with_a_hint(address: str, hint: str) -> None:
    with pytest.raises(RemoteError, match=hint) as told:
        open_remote(address)
    assert "secret" not in str(told.value)


def test_a_folder_may_begin_with_the_home_or_have_an_odd_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_remote("~/shared").name == f"{tmp_path}/shared"
    assert open_remote(f"file://localhost{tmp_path}/a").name == f"{tmp_path}/a"
    assert open_remote("./none").name == "none"
    assert open_remote("./s3:/x").name == "s3:/x"


@pytest.mark.parametrize(
    ("url", "variable", "value"),
    [
        ("s3://b/x", "AWS_ENDPOINT_URL", "127.0.0.1:45871"),
        ("s3://b/x", "AWS_ENDPOINT_URL", "http://127.0.0.1:99999"),
        ("s3://b/x", "AWS_ENDPOINT_URL", "http://a b"),
        ("s3://b/x", "AWS_ENDPOINT_URL_S3", "minio"),
        ("s3://b/x", "AWS_ENDPOINT", "http://"),
        ("s3://b/x", "AWS_REGION", "127.0.0.1:9"),
        ("gs://b/x", "GOOGLE_BASE_URL", "localhost:9"),
        ("az://b/x", "AZURE_STORAGE_ENDPOINT", "localhost:9"),
    ],
)
def test_what_would_make_the_library_panic_is_told_before(
    url: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setenv(variable, value)
    with pytest.raises(RemoteError, match=f"{variable} must be"):
        open_remote(url)


@contextlib.contextmanager
def mute() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_never_answers_is_told_of_and_given_up(
    s3: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(remote_module, "QUIET_SECONDS", 0.1)
    told: list[str] = []
    with mute() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        silent = Patient(remote_module._open("s3://team/x", "test"), tell=told.append)
        began = time.monotonic()
        with pytest.raises(Unreachable):
            silent._patiently(lambda: read_small(silent._remote, "zarr.json", limit=9), 0.5)
    assert time.monotonic() - began < 2.5
    [line] = told
    assert line.startswith("s3://team/x does not answer; trying again for up to")


def test_a_dead_port_is_told_of_once_and_a_quick_failure_is_not() -> None:
    for quiet, n_told in ((True, 0), (False, 1)):
        told: list[str] = []
        dead = remotes.Flaky(remotes.folder(Path("absent")), lambda n: "before")
        silent = Patient(dead, sleep=lambda s: None, tell=told.append, tries=2 if quiet else TRIES)
        with pytest.raises(Unreachable):
            silent.create("a", b"")
        assert len(told) == n_told


def test_a_long_write_has_no_overall_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    flaky = remotes.Flaky(remotes.folder(Path("absent")), remotes.since(1, "before"))
    patient = Patient(flaky, sleep=lambda seconds: None, tell=lambda line: None)
    with pytest.raises(Unreachable):
        patient.write("a", lambda: iter([b""]), size=0)
    assert flaky.n_requests == TRIES
    with pytest.raises(Unreachable):
        patient.create("a", b"")
    assert flaky.n_requests == TRIES + 2


def test_a_push_among_something_else_is_refused_everywhere(remote: Remote, tmp_path: Path) -> None:
    a = two_segments(tmp_path / "a")
    remote.write("holiday/photo.jpg", lambda: iter([b"x"]), size=1)
    for dry_run in (True, False):
        with pytest.raises(RemoteError, match=r"neither empty nor .*holiday"):
            push(a, remote, dry_run=dry_run)
    assert list(remote.list("spaces/")) == []


def test_a_bucket_that_is_not_there_is_told_of(s3: Proxy, tmp_path: Path) -> None:
    a = two_segments(tmp_path / "a")
    for work in (push, lambda cache, url: pull(url, cache)):
        with pytest.raises(RemoteError, match="there is no bucket absent") as told:
            work(a, "s3://absent/x")
        assert "<" not in str(told.value)


def test_a_push_to_where_no_folder_can_be_is_refused(ssh: str, tmp_path: Path) -> None:
    a = two_segments(tmp_path / "a")
    (tmp_path / "a.txt").write_text("x")
    for place in ("a.txt", "a.txt/b", "taem/faces"):
        for prefix in (f"{ssh}{tmp_path}", str(tmp_path)):
            for dry_run in (True, False):
                with pytest.raises(RemoteError, match=r"no shared copy can|is no folder") as told:
                    push(a, f"{prefix}/{place}", dry_run=dry_run)
                assert "/" not in place or str(tmp_path / place.split("/")[0]) in str(told.value)
    for prefix in (ssh, "file://"):
        with pytest.raises(RemoteError, match="/proc/xx"):
            push(a, f"{prefix}/proc/xx")
    assert not (tmp_path / "taem").exists()


def test_a_host_that_shows_another_key_is_refused(
    ssh: str, sshd: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, home = sshd
    kind, key = (home / "user.pub").read_text().split()[:2]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    monkeypatch.setenv("EMBEDCACHE_KNOWN_HOSTS", str(tmp_path / "known"))
    with pytest.raises(RemoteError, match="shows another key"):
        list(open_remote(f"{ssh}/x").list("spaces/"))


def test_a_key_that_is_missing_is_told_of(ssh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDCACHE_SSH_KEY", "/absent/key")
    with pytest.raises(RemoteError, match="EMBEDCACHE_SSH_KEY names /absent/key"):
        list(open_remote(f"{ssh}/x").list("spaces/"))
    monkeypatch.delenv("EMBEDCACHE_SSH_KEY")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOME", "/absent")
    with pytest.raises(RemoteError, match="you have no key for"):
        list(open_remote(f"{ssh}/x").list("spaces/"))


def test_a_host_that_is_not_known_is_refused(
    ssh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none").write_text("")
    monkeypatch.setenv("EMBEDCACHE_KNOWN_HOSTS", str(tmp_path / "none"))
    with pytest.raises(RemoteError, match="not in your known_hosts"):
        list(open_remote(f"{ssh}/x").list("spaces/"))


def test_a_key_that_is_not_known_is_refused(
    ssh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "other"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(command, check=True)
    monkeypatch.setenv("EMBEDCACHE_SSH_KEY", str(key))
    with pytest.raises(RemoteError, match="does not know you"):
        list(open_remote(f"{ssh}/x").list("spaces/"))


def test_a_folder_push_that_was_cut_leaves_no_half_segment(tmp_path: Path) -> None:
    a = two_segments(tmp_path / "a")
    dying = remotes.Flaky(remotes.folder(tmp_path / "shared"), remotes.since(20, "amid"))
    with pytest.raises(Unreachable):
        push(a, dying)
    assert verify(Cache.open(tmp_path / "shared")).clean
    push(a, str(tmp_path / "shared"))
    assert verify(Cache.open(tmp_path / "shared")).clean
    assert Cache.open(tmp_path / "shared").spaces()[0].digests().shape == (5, 32)


FAULTS: tuple[int | str, ...] = (503, 500, 429, "silence", "cut", "late")


def reached(faulty: Faulty, k: int, fault: int | str, work: Callable[[], Moved]) -> bool:
    """Whether there was a k-th request; it fails once, and the work is done all the same."""
    first = faulty.n_requests
    faulty.fault = lambda number: fault if number - first == k else ""
    assert work().problems == ()
    return faulty.n_requests - first >= k


def broken_off(faulty: Faulty, k: int, fault: int | str, work: Callable[[], Moved]) -> bool:
    """Whether there was a k-th request; it fails, and all after it, and that is told."""
    first, done = faulty.n_requests, False
    faulty.fault = lambda number: fault if number - first >= k else ""
    with contextlib.suppress(Unreachable):
        assert work().problems == ()
        done = True
    return not done


def check_faults(
    s3_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, numbers: Iterable[int]
) -> None:
    """The k-th HTTP request fails, for each k, in each way in turn: for good, and then once."""
    monkeypatch.setattr(remote_module, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(remote_module, "ANSWER_SECONDS", 0.3)
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
            assert verify(b).clean, (k, fault)
            assert not b.spaces() or len(b.spaces()[0].digests()) in (0, 2, 3, 5)
            faulty.fault = lambda number: ""
            pull(unhurried(url, monkeypatch), b)
            assert complete(b), (k, fault)
            assert verify(b).clean, (k, fault)
            shutil.rmtree(b.path)
        if not again:  # more requests than there are
            break
    faulty.close()


def test_a_server_that_throttles_fails_or_falls_silent_is_tried_again(
    s3_port: int, s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [len(FAULTS) * k + way for way, k in enumerate((0, 30, 0, 1, 7, 16)) if k]
    check_faults(s3_port, monkeypatch, tmp_path, sorted(some))


@pytest.mark.torture
@pytest.mark.parametrize("shift", range(len(FAULTS)))
def test_a_server_that_fails_at_any_request_in_any_way_is_tried_again(
    shift: int, s3_port: int, s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = len(FAULTS)
    check_faults(
        s3_port, monkeypatch, tmp_path, (ways * k + (k + shift) % ways for k in range(200))
    )
