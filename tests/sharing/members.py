"""Members of a team: caches with vectors of a small network."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedcache.remotes.remote import Remote
from embedcache.spec import Preprocessing, Spec
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests.stores import model, photos

SPEC = Spec(
    kind="computed",
    architecture="net",
    dim=8,
    weights="0" * 64,
    preprocessing=Preprocessing(
        size=(8, 8),
        resize="squash",
        crop_fraction=1.0,
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        decode="1",
    ),
)


Make = Callable[..., Cache]


def intact(cache: Cache) -> bool:
    """Whether verify finds nothing but what an interrupted pull has left to resume."""
    report = verify(cache)
    return all(found.path.startswith("local/incoming/") for found in report.findings)


def held(cache: Cache, n: int = 40) -> set[int]:
    """The photos below n that have a vector in the cache; each is checked against the model."""
    everything = photos(*range(n))
    rows, found = Cache.open(cache.path).space(SPEC).read(everything)
    assert (rows[found] == model(everything, 8)[found]).all()
    return set(np.flatnonzero(found).tolist())


# When the forgetting, or the purging, of somebody else falls into a push or a pull.
MOMENTS: dict[str, Callable[[str, str], bool]] = {
    "after the marks were read": lambda method, key: method == "list" and key == "spaces/",
    "while vectors move": lambda method, key: "/embedding/" in key,
    "before a manifest": lambda method, key: key.endswith("manifest.json"),
}


# Which request of a push or purge fails.
EVERY: list[object] = [
    pytest.param(range(1, 90), marks=pytest.mark.torture, id="every request"),
    pytest.param((7, 12, 16, 24, 31, 39), id="some requests"),
]


def there(remote: Remote) -> bytes:
    """All bytes that the remote stores, of every object."""
    return b"".join(b"".join(remote.blocks(entry.key)) for entry in remote.list(""))


def row_of(n: int) -> bytes:
    return model(photos(n), 8).tobytes()


def forget_elsewhere(cache: Cache, photo: str) -> None:
    """Forget in another process: locks of files hold between processes only."""
    code = (
        "import sys\nfrom embedcache.store import Cache\n"
        "from embedcache.upkeep.forgetting import forget\n"
        "print(forget(Cache.open(sys.argv[1]), sys.argv[2:]))"
    )
    words = [sys.executable, "-c", code, str(cache.path), photo]
    subprocess.run(words, check=True, cwd=Path(__file__).parents[2])


def below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
