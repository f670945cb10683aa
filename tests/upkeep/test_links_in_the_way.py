"""A link in the place of what a command deletes is never followed: it may lead anywhere."""

from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache import disk
from embedcache.store.cache import Cache
from embedcache.store.disposal import discard, dispose
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.verify import verify
from tests.stores import dead_mark
from tests.upkeep.caches import SPEC, make


def elsewhere(folder: Path) -> list[Path]:
    """Somebody's folder, with files that have names of ours; what is in it."""
    for name in ("manifest.json", "zarr.json", "digest/c/0/0", "notes.txt", "deep/er/x.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return sorted(folder.rglob("*"))


def forget_one(cache: Cache) -> object:
    return forget(cache, ["p2"])


def repair(cache: Cache) -> object:
    return verify(cache, repair=True)


@pytest.mark.parametrize("command", [forget_one, compact, repair])
@pytest.mark.parametrize("name", ["{}", ".gone-{}-MARK", ".draft-{}-MARK", ".old-MARK"])
def test_no_command_deletes_or_moves_what_a_link_leads_to(
    tmp_path: Path, name: str, command: Callable[[Cache], object]
) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    segment = cache.space(SPEC).segments()[0]
    forget(cache, ["p1"])  # a segment that the log names, and a link in its place
    assert not segment.folder.exists()
    before = elsewhere(tmp_path / "theirs")
    link = segment.folder.with_name(name.format(segment.id).replace("MARK", dead_mark()))
    link.symlink_to(tmp_path / "theirs")
    command(Cache.open(cache.path))
    assert sorted((tmp_path / "theirs").rglob("*")) == before
    assert not (link.is_symlink() and command is not repair and name == "{}")


def test_the_helpers_that_delete_folders_take_a_link_for_what_it_is(tmp_path: Path) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    before = elsewhere(tmp_path / "theirs")
    deletes: list[Callable[[Path], object]] = [
        disk.delete_folder,
        disk.remove_folder,
        lambda path: dispose(path, cache=cache.path),
        lambda path: discard(path, cache=cache.path),
    ]
    for delete in deletes:
        link = cache.path / "spaces" / "link"
        link.symlink_to(tmp_path / "theirs")
        assert delete(link)
        assert not link.is_symlink()
        assert sorted((tmp_path / "theirs").rglob("*")) == before


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize(
    "place",
    ["status/zarr.json", "embedding", "digest/c/0/0", "manifest.json", "notes", "reason_text/c"],
)
def test_a_link_that_leads_to_itself_is_a_finding_and_the_rest_is_checked(
    tmp_path: Path, place: str, repair: bool
) -> None:
    cache = make(tmp_path / "a", 1, 2, 3)
    first, second = (segment.folder for segment in cache.space(SPEC).segments())
    link = first / place
    if link.is_dir():
        disk.delete_folder(link)
    link.unlink(missing_ok=True)
    link.symlink_to(link.name)
    (second / "digest/c/0/0").write_bytes(b"wrong")
    report = verify(cache.path, repair=repair)
    found = {Path(finding.path).name: finding for finding in report.findings}
    assert found.keys() == {first.name, second.name}
    assert "link" in found[first.name].problem
    assert place in found[first.name].problem
    assert all(bool(finding.moved) == repair for finding in found.values())
    assert ("Run 'embedcache verify --repair" in str(report)) != repair
    if repair:
        assert verify(cache.path).clean
