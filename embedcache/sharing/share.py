"""Push and pull: the segments, or only the rows, that the other side lacks.

    pull("s3://bucket/team", cache)            everything that is there and not here
    push(cache, "s3://bucket/team")            everything that is here and not there

Both are set unions of immutable segments, so any number of members may push and pull at any time:
nobody waits, nothing is overwritten, and a run that was cut is gone on with by running it again.
A segment appears on the other side whole (its manifest comes last) or not at all. Photo ids, and
with them anything that names a person or a path, stay home unless they are asked for.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, InputError
from embedcache.remotes.address import parse_address
from embedcache.remotes.opening import open_remote
from embedcache.remotes.remote import Remote
from embedcache.sharing.moved import Moved, Progress, Tally, workers
from embedcache.sharing.shared_copy import Catalogue
from embedcache.store.cache import Cache
from embedcache.store.tombstones import FOLDER as TOMBSTONES
from embedcache.store.tombstones import Tombstones, read_tombstones

U8 = NDArray[np.uint8]


def pull(
    remote: Remote | str,
    cache: Cache,
    *,
    backbones: Sequence[str] = (),
    specs: Sequence[str] = (),
    photos: U8 | None = None,
    ref: str | None = None,
    with_ids: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Moved:
    """Bring into `cache` what a shared copy holds and it lacks.

    backbones: only vectors of these, by name or spec digest, and the faces that they were cut by.
    specs: only the spaces with these digests, of specs or detectors; one may be absent.
    photos: only rows of these content digests, (n, 32); few of them come by their byte ranges.
    ref: exactly the segments that this ref of the remote pins, and the ref itself.
    with_ids: photo ids too, with a ref those that it pins. dry_run: say what would move.
    progress: called with (bytes that have come, bytes that will).
    Raises InputError for what cannot be asked together, and RemoteError where the remote cannot be
    reached. What it holds that is damaged or does not fit is left out and stands under `problems`.
    """
    from embedcache.sharing.pulling import Pull

    if ref is not None and (backbones or photos is not None):
        raise InputError(
            "--ref brings exactly what the ref pins: leave out --backbone and --photos, or --ref"
        )
    if with_ids and photos is not None:
        raise InputError(
            "--with-ids takes all photo ids, and --photos only some photos' rows: leave one out. "
            "'embedcache extract PHOTOS --cache DIR --remote URL' takes the rows of your photos "
            "and records their ids"
        )
    started = time.perf_counter()
    remote = connect(remote, cache)
    catalogue = Catalogue(remote, _memo(cache, remote))
    catalogue.require()
    tally = Tally()
    with disk.plain_errors("write to", cache.path):
        gone = _adopt_tombstones(catalogue, cache, tally, dry_run=dry_run)
        with workers() as pool:
            run = Pull(catalogue, cache, tally, gone, pool)
            run.plan(backbones=backbones, specs=specs, photos=photos, ref=ref, with_ids=with_ids)
            if not dry_run:
                run.move(progress)
                again = run
                while again.n_lost and ref is None:  # other segments may hold the same rows
                    again = Pull(catalogue, cache, Tally(), gone, pool)
                    again.plan(
                        backbones=(), specs=run.chosen, photos=photos, ref=None, with_ids=with_ids
                    )
                    again.move(progress)
                    tally.add(again.tally)
                every = not (backbones or specs or photos is not None)
                run.refs(ref, every=every, with_ids=with_ids)
    return _moved("pull", catalogue, cache, tally, dry_run=dry_run, started=started)


def available(
    remote: Remote | str, cache: Cache, *, specs: Sequence[str], photos: U8
) -> dict[str, tuple[U8, U8]]:
    """What of some contents, (n, 32), `pull` would bring into `cache`, of which nothing is fetched.

    Returns {digest of a spec or detector: (contents of vectors or faces, of failures), (k, 32)}.
    Raises RemoteError where the remote cannot be reached.
    """
    from embedcache.sharing.pulling import Pull

    remote = connect(remote, cache)
    catalogue = Catalogue(remote, _memo(cache, remote))
    catalogue.require()
    tally = Tally()
    gone = _adopt_tombstones(catalogue, cache, tally, dry_run=True)
    with workers() as pool:
        run = Pull(catalogue, cache, tally, gone, pool)
        run.plan(backbones=(), specs=specs, photos=photos, ref=None, with_ids=False)
    found: dict[str, tuple[U8, U8]] = {}
    for piece in run.pieces:
        digests, n_ok = catalogue.column(piece.shared, "digest"), piece.shared.manifest.n_ok
        rows = np.arange(len(digests)) if piece.rows is None else piece.rows
        parts = digests[rows[rows < n_ok]], digests[rows[rows >= n_ok]]
        before = found.get(piece.holding.digest, (digests[:0], digests[:0]))
        good, bad = (np.concatenate(pair) for pair in zip(before, parts, strict=True))
        found[piece.holding.digest] = good, bad
    return found


def push(
    cache: Cache,
    remote: Remote | str,
    *,
    backbones: Sequence[str] = (),
    specs: Sequence[str] = (),
    with_ids: bool = False,
    purge: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Moved:
    """Send to a shared copy what `cache` holds and it lacks; makes the shared copy if need be.

    backbones: only vectors of these, and the faces that they were cut by.
    specs: only the spaces with these digests, of specs or detectors.
    with_ids: photo ids too, which may be private; vectors are found by content without them.
    purge: remove segments with forgotten photos there, their other rows sent anew; it takes the
        right to delete. Without it forgotten rows stay there, and no pull brings them.
    Refs and tombstones go along. Rows of photos that either side forgot do not.
    progress: called with (bytes that have gone, bytes that will).
    Raises RemoteError where the remote cannot be reached or refuses.
    """
    from embedcache.sharing.pushing import Push
    from embedcache.sharing.shared_copy import begin, require_place

    started = time.perf_counter()
    remote = connect(remote, cache)
    catalogue = Catalogue(remote, _memo(cache, remote))
    tally = Tally()
    fresh = tally.new_copy = not catalogue.exists()
    if fresh:
        require_place(remote)
    gone: dict[bytes, str] = {
        **read_tombstones(cache.path)[0],
        **({} if fresh else catalogue.gone()),
    }
    with disk.plain_errors("read", cache.path), _alone(cache), workers() as pool:
        run = Push(catalogue, cache, tally, gone, pool, purge=purge)
        run.plan(backbones=backbones, specs=specs, with_ids=with_ids)
        if not dry_run:
            if fresh:
                begin(remote)
            run.move(progress)
        run.tombstones(dry_run=dry_run)
        if not (backbones or specs):
            run.refs(with_ids=with_ids, dry_run=dry_run)
        run.purge(dry_run=dry_run)
    return _moved("push", catalogue, cache, tally, dry_run=dry_run, started=started)


def connect(remote: Remote | str, cache: Cache) -> Remote:
    """Open a remote by URL, for this cache."""
    if not isinstance(remote, str):
        return remote
    place = parse_address(remote)
    if isinstance(place, Path):
        place = place.resolve()
        if place == cache.path:
            raise CacheError(f"{remote} is the cache itself: name another place to share it")
        if cache.path in place.parents:
            raise CacheError(f"{remote} lies in the cache: name another place to share it")
    return open_remote(remote, staging=_staging(cache))


@contextmanager
def destination(path: Path, *, keep: bool = True) -> Iterator[Cache]:
    """The cache to pull into, made where there is none.

    One that was made for this and that nothing has come to is gone again after a failure, and
    without `keep` in any case.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    new = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    cache = Cache.open(path, create=True)
    try:
        yield cache
        done = keep
    except BaseException:
        done = False
        raise
    finally:
        if new and not done and _holds_nothing(cache):
            disk.remove_folder(path)
            for folder in missing[1:]:
                folder.rmdir()
            if not missing:
                path.mkdir()


