"""`verify` names the command that changes something, and no other."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.errors import CacheError
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


def folder_in_place_of(name: str) -> Callable[[Path], object]:
    def damage(cache: Path) -> None:
        (cache / name).unlink()
        (cache / name).mkdir()
        (cache / name / "notes.txt").write_text("mine")

    return damage


def file_in_place_of(name: str) -> Callable[[Path], object]:
    def damage(cache: Path) -> None:
        shutil.rmtree(cache / name)
        (cache / name).write_text("mine")

    return damage


def link_in_place_of(name: str) -> Callable[[Path], object]:
    def damage(cache: Path) -> None:
        (cache / name).rename(cache.parent / "elsewhere")
        (cache / name).symlink_to(cache.parent / "elsewhere")

    return damage


SPACE = f"spaces/{SPEC.digest}"
IN_THE_WAY = {
    f"a folder in place of {name}": (name, folder_in_place_of(name))
    for name in ("zarr.json", "spaces/zarr.json", f"{SPACE}/zarr.json")
} | {
    f"a file in place of {name}": (name, file_in_place_of(name))
    for name in ("photos/segments", f"{SPACE}/segments")
}
LINKS = {
    f"a link in place of {name}": (name, link_in_place_of(name))
    for name in (SPACE, f"{SPACE}/segments", "photos/segments")
}

LEFT_ALONE: dict[str, Callable[[Path], object]] = {
    "a note in the cache": note("notes.txt"),
    "a note in a space": note(f"spaces/{SPEC.digest}/notes.txt"),
    "a note in the log": note("removed/notes.txt"),
    "a note in an entry": note("removed/00000001/notes.txt"),
    "a link": lambda cache: (cache / "link").symlink_to("/"),
    "a link to segments": lambda cache: (
        cache / "photos/segments/20260101T000000000000-01234567"
    ).symlink_to("/"),
    **{what: damage for what, (_, damage) in {**IN_THE_WAY, **LINKS}.items()},
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


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_once_it_is_moved_away_repair_mends_what_it_stood_for(what: str, tmp_path: Path) -> None:
    cache = cache_with_a_log(tmp_path / "a").path
    name, damage = IN_THE_WAY[what]
    damage(cache)
    (cache / name).rename(tmp_path / "mine")
    assert verify(cache, repair=True).findings
    assert verify(cache).clean


@pytest.mark.parametrize("what", LINKS)
def test_what_a_link_stood_for_may_be_put_back(what: str, tmp_path: Path) -> None:
    """Nothing of it is counted as lost, or set aside, before."""
    cache = cache_with_a_log(tmp_path / "a").path
    name, damage = LINKS[what]
    damage(cache)
    assert verify(cache, repair=True).findings[0].lost_rows == 0
    (cache / name).unlink()
    (tmp_path / "elsewhere").rename(cache / name)
    assert verify(cache).clean


@pytest.mark.parametrize("part", [f"{SPACE}/segments", "photos/segments"])
def test_no_command_advises_repair_for_a_link_to_a_segment(part: str, tmp_path: Path) -> None:
    cache = cache_with_a_log(tmp_path / "a")
    [segment] = (cache.path / part).glob("2*")
    link_in_place_of(f"{part}/{segment.name}")(cache.path)
    again = Cache.open(cache.path)
    read = again.photo_table if part.startswith("photos") else again.space(SPEC).row_table
    with pytest.raises(CacheError) as told:
        read()
    assert REPAIR not in str(told.value)
    assert "Move it out of the cache" in str(told.value)


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
