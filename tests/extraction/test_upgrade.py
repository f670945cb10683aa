"""A new backbone embeds what an old one has, from files found by their content."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedcache.errors import PhotosError
from embedcache.extraction.run import extract
from embedcache.extraction.upgrade import upgrade
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.upkeep.forgetting import forget
from tests import stand_in

MakePhotos = Callable[..., Path]


@pytest.fixture
def old(make_photos: MakePhotos, tmp_path: Path) -> tuple[Cache, Path]:
    """A cache in which the backbone "old" has 6 photos, and their folder."""
    folder = make_photos(6)
    cache = Cache.open(tmp_path / "c", create=True)
    _age(folder)
    extract(Photos.read(folder), cache, backbone=stand_in.backbone("old"), workers=1)
    return cache, folder


def _age(folder: Path) -> None:
    """Files that are an hour old: the digests of new ones are not remembered."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)


def counts(cache: Cache, new: str = "new", **options: object) -> tuple[int, int, int, int]:
    found = upgrade(
        cache,
        old="old",
        new=stand_in.backbone(new, dim=5),  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    )
    [space] = found.extraction.spaces
    return found.had, space.embedded, found.unreadable, found.missing


def test_all_that_the_old_one_has_is_embedded_and_both_stay_readable(
    old: tuple[Cache, Path],
) -> None:
    cache, folder = old
    before = cache.photo_table()
    assert counts(cache) == (6, 6, 0, 0)
    photos = Photos.read(folder)
    for name in ("old", "new"):
        assert np.isfinite(stand_in.vectors(cache, photos, name)).all()
    after = cache.photo_table()
    assert (after.ids, after.scopes) == (before.ids, before.scopes)
    assert counts(cache) == (6, 0, 0, 0)  # nothing twice


def test_photos_that_moved_or_changed_are_counted_and_found_in_a_folder(
    old: tuple[Cache, Path], tmp_path: Path
) -> None:
    cache, folder = old
    (tmp_path / "elsewhere").mkdir()
    (folder / "p000.jpg").rename(tmp_path / "elsewhere" / "renamed.jpg")
    (folder / "p001.jpg").write_bytes((folder / "p002.jpg").read_bytes())  # now another photo
    assert counts(cache) == (6, 4, 2, 2)
    here = Photos.read(tmp_path / "elsewhere")
    assert counts(cache, photos=here) == (6, 1, 1, 1)
    assert "renamed.jpg" not in cache.photo_table().ids


def test_photos_of_the_folder_that_the_old_one_lacks_are_left_alone(
    old: tuple[Cache, Path], make_photos: MakePhotos
) -> None:
    cache, _ = old
    more = make_photos(9)
    assert counts(cache, photos=Photos.read(more)) == (6, 6, 0, 0)


def test_forgotten_photos_are_not_embedded(old: tuple[Cache, Path]) -> None:
    cache, folder = old
    forget(cache, ["p003.jpg"])
    assert counts(cache, photos=Photos.read(folder)) == (5, 5, 0, 0)


def test_an_interrupted_upgrade_goes_on_and_embeds_nothing_twice(old: tuple[Cache, Path]) -> None:
    cache, _ = old
    sizes: list[int] = []
    new = stand_in.backbone("new", before=sizes.append)
    options = {"new": new, "batch_size": 1, "workers": 1}
    first = upgrade(cache, old="old", stop=lambda: len(sizes) >= 2, **options)  # type: ignore[arg-type]
    n_first = first.extraction.spaces[0].embedded
    assert first.extraction.interrupted
    assert 0 < n_first < 6
    second = upgrade(cache, old="old", **options)  # type: ignore[arg-type]
    assert (second.extraction.spaces[0].hit, second.missing) == (n_first, 0)
    assert sum(sizes) == 6


def test_files_that_nobody_knows_are_an_error_that_says_what_to_name(
    old: tuple[Cache, Path],
) -> None:
    cache, folder = old
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(PhotosError, match="none of the 6 photos of old was found"):
        counts(cache)


def test_the_command(
    run: Callable[..., tuple[int, str, str]],
    make_photos: MakePhotos,
    tiny_weights: Path,
    tmp_path: Path,
) -> None:
    folder, cache = make_photos(4), tmp_path / "c"
    old = f"local-dir:{tiny_weights}"
    assert run("extract", folder, "--cache", cache, "--backbone", old)[0] == 0
    words = ("--from", "local-dir:tiny", "--to", old, "--photos", folder, "--precision", "bfloat16")
    status, out, err = run("upgrade", cache, *words, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["photos"], found["unreadable"], found["missing"]) == (4, 0, 0)
    assert found["spaces"][0]["embedded"] == 4
    status, _, err = run("upgrade", cache, "--from", "nothing", "--to", old)
    assert (status, err.count("error: ")) == (1, 1)
