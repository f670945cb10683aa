"""A cache as a notebook shows it, and its vectors as a table."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embedcache.photos.table import Photos
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from tests.stores import fill, model, photos


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache.open(tmp_path / "a.cache", create=True)
    fill(cache.space(foreign("net", 8), create=True), photos(0, 1, 2))
    cache.record_photos("folder-1", ["a.jpg", "b.jpg", "gone.jpg"], photos(0, 1, 9))
    cache.record_photos("table-2", ["a"], photos(0))
    return cache


def test_a_frame_has_a_row_per_photo_under_its_newest_ids(cache: Cache) -> None:
    frame = cache.frame("net")
    assert frame["photo_id"].to_list() == ["b.jpg", "a"]
    assert cache.frame("net", scope="folder-1")["photo_id"].to_list() == ["a.jpg", "b.jpg"]


def test_a_frame_of_every_place_has_a_row_per_id_that_has_a_vector(cache: Cache) -> None:
    frame = cache.frame("net", every_scope=True)
    assert dict(frame.schema) == (
        {"photo_id": pl.String, "place": pl.String, "vector": pl.Array(pl.Float32, 8)}
    )
    assert frame["photo_id"].to_list() == ["a.jpg", "b.jpg", "a"]
    assert frame["place"].to_list() == ["folder-1", "folder-1", "table-2"]
    assert (frame["vector"].to_numpy() == model(photos(0, 1, 0))).all()
    assert cache.frame("net", scope="table-2")["photo_id"].to_list() == ["a"]
    assert cache.frame("net", scope="nowhere").is_empty()


def test_a_frame_becomes_one_of_pandas(cache: Cache) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = cache.frame("net").to_pandas()
    assert (np.stack(frame["vector"]) == model(photos(1, 0))).all()


def test_what_a_notebook_shows_is_short_and_escaped(cache: Cache, tmp_path: Path) -> None:
    (space,) = cache.spaces()
    assert repr(cache) == f"<Cache: {cache.path}>"
    assert repr(space) == f"<Space: net, 8-d, spec {space.digest[:8]}>"
    for shown in (cache._repr_html_(), space._repr_html_()):
        assert "<td>net</td><td>8</td><td>3</td><td>0</td>" in shown
    for i in range(8):
        (tmp_path / f"<{i}>.jpg").write_bytes(b"\xff\xd8\xff")
    found = Photos.read(tmp_path)
    shown = found._repr_html_()
    assert "8 photos from " in shown
    assert "<td>&lt;4&gt;.jpg</td>" in shown
    assert "3 more" in shown
    assert "&lt;5&gt;" not in shown
