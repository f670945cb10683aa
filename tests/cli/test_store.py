"""The store by the command line: what each command prints, and its exit status."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from embedcache import disk
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from tests.stores import fill, model, photos

Run = Callable[..., tuple[int, str, str]]
SPEC = foreign("net", 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    cache = Cache.open(tmp_path / "a.cache", create=True)
    space = cache.space(SPEC, create=True)
    with space.writer(n_rows=4, name="net", about={"device": "cpu", "writer": "ann"}) as writer:
        writer.add(photos(0, 1), model(photos(0, 1)))
        writer.fail(photos(2, 3), ["no face", "truncated"])
    cache.record_photos("folder", ["a", "b", "c", "d", "e"], photos(0, 1, 2, 3, 4))
    return cache.path


@contextlib.contextmanager
def as_a_stranger() -> Iterator[None]:
    """As somebody else: to root nothing is forbidden, and an owner may change what he may not."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_info_prints_what_a_cache_holds_and_who_wrote_it(path: Path, run: Run) -> None:
    fill(Cache.open(path).space(SPEC), photos(9))
    status, out, _ = run("info", path)
    assert status == 0
    assert "5 photo ids from 1 place\n" in out
    assert f"net  8-d  spec {SPEC.digest[:8]}" in out
    assert "3 distinct photos in 2 segments" in out
    assert "segments by writer: ann (1), unknown (1)" in out
    assert "segments by device: cpu (2)" in out
    assert "1 no face" in out.partition("failed: ")[2]
    assert "1 truncated" in out.partition("failed: ")[2]
    document = json.loads(run("info", path, "--json")[1])
    (space,) = document["spaces"]
    assert space["spec"] == SPEC.digest
    assert space["document"] == SPEC.document()
    assert (space["rows"], space["segments"]) == (3, 2)
    assert space["bytes"] == sum(
        s.manifest.bytes_on_disk for s in Cache.open(path).space(SPEC).segments()
    )
    assert space["failed"] == {"no face": 1, "truncated": 1}
    assert space["writers"] == {"ann": 1, "unknown": 1}


def test_info_lists_photos_on_request(path: Path, run: Run) -> None:
    head, *lines = run("info", path, "--photos")[1].partition("\n\n")[2].splitlines()
    assert head.split() == ["photo", "id", "place", "sha256", "net"]
    at = head.index("net")
    assert {line[at - 2 : at] for line in lines} == {"  "}
    assert [(line[0], line[at:]) for line in lines] == [
        ("a", "ok"),
        ("b", "ok"),
        ("c", "no face"),
        ("d", "truncated"),
        ("e", "absent"),
    ]
    document = json.loads(run("info", path, "--photos", "--json")[1])["photos"]
    assert document[2]["states"] == ["no face"]
    assert document[2]["digest"] == photos(2).tobytes().hex()


def test_a_ref_is_read_by_info_and_export(path: Path, tmp_path: Path, run: Run) -> None:
    assert run("ref", path, "then")[0] == 0
    fill(Cache.open(path).space(SPEC), photos(4))
    assert "2 distinct photos in 1 segment," in run("info", path, "--ref", "then")[1]
    out = tmp_path / "F.npy"
    assert run("export", path, "--backbone", "net", "--out", out, "--ref", "then")[0] == 0
    assert np.load(out).shape == (2, 8)
    assert run("export", path, "--backbone", "net", "--out", out)[0] == 0
    assert np.load(out).shape == (3, 8)
    status, _, err = run("info", path, "--ref", "never")
    assert (status, "has no ref 'never'; it has then" in err) == (1, True)
    assert run("ref", path, "then")[0] == 1


def test_verify_exits_with_1_if_anything_is_wrong(path: Path, run: Run) -> None:
    assert run("verify", path)[0] == 0
    (shard,) = path.glob("spaces/*/segments/*/embedding/c/0/0")
    shard.write_bytes(b"?" + shard.read_bytes()[1:])
    status, out, _ = run("verify", path)
    assert status == 1
    assert "embedding/c/0/0 is not what was written" in out
    status, out, _ = run("verify", path, "--repair")
    assert "extract again for " in out
    assert "1 photo (a)" in out  # b's row is as it was written, and is kept
    assert run("verify", path)[0] == 0


