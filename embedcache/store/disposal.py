"""Deleting folders of a cache: what embedcache wrote goes, what others put there is set aside.

What is set aside lies in the cache's `damaged/`, under the name of the folder that it was in.
"""

import contextlib
import logging
import os
import re
import stat
from collections.abc import Callable, Container, Iterator
from itertools import count
from pathlib import Path

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.store import journal
from embedcache.store.columns import COLUMNS
from embedcache.store.manifest import MANIFEST
from embedcache.store.sealed import MAX_MANIFEST_BYTES, unseal
from embedcache.wording import counted

log = logging.getLogger(__name__)
FOLDER = "damaged"

_ARRAYS = {"embedding", *(name for kind in COLUMNS.values() for name in kind)}
# Every file that a segment, a draft or other work in progress may hold, whatever its folder is
# called by now.
_OURS = re.compile(
    rf"(?:(?:{'|'.join(sorted(_ARRAYS))})/(?:c(?:/\d{{1,9}}){{1,3}}(?:\.partial)?|zarr\.json)"
    rf"|(?:segments/)?zarr\.json|{re.escape(MANIFEST)}|entry\.json|claimed"
    rf"|(?:(?:{journal.FOLDER}|\.old-[^/]+)/)?(?:lease\.json|abandoned\.json|journal))"
)
_PART = re.compile(r"(?:.*/)?\.[^/]+\.(?:part|json\.[0-9a-f]{8}[^/.]*)")
# The temporary names of a file, by the forms that docs/format.md gives.
_SUFFIX = r"[0-9a-f]{8}-[0-9a-f]{8}-\d{1,10}-\d{1,20}"
_TEMPORARY = re.compile(rf"\.(.+)\.(?:part|{_SUFFIX})")
_WRITING = re.compile(
    rf"(?:{journal.FOLDER}|\.old-{_SUFFIX})/(?:lease\.json|abandoned\.json|journal)"
)
_CLAIM = re.compile(r"\.(.+\.json)\.claim|\.(.+\.json)\.[0-9a-f]{8}-.+")
_KEPT_OPEN = re.compile(r"\.nfs[0-9a-f]+")  # NFS has it until the process that reads it ends


def set_aside(cache: Path, path: Path) -> Path:
    """Move a file or folder of a cache to damaged/, and return where it is now."""
    is_folder = path.is_dir() and not path.is_symlink()
    target = _new_place(cache, path, folder=is_folder)
    try:
        path.rename(target)
    except FileNotFoundError:
        target.rmdir() if is_folder else target.unlink()
        raise
    disk.sync_folder(target.parent)
    return target


def dispose(path: Path, *, cache: Path, was: Path | None = None) -> bool:
    """Delete a folder that embedcache made, beside others who may be at it too.

    was: what the folder was called. What embedcache wrote is known by the manifest, and by its name
        where there is none that can be read.
    A link in the folder's place is somebody else's: it moves to damaged/, and is not followed.
    Returns whether nothing is left: on NFS a file that a process holds open stays until it is
    closed.
    """
    if path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            set_aside(cache, path)
        return True
    # local/ is this machine's alone: whole caches on their way to a shared copy lie there.
    is_ours = (lambda own: True) if path.parent == cache / "local" else _ours_in(path)
    aside: Path | None = None
    for parent, folders, files in os.walk(path, topdown=False):
        inside = os.path.relpath(parent, path)
        links = [name for name in folders if os.path.islink(f"{parent}/{name}")]
        # The manifest goes last: it says what is ours.
        for name in sorted([*files, *links], key=MANIFEST.__eq__):
            own = name if inside == "." else f"{inside}/{name}"
            with contextlib.suppress(FileNotFoundError):
                if _is_ours(path, own, is_ours):
                    os.unlink(f"{parent}/{name}")
                elif not _KEPT_OPEN.fullmatch(name):
                    aside = aside or _new_place(cache, was or path, folder=True)
                    disk.make_folder(aside / inside, below=aside, durable=False)
                    os.rename(f"{parent}/{name}", aside / own)
        for name in folders:
            if name not in links:
                disk.remove_empty(f"{parent}/{name}")
    for parent, _, _ in os.walk(aside) if aside is not None else ():
        disk.sync_folder(Path(parent))
    disk.remove_empty(path)
    return not path.exists()


