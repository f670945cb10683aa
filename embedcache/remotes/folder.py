"""A folder, local or mounted, as a remote."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.remotes.files import LINK, MAX_DEPTH, NO_FOLDER, NO_RIGHT, Looks, require_parent
from embedcache.remotes.remote import BLOCK_BYTES, UNSEEN, Ours


class LocalFiles:
    """A folder of this machine, or one that is mounted here."""

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, root: Path) -> None:
        # A user may name a folder by a link to it; below it no link is followed.
        self._root = root.resolve() if root.is_symlink() else root

    def walk(self, folder: str) -> Iterator[tuple[str, int, str]]:
        if instead := self._no_folder(folder):
            yield instead
            return
        waiting = [PurePosixPath(folder)]
        looks = Looks()
        while waiting:
            here = waiting.pop()
            try:
                opened = os.scandir(self._root / here)
            except (PermissionError, FileNotFoundError) as error:
                if str(here) == folder:
                    raise
                if isinstance(error, PermissionError):  # else it has just been removed
                    yield str(here), UNSEEN, NO_RIGHT
                continue
            with opened as entries:
                for entry in entries:
                    looks.count()
                    path = here / entry.name
                    if entry.name.startswith(".") or len(path.parts) > MAX_DEPTH:
                        continue
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    except PermissionError:  # a folder that may be listed but not entered
                        yield str(path), UNSEEN, NO_RIGHT
                        continue
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(path)
                    elif stat.S_ISREG(found.st_mode):
                        yield str(path), found.st_size, f"{found.st_mtime_ns}-{found.st_ino}"
                    elif stat.S_ISLNK(found.st_mode):
                        yield str(path), UNSEEN, LINK

    def names(self) -> list[str]:
        if not self._root.exists():
            require_parent(str(self._root), self._root.absolute().parent.is_dir())
            return []
        return os.listdir(self._root)

    def read(self, path: str, start: int) -> Iterator[bytes]:
        fd = disk.open_inside(self._root, path)
        try:
            while block := os.pread(fd, BLOCK_BYTES, start):
                start += len(block)
                yield block
        finally:
            os.close(fd)

    def write(self, path: str, blocks: Iterator[bytes]) -> None:
        target = self._place(path)
        disk.make_folder(target.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= os.O_NONBLOCK  # a pipe in its place is refused instead of waited for
        fd = os.open(target, flags, 0o666)
        try:
            for block in blocks:
                disk.write_all(fd, block)
            disk.sync(fd)
        finally:
            os.close(fd)

    def rename(self, path: str, target: str) -> bool:
        source, place = self._place(path), self._place(target)
        try:
            disk.sync_tree(source)
            source.rename(place)
        except FileNotFoundError:
            raise
        except OSError:
            if place.exists():
                return False
            raise
        disk.sync_folder(place.parent)
        return True

    def replace(self, path: str, target: str) -> None:
        self._place(path).replace(self._place(target))

    def create(self, path: str, data: bytes) -> bool:
        place = self._place(path)
        disk.make_folder(place.parent)
        try:
            disk.publish(place, data, contested=True)
        except FileExistsError:
            return False
        return True

    def hidden(self, folder: str) -> list[str]:
        try:
            names = [] if self._no_folder(folder) else os.listdir(self._root / folder)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if name.startswith("."))

    def idle_seconds(self, path: str) -> float:
        place = self._place(path)
        return disk.now_beside(place.parent) - place.lstat().st_mtime

    def exists(self, path: str) -> bool:
        return (self._root / path).exists()

    def remove(self, path: str, *, ours: Ours | None = None) -> None:
        place = self._place(path)
        if not place.is_dir() or place.is_symlink():
            place.unlink(missing_ok=True)
        elif place.name.startswith("."):
            disk.delete_folder(place, ours=ours)
        else:
            disk.remove_folder(place)

    def _no_folder(self, folder: str) -> tuple[str, int, str] | None:
        """What stands in the place of a folder, or of one that it lies in; None for folders."""
        parts = PurePosixPath(folder).parts
        for n in range(len(parts)):
            place = PurePosixPath(*parts[: n + 1])
            found = (self._root / place).lstat()
            if not stat.S_ISDIR(found.st_mode):
                return str(place), UNSEEN, LINK if stat.S_ISLNK(found.st_mode) else NO_FOLDER
        return None

    def _place(self, path: str) -> Path:
        """Where `path` is written; Damaged where a link on the way would lead elsewhere."""
        place = self._root
        for part in path.split("/")[:-1]:
            place /= part
            if place.is_symlink():
                raise Damaged(
                    f"{place} is a link: refused", advice="Ask who made it, and remove it"
                )
        return self._root / path
