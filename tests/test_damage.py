"""Any wrong bit, missing byte, missing file or exchanged pair of files is noticed, twice.

Once by whoever reads the rows behind it, and once by `verify`. The short forms take a sample; the
long ones (`make torture`) take every bit of every file, and every pair.
"""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedcache import disk
from embedcache.errors import EmbedcacheError
from embedcache.spec import foreign
from embedcache.store import Cache
from embedcache.tombstones import read_tombstones
from embedcache.upkeep import forget, verify, write_ref
from tests.stores import DETECTOR, faces_of, fill, model, photos

SPEC = foreign("net", 4)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of file that a cache can hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "sync", lambda fd: None)
        cache = Cache.open(tmp_path_factory.mktemp("damage") / "a.cache", create=True)
        space = cache.space(SPEC, create=True)
        with space.writer(n_rows=5, name="net", about={"device": "cpu"}) as writer:
            writer.add(photos(0, 1, 2), model(photos(0, 1, 2), 4))
            writer.fail(photos(3, 4), ["no face", "truncated"])
        fill(space, photos(*range(5, 8)))
        with cache.face_space(DETECTOR, create=True).writer(n_rows=3, about={}) as faces:
            faces.add(photos(0, 1, 2), faces_of([1, 0, 2]))
        cache.record_photos("one", ["a", "b"], photos(0, 1))
        cache.record_photos("one", ["c", "x"], photos(5, 99))
        write_ref(cache, "r")
        forget(cache, ["x"])
    assert verify(cache).clean
    read_everything(cache.path)
    return cache.path


def read_everything(path: Path) -> None:
    """Read all rows, as now and at the ref; what comes back must be right."""
    for cache in (Cache.open(path), Cache.open(path, ref="r")):
        space = cache.find("net")
        wanted = photos(0, 1, 2, 5, 6, 7)
        rows, found = space.read(wanted)
        assert found.all()
        assert (rows == model(wanted, 4)).all()
        assert space.reasons(photos(3, 4, 0)) == ["no face", "truncated", None]
        (faces,) = cache.face_spaces()
        assert faces.counts_of(photos(0, 1, 2)).tolist() == [1, 0, 2]
        assert (cache.digests_of(["a", "b", "c"])[0] == photos(0, 1, 5)).all()
        read_tombstones(cache.path)


def files_of(path: Path) -> list[Path]:
    """What belongs to the cache: not what this machine keeps beside it."""
    return sorted(p for p in path.rglob("*") if p.is_file() and "local" not in p.parts)


def must_be_noticed(path: Path, what: str) -> None:
    noticed = False
    try:
        read_everything(path)
    except EmbedcacheError:
        noticed = True
    assert noticed, f"reading did not notice {what}"
    assert not verify(path).clean, f"verify did not notice {what}"


def flips(path: Path, sample: int | None) -> Iterator[tuple[Path, int]]:
    for file in files_of(path):
        bits = range(8 * file.stat().st_size)
        chosen = bits if sample is None else random.Random(file.name).sample(bits, sample)
        for bit in chosen:
            yield file, bit


def check_flips(path: Path, sample: int | None) -> None:
    for file, bit in flips(path, sample):
        whole = file.read_bytes()
        wrong = bytearray(whole)
        wrong[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(wrong)
        must_be_noticed(path, f"bit {bit} of {file.relative_to(path)}")
        file.write_bytes(whole)
    read_everything(path)


def check_swaps(path: Path, sample: int | None) -> None:
    pairs = [
        (a, b)
        for a, b in itertools.combinations(files_of(path), 2)
        if a.read_bytes() != b.read_bytes()
    ]
    for a, b in pairs if sample is None else random.Random(1).sample(pairs, sample):
        one, two = a.read_bytes(), b.read_bytes()
        a.write_bytes(two)
        b.write_bytes(one)
        must_be_noticed(path, f"{a.relative_to(path)} and {b.relative_to(path)} exchanged")
        a.write_bytes(one)
        b.write_bytes(two)
    read_everything(path)


def test_a_flipped_bit_is_noticed(small: Path) -> None:
    check_flips(small, 3)


@pytest.mark.torture
def test_every_flipped_bit_is_noticed(small: Path) -> None:
    check_flips(small, None)


def test_exchanged_files_are_noticed(small: Path) -> None:
    check_swaps(small, 100)


@pytest.mark.torture
def test_every_pair_of_exchanged_files_is_noticed(small: Path) -> None:
    check_swaps(small, None)


def test_shards_of_one_array_cannot_trade_places(tmp_path: Path) -> None:
    """They have the same size and the same index, and every chunk passes its own CRC."""
    cache = Cache.open(tmp_path / "a", create=True)
    space = cache.space(foreign("wide", 65_536), create=True)
    wanted = photos(*range(600))
    vectors = np.zeros((600, 65_536), np.float32)
    vectors[:, 0] = np.arange(600)
    with space.writer(n_rows=600, name="wide", about={}) as writer:
        writer.add(wanted, vectors)
    a, b = sorted(space.segments_folder.glob("*/embedding/c/[01]/0"))
    a.rename(a.with_name("x"))
    b.rename(a)
    a.with_name("x").rename(b)
    for rows in (wanted, wanted[:1], wanted[400:401]):
        with pytest.raises(EmbedcacheError, match="CRC32C"):
            space.read(rows)


@pytest.mark.parametrize("how", ["empty", "half", "one byte short", "one byte long"])
def test_a_file_of_the_wrong_size_is_noticed(small: Path, how: str) -> None:
    for file in files_of(small):
        whole = file.read_bytes()
        cut = {"empty": 0, "half": len(whole) // 2, "one byte short": -1, "one byte long": None}[
            how
        ]
        file.write_bytes(whole + b"\0" if cut is None else whole[:cut])
        must_be_noticed(small, f"{file.relative_to(small)} {how}")
        file.write_bytes(whole)
    read_everything(small)


def test_a_missing_file_is_noticed(small: Path) -> None:
    """All but refs and tombstones, each of which is a whole thing that may be removed."""
    for file in files_of(small):
        whole = file.read_bytes()
        file.unlink()
        if file.parent.name == "refs":
            with pytest.raises(EmbedcacheError, match="has no ref"):
                read_everything(small)
        elif file.parent.name != "forgotten":
            must_be_noticed(small, f"{file.relative_to(small)} missing")
        file.write_bytes(whole)
    read_everything(small)


def test_a_file_that_nobody_wrote_is_noticed_by_verify(small: Path) -> None:
    for folder in {file.parent for file in files_of(small)}:
        (folder / "stray").write_bytes(b"")
        assert not verify(small).clean, folder
        (folder / "stray").unlink()
    assert verify(small).clean
