"""Sharing beside every other command: nothing is lost, nothing comes back, no bytes stay."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from embedcache.errors import CacheError, Damaged, RemoteError
from embedcache.remotes.folder import LocalFiles
from embedcache.remotes.remote import Ours, Remote, Unreachable
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.store.segment import Segment
from embedcache.store.space import Space
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.sharing.members import EVERY, MOMENTS, SPEC, Make, below, forget_elsewhere, held, row_of
from tests.stores import fill, photos


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_photo_forgotten_during_a_pull_does_not_come_back(
    moment: str, remote: Remote, make: Make
) -> None:
    a, b = make("a", [0, 1, 2], [3]), make("b", [1])
    b.record_photos("f", ["1"], photos(1))
    push(a, remote)
    meanwhile = fakes.Meanwhile(remote, MOMENTS[moment], lambda: forget_elsewhere(b, "1"))
    pull(meanwhile, b)
    assert meanwhile.happened
    assert held(b) == {0, 2, 3}
    assert verify(b).clean
    assert row_of(1) not in below(b.path)
    assert row_of(0) in below(b.path)


def test_a_member_who_may_not_delete_is_told_who_can(make: Make) -> None:
    from embedcache.remotes.remote import Denied

    shared = fakes.memory()
    a, b = make("a", [0, 1]), make("b", [1])
    b.record_photos("f", ["1"], photos(1))
    push(make("c", [9]), shared)

    class Writer(fakes.Meanwhile):
        def delete(self, key: str, *, ours: Ours | None = None) -> None:
            raise Denied(f"denied access to {key}")

        def create_once(self, key: str, data: bytes) -> bool:
            if key.startswith("removed/"):
                raise Denied(f"denied access to {key}")
            return super().create_once(key, data)

    def forgets() -> None:
        forget(b, ["1"])
        push(b, shared)

    came = push(a, Writer(shared, MOMENTS["while vectors move"], forgets))
    assert "push --purge" in came.problems[-1]
    d = make("d")
    assert pull(shared, d).withheld == 1
    assert held(d) == {0, 9}


def test_lifts_travel_before_tombstones(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1]), make("b")
    a.record_photos("f", ["1"], photos(1))
    push(a, remote)
    forget(a, ["1"])
    push(a, remote)
    a.lift(photos(1))
    fill(a.space(SPEC), photos(1))
    push(a, remote)
    assert pull(remote, b).rows == 2
    assert held(b) == {0, 1}
    assert verify(b).clean


@pytest.mark.parametrize("numbers", EVERY)
def test_a_request_whose_reply_is_lost_counts_once(
    numbers: Iterable[int], make: Make, tmp_path: Path
) -> None:
    for k in numbers:
        a, remote = make(f"a{k}", [0, 1, 2]), fakes.folder(tmp_path / f"r{k}")
        a.record_photos("f", ["1"], photos(1))
        push(a, remote)
        forget(a, ["1"])
        flaky = fakes.Flaky(remote, fakes.once(k, "after"))
        assert push(a, fakes.impatient(flaky), purge=True).problems == ()
        assert len(list((tmp_path / f"r{k}" / "removed").iterdir())) == 2  # the marks, the removal
        assert held(Cache.open(tmp_path / f"r{k}")) == {0, 2}
        if k > flaky.n_requests:  # more requests than there are
            return


def test_a_stale_listing_loses_nothing_and_brings_nothing_back(remote: Remote, make: Make) -> None:
    a, b, c = make("a", [0, 1, 2]), make("b", [3]), make("c")
    a.record_photos("f", ["1"], photos(1))
    push(a, remote)
    stale = fakes.Stale(remote)
    pull(stale, c)
    assert push(b, stale).problems == ()  # its segment is opened by name
    forget(a, ["1"])
    push(a, remote, purge=True)
    pull(stale, c)  # sees the segment that is gone, and not the one in its place
    assert held(c) >= {0, 2}
    pull(remote, c)
    assert held(c) == {0, 2, 3}
    assert push(b, stale).problems == ()
    d = make("d")
    pull(remote, d)
    assert held(d) == {0, 2, 3}


def test_refs_of_one_name_that_differ_are_an_error_and_stay(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1]), make("b", [2])
    for cache in (a, b):
        write_ref(cache, "paper")
    push(a, remote)
    [mine] = [(b.path / "refs" / "paper.json").read_bytes()]
    before = b"".join(remote.blocks("refs/paper.json"))
    for purge in (False, True):
        [problem] = push(b, remote, purge=purge).problems
        assert "ref paper of" in problem
        assert "Refs never change" in problem
    [problem] = pull(remote, b).problems
    assert "ref paper here pins other segments" in problem
    assert b"".join(remote.blocks("refs/paper.json")) == before
    assert (b.path / "refs" / "paper.json").read_bytes() == mine


def test_a_removed_id_comes_back_under_a_new_one(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1]), make("b")
    write_ref(a, "paper")
    push(a, remote)
    pull(remote, b, specs=[SPEC.digest])
    [old] = [segment.id for segment in b.space(SPEC).segments()]
    fill(b.space(SPEC), photos(2))
    compact(b)
    assert old not in [segment.id for segment in b.space(SPEC).segments()]
    came = pull(remote, b, ref="paper")
    assert (came.refs, came.problems) == (("paper",), ())
    assert old not in [segment.id for segment in b.space(SPEC).segments()]
    found = Cache.open(b.path, ref="paper").space(SPEC).read(photos(0, 1, 2))[1]
    assert found.tolist() == [True, True, False]
    assert push(b, remote).problems == ()
    assert verify(b).clean


@pytest.mark.parametrize("how", ["amid", "killed"])
def test_forget_leaves_no_byte_of_an_interrupted_pull_or_push(
    how: str, make: Make, tmp_path: Path
) -> None:
    a, b, folder = make("a", list(range(40))), make("b"), tmp_path / "shared"
    push(a, str(folder))
    b.record_photos("f", ["1"], photos(1))
    with pytest.raises(Unreachable):
        pull(fakes.Flaky(fakes.folder(folder), fakes.since(16, "after")), b)
    assert list((b.path / "local" / "incoming").rglob("embedding"))
    assert list((b.path / "local").glob("memory/*/remotes/*/*"))
    if how == "killed":  # while it hid a segment, and before it deleted that
        hidden = b.path / "local" / "incoming" / ".old-12345678-00000000-7-7"
        hidden.mkdir()
        (hidden / "row").write_bytes(row_of(1))
    fill(b.space(SPEC, create=True), photos(1))
    forget(b, ["1"])
    assert row_of(1) not in below(b.path)
    assert photos(1).tobytes() not in below(b.path)


@pytest.mark.parametrize(
    "name", ["99999999T999999999999-00000000", "20261332T000000000000-0000000a"]
)
def test_a_segment_whose_name_is_not_a_date_is_refused(
    name: str, make: Make, tmp_path: Path
) -> None:
    a, b, folder = make("a", [0]), make("b"), tmp_path / "shared"
    a.record_photos("f", ["x"], photos(0))
    push(a, str(folder), with_ids=True)
    for segments in (folder / "photos" / "segments", folder / "spaces" / SPEC.digest / "segments"):
        [segment] = segments.glob("2*")
        segment.rename(segment.with_name(name))
    came = pull(str(folder), b, with_ids=True)
    assert name in came.problems[0]
    assert "not a date" in came.problems[0]
    assert not b.spaces()
    b.record_photos("f", ["y"], photos(1))
    assert verify(b).clean


def test_a_merge_of_a_pulled_cache_brings_marks_along(remote: Remote, make: Make) -> None:
    a, b, c = make("a", [0, 1]), make("b"), make("c", [1, 2])
    a.record_photos("f", ["1"], photos(1))
    push(a, remote)
    forget(a, ["1"])
    push(a, remote)
    pull(remote, b)
    merge(c, [b])
    assert held(c) == {0, 2}


def test_a_pull_of_few_rows_has_no_bound_on_what_is_there(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digests there are read one segment at a time, and only those asked for are kept."""
    from embedcache.store.index import Table

    remote = fakes.memory()
    a, b = make("a", *([n, n + 100, n + 200] for n in range(0, 60, 3))), make("b")
    push(a, remote)
    most = 0
    real = Table.extended

    def watched(self: Table, parts: object, **options: object) -> Table:
        nonlocal most
        found = real(self, parts, **options)  # type: ignore[arg-type]
        most = max(most, len(found.keys))
        return found

    monkeypatch.setattr(Table, "extended", watched)
    assert pull(remote, b, photos=photos(0, 101, 999)).rows == 1
    assert most <= 3
    most = 0
    c = make("c", [7, 8])
    most = 0
    assert push(c, remote).rows == 2
    assert most <= 2
    assert np.isfinite(b.space(SPEC).read(photos(0))[0]).all()


