"""Push and pull over every kind of remote: the same rows, whole segments, nothing twice."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedcache.errors import CacheError, InputError, RemoteError
from embedcache.remotes.remote import Denied, Remote
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import survey, verify_remote
from embedcache.spec import FaceCrop, foreign
from embedcache.store.cache import Cache
from embedcache.store.layout import APART
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.sharing.members import SPEC, Make, held
from tests.stores import DETECTOR, faces_of, fill, model, photos


def test_what_one_member_pushes_another_pulls(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1, 2], [3, 4]), make("b", [4, 5])
    assert push(a, remote).rows == 5
    came = pull(remote, b)
    assert (came.rows, came.problems) == (4, ())
    assert held(b) == {0, 1, 2, 3, 4, 5}
    assert push(b, remote).rows == 1
    assert pull(remote, a).rows == 1
    assert held(a) == held(b)
    assert verify(a).clean
    assert verify(b).clean


def test_a_second_push_or_pull_moves_nothing_but_a_listing(remote: Remote, make: Make) -> None:
    a, b = make("a", list(range(30))), make("b")
    push(a, remote)
    pull(remote, b)
    for pushes in (True, False):
        counted = fakes.counted(remote)
        moved = push(a, counted) if pushes else pull(counted, b)
        assert (moved.rows, moved.bytes) == (0, 0)
        assert counted.n_bytes < 1200  # the root's document, and once all others
        # A push reads all documents of groups, once; a pull looks at the log twice.
        assert counted.n_requests <= (16 if pushes else 10)
    counted = fakes.counted(remote)
    push(a, counted)
    assert counted.n_requests <= 9


def test_after_compaction_nothing_moves_again(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1], [2, 3], [4]), make("b")
    push(a, remote)
    pull(remote, b)
    compact(a)
    assert push(a, remote).rows == 0
    compact(b)
    assert pull(remote, b).rows == 0


def test_a_dry_run_reports_and_moves_nothing(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1, 2]), make("b")
    would = push(a, remote, dry_run=True)
    assert would.rows == 3
    assert not list(remote.list("spaces/"))
    done = push(a, remote)
    assert would.bytes == done.bytes
    would = pull(remote, b, dry_run=True)
    assert would.rows == 3
    assert not b.spaces()
    assert would.bytes == pull(remote, b).bytes


def test_few_rows_come_by_their_byte_ranges(remote: Remote, make: Make) -> None:
    wide = foreign("wide", 512)
    a, b = make("a", list(range(1500)), spec=wide), make("b")
    push(a, remote)
    wanted = photos(3, 700, 701, 1499, 5000)
    counted = fakes.counted(remote)
    came = pull(counted, b, photos=wanted)
    assert came.rows == 4
    assert came.bytes == 4 * 512 * 4
    assert counted.n_bytes < 100_000  # of 3 MB: the rows, 36 bytes a row of columns, the manifest
    rows, found = b.space(wide).read(wanted)
    assert found.tolist() == [True] * 4 + [False]
    assert (rows[:4] == model(wanted, 512)[:4]).all()
    assert pull(remote, b, photos=wanted).rows == 0
    assert verify(b).clean


def test_failures_and_faces_come_along(remote: Remote, make: Make) -> None:
    a, b = make("a", [0]), make("b", [1])
    with a.space(SPEC).writer(n_rows=2, name="net", about={}) as writer:
        writer.add(photos(1), model(photos(1)))
        writer.fail(photos(2, 3), ["truncated", "no_face"])
    with a.face_space(DETECTOR, create=True).writer(n_rows=3, about={}) as faces:
        faces.add(photos(0, 1, 2), faces_of([1, 0, 2]))
    push(a, remote)
    pull(remote, b)
    assert b.space(SPEC).reasons(photos(0, 2, 3)) == [None, "truncated", "no_face"]
    assert b.face_space(DETECTOR).counts_of(photos(0, 1, 2, 3)).tolist() == [1, 0, 2, -1]
    c = make("c")
    pull(remote, c, photos=photos(2))
    assert c.space(SPEC).reasons(photos(2, 3)) == ["truncated", None]
    assert c.face_space(DETECTOR).counts_of(photos(1, 2)).tolist() == [-1, 2]


def test_only_the_backbone_asked_for_comes(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1]), make("b")
    fill(a.space(foreign("other", 4), create=True), photos(0, 1, 2), name="other")
    push(a, remote)
    assert pull(remote, b, backbones=["net"]).rows == 2
    assert [space.names for space in b.spaces()] == [("net",)]
    with pytest.raises(RemoteError, match="it has net, other"):
        pull(remote, b, backbones=["absent"])
    assert push(a, remote, backbones=["other"]).rows == 0


def test_a_ref_brings_exactly_its_segments(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1], [2]), make("b", [1, 9])
    a.record_photos("f", ["x"], photos(0))
    write_ref(a, "paper")
    fill(a.space(SPEC), photos(3, 4))
    push(a, remote)
    assert pull(remote, b, ref="paper").refs == ("paper",)
    assert held(b) == {0, 1, 2, 9}
    b.record_photos("mine", ["mine-0"], photos(0))
    then = Cache.open(b.path, ref="paper")
    assert set(np.flatnonzero(then.space(SPEC).read(photos(*range(10)))[1])) == {0, 1, 2}
    assert then.vectors("net", ["mine-0"])[1].all()  # no ids came: the ref uses those here
    with pytest.raises(RemoteError, match="has no ref 'absent'; it has paper"):
        pull(remote, b, ref="absent")
    assert verify(b).clean


def test_a_ref_that_was_not_written_is_reported_with_the_command_that_brings_it(
    remote: Remote, make: Make
) -> None:
    a, b = make("a", [0, 1]), make("b", [0, 1])
    write_ref(a, "paper")
    push(a, remote)
    assert f"'embedcache pull --ref paper {remote.name} {b.path}' brings" in str(pull(remote, b))


def test_ids_stay_home_unless_asked_for(remote: Remote, make: Make) -> None:
    a, b, c = make("a", [0]), make("b"), make("c")
    a.record_photos("secret-folder-12345678", ["anna.jpg"], photos(0))
    push(a, remote)
    for entry in remote.list(""):
        assert b"anna" not in b"".join(remote.blocks(entry.key)), entry.key
    pull(remote, b, with_ids=True)
    assert len(b.photo_table()) == 0
    push(a, remote, with_ids=True)
    pull(remote, b)
    assert len(b.photo_table()) == 0
    pull(remote, c, with_ids=True)
    assert c.photo_table().ids == ["anna.jpg"]
    d = make("d")
    assert pull(remote, d, backbones=["net"]).ids == 0
    assert pull(remote, d, backbones=["net"], with_ids=True).ids == 1
    write_ref(a, "paper")
    a.record_photos("later", ["ben.jpg"], photos(1))
    push(a, remote, with_ids=True)
    e = make("e")
    pull(remote, e, ref="paper", with_ids=True)
    assert e.photo_table().ids == Cache.open(e.path, ref="paper").photo_table().ids == ["anna.jpg"]


def test_options_that_exclude_each_other_are_refused(remote: Remote, make: Make) -> None:
    a, b = make("a", [0]), make("b")
    push(a, remote)
    for asked in (
        {"ref": "r", "photos": photos(0)},
        {"ref": "r", "backbones": ["net"]},
        {"with_ids": True, "photos": photos(0)},
    ):
        with pytest.raises(InputError, match="Leave"):
            pull(remote, b, **asked)
    assert not b.spaces()


def test_face_crops_have_their_own_prefix(remote: Remote, make: Make) -> None:
    crop = FaceCrop(detector="1" * 64, select="only", margin=0.0)
    faces = replace(SPEC, face=crop)
    a, b = make("a", [0]), make("b")
    fill(a.space(faces, create=True), photos(0), name="net@face")
    fill(a.space(foreign("theirs", 4), create=True), photos(0), name="theirs")
    push(a, remote)
    whole = {entry.key.split("/")[1] for entry in remote.list("spaces/")} - {"zarr.json"}
    apart = {entry.key.split("/")[1] for entry in remote.list(f"{APART}/")} - {"zarr.json"}
    assert whole == {SPEC.digest}
    assert apart == {faces.digest, foreign("theirs", 4).digest}
    pull(remote, b)
    assert {space.digest for space in b.spaces()} == whole | apart
    assert not (b.path / APART).exists()


def test_a_folder_remote_is_a_cache_too(tmp_path: Path, make: Make) -> None:
    a = make("a", [0, 1])
    fill(a.space(foreign("theirs", 8), create=True), photos(2), name="theirs")
    push(a, str(tmp_path / "shared"))
    shared = Cache.open(tmp_path / "shared")
    assert held(shared) == {0, 1}
    assert shared.find("theirs").read(photos(2))[1].all()
    assert verify(shared).clean
    with pytest.raises(CacheError, match="is the cache itself"):
        push(a, str(a.path))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    with pytest.raises(RemoteError, match="neither empty nor a shared copy"):
        push(a, str(tmp_path / "letters"))


def test_progress_counts_the_bytes(remote: Remote, make: Make) -> None:
    a, b = make("a", list(range(200))), make("b")
    seen: list[tuple[int, int]] = []
    push(a, remote, progress=lambda done, n: seen.append((done, n)))
    assert seen[-1][0] == seen[-1][1] > 0
    seen.clear()
    pull(remote, b, progress=lambda done, n: seen.append((done, n)))
    assert seen[-1][0] <= seen[-1][1]
    assert seen[-1][1] > 0


class Watched(fakes.Flaky):
    """Records the order of writes, and how many objects move at once."""

    def __init__(self, remote: Remote) -> None:
        super().__init__(remote, lambda n: "")
        self.order: list[str] = []
        self.in_flight = self.most = 0

    @contextmanager
    def _moving(self) -> Iterator[None]:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        time.sleep(0.005)
        yield
        self.in_flight -= 1

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        with self._moving():
            yield from super().blocks(key, start=start, length=length)

    def write(self, key: str, blocks: Callable[[], Iterator[bytes]], *, size: int) -> None:
        with self._moving():
            super().write(key, blocks, size=size)
            self.order.append(key)

    def create(self, key: str, data: bytes) -> bool:
        self.order.append(key)
        return super().create(key, data)


def test_several_objects_move_at_once_and_a_manifest_comes_last(remote: Remote, make: Make) -> None:
    a, b = make("a", *([n, n + 1] for n in range(0, 12, 2))), make("b")
    watched = Watched(remote)
    push(a, watched)
    assert watched.most > 3
    for segment in a.spaces()[0].segments():
        of_it = [key for key in watched.order if f"/{segment.id}/" in key]
        assert len(of_it) == len(segment.manifest.files) + 1
        assert of_it[-1].endswith("manifest.json")
    watched = Watched(remote)
    assert pull(watched, b).rows == 12
    assert watched.most > 3


def test_a_pull_without_room_stops_before_it_moves_anything(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, remote = make("a", [0, 1]), make("b"), fakes.memory()
    push(a, remote)
    usage = shutil.disk_usage(b.path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CacheError, match="has room for 10"):
        pull(remote, b)


def test_a_member_without_rights_to_faces_gets_the_rest(make: Make) -> None:
    a, b = make("a", [0, 1]), make("b")
    fill(a.space(foreign("theirs", 4), create=True), photos(0), name="theirs")
    shared = fakes.memory()
    push(a, shared)

    class Locked(fakes.Flaky):
        def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            if key.startswith(APART):
                raise Denied("AccessDenied")
            return super().blocks(key, start=start, length=length)

    locked = Locked(shared, lambda n: "")
    came = pull(locked, b)
    assert (came.rows, came.problems) == (2, ())
    assert came.notes == (f"you have no right to read {APART}/ of memory://team: left out",)
    assert [space.root for space in survey(locked).spaces] == ["spaces"]
    fill(b.space(SPEC), photos(5))
    assert push(b, locked).rows == 1


def test_a_survey_fetches_no_vector(remote: Remote, make: Make) -> None:
    a = make("a", list(range(200)))
    write_ref(a, "paper")
    push(a, remote)
    counted = fakes.counted(remote)
    found = survey(counted)
    assert counted.n_bytes < 10_000
    [space] = found.spaces
    assert (space.names, space.rows, space.dim, space.segments) == (("net",), 200, 8, 1)
    assert found.refs == ("paper",)
    assert verify_remote(remote).clean
