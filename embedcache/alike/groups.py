"""Groups of photos that are copies of each other, byte for byte or nearly.

Two photos are linked where they have the same bytes, or where the cosine of their vectors is the
threshold or more; a group is what links join. So whoever keeps groups whole parts no two photos
that are alike. In a chain the ends may be less alike than the threshold says: such a group is
marked.
"""

import contextlib
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.alike.linking import link
from embedcache.alike.originals import copies_in, ids_of
from embedcache.alike.threshold import Threshold
from embedcache.errors import CacheError, NoSuchSpace
from embedcache.spec import Json
from embedcache.store import memory
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.store.naming import without_ids
from embedcache.store.space import Space
from embedcache.wording import counted, plain

VERSION = 2
SHOWN_GROUPS = 20
SHOWN_IDS = 8
LARGE = 0.05
"""A group of more than this share of all photos is no group of copies, and is remarked on."""
MAX_KEPT_BYTES = 256 << 20
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
_ROW = np.dtype([("digest", "u1", 32), ("group", "<i8"), ("degree", "<i8")])


@dataclass(frozen=True, slots=True)
class AlikeContents:
    """The contents of a space that have a near-duplicate there.

    digests: uint8 (k, 32).  group: int64 (k,), equal for those of a group.
    degree: int64 (k,), how many others each is linked to directly.
    """

    digests: U8
    group: I64
    degree: I64

    def keys(self) -> dict[bytes, int]:
        """{content: number of its group}."""
        contents = [row.tobytes() for row in self.digests]
        return dict(zip(contents, self.group.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Group:
    """Photos that are alike. ids: ascending. contents: of each id, 32 bytes.

    whole: every pair is alike; otherwise some are joined by a chain only.
    """

    ids: tuple[str, ...]
    contents: tuple[bytes, ...]
    whole: bool

    @property
    def exact(self) -> bool:
        """Whether all have the same bytes."""
        return len({*self.contents}) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """The groups of a cache: equal files, then those whose every pair is alike, then chains, each
    kind with the largest first. Prints itself.

    n_photos: ids that were looked at.  n_without: of these, ids without a vector of the backbone,
    which can be exact copies only.
    """

    groups: tuple[Group, ...]
    threshold: Threshold
    n_photos: int
    n_without: int

    def document(self) -> dict[str, Json]:
        return {
            "groups": [list(group.ids) for group in self.groups],
            "threshold": self.threshold.value,
            "exact": [i for i, group in enumerate(self.groups) if group.exact],
            "chained": [i for i, group in enumerate(self.groups) if not group.whole],
            "photos": self.n_photos,
            "without_vector": self.n_without,
            "measured": self.threshold.document(),
        }

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader should know of the groups, in sentences."""
        found = []
        if chained := sum(not group.whole for group in self.groups):
            found.append(
                f"{counted(chained, 'group hangs', 'groups hang')} together by a chain: not every "
                "pair in such a group is above the threshold"
            )
        largest = max((len(group.ids) for group in self.groups), default=0)
        if largest > max(10, LARGE * self.n_photos):
            found.append(
                f"the largest group holds {largest:,} of "
                f"{counted(self.n_photos, 'photo')}: these are hardly copies. Name a higher "
                "`threshold`"
            )
        if self.n_without:
            were = "was" if self.n_without == 1 else "were"
            found.append(
                f"{counted(self.n_without, 'photo')} without a vector of this backbone {were} "
                "compared by bytes only"
            )
        return tuple(found)

    def __str__(self) -> str:
        n_in = sum(len(group.ids) for group in self.groups)
        exact = sum(group.exact for group in self.groups)
        lines = [
            f"{counted(len(self.groups), 'group')} of near-duplicates ({exact:,} of equal files "
            f"only), {n_in:,} of {counted(self.n_photos, 'photo')}"
        ]
        for group in self.groups[:SHOWN_GROUPS]:
            mark = " (equal files)" if group.exact else "" if group.whole else " (a chain)"
            more = len(group.ids) - SHOWN_IDS
            shown = ", ".join(map(plain, group.ids[:SHOWN_IDS]))
            lines.append(f"  {shown}{f' and {more:,} more' if more > 0 else ''}{mark}")
        if len(self.groups) > SHOWN_GROUPS:
            lines.append(f"  and {counted(len(self.groups) - SHOWN_GROUPS, 'more group')}")
        return "\n".join([*lines, *self.remarks, str(self.threshold)])


def with_vectors(cache: Cache, backbone: str) -> Space:
    """The space of a backbone's name; NoSuchSpace also where it holds no vector (any more)."""
    space = cache.find(backbone)
    if not len(space.digests()):
        raise NoSuchSpace(
            f"{cache.path} has no vectors of {backbone!r}",
            advice="Run 'embedcache extract' with that backbone",
        )
    return space


def duplicates(
    cache: Cache,
    space: Space,
    threshold: Threshold,
    *,
    scope: str | None = None,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Duplicates:
    """Group the photos of a cache that are copies of each other.

    scope: only ids of this folder or table. What two places call one file is one photo: see
        `copies_in`.
    progress: called with (pairs decided, pairs).
    Forgotten photos are in no group, also those forgotten while this runs. Vectors are read under
    their checksums. Raises CacheError for a cache without ids, Damaged for a wrong byte.
    """
    table = cache.photo_table()
    if not len(table):
        raise CacheError(without_ids(cache.path, space))
    compared = {*ids_of(table, scope=scope)}
    alike = alike_contents(cache, space, threshold.value, contents=compared, progress=progress)
    # Again, for what was forgotten meanwhile; what came meanwhile was not compared.
    held = copies_in(cache, scope=scope)
    ids = {content: held[content] for content in sorted(compared & held.keys())}
    number = alike.keys()
    degree = dict(zip(number, alike.degree.tolist(), strict=True))
    parts: dict[int | bytes, list[bytes]] = {}
    for content in ids:
        parts.setdefault(number.get(content, content), []).append(content)
    groups = []
    for contents in parts.values():
        members = sorted((name, content) for content in contents for name in ids[content])
        if len(members) > 1:
            whole = all(degree.get(content, 0) >= len(contents) - 1 for content in contents)
            names, of_them = zip(*members, strict=True)
            groups.append(Group(names, of_them, whole))
    groups.sort(key=lambda one: (not one.exact, not one.whole, -len(one.ids), one.ids))
    rows = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
    without = [c for c, ok in zip(ids, space.status(rows) == OK, strict=True) if not ok]
    return Duplicates(
        groups=tuple(groups),
        threshold=threshold,
        n_photos=sum(map(len, ids.values())),
        n_without=sum(len(ids[content]) for content in without),
    )


def alike_contents(
    cache: Cache,
    space: Space,
    threshold: float,
    *,
    contents: Collection[bytes],
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> AlikeContents:
    """Which of some contents are near-duplicates of others, by their vectors in a space.

    The result is kept beside the cache until a vector comes, goes or is another one. It holds
    digests and no vectors, and `forget` deletes it.
    """
    file = memory.folder_now(cache.path) / "alike" / f"{space.digest}.groups"
    digests, read = _in_file_order(space, contents)
    key = _key(space, digests, threshold)
    if (kept := _kept(file, key)) is not None:
        return kept
    links = link(read, len(digests), space.dim, threshold=threshold, progress=progress)
    linked = np.flatnonzero(links.degree)
    _, group = np.unique(links.label[linked], return_inverse=True)
    found = AlikeContents(digests[linked], group.astype(np.int64), links.degree[linked])
    if _key(space, digests, threshold) == key:  # else they changed while they were compared
        _keep(cache, file, key, found)
    return found


def _key(space: Space, digests: U8, threshold: float) -> bytes:
    """What groups of these contents follow from: the contents, (n, 32), and their vectors' CRCs."""
    crcs, _ = space.row_crcs(digests)
    rows = np.concatenate([digests, crcs.astype("<u4").view(np.uint8).reshape(-1, 4)], axis=1)
    key = hashlib.sha256(f"{VERSION} {space.digest} {threshold!r}\n".encode())
    key.update(np.sort(rows.view("S36"), axis=0).tobytes())
    return key.digest()


def _in_file_order(
    space: Space, contents: Collection[bytes]
) -> tuple[U8, Callable[[int, int], NDArray[np.float32]]]:
    """Those of some contents that have a vector (n, 32), as they lie on disk, and what reads a run
    of their vectors."""
    _, table = space.row_table()
    at = table.find(np.frombuffer(b"".join(contents), np.uint8).reshape(-1, 32))
    at = at[at >= 0]
    at = at[table.ok[at]]
    digests = np.ascontiguousarray(
        table.digests[at[np.lexsort((table.row[at], table.segment[at]))]]
    )

    def read(start: int, stop: int) -> NDArray[np.float32]:
        rows, _ = space.read(digests[start:stop])  # NaN for what was forgotten meanwhile
        return rows

    return digests, read


def _kept(file: Path, key: bytes) -> AlikeContents | None:
    """What an earlier call found, where it was of exactly these vectors and is as it was written.

    The file is the key, the sha256 of what follows, and 48 bytes for each content.
    """
    raw = disk.read_kept(file, limit=MAX_KEPT_BYTES) or b""
    rest = raw[64:]
    if raw[:32] != key or hashlib.sha256(rest).digest() != raw[32:64] or len(rest) % 48:
        return None
    rows = np.frombuffer(rest, _ROW)
    return AlikeContents(rows["digest"].copy(), rows["group"].copy(), rows["degree"].copy())


def _keep(cache: Cache, file: Path, key: bytes, found: AlikeContents) -> None:
    """Write it down, unless a photo was forgotten meanwhile; a full disk is no error."""
    rows = np.empty(len(found.digests), _ROW)
    rows["digest"], rows["group"], rows["degree"] = found.digests, found.group, found.degree
    data = rows.tobytes()
    if not cache.writable or len(data) > MAX_KEPT_BYTES - 64:
        return
    with contextlib.suppress(OSError), memory.writing(file):
        disk.replace(file, key + hashlib.sha256(data).digest() + data, durable=False)
