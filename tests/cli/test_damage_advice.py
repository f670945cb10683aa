"""A command that meets damage names the file and the command that shows all of it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.errors import Damaged, RemoteError
from embedcache.sharing.share import push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.upkeep.forgetting import forget
from tests.stores import photos
from tests.upkeep.caches import SPEC, make

ROOT = Path(__file__).parents[2]


def cut_column(cache: Cache) -> Path:
    [path] = (cache.path / "photos" / "segments").glob("2*/id_offset/c/0")
    path.write_bytes(path.read_bytes()[:3])
    return path


def cut_entry(cache: Cache) -> Path:
    path = cache.path / "removed" / "00000001" / "entry.json"
    path.write_bytes(path.read_bytes()[:3])
    return path


def remove_document(cache: Cache) -> Path:
    path = cache.path / "photos" / "segments" / "zarr.json"
    path.unlink()
    return path


@pytest.mark.parametrize("damage", [cut_column, cut_entry, remove_document])
def test_damage_is_named_with_its_file_and_a_next_step(
    tmp_path: Path, damage: Callable[[Cache], Path]
) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    forget(cache, ["p1"])
    path = damage(cache)
    words = [sys.executable, "-m", "embedcache", "forget", str(cache.path), "p2"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}"), done.stderr
    assert f"'embedcache verify {cache.path}'" in done.stderr


def test_a_missing_shard_is_named_by_its_path_and_a_next_step(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1)
    shard = min(cache.space(SPEC).folder.glob("segments/*/embedding/c/0/0"))
    shard.unlink()
    with pytest.raises(Damaged) as caught:
        cache.space(SPEC).read(photos(1))
    assert str(caught.value).startswith(f"{shard} is missing")
    assert f"'embedcache verify {cache.path}'" in str(caught.value)


def test_a_check_of_a_shared_copy_does_not_advise_itself(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    forget(cache, ["p1"])
    push(cache, str(tmp_path / "S"))
    for path in (tmp_path / "S" / "removed").glob("*/entry.json"):
        path.write_bytes(path.read_bytes()[:3])
    with pytest.raises(RemoteError, match="Restore this file from a backup") as caught:
        verify_remote(str(tmp_path / "S"))
    assert "embedcache verify" not in str(caught.value)
