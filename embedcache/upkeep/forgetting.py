"""Forgetting photos: their ids, contents, vectors and faces go, and nothing brings them back.

The tombstone comes first: from the moment that it is durable no reader shows the photo, whoever
publishes its rows later. Then the bytes go.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, Damaged
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.checksums import hash_file
from embedcache.store.disposal import aside_note, names_aside, new_aside
from embedcache.store.layout import APART, PARTS
from embedcache.store.photo_ids import ids_of
from embedcache.store.refs import read_ref, ref_names
from embedcache.store.removal import finish
from embedcache.store.salvage import leftovers
from embedcache.store.segment import Segment
from embedcache.store.segment_set import members
from embedcache.store.tombstones import Marks, content_mark, pair_mark
from embedcache.upkeep.local import clear_hidden, delete_staged
from embedcache.wording import counted

U8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

MIN_DIGITS = 12
Pair = tuple[str, str, bytes]  # scope, id, content


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What `forget` removed. kept: contents that another id still stands for.

    refs: those that read less now. notes: where bytes may still lie, and what removes them.
    """

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
        lines = [
            f"removed {counted(self.ids, 'id')} and {counted(self.rows, 'row')} of "
            f"{counted(self.contents, 'photo')}"
        ]
        if self.refs:
            lines.append(f"refs that now hold fewer rows: {', '.join(self.refs)}")
        if self.kept:
            lines.append(f"the same photo is kept under other ids: {', '.join(self.kept)}")
        return "\n".join([*lines, *self.notes])


def forget(cache: Cache, ids: Sequence[str], *, scope: str | None = None) -> Forgotten:
    """Remove photos: their ids, every content they ever had, its vectors and its faces.

    ids: photo ids, or content digests as 64 hex digits, of which the first 12 do where only one
        content here begins so. A digest takes all ids of its content with it. A whole digest need
        not be here: its tombstone keeps the photo from coming.
    Contents that another id still stands for are kept, and named. A tombstone stays behind, which
    hides the rows from the moment it is written and keeps them from coming back. Refs that pinned
    a removed segment read its remaining rows.
    scope: where the ids come from; needed when an id stands for different photos in two places.
    Run again after a crash, it finishes what was begun.
    Raises CacheError for an id that is not recorded, and for a part of a digest that is not here:
    before anything is removed, but where photos were forgotten before, once the others are gone.
    """
    wanted = set(ids)
    # Also what was forgotten and is still stored: a run that was cut off is finished. Looked for
    # before what such runs left is removed, so that running one again knows its ids.
    recorded = cache.photo_ids.pairs_of(ids=wanted, dead=True)
    if cache.history.dead().by_lists:  # of runs that were cut off
        forget_forgotten(cache)
    named = _named(cache, wanted - {name for _, name, _ in recorded})
    wanted -= named.keys()
    pairs = {pair for pair in recorded if pair[1] in wanted and scope in (None, pair[0])}
    already = _forgotten_already(cache, wanted - {name for _, name, _ in pairs}, scope)
    wanted -= already
    whole = set(named.values())
    _refuse_ambiguous(cache, pairs)
    unknown = wanted - {name for _, name, _ in pairs}
    _refuse_elsewhere({pair[:2] for pair in recorded if pair[1] in unknown}, scope)
    # Where photos were forgotten before, such an id may be of a run that was cut off: it keeps
    # nobody from the rest of that run's list.
    if unknown and not ((pairs or whole) and cache.history.dead()):
        forget_forgotten(cache)
        raise _unknown(cache, unknown)
    absent, ended = _absent(cache, whole)
    pairs |= cache.photo_ids.pairs_of(contents=whole, dead=True)
    contents = {pair[2] for pair in pairs} | whole
    cache.history.forget_what(_decision(cache, pairs, contents, whole))
    _end_lists(cache)
    dead = cache.history.dead().contents
    doomed = {content for content in contents if content_mark(content) in dead}
    living = {content: name for _, name, content in sorted(_living(cache, contents - doomed))}
    kept = sorted(living.values())
    done = _remove(cache, pairs, doomed, kept=kept)
    if unknown:
        raise _unknown(cache, unknown, done)
    notes = (
        f"{cache.path} holds nothing of {content.hex()}: a tombstone was written to keep it out"
        for content in sorted(absent)
    )
    known = [f"photo id {name!r} was forgotten already" for name in sorted(already)]
    known += [f"photo {content.hex()} was forgotten already" for content in sorted(ended)]
    return replace(done, notes=(*known, *notes, *done.notes))


