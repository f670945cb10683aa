"""Photos that were forgotten, and those that were embedded again on purpose afterwards.

A tombstone (`forgotten/<id>.json`, "T") holds marks: sha256 of a content digest, or of a photo id
with its scope and content. A mark names no photo to anyone who does not hold the photo already. A
lift (`remembered/<id>.json`, "L") names marks of certain tombstones that no longer hold. A row is
dead while some tombstone names it and no lift lifts that tombstone's mark; no clock decides.

A tombstone of an id whose content goes on under others lists these (`left`). The content is dead
once every pair of all lists of it is, whoever forgot them, in whichever copy.
"""

import contextlib
import os
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.spec import Json
from embedcache.store.manifest import HEX_DIGEST, is_segment_id, new_segment_id
from embedcache.store.sealed import FORMAT, MAX_LIST_BYTES, seal, unseal

FOLDER: Final = "forgotten"
LIFTS: Final = "remembered"
MAX_BYTES = MAX_LIST_BYTES
MAX_MARKS = 100_000  # in one file
BLOCK_ROWS = 1 << 16  # whose marks are made at a time

U8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]
Which = Literal["forgotten", "remembered"]


def content_mark(content: bytes) -> bytes:
    """The mark of a content digest of 32 bytes."""
    return sha256(content).digest()


def pair_mark(scope: str, photo_id: str, content: bytes) -> bytes:
    """The mark of a photo id that had a content in a scope."""
    return sha256(_scope(scope) + content + photo_id.encode("utf-8", "surrogatepass")).digest()


