"""Vectors do not depend on how they were computed, beyond the tolerance in docs/format.md."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedcache.backbones.loading import load
from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache

STATED = 1e-5
WAYS: tuple[dict[str, int], ...] = (
    {"batch_size": 1, "workers": 1},
    {"batch_size": 7, "workers": 3},  # the last batch is short
    {"batch_size": 64, "workers": 2},  # so is the only one
    {},
)


def largest_difference(photos: Photos, backbone: str, scratch: Path) -> float:
    """The largest relative difference of a photo's vector, in the 2-norm, between ways to run."""
    network, found = load(backbone, device="cpu"), []
    turned = Photos(photos.ids[::-1], photos.paths[::-1], photos.scope)
    for i, way in enumerate(WAYS):
        cache = Cache.open(scratch / str(i), create=True)
        extract(turned if i % 2 else photos, cache, backbone=network, **way)  # type: ignore[arg-type]
        vectors, there = cache.vectors(network.name, photos.ids, scope=photos.scope)
        found.append(vectors[there])
    norm = np.linalg.norm(found[0], axis=1)
    return float(max((np.linalg.norm(v - found[0], axis=1) / norm).max() for v in found[1:]))


def test_batches_neighbours_order_and_threads_change_no_vector(
    make_photos: Callable[..., Path], tiny_weights: Path, tmp_path: Path
) -> None:
    photos = Photos.read(make_photos(17))
    assert largest_difference(photos, f"local-dir:{tiny_weights}", tmp_path) <= STATED


@pytest.mark.real
@pytest.mark.parametrize(
    "name", ["inception_v3_nsfwjs", "efficientnet_lite0", "faceres_mobilenetv1@face"]
)
def test_batches_order_and_threads_change_no_vector_of_real_networks(
    name: str, real_data: Path, tmp_path: Path
) -> None:
    found = Photos.read(real_data / "data" / "mebeauty" / "photos")
    some = Photos(found.ids[:400:25], found.paths[:400:25], found.scope)
    assert largest_difference(some, f"local-dir:{real_data}/weights/{name}", tmp_path) <= STATED
