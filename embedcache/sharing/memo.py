"""What this machine remembers of a remote between two commands."""

import contextlib
import secrets
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from embedcache import disk


class Memo:
    """What was fetched before, by name, in a folder that may be deleted at any time."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(
        self, name: str, fetch: Callable[[], bytes], good: Callable[[bytes], bool] = bool
    ) -> bytes:
        """What was kept under `name`, else what `fetch` returns, which is kept where it is good."""
        if self._folder is None:
            return fetch()
        path = self._folder / sha256(name.encode()).hexdigest()
        with contextlib.suppress(OSError):
            kept = path.read_bytes()
            if sha256(kept[32:]).digest() == kept[:32]:
                return kept[32:]
        raw = fetch()
        if not good(raw):
            return raw
        with contextlib.suppress(OSError):  # a convenience: a full disk may say no
            self._folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            disk.write_new(part, sha256(raw).digest() + raw, durable=False)  # it is checked anyway
            part.replace(path)
        return raw
