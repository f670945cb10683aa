"""The photos of a cache that are nearest to one photo, by the cosine of their vectors."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache.alike.embed import Embedder
from embedcache.alike.groups import with_vectors
from embedcache.alike.linking import block_rows, unit
from embedcache.alike.originals import ids_of
from embedcache.errors import CacheError, PhotosError
from embedcache.photos.digests import read_file, reason_of
from embedcache.photos.kinds import in_words
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.store.naming import without_ids
from embedcache.store.space import Space
from embedcache.wording import columns, counted, plain

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Match:
    """A photo, and the cosine of its vector with the one that was asked for."""

    photo_id: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Similar:
    """The nearest photos, the nearest first; of equal ones by id.

    asked: as the caller named the photo. photo: its id in the cache, None where it is not in it.
    n_compared: distinct photos that it was compared with.
    """

    asked: str
    photo: str | None
    n_compared: int
    matches: tuple[Match, ...]

    def document(self) -> dict[str, Json]:
        return {
            "photo": self.photo,
            "compared": self.n_compared,
            "matches": [{"id": m.photo_id, "similarity": m.similarity} for m in self.matches],
        }

    def __str__(self) -> str:
        compared = f"compared with {counted(self.n_compared, 'photo')}"
        if self.photo is None:
            head = f"{plain(self.asked)} (not in the cache, embedded for this), {compared}"
        else:
            head = f"{plain(self.photo)}, {compared}"
        rows = [[f"{m.similarity:.4f}", m.photo_id] for m in self.matches]
        return "\n".join([head, *columns([["similarity", "photo id"], *rows])])


@dataclass(frozen=True, slots=True)
class _Asked:
    """A photo that is asked for: its content, its id in the cache if it has one, its vector."""

    content: bytes
    photo: str | None
    vector: F32


def similar(
    cache: Cache,
    backbone: str,
    photo: str,
    *,
    top: int = 10,
    scope: str | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Similar:
    """The `top` photos whose vectors have the largest cosine with a photo's.

    photo: an id, or a file. A file whose bytes the cache holds is that photo; another is embedded
        by the same network, and nothing is stored. The photo is not its own match; a copy of it
        under another id is one.
    scope: the folder or table of the ids, where one occurs in two.
    progress: called with (photos compared, photos).
    Raises CacheError where the photo has no vector, PhotosError for a file that has none.
    """
    space, table = with_vectors(cache, backbone), cache.photo_table()
    if not len(table):
        raise CacheError(without_ids(cache.path, space))
    ids = ids_of(table, scope=scope)
    asked = _asked(cache, space, photo, ids, scope=scope, device=device)
    if asked.photo is not None:
        ids[asked.content] = [name for name in ids[asked.content] if name != asked.photo]
    contents = sorted(content for content, named in ids.items() if named)
    wanted = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, 32)
    wanted = wanted[space.status(wanted) == OK]
    at, cosine = _nearest(space, wanted, asked.vector, top, progress)
    found = [
        Match(name, value)
        for i, value in zip(at.tolist(), cosine.tolist(), strict=True)
        for name in ids[wanted[i].tobytes()]
    ]
    found.sort(key=lambda match: (-match.similarity, match.photo_id))
    return Similar(photo, asked.photo, len(wanted), tuple(found[:top]))


def _asked(
    cache: Cache,
    space: Space,
    photo: str,
    ids: Mapping[bytes, Sequence[str]],
    *,
    scope: str | None,
    device: str,
) -> _Asked:
    """The photo by its id, else the file of that name."""
    digests, known = cache.digests_of([photo], scope=scope)
    if known[0]:
        return _in_cache(space, photo, digests[0].tobytes())
    try:
        data = read_file(photo)
    except FileNotFoundError:
        held = ", ".join(map(repr, cache.some_ids(3)))
        raise PhotosError(
            f"{photo!r} is no photo id of {cache.path}, and no such file: the cache has ids like "
            f"{held}"
        ) from None
    except OSError as error:
        raise PhotosError(f"{photo}: {in_words(reason_of(error))}") from None
    content = hashlib.sha256(data).digest()
    if named := ids.get(content):
        return _in_cache(space, _named(cache, photo, content, named), content)
    if cache.dead(np.frombuffer(content, np.uint8)[None])[0]:
        raise PhotosError(
            f"{photo} was forgotten in {cache.path}, and is not embedded to be compared",
            advice="'embedcache extract --again' takes a forgotten photo up again",
        )
    found = list(Embedder.of(cache, space, device=device).vectors([lambda: [data]]))
    vector = found[0][1][0]
    if isinstance(vector, str):
        raise PhotosError(f"{photo} has no vector of this backbone: {in_words(vector)}")
    return _Asked(content, None, vector)


def _in_cache(space: Space, name: str, content: bytes) -> _Asked:
    """A photo of the cache, with its verified vector."""
    digest = np.frombuffer(content, np.uint8)[None]
    vectors, found = space.read(digest)
    if not found[0]:
        why = space.reasons(digest)[0]
        raise CacheError(
            f"{name!r} has no vector of this backbone: "
            + (in_words(why) if why else "it was not embedded yet. Run 'embedcache extract'")
        )
    return _Asked(content, name, vectors[0])


def _named(cache: Cache, file: str, content: bytes, ids: Sequence[str]) -> str:
    """Which of the ids of a content a file is: the one that its path ends with, else the first."""
    path = os.path.realpath(file)
    ends = [name for name in ids if f"/{path}".endswith(f"/{name}")]
    stems = [name for name in ids if name == Path(path).stem]
    return max([*ends, *stems], key=len, default=ids[0])


def _nearest(
    space: Space, digests: U8, vector: F32, top: int, progress: Callable[[int, int], None]
) -> tuple[I64, F32]:
    """The positions of the `top` nearest of (n, 32) contents, and their cosines."""
    goal = unit(vector[None].copy())[0]
    at, best = np.empty(0, np.int64), np.empty(0, np.float32)
    step = block_rows(space.dim)
    for start in range(0, len(digests), step):
        rows, found = space.read(digests[start : start + step])
        cosine = unit(rows) @ goal
        cosine[~found] = -np.inf  # forgotten meanwhile
        at = np.concatenate([at, np.arange(start, start + len(rows))])
        best = np.concatenate([best, cosine])
        kept = np.lexsort((at, -best))[:top]
        at, best = at[kept], best[kept]
        progress(min(start + step, len(digests)), len(digests))
    there = np.isfinite(best)
    return at[there], np.clip(best[there], -1, 1)
