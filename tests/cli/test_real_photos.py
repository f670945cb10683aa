"""The promise on real photos and real weights: vectors are timm's own, and a second run is free."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import timm
import torch
from PIL import Image

from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache


@pytest.mark.real
def test_vectors_of_real_photos_equal_a_plain_timm_forward(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "data" / "mebeauty"
    users = pl.read_csv(folder / "users.csv")
    by_size = sorted((folder / p).stat().st_size for p in users["photo"])
    large = by_size[-2]  # two camera originals among thirty usual photos
    chosen = users.filter(
        pl.Series(
            [i < 30 or (folder / p).stat().st_size >= large for i, p in enumerate(users["photo"])]
        )
    ).with_columns((str(folder) + "/" + pl.col("photo")).alias("photo"))
    chosen.write_csv(tmp_path / "users.csv")
    photos = Photos.read(tmp_path / "users.csv", id_column="user_id")
    cache = Cache.open(tmp_path / "c", create=True)
    names = [
        f"local-dir:{real_data}/weights/{name}"
        for name in ("efficientnet_lite0", "inception_v3_nsfwjs", "faceres_mobilenetv1@face")
    ]
    found = extract(photos, cache, backbone=names, device="cpu")
    assert [space.embedded + space.failed for space in found.spaces] == [len(photos)] * 3
    assert found.spaces[2].embedded >= 0.9 * len(photos)
    for name in names[:2]:
        model = timm.create_model(name, pretrained=True, num_classes=0).eval()
        transform = timm.data.create_transform(
            **timm.data.resolve_data_config({}, model=model), is_training=False
        )
        vectors, there = cache.vectors(name, list(photos.ids))
        assert there.all()
        for path, vector in zip(photos.paths, vectors, strict=True):
            with torch.inference_mode(), Image.open(path) as picture:
                plain = model(transform(picture.convert("RGB"))[None])[0].numpy()
            assert np.linalg.norm(vector - plain) <= 1e-4 * np.linalg.norm(plain)
    again = extract(photos, cache, backbone=names, device="cpu")
    assert [space.embedded for space in again.spaces] == [0, 0, 0]
