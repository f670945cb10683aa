"""What a `forget` is about to decide, on disk, so that one that is cut off can be ended by another.

    local/forgetting-<mark of the process>      a line for each content: its mark in tombstones

A content whose ids are forgotten while another id stands for it is forgotten only if that one goes
too. Of two that forget the two ids of a photo at once, each leaves it to the other; if both are
killed, and the dead ids are then taken away, nothing but this names the content. Written before the
ids' tombstone, removed after the decision.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.store.cache import Cache
from embedcache.store.salvage import Leftover, is_abandoned
from embedcache.store.tombstones import content_mark

PREFIX = "forgetting-"
MAX_BYTES = 256 << 20


def begin(cache: Cache, contents: Iterable[bytes]) -> Path | None:
    """Name contents (32 bytes each) whose ids are about to be forgotten; None for none."""
    lines = sorted(content_mark(content).hex() for content in contents)
    if not lines:
        return None
    path = cache.local / f"{PREFIX}{disk.mark_of_process()}"
    disk.replace(path, "\n".join(lines).encode())
    return path


def left(cache: Path) -> Iterator[Leftover]:
    """The files of runs that are at work, or were cut off."""
    for path in sorted((cache / "local").glob(f"{PREFIX}*")):
        yield Leftover(path, "" if is_abandoned(path) else "a running forget")


def marks_left(cache: Path) -> tuple[set[bytes], list[Path]]:
    """The contents that others named, by their marks, and the files of those who were cut off."""
    marks, files = set[bytes](), []
    for one in left(cache):
        try:
            raw = disk.read_inside(cache, f"local/{one.path.name}", limit=MAX_BYTES)
            found = {bytes.fromhex(line) for line in raw.decode().split()}
            marks |= {mark for mark in found if len(mark) == 32}
        except FileNotFoundError:  # it has just ended
            continue
        except (Damaged, ValueError):  # of a file like this nobody knows more
            pass
        if not one.holder:
            files.append(one.path)
    return marks, files
