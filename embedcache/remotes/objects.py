"""S3, Google Cloud and Azure through obstore."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from embedcache.errors import RemoteError
from embedcache.remotes.guard import guard
from embedcache.remotes.listing import pages
from embedcache.remotes.remote import (
    BLOCK_BYTES,
    MAX_KEYS,
    SMALL_BYTES,
    Blocks,
    Denied,
    ListedObject,
    Ours,
    Unconditional,
    Unreachable,
    reason_of,
)

SILENCE_SECONDS = 20.0  # without a byte from an object store that is written to
DEADLINE_BYTES = 2 << 20  # requests up to this size have a deadline, in all
DEADLINE_SECONDS = 30.0
# By the first letter of the scheme: variables with the address of another service.
ENDPOINTS = {
    "s": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "a": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "g": ("GOOGLE_BASE_URL",),
}
NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)|specified bucket does not exist")
REDIRECT = re.compile(r"status code: 30[12378]\b")
LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/|$)")


class ObjectRemote:
    """S3, Google Cloud Storage or Azure, through obstore."""

    def __init__(self, store: Any, name: str, *, quick: Any = None, small: Any = None) -> None:
        """The same store with three limits of time.

        store: for writes. quick: for reads; it gives up sooner on a silent server. small: for
            small requests, which have a deadline, so that no server can stretch them.
        """
        self.name = name
        self._store = store
        self._quick = quick or store
        self._small = small or self._quick

    def list(self, prefix: str) -> Iterator[ListedObject]:
        with self._plain(prefix):
            whole = pages(self._small, prefix.rstrip("/"), name=self.name, most=MAX_KEYS)
        for found in whole:
            tag = found.get("e_tag") or str(found["last_modified"])
            yield ListedObject(found["path"], found["size"], tag)

    def top(self) -> Sequence[str]:
        with self._plain("its first keys"):
            found = pages(self._small, "", name=self.name, most=0)
        return sorted({entry["path"].split("/")[0] for entry in found} - {""})

    def unfinished(self, segment: str) -> Iterator[ListedObject]:
        return self.list(f"{segment}/")

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        import obstore

        options: dict[str, Any] = {}
        if length is not None:
            options["range"] = (start, start + length)
        elif start:
            options["range"] = {"offset": start}
        store = self._quick if length is None or length > DEADLINE_BYTES else self._small
        with self._plain(key):
            found = obstore.get(store, key, options=options or None)
            for block in found.stream(min_chunk_size=BLOCK_BYTES):
                yield memoryview(block)  # type: ignore[misc]  # works as bytes, without a copy

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
                obstore.put(self._small, key, data, mode="create", use_multipart=False)
            except problems.AlreadyExistsError:
                return False
            except (problems.NotSupportedError, NotImplementedError):
                # A store without conditional puts: names are unique, so a look is nearly as good.
                with contextlib.suppress(FileNotFoundError):
                    obstore.head(self._small, key)
                    return False
                obstore.put(self._small, key, data, use_multipart=False)
        return True

    def create_once(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore import exceptions as problems

        with self._plain(key):
            try:
                obstore.put(self._small, key, data, mode="create", use_multipart=False)
            except problems.AlreadyExistsError:
                return False
            except (problems.NotSupportedError, NotImplementedError):
                raise Unconditional(f"{self.name} does not support conditional writes") from None
        return True

    def leftovers(self, folder: str) -> Sequence[str]:
        del folder  # unfinished segments are listed as such
        return ()

    def idle_seconds(self, key: str) -> float | None:
        del key
        return None

    def delete(self, key: str, *, ours: Ours | None = None) -> None:
        import obstore

        del ours  # there are no folders

        with self._plain(key), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._small, key)

    @contextlib.contextmanager
    def _plain(self, key: str) -> Iterator[None]:
        """Turn obstore's exceptions into those of `Remote`."""
        from obstore import exceptions as problems

        try:
            yield
        except Unconditional:
            raise
        except FileNotFoundError as error:
            self._refuse_redirect(error)
            if NO_BUCKET.search(str(error)):
                raise self._no_bucket() from None
            raise
        except (
            problems.PermissionDeniedError,
            problems.UnauthenticatedError,
            PermissionError,
        ) as e:
            self._refuse_redirect(e)
            raise Denied(f"{self.name} denied access to {key}: {reason_of(e)}") from None
        except (problems.BaseError, OSError) as error:
            self._refuse_redirect(error)
            if NO_BUCKET.search(str(error)):
                raise self._no_bucket() from None
            if "(code: AccessDenied)" in str(error):  # of one key, in the answer to a bulk delete
                raise Denied(f"{self.name} denied access to {key}: {reason_of(error)}") from None
            if "169.254.169.254" in str(error):  # where cloud machines ask for credentials
                raise RemoteError(
                    f"no credentials for {self.name} were found",
                    advice="docs/sharing.md says how to sign in to each kind of storage",
                ) from None
            raise Unreachable(
                f"{self.name} cannot be reached ({key}): {reason_of(error)}",
                advice="Check the address and the network, then rerun the command",
            ) from None

    def _refuse_redirect(self, error: Exception) -> None:
        """RemoteError where the store has sent a request on to somewhere else."""
        refused = guard(_endpoint(self.name)).refused if self.name.startswith("s3") else []
        if refused or REDIRECT.search(str(error)):
            raise RemoteError(
                f"{self.name} redirects to another place{''.join(f' ({r})' for r in refused[:1])}, "
                "which would receive your data: refused",
                advice="Check the address and the region, or ask whoever runs that storage",
            ) from None

    def _no_bucket(self) -> RemoteError:
        bucket = urlsplit(self.name).netloc
        return RemoteError(
            f"{self.name} cannot be used: there is no bucket {bucket}",
            advice="Create it first, where your storage is managed, or check its name",
        )


def _check_environment(url: str) -> None:
    """Unreachable where a variable has a value at which obstore would panic."""
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


def _endpoint(url: str) -> str:
    """The address of the service that the environment names for a URL; "" for the scheme's own."""
    return next(filter(None, (os.environ.get(name, "") for name in ENDPOINTS[url[0]])), "")


def _is_endpoint(value: str) -> bool:
    try:
        parts = urlsplit(value)
        found = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(found) and not re.search(r"[^!-~]", value)


def open_store(url: str, *, silence: float, deadline: float = 3600.0) -> Any:
    """obstore's store for a URL.

    silence: seconds without a byte after which a request fails. deadline: seconds for all of it.
    """
    try:
        from obstore.store import from_url
    except ImportError:
        raise RemoteError(
            f"{url} needs the package obstore", advice="Run 'pip install obstore'"
        ) from None
    _check_environment(url)
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=silence),
        "timeout": timedelta(seconds=deadline),
        "user_agent": "embedcache",
    }
    endpoint = _endpoint(url)
    if LOOPBACK.match(endpoint):  # nothing leaves the machine
        options["allow_http"] = True
    if url.startswith("s3"):
        options["proxy_url"] = guard(endpoint).url
    try:
        # `Patient` retries: one place and one schedule for every kind of remote.
        retry = {"max_retries": 0, "retry_timeout": timedelta(seconds=120)}
        return from_url(url, client_options=options, retry_config=retry)
    except Exception as error:  # obstore raises many kinds, some of them plain ValueErrors
        raise RemoteError(f"{url} cannot be used: {reason_of(error)}") from None
