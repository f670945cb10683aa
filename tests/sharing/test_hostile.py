"""Damage and malice at a remote: found, named and kept out of the cache."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache import disk
from embedcache.errors import CacheError, RemoteError
from embedcache.remotes import objects, patience
from embedcache.remotes.patience import Patient
from embedcache.remotes.remote import ListedObject
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import survey
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.checksums import crc32c
from embedcache.store.layout import APART
from embedcache.store.sealed import seal, unseal
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.stores import fill, model, photos

SPEC = foreign("net", 8)
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder remote that holds photos 0 to 3 in two segments, and a ref."""
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)
    a = Cache.open(tmp_path / "a", create=True)
    space = a.space(SPEC, create=True)
    with space.writer(n_rows=3, name="net", about={}) as writer:
        writer.add(photos(0, 1), model(photos(0, 1)))
        writer.fail(photos(9), ["truncated"])
    fill(space, photos(2, 3))
    write_ref(a, "paper")
    push(a, str(tmp_path / "shared"))
    return tmp_path / "shared"


def held(cache: Cache) -> set[int]:
    """The photos that came; each vector must be right."""
    spaces = Cache.open(cache.path).spaces()
    if not spaces:
        return set()
    rows, found = spaces[0].read(photos(*range(10)))
    assert (rows[found] == model(photos(*range(10)), 8)[found]).all()
    return set(np.flatnonzero(found).tolist())


def segments(shared: Path) -> list[Path]:
    return sorted((shared / APART / SPEC.digest / "segments").glob("2*"))


def reseal(path: Path, edit: Edit) -> None:
    """Change a sealed document as its author could, with a matching digest."""
    document, _ = unseal(path.read_bytes(), what="", limit=1 << 30)
    edit(document)
    path.write_bytes(seal(document))


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x41
    path.write_bytes(raw)


def test_bytes_that_changed_on_the_way_are_refused(shared: Path, tmp_path: Path) -> None:
    class Lying(fakes.Flaky):
        def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            for block in super().blocks(key, start=start, length=length):
                if "/embedding/" in key:
                    block = bytes([block[0] ^ 1]) + bytes(block[1:])
                yield block

    lying = Lying(fakes.folder(shared), lambda n: "")
    for wanted in (None, photos(0)):
        b = Cache.open(tmp_path / "b", create=True)
        came = pull(lying, b, photos=wanted)
        assert held(b) == set()
        assert "is not what was written" in came.problems[0]
        assert "'embedcache verify" in came.problems[0]


def test_a_damaged_file_is_not_pushed(shared: Path, tmp_path: Path) -> None:
    a = Cache.open(tmp_path / "a")
    segment = fill(a.space(SPEC), photos(5, 6))
    flip(a.space(SPEC).segments()[-1].folder / "embedding" / "c" / "0" / "0", 3)
    with pytest.raises(CacheError, match=f"segment {segment}: .*was not pushed.*--repair"):
        push(a, str(shared))
    assert len(segments(shared)) == 2


@pytest.mark.parametrize(
    "path", ["../../../escaped", "/escaped", "embedding/../../../escaped", "manifest.json", "a\0b"]
)
def test_a_manifest_cannot_name_a_path_outside(path: str, shared: Path, tmp_path: Path) -> None:
    entry = [3, sha256(b"bad").hexdigest()]
    reseal(segments(shared)[0] / "manifest.json", lambda d: d["files"].update({path: entry}))
    before = sorted(p for p in tmp_path.rglob("*") if "b" not in p.relative_to(tmp_path).parts[:1])
    b = Cache.open(tmp_path / "b", create=True)
    assert "refused" in pull(str(shared), b).problems[0]
    assert held(b) == {2, 3}
    after = sorted(p for p in tmp_path.rglob("*") if "b" not in p.relative_to(tmp_path).parts[:1])
    assert before == after


