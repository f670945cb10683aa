"""The `zarr.json` documents that a cache holds, byte for byte as they are written."""

import json
from functools import lru_cache

from embedcache.spec import Json
from embedcache.store.shard import Geometry


@lru_cache(maxsize=4096)  # the segments of a cache have few shapes between them
def array_document(
    shape: tuple[int, ...], dtype: str, *, geometry: Geometry | None = None
) -> bytes:
    """The zarr.json of an array: one chunk that holds it whole, or `geometry`'s shards.

    dtype: Zarr's name, such as "float32" or "uint8".
    """
    endian: Json = {"name": "bytes"}
    if dtype != "uint8":
        endian = {"name": "bytes", "configuration": {"endian": "little"}}
    checked: list[Json] = [endian, {"name": "crc32c"}]
    if geometry is None:
        grid = [max(1, shape[0]), *shape[1:]]
        codecs = checked
    else:
        grid = [geometry.rows_per_shard, geometry.dim]
        numbers: Json = {"name": "bytes", "configuration": {"endian": "little"}}
        configuration: dict[str, Json] = {
            "chunk_shape": [geometry.rows_per_chunk, geometry.dim],
            "codecs": checked,
            "index_codecs": [numbers, {"name": "crc32c"}],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
    document: dict[str, Json] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list[Json](grid)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if dtype.startswith("float") else 0,
        "codecs": codecs,
        "attributes": {},
    }
    return encode_document(document)


def group_document(attributes: dict[str, Json]) -> dict[str, Json]:
    """The zarr.json of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def encode_document(document: dict[str, Json]) -> bytes:
    """A zarr.json's bytes: the same document always gives the same bytes."""
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode("ascii")
