"""Purges: what is forgotten goes from a shared copy, everything else stays, whoever is at it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from embedcache.remotes.remote import Remote, Unreachable
from embedcache.sharing import live_rows
from embedcache.sharing.connecting import staging_of
from embedcache.sharing.outgoing import outgoing
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.store.segment import Segment
from embedcache.store.tombstones import content_mark
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.sharing.members import (
    EVERY,
    MOMENTS,
    SPEC,
    Make,
    below,
    forget_elsewhere,
    held,
    row_of,
    there,
)
from tests.stores import DETECTOR, faces_of, fill, photos


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

    monkeypatch.setattr(live_rows, "outgoing", meanwhile)
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


@pytest.mark.parametrize("kind", ["vectors", "failures", "faces", "ids"])
def test_verify_counts_the_forgotten_rows_that_a_shared_copy_still_stores(
    kind: str, remote: Remote, make: Make
) -> None:
    a = make("a", [0], [2])
    a.record_photos("f", ["2"], photos(2))
    if kind == "vectors":
        fill(a.space(SPEC), photos(1, 3))
    elif kind == "failures":
        with a.space(SPEC).writer(n_rows=1, name="net", about={}) as writer:
            writer.fail(photos(1), ["truncated"])
    elif kind == "faces":
        with a.face_space(DETECTOR, create=True).writer(n_rows=1, about={}) as faces:
            faces.add(photos(1), faces_of([2]))
    ids = kind == "ids"
    a.record_photos("f", ["1"], photos(1))
    push(a, remote, with_ids=ids)
    assert verify_remote(remote).clean
    [segment] = [
        segment.id
        for store in (a.sets() if not ids else [a.photo_ids])
        for segment in store.segments()
        if (store.kind == "photos") == ids
        and photos(1).tobytes() in segment.column("digest").tobytes()
    ]
    forget(a, ["1"])
    push(a, remote, with_ids=ids)
    [finding] = verify_remote(remote).findings
    what = "1 photo id" if ids else "1 row"
    assert finding.startswith(f"segment {segment}: still stores {what} of forgotten photos")
    assert f"'embedcache push --purge DIR {remote.name}'" in finding
    push(a, remote, purge=True)
    assert verify_remote(remote).clean


def test_verify_of_a_shared_folder_names_the_same_segments_as_of_the_cache(
    tmp_path: Path, make: Make
) -> None:
    a, folder = make("a", [0, 1], [2, 3]), tmp_path / "shared"
    with a.face_space(DETECTOR, create=True).writer(n_rows=2, about={}) as faces:
        faces.add(photos(1, 2), faces_of([2, 1]))
    a.record_photos("f", ["1"], photos(1))
    push(a, str(folder))
    forget(a, ["1"])
    push(a, str(folder))
    here = {Path(finding.path).name for finding in verify(folder).findings}
    there = {finding.split()[1].rstrip(":") for finding in verify_remote(str(folder)).findings}
    assert here == there
    assert len(here) == 2


def test_a_photo_that_was_extracted_again_is_no_forgotten_one(remote: Remote, make: Make) -> None:
    a = make("a", [0, 1])
    a.record_photos("f", ["1"], photos(1))
    push(a, remote)
    forget(a, ["1"])
    push(a, remote, purge=True)
    a.lift(photos(1))
    fill(a.space(SPEC), photos(1))
    push(a, remote)
    assert row_of(1) in there(remote)
    assert verify_remote(remote).clean
