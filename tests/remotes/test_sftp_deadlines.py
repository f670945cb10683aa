"""An SFTP server that falls silent, or sends a byte now and then, after the connection stands."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedcache.remotes import sftp
from embedcache.remotes.opening import choose
from embedcache.remotes.remote import ANSWER_SECONDS, UNSEEN, Remote, Unreachable
from tests.remotes.servers import free_port

paramiko: Any = pytest.importorskip("paramiko")


class Server(paramiko.ServerInterface):  # type: ignore[misc]
    def check_auth_publickey(self, username: str, key: object) -> int:
        return int(paramiko.AUTH_SUCCESSFUL)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return int(paramiko.OPEN_SUCCEEDED)


class Files(paramiko.SFTPServerInterface):  # type: ignore[misc]
    """Plain files; `wait` is called before each answer to a read."""

    wait: Any = staticmethod(lambda: None)

    def stat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(os.stat(path))
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    def lstat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(os.lstat(path))
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    def list_folder(self, path: str) -> Any:
        try:
            with os.scandir(path) as found:
                return [
                    paramiko.SFTPAttributes.from_stat(e.stat(follow_symlinks=False), e.name)
                    for e in found
                ]
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    def remove(self, path: str) -> Any:
        return self._do(os.remove, path)

    def rmdir(self, path: str) -> Any:
        return self._do(os.rmdir, path)

    def _do(self, deed: Any, path: str) -> Any:
        try:
            deed(path)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)
        return paramiko.SFTP_OK

    def open(self, path: str, flags: int, attr: object) -> Any:
        handle = paramiko.SFTPHandle(flags)
        data = Path(path).read_bytes()

        def read(offset: int, length: int) -> bytes:
            Files.wait()
            return data[offset : offset + length]

        handle.read = read
        handle.stat = lambda: self.stat(path)
        return handle


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """A folder behind an SFTP server of this process; Files.wait decides how it answers."""
    key = paramiko.ECDSAKey.generate()
    key.write_private_key_file(str(tmp_path / "key"))
    port = free_port()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n")
    monkeypatch.setenv("EMBEDCACHE_SSH_KEY", str(tmp_path / "key"))
    monkeypatch.setenv("EMBEDCACHE_KNOWN_HOSTS", str(tmp_path / "known"))
    transports: list[Any] = []
    with socket.create_server(("127.0.0.1", port)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                transport = paramiko.Transport(connection)
                transport.add_server_key(key)
                transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Files)
                transport.start_server(server=Server())
                transports.append(transport)

        threading.Thread(target=serve, daemon=True).start()
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared" / "zarr.json").write_text("x" * 100)
        yield choose(f"ssh://user@127.0.0.1:{port}{tmp_path}/shared", "test")
        listening.shutdown(socket.SHUT_RDWR)
    for transport in transports:
        transport.close()


def test_a_server_that_falls_silent_is_given_up_and_answers_again(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "ANSWER_SECONDS", 0.3)
    assert b"".join(remote.blocks("zarr.json")) == b"x" * 100
    silent = threading.Event()
    monkeypatch.setattr(Files, "wait", staticmethod(lambda: silent.wait(5)))
    began = time.monotonic()
    with pytest.raises(Unreachable, match="in time"):
        b"".join(remote.blocks("zarr.json"))
    assert time.monotonic() - began < 3
    silent.set()
    assert b"".join(remote.blocks("zarr.json")) == b"x" * 100  # over a new connection


class Trickling:
    """A channel that gives a byte at a time, each in time."""

    closed = False

    def __init__(self) -> None:
        self.now = 0.0

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds <= ANSWER_SECONDS

    def recv(self, n: int) -> bytes:
        self.now += 3.0
        return b"x"

    def get_transport(self) -> "Trickling":
        return self

    def close(self) -> None:
        self.closed = True


def test_a_server_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Trickling()
    monkeypatch.setattr("embedcache.remotes.sftp.time.monotonic", lambda: channel.now)
    timed = sftp.Timed(channel)
    timed.ends = sftp.DEADLINE_SECONDS
    got = [timed.recv(100) for _ in range(10)]
    assert b"".join(got) == b"x" * 10
    with pytest.raises(TimeoutError):
        timed.recv(90)
    assert channel.closed


@pytest.mark.parametrize("what", ["folder", "link", "file"])
def test_what_stands_in_the_place_of_a_folder_is_listed_as_unseen(
    what: str, remote: Remote, tmp_path: Path
) -> None:
    (tmp_path / "moved" / "segments").mkdir(parents=True)
    (tmp_path / "moved" / "segments" / "zarr.json").write_text("{}")
    place = tmp_path / "shared" / "faces"
    if what == "folder":
        (tmp_path / "moved").rename(place)
    elif what == "link":
        place.symlink_to(tmp_path / "moved")
    else:
        place.write_text("")
    for prefix in ("faces/", "faces/segments/"):
        [entry] = remote.list(prefix)
        if what == "folder":
            assert (entry.key, entry.size) == ("faces/segments/zarr.json", 2)
        else:
            assert (entry.key, entry.size) == ("faces", UNSEEN)
    assert list(remote.list("spaces/")) == []


@pytest.mark.parametrize("what", ["link", "file"])
def test_no_hidden_names_are_found_behind_a_link_or_a_file(
    what: str, remote: Remote, tmp_path: Path
) -> None:
    (tmp_path / "moved" / "segments").mkdir(parents=True)
    for folder in ("moved", "moved/segments"):
        (tmp_path / folder / ".gone-by").write_text("")
    place = tmp_path / "shared" / "faces"
    (tmp_path / "moved").rename(place)
    assert list(remote.leftovers("faces")) == ["faces/.gone-by"]
    assert list(remote.leftovers("faces/segments")) == ["faces/segments/.gone-by"]
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved") if what == "link" else place.write_text("")
    for folder in ("faces", "faces/segments"):
        assert list(remote.leftovers(folder)) == []


@pytest.mark.parametrize("of", ["a folder", "a file"])
def test_of_a_link_only_the_link_is_removed(of: str, remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo").write_text("mine")
    link = tmp_path / "shared" / ".push-x"
    link.symlink_to(tmp_path / "mine" / ("photo" if of == "a file" else ""))
    remote.delete(".push-x")
    assert not link.is_symlink()
    assert (tmp_path / "mine" / "photo").read_text() == "mine"
    remote.delete(".push-x")  # of what is not there nothing
    (tmp_path / "shared" / ".push-y").mkdir()
    (tmp_path / "shared" / ".push-y" / "part").write_text("")
    remote.delete(".push-y")
    assert not (tmp_path / "shared" / ".push-y").exists()
