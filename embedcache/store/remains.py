"""What is left of a damaged segment: the rows that its manifest and its checksums still prove.

A file that is damaged is replaced, in memory, by what it must have been, where the sha256 in the
manifest proves that. Of what cannot be proven the rows are named that depend on it.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.store.checksums import CRC_BYTES, crc32c, crc_of_rows, one_wrong_byte
from embedcache.store.columns import COLUMNS, FAILED, ITEM_BYTES, OK, Kind, column_path
from embedcache.store.manifest import MANIFEST, MAX_ROWS, own_name
from embedcache.store.sealed import MAX_MANIFEST_BYTES, mended, own_digest
from embedcache.store.segment import Segment

Bool = NDArray[np.bool_]
REASONS = {"reason_offset", "reason_text"}
FACES = {"face_offset", "box", "probability", "landmark"}
IDS = {"id_offset", "id_text"}
MAX_MENDED_BYTES = 40 << 20  # the digests of the largest segment; a few copies are in memory


@dataclass(slots=True)
class Remains(Segment):
    """A damaged segment as a `Segment` of what is left; its zarr.json documents are not asked.

    given: columns in place of damaged files. lost: those whose values nothing proves, which are
    blank in `given`. refuted: good rows, (n_ok,), whose chunk fails the CRC that the manifest has
    of it, where `row_crc` is damaged too: nothing proves them. raw: the manifest, as written.
    """

    given: dict[str, NDArray[Any]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    refuted: Bool | None = None
    raw: bytes = field(default=b"", repr=False)

    def column(self, name: str) -> NDArray[Any]:
        return self.given[name] if name in self.given else Segment.column(self, name)

    def unproven(self) -> Bool:
        """Which rows depend on a column that is lost, (n,)."""
        n_rows, n_ok = self.manifest.n_rows, self.manifest.n_ok
        rows = np.zeros(n_rows, dtype=np.bool_)
        rows[:n_ok] = bool(self.lost & FACES) if self.refuted is None else self.refuted
        rows[n_ok:] = bool(self.lost & REASONS)
        rows[:] |= bool(self.lost & {"digest", *IDS})
        return rows

    def why(self) -> str:
        """What is lost with the columns that are, for people; "" where none is."""
        if not self.lost:
            return ""
        names = " and ".join(f"`{name}`" for name in COLUMNS[self.kind] if name in self.lost)
        if self.lost & IDS:
            return f"without {names} nothing else says which ids it named"
        if "digest" in self.lost:
            return f"without {names} nothing else says which photos its rows belong to"
        parts = [(FACES, "the faces"), (REASONS, "the failures")]
        rows = " and ".join(rows for some, rows in parts if self.lost & some)
        return f"without {names} nothing proves {rows}"


def remains_of(path: Path, *, kind: Kind, space: str | None) -> Remains | None:
    """What is left of the segment in a folder; None where not even its manifest can be known."""
    try:
        raw = disk.read_inside(path, MANIFEST, limit=MAX_MANIFEST_BYTES)
        raw = raw if own_digest(raw) is not None else mended(raw) or b""
        digest = own_digest(raw)
        if digest is None:
            return None
        found = Remains(str(path), kind, space, digest, own_name(raw), raw, raw=raw)
        found.manifest.check_files()
    except (CacheError, FileNotFoundError):
        return None
    found._checked = True  # the manifest implies all that these documents say
    for name in sorted(COLUMNS[kind], key="row_crc".__eq__):  # last: it is made from rows
        with disk.plain_errors("read", path):
            _complete(found, name)
    for together in (REASONS, FACES):  # of which one means nothing without the others
        for name in together if found.lost & together else ():
            shape, dtype = found.manifest.column_shape(name), COLUMNS[kind][name].dtype
            blank = shape if name.endswith("_offset") else (0, *shape[1:])
            found.given[name] = np.zeros(blank, np.dtype(dtype).newbyteorder("<"))
    return found


def contents_named(path: Path) -> list[bytes]:
    """The contents that the digests of a segment name, if these pass their own CRC; else none.

    Only to be shown: without the manifest nothing says that they are this segment's.
    """
    name = f"{path.name}/{column_path('digest', 2)}"
    with contextlib.suppress(CacheError, FileNotFoundError):
        raw = disk.read_inside(path.parent, name, limit=32 * MAX_ROWS + CRC_BYTES)
        data = raw[:-CRC_BYTES]
        if len(data) % 32 == 0 and crc32c(data) == int.from_bytes(raw[-CRC_BYTES:], "little"):
            return [data[i : i + 32] for i in range(0, len(data), 32)]
    return []


def _complete(found: Remains, name: str) -> None:
    """Give a column that cannot be read the values that are proven, or blank ones."""
    try:
        Segment.column(found, name)
        return
    except (CacheError, FileNotFoundError):
        pass
    shape, dtype = found.manifest.column_shape(name), COLUMNS[found.kind][name].dtype
    little = np.dtype(dtype).newbyteorder("<")
    path = column_path(name, len(shape))
    entry = found.manifest.files.get(path)
    size = int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[dtype] + CRC_BYTES
    raw = b""
    if size <= MAX_MENDED_BYTES:
        with contextlib.suppress(CacheError, FileNotFoundError):
            raw = disk.read_inside(found.folder, path, limit=size)
    for data in _candidates(found, name, raw, size):
        whole = data + crc32c(data).to_bytes(CRC_BYTES, "little")
        if entry == (size, sha256(whole).hexdigest()):
            found.given[name] = np.frombuffer(data, little).reshape(shape)
            return
    if name == "row_crc":  # an entry of a damaged file proves no row; a whole chunk proves its own
        found.given[name], found.refuted = _row_crcs(found, raw)
    else:
        found.given[name] = np.zeros(shape, little)
        found.lost.add(name)


def _candidates(found: Remains, name: str, raw: bytes, size: int) -> Iterator[bytes]:
    """What a damaged column may have been, its CRC left out: the likeliest first."""
    data = raw[: size - CRC_BYTES]
    if name == "status":
        n_ok, n_rows = found.manifest.n_ok, found.manifest.n_rows
        yield bytes([OK] * n_ok + [FAILED] * (n_rows - n_ok))
    elif name == "row_crc":
        yield _row_crcs(found, raw)[0].tobytes()
    elif name == "reason_offset" and found.manifest.n_ok == found.manifest.n_rows:
        yield bytes(8)
    if len(data) < size - CRC_BYTES:
        return
    yield data
    if len(raw) == size:
        wrong = np.frombuffer(data, np.uint8)
        for position, change in one_wrong_byte(wrong, int.from_bytes(raw[-CRC_BYTES:], "little")):
            right = bytearray(data)
            right[position] ^= change
            yield bytes(right)


def _row_crcs(found: Remains, raw: bytes) -> tuple[NDArray[np.uint32], Bool]:
    """The CRC of each good row, and which rows are in no whole chunk, (n_ok,) each.

    A chunk is whole if it passes the CRC that the manifest has of it. The CRCs of its rows follow
    from them; those of other rows are as `raw` still has them.
    """
    manifest, geometry = found.manifest, found.manifest.geometry
    assert geometry is not None
    crcs, refuted = np.zeros(manifest.n_ok, "<u4"), np.ones(manifest.n_ok, np.bool_)
    stored = np.frombuffer(raw[: 4 * min(manifest.n_ok, len(raw) // 4)], "<u4")
    crcs[: len(stored)] = stored
    of_chunks = np.frombuffer(manifest.chunk_crcs, "<u4").tolist()
    block = geometry.rows(geometry.rows_per_chunk)
    for chunk, crc in enumerate(of_chunks):
        shard, within = divmod(chunk, geometry.chunks_per_shard)
        with contextlib.suppress(CacheError, FileNotFoundError):
            fd = disk.open_inside(found.folder, f"embedding/c/{shard}/0")
            try:
                n_read = os.preadv(fd, [block.data], within * geometry.chunk_bytes)
            finally:
                os.close(fd)
            if n_read == block.nbytes and crc32c(block) == crc:
                first = chunk * geometry.rows_per_chunk
                n_rows = min(geometry.rows_per_chunk, manifest.n_ok - first)
                crcs[first : first + n_rows] = crc_of_rows(block[:n_rows])
                refuted[first : first + n_rows] = False
    return crcs, refuted
