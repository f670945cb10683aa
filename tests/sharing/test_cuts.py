"""Push and pull interrupted, refused or killed at any moment: resumable, never half visible."""

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import pytest

from embedcache.errors import RemoteError
from embedcache.remotes.folder import LocalFiles
from embedcache.remotes.opening import open_remote
from embedcache.remotes.patience import Patient
from embedcache.remotes.remote import Remote, Unreachable
from embedcache.sharing.arrival import _all
from embedcache.sharing.share import pull, push
from embedcache.sharing.shared_copy import SharedCopy
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.layout import APART
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.sharing.members import SPEC, Make, held, intact
from tests.stores import fill, model, photos


@pytest.mark.parametrize("how", ["before", "amid", "after"])
@pytest.mark.parametrize("kind", ["folder", pytest.param("memory", marks=pytest.mark.torture)])
def test_a_failure_at_any_request_is_retried(
    kind: str, how: str, tmp_path: Path, make: Make
) -> None:
    a = make("a", [0, 1, 2], [3, 4])
    write_ref(a, "paper")
    for k in range(1, 60):
        remote = fakes.memory() if kind == "memory" else fakes.folder(tmp_path / f"r{k}")
        b = make(f"b{k}")
        flaky = fakes.Flaky(remote, fakes.once(k, how))
        push(a, fakes.impatient(flaky))
        n_push = flaky.n_requests
        flaky = fakes.Flaky(remote, fakes.once(k, how))
        came = pull(fakes.impatient(flaky), b)
        assert held(b) == {0, 1, 2, 3, 4}
        assert came.problems == ()
        assert came.refs == ("paper",)
        if k > max(flaky.n_requests, n_push):
            break
        shutil.rmtree(b.path)
    else:
        raise AssertionError("more requests than were tried")


@pytest.mark.parametrize("kind", ["folder", pytest.param("memory", marks=pytest.mark.torture)])
def test_a_run_interrupted_at_any_request_is_never_half_visible_and_resumes(
    kind: str, tmp_path: Path, make: Make
) -> None:
    a = make("a", [0, 1, 2], [3, 4])
    whole = [{*()}, {0, 1, 2}, {3, 4}, {0, 1, 2, 3, 4}]
    for k in range(1, 80):
        how = random.Random(k).choice(["before", "amid", "after"])
        remote = fakes.memory() if kind == "memory" else fakes.folder(tmp_path / f"r{k}")
        b, c = make(f"b{k}"), make(f"c{k}")
        cut = fakes.Flaky(remote, fakes.since(k, how))
        cut_off = 0
        try:
            push(a, cut)
        except Unreachable:
            cut_off += 1
            if SharedCopy(remote).exists():
                pull(remote, c)
                assert (held(c) if c.spaces() else set()) in whole
        push(a, remote)
        cut = fakes.Flaky(remote, fakes.since(k, how))
        try:
            pull(cut, b)
        except Unreachable:
            cut_off += 1
            assert intact(b)
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


def test_a_pull_resumes_at_the_byte_where_it_stopped(make: Make) -> None:
    wide = foreign("wide", 4096)
    a, b = make("a", list(range(600)), spec=wide), make("b")  # 10 MB in one file
    remote = fakes.memory()
    push(a, remote)
    whole = sum(entry.size for entry in remote.list(APART + "/"))

    class Cut(fakes.Flaky):
        def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            for block in super().blocks(key, start=start, length=length):
                yield block
                if self.n_bytes > 5_000_000:
                    raise Unreachable("cut")

    with pytest.raises(Unreachable):
        pull(Cut(remote, lambda n: ""), b)
    counted = fakes.counted(remote)
    assert pull(counted, b).rows == 600
    assert counted.n_bytes < whole - 4_000_000
    assert verify(b).clean
    assert not list((b.path / "local" / "incoming").iterdir())


