"""Forgotten photos are not embedded by the next run over their folder, only on purpose."""

from pathlib import Path

import numpy as np
from PIL import Image

from embedcache.extraction.outcome import Extraction
from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT, OK
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.verify import verify
from tests import stand_in


def folder_of(path: Path, n: int) -> Photos:
    path.mkdir(exist_ok=True)
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    Image.open(path / "0.png").save(path / "twin.png")
    return Photos.read(path)


def run(photos: Photos, cache: Cache, *, again: bool = False) -> Extraction:
    return extract(photos, cache, backbone=stand_in.backbone("net", dim=4), workers=1, again=again)


def test_forgotten_photos_are_skipped_and_counted_until_again_is_said(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", 4)
    cache = Cache.open(tmp_path / "c", create=True)
    run(photos, cache)
    content = cache.digests_of(["1.png"])[0]
    forget(cache, ["1.png"])
    for _ in range(2):
        [outcome] = run(photos, cache).spaces
        assert (outcome.hit, outcome.embedded, outcome.forgotten, outcome.failed) == (4, 0, 1, 0)
        assert "skipped: 1 forgotten before; `again` embeds them" in str(outcome)
    assert not cache.digests_of(["1.png"])[1].any()
    [outcome] = run(photos, cache, again=True).spaces
    assert (outcome.embedded, outcome.forgotten) == (1, 0)
    assert cache.digests_of(["1.png"])[1].all()
    assert cache.spaces()[0].status(content).tolist() == [OK]
    forget(cache, ["1.png"])
    assert cache.spaces()[0].status(content).tolist() == [ABSENT]
    assert verify(cache).clean


def test_an_id_whose_content_another_id_keeps_does_not_come_back(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", 2)
    cache = Cache.open(tmp_path / "c", create=True)
    run(photos, cache)
    assert forget(cache, ["twin.png"]).kept == ("0.png",)
    [outcome] = run(photos, cache).spaces
    assert (outcome.hit, outcome.forgotten) == (2, 1)
    assert cache.digests_of(["0.png", "twin.png"])[1].tolist() == [True, False]
