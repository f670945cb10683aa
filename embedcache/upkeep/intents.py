"""What a `forget` is about to decide, on disk, so that one that is cut off can be ended by another.

    local/forgetting-<mark of the process>      a line for each content: its mark in tombstones, and
                                                those of all pairs that stood for it

A content whose ids are forgotten while another id stands for it is forgotten only if that one goes
too. Of two that forget the two ids of a photo at once, each leaves it to the other; if both are
killed, and the dead ids are then taken away, nothing but this names the content. Written before the
ids' tombstone, removed after the decision. A content is decided only where every one of its pairs
is dead by a tombstone: an id that is merely gone, as from a damaged segment, decides nothing.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.store.cache import Cache
from embedcache.store.salvage import Leftover, is_abandoned
from embedcache.store.tombstones import content_mark, pair_mark

PREFIX = "forgetting-"
MAX_BYTES = 256 << 20


def begin(cache: Cache, pairs: Iterable[tuple[str, str, bytes]]) -> Path | None:
    """Name contents, some of whose ids are about to be forgotten; None for none.

    pairs: all that stand for them now (scope, id, content).
    """
    marks: dict[bytes, list[bytes]] = {}
    for scope, name, content in pairs:
        marks.setdefault(content_mark(content), []).append(pair_mark(scope, name, content))
    if not marks:
        return None
    lines = [" ".join(one.hex() for one in (mark, *sorted(marks[mark]))) for mark in sorted(marks)]
    path = cache.local / f"{PREFIX}{disk.mark_of_process()}"
    disk.replace(path, "\n".join(lines).encode())
    return path


def left(cache: Path) -> Iterator[Leftover]:
    """The files of runs that are at work, or were cut off."""
    for path in sorted((cache / "local").glob(f"{PREFIX}*")):
        yield Leftover(path, "" if is_abandoned(path) else "a running forget")


def doomed(cache: Cache) -> tuple[set[bytes], list[Path]]:
    """The contents whose every pair is dead, by their marks, and the files of those cut off."""
    dead = cache.history.dead()
    marks, files = set[bytes](), []
    for one in left(cache.path):
        try:
            raw = disk.read_inside(cache.path, f"local/{one.path.name}", limit=MAX_BYTES)
            for line in raw.decode("ascii").splitlines():
                mark, *pairs = map(bytes.fromhex, line.split())
                if pairs and len(mark) == 32 and all(pair in dead.pairs for pair in pairs):
                    marks.add(mark)
        except FileNotFoundError:  # it has just ended
            continue
        except (Damaged, ValueError, IsADirectoryError):  # of a file like this nobody knows more
            pass
        if not one.holder:
            files.append(one.path)
    return marks, files
