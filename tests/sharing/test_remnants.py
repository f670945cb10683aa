"""What a killed purge or push leaves on a shared copy: verify names it, and its advice ends it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedcache.remotes.remote import Remote, Unreachable
from embedcache.sharing import joining, purging
from embedcache.sharing.connecting import staging_of
from embedcache.sharing.joining import compact_remote
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.store.manifest import MANIFEST
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from tests import fakes
from tests.sharing.members import SPEC, Make, held, row_of, there
from tests.stores import photos


class Killed(BaseException):
    """A process that ended here."""


def kill(deed: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something that ends before it deletes the bytes of a segment."""

    def die(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        for module in (purging, joining):
            patch.setattr(module, "delete_segment", die)
        with pytest.raises(Killed):
            deed()


def lose(remote: Remote, part: str) -> str:
    """Remove the objects whose key holds `part`, as nobody's command does; returns the last key."""
    key = ""
    for entry in sorted(remote.list("spaces/"), key=lambda entry: entry.key):
        if part in entry.key:
            key, path = entry.key, Path(remote.name, entry.key)
            path.unlink() if path.exists() else remote.delete(key)
    assert key
    return key


@pytest.fixture
def a(make: Make) -> Cache:
    a = make("a", [0, 1, 2], [3])
    a.record_photos("f", ["0", "1", "2", "3"], photos(0, 1, 2, 3))
    return a


@pytest.mark.parametrize("how", ["purge", "purge of photo ids", "compaction"])
def test_what_a_killed_removal_did_not_delete_is_named_and_the_next_purge_deletes_it(
    how: str, a: Cache, remote: Remote, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(a, remote, with_ids=how.endswith("ids"))
    if how != "compaction":
        forget(a, ["1"])
        push(a, remote)
    before = len(verify_remote(remote).findings)
    assert before == {"purge": 1, "purge of photo ids": 2, "compaction": 0}[how]
    z = make("z")
    kill(
        lambda: compact_remote(remote, z) if how == "compaction" else push(a, remote, purge=True),
        monkeypatch,
    )
    findings = [f for f in verify_remote(remote).findings if "is not deleted yet" in f]
    assert len(findings) == {"purge": 1, "purge of photo ids": 1, "compaction": 2}[how]
    assert all(f"'embedcache push --purge DIR {remote.name}' deletes it" in f for f in findings)
    push(make("b", [9]), remote, purge=True)
    assert verify_remote(remote).clean
    if how != "compaction":
        assert row_of(1) not in there(remote)


def test_a_purge_that_ends_during_verify_is_no_finding(
    a: Cache, remote: Remote, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(a, remote)
    forget(a, ["1"])
    kill(lambda: push(a, remote, purge=True), monkeypatch)
    b = make("b", [9])
    meanwhile = fakes.Meanwhile(
        remote,
        lambda method, key: method == "leftovers" or key.startswith("forgotten/"),
        lambda: push(b, remote, purge=True),
    )
    assert verify_remote(meanwhile).findings == ()
    assert meanwhile.happened


@pytest.mark.parametrize("purges", ["its own", "another"])
@pytest.mark.parametrize("kind", ["digests", "no digests", "wrong digests"])
def test_an_unfinished_push_with_forgotten_rows_is_named(
    kind: str, purges: str, a: Cache, remote: Remote, make: Make
) -> None:
    push(a, remote)
    forget(a, ["3"])
    key = lose(remote, MANIFEST).removesuffix(f"/{MANIFEST}")
    if kind == "no digests":
        lose(remote, f"{key.rpartition('/')[2]}/digest/c")
    elif kind == "wrong digests":
        digests = f"{key}/digest/c/0/0"
        remote.delete(digests)
        remote.write(digests, lambda: iter([b"half"]), size=4)
    assert verify_remote(remote).clean  # nobody there knows what was forgotten
    push(make("b", [9]), remote)
    b = make("c", [3])
    b.record_photos("f", ["3"], photos(3))
    forget(b, ["3"])
    push(b, remote)
    found = [text for text in verify_remote(remote).findings if "unfinished push" in text]
    what = "holds 1 row" if kind == "digests" else "may hold rows"
    assert any(text.startswith(f"{key} is an unfinished push that {what}") for text in found)
    assert all("If nobody is pushing now" in text for text in found)
    if purges == "its own":
        push(a, remote, purge=True)
        assert verify_remote(remote).clean
        assert row_of(3) not in there(remote)
    else:
        push(b, remote, purge=True)
        assert not verify_remote(remote).clean


def test_a_staged_push_to_a_folder_is_named_alike(tmp_path: Path, make: Make) -> None:
    a, b, folder = make("a", [0, 1, 2]), make("b", [1, 5]), tmp_path / "shared"
    b.record_photos("f", ["1"], photos(1))
    push(make("c", [9]), str(folder))
    with pytest.raises(Unreachable):
        push(a, fakes.Flaky(fakes.folder(folder, staging=staging_of(a)), fakes.since(22, "after")))
    [staged] = folder.rglob(".push-*")
    assert verify_remote(str(folder)).clean
    forget(b, ["1"])
    push(b, str(folder))
    [finding] = verify_remote(str(folder)).findings
    assert f"{staged.name} is an unfinished push that holds 1 row of forgotten photos" in finding
    push(a, str(folder))
    assert verify_remote(str(folder)).clean


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_pinned_segment_that_lost_its_manifest_is_named_and_pushed_again(
    is_elsewhere: bool, a: Cache, remote: Remote, make: Make
) -> None:
    write_ref(a, "paper")
    push(a, remote)
    if is_elsewhere:  # with the same rows in other segments, none would be lacking there
        push(make("b", [0, 2], [1, 3]), remote)
        a = make("d")
        pull(remote, a, ref="paper")
        (a.path / "refs" / "paper.json").unlink()
        a = Cache.open(a.path)
    lose(remote, f"{a.space(SPEC).segments()[0].id}/{MANIFEST}")
    [finding] = verify_remote(remote).findings
    assert "ref paper pins segment" in finding
    assert "has no manifest" in finding
    assert f"'embedcache push DIR {remote.name}'" in finding
    assert push(a, remote).problems == ()
    assert verify_remote(remote).clean
    c = make("c")
    assert pull(remote, c, ref="paper").problems == ()
    assert held(c) == {0, 1, 2, 3}


def test_a_purge_leaves_a_pinned_segment_without_a_manifest_to_who_holds_it(
    a: Cache, remote: Remote, make: Make
) -> None:
    write_ref(a, "paper")
    push(a, remote)
    b, c = make("b"), make("c")
    pull(remote, b)
    key = lose(remote, f"{a.space(SPEC).segments()[0].id}/{MANIFEST}").removesuffix(f"/{MANIFEST}")
    before = {entry.key for entry in remote.list(f"{key}/")}
    forget(a, ["1"])
    for _ in range(2):
        [problem] = push(a, remote, purge=True).problems
        assert f"{key} of {remote.name} has no manifest and is pinned by ref paper" in problem
        assert before == {entry.key for entry in remote.list(f"{key}/")}
    assert len(verify_remote(remote).findings) == 2  # the ref, and what is forgotten
    assert push(b, remote, purge=True).problems == ()
    assert verify_remote(remote).clean
    assert row_of(1) not in there(remote)
    assert pull(remote, c, ref="paper").problems == ()
    assert held(c) == {0, 2, 3}


def test_a_purge_deletes_no_unfinished_segment_while_a_ref_cannot_be_read(
    a: Cache, remote: Remote
) -> None:
    write_ref(a, "paper")
    push(a, remote)
    key = lose(remote, f"{a.space(SPEC).segments()[0].id}/{MANIFEST}").removesuffix(f"/{MANIFEST}")
    before = {entry.key for entry in remote.list(f"{key}/")}
    remote.delete("refs/paper.json")
    remote.create("refs/paper.json", b"{}")
    forget(a, ["1"])
    assert push(a, remote, purge=True).problems
    assert before == {entry.key for entry in remote.list(f"{key}/")}


def test_a_segment_that_no_ref_pins_is_an_unfinished_push(a: Cache, remote: Remote) -> None:
    push(a, remote)
    lose(remote, f"{a.space(SPEC).segments()[0].id}/{MANIFEST}")
    found = verify_remote(remote)
    assert (found.findings, found.unfinished) == ((), 1)
