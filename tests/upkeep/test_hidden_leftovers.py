"""Hidden files of processes that were killed are named by verify, and go; those of others stay."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache import disk
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.verify import verify
from tests.sharing.members import below
from tests.stores import dead_mark, photos
from tests.upkeep.caches import SPEC, make

HEX = "0123456789abcdef" * 4
# Where a process writes beside what it replaces.
PLACES = (
    *("local/staging", "local/specs.json", "local/backbones.json", "memory/digests.npz"),
    *(f"memory/alike/{HEX}.groups", f"local/alike/{HEX}.json", f"memory/index/{HEX}.table"),
    *(f"memory/remotes/{HEX[:16]}/{HEX}", f"local/seen/{HEX[:16]}.json"),
    *("zarr.json", "spaces/zarr.json", f"spaces/{SPEC.digest}/zarr.json", "refs/paper.json"),
    *(f"spaces/{SPEC.digest}/segments/zarr.json", "photos/segments/zarr.json"),
)


def repair(cache: Cache) -> object:
    return verify(cache, repair=True)


def forget_one(cache: Cache) -> object:
    return forget(cache, ["p1"])


def put(cache: Cache, place: str, mark: str) -> Path:
    """A temporary name beside a place in a cache; it holds a photo's digest."""
    inner = Path(place)
    if inner.parts[0] == "memory":
        inner = cache.remembered(str(inner.relative_to("memory")))
    path = (cache.path / inner).with_name(f".{inner.name}.{mark}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photos(1).tobytes())
    return path


def bytes_of_digest(cache: Cache) -> list[Path]:
    raw = photos(1).tobytes()
    return [path for path in cache.path.rglob("*") if path.is_file() and raw in path.read_bytes()]


@pytest.mark.parametrize("command", [forget_one, compact, repair])
def test_what_killed_processes_left_is_named_and_goes(
    tmp_path: Path, command: Callable[[Cache], object]
) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    left = [put(cache, place, dead_mark()) for place in PLACES]
    named = {str(path.relative_to(cache.path)) for path in left}
    report = verify(cache)
    assert {found.path for found in report.findings} == named, str(report)
    assert not report.clean
    assert "was left by a process that has ended" in str(report)
    command(cache)
    if command is forget_one:
        compact(cache)  # outside local/ it clears what a crash left
    assert not [path for path in left if path.exists()]
    assert verify(cache).clean, str(verify(cache))
    if command is forget_one:
        assert bytes_of_digest(cache) == []


def test_forget_leaves_no_digest_of_a_photo_in_a_hidden_file(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    for place in PLACES:
        put(cache, place, dead_mark())
    forget(cache, ["p1"])
    assert bytes_of_digest(cache) == []


@pytest.mark.parametrize("command", [forget_one, compact, repair])
def test_what_a_living_process_writes_and_names_of_others_stay(
    tmp_path: Path, command: Callable[[Cache], object]
) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    places = [place for place in PLACES if "memory" not in place]
    mine = [put(cache, place, disk.mark_of_process()) for place in places]
    theirs = [
        put(cache, place, mark)
        for place, mark in (
            *(("local/notes.txt", dead_mark()), ("local/specs.json", "20261126")),
            *(("local/alike/x.groups", dead_mark()[:8]), ("zarr.json", "bak")),
        )
    ]
    report = verify(cache)
    assert report.clean, str(report)
    assert len(report.notes) == len(mine)
    said = str(command(cache))
    assert all(path.exists() for path in [*mine, *theirs])
    if command is forget_one:
        assert f"{mine[0]} is held by a running process" in said


def test_forget_leaves_no_id_in_the_draft_of_a_killed_writer(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    code = (
        "import os, sys\n"
        "from embedcache import disk\n"
        "from embedcache.store.cache import Cache\n"
        "from tests.stores import photos\n"
        "disk.publish = lambda path, data: os.kill(os.getpid(), 9)\n"
        "Cache.open(sys.argv[1]).record_photos('later', ['a-name-of-mine'], photos(1))"
    )
    words = [sys.executable, "-c", code, str(cache.path)]
    subprocess.run(words, cwd=Path(__file__).parents[2])
    assert b"a-name-of-mine" in below(cache.path)
    forget(cache, ["p1"])
    assert b"a-name-of-mine" not in below(cache.path)


def test_rows_that_a_purge_fetched_are_not_said_to_be_of_a_pull_alone(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2)
    (cache.local / "incoming" / "20260101T000000000000-00000000").mkdir(parents=True)
    assert "was left by an interrupted pull or purge: rerun it" in str(verify(cache))
