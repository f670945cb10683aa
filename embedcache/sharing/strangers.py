"""What lies on a shared copy and embedcache did not write: `verify` names it, nobody deletes it.

Tools that copy or synchronise folders leave such names, as `<id> (1)` beside a segment. No reader
takes them for anything, so that rows which lie only there would be missed by nobody.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator

from embedcache.remotes.remote import Denied
from embedcache.sharing.listing import ROOTS
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.store.disposal import is_our_name
from embedcache.store.layout import FOLDERS
from embedcache.store.log import ENTRY
from embedcache.store.log import FOLDER as LOG
from embedcache.store.manifest import HEX_DIGEST
from embedcache.store.refs import NAME
from embedcache.store.tombstones import FOLDER as TOMBSTONES
from embedcache.store.tombstones import LIFTS
from embedcache.wording import counted

_ID = re.compile(r"\d{8}T\d{12}-[0-9a-f]{8}")  # one that is no date is refused where it is listed
_GROUP = re.compile(r"zarr\.json")
_SEGMENTS = re.compile(r"segments")
_MARKS = re.compile(rf"{_ID.pattern}\.json")
# What a folder, and a file, may be called at each depth below a root.
Level = tuple[re.Pattern[str] | None, re.Pattern[str] | None]
_SPACES: tuple[Level, ...] = ((HEX_DIGEST, _GROUP), (_SEGMENTS, _GROUP), (_ID, _GROUP))
_LEVELS: dict[str, tuple[Level, ...]] = {
    **dict.fromkeys(ROOTS, _SPACES),
    "photos": _SPACES[1:],
    "refs": ((None, re.compile(rf"(?:{NAME.pattern})\.json")),),
    TOMBSTONES: ((None, _MARKS),),
    LIFTS: ((None, _MARKS),),
    LOG: ((re.compile(r"\d{8}"), None), (None, re.compile(re.escape(ENTRY)))),
}


def strangers(copy: SharedCopy) -> list[str]:
    """What is wrong with names of a shared copy: a sentence for each that is not embedcache's."""
    found = Counter(place for key in _keys(copy) if (place := _stranger(key)))
    with contextlib.suppress(Denied):
        known = {"zarr.json", *FOLDERS}
        found.update({name: 0 for name in copy.remote.top() if _is_strange_at_top(name, known)})
    return [
        f"{place} is not embedcache's"
        + (f" ({counted(n, 'file')})" if n > 1 else "")
        + ": move it out of the shared copy"
        for place, n in sorted(found.items())
    ]


def _keys(copy: SharedCopy) -> Iterator[str]:
    for root in (*ROOTS, "refs", TOMBSTONES, LIFTS):
        yield from (entry.key for entry in copy.listing.entries(root))
    with contextlib.suppress(Denied):  # a member may be allowed to read its entries only
        yield from (entry.key for entry in copy.remote.list(f"{LOG}/"))


def _is_strange_at_top(name: str, known: set[str]) -> bool:
    return name not in known and not name.startswith(".")


def _stranger(key: str) -> str:
    """The name, with all that it lies in, from which on a key is none of embedcache's; else ""."""
    root, *parts = key.split("/")
    levels = _LEVELS[root]
    for depth, part in enumerate(parts[: len(levels)]):
        pattern = levels[depth][depth == len(parts) - 1]
        if pattern is None or not pattern.fullmatch(part):
            return "/".join([root, *parts[: depth + 1]])
    inside = "/".join(parts[len(levels) :])
    return "" if not inside or (root in ROOTS and is_our_name(inside)) else key
