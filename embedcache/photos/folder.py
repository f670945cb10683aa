"""The photos of a folder: by suffix, or by the first bytes of a file whose suffix says nothing."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import PhotosError
from embedcache.photos.kinds import SNIFF_BYTES, SUFFIXES, DecodeError, kind_of
from embedcache.texts import Below, Texts, few_as_tuple

# Not opened: a folder of a million photos often holds a million of these beside them. Raw camera
# files are among them because their first bytes say TIFF, whose first picture is a thumbnail.
OTHER_SUFFIXES = frozenset(
    [".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".lock", ".log", ".md", ".parquet", ".py"]
    + [".npy", ".npz", ".pdf", ".svg", ".toml", ".tsv", ".txt", ".xml", ".xmp", ".yaml", ".yml"]
    + [".7z", ".aac", ".avi", ".gz", ".m4a", ".m4v", ".mkv", ".mov", ".mp3", ".mp4", ".mpg"]
    + [".safetensors", ".tar", ".wav", ".webm", ".wmv", ".zip", ".zst", ".eps", ".ps", ".psd"]
    + [".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"]
)
_TICK_SECONDS = 0.1

Marks = frozenset[tuple[int, int]]  # of a folder and of those that it is in


@dataclass(frozen=True, slots=True)
class Listing:
    """Ids and paths of the photos below a folder, sorted; other files counted by suffix."""

    ids: Sequence[str]
    paths: Sequence[str]
    ignored: Mapping[str, int]


def photos_below(root: Path, progress: Callable[[int], None] | None) -> Listing:
    """List the photos in `root` and below; links are followed, loops are not.

    A file counts as a photo by its suffix, or by its first bytes where the suffix is unknown.
    Hidden files are skipped. A folder that cannot be listed is listed itself, its id ending in "/":
    reading it fails, so it is in the ledger and the other folders are not lost.
    """
    walk = _Walk(root, progress)
    names = Texts.of(walk.names())
    ids = names if names.text.max(initial=0) < 128 else _ids(names)
    return Listing(few_as_tuple(ids), few_as_tuple(Below(walk.top, names)), dict(walk.ignored))


class _Walk:
    """The photos below a folder, one folder after another, so that few are objects at a time."""

    def __init__(self, root: Path, progress: Callable[[int], None] | None) -> None:
        self.top = os.path.join(root, "")
        self.ignored: Counter[str] = Counter()
        self._root = root
        self._progress = progress
        self._shown = time.monotonic()
        self._n_found = 0

    def names(self) -> Iterator[str]:
        """Their paths below the folder, sorted; PhotosError where that cannot be listed.

        Each folder is sorted by what its entries begin a path with ("name", "folder/"): one after
        the other they are sorted as a whole.
        """
        try:
            opened = [self._entries("", frozenset({_mark(os.stat(self.top))}))]
        except OSError as error:
            raise PhotosError(f"cannot list {self._root}: {error.strerror}") from None
        while opened:
            prefix, entries, folders = opened[-1]
            name = next(entries, None)
            if name is None:
                opened.pop()
            elif name in folders:
                try:
                    opened.append(self._entries(prefix + name, folders[name]))
                except OSError:
                    yield prefix + name
            else:
                yield prefix + name

    def _entries(self, prefix: str, above: Marks) -> tuple[str, Iterator[str], dict[str, Marks]]:
        """Of one folder: (prefix, its photos and folders, sorted, marks by folder)."""
        files: list[str] = []
        folders: dict[str, Marks] = {}
        ignored: Counter[str] = Counter()
        with os.scandir(self.top + prefix) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                below = _mark_of_folder(entry)
                if below is None:
                    if _is_photo(entry):
                        files.append(name)
                    else:
                        ignored[_suffix(name)] += 1
                elif below not in above:
                    folders[f"{name}/"] = above | {below}
        self.ignored += ignored
        self._n_found += len(files)
        if self._progress is not None and (now := time.monotonic()) - self._shown >= _TICK_SECONDS:
            self._shown = now
            self._progress(self._n_found)
        return prefix, iter(sorted([*files, *folders])), folders


def readable_name(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become \\xNN."""
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_photo(entry: "os.DirEntry[str]") -> bool:
    suffix = _suffix(entry.name)
    if suffix in SUFFIXES or suffix in OTHER_SUFFIXES:
        return suffix in SUFFIXES
    try:
        if not entry.is_file():  # a pipe or a device is never opened
            return False
        with open(entry.path, "rb", buffering=0) as file:
            kind_of(file.read(SNIFF_BYTES) or b"")
    except (OSError, DecodeError):
        return False
    return True


def _suffix(name: str) -> str:
    """`.jpg` of `A.JPG`, "" where there is none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def _mark(status: os.stat_result) -> tuple[int, int]:
    """What identifies a folder."""
    return status.st_dev, status.st_ino


def _mark_of_folder(entry: "os.DirEntry[str]") -> tuple[int, int] | None:
    """The mark of a folder, None for anything else."""
    try:
        return _mark(entry.stat()) if entry.is_dir() else None
    except OSError:  # a link to itself, or into a folder that is closed
        return None


def _ids(names: Texts) -> Texts:
    """File names as unique ids."""
    odd = [i for i, name in enumerate(names) if readable_name(name) != name]
    if not odd:
        return names
    ids = [readable_name(name) for name in names]
    if len(set(ids)) < len(ids):  # a name with a literal \\xNN beside one with that byte
        taken = {name for name, text in zip(names, ids, strict=True) if name == text}
        for i in odd:
            while ids[i] in taken:
                ids[i] += "\\0"
            taken.add(ids[i])
    return Texts.of(ids)
