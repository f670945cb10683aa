"""What is promised to be on the disk is there before anything says so."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache import disk
from embedcache.spec import foreign
from embedcache.store import journal
from embedcache.store.cache import Cache
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from tests.stores import model, photos

SPEC = foreign("wide", 65_536)  # 8 rows to a chunk, 256 to a shard


class Power:
    """Knows which files hold bytes that a power cut would lose, by inode."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.dirty: set[int] = set()
        self.at_link: list[tuple[str, set[int]]] = []
        self.folders: list[str] = []
        write_all, write_at, sync, link = disk.write_all, disk.write_at, disk.sync, os.link
        sync_folder = disk.sync_folder

        def note(fd: int) -> None:
            self.dirty.add(os.fstat(fd).st_ino)

        def written(fd: int, data: Any) -> None:
            note(fd)
            write_all(fd, data)

        def written_at(fd: int, data: Any, offset: int) -> None:
            note(fd)
            write_at(fd, data, offset)

        def synced(fd: int) -> None:
            sync(fd)
            self.dirty.discard(os.fstat(fd).st_ino)

        def linked(source: Any, target: Any) -> None:
            self.at_link.append((str(target), set(self.dirty)))
            link(source, target)

        def folder_synced(path: Path) -> None:
            self.folders.append(str(path))
            sync_folder(path)

        patch.setattr(disk, "write_all", written)
        patch.setattr(disk, "write_at", written_at)
        patch.setattr(disk, "sync", synced)
        patch.setattr(disk, "sync_folder", folder_synced)
        patch.setattr(os, "link", linked)


def write(cache: Cache, n: int) -> Path:
    space = cache.space(SPEC)
    with space.writer(n_rows=n, name="wide", about={}) as writer:
        for start in range(0, n, 50):
            part = photos(*range(start, start + 50))
            writer.add(part, np.repeat(model(part, 1), SPEC.dim, axis=1))
    return space.segments()[0].folder


def test_a_manifest_appears_after_all_that_it_names_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache.open(tmp_path / "a", create=True)
    cache.space(SPEC, create=True)
    power = Power(monkeypatch)
    folder = write(cache, 300)
    ((target, dirty),) = power.at_link
    assert target == str(folder / "manifest.json")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len([path for path in files if "embedding" in path.parts]) == 3
    assert not {path.stat().st_ino for path in files} & dirty
    held = {str(path.parent) for path in files} | {str(folder.parent)}
    assert held <= set(power.folders)


def test_rows_are_durable_every_few_seconds_before_the_journal_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SYNC_SECONDS", 0.0)
    cache = Cache.open(tmp_path / "a", create=True)
    space = cache.space(SPEC, create=True)
    power = Power(monkeypatch)
    writer = space.writer(n_rows=300, name="wide", about={})
    for start in range(0, 300, 50):
        part = photos(*range(start, start + 50))
        writer.add(part, np.repeat(model(part, 1), SPEC.dim, axis=1))
        assert not power.dirty, f"rows up to {start + 50} are not on the disk"
    writer.abandon()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's own figures")
def test_reading_a_subset_takes_the_subset_and_64_megabytes(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "a", create=True)
    spec = foreign("net", 2048)
    space = cache.space(spec, create=True)
    n, wanted = 20_000, 8_000
    digests = np.random.default_rng(0).integers(0, 256, (n, 32), dtype=np.uint8)
    with space.writer(n_rows=n, name="net", about={}) as writer:
        for start in range(0, n, 1000):
            writer.add(digests[start : start + 1000], np.ones((1000, 2048), np.float32))
    script = f"""
import sys
from pathlib import Path
import numpy as np
from embedcache.store import Cache
space = Cache.open({str(cache.path)!r}).find("net")
digests = np.random.default_rng(0).integers(0, 256, ({n}, 32), dtype=np.uint8)
space.read(np.random.default_rng(1).permutation(digests)[: int(sys.argv[1])])
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    one, many = (
        int(
            subprocess.run(
                [sys.executable, "-c", script, k], check=True, capture_output=True
            ).stdout
        )
        for k in ("1", str(wanted))
    )
    assert (many - one) * 1024 <= wanted * 2048 * 4 + (64 << 20)


def test_new_folders_are_durable_in_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a first commit, first ids, a first ref and a first tombstone."""
    power = Power(monkeypatch)
    cache = Cache.open(tmp_path / "new" / "a", create=True)
    cache.space(SPEC, create=True)
    write(cache, 50)
    cache.record_photos("f", ["p0", "p1"], photos(0, 1))
    write_ref(cache, "r")
    forget(cache, ["p1"])
    folders = [path for path in [cache.path, *cache.path.rglob("*")] if path.is_dir()]
    folders = [path for path in folders if "local" not in path.parts]
    assert {"removed", "forgotten", "refs"} <= {path.name for path in folders}
    lacking = {str(path.parent) for path in [cache.path.parent, *folders]} - {*power.folders}
    # Spaces, segments and entries are made in hidden folders, synced as a whole under that name.
    hidden = {Path(folder).name[:5] for folder in power.folders}
    assert {".new-", ".entr"} <= hidden
    made_hidden = ("segments", "removed", "spaces")
    lacking = {path for path in lacking if Path(path).parent.name not in made_hidden}
    lacking = {path for path in lacking if "/segments/" not in path}
    assert not lacking
