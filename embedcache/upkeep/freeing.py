"""Freeing what a whole backbone takes in this cache, because the user says so.

Nothing is remembered against the backbone: it may come again by whatever embeds or copies it later.
Other spaces, the photos and their ids stay as they are, and so do other copies of the cache.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from embedcache import disk
from embedcache.errors import CacheError, EmbedcacheError, NoSuchSpace
from embedcache.spec import Json
from embedcache.store import memory
from embedcache.store.cache import Cache
from embedcache.store.clearing import Pinned
from embedcache.store.disposal import aside_note, names_aside, new_aside
from embedcache.store.naming import plain_name
from embedcache.store.removal import finish
from embedcache.store.salvage import leftovers
from embedcache.store.segment import Segment
from embedcache.store.space import Space
from embedcache.upkeep.local import clear_hidden
from embedcache.wording import counted

SHOWN_REFS = 5
PREFIX_DIGITS = 6  # of a spec's digest, as `Cache.find` takes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What `forget_space` removed. rows: vectors, as often as they were stored; failed: failures.

    bytes_freed: of all files that are gone. left: vectors that are here now, as others have written
    meanwhile. notes: what may come again, and what removes it.
    """

    backbone: str
    spec: str
    segments: int
    rows: int
    failed: int
    bytes_freed: int
    left: int
    notes: tuple[str, ...] = ()
    kind: str = "computed"  # of the spec

    def document(self) -> dict[str, Json]:
        found: dict[str, Json] = {name: getattr(self, name) for name in self.__slots__}
        return found | {"notes": [*self.notes]}

    def __str__(self) -> str:
        rows = f"{counted(self.rows, 'vector')} of"
        if self.kind == "pixels":
            rows = f"the pixels of {counted(self.rows, 'photo')}, kept as"
        line = (
            f"removed {rows} {self.backbone} (spec {self.spec[:8]}) in "
            f"{counted(self.segments, 'segment')}: {self.bytes_freed / 1e6:,.1f} MB freed"
        )
        return "\n".join([line, *self.notes])


def forget_space(cache: Cache, backbone: str) -> Freed:
    """Remove all vectors of a backbone, and what failed, from this cache. Photo ids stay.

    backbone: as `Cache.find` takes it. Run again after a crash, it finishes what was begun.
    What another process writes meanwhile stays, and is counted. The files of each segment go once
    the log names it, so that no reader meets half of one.
    Raises CacheError, before anything is touched, where a ref pins vectors of it, and NoSuchSpace
    as `Cache.find` does.
    """
    space = _find(cache, backbone)
    named = next(iter(space.names), "") or next(_names_left(space), "") or backbone
    aside = names_aside(cache.path)
    before = _sizes(space)
    memory = [*_memory(cache, space)]
    try:
        removed = space.clear()
    except Pinned as error:
        raise _pinned(cache, space, named, error.refs) from None
    with disk.plain_errors("write to", cache.path):
        space.drop_drafts()
        bytes_freed = sum(_delete(path) for path in memory)
        held = finish(space)
        clear_hidden(cache.path)
    after = _sizes(space)
    left = sum(segment.manifest.n_ok for segment in space.segments())
    notes = [
        f"{path} could not be deleted yet: a process holds it open. 'embedcache compact "
        f"{cache.path}' deletes it later"
        for path in held
    ]
    notes += map(aside_note, new_aside(cache.path, aside))
    return Freed(
        backbone=named,
        spec=space.digest,
        segments=len(removed),
        rows=sum(segment.manifest.n_ok for segment in removed),
        failed=sum(segment.manifest.n_rows - segment.manifest.n_ok for segment in removed),
        bytes_freed=bytes_freed + sum(n for name, n in before.items() if name not in after),
        left=left,
        kind=space.spec.kind,
        notes=(*notes, *_advice(cache, space, named, left)),
    )


def _find(cache: Cache, backbone: str) -> Space:
    """The space of a name; also one of which a run that was cut off has left only some files."""
    try:
        return cache.find(backbone, pixels=True)
    except NoSuchSpace:
        begun = [space for space in cache.spaces() if _was_called(space, backbone)]
        if len(begun) == 1:
            return begun[0]
        _clear(cache)  # of a run that was cut off at its very end
        raise


def _clear(cache: Cache) -> None:
    with disk.plain_errors("write to", cache.path):
        for store in cache.sets():
            finish(store)
        clear_hidden(cache.path)


