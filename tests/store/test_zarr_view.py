"""A space handed out as zarr arrays: real ones, read-only, and only what is there."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.tombstones import content_mark
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from tests.stores import fill, model, photos

SPEC = foreign("net", 8)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache.open(tmp_path / "a", create=True)
    space = cache.space(SPEC, create=True)
    cache.record_photos("f", [str(n) for n in range(6)], photos(*range(6)))
    fill(space, photos(0, 1, 2))
    fill(space, photos(2, 3, 4))
    with space.writer(n_rows=2, name="net", about={}) as writer:
        writer.add(photos(5), model(photos(5)))
        writer.fail(photos(6), ["no face"])
    return cache


def rows_of(cache: Cache) -> dict[bytes, bytes]:
    return {
        digest.tobytes(): row.tobytes()
        for part in cache.zarr("net")
        for digest, row in zip(part.digest[:][part.live], part.embedding[:][part.live], strict=True)
    }


def expected(*numbers: int) -> dict[bytes, bytes]:
    return {photos(n).tobytes(): model(photos(n)).tobytes() for n in numbers}


def test_segments_are_real_read_only_zarr_arrays(cache: Cache) -> None:
    parts = cache.zarr("net")
    assert [type(part.embedding) for part in parts] == [zarr.Array] * 3
    assert [part.embedding.shape for part in parts] == [(3, 8), (3, 8), (2, 8)]
    assert [part.live.tolist() for part in parts] == [[1, 1, 1], [0, 1, 1], [1, 0]]
    assert rows_of(cache) == expected(*range(6))
    with pytest.raises(ValueError, match="read-only"):
        parts[0].embedding[0] = 0


def test_what_was_forgotten_or_removed_is_not_handed_out(cache: Cache) -> None:
    before = {part.segment for part in cache.zarr("net")}
    cache.history.forget(contents=[content_mark(photos(1).tobytes())])
    assert rows_of(cache) == expected(0, 2, 3, 4, 5)  # its bytes are still there
    forget(cache, ["1"])
    assert rows_of(cache) == expected(0, 2, 3, 4, 5)
    compact(cache)
    [part] = cache.zarr("net")
    assert part.segment not in before
    assert rows_of(cache) == expected(0, 2, 3, 4, 5)


def test_at_a_ref_the_arrays_are_those_that_it_pins(cache: Cache) -> None:
    write_ref(cache, "then")
    fill(cache.space(SPEC), photos(7))
    forget(cache, ["0"])
    assert rows_of(Cache.open(cache.path, ref="then")) == expected(1, 2, 3, 4, 5)
    assert rows_of(cache) == expected(1, 2, 3, 4, 5, 7)


def test_zarr_is_loaded_when_it_is_asked_for(cache: Cache) -> None:
    code = (
        "import sys; from embedcache.store import Cache\n"
        f"cache = Cache.open({str(cache.path)!r}); cache.find('net').digests()\n"
        "assert 'zarr' not in sys.modules\n"
        "cache.zarr('net'); assert 'zarr' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_all_rows_of_a_segment_without_vectors_are_not_live(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "b", create=True)
    with cache.space(SPEC, create=True).writer(n_rows=1, name="net", about={}) as writer:
        writer.fail(photos(1), ["no face"])
    [part] = cache.zarr("net")
    assert np.isnan(part.embedding[:]).all()
    assert not part.live.any()
