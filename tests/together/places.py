"""Where a world's remote lies: a folder, or an S3 protocol server; with a network that is flawed.

What runs against a place opens it in its own process; the oracle reads it without the product's
code, as a folder.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from embedcache.remotes import opening
from embedcache.remotes.patience import Patient
from embedcache.remotes.remote import Blocks, ListedObject, Ours, Remote, Unreachable
from tests.remotes.servers import free_port, wait_for
from tests.together import process

BUCKET = "team"


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with the network of one operation.

    late: the answer to its n-th request is lost after the deed is done; 0 for none.
    stale: the first listing of every prefix is as it was when the operation began.
    """

    late: int = 0
    stale: bool = False

    def __str__(self) -> str:
        parts = [f"answer {self.late} lost"] if self.late else []
        return ", ".join([*parts, *(["stale listings"] if self.stale else [])])


SOUND: Final = Flaw()


class Place(Protocol):
    """One schedule's remote."""

    def open(self, flaw: Flaw, staging: str) -> Remote | str:
        """The remote, for the process of an operation. staging: marks its member's stagings."""
        ...

    def folder(self) -> Any:
        """A context that gives a folder with all that is there now."""
        ...

    def remove(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """A folder; without a flaw it is opened by its path, as a user would."""

    path: Path

    def open(self, flaw: Flaw, staging: str) -> Remote | str:
        if flaw == Flaw():
            return str(self.path)
        return _patient(Flawed(opening.choose(str(self.path), staging), flaw))

    @contextmanager
    def folder(self) -> Iterator[Path]:
        yield self.path

    def remove(self) -> None:
        pass


class S3Server:
    """An S3 protocol server on loopback, in a process of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self._home = tempfile.mkdtemp()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._home,
        )
        wait_for(self.port)
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        import boto3  # the server's own client: the oracle reads without the product's

        self.client = boto3.client("s3")
        self.client.create_bucket(Bucket=BUCKET)

    def close(self) -> None:
        self.client.close()
        self._process.terminate()
        self._process.wait(20)
        shutil.rmtree(self._home, ignore_errors=True)


class S3Place:
    """A prefix of a bucket, filled with a copy of a folder."""

    def __init__(self, server: S3Server, source: Path) -> None:
        self._server = server
        self._prefix = f"w{time.monotonic_ns()}"
        self._folder = Path(tempfile.mkdtemp()) / "remote"
        self._mirrored: dict[str, str] = {}
        shutil.copytree(source, self._folder)
        for path in source.rglob("*"):
            if path.is_file():
                key = f"{self._prefix}/{path.relative_to(source).as_posix()}"
                put = server.client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
                self._mirrored[key] = put["ETag"]

    def open(self, flaw: Flaw, staging: str) -> Remote | str:
        return _patient(Flawed(opening.choose(f"s3://{BUCKET}/{self._prefix}", staging), flaw))

    @contextmanager
    def folder(self) -> Iterator[Path]:
        there = self._keys()
        for key in self._mirrored.keys() - there.keys():
            (self._folder / key.partition("/")[2]).unlink()
        for key, tag in there.items():
            if self._mirrored.get(key) != tag:
                path = self._folder / key.partition("/")[2]
                path.parent.mkdir(parents=True, exist_ok=True)
                found = self._server.client.get_object(Bucket=BUCKET, Key=key)
                path.write_bytes(found["Body"].read())
        self._mirrored = there
        yield self._folder

    def remove(self) -> None:
        shutil.rmtree(self._folder.parent, ignore_errors=True)  # the server's memory is large

    def _keys(self) -> dict[str, str]:
        """{key: ETag} of all objects."""
        found = self._server.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self._prefix}/")
        assert not found["IsTruncated"]
        return {entry["Key"]: entry["ETag"] for entry in found.get("Contents", [])}


class Flawed:
    """A remote that stops before each request, as an operation does before each call."""

    def __init__(self, remote: Remote, flaw: Flaw) -> None:
        self.name = remote.name
        self._remote = remote
        self._flaw = flaw
        self._n_requests = 0
        self._before: dict[str, list[ListedObject]] = {}
        if flaw.stale:
            for entry in self._everything():
                self._before.setdefault("", []).append(entry)
        self._stale = flaw.stale
        self._listed: set[str] = set()

    def list(self, prefix: str) -> Iterator[ListedObject]:
        self._begin("list", prefix)
        if self._stale and prefix not in self._listed:
            self._listed.add(prefix)
            found = [entry for entry in self._before.get("", []) if entry.key.startswith(prefix)]
        else:
            found = list(self._remote.list(prefix))
        self._end()
        return iter(found)

    def top(self) -> Sequence[str]:
        return self._remote.top()

    def unfinished(self, segment: str) -> Iterator[ListedObject]:
        self._begin("list", segment)
        found = list(self._remote.unfinished(segment))
        self._end()
        return iter(found)

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._begin("get", key)
        yield from self._remote.blocks(key, start=start, length=length)
        self._end()

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        self._begin("put", key)
        self._remote.write(key, blocks, size=size)
        self._end()

    def create(self, key: str, data: bytes) -> bool:
        self._begin("create", key)
        made = self._remote.create(key, data)
        self._end()
        return made

    def delete(self, key: str, *, ours: Ours | None = None) -> None:
        self._begin("delete", key)
        self._remote.delete(key, ours=ours)
        self._end()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._remote, name)

    def _begin(self, verb: str, key: str) -> None:
        self._n_requests += 1
        process.stop(f"request {verb}", key)

    def _end(self) -> None:
        if self._n_requests == self._flaw.late:
            raise Unreachable(f"{self.name}: connection reset")

    def _everything(self) -> Iterator[ListedObject]:
        for part in ("spaces", "face-spaces", "faces", "photos", "refs", "forgotten"):
            yield from self._remote.list(f"{part}/")


def _patient(remote: Remote) -> Remote:
    return Patient(remote, sleep=lambda seconds: None)
