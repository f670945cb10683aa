"""Remotes of every kind, and caches to share over them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedcache import disk
from embedcache.remotes.opening import open_remote
from embedcache.remotes.remote import Remote
from embedcache.spec import Spec
from embedcache.store.cache import Cache
from tests import fakes
from tests.sharing.members import SPEC, Make
from tests.stores import fill, photos

KINDS = ["folder", "memory", "s3"]


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket on a real S3 protocol server on loopback."""
    pytest.importorskip("moto.server")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_REGION", "us-east-1")
    from urllib.request import Request, urlopen

    urlopen(Request(f"http://{host}:{port}/team", method="PUT"), timeout=30).close()
    yield "s3://team"
    patch.undo()
    server.stop()


@pytest.fixture(params=KINDS)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    if request.param == "folder":
        return fakes.folder(tmp_path / "shared")
    pytest.importorskip("obstore")
    if request.param == "memory":
        return fakes.memory()
    bucket = request.getfixturevalue("s3")
    return open_remote(f"{bucket}/{tmp_path.name}-{os.urandom(3).hex()}")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make("a", [0, 1], [2]): a cache with a segment for each list of photos."""

    def new(name: str, *segments: list[int], spec: Spec = SPEC) -> Cache:
        cache = Cache.open(tmp_path / name, create=True)
        for numbers in segments:
            fill(cache.space(spec, create=True), photos(*numbers))
        return cache

    return new
