"""The files of a run in a folder that a user named; whatever else lies there stays as it is.

    OUT/.embedcache-files.json   the files that runs wrote here, and their sha256

A file is ours while it stands in that list and was not changed since. A run replaces and removes
only such files; where somebody else's file has a name that it needs, it writes beside it.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Set
from hashlib import sha256
from itertools import count
from pathlib import Path

from embedcache import disk
from embedcache.errors import LabelsError
from embedcache.photos.kinds import SUFFIXES

LIST = ".embedcache-files.json"
_MAX_LIST_BYTES = 16 << 20


class Outputs:
    """The files that one run writes to a folder; call `finish` when all are written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._earlier = listed(folder)
        self._written: dict[str, str] = {}

    def place(self, name: str) -> Path:
        """Where to write a file: `name`, or beside it where that is not ours. Makes its folder."""
        first = self.folder / name
        first.parent.mkdir(parents=True, exist_ok=True)
        return next(path for path in _names(first) if self._is_free(path))

    def wrote(self, path: Path) -> Path:
        """Enter a file in the list, now, so that a run that dies leaves none that is nobody's."""
        name = path.relative_to(self.folder).as_posix()
        self._written[name] = _digest(path)
        self._write_list(gone=set())
        return path

    def write(self, name: str, data: bytes) -> Path:
        path = self.place(name)
        disk.replace(path, data, durable=False)
        return self.wrote(path)

    def finish(self) -> None:
        """Remove what earlier runs wrote and this one did not, such as photos of other pages."""
        stale = self._earlier.keys() - self._written.keys()
        for name in stale:
            if is_own(self.folder, name, self._earlier):
                path = self.folder / name
                path.unlink(missing_ok=True)  # another run may be at it
                with contextlib.suppress(OSError):  # not empty
                    path.parent.rmdir()
        self._write_list(gone=stale)

    def _is_free(self, path: Path) -> bool:
        if not os.path.lexists(path):
            return True
        name = path.relative_to(self.folder).as_posix()
        return name not in self._written and is_own(self.folder, name, self._earlier)

    def _write_list(self, *, gone: Set[str]) -> None:
        """The list with what this run wrote, and what another run at once has entered meanwhile."""
        files = {name: d for name, d in listed(self.folder).items() if name not in gone}
        disk.replace(self.folder / LIST, encode_list(files | self._written), durable=False)


def refuse_photos(folder: Path) -> None:
    """LabelsError for a collection of photos, to which a page's figures would be added.

    That is a folder with photos at its top, or with nothing but folders of photos, in which no run
    wrote before.
    """
    if not folder.is_dir() or (folder / LIST).exists():
        return
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    inside = [] if any(map(Path.is_file, entries)) else [e for e in entries if e.is_dir()]
    for place in (folder, *inside):
        if any(file.suffix.lower() in SUFFIXES for file in place.iterdir() if file.is_file()):
            raise LabelsError(f"{folder} holds photos: name another folder for the page")


def free_name(path: Path) -> Path:
    """`path`, or a name beside it where that is taken."""
    return next(name for name in _names(path) if not os.path.lexists(name))


def _names(path: Path) -> Iterator[Path]:
    return (path.with_stem(f"{path.stem}-{n}") if n else path for n in count())


def encode_list(files: dict[str, str]) -> bytes:
    """The list's bytes."""
    return (json.dumps({"files": files}, indent=1, sort_keys=True) + "\n").encode()


def listed(folder: Path) -> dict[str, str]:
    """What earlier runs wrote to a folder: {name: sha256}; empty where there is no list."""
    path = folder / LIST
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_LIST_BYTES:
            return {}
        files = json.loads(path.read_bytes())["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_own(folder: Path, name: str, files: dict[str, str]) -> bool:
    """Whether a file is as the list has it: plain, below the folder, and not changed since."""
    path = folder / name
    parts = Path(name).parts
    if name not in files or Path(name).is_absolute() or ".." in parts:
        return False
    steps = [folder.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    if any(step.is_symlink() for step in steps) or not path.is_file():
        return False
    return _digest(path) == files[name]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        running = sha256()
        while block := file.read(1 << 20):
            running.update(block)
    return running.hexdigest()
