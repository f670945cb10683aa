"""Push and pull over every kind of remote: the same rows, whole or not at all, nothing twice."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedcache import disk
from embedcache.catalogue import Catalogue
from embedcache.errors import CacheError, RemoteError
from embedcache.remote import Denied, Patient, Remote, Unreachable, open_remote
from embedcache.share import pull, push
from embedcache.spec import FaceCrop, Preprocessing, Spec, foreign
from embedcache.store import APART, Cache
from embedcache.survey import survey, verify_remote
from embedcache.upkeep import compact, forget, merge, verify, write_ref
from tests import remotes
from tests.stores import DETECTOR, faces_of, fill, model, photos

SPEC = Spec(
    kind="computed",
    architecture="net",
    dim=8,
    weights="0" * 64,
    preprocessing=Preprocessing(
        size=(8, 8),
        resize="squash",
        crop_fraction=1.0,
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        decode="1",
    ),
)
KINDS = ["folder", "memory", "s3"]
Make = Callable[..., Cache]


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "sync", lambda fd: None)
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket on a real S3 protocol server on loopback."""
    pytest.importorskip("moto.server")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_REGION", "us-east-1")
    from urllib.request import Request, urlopen

    urlopen(Request(f"http://{host}:{port}/team", method="PUT"), timeout=30).close()
    yield "s3://team"
    patch.undo()
    server.stop()


