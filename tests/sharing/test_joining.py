"""`compact --remote`: a shared copy of many small segments becomes one of few, without a loss."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache import disk
from embedcache.errors import EmbedcacheError, RemoteError
from embedcache.remotes.remote import Remote
from embedcache.sharing.joining import compact_remote
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.sharing.members import SPEC, Make, held, row_of, there
from tests.stores import DETECTOR, faces_of, fill, photos


def manifests(remote: Remote, root: str = "spaces/") -> list[str]:
    return [entry.key for entry in remote.list(root) if entry.key.endswith("/manifest.json")]


def test_small_segments_of_many_members_become_one(remote: Remote, make: Make) -> None:
    """CASES F14: also where nobody can open the shared copy as a cache, as on S3."""
    a, b = make("a", [0, 1], [2], [3]), make("b", [4], [5, 1], [6])
    with a.space(SPEC).writer(n_rows=1, name="net", about={}) as writer:
        writer.fail(photos(20), ["truncated"])
    for n in (1, 2):
        with a.face_space(DETECTOR, create=True).writer(n_rows=1, about={}) as faces:
            faces.add(photos(n), faces_of([n]))
    push(a, remote)
    push(b, remote)
    assert len(manifests(remote)) == 7
    done = compact_remote(remote, make("c"))
    assert (done.before, done.after) == (9, 2)
    assert len(manifests(remote)) == len(manifests(remote, "faces/")) == 1
    assert verify_remote(remote).clean
    d = make("d")
    assert not pull(remote, d).problems
    assert held(d) == {0, 1, 2, 3, 4, 5, 6}
    assert d.space(SPEC).reasons(photos(20)) == ["truncated"]
    [faces_there] = d.face_spaces()
    assert faces_there.counts_of(photos(1, 2)).tolist() == [1, 2]
    for member in (a, b):  # nothing moves again, to and fro
        assert push(member, remote).rows == pull(remote, member).rows * 0
        assert held(member) == {0, 1, 2, 3, 4, 5, 6}
    again = compact_remote(remote, make("e"))
    assert (again.before, again.after, again.rows) == (2, 2, 0)
    assert not [*(make("c").local.glob("outgoing-*"))]


def test_what_a_ref_pins_stays_and_reads_as_before(remote: Remote, make: Make) -> None:
    a = make("a", [0], [1])
    write_ref(a, "paper")
    fill(a.space(SPEC), photos(2))
    fill(a.space(SPEC), photos(3))
    push(a, remote)
    done = compact_remote(remote, make("b"))
    assert (done.before, done.after) == (4, 3)
    c = make("c")
    assert not pull(remote, c, ref="paper").problems
    assert held(c) == {0, 1}
    assert Cache.open(c.path, ref="paper").space(SPEC).status(photos(0, 1)).tolist() == [1, 1]
    assert verify_remote(remote).clean


def test_forgotten_rows_do_not_come_back_and_go(remote: Remote, make: Make) -> None:
    a = make("a", [0, 1], [2], [3])
    a.record_photos("f", ["1"], photos(1))
    push(a, remote)
    forget(a, ["1"])
    push(a, remote)
    assert row_of(1) in there(remote)  # not purged yet
    compact_remote(remote, make("b"))
    assert row_of(1) not in there(remote)
    c = make("c")
    pull(remote, c)
    assert held(c) == {0, 2, 3}
    assert verify_remote(remote).clean


CHANGES = {
    "a purge": lambda method, key: method in ("write", "create") and "/embedding/" in key,
    "a purge at the manifest": lambda method, key: (
        key.endswith("manifest.json") and method == "create"
    ),
    "a purge at the entry": lambda method, key: "removed/" in key and method == "create_once",
    "a purge after the listing": lambda method, key: method == "list" and key == "faces/",
}


@pytest.mark.parametrize("moment", CHANGES)
def test_others_who_forget_meanwhile_are_obeyed(moment: str, remote: Remote, make: Make) -> None:
    a = make("a", [0, 1], [2], [3])
    a.record_photos("f", ["1"], photos(1))
    push(a, remote)

    def purge() -> None:
        forget(a, ["1"])
        push(a, remote, purge=True)

    meanwhile = fakes.Meanwhile(remote, CHANGES[moment], purge)
    try:
        compact_remote(meanwhile, make("b"))
    except RemoteError:
        compact_remote(remote, make("b"))
    assert meanwhile.happened
    c = make("c")
    assert not pull(remote, c).problems
    assert held(c) == {0, 2, 3}
    assert row_of(1) not in there(remote)
    assert verify_remote(remote).clean


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("root", ["spaces/", "forgotten/"])
def test_what_is_purged_between_two_listings_does_not_come_back(
    root: str, nth: int, remote: Remote, make: Make
) -> None:
    """Rows that were pulled before they were forgotten are among those that were joined."""
    a = make("a", [0, 1], [2], [3])
    a.record_photos("f", ["1"], photos(1))
    push(a, remote)
    seen: list[str] = []

    def at(method: str, key: str) -> bool:
        seen.extend([key] if (method, key) == ("list", root) else [])
        return len(seen) == nth

    def purge() -> None:
        forget(a, ["1"])
        push(a, remote, purge=True)

    meanwhile = fakes.Meanwhile(remote, at, purge)
    with contextlib.suppress(RemoteError):
        compact_remote(meanwhile, make("b"))
    assert meanwhile.happened
    assert row_of(1) not in there(remote)
    assert verify_remote(remote).clean
    c = make("c")
    assert not pull(remote, c).problems
    assert held(c) == {0, 2, 3}


@pytest.mark.parametrize("moment", CHANGES)
def test_a_ref_that_comes_meanwhile_holds(moment: str, remote: Remote, make: Make) -> None:
    a = make("a", [0, 1], [2], [3])
    push(a, remote)

    def cite() -> None:
        write_ref(a, "paper")
        assert push(a, remote).refs == ("paper",)

    meanwhile = fakes.Meanwhile(remote, CHANGES[moment], cite)
    compact_remote(meanwhile, make("b"))
    assert meanwhile.happened
    c = make("c")
    assert not pull(remote, c, ref="paper").problems
    assert held(c) == {0, 1, 2, 3}
    assert verify_remote(remote).clean


def test_a_damaged_shared_copy_is_left_as_it_is(remote: Remote, make: Make) -> None:
    push(make("a", [0, 1], [2], [3]), remote)
    [shard, *_] = [e.key for e in remote.list("spaces/") if e.key.endswith("embedding/c/0/0")]
    raw = b"".join(remote.blocks(shard))
    remote.write(shard, lambda: iter([raw[:-1] + b"\0"]), size=len(raw))
    before = sorted(entry.key for entry in remote.list(""))
    with pytest.raises(RemoteError, match="nothing was joined"):
        compact_remote(remote, make("b"))
    assert sorted(entry.key for entry in remote.list("")) == before


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize(
    "nth",
    [
        pytest.param(range(1, 130), marks=pytest.mark.torture, id="every request"),
        pytest.param(range(24, 100, 9), id="some requests"),
    ],
)
def test_cut_off_at_a_request_it_loses_nothing_and_a_rerun_ends_it(
    nth: range, how: str, make: Make, tmp_path: Path
) -> None:
    n_cut = 0
    for k in nth:
        remote = fakes.folder(tmp_path / f"shared-{k}")
        push(make("a", [0, 1], [2], [3]) if k == nth[0] else Cache.open(tmp_path / "a"), remote)
        try:
            compact_remote(fakes.Flaky(remote, fakes.since(k, how)), make(f"b{k}"))
        except EmbedcacheError:
            n_cut += 1
        c = make(f"c{k}")
        pull(remote, c)
        assert held(c) == {0, 1, 2, 3}
        compact_remote(remote, Cache.open(tmp_path / f"b{k}"))
        d = make(f"d{k}")
        assert not pull(remote, d).problems
        assert held(d) == {0, 1, 2, 3}
        assert len(manifests(remote)) == 1, k
        assert verify_remote(remote).clean, k
        assert not verify(d).findings
    assert n_cut


KILLED = """
import os, sys
from embedcache.sharing import joining
from embedcache.store.cache import Cache
joining.join = lambda *_, **__: os.kill(os.getpid(), 9)
joining.compact_remote(sys.argv[1], Cache.open(sys.argv[2]))
"""


@pytest.mark.parametrize("again", ["compact --remote", "compact", "push"])
def test_what_a_killed_compaction_left_is_named_and_goes_with_the_next_command(
    again: str, tmp_path: Path, make: Make
) -> None:
    url = str(tmp_path / "shared")
    push(make("a", [0, 1], [2], [3]), url)
    b = make("b", [4])
    subprocess.run([sys.executable, "-c", KILLED, url, str(b.path)], cwd=Path(__file__).parents[2])
    [left] = b.local.glob("outgoing-*")
    [finding] = verify(b).findings
    assert finding.path == f"local/{left.name}"
    assert f"'embedcache compact {b.path}' deletes it" in finding.problem
    commands: dict[str, Callable[[], object]] = {
        "compact --remote": lambda: compact_remote(url, b),
        "compact": lambda: compact(b),
        "push": lambda: push(b, url),
    }
    commands[again]()
    assert not [*b.local.glob("outgoing-*")]
    assert verify(b).clean


def test_a_compaction_leaves_what_another_process_alive_sends(tmp_path: Path, make: Make) -> None:
    url = str(tmp_path / "shared")
    push(make("a", [0, 1], [2], [3]), url)
    b = make("b")
    mine = b.local / f"outgoing-{disk.mark_of_process()}"
    mine.mkdir()
    compact_remote(url, b)
    assert mine.exists()
