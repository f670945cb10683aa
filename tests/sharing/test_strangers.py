"""Names that embedcache does not give: `verify URL` shows them, as `verify DIR` does in a cache."""

import shutil
from pathlib import Path

import pytest

from embedcache.remotes.remote import Remote
from embedcache.sharing import announcing
from embedcache.sharing.share import push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.store.log import Entry, Gone, append, read_log
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.sharing.members import SPEC, Make
from tests.stores import photos

SPACE = f"spaces/{SPEC.digest}"


@pytest.fixture
def a(make: Make) -> Cache:
    a = make("a", [0, 1, 2])
    a.record_photos("f", ["1"], photos(1))
    write_ref(a, "paper")
    return a


def names(a: Cache) -> dict[str, str]:
    """What a sync tool, or somebody, makes of names there: {the key: what is named}."""
    segment = a.space(SPEC).segments()[0].id
    return {
        f"{SPACE}/segments/{segment} (1)/manifest.json": f"{SPACE}/segments/{segment} (1)",
        f"{SPACE}/segments/zarr (1).json": f"{SPACE}/segments/zarr (1).json",
        f"{SPACE} (1)/zarr.json": f"{SPACE} (1)",
        f"{SPACE}/notes/mine": f"{SPACE}/notes",
        "photos/segments/x/manifest.json": "photos/segments/x",
        "refs/paper (1).json": "refs/paper (1).json",
        "removed/00000001 (1)/entry.json": "removed/00000001 (1)",
        "forgotten/x.json": "forgotten/x.json",
        "spaces (1)/zarr.json": "spaces (1)",
    }


def test_every_name_that_is_not_ours_is_named_once(a: Cache, remote: Remote) -> None:
    push(a, remote, with_ids=True)
    forget(a, ["1"])
    push(a, remote, with_ids=True, purge=True)
    assert verify_remote(remote).findings == ()
    for key in names(a):
        assert remote.create(key, b"mine")
    found = verify_remote(remote).findings
    assert len(found) == len(names(a))
    for place in names(a).values():
        [text] = [text for text in found if text.startswith(f"{place} is not embedcache's")]
        assert text.endswith("move it out of the shared copy")


def test_a_folder_that_a_sync_tool_copied_is_named_by_its_url_as_by_its_folder(
    a: Cache, tmp_path: Path
) -> None:
    push(a, str(folder := tmp_path / "shared"))
    [segment] = Cache.open(folder).space(SPEC).segments()
    shutil.copytree(segment.folder, twin := segment.folder.with_name(f"{segment.id} (1)"))
    [finding] = verify(folder).findings
    assert finding.path == twin.relative_to(folder).as_posix()
    [text] = verify_remote(str(folder)).findings
    assert text.startswith(f"{finding.path} is not embedcache's (")


def test_a_file_in_a_segment_that_no_writer_makes_is_named(a: Cache, remote: Remote) -> None:
    push(a, remote)
    [segment] = a.space(SPEC).segments()
    key = f"{SPACE}/segments/{segment.id}/digest/c/0/0 (1)"
    remote.create(key, b"mine")
    assert [text.split(" is not")[0] for text in verify_remote(remote).findings] == [key]


@pytest.mark.parametrize("forgets", [False, True])
def test_a_ref_that_pins_nothing_in_the_place_of_lost_rows_is_named(
    forgets: bool, a: Cache, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    [segment] = a.space(SPEC).segments()
    gone = Entry(segments={f"{SPEC.digest}/{segment.id}": Gone(segment.digest, None)})
    append(a.path, read_log(a.path), lambda log: gone)
    shutil.rmtree(segment.folder)
    monkeypatch.setattr(announcing, "_standing", lambda *_: [])  # as it was pushed once
    if forgets:
        forget(Cache.open(a.path), ["1"])
    assert push(Cache.open(a.path), remote).refs == ("paper",)
    found = verify_remote(remote).findings
    if forgets:  # perhaps the ref held only what was forgotten
        assert found == ()
    else:
        [text] = found
        assert f"ref paper pins nothing in the place of segment {segment.id}" in text


def test_a_ref_of_rows_that_were_all_forgotten_is_right(make: Make, remote: Remote) -> None:
    b = make("b", [1], [2])
    b.record_photos("f", ["1"], photos(1))
    write_ref(b, "paper")
    push(b, remote)
    forget(b, ["1"])
    push(b, remote, purge=True)
    assert verify_remote(remote).findings == ()


def test_a_ref_of_an_empty_cache_is_right(make: Make, remote: Remote) -> None:
    write_ref(b := make("b"), "empty")
    push(b, remote)
    assert verify_remote(remote).findings == ()
