"""Any wrong bit, missing byte, missing file or exchanged pair of files is noticed, twice.

Once by whoever reads the rows behind it, and once by `verify`. The short forms take a sample; the
long ones (`make torture`) take every bit and every length of every file, and every pair, on all
processors.
"""

import itertools
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import EmbedcacheError
from embedcache.spec import foreign, pixels
from embedcache.store.cache import Cache
from embedcache.store.history import History
from embedcache.store.layout import face_digest
from embedcache.store.space import Space
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.preprocessings import INCEPTION
from tests.stores import DETECTOR, bytes_of, faces_of, fill, model, photos

SPEC = foreign("net", 4)
KEPT = pixels(replace(INCEPTION, size=(2, 2)))

# (files to write, what was done): a way to damage a cache.
Case = tuple[dict[Path, bytes], str]


def make(path: Path) -> Path:
    """A cache with one of every kind of file."""
    cache = Cache.open(path, create=True)
    with cache.space(SPEC, create=True).writer(n_rows=5, name="net", about={}) as writer:
        writer.add(photos(0, 1, 2), model(photos(0, 1, 2), 4))
        writer.fail(photos(3, 4), ["no face", "truncated"])
    with cache.space(KEPT, create=True).writer(n_rows=2, name="pixels:2", about={}) as kept:
        kept.add(photos(0, 1), bytes_of(photos(0, 1), KEPT.dim))
    with cache.face_space(DETECTOR, create=True).writer(n_rows=3, about={}) as faces:
        faces.add(photos(0, 1, 2), faces_of([1, 0, 2]))
        faces.fail(photos(4), ["truncated"])
    cache.record_photos("one", ["a", "b", "x"], photos(0, 1, 99))
    write_ref(cache, "r")
    forget(cache, ["x"])
    return cache.path


def rows_of(space: Space, digests: NDArray[np.uint8]) -> NDArray[Any]:
    """What a space of this cache holds of (n, 32) digests."""
    made = bytes_of if space.spec.kind == "pixels" else model
    return made(digests, space.dim)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of every kind of file that a cache can hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "sync", lambda fd: None)
        path = make(tmp_path_factory.mktemp("damage") / "a.cache")
    assert verify(path).clean
    read_behind(path)
    return path


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Path:
    """Two segments of a kind, so that their files can be taken for each other."""
    path = tmp_path_factory.mktemp("double") / "a.cache"
    shutil.copytree(small, path)
    cache = Cache.open(path)
    with cache.space(SPEC).writer(n_rows=5, name="net", about={}) as writer:
        writer.add(photos(5, 6, 7), model(photos(5, 6, 7), 4))
        writer.fail(photos(8, 9), ["no face", "truncated"])
    cache.record_photos("one", ["c", "d"], photos(5, 6))
    fill(cache.space(foreign("twin", 4), create=True), photos(0, 1, 2))
    assert verify(path).clean
    read_behind(path)
    return path


def read_behind(path: Path, *parts: str) -> None:
    """Read the rows behind some parts of a cache (all by default); they must be right.

    As they are now and at the ref; a root document lies before all of them.
    """
    if not {"spaces", "faces", "photos", "refs", "forgotten"} & set(parts):
        parts = ("spaces", "faces", "photos", "refs", "forgotten")
    for ref in (None, "r") if "refs" in parts else (None,):
        cache = Cache.open(path, ref=ref)
        if "spaces" in parts or ref:
            space = cache.space(SPEC)
            rows, found = space.read(photos(0, 1, 2))
            assert found.all()
            assert (rows == model(photos(0, 1, 2), 4)).all()
            assert space.reasons(photos(3, 4, 0)) == ["no face", "truncated", None]
            for other in cache.spaces():
                wanted = other.digests()
                assert (other.read(wanted)[0] == rows_of(other, wanted)).all()
                other.reasons(photos(8, 9))
        if "faces" in parts or ref:
            (faces,) = cache.face_spaces()
            assert faces.counts_of(photos(0, 1, 2, 4)).tolist() == [1, 0, 2, -1]
            assert (faces.read(photos(2))[0].box == faces_of([1, 0, 2]).box[1:]).all()
            assert faces.reasons(photos(4)) == ["truncated"]
        if "photos" in parts or ref:
            assert (cache.digests_of(["a", "b"])[0] == photos(0, 1)).all()
    if "forgotten" in parts:
        History(path).dead()


