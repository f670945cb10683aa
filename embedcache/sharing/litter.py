"""What processes that have ended left half written on a shared copy, on a file system.

Only names that embedcache gives to work in progress count, and only once their maker has ended: by
the name, or else by age, as in a cache (`store.salvage`).
"""

import contextlib
import re
from collections.abc import Iterator

from embedcache import disk
from embedcache.errors import RemoteError
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import Denied, Unreachable
from embedcache.sharing.connecting import staging_of
from embedcache.sharing.listing import ROOTS
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.store.cache import Cache
from embedcache.store.disposal import is_our_name, ours_in_hidden
from embedcache.store.journal import LEASE_SECONDS
from embedcache.store.log import FOLDER as LOG
from embedcache.store.refs import MAX_REF_BYTES
from embedcache.store.salvage import own_litter
from embedcache.store.sealed import own_digest
from embedcache.store.tombstones import FOLDER as TOMBSTONES
from embedcache.store.tombstones import LIFTS

# Rows may be in these, which a cache's own commands and the pusher's know how to keep or remove.
_WITH_ROWS = re.compile(r"\.(?:new|in|draft|gone|push)-.+")


def abandoned(copy: SharedCopy) -> Iterator[str]:
    """Keys of what processes that have ended left in the folders of a shared copy."""
    spaces = [space.key for root in ROOTS for space in copy.listing.spaces(root).values()]
    folders = ["", *ROOTS, "refs", TOMBSTONES, LIFTS, LOG]
    for folder in dict.fromkeys([*folders, *(f"{key}/segments" for key in spaces)]):
        with contextlib.suppress(Denied):  # noted where it is listed
            for key in copy.remote.leftovers(folder):
                if own_litter(key.rpartition("/")[2]) and _is_abandoned(copy, key):
                    yield key


def clear_litter(copy: SharedCopy, cache: Cache) -> None:
    """Delete what pushes that were cut off left and no push finishes any more.

    Of this cache that is all that it staged, as one process at a time pushes it; of others what
    holds no rows.
    """
    own = f"-{staging_of(cache)}"
    with contextlib.suppress(Denied):
        for root in ROOTS:
            folders = [f"{space.key}/segments" for space in copy.listing.spaces(root).values()]
            for folder in (root, *folders):
                for key in copy.remote.leftovers(folder):
                    if key.endswith(own):
                        copy.remote.delete(key, ours=is_our_name)
        for key in abandoned(copy):
            name = key.rpartition("/")[2]
            if not _WITH_ROWS.fullmatch(name) and _may_go(copy, key):
                copy.remote.delete(key, ours=ours_in_hidden(name))


def _may_go(copy: SharedCopy, key: str) -> bool:
    """Whether nothing is lost with a hidden name: a ref that somebody put aside gets its own back.

    That is one which the log acknowledges; a writer that was killed leaves others.
    """
    ref, dot, _ = key.removeprefix("refs/.").partition(".json.")
    if not key.startswith("refs/.") or not dot:
        return True
    try:
        raw = read_small(copy.remote, key, limit=MAX_REF_BYTES)
        if (ref, own_digest(raw)) not in copy.log.read().acknowledged:
            return True
        copy.remote.create(f"refs/{ref}.json", raw)
        return read_small(copy.remote, f"refs/{ref}.json", limit=MAX_REF_BYTES) == raw
    except (Unreachable, Denied):
        raise
    except (RemoteError, FileNotFoundError):  # a folder, or gone by now
        return True


def advice_on(copy: SharedCopy, key: str) -> str:
    """What to do about something that was left: a sentence."""
    name = key.rpartition("/")[2]
    where = copy.remote.name
    if name.startswith((".new-", ".in-", ".draft-")):
        return f"'embedcache compact {where}' keeps its rows and removes it"
    if name.startswith(".push-"):
        return "The member who began that push finishes it by pushing again; else delete it"
    if name.startswith(".gone-"):
        return f"'embedcache push --purge DIR {where}' removes it"
    return f"'embedcache push DIR {where}' removes it"


def _is_abandoned(copy: SharedCopy, key: str) -> bool:
    """Whether whoever made a hidden name has ended: by the name, or else by its age."""
    gone = disk.maker_is_gone(key.rpartition("/")[2])
    if gone is None:
        idle = copy.remote.idle_seconds(key)
        gone = idle is not None and idle >= LEASE_SECONDS
    return gone
