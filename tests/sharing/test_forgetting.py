"""Pulls, pushes and merges obey what was forgotten, and a purge removes it from a shared copy."""

from pathlib import Path

import numpy as np
import pytest

from embedcache.errors import RemoteError
from embedcache.remotes.remote import Remote
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.sharing.members import Make, held
from tests.stores import photos


def test_forgotten_photos_do_not_come_back(remote: Remote, make: Make) -> None:
    a, b, c = make("a", [0, 1, 2]), make("b"), make("c")
    a.record_photos("f", ["0", "1", "2"], photos(0, 1, 2))
    push(a, remote)
    pull(remote, b)
    forget(a, ["1"])
    push(a, remote)
    assert pull(remote, a).rows == 0
    assert held(a) == {0, 2}
    came = pull(remote, c)
    assert (came.rows, came.withheld, came.tombstones) == (2, 1, 1)
    assert held(c) == {0, 2}
    assert pull(remote, c).rows == 0
    came = pull(remote, b)
    assert came.still_here == 1
    assert f"of forgotten photos: 'embedcache forget {b.path} --forgotten' removes" in str(came)
    assert push(make("d", [1, 7]), remote).rows == 1


def test_a_purge_removes_forgotten_rows_from_the_shared_copy(remote: Remote, make: Make) -> None:
    a, b, c = make("a", [0, 1, 2], [3]), make("b"), make("c")
    a.record_photos("f", ["0", "1"], photos(0, 1))
    write_ref(a, "paper")
    push(a, remote)
    pull(remote, b)
    forget(a, ["1"])
    write_ref(a, "later")
    before = [(entry.key, entry.size) for entry in remote.list("")]
    would = push(a, remote, purge=True, dry_run=True)
    assert [(entry.key, entry.size) for entry in remote.list("")] == before
    assert "would be removed there: 1 segment with 1 row of forgotten photos" in str(would)
    assert "with 1 tombstone and 1 ref (later)" in str(would)
    did = push(a, remote, purge=True)
    assert (did.purged, did.purged_rows) == (would.purged, would.purged_rows) == (1, 1)
    assert (did.tombstones, did.refs) == (would.tombstones, would.refs) == (1, ("later",))
    assert "removed there: 1 segment" in str(did)
    columns = [
        b"".join(remote.blocks(entry.key))
        for entry in remote.list("spaces/")
        if "/digest/c/" in entry.key
    ]
    assert not any(photos(1).tobytes() in raw for raw in columns)
    assert pull(remote, c).problems == ()
    assert held(c) == {0, 2, 3}
    assert pull(remote, c, ref="paper").problems == ()
    assert push(a, remote, purge=True).purged == 0
    assert push(b, remote).rows == 0
    assert verify(a).clean
    assert held(b) == {0, 1, 2, 3}


def test_after_a_purge_a_ref_there_reads_the_rest_of_its_rows(remote: Remote, make: Make) -> None:
    a, b, d = make("a", [0, 1, 2]), make("b"), make("d")
    write_ref(a, "paper")
    push(a, remote)
    pull(remote, b)
    b.record_photos("f", ["1"], photos(1))
    forget(b, ["1"])
    purged = push(b, remote, purge=True)
    assert (purged.purged, purged.problems) == (1, ())
    came = pull(remote, d, ref="paper")
    assert (came.refs, came.problems) == (("paper",), ())
    assert held(d) == {0, 2}
    assert rows_of(d, "paper") == rows_of(b, "paper") == {0, 2}
    for cache in (a, b, d):  # all three are the same ref, in the segments that each one has
        assert push(cache, remote).problems == pull(remote, cache).problems == ()
    assert verify_remote(remote).clean
    assert verify(d).clean


def rows_of(cache: Cache, ref: str) -> set[int]:
    """The photos below 10 that a ref reads."""
    found = Cache.open(cache.path, ref=ref).spaces()[0].read(photos(*range(10)))[1]
    return set(np.flatnonzero(found).tolist())


def test_nothing_comes_where_tombstones_cannot_be_read(tmp_path: Path, make: Make) -> None:
    a, b, folder = make("a", [0, 1]), make("b"), tmp_path / "shared"
    a.record_photos("f", ["1"], photos(1))
    push(a, str(folder))
    forget(a, ["1"])
    push(a, str(folder))
    tombstone = next((folder / "forgotten").iterdir())
    tombstone.rename(tmp_path / "moved")
    tombstone.symlink_to(tmp_path / "moved")
    with pytest.raises(RemoteError, match="lists forgotten photos and cannot be read"):
        pull(str(folder), b)


def test_a_merge_obeys_tombstones(tmp_path: Path, make: Make) -> None:
    a, b, shared = make("a", [0, 1, 2]), make("b"), tmp_path / "shared"
    push(a, str(shared))
    a.record_photos("f", ["1"], photos(1))
    forget(a, ["1"])
    push(a, str(shared))
    merge(b, [Cache.open(shared)])
    assert held(b) == {0, 2}
    merge(a, [make("c", [1, 5])])
    assert held(a) == {0, 2, 5}


def test_what_a_remote_still_has_of_forgotten_photos_is_not_remembered_here(
    remote: Remote, make: Make
) -> None:
    a = make("a", [0, 1, 2], [3])
    a.record_photos("f", ["secret 0", "secret 1"], photos(0, 1))
    push(a, remote, with_ids=True)
    forget(a, ["secret 1"])
    for with_ids, purge in ((False, False), (True, False), (True, True)):
        push(a, remote, with_ids=with_ids, purge=purge)
        pull(remote, a, with_ids=True)
        for file in (a.path / "local").rglob("*"):
            if file.is_file():
                assert photos(1).tobytes() not in file.read_bytes(), (purge, file)
                assert b"secret 1" not in file.read_bytes(), (purge, file)


def test_a_staging_folder_that_was_half_deleted_is_named_and_goes(make: Make) -> None:
    a = make("a", [0, 1])
    left = a.path / "local" / f".old-{'0' * 8}-{'0' * 8}-1-1" / "embedding"
    left.mkdir(parents=True)
    (left / "rows").write_bytes(photos(1).tobytes())
    assert not verify(a).clean
    forget(a, [photos(1)[0].tobytes().hex()])
    assert not left.exists()
    assert verify(a).clean


def test_a_pull_counts_the_ids_that_it_records_not_forgotten_ones(
    remote: Remote, make: Make
) -> None:
    a, b, c = make("a", [0, 1, 2]), make("b", [0, 1, 2]), make("c", [0, 1, 2])
    a.record_photos("f", ["0", "1", "2"], photos(0, 1, 2))
    push(a, remote, with_ids=True)
    a.record_photos("g", ["z"], photos(0))
    push(a, remote, with_ids=True)
    b.record_photos("f", ["0", "y"], photos(0, 0))
    forget(b, ["0"])  # the pair alone: y keeps the photo
    came = pull(remote, b, with_ids=True)
    assert came.ids == 3
    assert sorted(b.photo_table().ids) == ["1", "2", "y", "z"]
    c.record_photos("f", ["0", "1", "2"], photos(0, 1, 2))
    forget(c, ["0", "1", "2"])
    came = pull(remote, c, with_ids=True)
    assert (came.ids, len(c.photo_table())) == (0, 0)
    assert "photo id" not in str(came)
    d = make("d", [0])
    assert merge(d, [a], with_ids=True).ids == 4
    forget(d, ["1"])
    assert merge(d, [a], with_ids=True).ids == 0