def files_of(path: Path) -> list[Path]:
    """What belongs to the cache, relative: not what this machine keeps beside it."""
    files = (p.relative_to(path) for p in sorted(path.rglob("*")) if p.is_file())
    return [file for file in files if file.parts[0] != "local"]


def flips(path: Path, sample: int | None = None) -> Iterator[Case]:
    for file in files_of(path):
        whole = (path / file).read_bytes()
        bits = range(8 * len(whole))
        for bit in bits if sample is None else random.Random(file.name).sample(bits, sample):
            wrong = bytearray(whole)
            wrong[bit // 8] ^= 1 << (bit % 8)
            yield {file: bytes(wrong)}, f"bit {bit} of {file}"


def cuts(path: Path, sample: int | None = None) -> Iterator[Case]:
    for file in files_of(path):
        whole = (path / file).read_bytes()
        n = len(whole)
        for length in range(n) if sample is None else {0, n // 2, n - 1}:
            yield {file: whole[:length]}, f"{file} cut to {length} of {n} bytes"
        yield {file: whole + b"\0"}, f"{file} with a byte too many"


def swaps(path: Path, sample: int | None = None) -> Iterator[Case]:
    raw = {file: (path / file).read_bytes() for file in files_of(path)}
    pairs = [(a, b) for a, b in itertools.combinations(raw, 2) if raw[a] != raw[b]]
    for a, b in pairs if sample is None else random.Random(1).sample(pairs, sample):
        yield {a: raw[b], b: raw[a]}, f"{a} and {b} exchanged"


def check(path: Path, cases: Iterator[Case]) -> int:
    """Damage a cache in each way, one at a time; returns how many there were."""
    n = 0
    for wrong, what in cases:
        n += 1
        right = {file: (path / file).read_bytes() for file in wrong}
        for file, raw in wrong.items():
            (path / file).write_bytes(raw)
        try:
            read_behind(path, *(file.parts[0] for file in wrong))
        except EmbedcacheError:
            pass
        else:
            raise AssertionError(f"reading did not notice {what}")
        assert not verify(path).clean, f"verify did not notice {what}"
        for file, raw in right.items():
            (path / file).write_bytes(raw)
    read_behind(path)
    assert verify(path).clean
    return n


def check_share(path: Path, cases: Callable[[Path], Iterator[Case]], first: int, step: int) -> int:
    """Check every `step`-th case from `first` on, in a copy."""
    copy = path.with_name(f"{cases.__name__}-{first}")
    shutil.copytree(path, copy)
    return check(copy, itertools.islice(cases(path), first, None, step))


def check_all(path: Path, cases: Callable[[Path], Iterator[Case]]) -> None:
    step = os.cpu_count() or 1
    with ProcessPoolExecutor(step, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(check_share, path, cases, first, step) for first in range(step)]
        counts = [job.result() for job in jobs]
    assert sum(counts) == sum(1 for _ in cases(path))
    print(f"{sum(counts):,} cases of {cases.__name__}, all noticed by reading and by verify")


def test_a_flipped_bit_is_noticed(small: Path) -> None:
    assert check(small, flips(small, 3)) == 3 * len(files_of(small))


def test_a_file_of_the_wrong_size_is_noticed(small: Path) -> None:
    assert check(small, cuts(small, 3)) > 3 * len(files_of(small))


def test_exchanged_files_are_noticed(double: Path) -> None:
    assert check(double, swaps(double, 100)) == 100


@pytest.mark.torture
def test_every_flipped_bit_is_noticed(small: Path) -> None:
    check_all(small, flips)


@pytest.mark.torture
def test_every_length_of_every_file_is_noticed(small: Path) -> None:
    check_all(small, cuts)


@pytest.mark.torture
def test_every_pair_of_exchanged_files_is_noticed(double: Path) -> None:
    check_all(double, swaps)


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


def test_a_missing_file_is_noticed(double: Path) -> None:
    """By verify: all but refs, each of which is a whole thing that may be removed."""
    for file in files_of(double):
        whole = (double / file).read_bytes()
        (double / file).unlink()
        if file.parts[0] != "forgotten":
            with pytest.raises(EmbedcacheError, match=r"has no ref|missing|has no zarr|gone"):
                read_behind(double, file.parts[0])
        if file.parts[0] != "refs":
            assert not verify(double).clean, f"verify did not notice that {file} is missing"
        (double / file).write_bytes(whole)
    read_behind(double)


def test_repair_mends_whatever_file_is_wrong(double: Path, tmp_path: Path) -> None:
    """What is left verifies clean and is right; what is gone was named, and set aside."""
    ways: list[Callable[[Path, bytes], object]] = [
        lambda file, whole: file.write_bytes(bytes([whole[0] ^ 4]) + whole[1:]),
        lambda file, whole: file.write_bytes(whole[:-1]),
        lambda file, whole: file.unlink(),
    ]
    for i, name in enumerate(files_of(double)):
        copy = tmp_path / str(i)
        shutil.copytree(double, copy)
        way = ways[i % 2 if name.parts[0] in ("refs", "forgotten") else i % 3]
        way(copy / name, (copy / name).read_bytes())
        report = verify(copy, repair=True)
        assert report.findings, name
        assert all(found.moved for found in report.findings), report.findings
        assert verify(copy).clean, (name, verify(copy))
        for space in Cache.open(copy).spaces():
            there = space.digests()
            assert (space.read(there)[0] == rows_of(space, there)).all()
        if "segments" in name.parts and SPEC.digest in name.parts and len(name.parts) > 4:
            (lost,) = (found for found in report.findings if found.segment)
            whole = name.name == "manifest.json" or "digest" in name.parts
            assert lost.lost_rows < 5 or whole  # the other rows are kept
            assert set(lost.lost) < {"a", "b", "c", "d"}


def test_a_space_that_cannot_be_known_says_what_is_lost(double: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(double, copy)
    (copy / "faces" / face_digest(DETECTOR) / "zarr.json").unlink()
    report = verify(copy, repair=True)
    assert f"extract again for {face_digest(DETECTOR)[:8]}" in str(report)
    assert "photos (a, b" in str(report)
    assert verify(copy).clean


@pytest.mark.parametrize("folder", ["spaces", "faces", "photos", "photos/segments"])
def test_a_whole_folder_that_is_missing_is_made_anew(
    double: Path, tmp_path: Path, folder: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(double, copy)
    shutil.rmtree(copy / folder)
    assert f"{folder}: is missing, with everything in it" in str(verify(copy))
    verify(copy, repair=True)
    assert verify(copy).clean
    assert Cache.open(copy).photo_table() is not None


@pytest.mark.parametrize("folder", ["refs", "local", "faces"])
def test_a_file_in_a_folders_place_is_refused(double: Path, tmp_path: Path, folder: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(double, copy)
    shutil.rmtree(copy / folder, ignore_errors=True)
    (copy / folder).write_text("x")
    with pytest.raises(EmbedcacheError, match=f"{folder} is not a folder"):
        Cache.open(copy)
    assert not verify(copy, repair=True).clean


def test_a_ref_set_aside_holds_again_once_its_rows_are_back(double: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(double, copy)
    first = Cache.open(copy).space(SPEC).segments()[0]
    shutil.rmtree(first.folder)
    told = str(verify(copy, repair=True))
    assert f"refs/r.json: pins segment {first.id}, which is gone or damaged" in told
    merge(Cache.open(copy), [Cache.open(double)])
    (copy / "damaged" / "refs-r.json").rename(copy / "refs" / "r.json")
    read_behind(copy)
    assert verify(copy).clean


def test_a_file_that_nobody_wrote_is_noticed_by_verify(small: Path) -> None:
    for folder in {(small / file).parent for file in files_of(small)}:
        (folder / "stray").write_bytes(b"")
        assert not verify(small).clean, folder
        (folder / "stray").unlink()
    assert verify(small).clean
