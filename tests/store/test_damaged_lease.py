"""A lease that cannot be read stops nobody: the journal's lock says whether its writer lives."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedcache.store import journal
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.verify import verify
from tests.stores import DETECTOR, faces_of, model, photos
from tests.upkeep.caches import SPEC, make

DAMAGED = [b"", b'{"host": "a", "bo', b"[]", b"\xff\xfe", b"{}", b'{"rows_per_chunk": "x"}']


def draft(cache: Cache, *numbers: int, lease: bytes | None) -> Path:
    """What a writer of vectors left that died (without `numbers` no row), with another lease."""
    space = cache.space(SPEC)
    writer = space.writer(n_rows=9, name="net", about={})
    writer.add(photos(*numbers or (9,)), model(photos(*numbers or (9,))))
    writer.abandon()
    [abandoned] = space.segments_folder.glob("*/writing/abandoned.json")
    damage(abandoned.rename(abandoned.with_name("lease.json")), lease)
    if not numbers:
        (abandoned.parent / "journal").write_bytes(b"")
    return abandoned.parents[1]


def damage(path: Path, lease: bytes | None) -> None:
    path.unlink()
    if lease is not None:
        path.write_bytes(lease)


@pytest.mark.parametrize("lease", [*DAMAGED[:4], None])
def test_a_draft_without_rows_goes_whatever_its_lease_is(
    tmp_path: Path, lease: bytes | None
) -> None:
    cache = make(tmp_path / "a", 1, 2, segments=1)
    left = draft(cache, lease=lease)
    [found] = verify(cache).findings
    assert found.path.endswith(left.name)
    assert "writing/lease.json" in found.problem
    assert "embedcache compact" in found.problem
    compact(cache)
    assert not left.exists()
    assert verify(cache).clean, str(verify(cache))


@pytest.mark.parametrize("command", ["forget", "compact", "salvage"])
@pytest.mark.parametrize("lease", [b"", b"{}", b'{"rows_per_chunk": "x"}'])
def test_rows_that_cannot_be_placed_without_the_lease_are_set_aside(
    tmp_path: Path, command: str, lease: bytes
) -> None:
    cache = make(tmp_path / "a", 1, 2, segments=1)
    left = draft(cache, 1, 7, lease=lease)
    if lease:  # the writer withdrew it, so that anybody may salvage
        left.joinpath("writing/lease.json").rename(left / "writing" / "abandoned.json")
    if command == "forget":
        assert any("damaged" in note for note in forget(cache, ["p1"]).notes)
        assert cache.space(SPEC).status(photos(1, 2)).tolist() == [0, 1]
    elif command == "compact":
        assert "could not be saved" in str(compact(cache))
    else:
        cache.space(SPEC).salvage()
    assert not left.exists()
    [aside] = cache.path.glob("damaged/*/writing/journal")
    assert aside.parents[1].name.endswith(left.name)
    assert verify(cache).clean, str(verify(cache))


def test_faces_are_saved_without_a_lease(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, segments=1)
    space = cache.face_space(DETECTOR)
    writer = space.writer(n_rows=2, about={})
    writer.add(photos(8, 9), faces_of([1, 2]))
    writer.abandon()
    [abandoned] = space.segments_folder.glob("*/writing/abandoned.json")
    abandoned.write_bytes(b"")
    assert space.salvage() == 2
    assert space.status(photos(8, 9)).tolist() == [1, 1]


@pytest.mark.parametrize("name", ["lease.json", "abandoned.json", "notes.txt"])
def test_a_foreign_writing_folder_in_a_finished_segment_stops_nobody(
    tmp_path: Path, name: str
) -> None:
    cache = make(tmp_path / "a", 1, 2, segments=1)
    [segment] = cache.space(SPEC).segments()
    (segment.folder / "writing").mkdir()
    (segment.folder / "writing" / name).write_bytes(b"mine: a lease of a flat")
    assert [found.path for found in verify(cache).findings] == [str(_inside(cache, segment.folder))]
    compact(cache)
    assert verify(cache).clean, str(verify(cache))
    forget(cache, ["p1"])
    assert np.array_equal(cache.space(SPEC).read(photos(2))[0], model(photos(2)))


def _inside(cache: Cache, folder: Path) -> Path:
    return folder.relative_to(cache.path)


def test_a_living_writer_keeps_its_draft_when_its_lease_is_damaged(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, segments=1)
    space = cache.space(SPEC)
    with space.writer(n_rows=1, name="net", about={}) as writer:
        writer.add(photos(5), model(photos(5)))
        [lease] = space.segments_folder.glob("*/writing/lease.json")
        lease.write_bytes(b"")
        assert space.salvage() == 0
        assert "unknown process" in journal.holder(lease.parents[1])
        # Another process finds the lock still held: looking did not drop it.
        code = (
            "import sys; from pathlib import Path; from embedcache.store.journal import Claim; "
            "print(Claim.take(Path(sys.argv[1])))"
        )
        argv = [sys.executable, "-c", code, str(lease.parents[1])]
        assert subprocess.run(argv, capture_output=True, check=True).stdout == b"None\n"
        writer.commit()
    assert space.status(photos(5)).tolist() == [1]
