"""Photos that were forgotten: what later merges must not bring back.

A tombstone holds sha256 of a content digest, so that it names no photo to anyone who does not hold
the photo already.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.spec import Json
from embedcache.store.manifest import HEX_DIGEST, SEGMENT_ID, new_segment_id
from embedcache.store.sealed import FORMAT, MAX_LIST_BYTES, seal, unseal

FOLDER = "forgotten"
MAX_BYTES = MAX_LIST_BYTES
MAX_CONTENTS = 100_000

# sha256 of a forgotten content digest, and the name of the newest file that says so: older than the
# id of a segment that was written, on purpose, after it.
Tombstones = Mapping[bytes, str]


def write_tombstone(cache: Path, contents: Iterable[bytes]) -> None:
    """Record that photos with these 32-byte content digests were forgotten."""
    folder = cache / FOLDER
    folder.mkdir(exist_ok=True)
    marks = sorted(sha256(content).hexdigest() for content in contents)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    for start in range(0, len(marks), MAX_CONTENTS):
        some: list[Json] = [*marks[start : start + MAX_CONTENTS]]
        raw = seal({"format": FORMAT, "kind": "forgotten", "created": created, "contents": some})
        disk.publish(folder / f"{new_segment_id()}.json", raw)


def read_tombstones(cache: Path) -> tuple[Tombstones, int]:
    """All tombstones, and the number of files that hold them."""
    found: dict[bytes, str] = {}
    names = sorted(path.name for path in (cache / FOLDER).glob("[!.]*"))
    for name in names:
        found.update((mark, name) for mark in read_tombstone(cache, name))
    return found, len(names)


def read_tombstone(cache: Path, name: str) -> list[bytes]:
    """The marks in one file of `forgotten`; Damaged where it is none."""
    if not SEGMENT_ID.fullmatch(name.removesuffix(".json")):
        raise Damaged(f"{cache / FOLDER / name} is no tombstone: move it out of the cache")
    raw = disk.read_inside(cache, f"{FOLDER}/{name}", limit=MAX_BYTES)
    return parse_tombstone(raw, name=name)


def parse_tombstone(raw: bytes, *, name: str) -> list[bytes]:
    """The marks in a tombstone's bytes (untrusted); Damaged says what is wrong with them."""
    document, _ = unseal(raw, what=f"tombstone {name}", limit=MAX_BYTES)
    contents = document.get("contents")
    if not isinstance(contents, list) or not all(
        type(text) is str and HEX_DIGEST.fullmatch(text) for text in contents
    ):
        raise Damaged(f"tombstone {name} is refused: its contents are no digests")
    return [bytes.fromhex(text) for text in contents]


def newer(tombstones: Tombstones, segment: str) -> Tombstones:
    """Those written after a segment was begun: later ones embed a photo again on purpose."""
    return {mark: name for mark, name in tombstones.items() if segment < name}


def forgotten(digests: NDArray[np.uint8], tombstones: Tombstones) -> NDArray[np.bool_]:
    """Which of (n, 32) content digests have a tombstone."""
    if not tombstones:
        return np.zeros(len(digests), dtype=np.bool_)
    marks = (sha256(row.tobytes()).digest() in tombstones for row in digests)
    return np.fromiter(marks, np.bool_, len(digests))
