"""`verify` names the command that changes something, and no other."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.store.cache import Cache
from embedcache.store.layout import root_document
from embedcache.store.zarr_json import encode_document
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.verify import verify
from tests.upkeep.caches import SPEC, make

REPAIR = "verify --repair"


def note(name: str) -> Callable[[Path], object]:
    return lambda cache: (cache / name).write_text("mine")


def leftover(cache: Path) -> None:
    (cache / "refs" / ".r.json.0123abcd-00000000-7-7").write_text("half")
    os.utime(cache / "refs" / ".r.json.0123abcd-00000000-7-7", (0, 0))


LEFT_ALONE: dict[str, Callable[[Path], object]] = {
    "a note in the cache": note("notes.txt"),
    "a note in a space": note(f"spaces/{SPEC.digest}/notes.txt"),
    "a note in the log": note("removed/notes.txt"),
    "a note in an entry": note("removed/00000001/notes.txt"),
    "a link": lambda cache: (cache / "link").symlink_to("/"),
    "a link to segments": lambda cache: (
        cache / "photos/segments/20260101T000000000000-01234567"
    ).symlink_to("/"),
}
MENDED: dict[str, Callable[[Path], object]] = {
    "a leftover": leftover,
    "a group": lambda cache: (cache / "spaces" / "zarr.json").unlink(),
    "a folder": lambda cache: os.rename(cache / "refs", cache / "faces" / "x"),
    "a note beside spaces": note("spaces/notes.txt"),
    "no segment": lambda cache: (cache / "photos/segments/notes").mkdir(),
    "a ref": lambda cache: (cache / "refs" / "r.json").write_text("{}"),
    "an entry": lambda cache: (cache / "removed/00000001/entry.json").write_text("{}"),
}


def cache_with_a_log(path: Path) -> Cache:
    cache = make(path, 1, 2, 3, 4)
    (path / "refs").mkdir(exist_ok=True)
    compact(cache)
    assert verify(cache).clean
    return cache


@pytest.mark.parametrize("what", LEFT_ALONE)
def test_what_repair_leaves_alone_says_what_to_do_instead(what: str, tmp_path: Path) -> None:
    cache = cache_with_a_log(tmp_path / "a").path
    LEFT_ALONE[what](cache)
    before = verify(cache)
    told = [found.problem for found in before.findings]
    assert told
    assert REPAIR not in str(before)
    assert all("ove it out of the cache" in text or "'embedcache " in text for text in told)
    after = verify(cache, repair=True)
    assert [found.problem for found in after.findings] == told
    assert not any(found.moved for found in after.findings)


@pytest.mark.parametrize("what", MENDED)
def test_repair_is_named_where_it_changes_something(what: str, tmp_path: Path) -> None:
    cache = cache_with_a_log(tmp_path / "a").path
    MENDED[what](cache)
    (cache / "notes.txt").write_text("mine")  # beside it, something that repair leaves alone
    assert f"Run 'embedcache {REPAIR} {cache}'" in str(verify(cache))
    done = verify(cache, repair=True)
    assert any(found.moved for found in done.findings)
    assert REPAIR not in str(done)
    assert REPAIR not in str(verify(cache))


def test_a_cache_of_a_later_format_is_left_as_it_is(tmp_path: Path) -> None:
    cache = cache_with_a_log(tmp_path / "a").path
    (cache / "spaces" / "zarr.json").unlink()
    raw = encode_document(root_document(3))
    (cache / "zarr.json").write_bytes(raw)
    before = sorted(cache.rglob("*"))
    [finding] = verify(cache, repair=True).findings
    assert "Update embedcache" in finding.problem
    assert sorted(cache.rglob("*")) == before
    assert (cache / "zarr.json").read_bytes() == raw
