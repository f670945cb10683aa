"""`forget` by files of photos and by a list of ids, and what it says of a shared copy."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, OK
from tests.stores import U8, fill, photos
from tests.upkeep.caches import SPEC, make

Run = Callable[..., tuple[int, str, str]]
BYTES = b"the bytes of a photo"


def content() -> U8:
    return np.frombuffer(sha256(BYTES).digest(), np.uint8).reshape(1, 32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.chdir(tmp_path)
    cache = make(tmp_path / "a", 1, 2, 3)
    fill(cache.space(SPEC), content())
    for name in ("ann.jpg", "twin.jpg"):
        cache.record_photos("folder", [name], content())
    return cache


def test_a_photos_file_takes_all_its_ids_and_is_forgotten_already_at_a_rerun(
    cache: Cache, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "renamed.jpg").write_bytes(BYTES)
    assert "removed 2 ids and 1 row of 1 photo" in run("forget", cache.path, "renamed.jpg")[1]
    assert Cache.open(cache.path).space(SPEC).status(content()).tolist() == [ABSENT]
    status, out, _ = run("forget", cache.path, "renamed.jpg")
    assert (status, f"photo {sha256(BYTES).hexdigest()} was forgotten already" in out) == (0, True)


def test_a_name_that_is_an_id_here_is_no_file(cache: Cache, tmp_path: Path, run: Run) -> None:
    (tmp_path / "p1").write_bytes(BYTES)
    assert run("forget", cache.path, "p1")[0] == 0
    found = Cache.open(cache.path).space(SPEC).status(np.concatenate([photos(1), content()]))
    assert found.tolist() == [ABSENT, OK]


def test_a_file_that_is_no_photo_here_is_refused_and_leaves_no_tombstone(
    cache: Cache, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "people.csv").write_text("photo_id\np1\n")
    status, _, err = run("forget", cache.path, "people.csv", "p1")
    assert (status, "holds no photo with the bytes of people.csv" in err) == (1, True)
    assert not cache.history.dead()
    status, out, _ = run("forget", cache.path, "p2", "--ids", "people.csv")
    assert (status, "removed 2 ids" in out) == (0, True)


def test_a_cache_with_a_shared_copy_says_what_is_still_there(
    cache: Cache, tmp_path: Path, run: Run
) -> None:
    assert "purge" not in run("forget", cache.path, "p1")[1]
    (tmp_path / "embedcache.toml").write_text(f'remote = "{tmp_path / "S"}"\n')
    out = run("forget", cache.path, "p2")[1]
    assert f"'embedcache push --purge {cache.path} {tmp_path / 'S'}'" in out
