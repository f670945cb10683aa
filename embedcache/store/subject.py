"""What a space is of, its spec or its detector, where the document that says so is damaged.

The folder of a space is named after the digest of that document. So whatever has this digest is
what was written, wherever it was found.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedcache import disk
from embedcache.errors import CacheError
from embedcache.spec import Json, Spec, foreign, pixels
from embedcache.store.layout import MAX_DOCUMENT_BYTES, attributes_in, face_digest
from embedcache.store.manifest import is_segment_id
from embedcache.store.segment import Segment

SPECS = "specs.json"  # in local/, as backbones/spec_memo.py writes it
MAX_SPECS_BYTES = 16 << 20
# A search in vain takes some seconds for a document of 3 KiB; its time grows with the square.
MAX_SEARCH_BYTES = 3 << 10
_WRITTEN = frozenset(b"\n" + bytes(range(0x20, 0x7F)))  # the bytes of a zarr.json


def proven_subject(folder: Path, *, key: str) -> dict[str, Json] | None:
    """The document of a space whose zarr.json is damaged; None where nothing proves it.

    folder: of the space. key: what the document stands under, "spec" or "detector".
    It is what the damaged file still says, or says but for one wrong byte; for a spec also that of
    imported vectors of a segment's name and size, or one that a run on this machine remembers.
    """
    raw = b""
    with contextlib.suppress(CacheError, OSError):
        raw = disk.read_inside(folder, "zarr.json", limit=MAX_DOCUMENT_BYTES)
    for document in _candidates(folder, raw, key):
        with contextlib.suppress(ValueError, RecursionError):  # no JSON that could be written
            if isinstance(document, dict) and face_digest(document) == folder.name:
                return document
    return None


def _candidates(folder: Path, raw: bytes, key: str) -> Iterator[Any]:
    """What the document may be: the cheapest to try first."""
    yield _said_in(raw, key)
    if key == "spec":
        yield from _imported(folder)
        yield from _remembered(folder.parent.parent / "local")
    if len(raw) <= MAX_SEARCH_BYTES:
        for change in sorted(range(1, 256), key=int.bit_count):  # flipped bits are the likeliest
            for at, byte in enumerate(raw):
                if byte ^ change in _WRITTEN:
                    trial = b"".join((raw[:at], bytes((byte ^ change,)), raw[at + 1 :]))
                    yield _said_in(trial, key)


def _said_in(raw: bytes, key: str) -> Any:
    return (attributes_in(raw) or {}).get(key)


def _imported(folder: Path) -> Iterator[dict[str, Json]]:
    """The specs of vectors that were imported under the names that segments have."""
    for name, dim in {*_names_and_sizes(folder / "segments")}:
        with contextlib.suppress(CacheError):
            yield foreign(name, dim).document()


def _names_and_sizes(segments: Path) -> Iterator[tuple[str, int]]:
    with contextlib.suppress(OSError):
        for path in sorted(segments.iterdir()):
            with contextlib.suppress(CacheError, OSError):
                if is_segment_id(path.name) and not path.is_symlink():
                    segment = Segment.read(str(path), kind="vectors")
                    if (geometry := segment.manifest.geometry) is not None:
                        yield segment.name, geometry.dim


def _remembered(local: Path) -> Iterator[Any]:
    """The specs that runs on this machine have remembered, and those of their pixels."""
    with contextlib.suppress(CacheError, OSError, ValueError, RecursionError):
        found = json.loads(disk.read_inside(local, SPECS, limit=MAX_SPECS_BYTES))
        for entry in found.values() if isinstance(found, dict) else ():
            known = entry.get("spec") if isinstance(entry, dict) else None
            yield known
            with contextlib.suppress(CacheError):
                if (preprocessing := Spec.parse(known).preprocessing) is not None:
                    yield pixels(preprocessing).document()
