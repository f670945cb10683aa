"""What a writer or a push left inside a finished segment is named, and goes; the rest stays."""

from pathlib import Path

import pytest

from embedcache import disk
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests.stores import dead_mark, photos
from tests.upkeep.caches import SPEC, make

PLACES = (
    *("manifest.json", "zarr.json", "embedding/zarr.json", "embedding/c/0/0", "digest/c/0/0"),
    "row_crc/c/0",
)


def left_in(folder: Path, place: str, mark: str) -> Path:
    path = (folder / place).with_name(f".{Path(place).name}.{mark}")
    path.write_bytes(b"half")
    return path


def writing_of(folder: Path, mark: str, *more: str) -> Path:
    """What a writer leaves that is killed while it deletes its lease and journal."""
    old = folder / f".old-{mark}"
    old.mkdir()
    for name in ("journal", "lease.json", *more):
        (old / name).write_text(f"mine: {name}")
    return old


def segments_of(cache: Cache) -> list[Path]:
    sets = cache.sets()
    return [segment.folder for one in sets for segment in one.segments()]


@pytest.mark.parametrize("place", [*PLACES, "the journal"])
def test_what_was_left_inside_a_segment_is_named_and_goes(tmp_path: Path, place: str) -> None:
    cache = make(tmp_path / "a", 1, 2, 3, segments=1)
    before = segments_of(cache)
    left = []
    for folder in before:
        if place == "the journal":
            left.append(writing_of(folder, dead_mark()))
        elif (folder / place).exists():
            left.append(left_in(folder, place, dead_mark()))
    assert left
    for repair in (False, True):
        report = verify(cache, repair=repair)
        assert {cache.path / found.path for found in report.findings} == {*left}, str(report)
        assert ("Run 'embedcache verify --repair" in str(report)) != repair
    assert not [path for path in left if path.exists()]
    assert verify(cache).clean, str(verify(cache))
    assert segments_of(Cache.open(cache.path)) == before  # none is written anew
    assert cache.space(SPEC).read(photos(1, 2, 3))[1].all()


@pytest.mark.parametrize("repair", [False, True])
def test_what_a_living_writer_holds_in_a_segment_is_a_note(tmp_path: Path, repair: bool) -> None:
    cache = make(tmp_path / "a", 1, 2, 3, segments=1)
    folder = cache.space(SPEC).segments()[0].folder
    mine = left_in(folder, "manifest.json", disk.mark_of_process())
    old = writing_of(folder, disk.mark_of_process())
    report = verify(cache, repair=repair)
    assert report.clean, str(report)
    assert len(report.notes) == 2
    assert mine.exists()
    assert (old / "journal").exists()


def test_a_file_of_somebody_else_inside_a_segment_is_never_deleted(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3, segments=1)
    folder = cache.space(SPEC).segments()[0].folder
    writing_of(folder, dead_mark(), "notes.txt", "plans.json")
    left_in(folder, "manifest.json", dead_mark())
    verify(cache, repair=True)
    found = [path for path in cache.path.rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in found]
    assert b"mine: notes.txt" in texts
    assert b"mine: plans.json" in texts
    assert verify(cache).clean, str(verify(cache))
    names = [".manifest.json.0123abcd", ".old-0123abcd", "x.txt"]
    names += [f".notes.txt.{dead_mark()}", f".notes.json.{dead_mark()}", f".7.{dead_mark()}"]
    for name in names:
        folder = Cache.open(cache.path).space(SPEC).segments()[0].folder
        (folder / name).write_text(f"mine: {name}")
        assert not verify(cache).clean
        verify(cache, repair=True)
        texts = [path.read_bytes() for path in cache.path.rglob("*") if path.is_file()]
        assert f"mine: {name}".encode() in texts
        assert verify(cache).clean, str(verify(cache))
        assert cache.space(SPEC).read(photos(1, 2, 3))[1].all()
