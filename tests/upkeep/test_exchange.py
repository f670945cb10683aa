"""Vectors leave as .npy and Parquet, come in as a declared foreign space, and never mix."""

import contextlib
import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from embedcache.errors import InputError, NoSuchSpace
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.space import Space
from embedcache.upkeep.exchange import export, import_vectors, read_ids
from embedcache.upkeep.forgetting import forget
from tests.stores import fill, model, photos

IDS = [f"p{n}" for n in range(10)]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache.open(tmp_path / "a", create=True)
    fill(cache.space(foreign("net", 8), create=True), photos(*range(8)))
    cache.record_photos("folder", IDS, photos(*range(10)))
    return cache


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[Path, Path]:
    """Vectors of p3, p1, p2, computed by someone else."""
    np.save(tmp_path / "v.npy", np.arange(12, dtype=np.float64).reshape(3, 4))
    (tmp_path / "v.csv").write_text("photo_id\np3\np1\np2\n")
    return tmp_path / "v.npy", tmp_path / "v.csv"


def test_npy_holds_all_ids_that_have_a_vector(cache: Cache, tmp_path: Path) -> None:
    told = export(cache, "net", tmp_path / "F.npy")
    assert (told.rows, told.skipped, told.dim) == (8, 2, 8)
    matrix = np.load(tmp_path / "F.npy")
    ids = read_ids(tmp_path / "F.ids.csv")
    assert sorted(ids) == IDS[:8]
    assert (matrix == model(photos(*(int(name[1:]) for name in ids)))).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["F.ids.csv", "F.npy", "a"]


def test_parquet_holds_a_fixed_size_list_in_the_order_asked(cache: Cache, tmp_path: Path) -> None:
    told = export(cache, "net", tmp_path / "F.parquet", ids=["p5", "p9", "p0", "zzz"])
    assert (told.rows, told.skipped) == (2, 2)
    frame = pl.read_parquet(tmp_path / "F.parquet")
    assert frame["photo_id"].to_list() == ["p5", "p0"]
    assert (frame["vector"].to_numpy() == model(photos(5, 0))).all()
    assert "fixed_size_list" in str(pq.read_schema(tmp_path / "F.parquet").field("vector").type)


