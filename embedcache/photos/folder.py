"""The photos of a folder: by suffix, or by the first bytes of a file whose suffix says nothing."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import PhotosError
from embedcache.photos.kinds import SNIFF_BYTES, SUFFIXES, DecodeError, kind_of

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


@dataclass(frozen=True, slots=True)
class Listing:
    """Ids and paths of the photos below a folder, sorted; other files counted by suffix."""

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    ignored: Mapping[str, int]


def photos_below(root: Path, progress: Callable[[int], None] | None) -> Listing:
    """List the photos in `root` and below; links are followed, loops are not.

    A file counts as a photo by its suffix, or by its first bytes where the suffix is unknown.
    Hidden files are skipped. A folder that cannot be listed is listed itself, its id ending in "/":
    reading it fails, so it is in the ledger and the other folders are not lost.
    """
    top = os.path.join(root, "")
    names: list[str] = []
    ignored: Counter[str] = Counter()
    waiting = [("", frozenset({_mark(os.stat(top))}))]
    shown = time.monotonic()
    while waiting:
        prefix, above = waiting.pop()
        try:
            with os.scandir(top + prefix) as entries:
                found = list(entries)
        except OSError as error:
            if not prefix:
                raise PhotosError(f"cannot list {root}: {error.strerror}") from None
            names.append(prefix)
            continue
        for entry in found:
            name = entry.name
            if name[0] == ".":
                continue
            below = _mark_of_folder(entry)
            if below is None:
                if _is_photo(entry):
                    names.append(prefix + name)
                else:
                    ignored[_suffix(name)] += 1
            elif below not in above:
                waiting.append((f"{prefix}{name}/", above | {below}))
        if progress is not None and (now := time.monotonic()) - shown >= _TICK_SECONDS:
            shown = now
            progress(len(names))
    names.sort()
    return Listing(_ids(names), tuple([top + name for name in names]), dict(ignored))


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


def _ids(names: list[str]) -> tuple[str, ...]:
    """File names as unique ids."""
    ids = [readable_name(name) for name in names]
    if len(set(ids)) < len(ids):  # a name with a literal \\xNN beside one with that byte
        taken = {name for name, text in zip(names, ids, strict=True) if name == text}
        for i, name in enumerate(names):
            if ids[i] != name:
                while ids[i] in taken:
                    ids[i] += "\\0"
                taken.add(ids[i])
    return tuple(ids)
