"""Tombstones that a `forget` proposes, so that whoever publishes an id meanwhile can withdraw them.

    forgotten/.ready-<id>.json.<mark of the process>       a tombstone, before it has its name

A `forget` takes a content's vectors when no other id stands for it. Between that look and the
tombstone another process may publish such an id and report success. So the tombstone lies ready
first, under a hidden name that everybody sees; then the ids are looked at once more; then it is
renamed. Who publishes an id withdraws what lies ready for its content, and then reads the
tombstones: either the look sees the id, or the publisher sees what lies ready (the rename fails,
and `forget` looks again) or the tombstone (and the new id goes, as it would a moment later).
Nobody waits for anybody, and a proposal whose process died decides nothing.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.store.tombstones import FOLDER, MAX_BYTES, parse_tombstone

_READY = re.compile(r"\.ready-(.{30}\.json)\..+")


def propose(cache: Path, tombstones: Mapping[str, bytes]) -> list[Path]:
    """Lay tombstones, {file name: bytes}, ready and durable, for `enter` to name them so."""
    folder = cache / FOLDER
    disk.make_folder(folder, below=cache)
    found = list[Path]()
    try:
        for name, raw in tombstones.items():
            found.append(folder / f".ready-{name}.{disk.mark_of_process()}")
            disk.write_new(found[-1], raw)
    except BaseException:
        drop(found)
        raise
    return found


def enter(proposals: Sequence[Path]) -> bool:
    """Make proposals tombstones, in order; False where one was withdrawn: those after it go too."""
    for i, path in enumerate(proposals):
        target = path.with_name(_name_of(path.name))
        try:
            path.rename(target)
        except FileNotFoundError:
            if not target.exists():  # a server may answer so to the second try of what it did
                drop(proposals[i:])
                return False
    for folder in {path.parent for path in proposals}:
        disk.sync_folder(folder)
    return True


def drop(proposals: Sequence[Path]) -> None:
    """Take one's own proposals back."""
    for path in proposals:
        path.unlink(missing_ok=True)


def withdraw(cache: Path, contents: Callable[[], set[bytes]] | None = None) -> None:
    """Withdraw what lies ready for some contents, by their marks; by default everything.

    To be called after ids of them were published, and before tombstones are read.
    contents: asked only where something lies ready.
    """
    folder = cache / FOLDER
    names = [name for name in _listed(folder) if _READY.fullmatch(name)]
    marks = contents() if names and contents is not None else None
    for name in names:
        if marks is None or _speaks_of(marks, cache, name):
            with disk.plain_errors("write to", cache):
                (folder / name).unlink(missing_ok=True)


def _speaks_of(contents: set[bytes], cache: Path, name: str) -> bool:
    """Whether a proposal names one of some contents; so does one that cannot be read."""
    try:
        raw = disk.read_inside(cache, f"{FOLDER}/{name}", limit=MAX_BYTES)
        found = parse_tombstone(raw, name=name)
    except FileNotFoundError:
        return False
    except CacheError:  # half written: then its ids are looked at after this
        return True
    return not contents.isdisjoint((*found.contents, *found.left))


def _name_of(hidden: str) -> str:
    found = _READY.fullmatch(hidden)
    assert found is not None
    return found[1]


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
