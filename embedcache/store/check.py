"""One segment, every byte: sizes, checksums and what the columns must say of each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import Damaged
from embedcache.store import journal
from embedcache.store.checksums import crc_of_rows, hash_file
from embedcache.store.columns import FAILED, OK
from embedcache.store.manifest import MANIFEST
from embedcache.store.photo_ids import read_pairs, scope_key
from embedcache.store.reader import read_rows
from embedcache.store.salvage import is_left_inside
from embedcache.store.segment import Segment, advice
from embedcache.store.space import faces_of


@contextmanager
def naming(segment: Segment) -> Iterator[None]:
    """Whatever is wrong with another cache's segment is Damaged that names it and the next step;
    also that it is gone, which `steadily` looks at again."""
    try:
        yield
    except FileNotFoundError as error:
        if segment.folder.exists():
            raise
        raise Damaged(
            f"{error.filename or segment.folder} is missing", advice=advice(str(segment.folder))
        ) from None
    except Damaged as error:
        folder = str(segment.folder)
        fact = error.fact if folder in error.fact else f"{folder}: {error.fact}"
        raise Damaged(fact, advice=error.advice or advice(folder)) from None


def check_segment(segment: Segment, *, row_crcs: NDArray[np.uint32] | None = None) -> None:
    """Read a whole segment: every file against the manifest, every CRC, every count, every row.

    row_crcs: of every good row as the caller saw it, who has just compared every file with its
        sha256 and every chunk with its CRC, and found all numbers finite. Rows are not read again.
    Raises Damaged for the first thing that is wrong.
    """
    manifest = segment.manifest
    manifest.check_files()
    found = set(_files(segment))
    for path in sorted(found - manifest.files.keys() - {MANIFEST}):
        raise Damaged(f"{path} is not in its manifest")
    for path, (size, digest) in manifest.files.items():
        if path not in found:
            raise Damaged(f"{path} is missing")
        fd = disk.open_inside(segment.folder, path)
        try:
            if os.fstat(fd).st_size != size:
                raise Damaged(f"{path} has {os.fstat(fd).st_size:,} bytes, not {size:,}")
            if row_crcs is None and hash_file(fd)[0] != digest:
                raise Damaged(f"{path} is not what was written (its sha256 differs)")
        finally:
            os.close(fd)
    columns = segment.columns()
    if "status" in columns:
        expected = np.repeat(
            np.array([OK, FAILED], np.uint8), [manifest.n_ok, manifest.n_rows - manifest.n_ok]
        )
        if not np.array_equal(columns["status"], expected):
            raise Damaged("its statuses do not fit its counts")
        segment.reasons()
    if manifest.kind == "photos":
        read_pairs(segment)
        if manifest.space != scope_key(manifest.name):
            raise Damaged("it does not belong to its scope")
    elif manifest.kind == "faces":
        faces_of(segment, columns)
    elif row_crcs is None:
        _check_rows(segment, columns["row_crc"])
    elif not np.array_equal(row_crcs, columns["row_crc"]):
        raise Damaged("a row of it fails its own CRC32C")


def _check_rows(segment: Segment, row_crcs: NDArray[np.uint32]) -> None:
    """Every chunk of `embedding` under its CRC, every row under its own, and all finite."""
    geometry = segment.manifest.geometry
    assert geometry is not None
    columns = {"row_crc": row_crcs}
    expected = {
        f"embedding/c/{shard}/0" for shard in range(geometry.n_shards(segment.manifest.n_ok))
    }
    if expected != {path for path in segment.manifest.files if path.startswith("embedding/c/")}:
        raise Damaged("its shard files do not fit its rows")
    step = geometry.rows_per_chunk
    block = geometry.rows(step)
    for start in range(0, segment.manifest.n_ok, step):
        rows = np.arange(start, min(start + step, segment.manifest.n_ok))
        part = (segment, columns, rows, rows - start)
        read_rows([part], block, n_rows=len(rows))
        wrong = np.flatnonzero(crc_of_rows(block[: len(rows)]) != row_crcs[rows])
        if len(wrong):
            raise Damaged(f"row {rows[wrong[0]]} fails its own CRC32C")


def _files(segment: Segment) -> Iterator[str]:
    """Files of a segment, relative; Damaged for a link. What its writer left is not counted."""
    waiting, folder = [""], segment.folder
    while waiting:
        here = waiting.pop()
        with os.scandir(folder / here) as entries:
            for entry in entries:
                path = here + entry.name
                if is_left_inside(segment, path):
                    continue  # its writer was killed at the very end
                if entry.is_symlink():  # asked first: one that leads to itself has no kind
                    raise Damaged(f"{folder / path} is a link: refused")
                if not entry.is_dir():
                    yield path
                elif entry.name != journal.FOLDER:
                    waiting.append(f"{path}/")
