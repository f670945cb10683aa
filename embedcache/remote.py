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
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Timer
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from embedcache.address import OBJECT_SCHEMES, parse_address
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
SILENCE_SECONDS = 20.0  # without a byte from an object store that is written to
ANSWER_SECONDS = 8.0  # likewise, from one that is read
PATIENCE_SECONDS = 20.0  # after which nothing small is tried again
QUIET_SECONDS = 2.0  # of waiting, after which it is told of
FIRST_WAIT_SECONDS = 0.2
# By the first letter of the scheme: where the address of another service stands.
ENDPOINTS = {
    "s": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "a": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "g": ("GOOGLE_BASE_URL",),
}
NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)|specified bucket does not exist")
LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/|$)")


class Unreachable(RemoteError):
    """A request that failed in passing: the network, a server that is busy or down."""


class Denied(RemoteError):
    """A request that this member has no right to make."""


UNSEEN = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """A listed object. tag: changes when its content does (an ETag, a time).

    size: UNSEEN for a place that cannot be looked at, and tag says why.
    """

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

    def top(self) -> Sequence[str]:
        """Names of what lies directly there, of much the first; none for an absent place.

        Raises RemoteError where a shared copy cannot begin.
        """
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
    """A remote whose passing failures are tried again, after longer and longer pauses.

    tell: takes a line, once, where that takes long.
    """

    def __init__(
        self,
        remote: Remote,
        *,
        tries: int = TRIES,
        sleep: Callable[[float], None] = time.sleep,
        tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self._remote = remote
        self._tries = tries
        self._sleep = sleep
        self._tell = tell
        self._told = False
        self._answered = False

    @property
    def name(self) -> str:
        return self._remote.name

    def list(self, prefix: str) -> Iterator[Entry]:
        return iter(self._patiently(lambda: _bounded(self._remote.list(prefix), self.name)))

    def top(self) -> Sequence[str]:
        return self._patiently(self._remote.top)

    def unfinished(self, segment: str) -> Iterator[Entry]:
        return iter(self._patiently(lambda: _bounded(self._remote.unfinished(segment), self.name)))

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        got, since, failed, began = 0, 0, 0, time.monotonic()
        while length is None or got < length:
            left = None if length is None else length - got
            try:
                for block in self._remote.blocks(key, start=start + got, length=left):
                    got += len(block)
                    yield block
                return
            except Unreachable:
                if got - since > BLOCK_BYTES:
                    failed, began = 0, time.monotonic()
                failed, since = failed + 1, got
                if failed >= self._tries:
                    raise
                self._wait(failed, began)

    def read_small(self, key: str, *, limit: int) -> bytes:
        return self._patiently(lambda: read_small(self._remote, key, limit=limit))

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        self._patiently(lambda: self._remote.write(key, blocks, size=size), math.inf)

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

    def _patiently(self, request: Callable[[], T], patience: float = PATIENCE_SECONDS) -> T:
        began = time.monotonic()
        for failed in range(1, self._tries):
            try:
                return self._heard(request)
            except Unreachable:
                if failed > 1 and time.monotonic() - began > patience:
                    raise
                self._wait(failed, began)
        return self._heard(request)

    def _heard(self, request: Callable[[], T]) -> T:
        """Make a request; until one has been answered, one that takes long is told of."""
        if self._answered:
            return request()
        timer = Timer(QUIET_SECONDS, self._tell_of_waiting)
        timer.daemon = True
        timer.start()
        try:
            found = request()
        finally:
            timer.cancel()
        self._answered = True
        return found

    def _wait(self, failed: int, began: float) -> None:
        pause = FIRST_WAIT_SECONDS * 2 ** (failed - 1) * random.uniform(0.5, 1.5)
        if time.monotonic() - began + pause > QUIET_SECONDS:
            self._tell_of_waiting()
        self._sleep(pause)

    def _tell_of_waiting(self) -> None:
        if not self._told:
            self._told = True
            seconds = PATIENCE_SECONDS + ANSWER_SECONDS - QUIET_SECONDS
            self._tell(f"{self.name} does not answer; trying again for up to {seconds:.0f} s")


class ObjectRemote:
    """S3, Google Cloud Storage or Azure, through obstore."""

    def __init__(self, store: Any, name: str, *, quick: Any = None) -> None:
        """quick: the same store with less patience, for what is answered at once."""
        self.name = name
        self._store = store
        self._quick = quick or store

    def list(self, prefix: str) -> Iterator[Entry]:
        with self._plain(prefix):
            whole = pages(self._quick, prefix.rstrip("/"), name=self.name, most=MAX_KEYS)
        for found in whole:
            tag = found.get("e_tag") or str(found["last_modified"])
            yield Entry(found["path"], found["size"], tag)

    def top(self) -> Sequence[str]:
        with self._plain("its first keys"):
            found = pages(self._quick, "", name=self.name, most=0)
        return sorted({entry["path"].split("/")[0] for entry in found} - {""})

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
            found = obstore.get(self._quick, key, options=options or None)
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
                    obstore.head(self._quick, key)
                    return False
                obstore.put(self._store, key, data, use_multipart=False)
        return True

    def delete(self, key: str) -> None:
        import obstore

        with self._plain(key), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._quick, key)

    @contextlib.contextmanager
    def _plain(self, key: str) -> Iterator[None]:
        """Turn obstore's exceptions into those of `Remote`."""
        from obstore import exceptions as problems

        try:
            yield
        except FileNotFoundError as error:
            if NO_BUCKET.search(str(error)):
                raise self._no_bucket() from None
            raise
        except (
            problems.PermissionDeniedError,
            problems.UnauthenticatedError,
            PermissionError,
        ) as e:
            raise Denied(f"{self.name} does not let you at {key}: {_told(e)}") from None
        except (problems.BaseError, OSError) as error:
            if NO_BUCKET.search(str(error)):
                raise self._no_bucket() from None
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

    def _no_bucket(self) -> RemoteError:
        bucket = urlsplit(self.name).netloc
        return RemoteError(
            f"{self.name} cannot be used: there is no bucket {bucket}. Make it first, where your "
            "storage is managed, or check its name"
        )


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

    parts, name = parse_address(url), url.rstrip("/")
    if isinstance(parts, Path):
        return FilesRemote(LocalFiles(parts), str(parts), staging=staging)
    if parts.scheme in OBJECT_SCHEMES:
        return ObjectRemote(
            _store(name, silence=SILENCE_SECONDS), name, quick=_store(name, silence=ANSWER_SECONDS)
        )
    from embedcache.sftp import SftpFiles

    return FilesRemote(SftpFiles(parts), name, staging=staging)


def _check_environment(url: str) -> None:
    """Unreachable where a variable holds what obstore would panic at."""
    for name in ENDPOINTS[url[0]]:
        value = os.environ.get(name)
        if value and not _is_endpoint(value):
            raise Unreachable(
                f"{url} cannot be reached: {name} must be an address with its scheme, such as "
                "http://127.0.0.1:9000 or https://storage.example.org, and is not"
            )
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if url[0] == "s" else ():
        if re.search(r"[^\w.-]", os.environ.get(name, "")):
            raise Unreachable(
                f"{url} cannot be reached: {name} must be the name of a region, such as "
                "eu-central-1, and is not"
            )


def _is_endpoint(value: str) -> bool:
    try:
        parts = urlsplit(value)
        found = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(found) and not re.search(r"[^!-~]", value)


def _store(url: str, *, silence: float) -> Any:
    try:
        from obstore.store import from_url
    except ImportError:
        raise RemoteError(
            f"{url} needs obstore: pip install 'embedcache[s3]', or uv sync --extra s3"
        ) from None
    _check_environment(url)
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=silence),
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
