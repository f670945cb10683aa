"""One small interface over the places where a team keeps its shared copy.

    open_remote("/mnt/team/faces")        a folder
    open_remote("s3://bucket/team")       S3-compatible storage; gs:// and az:// the same way
    open_remote("ssh://host/srv/team")    SFTP

A `Remote` knows keys ("spaces/.../manifest.json") and bytes, nothing of what they mean. What it
returns is untrusted: `embedcache.catalogue` decides what is believed. `Patient` tries again what
failed in passing. Credentials come from the environment, never from a URL.
"""

import contextlib
import errno
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from embedcache.errors import RemoteError
from embedcache.listing import pages

T = TypeVar("T")
Blocks = Callable[[], Iterator[bytes]]

BLOCK_BYTES = 1 << 20
SMALL_BYTES = 8 << 20
MAX_KEYS = 1_000_000
MAX_KEY = 1024
MAX_LISTING_CHARACTERS = 256 << 20
TRIES = 6
SILENCE_SECONDS = 20.0  # without a byte from an object store
FIRST_WAIT_SECONDS = 0.2
OBJECT_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
# By the first letter of the scheme: where the address of another service stands.
ENDPOINTS = {
    "s": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "a": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "g": ("GOOGLE_BASE_URL",),
}
LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/|$)")


class Unreachable(RemoteError):
    """A request that failed in passing: the network, a server that is busy or down."""


class Denied(RemoteError):
    """A request that this member has no right to make."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A listed object. tag: changes when its content does (an ETag, a time)."""

    key: str
    size: int
    tag: str


class Remote(Protocol):
    """Objects by key. Raises FileNotFoundError, Denied, Unreachable, or RemoteError for good."""

    @property
    def name(self) -> str:
        """The URL, as messages say it."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose key starts with `prefix`, which ends in "/"."""
        ...

    def unfinished(self, segment: str) -> Iterator[Entry]:
        """Objects under `segment`/ that an earlier push of this segment has left."""
        ...

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """An object's bytes from `start`, `length` of them or all, piece by piece."""
        ...

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        """Store an object whole or not at all; an exception out of `blocks` stores nothing."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Store an object that must not exist; False, and nothing stored, where it does.

        For a segment's manifest this is what makes the segment appear.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error where there is none."""
        ...


