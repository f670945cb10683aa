"""Forgetting photos: their ids, contents, vectors and faces go, and refs stop claiming them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.manifest import replacement_id
from embedcache.store.photo_ids import read_pairs, write_pairs
from embedcache.store.refs import repin
from embedcache.store.segment import Segment
from embedcache.store.tombstones import forgotten, read_tombstones, write_tombstone
from embedcache.upkeep.rewrite import Store, rewrite

U8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

MIN_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What `forget` removed. kept: contents that another id still stands for."""

    ids: int
    contents: int
    kept: tuple[str, ...]
    rows: int
    refs: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Json]:
        return {
            "ids": self.ids,
            "contents": self.contents,
            "kept": list(self.kept),
            "rows": self.rows,
            "refs": list(self.refs),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"{self.ids} ids and {self.rows} rows of {self.contents} photos are gone"]
        if self.refs:
            lines.append(f"changed refs: {', '.join(self.refs)}")
        if self.kept:
            lines.append(f"the same photo stays under other ids: {', '.join(self.kept)}")
        return "\n".join([*lines, *self.notes])


def forget(cache: Cache, ids: Sequence[str], *, scope: str | None = None) -> Forgotten:
    """Remove photos: their ids, every content they ever had, its vectors and its faces.

    ids: photo ids, or content digests as 64 hex digits, of which the first 12 do where only one
        content here begins so. A digest takes all ids of its content with it.
    Contents that another id still stands for are kept, and named. A tombstone stays behind, which
    keeps later merges from bringing the rows back. Refs that named the rewritten segments are
    changed and say so.
    scope: where the ids come from; needed when an id occurs in several places.
    Raises CacheError for an id that is not recorded, and for a digest that is not here.
    """
    table = cache.photo_table()
    wanted = set(ids)
    named = _named(cache, wanted - set(table.ids))
    wanted -= named.keys()
    at = [
        i
        for i, (name, place) in enumerate(zip(table.ids, table.scopes, strict=True))
        if name in wanted and scope in (None, place)
    ]
    _check_known(cache, wanted, {(table.ids[i], table.scopes[i]) for i in at})
    chosen = set(at)
    contents = {table.digests[i].tobytes() for i in at}
    others = {
        table.digests[i].tobytes(): table.ids[i] for i in range(len(table)) if i not in chosen
    }
    doomed = contents - others.keys() | set(named.values())
    if doomed:
        with disk.plain_errors("write to", cache.path):
            write_tombstone(cache.path, doomed)
    kept = sorted(others[content] for content in contents - doomed)
    return _remove(cache, {(table.ids[i], table.scopes[i]) for i in at}, doomed, kept=kept)


def forget_forgotten(cache: Cache) -> Forgotten:
    """Remove every photo here that a tombstone of this cache names: others forgot it, or it was
    forgotten here and has come again."""
    contents = _contents(cache)
    gone = forgotten(contents, read_tombstones(cache.path)[0])
    return _remove(cache, set(), {content.tobytes() for content in contents[gone]})


def _remove(
    cache: Cache, pairs: set[tuple[str, str]], doomed: set[bytes], *, kept: Sequence[str] = ()
) -> Forgotten:
    """Remove (id, scope) pairs, and contents with all that is known of them."""
    table = cache.photo_table()
    names = zip(table.ids, table.scopes, table.digests, strict=True)
    pairs = pairs | {(name, place) for name, place, row in names if row.tobytes() in doomed}
    refs: set[str] = set()
    rows = 0
    with disk.plain_errors("write to", cache.path):
        stores: list[Store] = [*cache.spaces(), *cache.face_spaces()]
        for store in stores:
            store.salvage()
            for segment in store.segments():
                hit = _members(segment.column("digest"), doomed)
                if hit.any():
                    refs.update(replace_segment(cache, store, segment, keep=np.flatnonzero(~hit)))
                    rows += int(hit.sum())
        for segment in cache.photo_segments():
            refs.update(_replace_ids(cache, segment, pairs))
        notes = _forget_here(cache)
    return Forgotten(
        ids=len(pairs),
        contents=len(doomed),
        kept=tuple(kept),
        rows=rows,
        refs=tuple(sorted(refs)),
        notes=notes,
    )