def test_forget_and_compact_and_merge_say_what_they_did(
    path: Path, tmp_path: Path, run: Run
) -> None:
    run("ref", path, "then")
    status, out, _ = run("forget", path, "b", "c")
    assert status == 0
    assert "removed 2 ids and 2 rows of 2 photos" in out
    assert "refs that now hold fewer rows: then" in out
    fill(Cache.open(path).space(SPEC), photos(5))
    fill(Cache.open(path).space(SPEC), photos(6))
    assert "2 segments" in run("compact", path)[1] or "became" in run("compact", path)[1]
    status, out, _ = run("merge", tmp_path / "new", path, "--json")
    assert status == 0
    assert json.loads(out)["rows"] == 3
    assert run("merge", path, path)[0] == 1
    assert run("forget", path, "nobody")[0] == 1
    assert json.loads(run("forget", path, "--forgotten", "--json")[1])["rows"] == 0
    for words in ((), ("a", "--forgotten")):
        assert "their ids, or --forgotten" in run("forget", path, *words)[2]


@pytest.mark.parametrize("command", ["ref", "forget", "compact", "merge", "export", "import"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_is_one_clear_message(
    path: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    number: int,
) -> None:
    cache = Cache.open(path)
    for n in (5, 6):
        fill(cache.space(SPEC), photos(n))
    other = Cache.open(tmp_path / "other", create=True)
    fill(other.space(SPEC, create=True), photos(8))
    np.save(tmp_path / "v.npy", np.ones((1, 4), np.float32))
    (tmp_path / "ids.csv").write_text("photo_id\nx.jpg\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_bytes(b"any bytes have a digest")
    words: dict[str, list[object]] = {
        "ref": ["ref", path, "r"],
        "forget": ["forget", path, "a"],
        "compact": ["compact", path],
        "merge": ["merge", path, other.path],
        "export": ["export", path, "--backbone", "net", "--out", tmp_path / "F.parquet"],
        "import": ["import", path, tmp_path / "v.npy", "--ids", tmp_path / "ids.csv", "--photos"]
        + [tmp_path / "photos", "--name", "elsewhere"],
    }

    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("write_all", "write_at", "sync"):
        monkeypatch.setattr(disk, name, refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    status, out, err = run(*words[command])
    assert status == 1
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: cannot ")
    monkeypatch.undo()
    wanted = photos(0, 1, 5, 6)
    assert (Cache.open(path).space(SPEC).read(wanted)[0] == model(wanted)).all()


def test_a_read_only_cache_can_be_read(path: Path, tmp_path: Path, run: Run) -> None:
    fill(Cache.open(path).space(SPEC), photos(5))
    other = Cache.open(tmp_path / "other", create=True)
    fill(other.space(SPEC, create=True), photos(8))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        copy, source = Path(folder, "a"), Path(folder, "b")
        shutil.copytree(path, copy)
        shutil.copytree(other.path, source)
        before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
        with as_a_stranger():
            assert run("info", copy)[0] == 0
            assert run("verify", copy)[0] == 0
            assert Cache.open(copy).vectors("net", ["a", "b"])[1].all()
            assert Cache.open(copy).space(SPEC).salvage() == 0
            for words in (
                ["ref", copy, "r"],
                ["forget", copy, "a"],
                ["merge", copy, source],
                ["compact", copy],
            ):
                status, out, err = run(*words)
                assert (status, out) == (1, ""), words
                assert "permission is denied: ask its owner, or copy the cache" in err
        assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before


def test_a_file_without_read_permission_is_not_reported_as_damaged(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def closed(name: object, *arguments: object, **options: object) -> int:
        if str(name) == "0" or str(name).endswith("/0"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
        return real(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", closed)
    status, out, err = run("verify", path, "--repair")
    assert (status, out) == (1, "")
    assert "permission is denied" in err
    assert not (path / "damaged").exists()
    status, _, err = run("export", path, "--backbone", "net", "--out", path.with_name("F.npy"))
    assert (status, "ermission" in err) == (1, True)


def test_extract_says_what_it_moved_out_of_a_dead_writers_folder(
    run: Run, make_photos: Callable[..., Path], tiny_weights: Path, tmp_path: Path
) -> None:
    path, backbone = tmp_path / "new.cache", f"local-dir:{tiny_weights}"
    words = ("extract", make_photos(2), "--cache", path, "--backbone", backbone)
    assert run(*words)[0] == 0
    [space] = Cache.open(path).spaces()
    writer = space.writer(n_rows=1, name="net", about={})
    writer.add(photos(7), model(photos(7), space.dim))
    writer.abandon()
    [draft] = [folder.parent for folder in space.segments_folder.glob("*/writing")]
    (draft / "notes.txt").write_text("mine")
    status, _, err = run(*words)
    assert status == 0
    assert f"note: {path}{os.sep}damaged{os.sep}spaces-" in err
    assert "1 file that embedcache did not write" in err
    [kept] = (path / "damaged").rglob("notes.txt")
    assert kept.read_text() == "mine"
