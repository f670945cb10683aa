"""Caches that ask for more memory than there is: every command on them stays under 300 MB."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from embedcache import disk
from embedcache.spec import Json, foreign
from embedcache.store.cache import Cache
from embedcache.store.checksums import crc32c
from embedcache.store.journal import _FRAME, _MAGIC
from embedcache.store.sealed import seal
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from tests.store.test_hostile import huge, put, reseal
from tests.stores import fill, photos

ROOT = Path(__file__).parents[2]
SPEC = foreign("net", 8)
LIMIT = 300_000_000
MANY = "[" + "[]," * 5_000_000 + "1]"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's own figures"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """Vectors, a failure, ids, a ref and a tombstone."""
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)
    cache = Cache.open(tmp_path / "a", create=True)
    space = cache.space(SPEC, create=True)
    fill(space, photos(*range(6)))
    with space.writer(n_rows=1, name="net", about={}) as writer:
        writer.fail(photos(7), ["no face"])
    cache.record_photos("folder", ["a", "b"], photos(0, 99))
    forget(cache, ["b"])
    write_ref(cache, "r")
    return cache


def segments(cache: Cache) -> list[Path]:
    return [segment.folder for segment in cache.space(SPEC).segments()]


def photo_segment(cache: Cache) -> Path:
    return cache.photo_segments()[0].folder


def sparse(path: Path, size: int = 1 << 36) -> None:
    """A file of so many bytes that costs its author nothing."""
    os.truncate(path, size)


def with_self(text: str) -> bytes:
    """JSON text with a place for its own digest, filled in; keys need not be sorted."""
    blank = text.replace("SELF", "0" * 64)
    return text.replace("SELF", sha256(blank.encode()).hexdigest()).encode()


def zeros(folder: Path, path: str, column: str, n: int) -> None:
    """A column of n zero bytes with every checksum right."""
    raw = bytes(n)
    put(folder, path, raw + struct.pack("<I", crc32c(raw)))
    reseal(folder, huge_column(column, n))


def huge_column(column: str, n: int) -> Callable[[dict[str, Json]], None]:
    def edit(document: dict[str, Json]) -> None:
        columns = document["columns"]
        assert isinstance(columns, dict)
        columns[column] = n

    return edit


def journal_of_frames(cache: Cache) -> None:
    """An abandoned draft whose journal names 7 million photos."""
    space = cache.space(SPEC)
    writer = space.writer(n_rows=3, name="net", about={})
    writer.add(photos(9), photos(9)[:, :8].astype(np.float32))
    writer.abandon()
    (journal,) = space.segments_folder.glob("*/writing/journal")
    n = 1_800_000
    body = b"V" + n.to_bytes(4, "little") + bytes(36 * n)
    frame = _FRAME.pack(_MAGIC, len(body), crc32c(body)) + body
    with journal.open("wb") as file:
        for _ in range(4):
            file.write(frame)


def journal_of_lists(cache: Cache) -> None:
    """An abandoned draft whose reasons are 5 million empty lists."""
    space = cache.space(SPEC)
    writer = space.writer(n_rows=3, name="net", about={})
    writer.fail(photos(9), ["why"])
    writer.abandon()
    (journal,) = space.segments_folder.glob("*/writing/journal")
    body = b"F" + (1).to_bytes(4, "little") + bytes(32) + MANY.encode()
    journal.write_bytes(_FRAME.pack(_MAGIC, len(body), crc32c(body)) + body)


def tombstone(cache: Cache) -> Path:
    return next((cache.path / "forgotten").iterdir())


def replace(path: Path, text: str) -> None:
    path.write_bytes(with_self(text))


ROOTS: dict[str, Json] = {"embedcache": {"format": 1, "x": ["y"]}}
CASES: dict[str, Callable[[Cache], object]] = {
    "digest": lambda c: sparse(segments(c)[0] / "digest/c/0/0"),
    "row_crc": lambda c: sparse(segments(c)[0] / "row_crc/c/0"),
    "shard": lambda c: sparse(segments(c)[0] / "embedding/c/0/0"),
    "manifest": lambda c: sparse(segments(c)[0] / "manifest.json"),
    "document": lambda c: sparse(segments(c)[0] / "digest/zarr.json"),
    "root": lambda c: sparse(c.path / "zarr.json"),
    "space": lambda c: sparse(c.space(SPEC).folder / "zarr.json"),
    "ref": lambda c: sparse(c.path / "refs/r.json"),
    "tombstone": lambda c: sparse(tombstone(c)),
    "root of lists": lambda c: (c.path / "zarr.json").write_text(f'{{"attributes":{MANY}}}'),
    "a million entries": lambda c: replace(
        segments(c)[0] / "manifest.json", json.dumps({"x": list(range(10**6)), "self": "SELF"})
    ),
    "manifest of lists": lambda c: replace(
        segments(c)[0] / "manifest.json", f'{{"a":{MANY[: 3 * 300_000]}1],"self":"SELF"}}'
    ),
    "ref of lists": lambda c: replace(c.path / "refs/r.json", f'{{"a":{MANY},"self":"SELF"}}'),
    "tombstone of lists": lambda c: replace(tombstone(c), f'{{"a":{MANY},"self":"SELF"}}'),
    "tombstone of words": lambda c: tombstone(c).write_bytes(
        seal({"format": 1, "kind": "forgotten", "contents": ["ab"] * 390_000})
    ),
    "reasons": lambda c: zeros(segments(c)[1], "reason_text/c/0", "reason_text", 180 << 20),
    "ids": lambda c: zeros(photo_segment(c), "id_text/c/0", "id_text", 180 << 20),
    "journal": journal_of_frames,
    "journal of lists": journal_of_lists,
    "columns": lambda c: reseal(segments(c)[0], huge(reason_text=200 << 20)),
}

SCRIPT = """
import sys
from pathlib import Path
from embedcache.errors import EmbedcacheError
from embedcache.store import Cache
from embedcache.upkeep.inventory import summarise
from embedcache.store.history import History
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.merging import merge
from embedcache.upkeep.verify import verify
from tests.stores import photos

path, told = Path(sys.argv[1]), []
for step in (
    lambda: Cache.open(path).find("net").read(photos(*range(6))),
    lambda: Cache.open(path, ref="r").find("net").reasons(photos(7)),
    lambda: Cache.open(path).digests_of(["a"]),
    lambda: summarise(Cache.open(path), photos=True),
    lambda: History(path).dead(),
    lambda: verify(path),
    lambda: merge(Cache.open(path.with_name("target"), create=True), [Cache.open(path)]),
    lambda: Cache.open(path).find("net").salvage(),
    lambda: compact(Cache.open(path)),
):
    try:
        step()
    except EmbedcacheError as error:
        told.append(str(error))
aside = len(list(path.glob("damaged/*")))  # a draft that cannot be used stops nothing
print(len(told) + aside, Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.parametrize("name", CASES)
def test_a_cache_that_asks_for_too_much_gets_little(cache: Cache, name: str) -> None:
    CASES[name](cache)
    command = [sys.executable, "-c", SCRIPT, str(cache.path)]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    refusals, peak = map(int, told.stdout.split())
    assert refusals
    assert peak * 1024 < LIMIT, f"{peak * 1024:,} bytes"
