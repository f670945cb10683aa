"""Which photo id had which content: small immutable segments, kept apart from what is shared.

Ids live in scopes (two folders may both hold `a.jpg`). Within a scope an id's content is the newest
that was recorded for it; older pairs stay until they are forgotten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import repeat
from pathlib import Path
from typing import Never

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, PhotosError
from embedcache.store.columns import Columns, join_text, split_text
from embedcache.store.draft import Draft
from embedcache.store.manifest import new_segment_id
from embedcache.store.salvage import salvage
from embedcache.store.segment import Segment, list_segments

BLOCK_IDS = 1 << 18

U8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class PhotoTable:
    """Every recorded (scope, id, content), the newest first for each id.

    ids, scopes: n texts. digests: (n, 32). newest: (n,), true for the pair that counts.
    """

    ids: list[str]
    scopes: list[str]
    digests: U8
    newest: Bool

    def __len__(self) -> int:
        return len(self.ids)


def scope_key(scope: str) -> str:
    """What a photo segment's manifest holds in place of a spec digest."""
    return sha256(scope.encode("utf-8", "surrogateescape")).hexdigest()


class _Scope:
    """The pairs of one scope as rows, in the order in which they were recorded.

    newest: id -> its last row, whose content counts.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.digests: U8 = np.empty((0, 32), np.uint8)
        self.newest: dict[str, int] = {}

    def extend(self, segments: Sequence[Segment]) -> None:
        """Add the rows of later segments."""
        first = len(self.ids)
        for segment in segments:
            self.ids += _ids_of(segment)
        self.digests = np.concatenate([self.digests, *(s.column("digest") for s in segments)])
        rows = range(first, len(self.ids))
        self.newest.update(zip(self.ids[first:], rows, strict=True))

    def contents(self, ids: Sequence[str]) -> tuple[U8, Bool]:
        """The newest content of n ids: ((n, 32), which are known)."""
        rows = np.fromiter(map(self.newest.get, ids, repeat(-1)), np.int64, len(ids))
        known = rows >= 0
        contents = np.zeros((len(ids), 32), np.uint8)
        contents[known] = self.digests[rows[known]]
        return contents, known

    def histories(self) -> dict[str, list[bytes]]:
        """{id: its contents, newest first, each once}."""
        found: dict[str, list[bytes]] = {}
        for name, row in zip(self.ids, self.digests, strict=True):
            contents, content = found.setdefault(name, []), row.tobytes()
            if content in contents:
                contents.remove(content)
            contents.insert(0, content)
        return found


class PhotoIds:
    """The pairs of one cache, as segments under `folder`/segments."""

    def __init__(self, folder: Path, *, pins: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._pins = pins
        self._segments: dict[str, Segment] = {}
        self._loaded: tuple[str, ...] = ()
        self._pairs: dict[str, _Scope] = {}

    def segments(self) -> list[Segment]:
        """The committed segments, oldest first."""
        self._segments = list_segments(
            self.folder / "segments", kind="photos", known=self._segments, pins=self._pins
        )
        return list(self._segments.values())

    def record(self, scope: str, ids: Sequence[str], digests: U8) -> None:
        """Record n ids and their contents, (n, 32); what is known as the newest is not repeated."""
        digests = np.ascontiguousarray(digests, dtype=np.uint8)
        if digests.shape != (len(ids), 32):
            raise ValueError(f"digests of shape {digests.shape}; expected {(len(ids), 32)}")
        contents, known = self._load().get(scope, _Scope()).contents(ids)
        changed = ~known | (contents != digests).any(axis=1)
        fresh = {ids[i]: i for i in np.flatnonzero(changed).tolist()}
        names = list(fresh)
        if names:
            _sweep(self.folder / "segments")
        for start in range(0, len(names), BLOCK_IDS):
            block = names[start : start + BLOCK_IDS]
            self._write(scope, block, digests[[fresh[name] for name in block]])

    def newest(self, ids: Sequence[str], *, scope: str | None) -> tuple[U8, Bool]:
        """The newest content of each id, ((n, 32), which are known), in one scope or in all."""
        scopes = self._load()
        if scope is not None:
            scopes = {scope: scopes[scope]} if scope in scopes else {}
        digests = np.zeros((len(ids), 32), dtype=np.uint8)
        known = np.zeros(len(ids), dtype=np.bool_)
        for pairs in scopes.values():
            contents, there = pairs.contents(ids)
            clash = np.flatnonzero(there & known & (contents != digests).any(axis=1))
            if len(clash):
                name = ids[int(clash[0])]
                owners = sorted(key for key, others in scopes.items() if name in others.newest)
                raise CacheError(
                    f"photo id {name!r} stands for different photos in {len(owners)} places: "
                    f"{', '.join(owners)}. Say which one is meant by its scope"
                )
            digests[there] = contents[there]
            known |= there
        return digests, known

    def table(self) -> PhotoTable:
        """All pairs."""
        rows = [
            (name, scope, content, age == 0)
            for scope, pairs in self._load().items()
            for name, contents in pairs.histories().items()
            for age, content in enumerate(contents)
        ]
        raw = b"".join(content for _, _, content, _ in rows)
        return PhotoTable(
            [name for name, *_ in rows],
            [scope for _, scope, *_ in rows],
            np.frombuffer(raw, np.uint8).reshape(-1, 32),
            np.array([newest for *_, newest in rows], dtype=np.bool_),
        )

    def _load(self) -> "dict[str, _Scope]":
        """The pairs of each scope."""
        segments = self.segments()
        names = tuple(segment.id for segment in segments)
        if names != self._loaded:
            if names[: len(self._loaded)] != self._loaded:
                self._loaded, self._pairs = (), {}
            parts: dict[str, list[Segment]] = {}
            for segment in segments[len(self._loaded) :]:
                parts.setdefault(segment.manifest.name, []).append(segment)
            for scope, some in parts.items():
                self._pairs.setdefault(scope, _Scope()).extend(some)
            self._loaded = names
        return self._pairs

    def _write(self, scope: str, ids: Sequence[str], digests: U8) -> None:
        after = max((segment.id for segment in self.segments()), default="")
        segment_id = new_segment_id(after=after)  # newer than all that is known, by any clock
        write_pairs(self.folder / "segments", scope, ids, digests, segment_id=segment_id)


def read_pairs(segment: Segment) -> tuple[list[str], list[bytes]]:
    """Ids and contents of one photo segment, in row order."""
    raw = segment.column("digest").tobytes()
    return _ids_of(segment), [raw[i : i + 32] for i in range(0, len(raw), 32)]


def _ids_of(segment: Segment) -> list[str]:
    return split_text(segment.column("id_offset"), segment.column("id_text"), segment.folder)


def write_pairs(
    segments: Path, scope: str, ids: Sequence[str], digests: U8, *, segment_id: str
) -> str:
    """Write one photo segment, and return its id."""
    for name in ids:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise PhotosError(
                f"photo id {name!r} is not valid Unicode: rename the photo, or give it an id in a "
                "table"
            ) from None
    offsets, text = join_text(list(ids))
    columns: Columns = {"digest": digests, "id_offset": offsets, "id_text": text}
    with disk.plain_errors("write to", segments):
        draft = Draft(
            segments,
            kind="photos",
            space=scope_key(scope),
            name=scope,
            about={},
            segment_id=segment_id,
        )
        try:
            return draft.commit(columns, n_rows=len(ids), n_ok=len(ids))
        except BaseException:
            draft.discard()
            raise


def _sweep(segments: Path) -> None:
    """Remove what writers that died have left: ids are recorded again, so no rows are saved."""

    def nothing(*_: object) -> Never:
        raise AssertionError("a draft of ids has no journal")

    salvage(segments, reopen=nothing, known=nothing)
