"""Memory is constant in the number of photos: what grows is a few hundred bytes for each."""

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

CHILD = """
    import sys
    from embedcache import extract
    from embedcache.photos import Photos
    from embedcache.store import Cache
    from tests import stand_in

    found = extract(Photos.read(sys.argv[1]), Cache.open(sys.argv[2], create=True),
                    backbone=stand_in.backbone(), workers=2)
    space = found.spaces[0]
    with open("/proc/self/status") as status:
        peak = next(line for line in status if line.startswith("VmHWM"))
    print(space.embedded, space.hit, peak.split()[1])
"""


def make(folder: Path, n: int) -> None:
    """n small JPEGs of different bytes: one picture, another number after its end."""
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), (90, 140, 60)).save(buffer, "JPEG")
    picture = buffer.getvalue()
    for i in range(n):
        place = folder / f"{i // 1000:04}"
        if not i % 1000:
            place.mkdir(parents=True)
        (place / f"{i:07}.jpg").write_bytes(picture + b"%d" % i)


def peak_bytes(folder: Path, cache: Path, *, n: int, fresh: bool) -> int:
    """Most memory that a process held while it extracted n photos."""
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), str(cache)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ).stdout.split()
    embedded, hit, kilobytes = map(int, printed)
    assert (embedded, hit) == ((n, 0) if fresh else (0, n))
    return 1024 * kilobytes


def growth(tmp_path: Path, few: int, many: int) -> list[int]:
    """Bytes by which the peak is higher for many photos than for few, fresh and in a rerun."""
    for n in (few, many):
        make(tmp_path / f"photos{n}", n)
    found = []
    for fresh in (True, False):
        peaks = [
            peak_bytes(tmp_path / f"photos{n}", tmp_path / f"cache{n}", n=n, fresh=fresh)
            for n in (few, many)
        ]
        print(f"{'fresh' if fresh else 'again'}: {few:,} and {many:,} photos: {peaks}")
        found.append(peaks[1] - peaks[0])
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_memory_hardly_grows_with_the_number_of_photos(tmp_path: Path) -> None:
    long = tmp_path / ("a path as people have them, " * 5)
    # Buffers of a fixed size are full at the smaller number already.
    assert max(growth(long, 3_000, 12_000)) < 9_000 * 200_000_000 / 90_000


@pytest.mark.torture
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_a_hundred_thousand_photos_peak_within_200_mb_of_ten_thousand(tmp_path: Path) -> None:
    assert max(growth(tmp_path, 10_000, 100_000)) < 200_000_000
