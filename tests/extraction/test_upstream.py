"""Reading through a shared copy: nothing is computed twice, and no remote fails a run."""

import threading
from pathlib import Path

import pytest
from PIL import Image

from embedcache import disk
from embedcache.errors import InputError, RemoteError
from embedcache.extraction.run import extract
from embedcache.extraction.upstream import Upstream
from embedcache.photos.table import Photos
from embedcache.remotes.remote import Blocks, Denied
from embedcache.settings import read_settings
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.stand_in import backbone


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)


def pixels(folder: Path, numbers: range) -> Photos:
    """Tiny photos that differ in three bytes."""
    folder.mkdir(exist_ok=True)
    for n in numbers:
        colour = (n % 256, n // 256, 7)
        Image.new("RGB", (4, 4), colour).save(folder / f"p{n:05}.png", compress_level=0)
    return Photos.read(folder)


def test_what_a_colleague_computed_is_taken_and_the_rest_is_offered(tmp_path: Path) -> None:
    net, remote = backbone(), fakes.memory()
    ours = pixels(tmp_path / "ours", range(60))
    theirs = pixels(tmp_path / "theirs", range(40, 100))
    a = Cache.open(tmp_path / "a", create=True)
    b = Cache.open(tmp_path / "b", create=True)
    up = Upstream(remote, a, offer=True)
    [first] = extract(ours, a, backbone=net, remote=up, writer="Ada").spaces
    assert (first.embedded, first.hit, up.n_given) == (60, 0, 60)
    [second] = extract(theirs, b, backbone=net, remote=Upstream(remote, b, offer=True)).spaces
    assert (second.embedded, second.hit) == (40, 20)
    [third] = extract(theirs, a, backbone=net, remote=Upstream(remote, a)).spaces
    assert (third.embedded, third.hit) == (0, 60)
    assert b.space(net.spec).counts().writers["Ada"] > 0
    clean = Cache.open(tmp_path / "clean", create=True)
    extract(theirs, clean, backbone=net)
    wanted = theirs.digests().value
    for cache in (a, b):
        rows, found = cache.space(net.spec).read(wanted)
        assert found.all()
        assert (rows == clean.space(net.spec).read(wanted)[0]).all()
        assert verify(cache).clean


def test_a_run_with_nothing_to_embed_offers_what_one_that_was_cut_off_did_not(
    tmp_path: Path,
) -> None:
    net, remote, photos = backbone(), fakes.folder(tmp_path / "shared"), pixels(tmp_path, range(9))
    cache = Cache.open(tmp_path / "a", create=True)

    def fails(number: int) -> str:
        return "before" if number > 12 else ""

    cut = Upstream(fakes.Flaky(remote, fails), cache, offer=True, warn=lambda line: None)
    extract(photos, cache, backbone=net, remote=cut)
    folder = tmp_path / "shared" / "spaces" / net.spec.digest / "segments"
    assert not any(folder.glob("2*"))
    up = Upstream(remote, cache, offer=True)
    [space] = extract(photos, cache, backbone=net, remote=up).spaces
    assert (space.embedded, up.n_given) == (0, 9)
    assert [path.name[0] for path in folder.iterdir() if path.is_dir()] == ["2"]
    assert not any(folder.glob(".*"))


def test_two_members_who_begin_at_once_embed_little_twice(tmp_path: Path) -> None:
    n, remote = 2000, fakes.memory()
    photos = pixels(tmp_path / "photos", range(n))
    done: dict[int, int] = {}

    def work(member: int) -> None:
        cache = Cache.open(tmp_path / f"cache{member}", create=True)
        up = Upstream(remote, cache, offer=True, seed=member)
        [space] = extract(photos, cache, backbone=backbone(), remote=up, workers=1).spaces
        assert space.hit + space.embedded == n
        done[member] = space.embedded

    threads = [threading.Thread(target=work, args=(member,)) for member in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert n <= sum(done.values()) <= 1.3 * n, done


def test_a_remote_that_is_down_costs_one_warning(tmp_path: Path) -> None:
    photos = pixels(tmp_path / "photos", range(100))
    cache = Cache.open(tmp_path / "c", create=True)
    warnings: list[str] = []
    dead = fakes.Flaky(fakes.memory(), lambda n: "before")
    up = Upstream(dead, cache, offer=True, warn=warnings.append)
    [space] = extract(photos, cache, backbone=backbone(), remote=up).spaces
    assert space.embedded == 100
    assert len(warnings) == 1
    assert "Continuing without the remote" in warnings[0]


@pytest.mark.parametrize("address", ["s3://team/x", "taem/faces"])
def test_an_impossible_remote_costs_one_warning(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:45871")
    monkeypatch.chdir(tmp_path)
    photos = pixels(tmp_path / "photos", range(40))
    cache = Cache.open(tmp_path / "c", create=True)
    warnings: list[str] = []
    up = Upstream(address, cache, offer=True, warn=warnings.append)
    [space] = extract(photos, cache, backbone=backbone(), remote=up).spaces
    assert space.embedded == 40
    assert len(warnings) == 1
    assert ("AWS_ENDPOINT_URL must be" in warnings[0]) or ("there is no folder taem" in warnings[0])
    assert not (tmp_path / "taem").exists()


def test_a_mistyped_remote_is_refused_before_a_photo_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = pixels(tmp_path / "photos", range(3))
    cache = Cache.open(tmp_path / "c", create=True)
    monkeypatch.setattr(Photos, "digests", None)
    with pytest.raises(RemoteError, match="s4"):
        extract(photos, cache, backbone=backbone(), remote="s4://x")


@pytest.mark.parametrize("k", [3, 12, 30])
def test_a_remote_that_goes_down_midway_costs_one_warning(k: int, tmp_path: Path) -> None:
    photos = pixels(tmp_path / "photos", range(150))
    cache = Cache.open(tmp_path / "c", create=True)
    warnings: list[str] = []
    dying = fakes.Flaky(fakes.memory(), lambda n: "amid" if n >= k else "")
    up = Upstream(dying, cache, offer=True, warn=warnings.append)
    [space] = extract(photos, cache, backbone=backbone(), remote=up).spaces
    assert space.embedded == 150
    assert len(warnings) == 1


def test_a_remote_that_is_read_only_is_still_read(tmp_path: Path) -> None:
    remote = fakes.memory()
    photos = pixels(tmp_path / "photos", range(90))
    a = Cache.open(tmp_path / "a", create=True)
    some = Photos(photos.ids[:50], photos.paths[:50], photos.scope)
    extract(some, a, backbone=backbone(), remote=Upstream(remote, a, offer=True))

    class ReadOnly(fakes.Flaky):
        def write(self, key: str, blocks: Blocks, *, size: int) -> None:
            raise Denied("no right to write")

        def create(self, key: str, data: bytes) -> bool:
            raise Denied("no right to write")

    warnings: list[str] = []
    b = Cache.open(tmp_path / "b", create=True)
    locked = ReadOnly(remote, lambda n: "")
    up = Upstream(locked, b, offer=True, warn=warnings.append)
    [space] = extract(photos, b, backbone=backbone(), remote=up).spaces
    assert (space.hit, space.embedded) == (50, 40)
    assert len(warnings) == 1
    assert "not uploaded" in warnings[0]


def test_damaged_rows_of_the_remote_are_computed_here(tmp_path: Path) -> None:
    root = tmp_path / "shared"
    photos = pixels(tmp_path / "photos", range(40))
    a = Cache.open(tmp_path / "a", create=True)
    extract(photos, a, backbone=backbone(), remote=Upstream(str(root), a, offer=True))
    for shard in root.glob("spaces/*/segments/*/embedding/c/*/0"):
        shard.write_bytes(bytes(len(shard.read_bytes())))
    warnings: list[str] = []
    b = Cache.open(tmp_path / "b", create=True)
    up = Upstream(str(root), b, warn=warnings.append)
    [space] = extract(photos, b, backbone=backbone(), remote=up).spaces
    assert space.embedded == 40
    assert "is not what was written" in warnings[0]
    assert verify(b).clean


def test_settings_are_found_upwards(tmp_path: Path) -> None:
    deep = tmp_path / "project" / "a" / "b"
    deep.mkdir(parents=True)
    assert read_settings(deep).file is None or not read_settings(deep).remote
    (tmp_path / "project" / "embedcache.toml").write_text(
        'remote = "../shared"\noffer = true\nwriter = "Ada"\n'
    )
    found = read_settings(deep)
    assert (found.offer, found.writer) == (True, "Ada")
    assert Path(found.remote).resolve() == (tmp_path / "shared").resolve()
    (deep / "embedcache.toml").write_text('remote = "s3://bucket/team"\n')
    assert read_settings(deep).remote == "s3://bucket/team"
    for text, remote in (("none", ""), ("s3:/x", "s3:/x"), ("~/x", str(Path.home() / "x"))):
        (deep / "embedcache.toml").write_text(f'remote = "{text}"\n')
        assert read_settings(deep).remote == remote
    deep.chmod(0o777)  # everybody could have put it there
    assert read_settings(deep).writer == "Ada"


@pytest.mark.parametrize("text", ["remote = 3\n", 'password = "hush"\n', "remote = \n"])
def test_settings_that_do_not_fit_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "embedcache.toml").write_text(text)
    with pytest.raises(InputError, match=r"embedcache\.toml") as caught:
        read_settings(tmp_path)
    assert "hush" not in str(caught.value)