class Patient:
    """A remote whose passing failures are tried again, after longer and longer pauses."""

    def __init__(
        self, remote: Remote, *, tries: int = TRIES, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._remote = remote
        self._tries = tries
        self._sleep = sleep

    @property
    def name(self) -> str:
        return self._remote.name

    def list(self, prefix: str) -> Iterator[Entry]:
        return iter(self._patiently(lambda: _bounded(self._remote.list(prefix), self.name)))

    def unfinished(self, segment: str) -> Iterator[Entry]:
        return iter(self._patiently(lambda: _bounded(self._remote.unfinished(segment), self.name)))

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        got, since, failed = 0, 0, 0
        while length is None or got < length:
            left = None if length is None else length - got
            try:
                for block in self._remote.blocks(key, start=start + got, length=left):
                    got += len(block)
                    yield block
                return
            except Unreachable:
                failed = 1 if got - since > BLOCK_BYTES else failed + 1
                since = got
                if failed >= self._tries:
                    raise
                self._wait(failed)

    def read_small(self, key: str, *, limit: int) -> bytes:
        return self._patiently(lambda: read_small(self._remote, key, limit=limit))

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        self._patiently(lambda: self._remote.write(key, blocks, size=size))

    def create(self, key: str, data: bytes) -> bool:
        n_tried = 0

        def attempt() -> bool:
            nonlocal n_tried
            n_tried += 1
            if self._remote.create(key, data):
                return True
            # The answer to an attempt that did succeed may have been lost on the way.
            return n_tried > 1 and read_small(self._remote, key, limit=len(data)) == data

        return self._patiently(attempt)

    def delete(self, key: str) -> None:
        self._patiently(lambda: self._remote.delete(key))

    def _patiently(self, request: Callable[[], T]) -> T:
        for failed in range(1, self._tries):
            try:
                return request()
            except Unreachable:
                self._wait(failed)
        return request()

    def _wait(self, failed: int) -> None:
        self._sleep(FIRST_WAIT_SECONDS * 2 ** (failed - 1) * random.uniform(0.5, 1.5))


class ObjectRemote:
    """S3, Google Cloud Storage or Azure, through obstore."""

    def __init__(self, store: Any, name: str) -> None:
        self.name = name
        self._store = store

    def list(self, prefix: str) -> Iterator[Entry]:
        with self._plain(prefix):
            whole = pages(self._store, prefix.rstrip("/"), name=self.name, most=MAX_KEYS)
        for found in whole:
            tag = found.get("e_tag") or str(found["last_modified"])
            yield Entry(found["path"], found["size"], tag)

    def unfinished(self, segment: str) -> Iterator[Entry]:
        return self.list(f"{segment}/")

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        import obstore

        options: dict[str, Any] = {}
        if length is not None:
            options["range"] = (start, start + length)
        elif start:
            options["range"] = {"offset": start}
        with self._plain(key):
            found = obstore.get(self._store, key, options=options or None)
            for block in found.stream(min_chunk_size=BLOCK_BYTES):
                yield memoryview(block)  # type: ignore[misc]  # as good as bytes, and not copied

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        import obstore

        with self._plain(key):
            if size <= SMALL_BYTES:
                obstore.put(self._store, key, b"".join(blocks()), use_multipart=False)
            else:
                obstore.put(self._store, key, blocks(), chunk_size=SMALL_BYTES, max_concurrency=4)

    def create(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore import exceptions as problems

        with self._plain(key):
            try:
                obstore.put(self._store, key, data, mode="create", use_multipart=False)
            except problems.AlreadyExistsError:
                return False
            except (problems.NotSupportedError, NotImplementedError):
                # A store without conditional puts: names are unique, so a look is nearly as good.
                with contextlib.suppress(FileNotFoundError):
                    obstore.head(self._store, key)
                    return False
                obstore.put(self._store, key, data, use_multipart=False)
        return True

    def delete(self, key: str) -> None:
        import obstore

        with self._plain(key), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    @contextlib.contextmanager
    def _plain(self, key: str) -> Iterator[None]:
        """Turn obstore's exceptions into those of `Remote`."""
        from obstore import exceptions as problems

        try:
            yield
        except FileNotFoundError:
            raise
        except (
            problems.PermissionDeniedError,
            problems.UnauthenticatedError,
            PermissionError,
        ) as e:
            raise Denied(f"{self.name} does not let you at {key}: {_told(e)}") from None
        except (problems.BaseError, OSError) as error:
            if "(code: AccessDenied)" in str(error):  # told per key, in the answer to a bulk delete
                raise Denied(f"{self.name} does not let you at {key}: {_told(error)}") from None
            if "169.254.169.254" in str(error):  # where cloud machines ask for credentials
                raise RemoteError(
                    f"no credentials for {self.name} were found: docs/sharing.md says how each "
                    "kind of storage learns who you are"
                ) from None
            raise Unreachable(
                f"{self.name} cannot be reached ({key}): {_told(error)}. Check the address and the "
                "network, then run the same command again"
            ) from None


def open_remote(url: str, *, staging: str = "shared") -> Remote:
    """The remote at `url`, patient; nothing is asked of it yet.

    staging: distinguishes this cache's unfinished pushes from those of others, on file systems.
    Raises RemoteError for a URL that holds a credential or that no installed library serves.
    """
    return Patient(_open(url, staging))


def read_small(remote: Remote, key: str, *, limit: int) -> bytes:
    """The bytes of a small object; RemoteError past `limit`, before they are all taken in."""
    if isinstance(remote, Patient):  # a whole try each time: where it ends is not known before
        return remote.read_small(key, limit=limit)
    parts, size = [], 0
    for block in remote.blocks(key, length=limit + 1):
        parts.append(bytes(block))
        size += len(block)
        if size > limit:
            raise RemoteError(f"{key} of {remote.name} has over {limit:,} bytes: refused")
    return b"".join(parts)


def _open(url: str, staging: str) -> Remote:
    from embedcache.files import FilesRemote, LocalFiles

    if "://" not in url:
        return FilesRemote(LocalFiles(Path(url)), str(url), staging=staging)
    scheme, _, rest = url.partition("://")
    name = url.rstrip("/")
    parts = urlsplit(url)
    named = "@" in rest.split("/")[0] and scheme in OBJECT_SCHEMES
    if re.search(r"[?#;]", rest) or parts.password is not None or named:
        raise RemoteError(
            f"this {scheme}:// URL holds more than an address, perhaps a credential, which would "
            "end up in messages and files: leave it out. docs/sharing.md says how each kind of "
            "storage learns who you are"
        )
    if scheme == "file":
        return FilesRemote(LocalFiles(Path(parts.path)), parts.path, staging=staging)
    if scheme in ("ssh", "sftp"):
        from embedcache.sftp import SftpFiles

        return FilesRemote(SftpFiles(parts), name, staging=staging)
    if scheme in OBJECT_SCHEMES:
        return ObjectRemote(_store(name), name)
    raise RemoteError(
        f"no remote can be a {scheme}:// URL. Name a folder, s3://BUCKET/PREFIX, gs://BUCKET/"
        "PREFIX, az://CONTAINER/PREFIX or ssh://HOST/FOLDER"
    )


def _store(url: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError:
        raise RemoteError(
            f"{url} needs obstore: pip install 'embedcache[s3]', or uv sync --extra s3"
        ) from None
    import os
    from datetime import timedelta

    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=SILENCE_SECONDS),
        "timeout": timedelta(hours=1),
        "user_agent": "embedcache",
    }
    endpoints = [os.environ.get(name, "") for name in ENDPOINTS[url[0]]]
    if LOOPBACK.match(next(filter(None, endpoints), "")):  # nothing leaves the machine
        options["allow_http"] = True
    try:
        # Patience is ours: one place, one schedule, for every kind of remote.
        retry = {"max_retries": 0, "retry_timeout": timedelta(seconds=120)}
        return from_url(url, client_options=options, retry_config=retry)
    except Exception as error:  # obstore raises many kinds, some of them plain ValueErrors
        raise RemoteError(f"{url} cannot be used: {_told(error)}") from None


def _bounded(entries: Iterator[Entry], name: str) -> list[Entry]:
    found, size = [], 0
    for number, entry in enumerate(entries, start=1):
        if len(entry.key) <= MAX_KEY and len(entry.tag) <= MAX_KEY:
            found.append(entry)
            size += len(entry.key) + len(entry.tag)
        if number > MAX_KEYS or size > MAX_LISTING_CHARACTERS:
            raise RemoteError(f"{name} lists over {number - 1:,} objects: refused")
    return found


def _told(error: BaseException) -> str:
    """An error's text on one line, short, without what a URL may hold of credentials."""
    text = re.sub(r"(?<!<)\?\S*|(?<=//)[^/\s]*@", "", str(error).partition("Debug source")[0])
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def plain_os_error(error: Exception, name: str, key: str) -> Exception:
    """What an operating system's error at a remote means."""
    if not isinstance(error, OSError):
        return Unreachable(f"{name} cannot be reached ({key}): {_told(error)}")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return FileNotFoundError(errno.ENOENT, "no such object", key)
    if isinstance(error, PermissionError) or error.errno in (errno.EROFS, errno.EPERM):
        return Denied(f"{name} does not let you at {key}: {error.strerror or error}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RemoteError(f"{name} is full: make room there, then run the same command again")
    return Unreachable(
        f"{name} cannot be reached ({key}): {error.strerror or error}. Run the same command again"
    )