def _holds_nothing(cache: Cache) -> bool:
    """Whether a new cache has gained nothing, and nothing that a later pull would go on with."""
    arrived = ("spaces/*/", "faces/*/", "photos/segments/*/", "refs/*", f"{TOMBSTONES}/*")
    return not any(
        next(cache.path.glob(pattern), None) for pattern in (*arrived, "local/incoming/*")
    )


@contextmanager
def _alone(cache: Cache) -> Iterator[None]:
    """Let one process at a time push this cache: they would stage the same files."""
    if not os.access(cache.path, os.W_OK):
        yield
        return
    fd = os.open(cache.local / "push.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _adopt_tombstones(
    catalogue: Catalogue, cache: Cache, tally: Tally, *, dry_run: bool
) -> Tombstones:
    """Take over what others forgot, before anything else comes."""
    theirs = catalogue.tombstones()
    for name, raw in theirs.items():
        target = cache.path / TOMBSTONES / name
        if not target.exists():
            tally.tombstones += 1
            if not dry_run:
                target.parent.mkdir(exist_ok=True)
                disk.publish(target, raw)
    return {**catalogue.gone(), **read_tombstones(cache.path)[0]}


def _moved(
    direction: Literal["push", "pull"],
    catalogue: Catalogue,
    cache: Cache,
    tally: Tally,
    *,
    dry_run: bool,
    started: float,
) -> Moved:
    return Moved(
        direction=direction,
        remote=catalogue.remote.name,
        cache=str(cache.path),
        dry_run=dry_run,
        segments=tally.segments,
        rows=tally.rows,
        failures=tally.failures,
        bytes=tally.bytes,
        already_there=tally.already_there,
        withheld=tally.withheld,
        still_here=tally.still_here,
        ids=tally.ids,
        tombstones=tally.tombstones,
        purged=tally.purged,
        new_copy=tally.new_copy,
        purged_rows=tally.purged_rows,
        refs=tuple(tally.refs),
        notes=tuple(dict.fromkeys([*catalogue.notes, *tally.notes])),
        problems=tuple(dict.fromkeys([*catalogue.problems, *tally.problems])),
        seconds=time.perf_counter() - started,
    )


def _memo(cache: Cache, remote: Remote) -> Path | None:
    if not os.access(cache.path, os.W_OK):
        return None
    return cache.local / "remotes" / sha256(remote.name.encode()).hexdigest()[:16]


def _staging(cache: Cache) -> str:
    """Eight random digits of this cache, which name what it has in the air on a file system."""
    try:
        path = cache.local / "staging"
        if not path.exists():
            disk.replace(path, os.urandom(4).hex().encode())
        text = path.read_text("ascii")
    except (OSError, ValueError, CacheError):
        text = ""
    return text if len(text) == 8 and text.isalnum() else os.urandom(4).hex()
