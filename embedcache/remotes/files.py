"""A remote on a file system, here or behind SFTP: segments are staged and renamed into place.

A segment in such a remote is therefore always whole, and a folder remote is at any moment a cache
that `Cache.open` reads. Every pusher stages under its own name, which a later push finds again.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from embedcache import disk
from embedcache.errors import Damaged, RemoteError
from embedcache.remotes.remote import Blocks, ListedObject, Ours, plain_os_error

# A key inside a segment: the folder of segments, the segment, the file in it.
_IN_SEGMENT = re.compile(r"(.+/segments)/(\d{8}T\d{12}-[0-9a-f]{8})/(.+)")
# The two documents that create a space; its own comes last.
_ENTRY = re.compile(r"removed/\d{8}/[a-z]+\.json")
_SPACE = re.compile(r"([a-z-]+)/([0-9a-f]{64})/(segments/zarr\.json|zarr\.json)")
MANIFEST = "manifest.json"
MAX_DEPTH = 12
MAX_NAMES = 4_000_000


class Files(Protocol):
    """What a file system must do for `FilesRemote`; paths are relative, with "/" between parts."""

    failures: tuple[type[Exception], ...]

    def walk(self, folder: str) -> Iterator[tuple[str, int, str]]:
        """(path, size, tag) of the plain files below `folder`; hidden names are left out.

        Where a link or a file stands in the place of `folder`, or of one that it lies in, that is
        what is found, as UNSEEN.
        """
        ...

    def names(self) -> list[str]:
        """Names directly in the root, only the first of many; empty where it does not exist yet.

        RemoteError where its parent folder does not exist.
        """
        ...

    def read(self, path: str, start: int) -> Iterator[bytes]: ...

    def write(self, path: str, blocks: Iterator[bytes]) -> None:
        """Write a file durably, from its beginning; creates its folders."""
        ...

    def rename(self, path: str, target: str) -> bool:
        """Rename a folder; False where `target` exists and holds something."""
        ...

    def replace(self, path: str, target: str) -> None: ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a small file that must not exist, whole and durably; False where it does."""
        ...

    def exists(self, path: str) -> bool: ...

    def hidden(self, folder: str) -> list[str]:
        """Names in a folder that begin with a dot; none where there is no such folder."""
        ...

    def idle_seconds(self, path: str) -> float:
        """How long a file or folder has not changed, by the clock of the file system."""
        ...

    def remove(self, path: str, *, ours: Ours | None = None) -> None:
        """Remove a file, or a folder with its content; no error where there is none.

        ours: which files in the folder to remove, by their paths in it; the rest stays.
        """
        ...


NO_RIGHT = "you have no right to read it"
LINK = "it is a link: refused"
NO_FOLDER = "it is not a folder: refused"


class Looks:
    """Counts the names that a walk meets, including those it ignores, so that it ends."""

    def __init__(self) -> None:
        self.n = 0

    def count(self) -> None:
        self.n += 1
        if self.n > MAX_NAMES:
            raise RemoteError(f"there are over {MAX_NAMES:,} names in that folder: refused")