def forget_forgotten(cache: Cache) -> Forgotten:
    """Remove every photo here that a tombstone of this cache names: others forgot it, or it was
    forgotten here and a run was cut off."""
    _end_lists(cache)
    photos = cache.photo_ids

    def look(segments: list[Segment]) -> set[Pair]:
        found = set()
        for segment in segments:
            dead = np.flatnonzero(photos.dead_rows(segment, cache.history.dead()))
            if len(dead):
                ids, digests = ids_of(segment), segment.column("digest")
                found |= {
                    (segment.manifest.name, ids[i], digests[i].tobytes()) for i in dead.tolist()
                }
        return found

    return _remove(cache, photos.steadily(look), _contents(cache, cache.dead))


def _remove(
    cache: Cache, pairs: set[Pair], doomed: set[bytes], *, kept: Sequence[str] = ()
) -> Forgotten:
    """Remove the bytes of pairs and contents that tombstones name."""
    rows = 0
    touched: set[str] = set()
    aside = names_aside(cache.path)
    with disk.plain_errors("write to", cache.path):
        for store in cache.stores():
            store.salvage()

            def holds(segment: Segment) -> bool:
                return bool(members(segment.column("digest"), doomed).any())

            held = store.steadily(lambda segments: [s.id for s in segments if holds(s)])
            rows += store.take_dead_rows_away(holds)
            touched |= {f"{store.key}/{name}" for name in held}
        scopes = {scope for scope, _, _ in pairs}
        photos = cache.photo_ids
        photos.salvage()  # a writer that was killed may have left these ids
        touched |= {f"{photos.key}/{segment.id}" for segment in photos.segments()}
        gone = doomed | {content for _, _, content in pairs}
        photos.take_dead_rows_away(
            lambda segment: (
                segment.manifest.name in scopes
                and bool(members(segment.column("digest"), gone).any())
            )
        )
        cache.history.note()
        notes = _forget_here(cache)
    notes += tuple(map(aside_note, new_aside(cache.path, aside)))
    removed = touched & cache.history.log().gone.keys()
    refs = list[str]()
    for name in ref_names(cache.path):
        try:
            if _pins(cache, name) & removed:
                refs.append(name)
        except Damaged as error:
            notes += (
                f"{error.fact}: what it pins is unknown, so nothing but forgotten rows was "
                f"removed. {error.advice}",
            )
    return Forgotten(
        ids=len({pair[:2] for pair in pairs}),
        contents=len(doomed),
        kept=tuple(kept),
        rows=rows,
        refs=tuple(refs),
        notes=notes,
    )


def _decision(
    cache: Cache, pairs: set[Pair], contents: set[bytes], whole: set[bytes]
) -> Callable[[], Marks]:
    """What tombstones are to say of pairs and their contents: which go, which are left to others.

    whole: contents that go whatever ids they have. Ids are read again only after any came or went.
    """
    gone = frozenset(pair_mark(*pair) for pair in pairs)
    known: tuple[object, Marks] | None = None

    def look() -> Marks:
        nonlocal known
        state = cache.photo_ids.state()
        if known is None or known[0] != state:
            left: dict[bytes, set[bytes]] = {}
            for pair in _living(cache, contents - whole) - pairs:
                left.setdefault(content_mark(pair[2]), set()).add(pair_mark(*pair))
            known = (
                state,
                Marks(
                    frozenset(map(content_mark, contents)) - left.keys(),
                    gone,
                    {mark: frozenset(some) for mark, some in left.items()},
                ),
            )
        return known[1]

    return look


