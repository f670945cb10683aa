"""Segments of another cache on their way into this one: whole, or without some rows."""

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.spec import Json
from embedcache.store import journal
from embedcache.store.manifest import MANIFEST
from embedcache.store.sealed import MAX_MANIFEST_BYTES, own_digest
from embedcache.store.segment import Segment
from embedcache.store.space import FaceSpace, Space

Store = Space | FaceSpace

MAX_ABOUT_VALUES = 20


def take(target: Store, segment: Segment, rows: NDArray[np.int64]) -> None:
    """Publish some rows of another cache's segment in `target`: all of them, under the same id.

    segment: checked. A segment whose id was removed here comes under a new one.
    """
    if len(rows) == segment.manifest.n_rows and copy_segment(segment, target):
        return
    target.rewrite([(segment, rows)], about=dict(segment.manifest.about))


def copy_segment(segment: Segment, target: Store) -> bool:
    """Copy a checked segment file by file, checking again what was read; False as `admit` says."""
    hidden = target.segments_folder / f".in-{disk.mark_of_process()}"
    hidden.mkdir()
    staged = journal.Journal(hidden, {"kind": segment.kind, "copies": segment.id})
    try:
        _copy_files(segment, hidden)
        return target.admit(hidden, segment.id, digest=segment.digest)
    finally:
        disk.remove_folder(hidden)
        staged.close()


def _copy_files(segment: Segment, hidden: Path) -> None:
    for path, (size, digest) in segment.manifest.files.items():
        raw = sha256()
        source = disk.open_inside(segment.folder, path)
        disk.make_folder((hidden / path).parent, below=hidden, durable=False)
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
    disk.sync_tree(hidden, but=journal.FOLDER)  # closing the journal would unlock it


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
