"""`verify` beside commands that are at work: it looks again before it calls anything wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from embedcache import disk
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.check import check_segment
from embedcache.store.segment import Segment
from embedcache.upkeep import verify
from embedcache.upkeep.forgetting import forget
from tests.stores import fill, photos


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Photos 0 to 3 in two segments; photo 0 has an id."""
    cache = Cache.open(tmp_path / "cache", create=True)
    space = cache.space(foreign("net", 8), create=True)
    fill(space, photos(0, 1))
    fill(space, photos(2, 3))
    cache.record_photos("f", ["zero"], photos(0))
    return cache


def dead_process_mark() -> str:
    """The mark of a process that has ended."""
    code = "from embedcache import disk; print(disk.mark_of_process())"
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def test_a_hidden_segment_that_was_not_deleted_is_named_also_with_its_manifest(
    cache: Cache, tmp_path: Path
) -> None:
    [first, _] = cache.space(foreign("net", 8)).segments()
    kept = tmp_path / "kept"
    kept.mkdir()
    subprocess.run(["cp", "-r", str(first.folder), str(kept)], check=True)
    forget(cache, ["zero"])
    left = first.folder.with_name(f".gone-{first.id}-{dead_process_mark()}")
    (kept / first.id).rename(left)
    [finding] = verify.verify(cache).findings
    assert finding.path.endswith(left.name)
    assert "embedcache compact" in finding.problem


def test_what_a_living_process_deletes_is_named_and_no_finding(cache: Cache) -> None:
    [first, _] = cache.space(foreign("net", 8)).segments()
    for name in (f".gone-{first.id}-{disk.mark_of_process()}", f".old-{disk.mark_of_process()}"):
        (first.folder.parent / name / "embedding").mkdir(parents=True)
    report = verify.verify(cache)
    assert report.clean, str(report)
    assert sum("a running process" in note for note in report.notes) == 2


def test_what_goes_while_it_is_looked_at_is_no_finding(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache.path / "photos" / "segments"
    left = [folder / f".old-{n:08x}-00000000-7-7" for n in range(3)]
    for path in left:
        path.mkdir()

    def one_goes(seconds: float) -> None:
        if left:
            left.pop().rmdir()

    monkeypatch.setattr("embedcache.upkeep.recording.time.sleep", one_goes)
    assert verify.verify(cache).clean


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_segment_that_cannot_be_read_is_read_again(
    forgotten: bool, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is forgotten in that moment, or a draft has just become a segment."""
    real, looks = check_segment, 0

    def check(segment: Segment) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            if forgotten:
                forget(cache, ["zero"])
            raise FileNotFoundError(segment.folder)
        real(segment)

    monkeypatch.setattr("embedcache.upkeep.verify.check_segment", check)
    report = verify.verify(cache)
    assert report.clean, str(report)


def test_damage_is_found_at_the_second_look_too(cache: Cache) -> None:
    [first, _] = cache.space(foreign("net", 8)).segments()
    (first.folder / "digest" / "c" / "0" / "0").unlink()
    [finding] = verify.verify(cache).findings
    assert finding.path.endswith(first.id)
    assert finding.lost_rows == 2
