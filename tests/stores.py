"""Photos that are only digests, a model that is only a hash, and caches filled with both."""

import functools
import subprocess
import sys
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from embedcache.spec import Json
from embedcache.store.faces import Faces
from embedcache.store.space import Space

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
DETECTOR: dict[str, Json] = {"name": "a detector", "thresholds": [0.5, 0.75]}


def photos(*numbers: int) -> U8:
    raw = b"".join(sha256(str(n).encode()).digest() for n in numbers)
    return np.frombuffer(raw, np.uint8).reshape(-1, 32)


def model(digests: U8, dim: int = 8) -> F32:
    """A stand-in for a network: vectors that only the content decides."""
    seeds = [int.from_bytes(row.tobytes()[:8], "big") for row in digests]
    rows = [np.random.default_rng(seed).standard_normal(dim, np.float32) for seed in seeds]
    return np.array(rows, np.float32).reshape(-1, dim)


def bytes_of(digests: U8, dim: int) -> U8:
    """Kept pixels that only the content decides; every value of a byte is among many of them."""
    seeds = [int.from_bytes(row.tobytes()[:8], "big") for row in digests]
    rows = [np.random.default_rng(seed).integers(0, 256, dim, np.uint8) for seed in seeds]
    return np.array(rows, np.uint8).reshape(-1, dim)


def faces_of(counts: list[int]) -> Faces:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    n = int(offsets[-1])
    numbers = np.arange(15 * n, dtype=np.float32)
    return Faces(
        offsets,
        numbers[: 4 * n].reshape(n, 4),
        numbers[4 * n : 5 * n],
        numbers[5 * n :].reshape(n, 5, 2),
    )


def fill(space: Space, digests: U8, *, name: str = "net") -> str | None:
    with space.writer(n_rows=len(digests), name=name, about={"device": "cpu"}) as writer:
        writer.add(digests, model(digests, space.dim))
        return writer.commit()


@functools.cache
def dead_mark() -> str:
    """The suffix of a hidden name that a process of this machine gave, which has ended."""
    code = "from embedcache import disk; print(disk.mark_of_process())"
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
