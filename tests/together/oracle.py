"""What a cache holds by the rules of docs/format.md alone: plain zarr, the log, the tombstones.

Nothing here runs the product's code, so that a fault in it cannot hide itself.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from tests.together.world import Row
from tests.together.zarr_rows import ZarrRows


@dataclass(slots=True)
class Held:
    """What is readable in one place, and what is wrong with it.

    storing: the ids of segments that hold rows of forgotten photos.
    """

    rows: set[Row] = field(default_factory=set)
    storing: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


class Known(Protocol):
    """What a test knows of its photos beforehand."""

    names: dict[str, str]  # what a space is called, by its digest
    number: dict[bytes, int]  # each content's photo

    def bytes_of(self, row: Row) -> bytes:
        """The row as it lies in files."""
        ...


def held(place: Path, album: Known, zarr: ZarrRows) -> Held:
    """The rows that any reader of a cache, or of a folder remote, must find in it now."""
    found = Held()
    gone = removed(place)
    dead = dead_contents(place)
    for part in ("spaces", "face-spaces"):
        for manifest in sorted((place / part).glob("*/segments/2*/manifest.json")):
            folder = manifest.parent
            space = folder.parent.parent.name
            if f"{space}/{folder.name}" in gone:
                continue
            name = album.names.get(space, space)
            try:
                rows = zarr.read(folder)
            except (ValueError, OSError, KeyError) as error:
                found.wrong.append(f"zarr cannot read a segment of {name}: {error}"[:200])
                continue
            for content, raw in rows.items():
                if content not in album.number:
                    found.wrong.append(f"{name} holds a content that nobody wrote")
                    continue
                row = (name, album.number[content])
                if raw != album.bytes_of(row):
                    found.wrong.append(f"{name} {row[1]} has other bytes")
                elif mark(content) in dead:
                    found.storing.add(folder.name)
                else:
                    found.rows.add(row)
    return found


def removed(place: Path) -> set[str]:
    """The segments that the log of removals names, as space/id."""
    found: set[str] = set()
    for entry in sorted((place / "removed").glob("[0-9]*/entry.json")):
        found |= set(json.loads(entry.read_bytes()).get("segments", {}))
    return found


def dead_contents(place: Path) -> set[bytes]:
    """Marks (sha256 of contents) that are dead: by a tombstone that no lift answers, or by lists
    (`left`) of which every pair is dead."""
    lifted = set()
    for path in (place / "remembered").glob("[!.]*.json"):
        document = json.loads(path.read_bytes())
        lifted |= {(str(tombstone), mark) for tombstone, mark in _lifts(document)}
    contents, pairs, left = set[str](), set[str](), dict[str, set[str]]()
    for path in (place / "forgotten").glob("[!.]*.json"):
        document = json.loads(path.read_bytes())
        contents |= {mark for mark in document["contents"] if (path.stem, mark) not in lifted}
        pairs |= {mark for mark in document.get("pairs", []) if (path.stem, mark) not in lifted}
        for mark, some in document.get("left", []):
            if (path.stem, mark) not in lifted:
                left.setdefault(mark, set()).update(some)
    contents |= {mark for mark, some in left.items() if some <= pairs}
    return {bytes.fromhex(mark) for mark in contents}


def dangling_refs(place: Path) -> list[str]:
    """Refs that pin a segment which is neither there nor removed in favour of others that are."""
    entries: dict[str, Any] = {}
    for entry in sorted((place / "removed").glob("[0-9]*/entry.json")):
        entries |= json.loads(entry.read_bytes()).get("segments", {})
    there = {
        f"{manifest.parents[2].name}/{manifest.parent.name}": json.loads(manifest.read_bytes())
        for manifest in place.glob("*/**/segments/2*/manifest.json")
    }

    def resolves(key: str, digest: str) -> bool:
        if key in entries:
            space, successors = key.partition("/")[0], entries[key][1]
            return successors is not None and all(
                f"{space}/{successor}" in there or f"{space}/{successor}" in entries
                for successor in successors
            )
        return key in there and there[key]["self"] == digest

    found = []
    for path in sorted((place / "refs").glob("[!.]*.json")):
        document = json.loads(path.read_bytes())
        parts = {**document["spaces"], **document["faces"], "photos": document["photos"] or {}}
        for space, pinned in parts.items():
            for segment, digest in pinned.items():
                if not resolves(f"{space}/{segment}", digest):
                    what = "photo ids" if space == "photos" else "a segment"
                    found.append(f"ref {path.stem} pins {what}, gone without successors")
    return sorted(set(found))


def mark(content: bytes) -> bytes:
    """What a tombstone holds of a content."""
    return sha256(content).digest()


def _lifts(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(lift[0], lift[1]) for lift in document.get("lifts", [])]


def traces(
    place: Path, album: Known, numbers: set[int], ids: Callable[[int], tuple[str, ...]]
) -> list[str]:
    """Files below `place` that hold bytes of the rows, or digests, of these photos; or their ids,
    in photos/ and local/.

    Not in damaged/: what `repair` set aside is the user's, and `forget` says so.
    """
    rows = {
        n: [album.bytes_of((space, n)) for space in album.names.values()] for n in sorted(numbers)
    }
    names = {n: [name.encode() for name in ids(n)] for n in sorted(numbers)}
    contents = {n: content for content, n in album.number.items() if n in numbers}
    found = []
    for path in place.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        raw = path.read_bytes()
        where = path.relative_to(place)
        if where.parts[0] == "damaged":
            continue
        for n in rows:
            if any(row in raw or row[: len(row) // 2] in raw for row in rows[n]):
                found.append(f"row {n} in {shape(where)}")
            if n in contents and contents[n] in raw:
                found.append(f"digest {n} in {shape(where)}")
            if where.parts[0] in ("photos", "local") and any(name in raw for name in names[n]):
                found.append(f"id {n} in {shape(where)}")
    return sorted(set(found))


def shape(text: object) -> str:
    """A path, or a text with paths, without what differs between two runs."""
    plain = re.sub(r"[0-9a-f]{64}", "<space>", str(text))
    plain = re.sub(r"\d{8}T\d{12}-[0-9a-f]{8}", "<segment>", plain)
    plain = re.sub(r"(/|^)(\.[a-z]+)[-.][^/:\s]*", r"\1\2", plain)
    return re.sub(r"/\S*together-\S*?/(cache|other|remote)", r"\1", plain)
