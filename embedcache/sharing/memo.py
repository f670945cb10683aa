"""What this machine remembers of a remote between two commands."""

import contextlib
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from embedcache import disk
from embedcache.store import memory

MAX_KEPT_BYTES = 256 << 20  # more than one column of the largest segment has
SPARE_BYTES = 1 << 30  # of the disk, which are never filled with what can be fetched again


class Memo:
    """Bytes that were fetched before, by name, in a folder that may be deleted at any time."""

    def __init__(self, folder: Path | None) -> None:
        """folder: a cache's `store.memory` of a remote."""
        self._folder = folder

    def get(
        self, name: str, fetch: Callable[[], bytes], good: Callable[[bytes], bool] = bool
    ) -> bytes:
        """The bytes kept under `name`, else those of `fetch`, which are kept where `good`: nothing
        is that holds a forgotten photo."""
        folder = self._folder  # threads share this: it may be another one at the next line
        if folder is None:
            return fetch()
        path = folder / sha256(name.encode()).hexdigest()
        kept = disk.read_kept(path, limit=MAX_KEPT_BYTES) or b""
        if sha256(kept[32:]).digest() == kept[:32]:
            return kept[32:]
        raw = fetch()
        if not good(raw):
            return raw
        with contextlib.suppress(OSError):
            if shutil.disk_usage(folder.parents[3]).free < SPARE_BYTES + len(raw):
                return raw
        with contextlib.suppress(OSError):  # best effort; may fail on a full disk
            with memory.writing(path):
                # Not durable: every read compares the digest.
                disk.replace(path, sha256(raw).digest() + raw, durable=False)
            if not path.exists():
                self._folder = None  # somebody forgot a photo: what comes may hold it
        return raw
