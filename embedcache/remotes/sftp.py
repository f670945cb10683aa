"""Files of another machine over SSH: fsspec's SFTP, with the host's key checked."""

import contextlib
import errno
import logging
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote

from embedcache import disk
from embedcache.errors import RemoteError
from embedcache.remotes.files import LINK, MAX_DEPTH, NO_FOLDER, NO_RIGHT, Looks, require_parent
from embedcache.remotes.remote import ANSWER_SECONDS, BLOCK_BYTES, UNSEEN, Ours, Unreachable

CONNECT_SECONDS = 10.0
DEADLINE_BYTES = 2 << 20  # requests up to this size have a deadline, in all, as on S3
DEADLINE_SECONDS = 30.0
PAGE_NAMES = 100  # of a listing, each with a deadline of its own
MAX_TOP = 1000


class Timed:
    """A channel that gives up on silence, and on a request that takes too long in all.

    ends: when the current request must have ended. What comes after one that was given up would
    be the answer to another, so the connection is closed.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.ends = math.inf

    def recv(self, n: int) -> bytes:
        return bytes(self._within(self._channel.recv, n))

    def send(self, data: bytes) -> int:
        return int(self._within(self._channel.send, data))

    def _within(self, call: Callable[[Any], Any], argument: object) -> Any:
        left = self.ends - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._channel.settimeout(min(ANSWER_SECONDS, left))
            return call(argument)
        except TimeoutError:
            self._channel.get_transport().close()
            raise TimeoutError(errno.ETIMEDOUT, "the server does not answer in time") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


class SftpFiles:
    """One connection per thread; keys and agents as for ssh, known hosts only."""

    def __init__(self, url: SplitResult) -> None:
        self._url = url
        self._root = unquote(url.path).rstrip("/") or "/"
        self._local = threading.local()
        self.failures: tuple[type[Exception], ...] = (OSError, EOFError)
        with contextlib.suppress(ImportError):
            import paramiko  # type: ignore[import-untyped]

            self.failures += (paramiko.SSHException,)

    def walk(self, folder: str) -> Iterator[tuple[str, int, str]]:
        if found := self._no_folder(folder):
            yield found
            return
        waiting = [folder]
        looks = Looks()
        while waiting:
            here = waiting.pop()
            try:
                names = self._ftp.listdir_iter(self._path(here))
                first = list(islice(names, 1))  # the request is made here, not before
            except (PermissionError, FileNotFoundError) as error:
                if here == folder:
                    raise
                if isinstance(error, PermissionError):  # else it has just been removed
                    yield here, UNSEEN, NO_RIGHT
                continue
            for found in chain(first, names):
                looks.count()
                if looks.n % PAGE_NAMES == 0:
                    self._allow(DEADLINE_SECONDS)
                name, mode = str(found.filename), found.st_mode or 0
                if name.startswith(".") or "/" in name or here.count("/") + 2 > MAX_DEPTH:
                    continue
                path = f"{here}/{name}" if here else name
                if stat.S_ISDIR(mode):
                    waiting.append(path)
                elif stat.S_ISREG(mode):
                    yield path, int(found.st_size or 0), f"{found.st_mtime}-{found.st_size}"
                elif stat.S_ISLNK(mode):
                    yield path, UNSEEN, LINK

    def names(self) -> list[str]:
        if not self.exists(""):
            require_parent(self._root, self._fs.isdir(self._root.rpartition("/")[0] or "/"))
            return []
        found = islice(self._ftp.listdir_iter(self._path("")), MAX_TOP)
        return [str(entry.filename) for entry in found]

    def read(self, path: str, start: int) -> Iterator[bytes]:
        with self._fs.open(self._path(path), "rb", block_size=BLOCK_BYTES) as file:
            size = int(file.stat().st_size)
            file.seek(start)
            if size - start > DEADLINE_BYTES:
                self._allow(math.inf)
            if size - start > BLOCK_BYTES:
                file.prefetch(size)
            while block := file.read(min(BLOCK_BYTES, max(0, size - start))):
                start += len(block)
                yield block

    def write(self, path: str, blocks: Iterator[bytes]) -> None:
        target = self._path(path)
        self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        with self._ftp.open(target, "wb") as file:
            self._allow(math.inf)
            file.set_pipelined(True)
            for block in blocks:
                file.write(bytes(block))

    def rename(self, path: str, target: str) -> bool:
        if self.exists(target):
            return False
        try:
            self._ftp.rename(
                self._path(path), self._path(target)
            )  # plain SFTP rename never replaces
        except FileNotFoundError:
            raise
        except OSError:
            if self.exists(target):
                return False
            raise
        return True

    def replace(self, path: str, target: str) -> None:
        self._ftp.posix_rename(self._path(path), self._path(target))

    def create(self, path: str, data: bytes) -> bool:
        folder, _, name = path.rpartition("/")
        part = f"{folder}/.{name}.{disk.mark_of_process()}".lstrip("/")
        self.write(part, iter([data]))
        if self.rename(part, path):
            return True
        self.remove(part)
        return False

    def hidden(self, folder: str) -> list[str]:
        try:
            names = [] if self._no_folder(folder) else self._ftp.listdir(self._path(folder))
        except FileNotFoundError:
            return []
        return sorted(str(name) for name in names if str(name).startswith("."))

    def idle_seconds(self, path: str) -> float:
        probe = f"{path.rpartition('/')[0]}/.now.{disk.mark_of_process()}".lstrip("/")
        self.write(probe, iter([b""]))
        try:
            times = [self._ftp.lstat(self._path(one)).st_mtime or 0 for one in (probe, path)]
        finally:
            self.remove(probe)
        return float(times[0] - times[1])

    def exists(self, path: str) -> bool:
        return bool(self._fs.exists(self._path(path)))

    def remove(self, path: str, *, ours: Ours | None = None) -> None:
        try:
            mode = self._ftp.lstat(self._path(path)).st_mode or 0
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            self._clear(path, "", ours)
        else:  # of a link only the link goes, never what it leads to
            self._ftp.remove(self._path(path))

    def _no_folder(self, folder: str) -> tuple[str, int, str] | None:
        """What stands in the place of a folder, or of one that it lies in; None for folders."""
        place = ""
        for part in folder.split("/") if folder else ():
            place = f"{place}/{part}".lstrip("/")
            mode = self._ftp.lstat(self._path(place)).st_mode or 0
            if not stat.S_ISDIR(mode):
                return place, UNSEEN, LINK if stat.S_ISLNK(mode) else NO_FOLDER
        return None

    def _clear(self, folder: str, inside: str, ours: Ours | None) -> bool:
        """Remove what is ours below `folder`/`inside`; returns whether nothing is left."""
        here = self._path(f"{folder}/{inside}")
        empty = True
        for found in self._ftp.listdir_attr(here):
            own = f"{inside}{found.filename}"
            mode = found.st_mode or 0
            if stat.S_ISDIR(mode):
                empty &= self._clear(folder, f"{own}/", ours)
            elif ours is None or (stat.S_ISREG(mode) and ours(own)):
                self._ftp.remove(self._path(f"{folder}/{own}"))
            else:
                empty = False
        if empty:
            self._ftp.rmdir(here)
        return empty

    def _path(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}".rstrip("/")

    @property
    def _ftp(self) -> Any:
        return self._fs.ftp

    @property
    def _fs(self) -> Any:
        fs = getattr(self._local, "fs", None)
        if fs is None or not fs.client.get_transport() or not fs.client.get_transport().is_active():
            fs = self._local.fs = _connect(self._url)
        fs.ftp.sock.ends = time.monotonic() + DEADLINE_SECONDS
        return fs

    def _allow(self, seconds: float) -> None:
        """Give the current request so long from now on."""
        self._local.fs.ftp.sock.ends = time.monotonic() + seconds


def _connect(url: SplitResult) -> Any:
    """A connection to the host of a URL, with a message for each way in which that can fail."""
    paramiko, known_hosts = _libraries(url)
    place = f"{url.scheme}://{url.hostname}"
    try:
        return known_hosts(url.hostname or "", **_options(url))
    except paramiko.BadHostKeyException:
        raise RemoteError(
            f"{place} shows another key than the one in your known_hosts",
            advice="Ask whoever runs it whether that changed; if so, 'ssh-keygen -R HOST' drops "
            "the old one",
        ) from None
    except paramiko.AuthenticationException:
        raise RemoteError(
            f"{place} does not accept your key",
            advice="Load the right one with ssh-add, and try 'ssh' to that host",
        ) from None
    except paramiko.SSHException as error:
        if "known_hosts" in str(error):
            raise RemoteError(
                f"the key of {place} is not in your known_hosts",
                advice="Connect once with 'ssh' and check it, then rerun the command",
            ) from None
        if "No authentication methods" in str(error):
            raise RemoteError(
                f"you have no key for {place}",
                advice="Load one with ssh-add, or name its file in EMBEDCACHE_SSH_KEY",
            ) from None
        raise Unreachable(f"{place} cannot be reached: {error}") from None
    except (OSError, EOFError) as error:
        raise Unreachable(f"{place} cannot be reached: {error}") from None


def _libraries(url: SplitResult) -> tuple[Any, Any]:
    """paramiko, and fsspec's SFTP with known hosts only."""
    try:
        import paramiko
        from fsspec.implementations.sftp import SFTPFileSystem  # type: ignore[import-untyped]
    except ImportError:
        raise RemoteError(
            f"{url.scheme}://{url.hostname} needs the packages fsspec and paramiko",
            advice="Run 'pip install fsspec paramiko'",
        ) from None

    # `_connect` reports failures in one line; without a handler paramiko prints a traceback too.
    log = logging.getLogger("paramiko")
    if not log.hasHandlers():
        log.addHandler(logging.NullHandler())

    class KnownHosts(SFTPFileSystem):  # type: ignore[misc]
        """fsspec accepts any key that a host shows; here the host must be known, as for ssh."""

        def _connect(self) -> None:
            self.client = paramiko.SSHClient()
            self.client.load_system_host_keys(os.environ.get("EMBEDCACHE_KNOWN_HOSTS"))
            self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
            self.client.connect(self.host, **self.ssh_kwargs)
            self.ftp = self.client.open_sftp()
            self.ftp.sock = Timed(self.ftp.sock)

    return paramiko, KnownHosts


def _options(url: SplitResult) -> dict[str, Any]:
    """How to connect: timeouts, and the port, user and key where they are given."""
    options: dict[str, Any] = {
        "timeout": CONNECT_SECONDS,
        "banner_timeout": CONNECT_SECONDS,
        "skip_instance_cache": True,
    }
    if url.port:
        options["port"] = url.port
    if url.username:
        options["username"] = unquote(url.username)
    if key := os.environ.get("EMBEDCACHE_SSH_KEY"):
        if not Path(key).is_file():
            raise RemoteError(f"EMBEDCACHE_SSH_KEY names {key}, and there is no such file")
        options["key_filename"] = key
    return options
