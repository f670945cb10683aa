"""Eight parts at once, into a folder and through an S3 server: complete, whole, nothing twice."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedcache.extraction.run import extract
from embedcache.photos.table import Photos
from embedcache.sharing.share import pull
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests import stand_in

N_PARTS = 8
MOST_TWICE = 0.01

CHILD = """
    import sys
    from embedcache import Cache, Photos, disk, extract
    from embedcache.extraction.parts import WorkPart
    from tests import stand_in

    disk.sync = disk.sync_folder = lambda _: None
    photos, cache, part, remote = sys.argv[1:]
    seen = []
    found = extract(Photos.read(photos), Cache.open(cache, create=True), workers=1,
                    backbone=stand_in.backbone(before=seen.append), part=WorkPart.parse(part),
                    remote=remote or None, offer=bool(remote)).spaces[0]
    assert found.left == found.failed == 0, found
    print(sum(seen))
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket on an S3 protocol server on loopback."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    from tests.together.places import BUCKET, S3Server

    before = dict(os.environ)
    server = S3Server()
    try:
        yield f"s3://{BUCKET}"
    finally:
        server.close()
        os.environ.clear()
        os.environ.update(before)


def pictures(folder: Path, n: int) -> Photos:
    """n photos, all different."""
    for i in range(n):
        place = folder / f"{i // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i % 256, i // 256 % 256, i // 65_536)).save(place / f"{i:06}.png")
    return Photos.read(folder)


def embedded(folder: Path, caches: list[Path], remote: str = "") -> int:
    """How many photos eight processes embedded, each its part, all at once."""
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder)]
    children = [
        subprocess.Popen(
            [*command, str(cache), f"{i + 1}/{N_PARTS}", remote],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        for i, cache in enumerate(caches)
    ]
    printed = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0] * N_PARTS
    return sum(map(int, printed))


def check(cache: Cache, photos: Photos, tmp_path: Path, n_embedded: int) -> None:
    """The cache is complete, whole, equal to that of one process, and cost hardly more."""
    print(f"{n_embedded:,} embedded for {len(photos):,} photos")
    assert len(photos) <= n_embedded <= (1 + MOST_TWICE) * len(photos)
    assert verify(cache).clean
    alone = Cache.open(tmp_path / "alone", create=True)
    extract(photos, alone, backbone=stand_in.backbone())
    for one in (cache, alone):
        one.record_photos(photos.scope, photos.ids, photos.digests().value)
    np.testing.assert_array_equal(stand_in.vectors(cache, photos), stand_in.vectors(alone, photos))


def into_one_folder(tmp_path: Path, n: int) -> None:
    photos = pictures(tmp_path / "photos", n)
    n_embedded = embedded(tmp_path / "photos", [tmp_path / "c"] * N_PARTS)
    cache = Cache.open(tmp_path / "c")
    assert not list((cache.local / "at-work").iterdir())
    check(cache, photos, tmp_path, n_embedded)


def through_a_server(tmp_path: Path, url: str, n: int) -> None:
    photos = pictures(tmp_path / "photos", n)
    scratch = [tmp_path / f"scratch{i}" for i in range(N_PARTS)]
    n_embedded = embedded(tmp_path / "photos", scratch, url)
    found = verify_remote(url)
    assert found.clean, found
    assert not found.unfinished
    cache = Cache.open(tmp_path / "c", create=True)
    assert pull(url, cache).rows == n
    check(cache, photos, tmp_path, n_embedded)


def test_eight_parts_at_once_fill_one_folder(tmp_path: Path) -> None:
    into_one_folder(tmp_path, 400)


def test_eight_parts_at_once_offer_to_one_server(tmp_path: Path, bucket: str) -> None:
    through_a_server(tmp_path, f"{bucket}/short", 400)


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_eight_parts_of_many_photos_fill_one_folder(tmp_path: Path) -> None:
    into_one_folder(tmp_path, 20_000)


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_eight_parts_of_many_photos_offer_to_one_server(tmp_path: Path, bucket: str) -> None:
    through_a_server(tmp_path, f"{bucket}/long", 20_000)
