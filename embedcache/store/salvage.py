"""What crashed writers left: their valid rows become segments, the rest is collected."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.store import journal
from embedcache.store.checksums import crc32c
from embedcache.store.faces import Faces
from embedcache.store.manifest import MANIFEST, MAX_ROWS
from embedcache.store.shard import Geometry, shard_name
from embedcache.store.writer import F32, U8, FaceWriter, SegmentWriter

BLOCK_BYTES = 16 << 20  # rows of a draft that are in memory at a time
MAX_REASON_BYTES = 4 << 20


def salvage(
    segments: Path,
    *,
    reopen: Callable[[Mapping[str, Any], int], SegmentWriter | FaceWriter],
    known: Callable[[U8, str], NDArray[np.bool_]],
) -> int:
    """Turn abandoned drafts under `segments` into segments of their valid rows; returns how many.

    reopen: a new writer, from a draft's lease and its number of rows.
    known: of (n, 32) digests in the draft of so named a segment, which need not be saved.
    Drafts of living writers are left alone, and so is all of a cache that cannot be written.
    """
    saved = 0
    for folder in sorted(segments.iterdir()):
        if folder.name.startswith("."):
            collect(folder)
        elif not folder.is_symlink() and (folder / journal.FOLDER).is_dir():
            claim = journal.Claim.take(folder)
            if claim is None:
                continue
            try:
                if (folder / MANIFEST).exists():  # it died between publishing and tidying up
                    disk.remove_folder(folder / journal.FOLDER)
                    continue
                with disk.plain_errors("salvage", folder):
                    saved += _salvage_one(claim, reopen, known)
                    disk.remove_folder(folder)
            finally:
                claim.close()
    return saved


def collect(litter: Path) -> None:
    """Remove a hidden leftover once nobody can be at work on it."""
    with contextlib.suppress(OSError):
        if litter.name == "zarr.json" or time.time() - litter.lstat().st_mtime < (
            journal.LEASE_SECONDS
        ):
            return
        if litter.is_dir() and not litter.is_symlink():
            disk.remove_folder(litter)
        else:
            litter.unlink()


def _salvage_one(
    claim: journal.Claim,
    reopen: Callable[[Mapping[str, Any], int], SegmentWriter | FaceWriter],
    known: Callable[[U8, str], NDArray[np.bool_]],
) -> int:
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
        raise Damaged(
            f"{claim.folder}, which was left unfinished, has a lease or journal that does not fit: "
            f"{error}. Remove the folder to go on without its rows"
        ) from None
    return writer.n_written


def _replay(
    claim: journal.Claim,
    frames: Sequence[tuple[bytes, memoryview]],
    writer: SegmentWriter | FaceWriter,
    known: Callable[[U8, str], NDArray[np.bool_]],
) -> None:
    geometry, n_seen = None, 0
    if isinstance(writer, SegmentWriter):
        cuts = ("rows_per_chunk", "chunks_per_shard")
        cut = {name: int(claim.lease[name]) for name in cuts}
        geometry = Geometry(dim=writer.dim, **cut)
    for kind, payload in frames:
        n = int.from_bytes(payload[:4], "little")
        digests = np.frombuffer(payload, np.uint8, 32 * n, 4).reshape(n, 32)
        rest = payload[4 + 32 * n :]
        wanted = np.flatnonzero(~known(digests, claim.folder.name))
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
) -> tuple[F32, NDArray[np.bool_]]:
    """Rows of a draft from `first` on, and which of them are as the journal has them."""
    rows = np.zeros((len(crcs), geometry.dim), dtype="<f4")
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