def _living(cache: Cache, contents: set[bytes]) -> set[Pair]:
    """The pairs that stand for some contents now."""
    return cache.photo_ids.pairs_of(contents=contents) if contents else set()


def _end_lists(cache: Cache) -> None:
    """Name the contents that are dead since all ids are that they were left to.

    For good: a list from another copy could name an id of theirs that lives there. One that has
    another id here is left to that.
    """

    def look() -> Marks:
        dead = cache.history.dead()
        left = cache.photo_ids.left_to(dead)
        return Marks(contents=dead.by_lists - left.keys(), left=left)

    if cache.history.dead().by_lists:
        cache.history.forget_what(look)


def _pins(cache: Cache, ref: str) -> set[str]:
    """What a ref pins, or what stands for it, and all that stood for it before."""
    gone = cache.history.log().gone
    found: set[str] = set()
    waiting = [
        f"{key}/{segment}"
        for key, pinned in read_ref(cache.path, ref).by_set().items()
        for segment in pinned
    ]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            key = name.partition("/")[0]
            if name in gone:
                waiting += [f"{key}/{other}" for other in gone[name].successors or ()]
    return found


def _contents(cache: Cache, wanted: Callable[[U8], Bool]) -> set[bytes]:
    """The contents that are stored and `wanted`: of vectors, faces, failures and ids."""

    def look(segments: list[Segment]) -> list[U8]:
        digests = (segment.column("digest") for segment in segments)
        return [some[wanted(some)] for some in digests]  # one column in memory at a time

    parts = cache.photo_ids.steadily(look)
    with disk.plain_errors("write to", cache.path):
        for store in cache.stores():
            store.salvage()
            parts += store.steadily(look)
    return {row.tobytes() for part in parts for row in part}