def _scope(scope: str) -> bytes:
    return sha256(scope.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One tombstone: the marks of contents and of pairs (id, scope, content); its own digest.

    left: {mark of a content: marks of the pairs that it was left to}.
    """

    contents: tuple[bytes, ...]
    pairs: tuple[bytes, ...]
    digest: str
    left: Mapping[bytes, tuple[bytes, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Marks:
    """What one `forget` decides: the marks of contents, of pairs, and of contents left to pairs."""

    contents: frozenset[bytes] = frozenset()
    pairs: frozenset[bytes] = frozenset()
    left: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.contents or self.pairs or self.left)


@dataclass(frozen=True, slots=True)
class Lift:
    """One lift: by the file name of a tombstone, the marks of it that no longer hold."""

    lifts: Mapping[str, tuple[bytes, ...]]
    digest: str


@dataclass(frozen=True, slots=True)
class Dead:
    """The marks that hold now.

    contents, pairs: {mark: file names of the tombstones that name it and are not lifted}; of a
        content that is dead by its lists, those of the lists and of all that they depend on.
    left: {mark of a content: {file name: marks of the pairs that this tombstone left it to}}.
    tombstones, lifts: {file name: own digest} of the files that this was made from.
    """

    contents: Mapping[bytes, tuple[str, ...]] = field(default_factory=dict)
    pairs: Mapping[bytes, tuple[str, ...]] = field(default_factory=dict)
    tombstones: Mapping[str, str] = field(default_factory=dict)
    lifts: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[bytes, Mapping[str, tuple[bytes, ...]]] = field(default_factory=dict)
    by_lists: frozenset[bytes] = frozenset()  # of `contents`, those that no tombstone names

    def __bool__(self) -> bool:
        return bool(self.contents or self.pairs)

    def of(self, digests: U8) -> Bool:
        """Which of (n, 32) content digests are dead."""
        return _marked(digests, self.contents)

    def of_left(self, digests: U8) -> Bool:
        """Which of (n, 32) content digests a tombstone left to other ids than it forgot."""
        return _marked(digests, self.left)

    def of_pairs(self, scope: str, ids: Sequence[str], digests: U8) -> Bool:
        """Which of n ids of a scope with contents (n, 32) are dead, by their pair or content."""
        found = self.of(digests)
        if not self.pairs:
            return found
        key, marks = _scope(scope), self.pairs
        for start in range(0, len(digests), BLOCK_ROWS):
            raw = np.ascontiguousarray(digests[start : start + BLOCK_ROWS]).tobytes()
            names = ids[start : start + BLOCK_ROWS]
            known = found[start : start + BLOCK_ROWS].tolist()
            for i, name in enumerate(names):
                if not known[i]:
                    pair = key + raw[32 * i : 32 * i + 32] + name.encode("utf-8", "surrogatepass")
                    known[i] = sha256(pair).digest() in marks
            found[start : start + BLOCK_ROWS] = known
        return found

    def since(self, tombstones: Container[str], lifts: Collection[str]) -> "Dead | None":
        """The marks that are dead and were not by some tombstones; None where more has changed:
        the lifts, or a content that was dead by its lists and has got another pair since.

        For what was made without the dead rows of some tombstones, and is brought up to date.
        """
        if {*lifts} != {*self.lifts} or any(
            self._lives_again(one, tombstones) for one in self.left
        ):
            return None
        contents = {
            mark: names
            for mark, names in self.contents.items()
            if not (all if mark in self.by_lists else any)(name in tombstones for name in names)
        }
        pairs = {
            mark: names
            for mark, names in self.pairs.items()
            if not any(name in tombstones for name in names)
        }
        return Dead(contents, pairs)

    def _lives_again(self, content: bytes, tombstones: Container[str]) -> bool:
        """Whether a content is alive that was dead by its lists in some tombstones."""
        if content in self.contents:
            return False
        lists = [pairs for name, pairs in self.left[content].items() if name in tombstones]
        return bool(lists) and all(
            any(name in tombstones for name in self.pairs.get(pair, ()))
            for pairs in lists
            for pair in pairs
        )


def _marked(digests: U8, marks: Collection[bytes]) -> Bool:
    """Which of (n, 32) content digests have one of some marks."""
    if not marks:
        return np.zeros(len(digests), dtype=np.bool_)
    found = np.empty(len(digests), np.bool_)
    for start in range(0, len(digests), BLOCK_ROWS):
        raw = np.ascontiguousarray(digests[start : start + BLOCK_ROWS]).tobytes()
        some = (sha256(raw[i : i + 32]).digest() in marks for i in range(0, len(raw), 32))
        found[start : start + BLOCK_ROWS] = np.fromiter(some, np.bool_, len(raw) // 32)
    return found


def join(tombstones: Mapping[str, Tombstone], lifts: Mapping[str, Lift]) -> Dead:
    """The marks that hold, of some tombstones and lifts by file name."""
    lifted = {
        (name, mark)
        for lift in lifts.values()
        for name, marks in lift.lifts.items()
        for mark in marks
    }
    contents: dict[bytes, tuple[str, ...]] = {}
    pairs: dict[bytes, tuple[str, ...]] = {}
    left: dict[bytes, dict[str, tuple[bytes, ...]]] = {}
    for name, tombstone in tombstones.items():
        for marks, into in ((tombstone.contents, contents), (tombstone.pairs, pairs)):
            for mark in marks:
                if (name, mark) not in lifted:
                    into[mark] = (*into.get(mark, ()), name)
        for mark, some in tombstone.left.items():
            if (name, mark) not in lifted:
                left.setdefault(mark, {})[name] = some
    ended = {
        mark: lists
        for mark, lists in left.items()
        if mark not in contents and all(pair in pairs for some in lists.values() for pair in some)
    }
    for mark, lists in ended.items():
        of_pairs = {name for some in lists.values() for pair in some for name in pairs[pair]}
        contents[mark] = tuple(sorted(lists.keys() | of_pairs))
    return Dead(
        contents,
        pairs,
        {name: tombstone.digest for name, tombstone in tombstones.items()},
        {name: lift.digest for name, lift in lifts.items()},
        left,
        frozenset(ended),
    )


def list_marks(cache: Path, which: Which) -> list[str]:
    """The names of the files in `forgotten` or `remembered`; Damaged for a strange one."""
    try:
        names = sorted(name for name in os.listdir(cache / which) if not name.startswith("."))
    except FileNotFoundError:
        return []
    for name in names:
        if not is_segment_id(name.removesuffix(".json")) or not name.endswith(".json"):
            raise Damaged(f"{cache / which / name} does not belong in a cache: move it elsewhere")
    return names


def read_tombstone(cache: Path, name: str) -> Tombstone:
    """One file of `forgotten`; Damaged where it is not as it was written."""
    with _in_place(cache, FOLDER, name):
        return parse_tombstone(read_marks(cache, FOLDER, name), name=name)


def read_lift(cache: Path, name: str) -> Lift:
    """One file of `remembered`; Damaged where it is not as it was written."""
    with _in_place(cache, LIFTS, name):
        return parse_lift(read_marks(cache, LIFTS, name), name=name)


@contextlib.contextmanager
def _in_place(cache: Path, folder: str, name: str) -> Iterator[None]:
    """Name the file, and the next step, where one of a folder of marks cannot be read."""
    try:
        yield
    except FileNotFoundError:
        found = "is missing, and was there a moment ago"
    except Damaged as error:
        found = error.found
        if str(cache) in found:
            raise
    else:
        return
    raise Damaged(
        found,
        asked=str(cache / folder / name),
        advice=f"Restore it from a backup, or run 'embedcache verify --repair {cache}', which sets "
        "it aside and says how its photos stay forgotten",
    )


def read_marks(cache: Path, folder: str, name: str) -> bytes:
    """The bytes of one file of a folder of marks; Damaged where it cannot be one."""
    if not name.endswith(".json") or not is_segment_id(name.removesuffix(".json")):
        raise Damaged(f"{cache / folder / name} does not belong in a cache: move it elsewhere")
    return disk.read_inside(cache, f"{folder}/{name}", limit=MAX_BYTES)


def parse_tombstone(raw: bytes, *, name: str) -> Tombstone:
    """What a tombstone's bytes (untrusted) say; Damaged says what is wrong with them."""
    document, digest = unseal(raw, what=f"tombstone {name}", limit=MAX_BYTES)
    if document.get("kind") != FOLDER:
        raise Damaged(f"tombstone {name} is refused: its kind is {document.get('kind')!r:.80}")
    return Tombstone(
        _marks(document.get("contents"), f"tombstone {name}"),
        _marks(document.get("pairs", []), f"tombstone {name}"),
        digest,
        _lists(document.get("left", []), f"tombstone {name}"),
    )


def parse_lift(raw: bytes, *, name: str) -> Lift:
    """What a lift's bytes (untrusted) say; Damaged says what is wrong with them."""
    document, digest = unseal(raw, what=f"lift {name}", limit=MAX_BYTES)
    lifts: dict[str, list[str]] = {}
    try:
        if document["kind"] != LIFTS:
            raise ValueError(f"its kind is {document['kind']!r:.80}")
        for tombstone, mark in document["lifts"]:
            if not is_segment_id(tombstone):
                raise ValueError(f"it names {tombstone!r:.80}")
            lifts.setdefault(f"{tombstone}.json", []).append(mark)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"lift {name} is refused: {error}") from None
    return Lift({key: _marks(marks, f"lift {name}") for key, marks in lifts.items()}, digest)


