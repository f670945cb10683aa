"""Rows on their way from one segment to another: whole, as a copy, or chosen, as a new segment."""

import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.spec import Json
from embedcache.store.manifest import MANIFEST
from embedcache.store.reader import read_rows
from embedcache.store.sealed import MAX_MANIFEST_BYTES, own_digest
from embedcache.store.segment import Segment
from embedcache.store.space import FaceSpace, Space, faces_of

U8 = NDArray[np.uint8]
Store = Space | FaceSpace

BLOCK_ROWS = 1024


def copy_segment(segment: Segment, target: Path) -> None:
    """Copy a checked segment file by file, checking again what was read, and name it last."""
    hidden = target / f".in-{token_hex(8)}"
    hidden.mkdir()
    try:
        for path, (size, digest) in segment.manifest.files.items():
            raw = sha256()
            source = disk.open_inside(segment.folder, path)
            (hidden / path).parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(hidden / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                left = size
                while left and (block := os.read(source, min(left, 4 << 20))):
                    disk.write_all(fd, block)
                    raw.update(block)
                    left -= len(block)
            finally:
                os.close(fd)
                os.close(source)
            if raw.hexdigest() != digest:
                raise Damaged(f"{segment.folder / path} changed while it was copied")
        manifest = disk.read_inside(segment.folder, MANIFEST, limit=MAX_MANIFEST_BYTES)
        if own_digest(manifest) != segment.digest:
            raise Damaged(f"{segment.folder / MANIFEST} changed while it was copied")
        disk.write_new(hidden / MANIFEST, manifest)
        disk.sync_tree(hidden)
        hidden.rename(target / segment.id)
    except BaseException:
        disk.remove_folder(hidden)
        raise
    disk.sync_folder(target)


def rewrite(
    target: Store,
    source: Store,
    chosen: Sequence[tuple[Segment, NDArray[np.int64]]],
    *,
    about: dict[str, Json],
    segment_id: str = "",
) -> int:
    """Write one segment to `target` of some rows of `source`'s segments; returns how many."""
    n_rows = sum(len(rows) for _, rows in chosen)
    name = next((s.manifest.name for s, rows in chosen if len(rows)), "")
    if isinstance(target, Space):
        with target.writer(n_rows=n_rows, name=name, about=about, segment_id=segment_id) as vectors:
            for segment, rows in chosen:
                columns = source.columns_of(segment)
                good = rows[rows < segment.manifest.n_ok]
                for start in range(0, len(good), BLOCK_ROWS):
                    block = good[start : start + BLOCK_ROWS]
                    out = np.empty((len(block), target.dim), dtype="<f4")
                    part = (segment, columns, block, np.arange(len(block)))
                    read_rows([part], out, n_rows=len(block))
                    vectors.add(columns["digest"][block], out)
                _fail_again(segment, rows, vectors.fail)
    else:
        with target.writer(n_rows=n_rows, about=about, segment_id=segment_id) as faces:
            for segment, rows in chosen:
                columns = source.columns_of(segment)
                good = rows[rows < segment.manifest.n_ok]
                faces.add(columns["digest"][good], faces_of(segment, columns).take(good))
                _fail_again(segment, rows, faces.fail)
    return n_rows


def _fail_again(
    segment: Segment, rows: NDArray[np.int64], fail: Callable[[U8, Sequence[str]], None]
) -> None:
    bad = rows[rows >= segment.manifest.n_ok]
    if len(bad):
        reasons = segment.reasons()
        told = [reasons[row - segment.manifest.n_ok] for row in bad.tolist()]
        fail(segment.column("digest")[bad], told)


MAX_ABOUT_VALUES = 20


def joint_about(segments: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """Provenance of several segments: what all agree on stays, the rest becomes lists."""
    values: dict[str, list[Json]] = {}
    for about in segments:
        for key, value in about.items():
            if value not in values.setdefault(key, []) and len(values[key]) < MAX_ABOUT_VALUES:
                values[key].append(value)
    joint: dict[str, Json] = {
        key: found[0] if len(found) == 1 else found for key, found in values.items()
    }
    return joint | {"compacted_segments": len(segments)}
