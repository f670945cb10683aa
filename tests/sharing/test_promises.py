"""Sharing beside every other command: nothing is lost, nothing comes back, no bytes stay."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcache.errors import CacheError, Damaged, RemoteError
from embedcache.remotes.folder import LocalFiles
from embedcache.remotes.remote import Ours, Remote, Unreachable
from embedcache.sharing import purging
from embedcache.sharing.connecting import staging_of
from embedcache.sharing.outgoing import outgoing
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.store.segment import Segment
from embedcache.store.space import Space
from embedcache.store.tombstones import content_mark
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.merging import merge
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.sharing.members import SPEC, Make, held
from tests.stores import fill, model, photos

# When the forgetting, or the purging, of somebody else falls into a push or a pull.
MOMENTS: dict[str, Callable[[str, str], bool]] = {
    "after the marks were read": lambda method, key: method == "list" and key == "spaces/",
    "while vectors move": lambda method, key: "/embedding/" in key,
    "before a manifest": lambda method, key: key.endswith("manifest.json"),
}


def there(remote: Remote) -> bytes:
    """All bytes that the remote stores, of every object."""
    return b"".join(b"".join(remote.blocks(entry.key)) for entry in remote.list(""))


def row_of(n: int) -> bytes:
    return model(photos(n), 8).tobytes()


def forget_elsewhere(cache: Cache, photo: str) -> None:
    """Forget in another process: locks of files hold between processes only."""
    code = (
        "import sys\nfrom embedcache.store import Cache\n"
        "from embedcache.upkeep.forgetting import forget\n"
        "print(forget(Cache.open(sys.argv[1]), sys.argv[2:]))"
    )
    words = [sys.executable, "-c", code, str(cache.path), photo]
    subprocess.run(words, check=True, cwd=Path(__file__).parents[2])


def below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


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


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_photo_purged_during_a_push_does_not_stay(
    moment: str, remote: Remote, make: Make
) -> None:
    a, b = make("a", [0, 1, 2]), make("b", [1, 4])
    b.record_photos("f", ["1"], photos(1))
    push(make("c", [9]), remote)

    def purge() -> None:
        forget(b, ["1"])
        push(b, remote, purge=True)

    meanwhile = fakes.Meanwhile(remote, MOMENTS[moment], purge)
    push(a, meanwhile)
    assert meanwhile.happened
    d = make("d")
    pull(remote, d)
    assert held(d) == {0, 2, 4, 9}
    assert row_of(1) not in there(remote)
    assert row_of(0) in there(remote)
    assert verify_remote(remote).clean


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


def test_a_purge_takes_ids_and_faces_too(remote: Remote, make: Make) -> None:
    from tests.stores import DETECTOR, faces_of

    a, b = make("a", [0, 1]), make("b")
    a.record_photos("f", ["anna.jpg", "ben.jpg"], photos(0, 1))
    with a.face_space(DETECTOR, create=True).writer(n_rows=2, about={}) as faces:
        faces.add(photos(0, 1), faces_of([1, 2]))
    push(a, remote, with_ids=True)
    assert b"ben.jpg" in there(remote)
    forget(a, ["ben.jpg"])
    assert push(a, remote, with_ids=True, purge=True).purged == 3
    assert b"ben.jpg" not in there(remote)
    assert photos(1).tobytes() not in there(remote)
    assert b"anna.jpg" in there(remote)
    pull(remote, b, with_ids=True)
    assert b.photo_table().ids == ["anna.jpg"]
    assert b.face_space(DETECTOR).counts_of(photos(0, 1)).tolist() == [1, -1]


def test_a_purge_needs_no_other_rows_here(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1, 2]), make("b")
    push(a, remote)
    b.record_photos("f", ["1"], photos(1))
    fill(b.space(SPEC, create=True), photos(1))
    forget(b, ["1"])
    did = push(b, remote, purge=True)
    assert (did.purged, did.purged_rows, did.problems) == (1, 1, ())
    assert row_of(1) not in there(remote)
    c = make("c")
    pull(remote, c)
    assert held(c) == {0, 2}


def test_two_purges_at_once_lose_nothing(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1, 2], [3, 4]), make("b", [1, 3])
    for cache, n in ((a, 1), (b, 3)):
        cache.record_photos("f", [str(n)], photos(n))
    push(a, remote)
    forget(a, ["1"])

    def other() -> None:
        forget(b, ["3"])
        push(b, remote, purge=True)

    meanwhile = fakes.Meanwhile(
        remote, lambda method, key: method == "create_once" and key.startswith("removed/"), other
    )
    push(a, meanwhile, purge=True)
    assert meanwhile.happened
    push(a, remote, purge=True)
    c = make("c")
    assert pull(remote, c).problems == ()
    assert held(c) == {0, 2, 4}
    assert row_of(1) not in there(remote)
    assert row_of(3) not in there(remote)


EVERY: list[object] = [
    pytest.param(range(1, 90), marks=pytest.mark.torture, id="every request"),
    pytest.param((7, 12, 16, 24, 31, 39), id="some requests"),
]


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("numbers", EVERY)
def test_a_purge_cut_off_at_any_request_loses_nothing_and_is_finished_by_the_next(
    numbers: Iterable[int], how: str, make: Make, tmp_path: Path
) -> None:
    for k in numbers:
        a, remote = make(f"a{k}", [0, 1, 2]), fakes.folder(tmp_path / f"r{k}")
        a.record_photos("f", ["1"], photos(1))
        push(a, remote)
        forget(a, ["1"])
        flaky = fakes.Flaky(remote, fakes.since(k, how))
        cut_off = False
        try:
            push(a, flaky, purge=True)
        except Unreachable:
            cut_off = True
        c = make(f"c{k}")
        pull(remote, c)
        assert held(c) >= {0, 2}
        b = make(f"b{k}")
        pull(remote, b)
        push(a, remote, purge=True)
        assert row_of(1) not in below(tmp_path / f"r{k}")
        assert held(Cache.open(tmp_path / f"r{k}")) == {0, 2}
        assert verify(Cache.open(tmp_path / f"r{k}")).clean
        if not cut_off:  # more requests than there are
            return


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


def test_a_storage_without_conditional_writes_is_never_purged(make: Make) -> None:
    remote = fakes.Unconditional()
    a = make("a", [0, 1])
    a.record_photos("f", ["1"], photos(1))
    write_ref(a, "paper")
    push(a, remote)
    forget(a, ["1"])
    before = dict(remote.objects)
    did = push(a, remote, purge=True)
    assert did.purged == 0
    assert "does not support conditional writes" in did.problems[0]
    assert before.items() <= remote.objects.items()
    assert not any(key.startswith("removed/") for key in remote.objects)
    b = make("b")
    pull(remote, b)
    assert held(b) == {0}  # the tombstone still hides the row


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
    assert list((b.path / "local").glob("remotes/*/*"))
    if how == "killed":  # while it hid a segment, and before it deleted that
        hidden = b.path / "local" / "incoming" / ".old-12345678"
        hidden.mkdir()
        (hidden / "row").write_bytes(row_of(1))
    fill(b.space(SPEC, create=True), photos(1))
    forget(b, ["1"])
    assert row_of(1) not in below(b.path)
    assert photos(1).tobytes() not in below(b.path)


def test_a_purge_names_the_unfinished_pushes_of_others(make: Make, tmp_path: Path) -> None:
    a, b, folder = make("a", [0, 1, 2]), make("b", [1, 5]), tmp_path / "shared"
    b.record_photos("f", ["1"], photos(1))
    push(make("c", [9]), str(folder))
    mine = fakes.folder(folder, staging=staging_of(a))
    with pytest.raises(Unreachable):
        push(a, fakes.Flaky(mine, fakes.since(22, "after")))
    [staged] = folder.rglob(".push-*")
    assert row_of(1) in below(staged)
    gone = staged.with_name(f".gone-{staged.name[6:36]}-0")  # a deletion that was cut off
    (gone / "embedding" / "c" / "0").mkdir(parents=True)
    (gone / "embedding" / "c" / "0" / "0").write_bytes(row_of(1))
    forget(b, ["1"])
    did = push(b, str(folder), purge=True)
    [note] = [note for note in did.notes if "unfinished push" in note]
    assert staged.name in note
    assert not gone.exists()
    push(a, str(folder))
    assert not list(folder.rglob(".push-*"))
    assert row_of(1) not in below(folder)


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


def test_a_purge_does_not_blame_the_shared_copy_for_a_forget_here(
    remote: Remote, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make("a", [0, 1, 2, 3]), make("b")
    a.record_photos("f", ["0", "1"], photos(0, 1))
    push(a, remote)
    [segment] = a.space(SPEC).segments()
    a.history.forget(contents=[content_mark(photos(1).tobytes())])  # its row is still here
    made = outgoing
    once = ["0"]

    def meanwhile(cache: Cache, segment: Segment, *args: Any, **options: Any) -> Any:
        if once and segment.folder.is_relative_to(a.path / "spaces"):
            forget_elsewhere(a, once.pop())
        return made(cache, segment, *args, **options)

    monkeypatch.setattr(purging, "outgoing", meanwhile)
    did = push(a, remote, purge=True)
    assert not once
    assert did.problems == ()
    assert row_of(1) not in there(remote)
    assert not segment.folder.exists()
    assert push(a, remote, purge=True).problems == ()
    assert row_of(0) not in there(remote)
    assert pull(remote, b).problems == ()
    assert held(b) == {2, 3}


@pytest.mark.parametrize("file", ["embedding/c/0/0", "row_crc/c/0"])
def test_a_purge_does_not_blame_the_shared_copy_for_damage_here(
    file: str, remote: Remote, make: Make
) -> None:
    a, b = make("a", [0, 1, 2]), make("b")
    push(a, remote)
    [segment] = a.space(SPEC).segments()
    raw = bytearray((segment.folder / file).read_bytes())
    raw[5] ^= 1
    a.history.forget(contents=[content_mark(photos(1).tobytes())])
    (segment.folder / file).write_bytes(raw)
    did = push(Cache.open(a.path), remote, purge=True)
    assert (did.problems, did.purged) == ((), 1)
    assert row_of(1) not in there(remote)
    assert pull(remote, b).problems == ()
    assert held(b) == {0, 2}


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


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_push_beside_a_purge_sends_everything_and_brings_nothing_back(
    moment: str, remote: Remote, make: Make
) -> None:
    a, b, c = make("a", [0, 1, 2], [3]), make("b", [1, 4], [5]), make("c")
    push(a, remote)
    a.record_photos("f", ["1"], photos(1))
    forget(a, ["1"])
    meanwhile = fakes.Meanwhile(remote, MOMENTS[moment], lambda: push(b, remote))
    assert push(a, meanwhile, purge=True).problems == ()
    assert meanwhile.happened
    assert push(a, remote, purge=True).problems == ()
    assert row_of(1) not in there(remote)
    assert verify_remote(remote).clean
    assert pull(remote, c).problems == ()
    assert held(c) == {0, 2, 3, 4, 5}
