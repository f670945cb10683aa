"""The folders of a cache and their Zarr group documents: what must be there, and what may not."""

import contextlib
import json
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from embedcache import disk
from embedcache.errors import CacheError, Damaged, NotACache
from embedcache.spec import Json, canonical_json
from embedcache.store.columns import Kind
from embedcache.store.sealed import FORMAT
from embedcache.store.zarr_json import encode_document, group_document

PARTS = ("spaces", "faces", "photos")
APART = "face-spaces"  # only shared copies have it: spaces whose storage rights may differ
FOLDERS = {*PARTS, APART, "refs", "forgotten", "remembered", "removed", "local", "damaged"}
GROUPS = (*PARTS, "photos/segments")
MAX_DOCUMENT_BYTES = 1 << 20


def face_digest(detector: dict[str, Json]) -> str:
    """The key of a detector's faces: sha256 of its canonical document."""
    return sha256(canonical_json(detector)).hexdigest()


# The root document says which program may write here. A cache of the older format is read and added
# to as it is; before the first removal or tombstone it becomes one of the newer format, which a
# program that knows no log of removals refuses.
OLD_FORMAT = FORMAT
CACHE_FORMAT = 2


def root_document(cache_format: int = CACHE_FORMAT) -> dict[str, Json]:
    """The zarr.json of a cache's own folder."""
    return group_document({"embedcache": {"format": cache_format}})


def check_root(cache: Path) -> int:
    """The format of the cache in a folder; NotACache, or Damaged, where it is not one of ours."""
    try:
        raw = disk.read_inside(cache, "zarr.json", limit=MAX_DOCUMENT_BYTES)
    except FileNotFoundError:
        raw = b""
    if raw == encode_document(root_document(OLD_FORMAT)):
        return OLD_FORMAT
    check_group(cache, root_document())
    return CACHE_FORMAT


def bring_over(cache: Path) -> None:
    """Make a cache of the older format one of the newer, durably, before anything is taken away."""
    if check_root(cache) == OLD_FORMAT:
        disk.replace(cache / "zarr.json", encode_document(root_document()))


def not_a_cache(path: Path) -> str:
    if not path.exists():
        return f"there is no cache at {path}. 'embedcache extract' makes one"
    if not path.is_dir():
        return f"{path} is a file; a cache is a folder"
    if _has_parts(path):
        return (
            f"{path / 'zarr.json'} is missing: the cache is damaged. 'embedcache verify --repair "
            f"{path}' writes it again"
        )
    return f"{path} is a folder, but not an embedcache cache (it has no zarr.json)"


def _has_parts(path: Path) -> bool:
    """Whether a folder has all that a cache begins with, but for its own document."""
    return all((path / part / "zarr.json").exists() for part in PARTS)


def create_root(path: Path) -> None:
    """Lay out an empty cache, durably; another process may be doing the same."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise NotACache(not_a_cache(place))
    disk.make_folder(path)
    known = {*PARTS, APART, "zarr.json"}
    names = sorted(entry.name for entry in path.iterdir() if entry.name not in known)
    # Another process may be publishing the root's document just now, or have died at it.
    if _has_parts(path) and {*names} & {*FOLDERS}:
        raise NotACache(not_a_cache(path))
    if strangers := [name for name in names if not name.startswith(".zarr.json.")]:
        raise NotACache(
            f"{path} is a folder, but neither empty nor a cache (it holds {strangers[0]!r}). Name "
            "a new folder for the cache"
        )
    empty = encode_document(group_document({}))
    for part in GROUPS:
        disk.make_folder(path / part, below=path)
        with contextlib.suppress(FileExistsError):
            disk.publish(path / part / "zarr.json", empty)
    disk.sync_folder(path)  # also what another process has made, and not synced yet
    with contextlib.suppress(FileExistsError):
        disk.publish(path / "zarr.json", encode_document(root_document()))
    disk.sync_folder(path.resolve().parent)


class LaterFormat(NotACache):
    """A cache of a format that this version does not know: it must change nothing in it."""


def refuse_links(cache: Path) -> None:
    """Damaged where a link stands in a cache's own folder, or in local/: it may lead anywhere.

    Or a file in the place of one of its folders.
    """
    for folder in (cache, cache / "local"):
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise Damaged(f"{entry.path} is a link: refused. Move it out of the cache")
                if folder == cache and entry.name in FOLDERS and not entry.is_dir():
                    raise Damaged(f"{entry.path} is not a folder. Move it out of the cache")


def check_group(folder: Path, document: dict[str, Json]) -> None:
    """Damaged, or NotACache, unless a group's zarr.json is `document`."""
    if folder.is_symlink():
        raise Damaged(f"{folder} is a link: refused")
    try:
        raw = disk.read_inside(folder, "zarr.json", limit=MAX_DOCUMENT_BYTES)
    except FileNotFoundError:
        raise Damaged(f"{folder / 'zarr.json'} is missing: the cache is damaged") from None
    if raw == encode_document(document):
        return
    ours = attributes_in(raw)
    if ours is not None and type(ours.get("format")) is int and ours["format"] > CACHE_FORMAT:
        raise LaterFormat(
            f"{folder} is a cache of format {ours['format']}; this version reads formats "
            f"{OLD_FORMAT} and {CACHE_FORMAT}. Update embedcache"
        )
    if document == root_document() and ours is None:
        raise NotACache(f"{folder} is a Zarr store, but not an embedcache cache")
    raise Damaged(f"{folder / 'zarr.json'} was changed, or was not written by embedcache")


def read_attributes(folder: Path) -> dict[str, Any]:
    """What a space's zarr.json says, checked to be exactly as it was written, and its segments'."""
    check_group(folder / "segments", group_document({}))
    return own_attributes(folder)


@contextlib.contextmanager
def describing(folder: Path, *, cache: Path) -> Iterator[None]:
    """Name the document and the next step, where what describes a space was changed."""
    try:
        yield
    except NotACache:
        raise
    except CacheError as error:
        found = error.fact
        if str(folder) not in found:
            found = f"{folder / 'zarr.json'} was changed: {found}"
        advice = error.advice or f"Run 'embedcache verify --repair {cache}'"
        raise Damaged(found, advice=advice) from None


def cache_around(path: Path) -> Path | None:
    """The cache that a path lies in, or is; None where it lies in none."""
    for folder in (path, *path.resolve().parents):
        with contextlib.suppress(NotACache, Damaged, OSError):
            check_root(folder)
            return folder
    return None


def own_attributes(folder: Path) -> dict[str, Any]:
    """What a space's zarr.json says, checked to be exactly as it was written."""
    if folder.is_symlink():
        raise Damaged(f"{folder} is a link: refused")
    try:
        raw = disk.read_inside(folder, "zarr.json", limit=MAX_DOCUMENT_BYTES)
    except FileNotFoundError:
        raise Damaged(f"{folder / 'zarr.json'} is missing: the cache is damaged") from None
    ours = attributes_in(raw)
    if ours is None or raw != encode_document(group_document({"embedcache": ours})):
        raise Damaged(f"{folder / 'zarr.json'} was changed, or was not written by embedcache")
    return ours


def attributes_in(raw: bytes) -> dict[str, Any] | None:
    """What embedcache wrote into a group's zarr.json, unchecked; None where nothing can be read."""
    try:
        ours = json.loads(raw)["attributes"]["embedcache"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return ours if isinstance(ours, dict) else None


KINDS: dict[str, Kind] = {
    "spaces": "vectors",
    APART: "vectors",
    "faces": "faces",
    "photos": "photos",
}