def _contents(cache: Cache) -> U8:
    """All contents that the cache knows, uint8 (n, 32): of vectors, faces, failures and ids."""
    stores: list[Store] = [*cache.spaces(), *cache.face_spaces()]
    with disk.plain_errors("write to", cache.path):
        for store in stores:
            store.salvage()
    parts = [cache.photo_table().digests, *(store.row_table()[1].digests for store in stores)]
    return np.unique(np.concatenate(parts), axis=0)


def _named(cache: Cache, texts: set[str]) -> dict[str, bytes]:
    """Which of some texts are digests of contents here, and of which."""
    digits = {text for text in texts if re.fullmatch(rf"[0-9a-f]{{{MIN_DIGITS},64}}", text)}
    if not digits:
        return {}
    known = [row.tobytes() for row in _contents(cache)]
    found = {}
    for text in sorted(digits):
        fitting = [content for content in known if content.hex().startswith(text)]
        if len(fitting) > 1:
            raise CacheError(f"{len(fitting)} contents in {cache.path} begin with {text}: say more")
        if fitting:
            found[text] = fitting[0]
    return found


def _members(digests: U8, contents: set[bytes]) -> Bool:
    return np.fromiter((row.tobytes() in contents for row in digests), np.bool_, len(digests))


def replace_segment(
    cache: Cache, store: Store, segment: Segment, *, keep: NDArray[np.int64]
) -> list[str]:
    """Put a segment of the rows `keep` in a segment's place, in refs too; returns those refs."""
    successor: dict[str, str] = {}
    if len(keep):
        new = replacement_id(segment.id)
        about = dict(segment.manifest.about)
        rewrite(store, store, [(segment, keep)], about=about, segment_id=new)
        successor = {found.id: found.digest for found in store.segments() if found.id == new}
    changed = repin(cache.path, segment.id, successor)
    disk.remove_folder(segment.folder)
    return changed


def _replace_ids(cache: Cache, segment: Segment, pairs: set[tuple[str, str]]) -> list[str]:
    """Take ids of a scope out of a photo segment; returns the refs that changed."""
    ids, contents = read_pairs(segment)
    scope = segment.manifest.name
    keep = [i for i, name in enumerate(ids) if (name, scope) not in pairs]
    if len(keep) == len(ids):
        return []
    successor: dict[str, str] = {}
    if keep:
        raw = np.frombuffer(b"".join(contents[i] for i in keep), np.uint8).reshape(-1, 32)
        new = replacement_id(segment.id)
        names = [ids[i] for i in keep]
        write_pairs(segment.folder.parent, scope, names, raw, segment_id=new)
        successor = {s.id: s.digest for s in cache.photo_segments() if s.id == new}
    changed = repin(cache.path, segment.id, successor)
    disk.remove_folder(segment.folder)
    return changed


def _check_known(cache: Cache, wanted: set[str], found: set[tuple[str, str]]) -> None:
    if unknown := sorted(wanted - {name for name, _ in found}):
        raise CacheError(
            f"{cache.path} knows no photo id or content {unknown[0]!r}"
            + (f" (nor {len(unknown) - 1} others of those given)" if len(unknown) > 1 else "")
            + ". 'embedcache info' shows ids that it knows"
        )
    places: dict[str, list[str]] = {}
    for name, scope in found:
        places.setdefault(name, []).append(scope)
    for name, scopes in places.items():
        if len(scopes) > 1:
            raise CacheError(
                f"photo id {name!r} occurs in {len(scopes)} places: {', '.join(sorted(scopes))}. "
                "Say which one is meant by its scope"
            )


def _forget_here(cache: Cache) -> tuple[str, ...]:
    """This machine's own memory of paths goes; what was set aside is pointed at."""
    for pattern in ("digests*", "index/*"):
        for path in (cache.path / "local").glob(pattern):
            path.unlink()
    if (cache.path / "damaged").exists():
        return (
            f"{cache.path / 'damaged'} holds files that were set aside, perhaps with these rows: "
            "delete it",
        )
    return ()