@pytest.mark.parametrize("twice", [False, True])
def test_a_push_beside_a_forget_here_says_so(
    twice: bool, remote: Remote, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make("a", [0, 1, 2])
    a.record_photos("f", ["0"], photos(0))
    if twice:
        push(a, remote)
    listed, once = Space.segments, ["0"]

    def meanwhile(self: Space) -> list[Segment]:
        found = listed(self)
        if once:
            forget_elsewhere(a, once.pop())
        return found

    monkeypatch.setattr(Space, "segments", meanwhile)
    with pytest.raises(CacheError, match="forgotten during the push") as caught:
        push(a, remote)
    assert "Rerun the command" in str(caught.value)
    if twice:  # what had been sent before is not for others any more
        pull(remote, reader := make("reader"))
        assert 0 not in held(reader)
    assert push(a, remote).problems == ()


def test_a_push_says_where_files_are_missing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, shared = make("a", [0, 1, 2]), tmp_path / "shared"
    [segment] = a.space(SPEC).segments()

    def clear(self: LocalFiles, path: str, target: str) -> None:
        shutil.rmtree((shared / path).parent)
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "replace", clear)
        with pytest.raises(RemoteError, match=f"segment {segment.id} at .*deleted during the push"):
            push(a, fakes.folder(shared))
    assert push(a, fakes.folder(shared)).problems == ()
    (segment.folder / "row_crc" / "c" / "0").unlink()
    with pytest.raises(Damaged, match=r"row_crc/c/0 is missing.*embedcache verify"):
        push(Cache.open(a.path), fakes.memory())


