"""A member to be killed: python -m tests.sharing.worker push|pull CACHE FOLDER K

Pushes to, or pulls from, a folder remote, and dies by SIGKILL during its K-th request.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from embedcache.remotes.remote import Blocks, ListedObject
from embedcache.sharing.share import pull, push
from embedcache.store.cache import Cache
from tests import fakes


class Mortal(fakes.Flaky):
    """Half of a request's bytes go through, then the process is gone."""

    def list(self, prefix: str) -> Iterator[ListedObject]:
        if self._begin():
            os.kill(os.getpid(), signal.SIGKILL)
        return self._remote.list(prefix)

    def unfinished(self, segment: str) -> Iterator[ListedObject]:
        if self._begin():
            os.kill(os.getpid(), signal.SIGKILL)
        return self._remote.unfinished(segment)

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        how = self._begin()
        return _half(self._remote.blocks(key, start=start, length=length), how)

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        how = self._begin()
        self._remote.write(key, lambda: _half(blocks(), how), size=size)

    def create(self, key: str, data: bytes) -> bool:
        if self._begin():
            os.kill(os.getpid(), signal.SIGKILL)
        return self._remote.create(key, data)


def _half(blocks: Iterator[bytes], how: str) -> Iterator[bytes]:
    for block in blocks:
        if how:
            yield bytes(block)[: len(block) // 2]
            os.kill(os.getpid(), signal.SIGKILL)
        yield block


def main(what: str, path: str, folder: str, k: int) -> None:
    remote = Mortal(fakes.folder(Path(folder)), fakes.once(k, "amid"))
    cache = Cache.open(path, create=True)
    if what == "push":
        push(cache, remote)
    else:
        pull(remote, cache)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
