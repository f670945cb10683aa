"""A cache is renamed while a command runs: one message, nothing lost, nothing at the old place."""

import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache import disk
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget as forget_photos
from embedcache.upkeep.verify import verify
from tests.stores import dead_mark, model, photos
from tests.upkeep.caches import SPEC, make

WATCHED = ("open", "os.rename", "os.mkdir", "os.scandir", "os.listdir", "os.remove", "os.link")
PLACES = 4  # at which a command is met; there are some hundred
COMMANDS = {
    "compact": ["compact", "CACHE"],
    "forget": ["forget", "CACHE", "p1"],
    "push": ["push", "CACHE", "SHARED"],
    "pull": ["pull", "SHARED", "CACHE", "--with-ids"],
    "merge": ["merge", "CACHE", "OTHER", "--with-ids"],
    "ref": ["ref", "CACHE", "paper"],
    "import": ["import", "CACHE", "v.npy", "--ids", "ids.csv", "--photos", "PHOTOS", "--name", "m"],
    "verify": ["verify", "CACHE"],
    "info": ["info", "CACHE", "--photos"],
}


def forked(words: list[str], cache: Path, place: int, log: Path) -> tuple[int, str, int]:
    """Run a command that finds its cache renamed before its n-th look at it; -1 for never.

    Returns its exit status, what it said on stderr, and how many looks there were.
    """
    pid = os.fork()
    if not pid:
        status, n_looks = 3, 0
        try:
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(fd, 2)
            os.dup2(null, 1)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")

            def look(event: str, args: tuple[Any, ...]) -> None:
                nonlocal n_looks
                if event in WATCHED and str(args[0]).startswith(str(cache)):
                    n_looks += 1
                    if n_looks == place + 1:
                        os.rename(cache, cache.with_name("moved"))

            import cli

            sys.argv = ["embedcache", *words]
            sys.addaudithook(look)
            try:
                cli.main()
                status = 0
            except SystemExit as stop:
                status = int(stop.code or 0)
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            log.with_suffix(".n").write_text(str(n_looks))
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, log.read_text(), int(log.with_suffix(".n").read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with several segments, litter and a forgotten photo; another one; a shared copy."""
    from embedcache.sharing.share import push

    home = tmp_path_factory.mktemp("world")
    cache = make(home / "cache", 1, 2, 3, 4, 9, segments=3)
    forget_photos(cache, ["p9"])
    (cache.path / "refs").mkdir(exist_ok=True)
    (cache.path / "refs" / f".r.json.{dead_mark()}").write_text("half")
    push(make(home / "other", 3, 4, 5, 6), str(home / "shared"), with_ids=True)
    (home / "photos").mkdir()
    (home / "photos" / "a.jpg").write_bytes(b"a photo")
    np.save(home / "v.npy", model(photos(1)))
    (home / "ids.csv").write_text("id\na.jpg\n")
    return home


@pytest.mark.parametrize("command", COMMANDS)
def test_a_cache_that_is_renamed_under_a_command(
    command: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)
    names = {"CACHE": "cache", "SHARED": "shared", "OTHER": "other", "PHOTOS": "photos"}
    words = [names.get(word, word) for word in COMMANDS[command]]
    log, n_gone, n_looks, places = tmp_path / "log", 0, 0, [-1]
    for i in range(PLACES + 1):
        home = tmp_path / str(i)
        shutil.copytree(world, home)
        monkeypatch.chdir(home)
        cache, moved = home / "cache", home / "moved"
        status, said, n_looks = forked(words, cache, places[i], log)
        if i == 0:
            assert status == (1 if command == "verify" else 0), said
            places += np.linspace(1, n_looks - 1, PLACES).astype(int).tolist()
            continue
        assert "Traceback" not in said, f"{places[i]} of {n_looks}: {said}"
        if not moved.exists():  # it had fewer looks this time
            continue
        assert not cache.exists(), f"{places[i]}: {sorted(cache.rglob('*'))}"
        if status:
            assert status == 1
            if f"{cache} is gone" in said:
                n_gone += 1
                assert said.count("error: ") == 1
        again = [str(moved) if word == "cache" else word for word in words]
        status, said, _ = forked(again, moved, -1, log)
        assert "Traceback" not in said
        # It may have been done before the cache was renamed.
        done = "knows no photo id" in said or "has a ref 'paper' already" in said
        assert status == 0 or done or command == "verify", said
        kept = Cache.open(moved)
        rows, found = kept.space(SPEC).read(photos(2, 3, 4))
        assert found.all()
        assert (rows == model(photos(2, 3, 4))).all()
        assert not kept.space(SPEC).read(photos(9))[1].any()
        compact(kept)  # which clears what is left after a kill, too
        found_left = [one.path for one in verify(kept).findings]
        assert all(path.startswith("local/incoming/") for path in found_left), found_left
    assert n_gone