@pytest.mark.parametrize("moment", MOMENTS)
def test_two_pushes_at_once_send_everything_of_both(
    moment: str, remote: Remote, make: Make
) -> None:
    a, b, c = make("a", [0, 1, 2], [3]), make("b", [2, 4], [5]), make("c")
    merge(b, [a])  # one segment is the same in both
    push(make("d", [9]), remote)
    theirs = fakes.folder(Path(remote.name), staging="b") if Path(remote.name).exists() else remote
    meanwhile = fakes.Meanwhile(remote, MOMENTS[moment], lambda: push(b, theirs))
    assert push(a, meanwhile).problems == ()
    assert meanwhile.happened
    assert verify_remote(remote).clean
    assert pull(remote, c).problems == ()
    assert held(c) == {0, 1, 2, 3, 4, 5, 9}
    assert (push(a, remote).rows, push(b, remote).rows) == (0, 0)


def test_a_shared_copy_may_be_named_by_a_link_to_it(make: Make, tmp_path: Path) -> None:
    a, b = make("a", [1, 2]), make("b")
    (tmp_path / "mount").mkdir()
    (tmp_path / "team").symlink_to(tmp_path / "mount")
    push(a, str(tmp_path / "team"))
    assert pull(str(tmp_path / "team"), b).rows == 2
    assert verify_remote(str(tmp_path / "team")).clean
    assert (tmp_path / "mount" / "zarr.json").exists()