@pytest.mark.parametrize("n_bytes", [500_000_000, 850_000_000, 1_500_000_000])
def test_parquet_in_too_little_address_space_is_refused_before_it_begins(
    n_bytes: int, cache: Cache, tmp_path: Path
) -> None:
    code = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({n_bytes}, {n_bytes}))\n"
    code += "from embedcache.__main__ import main\nmain()"
    before = sorted(tmp_path.iterdir())
    words = [sys.executable, "-c", code, "export", str(cache.path), "--backbone", "net", "--out"]
    done = subprocess.run([*words, tmp_path / "F.parquet"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(
        f"error: cannot write {tmp_path}/F.parquet: Parquet needs 2,000 MB"
    )
    assert "write F.npy, which needs little" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
    done = subprocess.run([*words, tmp_path / "F.npy"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_parquet_of_many_rows_is_written_block_by_block(tmp_path: Path) -> None:
    """800 MB of vectors, never all in memory."""
    code = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from embedcache.upkeep import exchange
rows = np.ones((1024, 2048), np.float32)
space = SimpleNamespace(dim=2048, read=lambda d: (rows[: len(d)].copy(), np.ones(len(d), bool)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids, digests = [f"p{n}" for n in range(100_000)], np.zeros((100_000, 32), np.uint8)
exchange._write_parquet(space, ids, digests, Path(sys.argv[1]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "F.parquet")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 600_000_000
    found = pq.ParquetFile(tmp_path / "F.parquet")
    assert found.metadata.num_rows == 100_000
    assert found.read_row_group(24)["photo_id"][0].as_py() == "p98304"


@pytest.mark.parametrize("name", ["F.parquet", "F.npy"])
def test_rows_forgotten_during_an_export_are_reported(
    name: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Space, digests: Any) -> Any:
        return np.zeros((len(digests), 8), np.float32), np.zeros(len(digests), np.bool_)

    monkeypatch.setattr(Space, "read", gone)
    with pytest.raises(NoSuchSpace, match="forgotten during the export"):
        export(cache, "net", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_export_of_nothing_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(NoSuchSpace, match="none of 1 photo id "):
        export(cache, "net", tmp_path / "F.npy", ids=["p9"])
    with pytest.raises(InputError, match=r"a \.npy or \.parquet file"):
        export(cache, "net", tmp_path / "F.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_an_export_of_rows_without_ids_says_how_they_get_them(tmp_path: Path) -> None:
    pulled = Cache.open(tmp_path / "b", create=True)
    fill(pulled.space(foreign("net", 8), create=True), photos(1))
    with pytest.raises(NoSuchSpace, match="has vectors but no photo ids"):
        export(pulled, "net", tmp_path / "F.npy")


def test_a_failed_export_leaves_the_old_file(cache: Cache, tmp_path: Path) -> None:
    export(cache, "net", tmp_path / "F.npy")
    before = (tmp_path / "F.npy").read_bytes()
    (shard,) = cache.find("net").segments_folder.glob("*/embedding/c/0/0")
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with pytest.raises(Exception, match="embedcache verify"):
        export(cache, "net", tmp_path / "F.npy")
    assert (tmp_path / "F.npy").read_bytes() == before
    assert not list(tmp_path.glob(".F*"))


def test_an_export_cut_off_leaves_no_ids_beside_another_matrix(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between any two renames: a matrix with a list of no ids, or one of the pairs."""
    old, new = ["p1", "p2"], ["p5", "p4"]
    real = Path.replace
    for n in range(4):
        export(cache, "net", tmp_path / "F.npy", ids=old)
        left = [n]

        def replace(self: Path, target: Path, left: list[int] = left) -> Path:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        with contextlib.suppress(KeyboardInterrupt):
            export(cache, "net", tmp_path / "F.npy", ids=new)
        monkeypatch.undo()
        matrix = np.load(tmp_path / "F.npy")
        if (tmp_path / "F.ids.csv").read_bytes() != b"photo_id\n":
            ids = read_ids(tmp_path / "F.ids.csv")
            assert (matrix == model(photos(*(int(name[1:]) for name in ids)))).all()
        assert sorted(p.name for p in tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    "there",
    [
        {"F.npy": b"mine"},
        {"F.npy": b"matrix of 8"},
        {"F.npy": b"matrix of 8", "F.ids.csv": b"photo_id\np1\n"},
        {"F.npy": b"matrix of 8", "F.ids.csv": b"photo_id,grade\n" + b"p1,4\n" * 8},
        {"F.ids.csv": b"photo_id\np1\n"},
        {"F.ids.csv": b"a list of guests"},
        {"F.npy": b"", "F.ids.csv": b"photo_id,prediction\np1,3\n"},
        {"F.parquet": b"mine"},
        {"F.parquet": b"a table"},
    ],
)
def test_an_export_never_replaces_what_is_no_export(
    cache: Cache, tmp_path: Path, there: dict[str, bytes]
) -> None:
    for name, raw in there.items():
        (tmp_path / name).write_bytes(raw)
        if raw == b"matrix of 8":
            np.save(tmp_path / name, np.ones((8, 8), np.float32))
        if raw == b"a table":
            pl.DataFrame({"photo_id": ["p1"], "grade": [1.5]}).write_parquet(tmp_path / name)
    before = {name: (tmp_path / name).read_bytes() for name in there}
    out = "F.parquet" if "F.parquet" in there else "F.npy"
    with pytest.raises(InputError, match="other than an export: name another file"):
        export(cache, "net", tmp_path / out)
    assert {name: (tmp_path / name).read_bytes() for name in there} == before


@pytest.mark.parametrize("name", ["F.npy", "F.parquet"])
def test_an_export_replaces_an_export_and_an_empty_file(
    cache: Cache, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).touch()
    export(cache, "net", tmp_path / name, ids=["p1"])
    assert export(cache, "net", tmp_path / name, ids=["p1", "p2"]).rows == 2


def test_an_export_to_a_place_that_cannot_be_says_so(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere to write F.npy to"):
        export(cache, "net", tmp_path / "nowhere" / "F.npy")
    (tmp_path / "F.parquet").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        export(cache, "net", tmp_path / "F.parquet")


def test_imported_vectors_are_a_space_of_their_own(
    cache: Cache, elsewhere: tuple[Path, Path]
) -> None:
    told = import_vectors(cache, *elsewhere, ids=IDS, digests=photos(*range(10)), name="net")
    assert (told.rows, told.already_here, told.dim) == (3, 0, 4)
    assert len(cache.spaces()) == 2
    space = cache.space(foreign("net", 4))
    assert space.read(photos(1))[0].tolist() == [[4, 5, 6, 7]]
    assert space.spec.kind == "foreign"
    again = import_vectors(cache, *elsewhere, ids=IDS, digests=photos(*range(10)), name="net")
    assert (again.rows, again.already_here) == (0, 3)
    with pytest.raises(NoSuchSpace, match="2 sets of vectors"):
        cache.find("net")


def test_rows_of_forgotten_photos_are_left_out_and_counted(
    cache: Cache, elsewhere: tuple[Path, Path]
) -> None:
    some = read_ids(elsewhere[1])
    forget(cache, [some[0]])
    given = {"ids": IDS, "digests": photos(*range(10)), "name": "net", "scope": "elsewhere"}
    told = import_vectors(cache, *elsewhere, **given)  # type: ignore[arg-type]
    assert (told.rows, told.already_here, told.forgotten) == (2, 0, 1)
    assert "left out 1 forgotten photo" in str(told)
    again = import_vectors(cache, *elsewhere, **given)  # type: ignore[arg-type]
    assert (again.rows, again.already_here, again.forgotten) == (0, 2, 1)


def test_forgotten_ids_whose_photo_is_kept_are_counted_and_not_recorded(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    (tmp_path / "v.csv").write_text("photo_id\nx\ny\nk\n")
    files = tmp_path / "v.npy", tmp_path / "v.csv"
    cache = Cache.open(tmp_path / "a", create=True)
    given = {"ids": ["x", "y", "k"], "digests": photos(1, 1, 2), "name": "net", "scope": "s"}
    first = import_vectors(cache, *files, **given)  # type: ignore[arg-type]
    assert first.ids_forgotten == 0
    assert "not recorded" not in str(first)
    forget(cache, ["x"])
    told = import_vectors(cache, *files, **given)  # type: ignore[arg-type]
    assert (told.forgotten, told.ids_forgotten) == (0, 1)
    assert str(told).endswith("; not recorded: 1 forgotten id")
    assert told.document()["ids_forgotten"] == 1
    assert not cache.digests_of(["x"])[1].any()
    elsewhere = import_vectors(cache, *files, **given | {"scope": "t"})  # type: ignore[arg-type]
    assert elsewhere.ids_forgotten == 0  # that place's x was never forgotten
    forget(cache, ["k"])
    told = import_vectors(cache, *files, **given)  # type: ignore[arg-type]
    assert (told.forgotten, told.ids_forgotten) == (1, 1)  # k's photo is forgotten, and x


def test_an_export_can_be_imported(cache: Cache, tmp_path: Path) -> None:
    export(cache, "net", tmp_path / "F.npy")
    other = Cache.open(tmp_path / "b", create=True)
    files = tmp_path / "F.npy", tmp_path / "F.ids.csv"
    import_vectors(other, *files, ids=IDS, digests=photos(*range(10)), name="net", scope="s")
    assert (other.vectors("net", ["p3", "p7"])[0] == model(photos(3, 7))).all()


@pytest.mark.parametrize(
    ("matrix", "ids", "message"),
    [
        (np.zeros((2, 4)), ["p1", "p2", "p3"], "has 2 rows and .* has 3 ids"),
        (np.zeros((2, 4)), ["p1", "p1"], "'p1' more than once"),
        (
            np.zeros((2, 4)),
            ["p1", "who"],
            "1 of 2 ids .* matches none of the photos.*'who'",
        ),
        (
            np.zeros((3, 4)),
            ["a/p1.jpg", "p2.png", "who"],
            "1 of 3 ids .* 'who'.* joined by file name without suffix: 'a/p1.jpg' is 'p1' ",
        ),
        (np.array([[0.0], [np.nan]]), ["p1", "p2"], r"row 1 .*\(photo 'p2'\) holds NaN"),
        (np.array([[0.0], [1e300]]), ["p1", "p2"], "float32 cannot hold"),
        (np.zeros(4), ["p1"], "a matrix of floats"),
        (np.zeros((2, 4), np.int64), ["p1", "p2"], "a matrix of floats"),
        (np.zeros((2, 0)), ["p1", "p2"], "a matrix of floats"),
        (np.array([["a"]], dtype=object), ["p1"], "not a .npy file of numbers"),
    ],
)
def test_what_does_not_fit_is_refused(
    cache: Cache, tmp_path: Path, matrix: np.ndarray, ids: list[str], message: str
) -> None:
    np.save(tmp_path / "v.npy", matrix, allow_pickle=True)
    (tmp_path / "v.csv").write_text("\n".join(["photo_id", *ids]))
    with pytest.raises(InputError, match=message):
        import_vectors(
            cache,
            tmp_path / "v.npy",
            tmp_path / "v.csv",
            ids=IDS,
            digests=photos(*range(10)),
            name="n",
        )
    assert len(cache.spaces()) == 1


@pytest.mark.parametrize("raw", [b"", b"hello", b"\x93NUMPY\x01\x00\xff\xff", b"PK\x03\x04"])
def test_a_file_that_is_not_npy_is_refused(cache: Cache, tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "v.npy").write_bytes(raw)
    (tmp_path / "v.csv").write_text("photo_id\np1\n")
    files = tmp_path / "v.npy", tmp_path / "v.csv"
    with pytest.raises(InputError, match=r"not a \.npy file"):
        import_vectors(cache, *files, ids=IDS, digests=photos(*range(10)), name="n")


def test_ids_with_commas_and_lines_survive(cache: Cache, tmp_path: Path) -> None:
    names = ['a,"b"', "line\nbreak", "größe"]
    cache.record_photos("folder", names, photos(1, 2, 3))
    export(cache, "net", tmp_path / "F.npy", ids=names)
    assert read_ids(tmp_path / "F.ids.csv") == names
    with (tmp_path / "F.ids.csv").open(newline="", encoding="utf-8") as file:
        assert [row["photo_id"] for row in csv.DictReader(file)] == names


@pytest.mark.real
def test_vectors_computed_elsewhere_are_imported(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "data" / "mebeauty"
    ids = read_ids(folder / "facenet512_ids.csv")
    cache = Cache.open(tmp_path / "c", create=True)
    files = folder / "facenet512.npy", folder / "facenet512_ids.csv"
    told = import_vectors(
        cache, *files, ids=ids, digests=photos(*range(len(ids))), name="facenet512", scope="s"
    )
    assert (told.rows, told.dim) == (1842, 512)
    assert (cache.vectors("facenet512", ids)[0] == np.load(files[0])).all()
