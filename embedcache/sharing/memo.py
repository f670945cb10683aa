"""What this machine remembers of a remote between two commands."""

import contextlib
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from embedcache import disk
from embedcache.store.tombstones import FOLDER as TOMBSTONES

MAX_KEPT_BYTES = 256 << 20  # more than one column of the largest segment has
SPARE_BYTES = 1 << 30  # of the disk, which are never filled with what can be fetched again


class Memo:
    """Bytes that were fetched before, by name, in a folder that may be deleted at any time."""

    def __init__(self, folder: Path | None) -> None:
        """folder: in a cache's `local/remotes/`."""
        self._folder = folder
        self._tombstones = self._listed()

    def _listed(self) -> set[str]:
        if self._folder is not None:
            with contextlib.suppress(OSError):
                return set(os.listdir(self._folder.parents[2] / TOMBSTONES))
        return set()

    def drop(self, name: str) -> None:
        """Forget what is kept under `name`."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / sha256(name.encode()).hexdigest()).unlink(missing_ok=True)

    def get(
        self, name: str, fetch: Callable[[], bytes], good: Callable[[bytes], bool] = bool
    ) -> bytes:
        """The bytes kept under `name`, else those of `fetch`, which are kept where `good`."""
        if self._folder is None:
            return fetch()
        path = self._folder / sha256(name.encode()).hexdigest()
        kept = disk.read_kept(path, limit=MAX_KEPT_BYTES) or b""
        if sha256(kept[32:]).digest() == kept[:32]:
            return kept[32:]
        raw = fetch()
        if not good(raw):
            return raw
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self._folder.parent.parent).free < SPARE_BYTES + len(raw):
                return raw
        with contextlib.suppress(OSError):  # best effort; may fail on a full disk
            disk.make_folder(self._folder, below=self._folder.parents[1], durable=False)
            # Not durable: every read compares the digest.
            disk.replace(path, sha256(raw).digest() + raw, durable=False)
            # A `forget` deletes what is remembered after its tombstone: either it comes after this,
            # or its tombstone is seen here.
            if self._listed() != self._tombstones:
                path.unlink(missing_ok=True)
        return raw
