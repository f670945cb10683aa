"""A space as zarr sees it, for xarray, dask, napari and whoever else takes zarr arrays.

for part in cache.zarr("inception_v3.tf_in1k"):
    part.embedding[:10]          # a real, read-only zarr.Array
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedcache.store.space import Space

if TYPE_CHECKING:
    import zarr


@dataclass(frozen=True, slots=True)
class ZarrSegment:
    """One segment of a space.

    segment: its id. group: all its arrays, read-only. embedding: float32 (n, dim); digest: uint8
    (n, 32), which content each row belongs to. live: (n,), which rows hold a vector that counts:
    not those of failures (NaN), of forgotten photos, and of photos whose row lies elsewhere.
    """

    segment: str
    group: "zarr.Group"
    embedding: "zarr.Array"
    digest: "zarr.Array"
    live: NDArray[np.bool_]


def zarr_segments(space: Space) -> list[ZarrSegment]:
    """The segments of a space as zarr arrays, lowest id first.

    They are those of this moment: a segment that is compacted or rewritten later is deleted, and
    its arrays then fail, or read NaN where zarr takes a missing chunk for an empty one. Pin what
    you work on with a ref and open the cache at that ref to be safe. Checks that vectors are as
    written are zarr's own (CRC32C of chunks); `cache.vectors` checks more.
    """
    import zarr

    segments, table = space.row_table()
    found = []
    for number, segment in enumerate(segments):
        group = zarr.open_group(segment.folder, mode="r")
        live = np.zeros(segment.manifest.n_rows, dtype=np.bool_)
        live[table.row[(table.segment == number) & table.ok]] = True
        found.append(ZarrSegment(segment.id, group, group["embedding"], group["digest"], live))
    return found
