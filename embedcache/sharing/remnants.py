"""What lies on a shared copy and is no whole segment: of removed ones, and of unfinished pushes.

A purge, a push or a compaction that goes on meanwhile passes through such states. So what the first
look shows is looked for again in a listing that is made last, and only that one counts.
"""

import contextlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import RemoteError
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import Denied, ListedObject, Unreachable
from embedcache.sharing.listing import ROOTS, ListedSpace
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.store.checksums import CRC_BYTES, crc32c
from embedcache.store.columns import column_path
from embedcache.store.disposal import is_our_name
from embedcache.store.manifest import MANIFEST, MAX_ROWS
from embedcache.store.tombstones import Dead
from embedcache.wording import counted

U8 = NDArray[np.uint8]

DIGESTS = column_path("digest", 2)
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A segment without a manifest. name: as the log has it. files: {path in it: entry}."""

    space: ListedSpace
    key: str
    name: str
    files: Mapping[str, ListedObject]


def not_deleted(copy: SharedCopy) -> list[str]:
    """What is wrong with segments that the log names as removed, and that still lie there."""
    gone = copy.log.read().gone
    if not any(_removed(copy, gone)):
        return []
    findings = []
    for space, segment in _removed(copy.again(), gone):
        files = space.segments[segment]
        if all(map(is_our_name, files)):
            end = "deletes it"
        else:
            end = "deletes what embedcache wrote; move the other files out of the shared copy"
        findings.append(
            f"{space.key}/segments/{segment} was removed but is not deleted yet: "
            f"{counted(len(files), 'file')} of it. If nobody is purging now, 'embedcache push "
            f"--purge DIR {copy.remote.name}' {end}"
        )
    return findings


def _removed(copy: SharedCopy, gone: Container[str]) -> Iterator[tuple[ListedSpace, str]]:
    for root in ROOTS:
        for space in copy.listing.spaces(root).values():
            for segment in space.segments:
                if f"{space.set_key}/{segment}" in gone:
                    yield space, segment


def may_hold_forgotten(copy: SharedCopy) -> list[str]:
    """What is wrong with segments without a manifest, if they may hold rows of forgotten photos.

    Where nothing was forgotten nothing is read.
    """
    dead = copy.marks().dead()
    if not dead or not any(_holds(copy, one, dead) for one in unfinished(copy)):
        return []
    now = copy.again()
    now.log.read()
    pinned = now.pinned()
    return [
        f"{one.key} is an unfinished push that {holds} of forgotten photos. "
        + _ends(now, one, pinned)
        for one in unfinished(now)
        if (holds := _holds(now, one, dead))
    ]


def _ends(copy: SharedCopy, one: Unfinished, pinned: Mapping[str, str]) -> str:
    """What to do about an unfinished segment that may hold forgotten rows: a sentence."""
    if one.name in pinned:
        return f"Ref {pinned[one.name]} pins it, so no purge removes it"
    return (
        f"If nobody is pushing now, 'embedcache push --purge DIR {copy.remote.name}' from the "
        "cache that began it removes it; if there is no such cache, delete it there"
    )


def unfinished(copy: SharedCopy) -> Iterator[Unfinished]:
    """The segments that are listed without a manifest, and those that are staged in a folder."""
    for root in ROOTS:
        for space in copy.spaces(root).values():
            for segment, files in space.segments.items():
                if MANIFEST not in files:
                    key = f"{space.key}/segments/{segment}"
                    yield Unfinished(space, key, f"{space.set_key}/{segment}", files)
            with contextlib.suppress(Denied):  # noted where it is listed
                for key in copy.remote.leftovers(f"{space.key}/segments"):
                    if key.rpartition("/")[2].startswith(".push-"):
                        staged = {e.key[len(key) + 1 :]: e for e in copy.remote.list(f"{key}/")}
                        yield Unfinished(space, key, "", staged)


def _holds(copy: SharedCopy, one: Unfinished, dead: Dead) -> str:
    """What an unfinished segment holds of forgotten photos; "" where that is nothing."""
    if not any("/c/" in path for path in one.files):
        return ""  # only documents, which say nothing of photos
    digests = _digests(copy, one)
    if digests is None:
        return "may hold rows"
    if n_dead := int(dead.of(digests).sum()):
        return f"holds {counted(n_dead, 'row')}"
    # Which of its ids were forgotten depends on their scope, and only the manifest names that.
    return "may hold ids" if one.space.kind == "photos" and dead.pairs else ""


def _digests(copy: SharedCopy, one: Unfinished) -> U8 | None:
    """The contents of its rows, (n, 32); None where they are absent or not what was written."""
    if DIGESTS not in one.files:
        return None
    try:
        limit = MAX_ROWS * DIGEST_BYTES + CRC_BYTES
        raw = read_small(copy.remote, one.files[DIGESTS].key, limit=limit)
    except Unreachable:
        raise
    except (RemoteError, FileNotFoundError):
        return None
    body = raw[:-CRC_BYTES]
    if len(body) % DIGEST_BYTES or crc32c(body) != int.from_bytes(raw[-CRC_BYTES:], "little"):
        return None
    return np.frombuffer(body, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