class FilesRemote:
    """A `Remote` made of files."""

    def __init__(self, files: Files, name: str, *, staging: str) -> None:
        self.name = name
        self._files = files
        self._staging = staging

    def list(self, prefix: str) -> Iterator[ListedObject]:
        with self._plain(prefix), contextlib.suppress(FileNotFoundError):
            for path, size, tag in self._files.walk(prefix.rstrip("/")):
                yield ListedObject(path, size, tag)

    def top(self) -> Sequence[str]:
        with self._making(), self._plain("its names"):
            return self._files.names()

    def unfinished(self, segment: str) -> Iterator[ListedObject]:
        folder = self._staged(f"{segment}/{MANIFEST}").rpartition("/")[0]
        for entry in self.list(f"{folder}/"):
            yield ListedObject(segment + entry.key[len(folder) :], entry.size, entry.tag)

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        left = length
        with self._plain(key):
            for block in self._files.read(key, start):
                if left is not None and len(block) >= left:
                    yield block[:left]
                    return
                yield block
                left = None if left is None else left - len(block)

    def write(self, key: str, blocks: Blocks, *, size: int) -> None:
        del size
        with self._plain(key):
            inside = _IN_SEGMENT.fullmatch(key)
            target = self._staged(key)
            if inside and self._files.exists(f"{inside[1]}/{inside[2]}"):
                target = key  # a file that a segment lacks, or has with other bytes
            folder, _, name = target.rpartition("/")
            # Where it is staged always this name: the next push overwrites what a killed one left.
            part = "part" if target != key else disk.mark_of_process()
            part = f"{folder}/.{name}.{part}".lstrip("/")
            try:
                self._files.write(part, blocks())
                self._files.replace(part, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._files.remove(part)
                raise

    def create(self, key: str, data: bytes) -> bool:
        with self._making(), self._plain(key):
            inside = _IN_SEGMENT.fullmatch(key)
            if inside and inside[3] == MANIFEST:
                staged = self._staged(key)
                folder, final = staged.rpartition("/")[0], key.rpartition("/")[0]
                if not self._files.exists(final):
                    self._files.write(
                        staged, iter([data])
                    )  # overwrites what a killed push left of it
                    if self._files.rename(folder, final):
                        return True
                self._files.remove(folder)
                if self._files.exists(key):
                    return False  # else only its manifest is missing
            space = _SPACE.fullmatch(key)
            if space and not self._files.exists(f"{space[1]}/{space[2]}"):
                return self._create_space(space, data)
            return self._files.create(key, data)

    def create_once(self, key: str, data: bytes) -> bool:
        if not _ENTRY.fullmatch(key):
            return self.create(key, data)
        # In a folder of its own, which is renamed: no file system renames a folder onto one that
        # holds something, so a number is given once.
        folder, _, name = key.rpartition("/")
        hidden = f"{folder.rpartition('/')[0]}/.entry-{disk.mark_of_process()}"
        with self._making(), self._plain(key):
            self._files.write(f"{hidden}/{name}", iter([data]))
            if not self._files.rename(hidden, folder):
                self._files.remove(hidden)
                return False
            return True

    def leftovers(self, folder: str) -> Sequence[str]:
        with self._plain(folder):
            return [f"{folder}/{name}".lstrip("/") for name in self._files.hidden(folder)]

    def idle_seconds(self, key: str) -> float | None:
        with contextlib.suppress(FileNotFoundError, RemoteError), self._plain(key):
            return self._files.idle_seconds(key)
        return None  # gone by now, or a member who may not write there

    def _create_space(self, space: re.Match[str], data: bytes) -> bool:
        """Create a space in a hidden folder, which gets its name once both documents are there."""
        hidden = f"{space[1]}/.push-{space[2]}-{self._staging}"
        self._files.write(f"{hidden}/{space[3]}", iter([data]))
        if space[3] == "zarr.json" and not self._files.rename(hidden, f"{space[1]}/{space[2]}"):
            self._files.remove(hidden)
            return False
        return True

    def delete(self, key: str, *, ours: Ours | None = None) -> None:
        """Remove an object; removing a manifest removes the whole segment at once.

        Files that are not `ours` stay, in the hidden folder that it was renamed to.
        """
        with self._plain(key):
            inside = _IN_SEGMENT.fullmatch(key)
            if not inside:
                self._files.remove(key, ours=ours)
            elif inside[3] == MANIFEST:
                # The name says what it was, so that anybody can finish a deletion that was cut.
                hidden = f"{inside[1]}/.gone-{inside[2]}-{disk.mark_of_process()}"
                with contextlib.suppress(FileNotFoundError):
                    self._files.rename(f"{inside[1]}/{inside[2]}", hidden)
                self._files.remove(hidden, ours=ours)

    def _staged(self, key: str) -> str:
        inside = _IN_SEGMENT.fullmatch(key)
        if inside is None:
            return key
        return f"{inside[1]}/.push-{inside[2]}-{self._staging}/{inside[3]}"

    @contextlib.contextmanager
    def _making(self) -> Iterator[None]:
        """Explain a missing folder when a file is created."""
        try:
            yield
        except FileNotFoundError:
            raise RemoteError(
                f"a shared copy cannot be created at {self.name}: no folder can be made there",
                advice="Name another place",
            ) from None

    @contextlib.contextmanager
    def _plain(self, key: str) -> Iterator[None]:
        try:
            yield
        except Damaged as error:
            raise RemoteError(error.fact, asked=self.name, advice=error.advice) from None
        except self._files.failures as error:
            raise plain_os_error(error, self.name, key) from None


def require_parent(folder: str, exists: bool) -> None:
    """RemoteError unless the parent folder of a new shared copy exists."""
    if not exists:
        parent = str(PurePosixPath(folder).parent)
        raise RemoteError(
            f"no shared copy can be created at {folder}: there is no folder {parent}",
            advice="Check the spelling, or create that folder first",
        )