@pytest.fixture(params=KINDS)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    if request.param == "folder":
        return remotes.folder(tmp_path / "shared")
    pytest.importorskip("obstore")
    if request.param == "memory":
        return remotes.memory()
    bucket = request.getfixturevalue("s3")
    return open_remote(f"{bucket}/{tmp_path.name}-{os.urandom(3).hex()}")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make("a", [0, 1], [2]): a cache with a segment for each list of photos."""

    def new(name: str, *segments: list[int], spec: Spec = SPEC) -> Cache:
        cache = Cache.open(tmp_path / name, create=True)
        for numbers in segments:
            fill(cache.space(spec, create=True), photos(*numbers))
        return cache

    return new


def held(cache: Cache, n: int = 40) -> set[int]:
    """Which of photos 0 to n the cache has vectors of; each checked against the model."""
    everything = photos(*range(n))
    rows, found = Cache.open(cache.path).space(SPEC).read(everything)
    assert (rows[found] == model(everything, 8)[found]).all()
    return set(np.flatnonzero(found).tolist())


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
        counted = remotes.counted(remote)
        moved = push(a, counted) if pushes else pull(counted, b)
        assert (moved.rows, moved.bytes) == (0, 0)
        assert counted.n_bytes < 500  # the root's zarr.json
        assert counted.n_requests < 10


def test_after_compaction_nothing_moves_again(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1], [2, 3], [4]), make("b")
    push(a, remote)
    pull(remote, b)
    compact(a)
    assert push(a, remote).rows == 0
    compact(b)
    assert pull(remote, b).rows == 0


def test_a_dry_run_tells_and_moves_nothing(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1, 2]), make("b")
    told = push(a, remote, dry_run=True)
    assert told.rows == 3
    assert not list(remote.list("spaces/"))
    done = push(a, remote)
    assert told.bytes == done.bytes
    told = pull(remote, b, dry_run=True)
    assert told.rows == 3
    assert not b.spaces()
    assert told.bytes == pull(remote, b).bytes


def test_few_rows_come_by_their_byte_ranges(remote: Remote, make: Make) -> None:
    wide = foreign("wide", 512)
    a, b = make("a", list(range(1500)), spec=wide), make("b")
    push(a, remote)
    wanted = photos(3, 700, 701, 1499, 5000)
    counted = remotes.counted(remote)
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
    assert then.vectors("net", ["mine-0"])[1].all()  # ids stayed home: those here are meant
    with pytest.raises(RemoteError, match="has no ref 'absent'; it has paper"):
        pull(remote, b, ref="absent")
    assert verify(b).clean


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


def test_face_crops_lie_under_a_prefix_of_their_own(remote: Remote, make: Make) -> None:
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


def test_what_was_forgotten_does_not_come_back(remote: Remote, make: Make) -> None:
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
    assert pull(remote, b).still_here == 1
    assert push(make("d", [1, 7]), remote).rows == 1


def test_a_purge_removes_forgotten_rows_from_the_shared_copy(remote: Remote, make: Make) -> None:
    a, b, c = make("a", [0, 1, 2], [3]), make("b"), make("c")
    a.record_photos("f", ["0", "1"], photos(0, 1))
    write_ref(a, "paper")
    push(a, remote)
    pull(remote, b)
    forget(a, ["1"])
    assert push(a, remote, purge=True).purged == 1
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


def test_progress_counts_the_bytes(remote: Remote, make: Make) -> None:
    a, b = make("a", list(range(200))), make("b")
    seen: list[tuple[int, int]] = []
    push(a, remote, progress=lambda done, n: seen.append((done, n)))
    assert seen[-1][0] == seen[-1][1] > 0
    seen.clear()
    pull(remote, b, progress=lambda done, n: seen.append((done, n)))
    assert seen[-1][0] <= seen[-1][1]
    assert seen[-1][1] > 0


@pytest.mark.parametrize("how", ["before", "amid", "after"])
@pytest.mark.parametrize("kind", ["folder", pytest.param("memory", marks=pytest.mark.torture)])
def test_a_failure_at_any_request_is_tried_again(
    kind: str, how: str, tmp_path: Path, make: Make
) -> None:
    a = make("a", [0, 1, 2], [3, 4])
    write_ref(a, "paper")
    for k in range(1, 60):
        remote = remotes.memory() if kind == "memory" else remotes.folder(tmp_path / f"r{k}")
        b = make(f"b{k}")
        flaky = remotes.Flaky(remote, remotes.once(k, how))
        push(a, remotes.impatient(flaky))
        n_push = flaky.n_requests
        flaky = remotes.Flaky(remote, remotes.once(k, how))
        came = pull(remotes.impatient(flaky), b)
        assert held(b) == {0, 1, 2, 3, 4}
        assert came.problems == ()
        assert came.refs == ("paper",)
        if k > max(flaky.n_requests, n_push):
            break
        shutil.rmtree(b.path)
    else:
        raise AssertionError("more requests than were tried")


@pytest.mark.parametrize("kind", ["folder", pytest.param("memory", marks=pytest.mark.torture)])
def test_a_run_that_is_cut_at_any_request_is_never_half_visible_and_can_be_gone_on_with(
    kind: str, tmp_path: Path, make: Make
) -> None:
    a = make("a", [0, 1, 2], [3, 4])
    whole = [{*()}, {0, 1, 2}, {3, 4}, {0, 1, 2, 3, 4}]
    for k in range(1, 80):
        how = random.Random(k).choice(["before", "amid", "after"])
        remote = remotes.memory() if kind == "memory" else remotes.folder(tmp_path / f"r{k}")
        b, c = make(f"b{k}"), make(f"c{k}")
        cut = remotes.Flaky(remote, remotes.since(k, how))
        cut_off = 0
        try:
            push(a, cut)
        except Unreachable:
            cut_off += 1
            if Catalogue(remote).exists():
                pull(remote, c)
                assert (held(c) if c.spaces() else set()) in whole
        push(a, remote)
        cut = remotes.Flaky(remote, remotes.since(k, how))
        try:
            pull(cut, b)
        except Unreachable:
            cut_off += 1
            assert verify(b).clean
            assert (held(b) if Cache.open(b.path).spaces() else set()) in whole
        pull(remote, b)
        assert held(b) == {0, 1, 2, 3, 4}
        assert verify(b).clean
        for cache in (b, c):
            shutil.rmtree(cache.path)
        if not cut_off:
            break
    else:
        raise AssertionError("more requests than were tried")


def test_a_pull_goes_on_at_the_byte_where_it_was_cut(make: Make) -> None:
    wide = foreign("wide", 4096)
    a, b = make("a", list(range(600)), spec=wide), make("b")  # 10 MB in one file
    remote = remotes.memory()
    push(a, remote)
    whole = sum(entry.size for entry in remote.list(APART + "/"))

    class Cut(remotes.Flaky):
        def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            for block in super().blocks(key, start=start, length=length):
                yield block
                if self.n_bytes > 5_000_000:
                    raise Unreachable("cut")

    with pytest.raises(Unreachable):
        pull(Cut(remote, lambda n: ""), b)
    counted = remotes.counted(remote)
    assert pull(counted, b).rows == 600
    assert counted.n_bytes < whole - 4_000_000
    assert verify(b).clean
    assert not list((b.path / "local" / "incoming").iterdir())


class Severed(remotes.Flaky):
    """The wire breaks once so many bytes have gone through it, either way."""

    def __init__(self, remote: Remote, n_bytes: int) -> None:
        super().__init__(remote, lambda n: "")
        self.left = n_bytes

    def _through(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            for at in range(0, len(block), 1000):
                piece = bytes(block[at : at + min(1000, self.left)])
                self.left -= len(piece)
                yield piece
                if self.left <= 0:
                    raise Unreachable(f"{self.name}: connection reset. Run the same command again")

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._through(super().blocks(key, start=start, length=length))

    def write(self, key: str, blocks: Callable[[], Iterator[bytes]], *, size: int) -> None:
        super().write(key, lambda: self._through(blocks()), size=size)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_run_that_is_cut_at_any_byte_goes_on(kind: str, tmp_path: Path, make: Make) -> None:
    wide, rng = foreign("wide", 256), random.Random(7)
    a = make("a", list(range(400)), list(range(400, 450)), spec=wide)
    everything, overhead = photos(*range(450)), 40_000  # manifests, digests, documents
    whole = a.spaces()[0].segments()
    n_bytes = sum(segment.manifest.bytes_on_disk for segment in whole)
    largest = max(size for s in whole for size, _ in s.manifest.files.values())
    for number in range(12):
        remote = remotes.memory() if kind == "memory" else remotes.folder(tmp_path / f"r{number}")
        b, cut = make(f"b{number}"), rng.randrange(1, n_bytes)
        with pytest.raises(Unreachable):
            push(a, Severed(remote, cut))
        counted = remotes.counted(remote)
        push(a, counted)
        # What had arrived whole is not sent again; up to eight objects were in the air.
        assert counted.n_bytes < n_bytes + overhead - cut + 8 * largest
        with pytest.raises(Unreachable):
            pull(Severed(remote, cut), b)
        assert verify(b).clean
        counted = remotes.counted(remote)
        pull(counted, b)
        assert (b.space(wide).read(everything)[0] == model(everything, 256)).all()
        # Goes on at the byte: a thousand may be lost with each of eight objects.
        assert counted.n_bytes < n_bytes + 2 * overhead - cut + 8 * 1000


class Watched(remotes.Flaky):
    """Notes what is written in which order, and how many objects move at once."""

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


def test_a_merge_obeys_what_was_forgotten(tmp_path: Path, make: Make) -> None:
    a, b, shared = make("a", [0, 1, 2]), make("b"), tmp_path / "shared"
    push(a, str(shared))
    a.record_photos("f", ["1"], photos(1))
    forget(a, ["1"])
    push(a, str(shared))
    merge(b, [Cache.open(shared)])
    assert held(b) == {0, 2}
    merge(a, [make("c", [1, 5])])
    assert held(a) == {0, 2, 5}


def test_twenty_interleavings_with_kills_end_with_the_same_rows(
    s3: str, tmp_path: Path, make: Make
) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        remote = remotes.memory() if seed % 2 else remotes.folder(tmp_path / f"r{seed}")
        if seed % 5 == 0:
            remote = open_remote(f"{s3}/interleaved-{seed}")
        members = [make(f"a{seed}", [0, 1, 2, 3]), make(f"b{seed}", [2, 3, 4])]
        n_new = 10
        for _ in range(8):
            member, k = rng.choice(members), rng.randrange(1, 40)
            how = rng.choice(["before", "amid", "after"])
            mortal = remotes.Flaky(remote, remotes.since(k, how))
            at = mortal if rng.random() < 0.6 else remote
            try:
                match rng.choice(["push", "pull", "write", "compact"]):
                    case "push":
                        push(member, at)
                    case "pull":
                        pull(at, member)
                    case "write":
                        numbers = [n_new, rng.randrange(10)]
                        fill(member.space(SPEC), photos(*numbers))
                        n_new += 1
                    case "compact":
                        compact(member)
            except (Unreachable, RemoteError):
                pass
            assert verify(member).clean
        for member in (*members, *members):
            push(member, remote)
            pull(remote, member)
        assert held(members[0]) == held(members[1]) >= {0, 1, 2, 3, 4, *range(10, n_new)}
        for member in members:
            shutil.rmtree(member.path)


def test_patience_ends(make: Make) -> None:
    pauses: list[float] = []
    dead = Patient(remotes.Flaky(remotes.memory(), lambda n: "before"), sleep=pauses.append)
    with pytest.raises(Unreachable, match="503"):
        push(make("a", [0]), dead)
    assert len(pauses) == 5
    assert 1 < sum(pauses) < 10


def test_a_missing_file_there_is_mended_by_the_next_push(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1, 2]), make("b")
    push(a, remote)
    [shard] = [e.key for e in remote.list("spaces/") if "/embedding/c/" in e.key]
    if isinstance(remote, Patient):
        remote.delete(shard)
    else:
        _remove(remote, shard)
    assert pull(remote, b).problems
    assert "lacked 1 files" in str(push(a, remote))
    assert pull(remote, b).rows == 3


def test_a_pull_that_has_no_room_says_so_first(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, remote = make("a", [0, 1]), make("b"), remotes.memory()
    push(a, remote)
    usage = shutil.disk_usage(b.path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CacheError, match="has room for 10"):
        pull(remote, b)


def _remove(remote: Remote, key: str) -> None:
    path = Path(remote.name) / key
    if path.exists():
        path.unlink()
    else:
        remote.delete(key)


def test_a_member_without_rights_to_faces_gets_the_rest(make: Make) -> None:
    a, b = make("a", [0, 1]), make("b")
    fill(a.space(foreign("theirs", 4), create=True), photos(0), name="theirs")
    shared = remotes.memory()
    push(a, shared)

    class Locked(remotes.Flaky):
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


def test_a_survey_tells_what_is_there_without_fetching_a_vector(remote: Remote, make: Make) -> None:
    a = make("a", list(range(200)))
    write_ref(a, "paper")
    push(a, remote)
    counted = remotes.counted(remote)
    told = survey(counted)
    assert counted.n_bytes < 10_000
    [space] = told.spaces
    assert (space.names, space.rows, space.dim, space.segments) == (("net",), 200, 8, 1)
    assert told.refs == ("paper",)
    assert verify_remote(remote).clean


def kills(what: str, cache: Path, shared: Path, k: int) -> bool:
    """Let a member die at the k-th request; False where the work ended before."""
    words = [sys.executable, "-m", "tests.share_worker", what, str(cache), str(shared), str(k)]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def check_kills(make: Make, tmp_path: Path, numbers: Iterable[int]) -> None:
    whole = [set(), {0, 1, 2}, {3, 4}, {0, 1, 2, 3, 4}]
    for k in numbers:
        a, shared = make(f"a{k}", [0, 1, 2], [3, 4]), tmp_path / f"shared{k}"
        killed = kills("push", a.path, shared, k)
        if (shared / "zarr.json").exists():
            assert verify(Cache.open(shared)).clean
        killed |= kills("push", a.path, shared, k)  # goes on, and may die again
        push(a, remotes.folder(shared))
        assert verify(Cache.open(shared)).clean
        assert held(Cache.open(shared)) == {0, 1, 2, 3, 4}
        killed |= kills("pull", tmp_path / f"b{k}", shared, k)
        b = make(f"b{k}")
        assert verify(b).clean
        assert (held(b) if b.spaces() else set()) in whole
        pull(remotes.folder(shared), b)
        assert held(b) == {0, 1, 2, 3, 4}
        assert verify(b).clean
        if k > 10 and not killed:  # more requests than there are
            return


def test_members_who_are_killed_leave_nothing_half(make: Make, tmp_path: Path) -> None:
    check_kills(make, tmp_path, (12, 17, 29))


@pytest.mark.torture
def test_members_who_are_killed_at_any_request_leave_nothing_half(
    make: Make, tmp_path: Path
) -> None:
    check_kills(make, tmp_path, range(1, 100))