def discard(path: Path, *, cache: Path, was: Path | None = None) -> bool:
    """As `dispose`, under a hidden name first, so that nobody meets half of it.

    What lies in a segment's folder is hidden beside it, where every command looks for leftovers.
    """
    home = path.parent.parent if path.name == journal.FOLDER else path.parent
    hidden = home / f".old-{disk.mark_of_process()}"
    try:
        path.rename(hidden)
    except FileNotFoundError:
        return True
    return dispose(hidden, cache=cache, was=was or path)


def names_aside(cache: Path) -> set[str]:
    """What lies in damaged/."""
    try:
        return set(os.listdir(cache / FOLDER))
    except FileNotFoundError:
        return set()


def new_aside(cache: Path, before: set[str]) -> tuple[str, ...]:
    """The paths of what lies in damaged/ now and did not `before`."""
    return tuple(str(cache / FOLDER / name) for name in sorted(names_aside(cache) - before))


def aside_note(path: str) -> str:
    """What a command says of a folder that `dispose` or `salvage` made."""
    if Path(path, journal.FOLDER, "journal").exists():
        return (
            f"{path} is unfinished work whose lease or journal is damaged: its rows could not be "
            "saved. Extract or import them again, then delete it"
        )
    n_files = sum(len(files) for _, _, files in os.walk(path))
    return (
        f"{path} has {counted(n_files, 'file')} that embedcache did not write, from a folder that "
        "was deleted. Move what is yours out of the cache"
    )


@contextlib.contextmanager
def noting_aside(cache: Path) -> Iterator[None]:
    """Warn of what moves to damaged/ meanwhile, for commands whose result does not say it."""
    before = names_aside(cache)
    try:
        yield
    finally:
        for path in new_aside(cache, before):
            log.warning("note: %s", aside_note(path))


def is_our_name(own: str) -> bool:
    """Whether embedcache gives a file such a name, by its path in a segment or a draft of one."""
    return bool(_OURS.fullmatch(own) or _PART.fullmatch(own))


def ours_in_hidden(name: str) -> Callable[[str], bool]:
    """How embedcache's files are known in a hidden folder of that name: also the file it claims."""
    claim = _CLAIM.fullmatch(name)
    claimed = claim.groups() if claim else ()
    return lambda own: own in claimed or is_our_name(own)


def named_by(files: Container[str]) -> Callable[[str], bool]:
    """Whether embedcache wrote a file of a finished segment whose manifest names `files`."""

    def is_ours(own: str) -> bool:
        if own in files or own == MANIFEST:
            return True
        folder, slash, name = own.rpartition("/")
        temporary = _TEMPORARY.fullmatch(name)
        return temporary is not None and is_ours(f"{folder}{slash}{temporary[1]}")

    return is_ours


def _ours_in(path: Path) -> Callable[[str], bool]:
    """How embedcache's files in a folder are known: by its manifest, or else by their names."""
    with contextlib.suppress(OSError, CacheError):
        raw = disk.read_inside(path, MANIFEST, limit=MAX_MANIFEST_BYTES)
        files = unseal(raw, what=str(path))[0].get("files")
        if isinstance(files, dict):
            is_named, has_lease = named_by(files), journal.has_lease(path)

            def is_ours(own: str) -> bool:
                # A writer that was killed right after it published left its lease and journal.
                left = _WRITING.fullmatch(own) is not None
                return is_named(own) or (left and (has_lease or own.startswith(".old-")))

            return is_ours
    return is_our_name


def _is_ours(folder: Path, own: str, is_ours: Callable[[str], bool]) -> bool:
    try:
        if not stat.S_ISREG(os.lstat(f"{folder}/{own}").st_mode):
            return False  # a link, or a device: nothing that embedcache makes
    except FileNotFoundError:
        return True
    if (claim := _CLAIM.fullmatch(folder.name)) and own in claim.groups():
        return True
    return is_ours(own)


def _new_place(cache: Path, path: Path, *, folder: bool) -> Path:
    """Make a new name in damaged/ for what lies at `path`: an empty folder, or an empty file."""
    name = "-".join(part.lstrip(".") for part in path.relative_to(cache).parts)
    disk.make_folder(cache / FOLDER, below=cache)
    for n in count(1):
        target = cache / FOLDER / (name if n == 1 else f"{name}-{n}")
        with contextlib.suppress(FileExistsError):
            if folder:
                target.mkdir()
            else:
                disk.write_new(target, b"", durable=False)
            return target
    raise AssertionError("unreachable")
