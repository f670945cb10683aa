from collections.abc import Callable
from pathlib import Path

from embedcache.extraction.forecast import forecast
from embedcache.extraction.run import extract
from embedcache.extraction.upstream import Upstream
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from tests import fakes, stand_in


def files(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if "local" not in path.parts
    }


def test_a_forecast_predicts_the_run_and_writes_nothing(
    make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_photos(12)
    cache = Cache.open(tmp_path / "c", create=True)
    model = stand_in.backbone()
    extract(Photos.read(folder), cache, backbone=model)
    make_photos(40)
    photos = Photos.read(folder)
    before = files(cache.path)
    predicted = forecast(photos, cache, backbone=model)
    assert files(cache.path) == before
    space = predicted.spaces[0]
    assert (space.wanted, space.hit, space.missing, space.n_bytes) == (40, 12, 28, 28 * 8 * 4)
    assert predicted.seconds is not None
    assert "28 to embed" in str(predicted)
    done = extract(photos, cache, backbone=model).spaces[0]
    assert (done.hit, done.embedded) == (12, 28)
    after = forecast(photos, cache, backbone=model)
    assert after.seconds is None
    assert "nothing to do" in str(after)


def test_a_forecast_leaves_out_what_a_colleague_has_computed(
    make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    model, remote = stand_in.backbone(), fakes.memory()
    a = Cache.open(tmp_path / "a", create=True)
    photos = Photos.read(make_photos(12))
    ran = extract(photos, a, backbone=model, remote=Upstream(remote, a, offer=True))
    assert (ran.taken, ran.offered) == (0, 12)
    assert ran.document()["remote"] == {"url": remote.name, "taken": 0, "offered": 12}
    photos = Photos.read(make_photos(20))
    b = Cache.open(tmp_path / "b", create=True)
    before = files(b.path)
    for cache in (None, b):
        forecasted = forecast(photos, cache, backbone=model, remote=remote)
        [space] = forecasted.spaces
        assert (space.hit, space.from_remote, space.missing) == (0, 12, 8)
        assert f"12 to download from {remote.name}, 8 to embed" in str(forecasted)
    assert files(b.path) == before
    ran = extract(photos, b, backbone=model, remote=Upstream(remote, b))
    assert f"12 rows taken from {remote.name}, 0 offered" in str(ran)
    again = forecast(photos, Cache.open(tmp_path / "c", create=True), backbone=model, remote=remote)
    assert again.document()["remote"] == {"url": remote.name, "taken": 12}
    assert forecast(photos, None, backbone=model, remote=remote, offer=True).seconds is not None


def test_all_photos_are_missing_in_a_cache_that_does_not_exist_yet(
    make_photos: Callable[..., Path],
) -> None:
    predicted = forecast(Photos.read(make_photos(3)), None, backbone=stand_in.backbone())
    assert predicted.spaces[0].missing == 3
    assert predicted.n_sample == 3
