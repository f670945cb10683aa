"""What a killed run left is gone, and entered, once any other command has run in the cache."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.sharing.share import pull, push
from embedcache.store.cache import Cache
from embedcache.store.history import History
from embedcache.upkeep.exchange import import_vectors
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.merging import merge
from embedcache.upkeep.verify import verify
from tests import stand_in
from tests.stores import dead_mark, photos
from tests.upkeep.caches import SPEC, make

HIDDEN = (
    *("spaces/.zarr.json.", "removed/.entry-", "spaces/.new-", "local/.digests.npz."),
    *(f"spaces/{SPEC.digest}/segments/.in-", "photos/segments/.in-", "faces/.zarr.json."),
)


def run_import(cache: Cache, folder: Path) -> object:
    np.save(folder / "v.npy", np.ones((1, 4), np.float32))
    (folder / "v.csv").write_text("photo_id\np9\n")
    given = {"ids": ["p9"], "digests": photos(9), "name": "other", "scope": "s"}
    return import_vectors(cache, folder / "v.npy", folder / "v.csv", **given)  # type: ignore[arg-type]


def run_extract(cache: Cache, folder: Path) -> object:
    (folder / "photos").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "photos" / "a.png")
    read = Photos.read(folder / "photos")
    return extract(read, cache, backbone=stand_in.backbone("net", dim=4), workers=1)


def run_pull(cache: Cache, folder: Path) -> object:
    push(make(folder / "there", 5), str(folder / "S"))
    return pull(str(folder / "S"), cache)


COMMANDS: dict[str, Callable[[Cache, Path], object]] = {
    "import": run_import,
    "extract": run_extract,
    "merge": lambda cache, folder: merge(cache, [make(folder / "there", 5)]),
    "pull": run_pull,
    "push": lambda cache, folder: push(cache, str(folder / "S")),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_hidden_names_of_killed_runs_go_and_those_of_others_stay(
    tmp_path: Path, command: str
) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    mark = dead_mark()
    left = [cache.path / f"{place}{mark}" for place in HIDDEN]
    for path in left:
        if path.name.startswith((".in-", ".new-", ".entry-")):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"{")
    kept = cache.path / "spaces" / ".DS_Store"
    kept.write_bytes(b"")
    (tmp_path / "w").mkdir()
    COMMANDS[command](cache, tmp_path / "w")
    assert not [path for path in left if path.exists()]
    assert kept.exists()
    kept.unlink()
    assert verify(cache).clean, str(verify(cache))


@contextmanager
def killed_before_the_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the block does ends where it would enter tombstones and lifts in the log."""

    def killed(self: History) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(History, "note", killed)
        with pytest.raises(KeyboardInterrupt):
            yield


def pull_from(cache: Cache, there: Cache) -> object:
    return pull(str(there.path), cache)


@pytest.mark.parametrize("bring", [lambda cache, there: merge(cache, [there]), pull_from])
def test_tombstones_that_a_killed_run_took_over_are_entered_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bring: Callable[[Cache, Cache], object]
) -> None:
    there, cache = make(tmp_path / "there", 1, 2, 3), make(tmp_path / "a", 2, 3)
    forget(there, ["p1"])

    with killed_before_the_log(monkeypatch):
        bring(cache, there)
    assert "named by no entry" in str(verify(cache))
    cache = Cache.open(cache.path)
    bring(cache, there)
    assert verify(cache).clean, str(verify(cache))
    n = cache.history.log().n
    bring(cache, there)
    assert cache.history.log().n == n  # nothing is entered twice


def test_a_lift_that_a_killed_run_did_not_enter_is_entered_by_its_rerun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(tmp_path / "c", 1, 2)
    forget(cache, ["p1"])

    with killed_before_the_log(monkeypatch):
        cache.lift(photos(1), scope="folder", ids=["p1"])
    assert "named by no entry" in str(verify(cache))
    Cache.open(cache.path).lift(photos(1), scope="folder", ids=["p1"])
    assert verify(cache).clean, str(verify(cache))
