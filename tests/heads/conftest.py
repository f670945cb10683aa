"""Small fitted worlds: arrays with a known truth, and a cache and label table on disk."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.faces import Faces
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import Dataset


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Products this small only lose time by waiting for a second thread."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class World:
    """A cache of `foreign` vectors and a label table that fits it."""

    cache: Cache
    labels: Path
    ids: list[str]
    vectors: NDArray[np.float32]
    digests: NDArray[np.uint8]

    def contents(self, *names: str) -> NDArray[np.uint8]:
        """A (n, 32) digest per made-up content."""
        return _digests(names)

    def table(self, **columns: Sequence[object]) -> Path:
        """Write another label table beside the first, one column per keyword."""
        with self.labels.with_name("other.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return self.labels.with_name("other.csv")


def _digests(contents: Sequence[str]) -> NDArray[np.uint8]:
    """A (n, 32) digest per content."""
    raw = b"".join(sha256(content.encode()).digest() for content in contents)
    return np.frombuffer(raw, np.uint8).reshape(-1, 32).copy()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """120 photos of 8 floats with a like ratio, swipes, gender and person that follow from them."""
    rng = np.random.default_rng(1)
    n, dim = 120, 8
    ids = [f"u{k:03}" for k in range(n)]
    digests = _digests(ids)
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    swipes = rng.integers(5, 40, n)
    truth = 1 / (1 + np.exp(-vectors[:, 0]))
    ratio = rng.binomial(swipes, truth) / swipes
    gender = np.where(vectors[:, 1] + 0.1 * rng.normal(size=n) > 0, "F", "M")
    cache = Cache.open(tmp_path / "faces.cache", create=True)
    space = cache.space(foreign("net", dim), create=True)
    with space.writer(n_rows=n, name="net", about={}) as writer:
        writer.add(digests, vectors)
    faces = cache.face_space({"name": "detector"}, create=True)
    counts = np.where(np.arange(n) % 10 == 0, 2, 1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(offsets[-1])
    found = Faces(
        offsets,
        np.zeros((total, 4), np.float32),
        np.ones(total, np.float32),
        np.zeros((total, 5, 2), np.float32),
    )
    with faces.writer(n_rows=n, about={}) as face_writer:
        face_writer.add(digests, found)
    cache.record_photos("photos", ids, digests)
    world = World(cache, tmp_path / "labels.csv", ids, vectors, digests)
    other = world.table(
        user_id=ids, gender=list(gender), like_ratio=ratio.tolist(), swipes=swipes.tolist()
    )
    other.rename(world.labels)
    return world


@pytest.fixture
def sample() -> Callable[..., Dataset]:
    """sample(n=300, dim=12, seed=0, task="ratio" | "binary" | "real" | "classes", noise=0.3)."""

    def make(
        n: int = 300, dim: int = 12, *, seed: int = 0, task: str = "ratio", noise: float = 0.3
    ) -> Dataset:
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(n, dim)).astype(np.float32)
        score = vectors[:, 0] - 0.7 * vectors[:, 1] + noise * rng.normal(size=n)
        ids = [f"p{k}" for k in range(n)]
        if task == "ratio":
            swipes = rng.integers(2, 50, n)
            ratio = rng.binomial(swipes, 1 / (1 + np.exp(-score))) / swipes
            return from_arrays(vectors, ratio, weights=swipes, ids=ids, groups=ids)
        if task == "binary":
            return from_arrays(vectors, np.where(score > 0, "M", "F"), ids=ids, groups=ids)
        if task == "classes":
            names = np.array(["cat", "dog", "owl"])[np.digitize(score, [-0.6, 0.6])]
            return from_arrays(vectors, names, ids=ids, groups=ids)
        return from_arrays(vectors, 40 + 10 * score, ids=ids, groups=ids)

    return make
