"""What crashed writers left: their valid rows become segments, the rest is collected."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, Damaged
from embedcache.store import journal
from embedcache.store.checksums import crc32c
from embedcache.store.disposal import discard, dispose, named_by, set_aside
from embedcache.store.faces import Faces
from embedcache.store.manifest import MANIFEST, MAX_ROWS
from embedcache.store.segment import Segment, cache_of
from embedcache.store.shard import Geometry, Rows, shard_name
from embedcache.store.withdrawal import bring_one_back
from embedcache.store.writer import U8, FaceWriter, SegmentWriter

BLOCK_BYTES = 16 << 20  # rows of a draft that are in memory at a time
MAX_REASON_BYTES = 4 << 20


class _Unusable(Damaged):
    """A draft whose lease or journal does not say where its rows are."""


def salvage(
    segments: Path,
    *,
    reopen: Callable[[Mapping[str, Any], int], SegmentWriter | FaceWriter] | None,
    known: Callable[[U8], NDArray[np.bool_]],
    gone: Callable[[str], bool],
    settle: Callable[[str], None],
) -> int:
    """Turn abandoned drafts under `segments` into segments of their valid rows; returns how many.

    reopen: a new writer, from a draft's lease and its number of rows; None where nobody wants the
        rows, and the drafts only go.
    known: of (n, 32) digests, which need not be saved.
    gone: whether the log names a segment as removed, by its id.
    settle: `SegmentSet.settle`, for a segment whose writer was killed once it had published it.
    Drafts of living writers are left alone, and so is all of a cache that cannot be written. A
    draft whose rows cannot be saved, as its lease or journal is damaged, moves to damaged/.
    """
    saved = 0
    for folder in sorted(segments.iterdir()):
        aside = _ASIDE.fullmatch(folder.name)
        name = aside[1] if aside else folder.name
        journaled = (folder / journal.FOLDER).is_dir()
        if folder.name.startswith(".") and not (aside and journaled):
            collect(folder, cache=Path(cache_of(str(folder))), gone=gone)
        elif not folder.is_symlink() and journaled and not gone(name):
            if not aside and _published(folder, folder, settle):
                continue
            claim = journal.Claim.take(folder)
            if claim is not None:
                try:
                    with disk.plain_errors("salvage", folder):
                        saved += _salvage(claim, segments / name, reopen, known, settle)
                finally:
                    claim.close()
    return saved


def _salvage(
    claim: journal.Claim,
    home: Path,
    reopen: Callable[[Mapping[str, Any], int], SegmentWriter | FaceWriter] | None,
    known: Callable[[U8], NDArray[np.bool_]],
    settle: Callable[[str], None],
) -> int:
    """Publish the rows of one draft, whose own name is `home`, and delete it.

    It is renamed first. Where locks are granted to two, its writer may be alive after all: it can
    publish nothing in a folder that is not there, and what it had published before comes back.
    """
    if _published(claim.folder, home, settle):
        return 0
    aside = home.with_name(f".draft-{home.name}-{disk.mark_of_process()}")
    try:
        claim.folder.rename(aside)
    except FileNotFoundError:
        return 0  # another process was faster
    before, claim.folder = claim.folder, aside
    if _published(aside, home, settle):
        return 0
    try:
        saved = 0 if reopen is None else _publish_rows(claim, before, reopen, known)
    except Damaged as error:
        disk.rename_folder(aside, before)
        if not isinstance(error, _Unusable):
            raise
        set_aside(Path(cache_of(str(home))), before)
        return 0
    if not _published(aside, home, settle):
        discard(aside, cache=Path(cache_of(str(home))), was=home)
    return saved


def _published(folder: Path, home: Path, settle: Callable[[str], None]) -> bool:
    """Whether a draft's folder is a segment already; then it gets its own name and is tidied."""
    if not (folder / MANIFEST).exists():
        return False
    if folder != home and not disk.rename_folder(folder, home):
        return False
    cache = Path(cache_of(str(home)))
    for litter in home.glob(".*"):  # its manifest's temporary name
        collect(litter, cache=cache)
    try:
        settle(home.name)
    except Damaged:
        pass  # `verify` says what is wrong with it
    except CacheError:
        return True  # the next run tries again
    if not (home / journal.FOLDER).exists():
        return True  # it went with its dead rows
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        if journal.has_lease(home):
            discard(home / journal.FOLDER, cache=cache)
        else:  # no writer of ours
            set_aside(cache, home / journal.FOLDER)
    return True


