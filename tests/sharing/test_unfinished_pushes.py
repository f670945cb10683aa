"""A purge beside the push of the same segment by a copy of the cache: no ref ever has a gap.

On an object store a segment comes file by file, and nobody can tell an abandoned push from one that
is at work.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache.remotes.remote import Remote
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.store.manifest import MANIFEST
from embedcache.upkeep.compaction import compact
from embedcache.upkeep.forgetting import forget, forget_forgotten
from embedcache.upkeep.freeing import forget_space
from embedcache.upkeep.pinning import write_ref
from tests import fakes
from tests.sharing.members import SPEC, Make, held, row_of, there
from tests.stores import fill, photos


class Killed(BaseException):
    """What no code catches."""


When = Callable[[str, str], bool]


def nth(n: int, when: When) -> When:
    """The n-th of the requests that `when` accepts."""
    left = [n]

    def accepts(method: str, key: str) -> bool:
        left[0] -= when(method, key)
        return left[0] == 0

    return accepts


def manifest(method: str, key: str) -> bool:
    return method == "create" and key.endswith(MANIFEST)


WHENS: dict[str, Callable[[], When]] = {
    "before a file": lambda: nth(5, lambda method, key: method == "write"),
    "before the manifest": lambda: nth(1, manifest),
    "before the next manifest": lambda: nth(2, manifest),
    "before the look at the log": lambda: nth(
        1, lambda method, key: method == "blocks" and key.startswith("removed/")
    ),
    "before the ref": lambda: nth(1, lambda method, key: key == "refs/paper.json"),
    "before the ref counts": lambda: nth(
        1, lambda method, key: method == "create_once" and key.startswith("removed/")
    ),
}


@pytest.fixture
def remote(remote: Remote, tmp_path: Path) -> Remote:
    if remote.name == str(tmp_path / "shared"):
        pytest.skip("a segment in a folder is renamed into place, so that none is half there")
    return remote


@pytest.fixture
def a(make: Make) -> Cache:
    a = make("a", [0, 1, 2], [3])
    a.record_photos("f", ["0", "1", "2", "3"], photos(0, 1, 2, 3))
    return a


def copied(cache: Cache, path: Path) -> Cache:
    shutil.copytree(cache.path, path)
    return Cache.open(path)


def begun(cache: Cache, remote: Remote, when: When) -> None:
    """A push that is killed before a request."""

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        push(cache, fakes.Meanwhile(remote, when, die))


def whole(remote: Remote, make: Make, *expected: int, pinned: set[int] | None = None) -> None:
    """Nothing is wrong there, and a pull brings these photos, and those that the ref pins."""
    assert verify_remote(remote).findings == ()
    c = make("c")
    assert not pull(remote, c).problems
    assert held(c) == {*expected}
    if pinned is not None:
        d = make("d")
        assert not pull(remote, d, ref="paper").problems
        found = Cache.open(d.path, ref="paper").space(SPEC).read(photos(*range(10)))[1]
        assert {n for n in range(10) if found[n]} == pinned


def gaps(remote: Remote) -> list[str]:
    """What refs, and manifests, promise there and is not there."""
    found = verify_remote(remote).findings
    return [text for text in found if "is missing" in text or "pins segment" in text]


CHANGES: dict[str, Callable[[Cache], object]] = {
    "forget": lambda cache: forget(cache, ["1"]),
    "compact": lambda cache: compact(cache),
    "forget space": lambda cache: forget_space(cache, f"net#{SPEC.digest[:8]}"),
}


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("change", CHANGES)
def test_no_ref_is_sent_onto_what_a_purge_took_for_abandoned(
    change: str, when: str, a: Cache, remote: Remote, make: Make, tmp_path: Path
) -> None:
    push(make("z", [9]), remote)
    x = copied(a, tmp_path / "x")
    write_ref(x, "paper")

    def purge() -> None:
        CHANGES[change](a)
        push(a, remote, purge=True)

    meanwhile = fakes.Meanwhile(remote, WHENS[when](), purge)
    done = push(x, meanwhile)
    assert meanwhile.happened
    assert gaps(remote) == []
    for _ in range(2):
        if not done.problems:
            break
        pull(remote, x)  # as the problem says, where photos were forgotten meanwhile
        forget_forgotten(Cache.open(x.path))
        done = push(Cache.open(x.path), remote)
    assert not done.problems
    expected = {0, 1, 2, 3, 9} - ({1} if change == "forget" else set())
    push(Cache.open(a.path), remote, purge=True)
    whole(remote, make, *expected, pinned=expected - {9})
    assert change != "forget" or row_of(1) not in there(remote)


@pytest.mark.parametrize("change", CHANGES)
def test_a_push_that_ends_just_before_the_purge_enters_it_keeps_its_rows(
    change: str, a: Cache, remote: Remote, make: Make, tmp_path: Path
) -> None:
    x = copied(a, tmp_path / "x")
    begun(x, remote, nth(1, manifest))
    CHANGES[change](a)
    entries = lambda method, key: method == "create_once" and key.startswith("removed/")  # noqa: E731
    for n in (1, 2):
        meanwhile = fakes.Meanwhile(remote, nth(n, entries), lambda: push(x, remote))
        push(a, meanwhile, purge=True)
        if not meanwhile.happened:
            push(x, remote)
        assert gaps(remote) == []
    push(Cache.open(a.path), remote, purge=True)
    whole(remote, make, *{0, 1, 2, 3} - ({1} if change == "forget" else set()))
    assert change != "forget" or row_of(1) not in there(remote)


@pytest.mark.parametrize("n", range(1, 6))
def test_a_purge_that_pauses_before_it_deletes_takes_nothing_of_a_push_that_ended(
    n: int, a: Cache, remote: Remote, make: Make, tmp_path: Path
) -> None:
    x = copied(a, tmp_path / "x")
    begun(x, remote, nth(1, manifest))
    write_ref(x, "paper")
    compact(a)
    deletes = nth(n, lambda method, key: method == "delete")
    meanwhile = fakes.Meanwhile(remote, deletes, lambda: push(x, remote))
    push(a, meanwhile, purge=True)
    assert meanwhile.happened
    assert gaps(remote) == []
    fill(x.space(SPEC), photos(5))
    assert not push(x, remote).problems
    push(a, remote, purge=True)
    whole(remote, make, 0, 1, 2, 3, 5, pinned={0, 1, 2, 3})


@pytest.mark.parametrize("what", ["/embedding/c/", f"/{MANIFEST}", "/segments/2"])
def test_what_somebody_deletes_during_a_push_is_sent_again_before_a_ref_is(
    what: str, a: Cache, remote: Remote, make: Make
) -> None:
    write_ref(a, "paper")

    def lose() -> None:
        for entry in [*remote.list("spaces/")]:
            if what in entry.key:
                remote.delete(entry.key)

    n_whole = [0]

    def then(method: str, key: str) -> bool:
        n_whole[0] += manifest(method, key)
        return n_whole[0] == 2 and method == "list"

    losing, looks = fakes.Meanwhile(remote, then, lose), list[list[str]]()
    watched = fakes.Meanwhile(
        losing,
        lambda method, key: key == "refs/paper.json",
        lambda: looks.append(gaps(remote)),
    )
    assert push(a, watched).problems == ()
    assert losing.happened
    assert looks == [[]]
    whole(remote, make, 0, 1, 2, 3, pinned={0, 1, 2, 3})