def _marks(found: Any, what: str) -> tuple[bytes, ...]:
    if not isinstance(found, list) or not all(
        type(text) is str and HEX_DIGEST.fullmatch(text) for text in found
    ):
        raise Damaged(f"{what} is refused: its marks are no digests")
    return tuple(bytes.fromhex(text) for text in found)


def _lists(found: Any, what: str) -> dict[bytes, tuple[bytes, ...]]:
    """[[mark of a content, [marks of pairs]], ...], as a mapping."""
    if not isinstance(found, list) or not all(
        isinstance(one, list) and len(one) == 2 and one[1] for one in found
    ):
        raise Damaged(f"{what} is refused: what it left is no list of contents and pairs")
    contents = _marks([one[0] for one in found], what)
    return {mark: _marks(one[1], what) for mark, one in zip(contents, found, strict=True)}


def encode_tombstones(marks: Marks) -> list[bytes]:
    """The bytes of the tombstones of these marks: one, or several where there are many.

    Of several the lists come first and the pairs last, so that a content is never without both
    while they are written one by one.
    """
    parts: dict[str, list[Any]] = {
        "left": [[mark.hex(), _hex(marks.left[mark])] for mark in sorted(marks.left)],
        "contents": _hex(marks.contents),
        "pairs": _hex(marks.pairs),
    }
    if sum(map(len, (marks.contents, marks.pairs, *marks.left.values()))) <= MAX_MARKS:
        return [_seal(FOLDER, {key: some for key, some in parts.items() if some or key != "left"})]
    return [
        _seal(FOLDER, {"contents": [], "pairs": [], key: block})
        for key, some in parts.items()
        for block in _blocks(some)
    ]


def _hex(marks: Iterable[bytes]) -> list[str]:
    return sorted(mark.hex() for mark in marks)


def _blocks(entries: list[Any]) -> Iterator[list[Any]]:
    """Entries, of one mark or of a list of them, by as many as a file may have."""
    block, n = list[Any](), 0
    for entry in entries:
        size = 1 if isinstance(entry, str) else 1 + len(entry[1])
        if block and n + size > MAX_MARKS:
            yield block
            block, n = [], 0
        block.append(entry)
        n += size
    if block:
        yield block


def encode_lift(lifts: Mapping[str, Iterable[bytes]]) -> bytes:
    """The bytes of a lift: by a tombstone's file name, marks of it."""
    pairs: list[Json] = [
        [name.removesuffix(".json"), mark.hex()]
        for name, marks in sorted(lifts.items())
        for mark in sorted(marks)
    ]
    return _seal(LIFTS, {"lifts": pairs})


def _seal(kind: Which, body: Mapping[str, Json]) -> bytes:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return seal({"format": FORMAT, "kind": kind, "created": created, **body})


def write_marks(cache: Path, which: Which, raw: bytes, *, name: str = "") -> str:
    """Make a tombstone or a lift durable; returns its file name. One that is there stays."""
    folder = cache / which
    disk.make_folder(folder, below=cache)
    name = name or f"{new_segment_id()}.json"
    if not (folder / name).exists():
        disk.publish(folder / name, raw)
    return name
