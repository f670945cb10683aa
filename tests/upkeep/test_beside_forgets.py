"""What a forget beside another command, or before it, must not leave or stop."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedcache.alike.originals import paths_of
from embedcache.errors import CacheError, Damaged
from embedcache.extraction.run import extract
from embedcache.extraction.upgrade import upgrade
from embedcache.photos.memo import DigestMemo
from embedcache.photos.table import Photos
from embedcache.sharing.joining import compact_remote
from embedcache.sharing.memo import Memo
from embedcache.sharing.share import push
from embedcache.store.cache import Cache
from embedcache.store.check import check_segment
from embedcache.store.columns import OK
from embedcache.store.segment import Segment
from embedcache.upkeep import merging
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.local import clear_hidden
from embedcache.upkeep.merging import merge
from embedcache.upkeep.verify import verify
from tests import stand_in
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


def test_what_is_remembered_of_a_remote_is_not_kept_beside_a_forget(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    memo = Memo(cache.local / "remotes" / "0123")

    def fetch() -> bytes:
        forget(cache, ["p1"])
        return photos(1).tobytes()

    assert memo.get("column", fetch) == photos(1).tobytes()
    assert photos(1).tobytes() not in everything_in(cache.path)
    assert Memo(cache.local / "remotes" / "0123").get("b", lambda: b"b") == b"b"
    assert Memo(cache.local / "remotes" / "0123").get("b", lambda: b"c") == b"b"


def folder_of(path: Path, n: int) -> Photos:
    path.mkdir()
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
        os.utime(path / f"{i}.png", (1e9, 1e9))
    return Photos.read(path)


@pytest.mark.parametrize("amid", [False, True])
def test_the_memo_of_files_holds_no_forgotten_photo(tmp_path: Path, amid: bool) -> None:
    found, cache = folder_of(tmp_path / "photos", 3), Cache.open(tmp_path / "c", create=True)
    digests = found.digests().value
    cache.record_photos(found.scope, found.ids, digests)
    memo = cache.local / "digests.npz"
    seen: list[int] = []

    class Late:
        """Forgets while the memo is about to be written."""

        def dead_pairs(self, scope: str, ids: Sequence[str], digests: np.ndarray) -> np.ndarray:
            told = cache.dead_pairs(scope, ids, digests)
            if amid and not seen:
                seen.append(1)
                forget(Cache.open(cache.path), ["1.png"])
            return told

        def tombstones(self) -> frozenset[str]:
            return cache.tombstones()

    if not amid:
        forget(cache, ["1.png"])
    again = found.digests(memo, forgotten=Late())
    assert (again.value == digests).all()
    names = [name for name, _ in DigestMemo(memo).files()] if memo.exists() else []
    assert not [name for name in names if name.endswith("1.png")]
    assert len(names) == (0 if amid else 2)
    assert digests[1].tobytes() not in everything_in(cache.path)
    assert found.digests(memo, forgotten=cache).n_read == (3 if amid else 1)


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


@pytest.mark.parametrize("way", ["paths_of", "upgrade"])
def test_no_command_that_reads_photos_remembers_a_forgotten_one(tmp_path: Path, way: str) -> None:
    found, cache = folder_of(tmp_path / "photos", 3), Cache.open(tmp_path / "c", create=True)
    extract(found, cache, backbone=stand_in.backbone("old"))
    digests = found.digests().value
    forget(cache, ["1.png"])
    if way == "paths_of":
        paths_of(cache, found)
    else:
        upgrade(cache, old="old", new=stand_in.backbone("new"), photos=found)  # type: ignore[arg-type]
    assert digests[2].tobytes() in (cache.local / "digests.npz").read_bytes()
    assert digests[1].tobytes() not in everything_in(cache.path)


def test_a_compact_of_a_remote_remembers_no_photo_that_was_forgotten_here(tmp_path: Path) -> None:
    mine, other = make(tmp_path / "a", 1, 2), make(tmp_path / "b", 3)
    remote = (tmp_path / "remote").as_uri()
    push(mine, remote)
    push(other, remote)
    forget(mine, ["p1"])
    compact_remote(remote, mine)
    assert photos(1).tobytes() not in everything_in(mine.path)
