"""The format as others meet it: the golden store, zarr, tensorstore, zarrs, docs/format.md."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr

from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.columns import FAILED, OK
from embedcache.upkeep.merging import merge
from embedcache.upkeep.verify import verify
from tests.golden.make import DETECTOR, SPEC, contents, vectors
from tests.stores import model, photos

GOLDEN = Path(__file__).parents[1] / "golden" / "format-1"
GOLDEN_2 = GOLDEN.with_name("format-2")
FORMAT = Path(__file__).parents[2] / "docs" / "format.md"


def check_golden(cache: Cache) -> None:
    space = cache.find("golden")
    assert space.spec == SPEC
    rows, found = space.read(contents(6, 3, 2, 1, 9))
    assert found.tolist() == [True, True, True, True, False]
    assert (rows[:4] == vectors(6, 3, 2, 1)).all()
    assert space.status(contents(1, 4, 7)).tolist() == [OK, FAILED, 0]
    assert space.reasons(contents(4, 5)) == ["no face", "größer als erlaubt"]
    faces, _ = cache.face_space(DETECTOR).read(contents(3, 1, 2))
    assert faces.counts.tolist() == [2, 1, 0]
    assert faces.of(1).box.tolist() == [[0, 1, 2, 3]]
    assert faces.of(0).landmark.ravel().tolist() == list(range(25, 45))
    assert faces.probability.tolist() == [13 / 64, 14 / 64, 12 / 64]
    digests, known = cache.digests_of(["a.jpg", "b.jpg", "ü.jpg", "x.jpg"])
    assert known.tolist() == [True, True, True, False]
    assert (digests[:3] == contents(6, 2, 3)).all()


def test_a_store_of_format_1_is_read_whole_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "golden"
    shutil.copytree(GOLDEN, path)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert verify(path).clean
    check_golden(Cache.open(path))
    check_golden(Cache.open(path, ref="pinned"))
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_a_store_of_format_1_is_written_to_and_merged(tmp_path: Path) -> None:
    path = tmp_path / "golden"
    shutil.copytree(GOLDEN, path)
    cache = Cache.open(path)
    assert cache.lift(contents(7)) == 1  # it was forgotten
    with cache.space(SPEC).writer(n_rows=1, name="golden", about={}) as writer:
        writer.add(contents(7), vectors(7))
    assert (cache.space(SPEC).read(contents(7, 1))[0] == vectors(7, 1)).all()
    fresh = Cache.open(tmp_path / "fresh", create=True)
    assert merge(fresh, [Cache.open(GOLDEN)], with_ids=True).withheld == 0
    check_golden(fresh)


def test_a_store_of_format_2_is_read_whole_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "golden"
    shutil.copytree(GOLDEN_2, path)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert verify(path).clean
    for cache in (Cache.open(path), Cache.open(path, ref="pinned")):
        check_golden(cache)
    cache = Cache.open(path)
    assert cache.dead(contents(7, 8, 10)).tolist() == [True, False, False]  # 8 was lifted
    assert (cache.find("golden").read(contents(8, 10))[0] == vectors(8, 10)).all()
    assert cache.digests_of(["h.jpg", "i.jpg", "x.jpg"])[1].tolist() == [True, True, False]
    assert not Cache.open(path, ref="pinned").find("golden").status(contents(7, 8)).any()
    log = cache.history.log()
    assert log.refs.keys() == {"pinned"}
    assert len(log.forgotten) == 4
    assert len(log.remembered) == 1
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segment of two shard files, the second cut short, with failures behind."""
    cache = Cache.open(tmp_path_factory.mktemp("readers") / "a", create=True)
    space = cache.space(foreign("wide", 4096), create=True)
    with space.writer(n_rows=6000, name="wide", about={}) as writer:
        for start in range(0, 5000, 500):
            part = photos(*range(start, start + 500))
            writer.add(part, model(part, 4096))
        writer.fail(photos(*range(5000, 6000)), ["why"] * 1000)
    return space.segments()[0].folder


def expected(folder: Path) -> dict[str, np.ndarray]:
    cache = Cache.open(folder.parents[3])
    segment = cache.find("wide").segments()[0]
    wanted = photos(*range(6000))
    return {"embedding": cache.find("wide").read(wanted)[0], **segment.columns()}


def test_zarr_reads_what_the_direct_reader_reads(shards: Path) -> None:
    group = zarr.open_group(shards, mode="r")
    for name, array in expected(shards).items():
        assert group[name][:].tobytes() == array.tobytes(), name
        assert group[name].dtype == array.dtype


def test_zarrs_reads_what_the_direct_reader_reads(shards: Path) -> None:
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        group = zarr.open_group(str(shards), mode="r")
        for name, array in expected(shards).items():
            assert group[name][:].tobytes() == array.tobytes(), name


def test_tensorstore_reads_what_the_direct_reader_reads(shards: Path) -> None:
    for name, array in expected(shards).items():
        store = {"driver": "file", "path": str(shards / name)}
        opened = tensorstore.open({"driver": "zarr3", "kvstore": store}, read=True).result()
        assert opened.read().result().tobytes() == array.tobytes(), name


def test_zarr_reads_where_there_is_no_folder_to_read_directly(shards: Path) -> None:
    """A segment in an object store, here in memory: nothing but its names and bytes."""
    store = {
        path.relative_to(shards).as_posix(): zarr.core.buffer.cpu.Buffer.from_bytes(
            path.read_bytes()
        )
        for path in shards.rglob("*")
        if path.is_file()
    }
    group = zarr.open_group(zarr.storage.MemoryStore(store), mode="r")
    for name, array in expected(shards).items():
        assert group[name][:].tobytes() == array.tobytes(), name


def test_zarr_finds_the_whole_hierarchy_by_name() -> None:
    root = zarr.open_group(GOLDEN, mode="r")
    assert root.attrs["embedcache"] == {"format": 1}
    space = root["spaces"][SPEC.digest]
    assert space.attrs["embedcache"]["spec"] == SPEC.document()
    segments = sorted(p.parent.name for p in GOLDEN.glob("spaces/*/segments/*/manifest.json"))
    assert space["segments"][segments[0]]["status"][:].tolist() == [1, 1, 1, 2, 2]


def test_the_six_lines_of_the_format_page_read_a_cache() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", FORMAT.read_text(), re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) == 6
    names: dict[str, object] = {}
    for golden, numbers in ((GOLDEN, (1, 2, 3, 6)), (GOLDEN_2, (1, 2, 3, 6, 8, 10))):
        exec(code.replace("photos.cache", str(golden)), names)
        assert names["vectors"] == {
            (SPEC.digest, bytes([n] * 32)): pytest.approx([n + i / 8 for i in range(6)])
            for n in numbers
        }


def test_the_format_page_names_every_column_and_limit() -> None:
    from embedcache.store import columns, journal, manifest, shard

    page = FORMAT.read_text()
    for kind in columns.COLUMNS.values():
        for name, column in kind.items():
            assert f"`{name}`" in page
            assert column.dtype in page
    assert f"{manifest.MAX_ROWS:,}" in page
    assert f"{shard.CHUNKS_PER_SHARD} chunks" in page
    assert f"{journal.LEASE_SECONDS:,.0f} seconds" in page
