"""Caches made by somebody who means harm: refused with a message, in bounded memory, inside."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache import disk
from embedcache.errors import EmbedcacheError
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.checksums import crc32c
from embedcache.store.sealed import seal, unseal
from embedcache.upkeep.inventory import summarise
from embedcache.upkeep.merging import merge
from embedcache.upkeep.verify import verify
from tests.stores import fill, photos

SPEC = foreign("net", 8)
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)
    cache = Cache.open(tmp_path / "a", create=True)
    fill(cache.space(SPEC, create=True), photos(*range(6)))
    cache.record_photos("folder", ["a", "b"], photos(0, 1))
    (tmp_path / "outside").write_bytes(b"not yours")
    return cache


def segment(cache: Cache) -> Path:
    return cache.space(SPEC).segments()[0].folder


def reseal(folder: Path, edit: Edit) -> None:
    """Change a manifest as its author could, with a digest that fits."""
    document, _ = unseal((folder / "manifest.json").read_bytes(), what="")
    edit(document)
    (folder / "manifest.json").write_bytes(seal(document))


def put(folder: Path, path: str, raw: bytes) -> None:
    """Replace a file of a segment, with a manifest that fits."""
    (folder / path).write_bytes(raw)
    entry = [len(raw), sha256(raw).hexdigest()]
    reseal(folder, lambda document: document["files"].update({path: entry}))


def refused(cache: Cache, tmp_path: Path) -> str:
    """Reading, verifying and merging must all refuse; returns what reading said."""
    with pytest.raises(EmbedcacheError) as told:
        Cache.open(cache.path).find("net").read(photos(*range(6)))
    assert not verify(cache.path).clean
    target = Cache.open(tmp_path / "target", create=True)
    with pytest.raises(EmbedcacheError):
        merge(target, [Cache.open(cache.path)])
    assert not [space.segments() for space in target.spaces() if space.segments()]
    assert (tmp_path / "outside").read_bytes() == b"not yours"
    return str(told.value)


@pytest.mark.parametrize("path", ["../../outside", "/etc/passwd", "digest/c/../../../x", "a/b\0c"])
def test_a_manifest_that_points_outside(cache: Cache, tmp_path: Path, path: str) -> None:
    reseal(segment(cache), lambda d: d["files"].update({path: [9, "0" * 64]}))
    assert "refused" in refused(cache, tmp_path)


@pytest.mark.parametrize(
    "link", ["embedding/c/0/0", "digest/c/0/0", "digest/zarr.json", "digest", "manifest.json", "."]
)
def test_a_link_in_the_place_of_a_file_or_folder(cache: Cache, tmp_path: Path, link: str) -> None:
    target = segment(cache) / link
    moved = tmp_path / "elsewhere"
    target.rename(moved)
    Path(os.path.normpath(target)).symlink_to(moved)
    refused(cache, tmp_path)


def test_a_pipe_in_the_place_of_a_file_does_not_hang(cache: Cache, tmp_path: Path) -> None:
    target = segment(cache) / "digest" / "c" / "0" / "0"
    target.unlink()
    os.mkfifo(target)
    assert "not a plain file" in refused(cache, tmp_path)


def huge(**changes: Any) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        for key, value in changes.items():
            if key in document["embedding"]:
                document["embedding"][key] = value
            elif key in document["columns"]:
                document["columns"][key] = value
            else:
                document[key] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        huge(rows=10**18),
        huge(rows=10**6, ok=10**6),
        huge(rows=-1),
        huge(rows=6.0),
        huge(rows=True),
        huge(dim=10**18),
        huge(dim=0),
        huge(rows_per_chunk=10**18),
        huge(rows_per_chunk=10**6, dim=60_000),
        huge(chunks_per_shard=10**9),
        huge(digest=10**18),
        huge(reason_text=10**18),
        huge(chunk_crc32c="00" * 10**5),
        huge(files=None),
        huge(files={f"a/c/{i}": [1, "0" * 64] for i in range(5000)}),
        huge(columns=[]),
        huge(embedding=None),
        huge(about="text"),
        huge(name="x" * 5000),
        huge(format=2),
        huge(files={"zarr.json": 3}),
    ],
)
def test_numbers_that_cannot_be(cache: Cache, tmp_path: Path, edit: Edit) -> None:
    reseal(segment(cache), edit)
    refused(cache, tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite(cache: Cache, tmp_path: Path, value: float) -> None:
    folder = segment(cache)
    shard = folder / "embedding" / "c" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    raw[36:40] = struct.pack("<f", value)
    rows = np.frombuffer(bytes(raw[: 6 * 32]), "<f4").reshape(6, 8)
    raw[192:196] = struct.pack("<I", crc32c(rows))
    crcs = np.array([crc32c(row) for row in rows], "<u4")
    put(folder, "embedding/c/0/0", bytes(raw))
    put(folder, "row_crc/c/0", crcs.tobytes() + struct.pack("<I", crc32c(crcs)))
    reseal(folder, huge(chunk_crc32c=raw[192:196].hex()))
    assert "NaN or infinite" in refused(cache, tmp_path)


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps(list(range(1_000_000))).encode(),
        json.dumps({str(i): i for i in range(50_000)}).encode(),
        b"[" * 500_000,
        b'{"self":' * 100_000,
        b"\xff\xfe\x00",
        b"",
        b"null",
        b'{"self": 3}',
        b'{"self": "\xc3\xa9"}',
    ],
)
def test_a_manifest_that_is_not_one(cache: Cache, tmp_path: Path, raw: bytes) -> None:
    (segment(cache) / "manifest.json").write_bytes(raw)
    refused(cache, tmp_path)


def test_zarr_documents_of_another_make(cache: Cache, tmp_path: Path) -> None:
    path = segment(cache) / "embedding" / "zarr.json"
    put(segment(cache), "embedding/zarr.json", path.read_bytes().replace(b"crc32c", b"pickle"))
    assert "zarr.json" in refused(cache, tmp_path)


def test_ids_that_are_not_text(cache: Cache) -> None:
    (folder,) = (p for p in (cache.path / "photos" / "segments").iterdir() if p.is_dir())
    raw = b"\xff\xfe"
    put(folder, "id_text/c/0", raw + struct.pack("<I", crc32c(raw)))
    with pytest.raises(EmbedcacheError, match="not UTF-8"):
        Cache.open(cache.path).digests_of(["a"])
    assert not verify(cache.path).clean


def test_offsets_that_run_away(cache: Cache) -> None:
    (folder,) = (p for p in (cache.path / "photos" / "segments").iterdir() if p.is_dir())
    offsets = np.array([0, 2**60, 2], "<i8")
    put(folder, "id_offset/c/0", offsets.tobytes() + struct.pack("<I", crc32c(offsets)))
    with pytest.raises(EmbedcacheError, match="do not fit"):
        Cache.open(cache.path).digests_of(["a"])


def test_an_id_that_is_not_text_is_not_recorded_either(cache: Cache) -> None:
    with pytest.raises(EmbedcacheError, match="not valid Unicode"):
        cache.record_photos("folder", [os.fsdecode(b"\xff.jpg")], photos(3))


@pytest.mark.parametrize("lease", [b"[]", b"{}", b"[" * 10_000, b'{"rows_per_chunk": "x"}'])
def test_an_abandoned_draft_with_a_made_up_lease(cache: Cache, lease: bytes) -> None:
    space = cache.space(SPEC)
    writer = space.writer(n_rows=3, name="net", about={})
    writer.add(photos(9), photos(9)[:, :8].astype(np.float32))
    writer.abandon()
    (abandoned,) = space.segments_folder.glob("*/writing/abandoned.json")
    abandoned.write_bytes(lease)
    assert space.salvage() == 0
    assert list(cache.path.glob("damaged/*/writing/journal"))


@pytest.mark.parametrize(
    "link", ["refs", "forgotten", "local", "damaged", "face-spaces", "local/memory", "spaces"]
)
def test_nothing_is_written_through_a_link_in_a_folders_place(
    cache: Cache, tmp_path: Path, link: str
) -> None:
    outside = tmp_path / "home"
    outside.mkdir()
    (outside / "digests.npz").write_bytes(b"mine")
    place = cache.path / link
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(outside)
    other = Cache.open(tmp_path / "other", create=True)
    attempts: list[Callable[[], object]] = [
        lambda: Cache.open(cache.path),
        lambda: Cache.open(cache.path, create=True),
        lambda: Cache.open(cache.path, ref="r"),
        lambda: merge(other, [Cache.open(cache.path)]),
    ]
    for attempt in attempts:
        with pytest.raises(EmbedcacheError, match="is a link: refused"):
            attempt()
    assert not verify(cache.path, repair=True).clean
    assert [p.name for p in outside.iterdir()] == ["digests.npz"]
    assert (outside / "digests.npz").read_bytes() == b"mine"
    assert place.is_symlink()


@pytest.mark.parametrize(
    "text",
    ['"rows":6,"rows":6', '"seconds":NaN', '"seconds":1e999', '"ok":6, "rows"', '"n":-0.10'],
)
def test_a_manifest_that_can_be_read_in_two_ways(cache: Cache, tmp_path: Path, text: str) -> None:
    """A key twice, a NaN, a space: with a digest that fits, and still not what is written."""
    folder = segment(cache)
    raw = (folder / "manifest.json").read_text()
    if text.startswith(('"seconds"', '"n"')):
        raw = raw.replace('"device":"cpu"', f'"device":"cpu",{text}')
    else:
        raw = raw.replace('"ok":6,"rows"' if " " in text else '"rows":6', text)
    at = raw.rindex('"self":"') + 8
    blank = raw[:at] + "0" * 64 + raw[at + 64 :]
    sealed = raw[:at] + sha256(blank.encode()).hexdigest() + raw[at + 64 :]
    assert text in sealed
    (folder / "manifest.json").write_text(sealed)
    assert "not the JSON that was written" in refused(cache, tmp_path)


def test_half_a_surrogate_pair_in_a_name(cache: Cache, tmp_path: Path) -> None:
    reseal(segment(cache), huge(name="\ud800"))
    with pytest.raises(EmbedcacheError, match=r"no vectors of 'net'"):
        Cache.open(cache.path).find("net")
    with pytest.raises(EmbedcacheError, match="refused"):
        Cache.open(cache.path).space(SPEC).read(photos(0))
    assert not verify(cache.path).clean


def test_what_a_cache_says_cannot_steer_a_terminal(cache: Cache) -> None:
    name = "net\x1b[2J\u202e\n"
    reseal(segment(cache), huge(name=name))
    cache.record_photos("folder", ["tab\there", "ü"], photos(2, 3))
    told = str(summarise(Cache.open(cache.path), photos=True))
    assert "net\\x1b[2J\\u202e\\n#" in told or "net\\x1b[2J\\u202e\\n " in told
    assert "tab\\there  " in told
    assert "\nü  " in told
    assert "\x1b" not in told


LEASES: list[dict[str, Any]] = [
    {"rows_per_chunk": 0, "chunks_per_shard": 0},
    {"rows_per_chunk": 10**30, "chunks_per_shard": 10**30},
    {"about": 5},
    {"about": {"seconds": float("inf")}},
    {"about": {"text": "x" * (1 << 19)}, "name": "x" * (1 << 18)},
]


@pytest.mark.parametrize("changes", LEASES)
def test_an_abandoned_draft_with_impossible_numbers(cache: Cache, changes: dict[str, Any]) -> None:
    space = cache.space(SPEC)
    writer = space.writer(n_rows=3, name="net", about={})
    writer.add(photos(9), photos(9)[:, :8].astype(np.float32))
    writer.abandon()
    (abandoned,) = space.segments_folder.glob("*/writing/abandoned.json")
    abandoned.write_text(json.dumps(json.loads(abandoned.read_text()) | changes))
    if changes.get("rows_per_chunk"):
        assert space.salvage() == 1  # rows that are in a chunk as large as the world hold
    else:
        assert space.salvage() == 0
        assert list(cache.path.glob("damaged/*/writing/journal"))
    assert (Cache.open(cache.path).space(SPEC).read(photos(*range(6)))[1]).all()
