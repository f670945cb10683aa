"""Taking back refs: a ref is looked at under a hidden name before it goes, and never lost there.

No file system deletes a file only if it still is what somebody has read. So whoever takes a ref
back renames it first, reads it, and deletes it if it is the one that was meant; another one goes
back. Whoever is killed in between leaves a ref aside. It pins what it pins all the same
(`refs.pinned_ids`), it can be read, and if it counts the next command that tidies up puts it back.
"""

import contextlib
import os
import time
from pathlib import Path

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.locks import alone_in
from embedcache.store.disposal import set_aside
from embedcache.store.journal import LEASE_SECONDS
from embedcache.store.log import Log, read_log
from embedcache.store.refs import Aside, counts, read_aside, ref_digest, refs_aside

LOOKS = 100
LOOK_SECONDS = 0.02  # at a ref that another process looks at for a moment


def withdraw_ref(cache: Path, name: str, *, digest: str) -> None:
    """Take back a ref, entered or not; one of the same name that another wrote stays.

    Raises CacheError where another process has held the refs for long.
    """
    path = cache / "refs" / f"{name}.json"
    with disk.plain_errors("write", path), alone_in(path.parent):
        while ref_digest(cache, name) == digest:
            aside = disk.temporary_beside(path)
            try:
                path.rename(aside)
            except FileNotFoundError:
                return
            found = read_aside(cache, aside)
            if found is not None and found.digest == digest:
                disk.delete_folder(disk.claim_of(path))
                aside.unlink(missing_ok=True)
            else:
                with contextlib.suppress(FileNotFoundError):  # another process has put it back
                    _put_back(cache, path, aside)
            disk.sync_folder(path.parent)


def delete_ref(cache: Path, name: str) -> None:
    """Delete a ref, also one that lies aside; nothing happens where there is none.

    Raises CacheError where other processes look at it all the while.
    """
    for _ in range(LOOKS):
        bring_back(cache, name)
        if digest := ref_digest(cache, name):
            withdraw_ref(cache, name, digest=digest)
        log = read_log(cache)
        aside = any(counts(one, log) for one in refs_aside(cache, name))
        if not aside and ref_digest(cache, name) is None:
            return
        time.sleep(LOOK_SECONDS)
    raise CacheError(
        f"another process has been looking at ref {name!r} of {cache} all the while",
        advice="Wait until it has ended, or end it if it is stuck; then rerun the command",
    )


def stands(cache: Path, name: str, *, digest: str) -> bool:
    """Whether a ref has that digest; one that another process looks at is waited for."""
    for _ in range(LOOKS):
        if (found := ref_digest(cache, name)) is not None:
            return found == digest
        bring_back(cache, name)
        if not any(one.digest == digest for one in refs_aside(cache, name)):
            break
        time.sleep(LOOK_SECONDS)
    return ref_digest(cache, name) == digest


def bring_back(cache: Path, name: str) -> None:
    """Put back the ref of a name that processes which have ended left aside."""
    for one in refs_aside(cache, name):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if _is_left(one.path):
                bring_one_back(cache, one.path)


def _is_left(path: Path) -> bool:
    """Whether the process that put a ref aside has ended: by the name, or else by its age.

    A ref keeps its age when it is put aside, so that an old one counts as left at once. That does
    no harm: whoever looks at it looks again.
    """
    gone = disk.maker_is_gone(path.name)
    if gone is None:
        gone = disk.now_beside(path.parent) - path.lstat().st_mtime >= LEASE_SECONDS
    return gone


def bring_one_back(cache: Path, path: Path) -> bool:
    """Put a ref that lies aside back if the log acknowledges it; returns whether it does.

    The process that put it aside must have ended.
    """
    found, log = read_aside(cache, path), read_log(cache)
    if found is None or not _is_acknowledged(log, found):
        return False
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        if counts(found, log):
            _put_back(cache, cache / "refs" / f"{found.pins.name}.json", path)
            disk.sync_folder(path.parent)
        else:
            set_aside(cache, path)  # what it pinned is gone, which no command does
    return True


def _put_back(cache: Path, path: Path, aside: Path) -> None:
    """Give a ref its name again, unless one of that name counts.

    Of two that count, which no writer makes, one moves to damaged/, and so does what is no ref.
    """
    log = read_log(cache)
    one = read_aside(cache, aside)
    is_acknowledged = one is not None and _is_acknowledged(log, one)
    try:
        os.link(aside, path)  # never onto another
    except FileExistsError:
        there = ref_digest(cache, path.stem)
        if one is None or (is_acknowledged and (path.stem, there) in log.acknowledged):
            if one is None or there != one.digest:
                set_aside(cache, aside)
        elif is_acknowledged:
            aside.rename(path)  # what is there is not acknowledged, and never will be
            return
    except OSError as error:
        if error.errno not in disk.NO_LINKS:
            raise
        if is_acknowledged or not path.exists():
            aside.rename(path)
            return
    aside.unlink(missing_ok=True)


def _is_acknowledged(log: Log, ref: Aside) -> bool:
    return (ref.pins.name, ref.digest) in log.acknowledged