def _was_called(space: Space, backbone: str) -> bool:
    """Whether a name fits a space that has no segments any more, but still some of their files."""
    name, _, digits = backbone.rpartition("#")
    wanted = {plain_name(backbone)}
    if len(digits) >= PREFIX_DIGITS and space.digest.startswith(digits):
        wanted.add(plain_name(name))
    return not space.segments() and any(plain_name(one) in wanted for one in _names_left(space))


def _names_left(space: Space) -> Iterator[str]:
    """What writers called the segments whose files are here, also those that were removed."""
    for path in sorted(space.segments_folder.iterdir()):
        with contextlib.suppress(OSError, EmbedcacheError):
            yield Segment.read(str(path), kind="vectors").name


def _of_a_study(ref: str) -> bool:
    return ref.startswith("as-of-")


def _pinned(cache: Cache, space: Space, named: str, refs: list[str]) -> CacheError:
    names = ", ".join(refs[:SHOWN_REFS])
    names += f" and {len(refs) - SHOWN_REFS} more" if len(refs) > SHOWN_REFS else ""
    several = len(refs) > 1
    advice = (
        f"If nobody needs what {'they pin' if several else 'it pins'}, delete "
        f"{'them' if several else 'it'} by 'embedcache ref {cache.path} "
        f"{' '.join(refs[:SHOWN_REFS])} --delete', and rerun the command"
    )
    if others := _others(cache, space):
        advice += (
            f". Or make a cache without {named}: "
            f"'embedcache pull {cache.path} NEW --with-ids --backbone {others[0]}'{_more(others)}"
        )
    return CacheError(
        f"{'refs' if several else 'ref'} {names} {'pin' if several else 'pins'} vectors of {named} "
        f"in {cache.path}, and a ref keeps what it pins: nothing was removed"
        + (". A study made the refs as-of-..." if any(map(_of_a_study, refs)) else ""),
        advice=advice,
    )


def _advice(cache: Cache, space: Space, named: str, left: int) -> list[str]:
    """What may be here again, and by what."""
    found = [
        f"{one.path} is being written by {one.holder}: what it publishes stays. To remove it too, "
        "rerun the command afterwards"
        for one in leftovers(space.segments_folder)
        if one.holder
    ]
    if left:
        found.append(
            f"{counted(left, 'vector')} of {named} were written meanwhile and stay. To remove them "
            "too, rerun the command"
        )
    if space.spec.kind == "pixels":
        return [
            *found,
            "'embedcache extract' with `keep_pixels` keeps them again, and so do 'embedcache "
            f"merge', and 'embedcache pull URL {cache.path} --backbone {named}', from a copy that "
            "has them",
        ]
    again = (
        f"other copies keep {named}: 'embedcache pull URL {cache.path}' and 'embedcache merge' "
        "bring it again from a copy that has it"
    )
    if others := _others(cache, space):
        again += (
            f"; 'embedcache pull URL {cache.path} --backbone {others[0]}'{_more(others)} does not"
        )
    return [*found, again]


def _others(cache: Cache, space: Space) -> list[str]:
    """The names of the other backbones here."""
    return [one.names[0] for one in cache.spaces() if one is not space and one.names]


def _more(names: list[str]) -> str:
    """What to say of a command that names the first of some backbones."""
    return f" (with the option again for {', '.join(names[1:])})" if names[1:] else ""


def _memory(cache: Cache, space: Space) -> Iterator[Path]:
    """What this machine remembers of a space's vectors."""
    for place in ("alike", f"{memory.FOLDER}/*/*"):
        yield from sorted((cache.path / "local").glob(f"{place}/{space.digest}.*"))


def _delete(path: Path) -> int:
    """Delete a file; returns how many bytes it had."""
    with contextlib.suppress(FileNotFoundError):
        size = path.lstat().st_size
        path.unlink()
        return size
    return 0


def _sizes(space: Space) -> dict[str, int]:
    """The bytes of all files of each segment and draft, by the id: under whatever name they lie."""
    found: dict[str, int] = {}
    for path in sorted(space.segments_folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            name = path.name.removeprefix(".gone-").removeprefix(".draft-")[:30]
            found[name] = found.get(name, 0) + _bytes_below(path)
    return found


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                status = Path(parent, name).lstat()
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
