"""Caches with kept pixels, for tests."""

from pathlib import Path

from embedcache.store.cache import Cache
from embedcache.store.space import Space
from tests import stand_in

SIZE = stand_in.SIZE
ROW_BYTES = 3 * SIZE * SIZE


def opened(tmp_path: Path, name: str = "c") -> Cache:
    return Cache.open(tmp_path / name, create=True)


def kept_in(cache: Cache) -> Space:
    [space] = [one for one in cache.spaces() if one.spec.kind == "pixels"]
    return space


def shard_of(space: Space) -> Path:
    [segment] = space.segments()
    return segment.folder / "embedding" / "c" / "0" / "0"


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)