# What embedcache makes under a hidden name, at any place of a cache. Other hidden names are a
# user's, or the file system's, and stay.
_MARK = r"[0-9a-f]{8}-[0-9a-f]{8}-\d{1,10}-\d{1,20}(?:\.claim)?"  # `disk.mark_of_process`
_ASIDE = re.compile(rf"\.draft-(.{{30}})-{_MARK}")
_GONE = re.compile(rf"\.gone-(.{{30}})-{_MARK}")
_LEAVING = re.compile(rf"\.old-{_MARK}")
# Of a new space and of a push the name is digits only: their maker cannot be known.
_STAGED = re.compile(
    rf"\.(?:new-(?:.{{30}}-)?{_MARK}|new-[0-9a-f]{{16}}|(?:in|entry)-{_MARK}|push-.{{30}}-.+|now\.{_MARK})"
)
# Of a file: by its kind, of a memo of a shared copy's objects, of a chunk that a push mends.
_PARTLY = re.compile(
    rf"\.(?:.+\.(?:json|table|npz|groups)|staging|[0-9a-f]{{64}}|\d{{1,9}})\.{_MARK}"
)


def own_litter(name: str) -> bool:
    """Whether a hidden name is one that embedcache gives to work in progress."""
    kinds = (_ASIDE, _GONE, _LEAVING, _STAGED, _PARTLY)
    return any(kind.fullmatch(name) for kind in kinds)


def collect(litter: Path, *, cache: Path, gone: Callable[[str], bool] | None = None) -> bool:
    """Remove a hidden leftover of ours once nobody can be at work on it; returns whether it went.

    cache: that it lies in; what others put into it moves to damaged/ there.
    gone: whether the log names a segment as removed.
    """
    if not own_litter(litter.name):
        return False
    with contextlib.suppress(OSError):
        removed = _GONE.fullmatch(litter.name)
        if removed and not (gone is not None and gone(removed[1])):
            return False
        leaving = removed or _LEAVING.fullmatch(litter.name) or _ASIDE.fullmatch(litter.name)
        if not leaving and not is_abandoned(litter):
            return False
        if litter.is_dir() and not litter.is_symlink():
            return dispose(litter, cache=cache)
        if litter.parent == cache / "refs" and bring_one_back(cache, litter):
            return True
        litter.unlink()
        return True
    return False


def is_abandoned(litter: Path) -> bool:
    """Whether the process that made a leftover is gone: by its lock, its name, or else its age."""
    if (litter / journal.FOLDER / "journal").exists():
        claim = journal.Claim.take(litter)
        if claim is not None:
            claim.close()
        return claim is not None
    gone = disk.maker_is_gone(litter.name)
    if gone is not None:
        return gone
    return disk.now_beside(litter.parent) - litter.lstat().st_mtime >= journal.LEASE_SECONDS


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that is being written, or was left. holder: who is at work on it, "" for nobody."""

    path: Path
    holder: str


def leftovers(folder: Path) -> list[Leftover]:
    """Work in progress of embedcache in a folder, and what processes that died left of theirs."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            drafting = (path / journal.FOLDER).is_dir() and not path.is_symlink()
            if drafting or own_litter(path.name):
                found.append(Leftover(path, _holder(path)))
    return found


def is_left_inside(segment: Segment, own: str) -> bool:
    """Whether a path in a finished segment is what its writer, or a push that mends it, left."""
    path = segment.folder / own
    if path.is_symlink() or not own_litter(path.name):
        return False
    if path.is_dir():
        return "/" not in own and _LEAVING.fullmatch(own) is not None
    return named_by(segment.manifest.files)(own)


def leftovers_inside(segment: Segment) -> list[Leftover]:
    """What is in a finished segment's folder beside it, of its writer or of a push."""
    found = []
    for parent, folders, files in os.walk(segment.folder):
        for name in sorted(one for one in (*folders, *files) if one.startswith(".")):
            path = Path(parent, name)
            if is_left_inside(segment, path.relative_to(segment.folder).as_posix()):
                found.append(Leftover(path, _holder(path)))
    return found


def _holder(path: Path) -> str:
    if (path / journal.FOLDER / "journal").exists():
        return journal.holder(path)
    if (path / journal.FOLDER).is_dir() and (path / MANIFEST).exists():
        return ""  # whoever wrote it is done
    if any(kind.fullmatch(path.name) for kind in (_GONE, _LEAVING, _ASIDE)):
        return "a running process" if disk.maker_is_gone(path.name) is False else ""
    with contextlib.suppress(OSError):
        return "" if is_abandoned(path) else "a running process"
    return ""


