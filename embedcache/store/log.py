"""The log of removals: `removed/<number>/entry.json`, made one after the other, never changed.

Whatever takes a segment away, and every ref, is an entry. Entry n + 1 is created only if it does
not exist, so that of several that decided by the first n entries one goes on, and the others look
and decide again. An entry is durable before anything that it names is deleted.
"""

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.store.manifest import HEX_DIGEST, is_segment_id
from embedcache.store.sealed import FORMAT, MAX_LIST_BYTES, seal, unseal

FOLDER = "removed"
ENTRY = "entry.json"
PHOTOS = "photos"
MAX_SEGMENTS = 10_000  # in one entry
MAX_NUMBER = 99_999_999


@dataclass(frozen=True, slots=True)
class Gone:
    """A segment that was removed: the digest of its manifest, and what stands in its place.

    successors: ids of segments of the same space that hold exactly its rows that were not
        forgotten, maybe none; None where other segments hold them among other rows.
    """

    digest: str
    successors: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry.

    segments: what it removes, by "<digest of the space>/<segment id>", or "photos/<segment id>".
    ref: the ref that it acknowledges, and its digest. forgotten, remembered: {file name: digest}
    of tombstones and lifts that its writer saw and no entry before names.
    """

    segments: Mapping[str, Gone] = field(default_factory=dict)
    ref: tuple[str, str] | None = None
    forgotten: Mapping[str, str] = field(default_factory=dict)
    remembered: Mapping[str, str] = field(default_factory=dict)

    def encode(self, *, nonce: str) -> bytes:
        """The bytes of entry.json. nonce: text of its writer's, to know its own entry by."""
        return seal(
            {
                "format": FORMAT,
                "kind": FOLDER,
                "segments": {
                    name: [gone.digest, None if gone.successors is None else [*gone.successors]]
                    for name, gone in self.segments.items()
                },
                "ref": None if self.ref is None else [*self.ref],
                "forgotten": dict(self.forgotten),
                "remembered": dict(self.remembered),
                "nonce": nonce,
            }
        )

    @classmethod
    def parse(cls, raw: bytes, *, number: int) -> "tuple[Entry, str]":
        """An entry's bytes (untrusted): (entry, nonce); Damaged says what is wrong with them."""
        what = f"entry {number} of the removal log"
        document, _ = unseal(raw, what=what, limit=MAX_LIST_BYTES)
        try:
            if document["kind"] != FOLDER:
                raise ValueError(f"its kind is {document['kind']!r:.80}")
            entry = cls(
                segments={
                    _key(name): Gone(
                        _digest(gone[0]), None if gone[1] is None else tuple(map(_id, gone[1]))
                    )
                    for name, gone in document["segments"].items()
                },
                ref=None if document["ref"] is None else _ref(*document["ref"]),
                forgotten={str(key): _digest(of) for key, of in document["forgotten"].items()},
                remembered={str(key): _digest(of) for key, of in document["remembered"].items()},
            )
            return entry, str(document["nonce"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise Damaged(f"{what} is refused: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What the first `n` entries say.

    gone: every segment that was removed, by "<space>/<segment id>". refs: {name: digest} of the
    refs that were acknowledged, as they were at first; acknowledged: all, as (name, digest), for a
    ref that was deleted may come back from a shared copy in other words.
    forgotten, remembered: the tombstones and lifts that are known.
    """

    n: int = 0
    gone: Mapping[str, Gone] = field(default_factory=dict)
    refs: Mapping[str, str] = field(default_factory=dict)
    acknowledged: frozenset[tuple[str, str]] = frozenset()
    forgotten: Mapping[str, str] = field(default_factory=dict)
    remembered: Mapping[str, str] = field(default_factory=dict)

    def with_entries(self, entries: list[Entry]) -> "Log":
        """This log with the entries that follow."""
        gone, refs = dict(self.gone), dict(self.refs)
        forgotten, remembered = dict(self.forgotten), dict(self.remembered)
        for entry in entries:
            gone.update(entry.segments)
            forgotten.update(entry.forgotten)
            remembered.update(entry.remembered)
            if entry.ref is not None:
                refs.setdefault(*entry.ref)
        return Log(
            n=self.n + len(entries),
            gone=gone,
            refs=refs,
            acknowledged=self.acknowledged.union(one.ref for one in entries if one.ref is not None),
            forgotten=forgotten,
            remembered=remembered,
        )

    def stands_for(self, space: str, segment: str) -> list[str] | None:
        """The segments in which the rows of a segment lie now, less what was forgotten.

        The segment itself while it is there; its successors, and theirs, once it was replaced;
        None where its rows went into segments with other rows.
        """
        gone = self.gone.get(f"{space}/{segment}")
        if gone is None:
            return [segment]
        if gone.successors is None:
            return None
        found: list[str] = []
        for successor in gone.successors:
            inner = self.stands_for(space, successor)
            if inner is None:
                return None
            found += inner
        return found


def read_log(cache: Path, before: Log | None = None) -> Log:
    """The log, read on from `before` until the next number is absent.

    Raises Damaged for an entry that is not as it was written.
    """
    log = before or Log()
    entries: list[Entry] = []
    while True:
        number = log.n + len(entries) + 1
        raw = read_entry(cache, number)
        if raw is None:
            return log.with_entries(entries) if entries else log
        try:
            entries.append(Entry.parse(raw, number=number)[0])
        except Damaged as error:
            where = str(cache / FOLDER / f"{number:08d}" / ENTRY)
            raise Damaged(error.found, asked=where) from None


def read_entry(cache: Path, number: int) -> bytes | None:
    """The bytes of one entry; None where there is none of that number."""
    try:
        # By name: a listing of a network file system may be old.
        return disk.read_inside(cache, f"{FOLDER}/{number:08d}/{ENTRY}", limit=MAX_LIST_BYTES)
    except FileNotFoundError:
        return None


UNKNOWN = "0" * 64  # the digest of a segment whose manifest could not be read


def create_entry(cache: Path, number: int, entry: Entry) -> bool:
    """Create entry `number`, durably; False where the number is taken.

    The entry is made whole in a hidden folder, which is then renamed: a folder is never renamed
    onto one that holds something, on any file system, so that a number exists at most once.
    """
    folder, nonce = cache / FOLDER, token_hex(16)
    disk.make_folder(folder, below=cache)
    hidden, target = folder / f".entry-{disk.mark_of_process()}", folder / f"{number:08d}"
    hidden.mkdir()
    try:
        disk.write_new(hidden / ENTRY, entry.encode(nonce=nonce))
        disk.sync_folder(hidden)
        try:
            created = disk.rename_folder(hidden, target)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EIO, errno.ESTALE):
                raise
            created = False
        if not created:  # or it was, and a server's answer was lost
            raw = read_entry(cache, number)
            if raw is None and target.is_dir() and any(target.iterdir()):
                raise Damaged(
                    f"{target} is in the way of the removal log's next entry, and has no "
                    f"{ENTRY}. 'embedcache verify --repair {cache}' moves it away"
                )
            created = raw is not None and Entry.parse(raw, number=number)[1] == nonce
    finally:
        disk.delete_folder(hidden)
    disk.sync_folder(folder)
    return created


def append(cache: Path, log: Log, decide: Callable[[Log], Entry | None]) -> Log:
    """Append the entry that `decide` makes of the log; asked again whenever another came first.

    Returns the log as it is then, with the entry, or without where `decide` returned None.
    """
    while True:
        log = read_log(cache, log)
        entry = decide(log)
        if entry is None:
            return log
        if create_entry(cache, log.n + 1, entry):
            return log.with_entries([entry])


def entry_folders(cache: Path) -> Iterator[Path]:
    """What lies in the log's folder, hidden names too."""
    try:
        yield from sorted((cache / FOLDER).iterdir())
    except FileNotFoundError:
        return


def _key(name: str) -> str:
    space, _, segment = name.partition("/")
    if not (HEX_DIGEST.fullmatch(space) or space == PHOTOS) or not is_segment_id(segment):
        raise ValueError(f"it names {name!r:.120}")
    return name


def _digest(found: Any) -> str:
    if type(found) is not str or not HEX_DIGEST.fullmatch(found):
        raise ValueError(f"{found!r:.80} is not a digest")
    return found


def _id(found: Any) -> str:
    if type(found) is not str or not is_segment_id(found):
        raise ValueError(f"{found!r:.80} is not a segment's id")
    return found


def _ref(name: Any, digest: Any) -> tuple[str, str]:
    if type(name) is not str:
        raise ValueError(f"{name!r:.80} is not a ref's name")
    return name, _digest(digest)
