"""The commands that run against each other: how each is called, what it adds, what it forgets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from embedcache.extraction.run import extract
from embedcache.extraction.upstream import Upstream
from embedcache.photos.table import Photos
from embedcache.remotes.remote import Remote
from embedcache.sharing.joining import compact_remote
from embedcache.sharing.share import pull, push
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.exchange import import_vectors
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.freeing import forget_space
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.together.world import (
    DRAFT,
    FOREIGN,
    FORGOTTEN,
    HELD,
    IMPORTED,
    IN_FOLDER,
    NET,
    Album,
    Row,
    World,
    backbone,
    ids_of,
)

Call = Callable[[World, Album, "Remote | str"], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A command with its arguments.

    adds: rows that the cache must hold once it has succeeded, if nobody forgets them.
    adds_in_the_end: likewise, once all operations have ended: another one may be at it.
    forgets: ids. ref: the ref that it writes. sends: what the cache holds goes to the remote.
    purges: after it, the remote holds nothing of what the cache had forgotten before.
    removes: photos of which the remote holds nothing after it; a colleague has forgotten them.
    remote: it may open the remote.
    frees: a space whose rows may be gone once it has begun; those added after it has ended stay.
    names: a photo and an id that it gets, unless it is forgotten: the operation says which.
    """

    name: str
    call: Call
    adds: frozenset[Row] = frozenset()
    adds_in_the_end: frozenset[Row] = frozenset()
    forgets: tuple[str, ...] = ()
    ref: str = ""
    sends: bool = False
    purges: bool = False
    removes: tuple[int, ...] = ()
    reads: bool = False
    remote: bool = False
    frees: str = ""
    names: tuple[int, str] | None = None


def _extract(world: World, album: Album, remote: Remote | str) -> None:
    cache = Cache.open(world.cache)
    extract(Photos.read(world.photos), cache, backbone=backbone(), workers=1, batch_size=4)


def _salvage(world: World, album: Album, remote: Remote | str) -> None:
    for space in Cache.open(world.cache).spaces():
        space.salvage()


def _import(world: World, album: Album, remote: Remote | str) -> None:
    matrix, listed = world.import_files
    import_vectors(
        Cache.open(world.cache),
        matrix,
        listed,
        ids=[ids_of(n)[0] for n in IMPORTED],
        digests=album.digests(*IMPORTED),
        name=FOREIGN,
        scope=Photos.read(world.photos).scope,
    )


def _merge(world: World, album: Album, remote: Remote | str) -> None:
    merge(Cache.open(world.cache), [Cache.open(world.other)], with_ids=True)


def _pull(world: World, album: Album, remote: Remote | str) -> None:
    _whole(pull(remote, Cache.open(world.cache), with_ids=True).problems)


def _push(world: World, album: Album, remote: Remote | str) -> None:
    _whole(push(Cache.open(world.cache), remote, with_ids=True).problems)


def _purge(world: World, album: Album, remote: Remote | str) -> None:
    _whole(push(Cache.open(world.cache), remote, with_ids=True, purge=True).problems)


def _colleague_purges(world: World, album: Album, remote: Remote | str) -> None:
    cache = Cache.open(world.other)
    _whole(pull(remote, cache, with_ids=True).problems)
    known = set(cache.photo_table().ids)
    ids = [name for n in REMOVED for name in ids_of(n) if name in known]
    if ids:
        forget(cache, ids)
    _whole(push(cache, remote, with_ids=True, purge=True).problems)


def _extract_through(world: World, album: Album, remote: Remote | str) -> None:
    cache = Cache.open(world.cache)
    upstream = Upstream(remote, cache, offer=True, seed=1)
    extract(
        *(Photos.read(world.photos), cache),
        backbone=backbone(),
        workers=1,
        batch_size=4,
        remote=upstream,
    )


def _compact(world: World, album: Album, remote: Remote | str) -> None:
    compact(Cache.open(world.cache))


def _compact_little(world: World, album: Album, remote: Remote | str) -> None:
    compact(Cache.open(world.cache), target_rows=3)


def _compact_remote(world: World, album: Album, remote: Remote | str) -> None:
    compact_remote(remote, Cache.open(world.cache))


def _repair(world: World, album: Album, remote: Remote | str) -> dict[str, Any]:
    report = verify(world.cache, repair=True)
    return {"findings": [f"{found.path}: {found.problem}" for found in report.findings]}


def _read(world: World, album: Album, remote: Remote | str) -> dict[str, Any]:
    """Every row that the product finds: {space: numbers}, and those that are wrong."""
    found: dict[str, list[int]] = {}
    wrong = []
    cache = Cache.open(world.cache)
    for space in cache.spaces():
        name = album.names[space.digest]
        rows, there = space.read(album.digests(*range(len(album.contents))))
        found[name] = [n for n, ok in enumerate(there.tolist()) if ok]
        wrong += [
            f"{name} {n}" for n in found[name] if rows[n].tobytes() != album.bytes_of((name, n))
        ]
    table = cache.photo_table()
    return {"found": found, "wrong": wrong, "ids": sorted(set(table.ids))}