def _huge_rows(document: dict[str, Any]) -> None:
    document["rows"] = document["ok"] = 1 << 20
    for name in ("digest", "status", "row_crc"):
        document["columns"][name] = 1 << 20
    document["columns"]["reason_offset"] = 1
    document["embedding"]["chunk_crc32c"] = "00" * 4 * (-(-(1 << 20) // 2))


def _huge_files(document: dict[str, Any]) -> None:
    for entry in document["files"].values():
        entry[0] = 1 << 50


def _other_dim(document: dict[str, Any]) -> None:
    document["embedding"]["dim"] = 65_536


@pytest.mark.parametrize("edit", [_huge_rows, _huge_files, _other_dim])
def test_sizes_are_refused_before_memory_is_allocated(
    edit: Edit, shared: Path, tmp_path: Path
) -> None:
    reseal(segments(shared)[0] / "manifest.json", edit)
    b = Cache.open(tmp_path / "b", create=True)
    counted = fakes.counted(fakes.folder(shared))
    came = pull(counted, b)
    assert segments(shared)[0].name in came.problems[0]
    assert held(b) == {2, 3}
    assert counted.n_bytes < 50_000


def test_an_endless_listing_ends(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(fakes.Flaky):
        def list(self, prefix: str) -> Iterator[ListedObject]:
            return (ListedObject(f"{prefix}{n}", 1, "") for n in count())

    for module in (objects, patience):
        monkeypatch.setattr(module, "MAX_KEYS", 1000)
    endless = Patient(Endless(fakes.folder(shared), lambda n: ""))
    with pytest.raises(RemoteError, match="lists over 1,000 objects: refused"):
        pull(endless, Cache.open(tmp_path / "b", create=True))


@pytest.mark.parametrize(
    ("scenario", "message", "most_mib"),
    [
        ("keys", "objects: refused", 700),
        ("names", "lists over 1,000,000 objects: refused", 700),
        ("page", "a listing that does not end: refused", 900),
        ("refs", "too much under refs/: refused", 400),
        ("forgotten", "lists forgotten photos and is damaged", 400),
    ],
)
def test_a_hostile_remote_does_not_exhaust_memory(
    scenario: str, message: str, most_mib: int, tmp_path: Path
) -> None:
    """Measured in a separate process: its peak growth."""
    if scenario == "page":
        pytest.importorskip("obstore")
    words = [sys.executable, "-m", "tests.sharing.hostile_worker", scenario, str(tmp_path / "b")]
    folder = Path(__file__).parents[2]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report, grown = done.stdout.splitlines()
    assert message in report
    assert int(grown) < most_mib


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ("MAX_MANIFESTS_BYTES", "too many manifests"),
    ],
)
def test_a_shared_copy_above_a_bound_is_one_message(
    bound: str, message: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"embedcache.sharing.segments.{bound}", 4)
    b = Cache.open(tmp_path / "b", create=True)
    [problem] = pull(str(shared), b).problems
    assert message in problem
    assert held(b) == set()


def test_damage_on_the_way_is_not_remembered(shared: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("manifest.json", "paper.json", "digest/c/0/0", "/zarr.json")):

        class Once(fakes.Flaky):
            def blocks(
                self,
                key: str,
                *,
                start: int = 0,
                length: int | None = None,
                name: str = name,
            ) -> Iterator[bytes]:
                for block in super().blocks(key, start=start, length=length):
                    wrong = bytes([block[0] ^ 1]) + bytes(block[1:])
                    yield wrong if key.endswith(name) else block

        b = Cache.open(tmp_path / f"b{number}", create=True)
        assert pull(Once(fakes.folder(shared), lambda n: ""), b).problems, name
        assert pull(str(shared), b).problems == ()
        assert held(b) == {0, 1, 2, 3}
        assert (b.path / "refs" / "paper.json").exists()


def test_endless_objects_end(shared: Path, tmp_path: Path) -> None:
    class Endless(fakes.Flaky):
        def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            if self.n_bytes > 100 << 20:
                raise AssertionError("the pull did not stop reading")
            yield from super().blocks(key, start=start, length=length)
            while key.count("/") > 3:  # files of segments
                self.n_bytes += 1 << 20
                yield bytes(1 << 20)

    b = Cache.open(tmp_path / "b", create=True)
    came = pull(Endless(fakes.folder(shared), lambda n: ""), b)
    assert len(came.problems) == 2
    assert held(b) == set()


def test_foreign_keys_are_ignored(shared: Path, tmp_path: Path) -> None:
    class Odd(fakes.Flaky):
        def list(self, prefix: str) -> Iterator[ListedObject]:
            yield from super().list(prefix)
            space = f"{prefix}{SPEC.digest}"
            for key in (
                f"{prefix}../../evil",
                f"{space}/segments/../../../evil/manifest.json",
                f"{space}/segments/20260101T000000000000-0000000g/manifest.json",
                f"{prefix}{'0' * 64}/segments/x",
                "x" * 5000,
                "",
            ):
                yield ListedObject(key, 10, "")

    b = Cache.open(tmp_path / "b", create=True)
    came = pull(Patient(Odd(fakes.folder(shared), lambda n: "")), b)
    assert came.problems == ()
    assert held(b) == {0, 1, 2, 3}


def test_a_replaced_manifest_there_changes_nothing_here_and_its_ref_is_refused(
    shared: Path, tmp_path: Path
) -> None:
    b, c = (Cache.open(tmp_path / name, create=True) for name in "bc")
    pull(str(shared), b)
    reseal(segments(shared)[0] / "manifest.json", lambda d: d.update(name="other"))
    assert pull(str(shared), b).rows == 0
    assert held(b) == {0, 1, 2, 3}
    came = pull(str(shared), c, ref="paper")
    assert "the ref pins it, and another segment has its name" in came.problems[0]
    assert came.refs == ()


def test_a_replaced_ref_there_changes_nothing_here(shared: Path, tmp_path: Path) -> None:
    b, c = (Cache.open(tmp_path / name, create=True) for name in "bc")
    pull(str(shared), b)
    before = (b.path / "refs" / "paper.json").read_bytes()
    reseal(shared / "refs" / "paper.json", lambda d: d.update(spaces={}))
    assert "pins other segments" in str(pull(str(shared), b))
    assert (b.path / "refs" / "paper.json").read_bytes() == before
    reseal(shared / "refs" / "paper.json", lambda d: d.update(spaces={"../../x": {}}))
    assert "paper.json" in pull(str(shared), c).problems[0]
    assert not (c.path / "refs").exists()


def test_a_space_that_is_not_named_after_its_spec_is_refused(shared: Path, tmp_path: Path) -> None:
    path = shared / APART / SPEC.digest / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["embedcache"]["spec"]["architecture"] = "better"
    path.write_text(json.dumps(document, indent=1, sort_keys=True))
    b = Cache.open(tmp_path / "b", create=True)
    assert "does not describe its space: refused" in pull(str(shared), b).problems[0]
    assert not b.spaces()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_segment_whose_parts_contradict_each_other_is_refused(
    depth: int, shared: Path, tmp_path: Path
) -> None:
    """The writer corrected every digest (1), the chunk's CRC too (2), the row's too (3: a NaN)."""
    segment = segments(shared)[0]
    shard, column = (segment / path for path in ("embedding/c/0/0", "row_crc/c/0"))
    raw = bytearray(shard.read_bytes())
    raw[4:8] = np.array([np.nan], "<f4").tobytes()
    if depth > 1:  # two rows of eight floats in one chunk
        raw[64:68] = crc32c(bytes(raw[:64])).to_bytes(4, "little")
    shard.write_bytes(raw)
    if depth > 2:
        crcs = np.array([crc32c(bytes(raw[:32])), crc32c(bytes(raw[32:64]))], "<u4").tobytes()
        column.write_bytes(crcs + crc32c(crcs).to_bytes(4, "little"))

    def consistent(document: dict[str, Any]) -> None:
        for path in (shard, column):
            entry = [path.stat().st_size, sha256(path.read_bytes()).hexdigest()]
            document["files"][path.relative_to(segment).as_posix()] = entry
        if depth > 1:
            document["embedding"]["chunk_crc32c"] = raw[64:68].hex()

    reseal(segment / "manifest.json", consistent)
    b = Cache.open(tmp_path / "b", create=True)
    for wanted in (None, photos(0, 2, 3)):
        [problem] = pull(str(shared), b, photos=wanted).problems
        assert segment.name in problem
        assert held(b) == {2, 3}
    assert verify(b).clean


def test_a_push_follows_no_link_in_a_folder_remote(shared: Path, tmp_path: Path) -> None:
    a, outside = Cache.open(tmp_path / "a"), tmp_path / "outside"
    (shared / APART / SPEC.digest / "segments").rename(outside)
    (shared / APART / SPEC.digest / "segments").symlink_to(outside)
    before = sorted(outside.rglob("*"))
    fill(a.space(SPEC), photos(6))
    with pytest.raises(CacheError, match="is a link: refused"):
        push(a, str(shared))
    assert sorted(outside.rglob("*")) == before


def test_provenance_with_terminal_escapes_is_refused(shared: Path, tmp_path: Path) -> None:
    path = segments(shared)[0] / "manifest.json"
    b = Cache.open(tmp_path / "b", create=True)
    changes: tuple[dict[str, Any], ...] = (
        {"name": "net\x1b[2J"},
        {"about": {"writer": "\x1b]0;x\x07"}},
    )
    for change in changes:
        reseal(path, lambda document, change=change: document.update(change))  # type: ignore[misc]
        report = f"{pull(str(shared), b)}\n{survey(str(shared))}"
        assert "cannot be printed" in report
        assert "\x1b" not in report


def test_a_ref_without_its_changes_is_left_out(shared: Path, tmp_path: Path) -> None:
    reseal(shared / "refs" / "paper.json", lambda d: d.pop("changes"))
    b = Cache.open(tmp_path / "b", create=True)
    assert "has no list of its changes" in pull(str(shared), b).problems[0]
    assert held(b) == {0, 1, 2, 3}


def test_a_pull_follows_no_link_in_a_folder_remote(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(b"private")
    shard = segments(shared)[0] / "embedding" / "c" / "0" / "0"
    shard.unlink()
    shard.symlink_to(tmp_path / "private")
    b = Cache.open(tmp_path / "b", create=True)
    assert pull(str(shared), b).problems
    assert held(b) == {2, 3}


def test_a_place_that_is_not_a_shared_copy_is_refused(tmp_path: Path) -> None:
    b = Cache.open(tmp_path / "b", create=True)
    with pytest.raises(RemoteError, match="there is no shared copy"):
        pull(str(tmp_path / "nowhere"), b)
    (tmp_path / "zarr").mkdir()
    (tmp_path / "zarr" / "zarr.json").write_text("{}")
    with pytest.raises(RemoteError, match="not a shared copy of format 1"):
        pull(str(tmp_path / "zarr"), b)
