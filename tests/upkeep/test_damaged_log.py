"""A removal log that lacks an entry, or has somebody's folder in it, stops nothing."""

import shutil
from pathlib import Path

import pytest

from embedcache.errors import Damaged
from embedcache.store.cache import Cache
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.verify import verify
from tests.upkeep.caches import SPEC, make


def with_log(path: Path) -> Cache:
    """A cache with several entries in its log, and a ref file that is damaged."""
    cache = make(path, *range(1, 7), segments=1)
    for n in (1, 2):
        forget(cache, [f"p{n}"])
    assert cache.history.log().n >= 3
    (cache.path / "refs").mkdir(exist_ok=True)
    (cache.path / "refs" / "bad.json").write_text("no ref")
    return cache


def entry(cache: Cache, number: int) -> Path:
    return cache.path / "removed" / f"{number:08d}"


@pytest.mark.parametrize("lost", [(1,), (2,), (1, 2)])
def test_a_missing_entry_is_reported_and_the_rest_is_repaired(
    tmp_path: Path, lost: tuple[int, ...]
) -> None:
    cache = with_log(tmp_path / "a")
    n_before = cache.history.log().n
    for number in lost:
        shutil.rmtree(entry(cache, number))
    for repair in (False, True):
        found = {one.path: one.problem for one in verify(cache.path, repair=repair).findings}
        for number in lost:
            assert "is missing" in found[f"removed/{number:08d}/entry.json"]
            assert "restore it from a backup" in found[f"removed/{number:08d}/entry.json"]
        assert "refs/bad.json" in found
    assert not (cache.path / "refs" / "bad.json").exists()
    verify(cache.path, repair=True)
    assert verify(cache.path).clean, str(verify(cache.path))
    assert Cache.open(cache.path).history.log().n >= n_before


def test_a_lost_entry_file_is_a_missing_entry_also_at_the_end(tmp_path: Path) -> None:
    cache = with_log(tmp_path / "a")
    last = cache.history.log().n
    (entry(cache, last) / "entry.json").unlink()
    assert f"removed/{last:08d}/entry.json" in {one.path for one in verify(cache.path).findings}
    verify(cache.path, repair=True)
    assert Cache.open(cache.path).history.log().n >= last


@pytest.mark.parametrize("number", [9, 99_999_999])
def test_a_folder_of_somebody_elses_in_the_log_is_set_aside(tmp_path: Path, number: int) -> None:
    cache = with_log(tmp_path / "a")
    entry(cache, number).mkdir()
    (entry(cache, number) / "x").write_text("mine")
    report = verify(cache.path, repair=True)
    assert {one.path for one in report.findings} == {f"removed/{number:08d}", "refs/bad.json"}
    [kept] = cache.path.glob("damaged/removed-*/x")
    assert kept.read_text() == "mine"
    assert verify(cache.path).clean, str(verify(cache.path))


def test_a_folder_in_the_place_of_the_next_entry_is_named_and_not_waited_for(
    tmp_path: Path,
) -> None:
    cache = with_log(tmp_path / "a")
    (cache.path / "refs" / "bad.json").unlink()
    number = cache.history.log().n + 1
    entry(cache, number).mkdir()
    (entry(cache, number) / "x").write_text("mine")
    with pytest.raises(Damaged, match=r"removed/0000\d+ .*verify --repair"):
        forget(cache, ["p3"])
    verify(cache.path, repair=True)
    forget(Cache.open(cache.path), ["p3", "p4"])
    assert len(Cache.open(cache.path).space(SPEC).digests()) == 2
