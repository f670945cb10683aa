"""A `forget` that is run again: what a tombstone names is forgotten already, which is no error."""

from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import CacheError
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, OK
from embedcache.store.photo_ids import PhotoIds
from embedcache.upkeep import forgetting
from embedcache.upkeep.forgetting import forget, forget_forgotten
from tests.stores import photos
from tests.upkeep.caches import SPEC, make


class Killed(BaseException):
    """What no code catches."""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = make(tmp_path / "a", *range(4))
    cache.record_photos("folder", ["twin"], photos(1))
    return cache


def test_an_id_whose_photo_another_id_keeps_is_forgotten_already(cache: Cache) -> None:
    forget(cache, ["p1"])
    done = forget(cache, ["p1", "p2"])
    assert done.notes[0] == "photo id 'p1' was forgotten already"
    assert (done.ids, done.contents) == (1, 1)
    assert Cache.open(cache.path).space(SPEC).status(photos(1, 2)).tolist() == [OK, ABSENT]
    done = forget(Cache.open(cache.path), ["p1"], scope="folder")
    assert (done.ids, done.rows) == (0, 0)
    assert "photo id 'p1' was forgotten already" in str(done)


def test_an_id_of_another_place_or_that_never_was_is_an_error(cache: Cache) -> None:
    forget(cache, ["p1"])
    for wanted, scope in ((["p1"], "elsewhere"), (["p1", "p9"], None), (["p9"], None)):
        with pytest.raises(CacheError, match="never recorded"):
            forget(cache, wanted, scope=scope)


def test_a_photo_named_by_its_sha256_is_forgotten_already(cache: Cache) -> None:
    digest = photos(1)[0].tobytes().hex()
    forget(cache, [digest])
    done = forget(Cache.open(cache.path), [digest])
    assert (done.ids, done.rows) == (0, 0)


def test_a_forget_that_was_killed_knows_its_ids_while_they_are_stored(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(forgetting, "_remove", dies)
        with pytest.raises(Killed):
            forget(cache, ["p3"])
    real = PhotoIds.pairs_of

    def looks(self: PhotoIds, **wanted: Any) -> set[tuple[str, str, bytes]]:
        found = real(self, **wanted)
        monkeypatch.setattr(PhotoIds, "pairs_of", real)
        forget_forgotten(Cache.open(cache.path))  # another command ends it after the first look
        return found

    monkeypatch.setattr(PhotoIds, "pairs_of", looks)
    assert forget(Cache.open(cache.path), ["p3"]).ids == 1
    assert Cache.open(cache.path).space(SPEC).status(photos(3)).tolist() == [ABSENT]