class Severed(fakes.Flaky):
    """The connection breaks after so many bytes, in either direction."""

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
                    raise Unreachable(f"{self.name}: connection reset. Rerun the command")

    def blocks(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._through(super().blocks(key, start=start, length=length))

    def write(self, key: str, blocks: Callable[[], Iterator[bytes]], *, size: int) -> None:
        super().write(key, lambda: self._through(blocks()), size=size)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_run_cut_off_at_any_byte_resumes(kind: str, tmp_path: Path, make: Make) -> None:
    wide, rng = foreign("wide", 256), random.Random(7)
    a = make("a", list(range(400)), list(range(400, 450)), spec=wide)
    everything, overhead = photos(*range(450)), 40_000  # manifests, digests, documents
    whole = a.spaces()[0].segments()
    n_bytes = sum(segment.manifest.bytes_on_disk for segment in whole)
    largest = max(size for s in whole for size, _ in s.manifest.files.values())
    for number in range(12):
        remote = fakes.memory() if kind == "memory" else fakes.folder(tmp_path / f"r{number}")
        b, cut = make(f"b{number}"), rng.randrange(1, n_bytes)
        with pytest.raises(Unreachable):
            push(a, Severed(remote, cut))
        counted = fakes.counted(remote)
        push(a, counted)
        # What had arrived whole is not sent again; up to eight objects were in the air.
        assert counted.n_bytes < n_bytes + overhead - cut + 8 * largest
        with pytest.raises(Unreachable):
            pull(Severed(remote, cut), b)
        assert intact(b)
        counted = fakes.counted(remote)
        pull(counted, b)
        assert (b.space(wide).read(everything)[0] == model(everything, 256)).all()
        # Resumes at the byte: a thousand may be lost with each of eight objects.
        assert counted.n_bytes < n_bytes + 2 * overhead - cut + 8 * 1000


def test_twenty_interleavings_with_kills_end_with_the_same_rows(
    s3: str, tmp_path: Path, make: Make
) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        remote = fakes.memory() if seed % 2 else fakes.folder(tmp_path / f"r{seed}")
        if seed % 5 == 0:
            remote = open_remote(f"{s3}/interleaved-{seed}")
        members = [make(f"a{seed}", [0, 1, 2, 3]), make(f"b{seed}", [2, 3, 4])]
        n_new = 10
        for _ in range(8):
            member, k = rng.choice(members), rng.randrange(1, 40)
            how = rng.choice(["before", "amid", "after"])
            mortal = fakes.Flaky(remote, fakes.since(k, how))
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
            assert intact(member)
        for member in (*members, *members):
            push(member, remote)
            pull(remote, member)
        assert held(members[0]) == held(members[1]) >= {0, 1, 2, 3, 4, *range(10, n_new)}
        for member in members:
            shutil.rmtree(member.path)


def test_patience_ends(make: Make) -> None:
    pauses: list[float] = []
    dead = Patient(fakes.Flaky(fakes.memory(), lambda n: "before"), sleep=pauses.append)
    with pytest.raises(Unreachable, match="503"):
        push(make("a", [0]), dead)
    assert len(pauses) == 5
    assert 1 < sum(pauses) < 10


def kills(what: str, cache: Path, shared: Path, k: int) -> bool:
    """Kill a member at the k-th request; False where the work ended before."""
    words = [sys.executable, "-m", "tests.sharing.worker", what, str(cache), str(shared), str(k)]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def check_kills(make: Make, tmp_path: Path, numbers: Iterable[int]) -> None:
    whole = [set(), {0, 1, 2}, {3, 4}, {0, 1, 2, 3, 4}]
    for k in numbers:
        a, shared = make(f"a{k}", [0, 1, 2], [3, 4]), tmp_path / f"shared{k}"
        killed = kills("push", a.path, shared, k)
        if (shared / "zarr.json").exists():
            assert verify(Cache.open(shared)).clean
        killed |= kills("push", a.path, shared, k)  # resumes, and may die again
        push(a, fakes.folder(shared))
        assert verify(Cache.open(shared)).clean
        assert held(Cache.open(shared)) == {0, 1, 2, 3, 4}
        killed |= kills("pull", tmp_path / f"b{k}", shared, k)
        b = make(f"b{k}")
        assert intact(b)
        assert (held(b) if b.spaces() else set()) in whole
        pull(fakes.folder(shared), b)
        assert held(b) == {0, 1, 2, 3, 4}
        assert verify(b).clean
        if k > 10 and not killed:  # more requests than there are
            return


def test_a_manifest_that_a_killed_push_left_half_written_is_written_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, real = make("a", [0, 1, 2]), LocalFiles.write

    def dies(self: LocalFiles, path: str, blocks: Iterator[bytes]) -> None:
        if path.endswith("manifest.json"):
            real(self, path, iter([b'{"half']))
            raise KeyboardInterrupt
        real(self, path, blocks)

    monkeypatch.setattr(LocalFiles, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        push(a, fakes.folder(tmp_path / "shared"))
    assert list((tmp_path / "shared").rglob("manifest.json"))  # in its staging folder
    monkeypatch.undo()
    push(a, fakes.folder(tmp_path / "shared"))
    assert verify(Cache.open(tmp_path / "shared")).clean
    assert held(Cache.open(tmp_path / "shared")) == {0, 1, 2}


def test_a_second_interruption_does_not_hang_the_first() -> None:
    # The impatient second Ctrl-C shuts the pool down while the first still waits for what runs.
    pool, may_go_on = ThreadPoolExecutor(1), Event()
    jobs = [pool.submit(may_go_on.wait, 10), pool.submit(may_go_on.wait, 10)]

    def first() -> None:
        with pytest.raises(CancelledError):
            _all(jobs)

    waiting = Thread(target=first, daemon=True)
    waiting.start()
    pool.shutdown(wait=False, cancel_futures=True)
    may_go_on.set()
    waiting.join(10)
    assert not waiting.is_alive()


def test_killed_members_leave_no_half_segment(make: Make, tmp_path: Path) -> None:
    check_kills(make, tmp_path, (12, 17, 29))


@pytest.mark.torture
def test_members_killed_at_any_request_leave_no_half_segment(make: Make, tmp_path: Path) -> None:
    check_kills(make, tmp_path, range(1, 100))