def _name(world: World, album: Album, remote: Remote | str) -> dict[str, Any]:
    """Give a photo another id; says whether it was taken, or skipped as forgotten."""
    cache = Cache.open(world.cache)
    cache.record_photos("elsewhere", [NEW_ID], album.digests(RENAMED))
    return {"taken": bool(cache.photo_ids.pairs_of(ids=[NEW_ID]))}


def _forget(*ids: str) -> Call:
    return lambda world, album, remote: forget(Cache.open(world.cache), ids) and None


def _forget_space(world: World, album: Album, remote: Remote | str) -> None:
    forget_space(Cache.open(world.cache), FOREIGN)


def _ref(name: str) -> Call:
    return lambda world, album, remote: write_ref(Cache.open(world.cache), name) and None


def _whole(problems: Sequence[str]) -> None:
    """A transfer that left something behind has not succeeded; it is run again."""
    from embedcache.errors import RemoteError

    if problems:
        raise RemoteError(f"problems: {'; '.join(problems)}")


REMOVED: Final = (1, 6)
RENAMED, NEW_ID = 2, "new-02.png"


def _rows(*numbers: int, space: str = NET) -> frozenset[Row]:
    return frozenset((space, n) for n in numbers if n != FORGOTTEN)


def forgetting(name: str, *ids: str) -> Operation:
    return Operation(name=name, call=_forget(*ids), forgets=ids)


# Photo 1 lies in a segment that a ref pins, in a draft, in `other` and on the remote; 5 only in the
# draft and in what is imported; 6 only among the foreign rows, and is embedded by `extract`.
FORGET: Final = forgetting("forget", *ids_of(1), *ids_of(5), *ids_of(6))
# Rows of the same segments: 0 and 2.
FORGET_OTHERS: Final = forgetting("forget others", *ids_of(0), *ids_of(2))

ALL: Final[tuple[Operation, ...]] = (
    Operation(name="extract", call=_extract, adds=_rows(*IN_FOLDER)),
    Operation(name="salvage", call=_salvage, adds_in_the_end=_rows(*DRAFT)),
    Operation(name="import", call=_import, adds=_rows(*IMPORTED, space=FOREIGN)),
    Operation(name="merge", call=_merge, adds=HELD["other"]),
    Operation(name="pull", call=_pull, adds=HELD["remote"], remote=True),
    Operation(name="push", call=_push, sends=True, remote=True),
    Operation(name="purge", call=_purge, sends=True, purges=True, remote=True),
    Operation(name="compact", call=_compact),
    FORGET,
    Operation(name="forget space", call=_forget_space, frees=FOREIGN),
    Operation(name="ref", call=_ref("new"), ref="new"),
    Operation(name="repair", call=_repair),
    Operation(name="read", call=_read, reads=True),
)
# What runs beside an operation of the same name: another ref, other photos.
SECOND: Final[dict[str, Operation]] = {
    "forget": FORGET_OTHERS,
    "ref": Operation(name="ref", call=_ref("newer"), ref="newer"),
}
# Two ids of one photo, forgotten at once: neither may keep the vectors for the other.
TWINS: Final = tuple(forgetting(f"forget {name}", name) for name in ids_of(3))
# Another id for a photo that `forget others` takes: if it was taken, the photo stays.
NAMING: Final = Operation(name="name", call=_name, names=(RENAMED, NEW_ID))
# Compaction where some segments are too large to be joined: it removes what those hold already.
COMPACT_LITTLE: Final = Operation(name="compact little", call=_compact_little)
# What else runs against a remote: another member who forgot photos that are here, an extraction
# that reads through it and offers what it computes, and a compaction of it.
REMOTE: Final = (
    Operation(
        name="colleague purges",
        call=_colleague_purges,
        removes=REMOVED,
        remote=True,
    ),
    Operation(
        name="extract through",
        call=_extract_through,
        adds=_rows(*IN_FOLDER),
        remote=True,
    ),
    Operation(name="compact remote", call=_compact_remote, remote=True),
)
READ: Final = next(op for op in ALL if op.reads)


def named(name: str) -> Operation:
    return next(
        op
        for op in (*ALL, *TWINS, *REMOTE, FORGET_OTHERS, NAMING, COMPACT_LITTLE)
        if op.name == name
    )


def beside(x: Operation, y: Operation) -> Operation:
    """`y` as it runs beside `x`."""
    return SECOND.get(y.name, y) if x.name == y.name else y
