"""What a forget beside another command, or before it, must not leave or stop."""

from pathlib import Path

import pytest

from embedcache.errors import CacheError, Damaged
from embedcache.store.cache import Cache
from embedcache.store.check import check_segment
from embedcache.store.columns import OK
from embedcache.store.segment import Segment
from embedcache.upkeep import merging
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.local import clear_hidden
from embedcache.upkeep.merging import merge
from embedcache.upkeep.verify import verify
from tests.stores import photos
from tests.upkeep.caches import SPEC, make


def everything_in(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_a_working_cache_that_was_half_deleted_is_all_embedcaches(tmp_path: Path) -> None:
    cache, work = make(tmp_path / "a", 1), make(tmp_path / "w", 3, 4)
    hidden = cache.local / f".old-{'0' * 8}-{'1' * 8}-1-1"
    work.path.rename(hidden)
    clear_hidden(cache.path)
    assert not hidden.exists()
    assert not (cache.path / "damaged").exists()


@pytest.mark.parametrize("part", ["rows", "ids"])
def test_a_merge_goes_on_where_the_other_side_forgets_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    mine, other = make(tmp_path / "mine", 9), make(tmp_path / "other", 1, 2, 3)
    forgot: list[str] = []

    def late(segment: Segment) -> None:
        if (segment.kind == "photos") == (part == "ids") and not forgot:
            forgot.append("p2")
            forget(Cache.open(other.path), forgot)
        check_segment(segment)

    monkeypatch.setattr(merging, "check_segment", late)
    found = merge(mine, [other], with_ids=True)
    assert forgot
    assert found.ids == 2
    assert (mine.space(SPEC).status(photos(1, 3)) == OK).all()
    assert verify(other).clean
    assert merge(mine, [other], with_ids=True).rows == 0


def test_a_damaged_segment_of_another_cache_is_named_with_what_to_do(tmp_path: Path) -> None:
    mine, other = make(tmp_path / "mine", 9), make(tmp_path / "other", 1, 2)
    path = min(other.space(SPEC).folder.glob("segments/*/row_crc/c/0"))
    raw = bytearray(path.read_bytes())
    raw[1] ^= 4
    path.write_bytes(raw)
    with pytest.raises(Damaged) as error:
        merge(mine, [other])
    assert str(path.parents[2]) in str(error.value)
    assert f"embedcache verify {other.path}" in str(error.value)


def test_an_id_that_is_gone_keeps_nobody_from_the_rest_of_a_list(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    with pytest.raises(CacheError, match="knows no photo id"):
        forget(cache, ["p1", "typo"])
    assert cache.digests_of(["p1"])[1].all()  # nobody was forgotten yet: a typo stops all
    forget(cache, ["p1"])
    with pytest.raises(CacheError, match=r"Of the others removed 1 id and 2 rows of 1 photo"):
        forget(cache, ["p1", "p2"])
    assert not cache.digests_of(["p2"])[1].any()
    assert cache.digests_of(["p3"])[1].all()
    assert verify(cache).clean
