"""Checks of a manifest that came from elsewhere, and the documents that follow from it."""

from hashlib import sha256

import numpy as np

from embedcache.errors import RemoteError
from embedcache.spec import Spec
from embedcache.store.checksums import CRC_BYTES
from embedcache.store.columns import COLUMNS, ITEM_BYTES, column_path
from embedcache.store.manifest import Manifest
from embedcache.store.segment import Segment
from embedcache.store.shard import shard_name


def check_manifest(manifest: Manifest, *, spec: Spec | None = None) -> None:
    """RemoteError unless a manifest names exactly the files, and their sizes, that follow from it.

    spec: of its space, None where it has none.
    """
    manifest.check_files()
    provenance = [manifest.name, manifest.created, *map(str, manifest.about.values())]
    if not all(text.isprintable() for text in provenance):  # people will print them in terminals
        raise RemoteError("its provenance holds characters that cannot be printed: refused")
    if (cut := manifest.geometry) is not None and spec is not None:
        if cut.stored != spec.stored:
            raise RemoteError(f"its rows are {cut.stored}, not {spec.stored}: refused")
        if cut.dim != spec.dim:
            raise RemoteError(f"its vectors have {cut.dim} floats, not {spec.dim}: refused")
    given = {path: size for path, (size, _) in manifest.files.items()}
    documents = documents_of(manifest)
    expected = {path: len(raw) for path, raw in documents.items()}
    for name, column in COLUMNS[manifest.kind].items():
        shape = manifest.column_shape(name)
        if n_items := int(np.prod(shape, dtype=object)):
            size = n_items * ITEM_BYTES[column.dtype] + CRC_BYTES
            expected[column_path(name, len(shape))] = size
    if cut is not None:
        for shard in range(cut.n_shards(manifest.n_ok)):
            filled = cut.filled(shard, manifest.n_ok)
            expected[f"embedding/{shard_name(shard)}"] = cut.shard_bytes(filled)
    if given != expected:
        raise RemoteError("its files do not match its counts: refused")
    for path, raw in documents.items():
        if manifest.files[path][1] != sha256(raw).hexdigest():
            raise RemoteError(f"its {path} differs from what format 1 prescribes: refused")


def documents_of(manifest: Manifest) -> dict[str, bytes]:
    """The zarr.json files of a segment, which follow from its manifest."""
    bare = Segment("", manifest.kind, None, manifest.digest, manifest.name, b"", manifest)
    return bare.documents()
