"""A pull from a hostile remote: python -m tests.sharing.hostile_worker SCENARIO CACHE

Prints what the pull reports, and by how many MiB the process grew at most.
"""

import os
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from itertools import count

from embedcache.errors import RemoteError
from embedcache.remotes.opening import open_remote
from embedcache.remotes.patience import Patient
from embedcache.remotes.remote import ListedObject, Remote
from embedcache.sharing.share import pull
from embedcache.store.cache import Cache
from embedcache.store.layout import root_document
from embedcache.store.zarr_json import encode_document
from tests import fakes

ID = "20260101T000000000000-{:08x}"


class Shared(fakes.Held):
    """An empty shared copy, to begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.objects["zarr.json"] = encode_document(root_document())


class Keys(Shared):
    """Its listing never ends, and its keys are as long as keys may be."""

    def list(self, prefix: str) -> Iterator[ListedObject]:
        return (ListedObject(f"{prefix}{n}{'x' * 1000}", 1, f"{n}{'t' * 1000}") for n in count())


class Names(Shared):
    """Its listing never ends, and every key is one that a segment could have."""

    def list(self, prefix: str) -> Iterator[ListedObject]:
        space = f"{prefix}{'0' * 64}/segments/"
        return (ListedObject(f"{space}{ID.format(n)}/manifest.json", 1, "") for n in count())


class Documents(Shared):
    """Its refs and tombstones are 12 MiB each, and its listing says ten bytes."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root

    def list(self, prefix: str) -> Iterator[ListedObject]:
        if prefix == f"{self.root}/":
            for n in range(10_000):
                yield ListedObject(f"{prefix}{ID.format(n)}.json", 10, str(n))

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if key.startswith(self.root):
            return iter([bytes(4 << 20)] * 3)
        return super().blocks(key, start=start, length=length)


def endless_page() -> Remote:
    """An S3 endpoint whose first page of a listing never ends."""
    document = encode_document(root_document())
    head = (
        "HTTP/1.1 206 Partial Content\r\nETag: x\r\n"
        "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        f"Content-Range: bytes 0-{len(document) - 1}/{len(document)}\r\n"
        f"Content-Length: {len(document)}\r\nConnection: close\r\n\r\n"
    )
    item = (
        b"<Contents><Key>spaces/x</Key><Size>1</Size><ETag>x</ETag>"
        b"<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
    )

    def answer(client: socket.socket) -> None:
        try:
            if b"list-type" not in client.recv(65_536):
                client.sendall(head.encode() + document)
                client.close()
                return
            client.sendall(b'HTTP/1.1 200 OK\r\n\r\n<?xml version="1.0"?><ListBucketResult>')
            while True:
                client.sendall(item * 4000)
        except OSError:
            client.close()

    def serve() -> None:
        while True:
            threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()

    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, daemon=True).start()
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ["AWS_REGION"] = "us-east-1"
    return open_remote("s3://team")


def peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20


def main(scenario: str, path: str) -> None:
    remote: Remote
    match scenario:
        case "keys":
            remote = Patient(Keys())
        case "names":
            remote = Patient(Names())
        case "page":
            remote = endless_page()
        case _:
            remote = Patient(Documents(scenario))
    cache, before = Cache.open(path, create=True), peak()
    try:
        print(" ".join(pull(remote, cache).problems))
    except RemoteError as error:
        print(error)
    print(peak() - before)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
