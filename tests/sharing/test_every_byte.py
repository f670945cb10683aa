"""One wrong byte, anywhere in a shared copy: a pull reports it and brings nothing wrong."""

import os
import random
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from embedcache import disk
from embedcache.errors import RemoteError
from embedcache.sharing.share import pull, push
from embedcache.spec import FaceCrop, foreign
from embedcache.store.cache import Cache
from embedcache.store.layout import APART
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.sharing.members import SPEC
from tests.stores import DETECTOR, faces_of, fill, model, photos

WHOLE = replace(SPEC, dim=2)
CROPS = replace(WHOLE, face=FaceCrop(detector="1" * 64, select="only", margin=0.0))
IDS = ["0", "1"]


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A shared copy with every kind of object in it."""
    quicken(monkeypatch)
    a, remote = Cache.open(tmp_path / "a", create=True), fakes.Held()
    with a.space(WHOLE, create=True).writer(n_rows=3, name="net", about={}) as writer:
        writer.add(photos(0, 1), model(photos(0, 1), 2))
        writer.fail(photos(2), ["truncated"])
    fill(a.space(CROPS, create=True), photos(0), name="net@face")
    with a.face_space(DETECTOR, create=True).writer(n_rows=2, about={}) as faces:
        faces.add(photos(0, 1), faces_of([1, 2]))
    a.record_photos("f", ["gone"], photos(7))
    fill(a.space(foreign("theirs", 2), create=True), photos(7), name="theirs")
    a.record_photos("f", ["back"], photos(6))
    fill(a.space(foreign("theirs", 2)), photos(6), name="theirs")
    forget(a, ["gone", "back"])
    a.lift(photos(6))
    a.record_photos("f", IDS, photos(0, 1))
    write_ref(a, "paper")
    push(a, remote, with_ids=True)
    return remote.objects


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)


def check(cache: Cache) -> int:
    """How much has come; all of it must be right."""
    everything, n = photos(*range(8)), 0
    for space in cache.spaces():
        rows, found = space.read(everything)
        assert (rows[found] == model(everything, space.dim)[found]).all()
        reasons = space.reasons(everything)
        assert all(reason in (None, "truncated") for reason in reasons)
        assert reasons[2] == "truncated" or reasons == [None] * 8
        n += int(found.sum()) + sum(reason is not None for reason in reasons)
    for faces in cache.face_spaces():
        counts = faces.counts_of(everything).tolist()
        assert counts in ([1, 2, *[-1] * 6], [-1] * 8)
        truth = faces_of([1, 2])
        if counts[0] == 1:
            assert np.array_equal(faces.read(everything[:2])[0].box, truth.box)
        n += counts.count(-1) < 8
    ids = cache.photo_table().ids
    assert ids in ([], IDS)
    refs = [path.name for path in (cache.path / "refs").glob("*")]
    return n + bool(ids) + len(refs)


def check_flips(
    objects: dict[str, bytes],
    folder: Path,
    places: Sequence[tuple[str, int, int]],
    *,
    verified: int = 1,
) -> int:
    """For each place: change one byte, pull into a new cache, check the report and what came."""
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        held = fakes.Held()
        held.objects = objects
        whole = Cache.open(folder / "whole", create=True)
        assert pull(held, whole, with_ids=True).problems == ()
        everything = check(whole)
        for number, (key, at, mask) in enumerate(places):
            raw = bytearray(objects[key])
            raw[at] ^= mask
            held.objects = objects | {key: bytes(raw)}
            b = Cache.open(folder / "b", create=True)
            try:
                report = " ".join(pull(held, b, with_ids=True).problems)
            except RemoteError as error:
                report = str(error)
            b = Cache.open(b.path)
            came = check(b)
            assert number % verified or verify(b).clean, (key, at)
            parts = key.split("/")
            segment = parts[parts.index("segments") + 1] if "segments" in parts[:-2] else key
            if key == "zarr.json":
                assert "not a shared copy of format 1" in report, at
                assert "Name another place" in report
                assert came == 0
            else:
                assert segment in report, (key, at, report)
                assert "Rerun the command" in report, (key, at)
            if segment is not key:
                assert came < everything, (key, at)
            shutil.rmtree(b.path)
    return len(places)


def test_the_shared_copy_holds_every_kind_of_object(objects: dict[str, bytes]) -> None:
    roots = {key.split("/")[0] for key in objects}
    assert roots == {
        *("zarr.json", "spaces", APART, "faces", "photos"),
        *("refs", "forgotten", "remembered", "removed"),
    }
    assert sum(key.endswith("manifest.json") for key in objects) == 4


def test_a_pull_reports_a_wrong_byte_in_any_object(
    objects: dict[str, bytes], tmp_path: Path
) -> None:
    rng = random.Random(3)
    places = [(key, rng.randrange(len(raw)), 0x41) for key, raw in objects.items()]
    assert check_flips(objects, tmp_path, places) == len(objects) > 50


@pytest.mark.torture
def test_a_pull_reports_every_wrong_byte(objects: dict[str, bytes], tmp_path: Path) -> None:
    masks = random.Random(0)
    places = [
        (key, at, masks.randrange(1, 256)) for key, raw in objects.items() for at in range(len(raw))
    ]
    n_workers = os.cpu_count() or 1
    memory = Path("/dev/shm")  # a pull makes and removes a hundred files
    began = time.perf_counter()
    with (
        TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder,
        ProcessPoolExecutor(n_workers) as pool,
    ):
        jobs = []
        for n in range(n_workers):
            (mine := Path(folder, str(n))).mkdir()
            part = places[n::n_workers]
            jobs.append(pool.submit(check_flips, objects, mine, part, verified=20))
        done = sum(job.result() for job in jobs)
    seconds = time.perf_counter() - began
    assert done == len(places) == sum(map(len, objects.values()))
    print(f"{done:,} bytes of {len(objects)} objects in {seconds:.0f} s")
