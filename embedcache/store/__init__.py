"""The cache on disk: spaces of immutable, checksummed segments, as docs/format.md states it.

This room owns every byte below a cache folder and the rules for reading and publishing it. It
imports the ground floor, and nothing that knows photos, networks or remotes.
"""

from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, FAILED, OK
from embedcache.store.faces import Faces
from embedcache.store.photo_ids import PhotoTable
from embedcache.store.rows import Counts
from embedcache.store.space import FaceSpace, Space
from embedcache.store.writer import FaceWriter, SegmentWriter

__all__ = [
    "ABSENT",
    "FAILED",
    "OK",
    "Cache",
    "Counts",
    "FaceSpace",
    "FaceWriter",
    "Faces",
    "PhotoTable",
    "SegmentWriter",
    "Space",
    "cache",
    "check",
    "checksums",
    "clearing",
    "columns",
    "disposal",
    "draft",
    "faces",
    "history",
    "index",
    "journal",
    "layout",
    "log",
    "manifest",
    "memory",
    "naming",
    "photo_ids",
    "reader",
    "refs",
    "remains",
    "removal",
    "rows",
    "salvage",
    "sealed",
    "segment",
    "segment_set",
    "shard",
    "side_by_side",
    "space",
    "subject",
    "tombstones",
    "union",
    "withdrawal",
    "writer",
    "zarr_json",
    "zarr_view",
]
