"""A shard's bytes as they arrive: the same findings, whatever the block size."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.sharing.screen import ShardScreen
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.checksums import crc32c, hash_file
from embedcache.store.manifest import Manifest
from embedcache.store.segment import Segment
from tests.stores import model, photos

DIM, N_ROWS = 8, 11


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Segment:
    """Eleven rows in two shards of two chunks of three rows: the last chunk is padded."""
    cache = Cache.open(tmp_path_factory.mktemp("screen") / "c", create=True)
    space = cache.space(foreign("net", DIM), create=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedcache.store.shard.CHUNK_BYTES", 3 * 4 * DIM)
        patch.setattr("embedcache.store.shard.CHUNKS_PER_SHARD", 2)
        with space.writer(n_rows=N_ROWS, name="net", about={}) as writer:
            writer.add(photos(*range(N_ROWS)), model(photos(*range(N_ROWS)), DIM))
    [found] = space.segments()
    assert found.manifest.geometry is not None
    assert found.manifest.geometry.n_shards(N_ROWS) == 2
    return found


def shards(segment: Segment) -> list[bytes]:
    return [Path(segment.folder, f"embedding/c/{n}/0").read_bytes() for n in (0, 1)]


def screened(manifest: Manifest, number: int, raw: bytes, cuts: list[int]) -> ShardScreen:
    screen = ShardScreen(manifest, number)
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    for a, b in pairwise(edges):
        screen.update(memoryview(raw)[a:b])
    return screen


@given(cuts=st.lists(st.integers(0, 1000), max_size=30))
@settings(max_examples=200, deadline=None)
def test_it_finds_the_same_in_blocks_of_any_size(segment: Segment, cuts: list[int]) -> None:
    rows = model(photos(*range(N_ROWS)), DIM)
    found = []
    for number, raw in enumerate(shards(segment)):
        screen = screened(segment.manifest, number, raw, cuts)
        assert screen.problem == ""
        path = f"embedding/c/{number}/0"
        assert screen.digest == segment.manifest.files[path][1]
        found += screen.row_crcs.tolist()
    assert found == [crc32c(row) for row in rows]


def test_it_finds_every_wrong_byte(segment: Segment) -> None:
    manifest = segment.manifest
    known = segment.column("row_crc").tolist()
    for number, raw in enumerate(shards(segment)):
        for at in range(len(raw)):
            wrong = bytearray(raw)
            wrong[at] ^= 0x10
            screen = screened(manifest, number, bytes(wrong), [at, at + 1])
            assert screen.problem, (number, at)
            assert screen.digest != manifest.files[f"embedding/c/{number}/0"][1]
    assert len(known) == N_ROWS


def test_it_finds_numbers_that_are_not_finite(tmp_path: Path) -> None:
    """Every CRC and digest is right, as a hostile writer would make it."""
    from embedcache.store import shard
    from embedcache.store.shard import Geometry, RowStream

    cut = Geometry(dim=4, rows_per_chunk=2, chunks_per_shard=2)
    rows = np.ones((3, 4), "<f4")
    rows[2, 1] = np.inf
    stream = RowStream(tmp_path / "embedding", cut)
    stream.add(rows)
    stream.end()
    files, crcs = stream.finish()
    manifest = Manifest(
        segment="",
        kind="vectors",
        space="",
        n_rows=3,
        n_ok=3,
        lengths={},
        geometry=cut,
        chunk_crcs=np.array(crcs, "<u4").tobytes(),
        files=files,
        name="",
        about={},
        created="",
        digest="",
    )
    raw = (tmp_path / "embedding" / shard.shard_name(0)).read_bytes()
    screen = screened(manifest, 0, raw, [20])
    assert "NaN or infinite" in screen.problem
    with open(tmp_path / "embedding" / "c" / "0" / "0", "rb") as file:
        assert screen.digest == hash_file(file.fileno())[0]