def _named(cache: Cache, texts: set[str]) -> dict[str, bytes]:
    """Which of some texts are digests of contents, and of which; parts only of what is here."""
    digits = sorted(text for text in texts if re.fullmatch(rf"[0-9a-f]{{{MIN_DIGITS},64}}", text))
    if not digits:
        return {}
    starts = np.array([int(text[:MIN_DIGITS], 16) for text in digits], np.uint64)

    def begins(digests: U8) -> Bool:
        keys = np.ascontiguousarray(digests[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
        found: Bool = np.isin(keys >> np.uint64(64 - 4 * MIN_DIGITS), starts)
        return found

    known = sorted(_contents(cache, begins))
    found = {}
    for text in digits:
        fitting = [content for content in known if content.hex().startswith(text)]
        if len(fitting) > 1:
            raise CacheError(f"{len(fitting)} sha256 in {cache.path} begin with {text}: add digits")
        if fitting:
            found[text] = fitting[0]
        elif len(text) == 64:  # forgotten before, or to be kept out
            found[text] = bytes.fromhex(text)
    return found


def _absent(cache: Cache, contents: set[bytes]) -> tuple[set[bytes], set[bytes]]:
    """The contents that are not here: those that were never forgotten, and those that were."""
    if not contents:
        return set(), set()
    marks = cache.history.dead().contents
    here = _contents(cache, lambda digests: members(digests, contents))
    ended = {one for one in contents - here if content_mark(one) in marks}
    return contents - here - ended, ended


def digests_of(cache: Cache, names: Sequence[str]) -> list[str]:
    """What people name photos by, for `forget`: a photo's file by the sha256 of what is in it.

    A name that is an id here is meant as the id. Raises CacheError for a file that is no photo of
    this cache: it may be a list, or another photo than was meant.
    """
    known = {name for _, name, _ in cache.photo_ids.pairs_of(ids={*names}, dead=True)}
    found: dict[str, str] = {}
    for name in names:
        if name not in known and os.path.isfile(name):
            with disk.plain_errors("read", Path(name)), open(name, "rb") as file:
                found[name] = hash_file(file.fileno())[0]
    unknown, _ = _absent(cache, {bytes.fromhex(digest) for digest in found.values()})
    for name, digest in found.items():
        if bytes.fromhex(digest) in unknown:
            raise CacheError(
                f"{cache.path} holds no photo with the bytes of {name}, and no such id: nothing "
                f"was removed. Name the photo by its id; or, to keep this one out, by {digest}"
            )
    return [found.get(name, name) for name in names]


def _forgotten_already(cache: Cache, names: set[str], scope: str | None) -> set[str]:
    """Which of some ids, no longer stored, a tombstone names as those of contents that are here.

    An id whose photo is gone as well cannot be told from one that never was: its mark holds the
    content, so that nobody finds out by trying names who was forgotten.
    """
    marks = cache.history.dead().pairs
    if not names or not marks:
        return set()
    table = cache.photo_table()
    scopes = {name for name, _ in table.scopes.spans()} if scope is None else {scope}
    contents = {row.tobytes() for row in table.digests}
    return {
        name
        for name in names
        if any(pair_mark(place, name, one) in marks for place in scopes for one in contents)
    }


def _unknown(cache: Cache, names: set[str], done: Forgotten | None = None) -> CacheError:
    """The error for ids that are not recorded. done: what was removed of the others."""
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return CacheError(
        f"{cache.path} knows no photo id or sha256 {min(names)!r}{more}: it was never recorded, or "
        "is forgotten already. "
        + ("No other was removed. " if done is None else f"Of the others {_first_line(done)}. ")
        + f"'embedcache info {cache.path} --photos' lists all that are here; after a run that was "
        f"cut off, 'embedcache forget {cache.path} --forgotten' ends what it began"
    )


def _first_line(done: Forgotten) -> str:
    return str(done).splitlines()[0]


def _refuse_elsewhere(found: set[tuple[str, str]], scope: str | None) -> None:
    """Raise for ids that are of other places than the one that was named."""
    if found:
        name = min(name for _, name in found)
        places = ", ".join(sorted(place for place, other in found if other == name))
        raise CacheError(f"photo id {name!r} is not of {scope!r} here, but of {places}")


def _refuse_ambiguous(cache: Cache, found: set[Pair]) -> None:
    """Raise for an id that stands for different photos in two places."""
    places: dict[str, dict[str, set[bytes]]] = {}
    for scope, name, content in found:
        places.setdefault(name, {}).setdefault(scope, set()).add(content)
    for name, contents in places.items():
        if len({frozenset(held) for held in contents.values()}) > 1:
            scopes = ", ".join(sorted(contents))
            raise CacheError(
                f"photo id {name!r} stands for different photos in {len(contents)} places: "
                f"{scopes}. Add `scope=PLACE`, or name the photo by its sha256 "
                f"('embedcache info {cache.path} --photos' shows it)"
            )


def _forget_here(cache: Cache) -> tuple[str, ...]:
    """Delete state of this machine only of photos, and say where else their bytes may lie."""
    clear_hidden(cache.path)
    notes: list[str] = []
    for store in cache.sets():
        notes += [
            f"{path} could not be deleted yet: a process holds it open. 'embedcache compact "
            f"{cache.path}' deletes it later"
            for path in finish(store)
        ]
    for segments in _segment_folders(cache.path):
        notes += [
            f"{left.path} is being written by {left.holder}: its rows of forgotten photos "
            "are removed when it is published"
            for left in leftovers(segments)
            if left.holder
        ]
    notes += [
        f"{left.path} is held by {left.holder}, perhaps with these rows. Once that has ended, "
        f"'embedcache forget {cache.path} --forgotten' removes what it left"
        for left in delete_staged(cache.path)
    ]
    if (cache.path / "damaged").exists():
        notes.append(
            f"{cache.path / 'damaged'} holds files that were set aside, perhaps with these rows: "
            "keep what is yours, then delete it"
        )
    return tuple(notes)


def _segment_folders(cache: Path) -> list[Path]:
    """Every folder of segments, as it lies there."""
    found = [cache / "photos" / "segments"]
    for part in PARTS:
        if part != "photos":
            found += sorted((cache / part).glob("*/segments"))
    return [*found, *sorted((cache / APART).glob("*/segments"))]
