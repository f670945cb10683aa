"""A damaged segment there with a forgotten photo: purged by whoever has its other rows."""

from pathlib import Path

import pytest

from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from tests.sharing.members import SPEC, Make, held, row_of
from tests.sharing.test_damaged import FILES, flip
from tests.stores import DETECTOR, faces_of, model, photos

EVERYTHING = (*FILES, "row_crc/c/0", "embedding/c/0/0 is gone", "digest/c/0/0 is gone")


def forgotten(b: Cache, folder: Path, n: int = 1) -> None:
    """A member forgets photo n, and only says so."""
    b.record_photos("of b", [str(n)], photos(n))
    forget(b, [str(n)])
    push(b, str(folder))


def hit(folder: Path, segment: str, file: str) -> None:
    [place] = folder.rglob(f"segments/{segment}")
    path = place / file.partition(" ")[0]
    if file.endswith("gone"):
        path.unlink()
    else:
        flip(path)


def is_purged(folder: Path, c: Cache, kept: set[int]) -> bool:
    """Whether verify is content, no byte of photo 1 is left, and a newcomer gets what is kept."""
    stored = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert verify_remote(f"file://{folder}").findings == ()
    assert row_of(1) not in stored
    assert photos(1).tobytes() not in stored
    assert pull(str(folder), c, with_ids=True).problems == ()
    return held(c) == kept


@pytest.mark.parametrize("file", EVERYTHING)
def test_a_member_who_holds_the_segment_is_told_and_purges_it(
    file: str, tmp_path: Path, make: Make
) -> None:
    a, b, folder = make("a", [0, 1, 2], [9]), make("b", [5]), tmp_path / "shared"
    push(a, str(folder))
    forgotten(b, folder)
    [segment] = [one for one in a.space(SPEC).segments() if one.manifest.n_ok == 3]
    hit(folder, segment.id, file)
    [problem] = push(a, str(folder)).problems
    assert segment.id in problem
    assert "push --purge" in problem
    if file.endswith("is gone"):  # what holds a forgotten row is never sent
        assert not [*folder.rglob(f"segments/{segment.id}/{file.partition(' ')[0]}")]
    done = push(a, str(folder), purge=True)
    assert (done.problems, done.purged, done.purged_rows) == ((), 1, 1)
    assert is_purged(folder, make("c"), {0, 2, 5, 9})
    again = push(a, str(folder), purge=True)
    assert (again.problems, again.purged, again.segments) == ((), 0, 0)


@pytest.mark.parametrize("how", ["forgot it", "has them in two segments", "has one damaged twin"])
@pytest.mark.parametrize("file", ["embedding/c/0/0", "row_crc/c/0", "embedding/c/0/0 is gone"])
def test_a_member_who_holds_its_other_rows_elsewhere_purges_it(
    file: str, how: str, tmp_path: Path, make: Make
) -> None:
    a, folder = make("a"), tmp_path / "shared"
    with a.space(SPEC, create=True).writer(n_rows=4, about={}, name="net") as rows:
        rows.add(photos(0, 1, 2), model(photos(0, 1, 2), 8))
        rows.fail(photos(12), ["no face"])
    write_ref(a, "paper")
    push(a, str(folder))
    [segment] = a.space(SPEC).segments()
    b = a
    if how != "forgot it":  # a good row of a photo is as good as a failure of it
        b = make("b", [0, 4], [2, 12], *([[0]] if "damaged" in how else []))
    forgotten(b, folder)
    hit(folder, segment.id, file)
    if "damaged" in how:
        [first] = [one for one in b.space(SPEC).segments() if one.manifest.n_ok == 1]
        flip(first.folder / "embedding/c/0/0")
    done = push(b, str(folder), purge=True)
    assert (done.problems, done.purged, done.purged_rows) == ((), 1, 1)
    assert is_purged(folder, make("c"), {0, 2} if b is a else {0, 2, 4, 12})
    at_ref = make("d")
    assert pull(str(folder), at_ref, ref="paper").problems == ()
    assert held(at_ref) >= {0, 2}


@pytest.mark.parametrize("file", EVERYTHING)
def test_a_member_who_lacks_rows_learns_who_can_and_removes_nothing(
    file: str, tmp_path: Path, make: Make
) -> None:
    a, b, folder = make("a", [0, 1, 2], [9]), make("b", [0, 1, 5]), tmp_path / "shared"
    push(a, str(folder))
    forgotten(b, folder)
    [segment] = [one for one in a.space(SPEC).segments() if one.manifest.n_ok == 3]
    hit(folder, segment.id, file)
    before = {*folder.rglob(f"segments/{segment.id}/**/*")}
    for _ in range(2):
        done = push(b, str(folder), purge=True)
        assert (done.purged, done.purged_rows) == (0, 0)
        assert done.problems
        assert all(segment.id in problem for problem in done.problems)
        if file not in ("manifest.json", "zarr.json"):
            assert "'embedcache push --purge' by a member who" in str(done)
    assert before == {*folder.rglob(f"segments/{segment.id}/**/*")}
    assert push(a, str(folder), purge=True).problems == ()
    assert is_purged(folder, make("c"), {0, 2, 5, 9})


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize(
    "file", ["id_text/c/0", "digest/c/0/0", "face_offset/c/0", "manifest.json"]
)
def test_faces_and_ids_are_purged_alike(
    file: str, forgets: bool, tmp_path: Path, make: Make
) -> None:
    a, folder = make("a", [0, 1]), tmp_path / "shared"
    a.record_photos("f", ["anna.jpg", "ben.jpg"], photos(0, 1))
    with a.face_space(DETECTOR, create=True).writer(n_rows=2, about={}) as faces:
        faces.add(photos(0, 1), faces_of([1, 2]))
    push(a, str(folder), with_ids=True)
    chosen = a.photo_segments() if file == "id_text/c/0" else a.face_space(DETECTOR).segments()
    b = make("b", [5])
    if forgets and file == "face_offset/c/0":
        forget(a, ["ben.jpg"])
    else:
        forgotten(b, folder)
    hit(folder, chosen[0].id, file)
    done = push(a, str(folder), with_ids=True, purge=True)
    assert (done.problems, done.purged, done.purged_rows) == ((), 3, 3)
    assert b"ben.jpg" not in b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    c = make("c")
    assert is_purged(folder, c, {0} if forgets and "offset" in file else {0, 5})
    assert c.photo_table().ids == ["anna.jpg"]
    assert c.face_space(DETECTOR).counts_of(photos(0, 1)).tolist() == [1, -1]
