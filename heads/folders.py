"""Folders that a run writes whole, in place of what an earlier run wrote there.

A folder is written under another name and then renamed. The one that it takes the place of keeps a
hidden name until the user's own files in it have moved on; were that cut off, the next look at the
place goes on with it. A marker, such as fit.json, says that a folder is an earlier run's.
"""

import contextlib
import glob
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from embedcache import disk
from embedcache.errors import HeadError
from embedcache.locks import alone_in
from heads.outputs import LIST, encode_list, free_name, is_own, listed

_BESIDE = re.compile(r"\.(.+)\.(new-)?[0-9a-f]{8}-[0-9a-f]{8}-\d+-\d+")  # on its way


def replace_folder(folder: str | Path, marker: str, fill: Callable[[Path], None]) -> Path:
    """Write a folder by `fill`, which gets a fresh one; returns the folder, links resolved.

    Other files of an earlier run's folder stay. Of several that write one folder at once the last
    one wins, wholly. HeadError when the folder holds something else, or
    an earlier run's `marker` that was changed.
    """
    folder = Path(folder)
    if folder.is_symlink():
        folder = folder.resolve()
    try:
        _kept(folder, marker)  # says what is wrong with it before anything is made
    except HeadError:
        if not folder.is_dir():
            raise
        with alone_in(folder.parent, patient=True):  # while another fit takes its place it is mixed
            _kept(folder, marker)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(folder.parent, patient=True):
        bring_back(folder)
        _replace(folder, marker, fill)
    return folder


def _replace(folder: Path, marker: str, fill: Callable[[Path], None]) -> None:
    """Write a folder beside another, and put it in the other's place."""
    kept = _kept(folder, marker)
    earlier = disk.temporary_beside(folder)
    fresh = earlier.with_name(f".{folder.name}.new-{disk.mark_of_process()}")
    try:
        fresh.mkdir()
        fill(fresh)
        _keep(folder, kept, fresh)
        disk.sync_tree(fresh)
        if folder.exists():
            folder.rename(earlier)
        if not disk.rename_folder(fresh, folder):
            raise HeadError(f"another process wrote to {folder} meanwhile; run this again")
        disk.sync_folder(folder.parent)
    finally:
        disk.delete_folder(fresh)
        if earlier.exists():
            carry_over(earlier, folder)


def holds_earlier(folder: str | Path, marker: str) -> bool:
    """Whether an earlier run's folder lies where `replace_folder` will write.

    What a run that was cut off left beside the folder comes back first.
    HeadError where `replace_folder` would refuse the folder.
    """
    folder = Path(folder)
    if folder.resolve().parent.is_dir():
        with alone_in(folder.resolve().parent, patient=True):
            bring_back(folder.resolve())
    _kept(folder, marker)
    return folder.is_dir() and any(folder.iterdir())


def bring_back(folder: Path) -> None:
    """Go on with saves to a folder that were cut off: what lay in it comes back."""
    for beside in sorted(folder.parent.iterdir()) if folder.parent.is_dir() else ():
        found = _BESIDE.fullmatch(beside.name)
        gone = disk.maker_is_gone(beside.name)
        if not found or found[1] != folder.name or gone is False:
            continue
        if not beside.is_dir() or beside.is_symlink():
            continue
        if not found[2]:  # also of another machine, or of this one before it was started again
            carry_over(beside, folder)
        elif gone:
            disk.delete_folder(beside)


def carry_over(earlier: Path, folder: Path) -> None:
    """Put an earlier folder back, or what no fit wrote in it into the one that took its place."""
    if disk.rename_folder(earlier, folder):
        return
    files = listed(earlier) if earlier.is_dir() else {}
    for parent, folders, names in os.walk(earlier):
        inside = Path(parent).relative_to(earlier)
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in [*names, *links]:
            own = (inside / name).as_posix()
            if own == LIST:  # it says what is ours, so it goes last
                continue
            if is_own(earlier, own, files):
                (earlier / own).unlink(missing_ok=True)
            else:
                room = _room(folder, inside)
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    Path(parent, name).rename(free_name(room / name))
        if not folders and not names and inside.parts:
            _room(folder, inside)
    disk.delete_folder(earlier, ours=LIST.__eq__)


def remove_own(folder: Path) -> None:
    """Remove what a run wrote in a folder, and the folder itself if nothing else lies there."""
    for name in (files := listed(folder)):
        if is_own(folder, name, files):
            (folder / name).unlink(missing_ok=True)
    disk.delete_folder(folder, ours=LIST.__eq__)


def _room(folder: Path, inside: Path) -> Path:
    """The folder at a place inside another; beside a part of the place that is a file now."""
    place = folder
    for part in inside.parts:
        place /= part
        if os.path.lexists(place) and not place.is_dir():
            place = free_name(place)
    place.mkdir(parents=True, exist_ok=True)
    return place


def identity(folder: Path) -> tuple[int, int] | None:
    """Which folders a head, and the fit that it may be of, are now; None where there is none."""
    try:
        return folder.stat().st_ino, folder.parent.stat().st_ino
    except OSError:
        return None


def is_replaced(folder: Path) -> bool:
    """Whether another process is just putting a new fit in the place of a folder."""
    places = [place for place in (folder, folder.parent) if place.parent.is_dir()]
    return any(
        _BESIDE.fullmatch(beside.name) and disk.maker_is_gone(beside.name) is False
        for place in places
        for beside in place.parent.glob(f".{glob.escape(place.name)}.*")
    )


def _keep(folder: Path, kept: list[str], fresh: Path) -> None:
    """List what this fit wrote in its new folder; others keep their names."""
    names = [path.relative_to(fresh).as_posix() for path in fresh.rglob("*") if path.is_file()]
    for name in kept:
        if name in names:
            raise HeadError(
                f"{folder / name} is not what an earlier fit wrote; name another folder"
            )
    files = {name: hashlib.sha256((fresh / name).read_bytes()).hexdigest() for name in names}
    disk.write_new(fresh / LIST, encode_list(files))


def _kept(folder: Path, marker: str) -> list[str]:
    """The files of a folder that no earlier fit wrote, or that were changed since."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise HeadError(f"{place} is a file; name a folder for the heads")
    if not folder.exists() or not any(folder.iterdir()):
        return []
    if not (folder / marker).is_file():
        raise HeadError(f"{folder} holds something other than an earlier fit; name another folder")
    files = listed(folder)
    there = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in there if path != folder / LIST]
    kept = [name for name in names if not is_own(folder, name, files)]
    if kept and marker in kept:
        raise HeadError(
            f"{folder / marker} is not what an earlier fit wrote, or an older version of "
            "embedcache wrote it; name another folder, or remove this one"
        )
    return kept
