"""Real servers on loopback, and remotes of every kind."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from embedcache.remotes.opening import open_remote
from embedcache.remotes.patience import Patient
from embedcache.remotes.remote import Remote
from tests import fakes
from tests.remotes.servers import (
    SSHD,
    Proxy,
    free_port,
    wait_for,
)


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
    """A proxy to that server, which can break connections."""
    proxy = Proxy(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDSECRETID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secretsecret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    yield proxy
    proxy.close()


@pytest.fixture(params=["folder", "memory", "s3", "ssh"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    if request.param == "folder":
        return Patient(fakes.folder(tmp_path / "shared"))
    if request.param == "memory":
        pytest.importorskip("obstore")
        return Patient(fakes.memory())
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
