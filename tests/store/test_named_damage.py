"""A damaged tombstone, or a cache without its own document: where it is, and the next step."""

from pathlib import Path

import pytest

from embedcache.errors import Damaged, NotACache
from embedcache.store.cache import Cache
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.verify import verify
from tests.upkeep.caches import make


def test_a_damaged_tombstone_is_named_with_the_next_step(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    forget(cache, ["p1"])
    [tombstone] = (cache.path / "forgotten").glob("*.json")
    tombstone.write_bytes(tombstone.read_bytes()[:-2])
    with pytest.raises(Damaged) as raised:
        Cache.open(cache.path).history.dead()
    assert str(tombstone) in str(raised.value)
    assert f"'embedcache verify --repair {cache.path}'" in str(raised.value)


@pytest.mark.parametrize("create", [False, True])
def test_a_cache_without_its_own_document_is_mended_and_no_other_folder(
    tmp_path: Path, create: bool
) -> None:
    cache = make(tmp_path / "a", 1, 2)
    cache.record_photos("folder", ["p3"], cache.photo_table().digests[:1])
    forget(cache, ["p2"])
    (cache.path / "zarr.json").unlink()
    with pytest.raises(NotACache, match=r"zarr.json is missing.*verify --repair"):
        Cache.open(cache.path, create=create)
    verify(cache.path, repair=True)
    assert len(Cache.open(cache.path).photo_table()) == 2