def _publish_rows(
    claim: journal.Claim,
    folder: Path,
    reopen: Callable[[Mapping[str, Any], int], SegmentWriter | FaceWriter],
    known: Callable[[U8], NDArray[np.bool_]],
) -> int:
    """Publish the valid rows of a draft; _Unusable where its lease and journal do not fit."""
    frames = list(claim.frames())
    if not frames:
        return 0
    total = sum(int.from_bytes(payload[:4], "little") for _, payload in frames)
    try:
        if total > MAX_ROWS:
            raise ValueError(f"{total:,} rows")
        with reopen(claim.lease, total) as writer:
            _replay(claim, frames, writer, known)
            writer.commit()
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise _Unusable(f"{folder} has an invalid lease or journal: {error}") from None
    return writer.n_written


def _replay(
    claim: journal.Claim,
    frames: Sequence[tuple[bytes, memoryview]],
    writer: SegmentWriter | FaceWriter,
    known: Callable[[U8], NDArray[np.bool_]],
) -> None:
    geometry, n_seen = None, 0
    if isinstance(writer, SegmentWriter):
        cuts = ("rows_per_chunk", "chunks_per_shard")
        cut = {name: int(claim.lease[name]) for name in cuts}
        geometry = Geometry(dim=writer.dim, stored=writer.stored, **cut)
    for kind, payload in frames:
        n = int.from_bytes(payload[:4], "little")
        digests = np.frombuffer(payload, np.uint8, 32 * n, 4).reshape(n, 32)
        rest = payload[4 + 32 * n :]
        wanted = np.flatnonzero(~known(digests))
        if kind == b"F":
            if len(rest) > MAX_REASON_BYTES:
                raise ValueError(f"{len(rest):,} bytes of reasons")
            reasons = json.loads(bytes(rest))
            writer.fail(digests[wanted], [str(reasons[i]) for i in wanted])
        elif kind == b"V" and geometry is not None and isinstance(writer, SegmentWriter):
            crcs = np.frombuffer(rest, "<u4", n)
            step = max(1, BLOCK_BYTES // geometry.row_bytes)
            for start in range(0, n, step):
                part = slice(start, start + step)
                rows, valid = _draft_rows(claim.folder, geometry, n_seen + start, crcs[part])
                keep = wanted[(wanted >= start) & (wanted < start + step)]
                keep = keep[valid[keep - start] & np.isfinite(rows[keep - start]).all(axis=1)]
                writer.add(digests[keep], rows[keep - start])
            n_seen += n
        elif kind == b"A" and isinstance(writer, FaceWriter):
            writer.add(digests[wanted], _faces_from(rest, n).take(wanted))
        else:
            raise ValueError(f"a frame of kind {kind!r}")


def _draft_rows(
    folder: Path, geometry: Geometry, first: int, crcs: NDArray[np.uint32]
) -> tuple[Rows, NDArray[np.bool_]]:
    """Rows of a draft from `first` on, and which of them are as the journal has them."""
    rows = np.zeros((len(crcs), geometry.dim), dtype=geometry.dtype)
    valid = np.zeros(len(crcs), dtype=np.bool_)
    for i in range(len(crcs)):
        shard, within = divmod(first + i, geometry.rows_per_shard)
        chunk, row = divmod(within, geometry.rows_per_chunk)
        offset = chunk * geometry.chunk_bytes + row * geometry.row_bytes
        for name in (shard_name(shard), f"{shard_name(shard)}.partial"):
            try:
                fd = disk.open_inside(folder, f"embedding/{name}")
            except FileNotFoundError:
                continue
            try:
                got = os.preadv(fd, [rows[i].data], offset)
            finally:
                os.close(fd)
            valid[i] = got == geometry.row_bytes and crc32c(rows[i]) == crcs[i]
            break
    return rows, valid


def _faces_from(raw: memoryview, n_photos: int) -> Faces:
    offsets = np.zeros(n_photos + 1, dtype=np.int64)
    np.cumsum(np.frombuffer(raw, "<u4", n_photos), out=offsets[1:])
    n = int(offsets[-1])
    numbers = np.frombuffer(raw, "<f4", n * 15, 4 * n_photos)
    return Faces(
        offsets,
        numbers[: 4 * n].reshape(n, 4),
        numbers[4 * n : 5 * n],
        numbers[5 * n :].reshape(n, 5, 2),
    )
