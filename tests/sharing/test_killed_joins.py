"""`compact --remote` that is killed anywhere: running it again ends it, on every kind of remote."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from embedcache import disk
from embedcache.remotes.folder import LocalFiles
from embedcache.remotes.remote import Ours, Remote
from embedcache.sharing.connecting import staging_of
from embedcache.sharing.joining import compact_remote
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import survey, verify_remote
from embedcache.store.cache import Cache
from embedcache.store.manifest import MANIFEST
from tests import fakes
from tests.sharing.members import Make, held


class Killed(BaseException):
    """What no code catches."""


class Dying(fakes.Meanwhile):
    """A remote whose process is killed before its n-th request that `when` accepts."""

    def __init__(self, remote: Remote, when: Callable[[str, str], bool], nth: int = 1) -> None:
        self.left = nth

        def counts(method: str, key: str) -> bool:
            self.left -= when(method, key)
            return self.left <= 0

        def die() -> None:
            raise Killed

        super().__init__(remote, counts, die)


@pytest.fixture(autouse=True)
def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process counts as one that has ended, for what it had begun."""
    monkeypatch.setattr(disk, "maker_is_gone", lambda name: True)


def ended(remote: Remote, b: Cache, make: Make) -> None:
    """Running it again ends it: nothing is left, and nothing is lost."""
    compact_remote(remote, b)
    found = verify_remote(remote)
    assert found.findings == ()
    assert survey(remote).unfinished == found.unfinished == 0
    keys = [entry.key for entry in remote.list("spaces/") if "/segments/" in entry.key]
    assert len({key.split("/")[3] for key in keys if key.count("/") > 3}) == 1
    for root in ("spaces", "faces", "face-spaces"):
        for folder in {key.split("/segments/")[0] for key in keys if key.startswith(root)}:
            assert not [*remote.leftovers(f"{folder}/segments")]
    assert not [*b.local.glob("outgoing-*"), *b.local.glob("joining-*")]
    c = make("c")
    assert not pull(remote, c).problems
    assert held(c) == {0, 1, 2, 3}


@pytest.mark.parametrize("nth", [1, 2, 3, 20])
@pytest.mark.parametrize("amid", ["deleting", "sending"])
def test_killed_amid_its_requests_it_ends_when_it_is_run_again(
    amid: str, nth: int, remote: Remote, make: Make, tmp_path: Path
) -> None:
    b = make("b")
    if remote.name == str(tmp_path / "shared"):
        remote = fakes.folder(tmp_path / "shared", staging=staging_of(b))
    push(make("a", [0, 1], [2], [3]), remote)
    methods = ("delete",) if amid == "deleting" else ("write", "create")
    dying = Dying(remote, lambda method, key: method in methods and "/segments/2" in key, nth)
    with contextlib.suppress(Killed):  # it may have fewer requests
        compact_remote(dying, b)
    ended(remote, b, make)


@pytest.mark.parametrize("nth", [1, 2])
def test_killed_while_it_deletes_a_folder_it_ends_when_it_is_run_again(
    nth: int, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = fakes.folder(tmp_path / "shared")
    push(make("a", [0, 1], [2], [3]), remote)
    left = [nth]

    def die(self: LocalFiles, path: str, *, ours: Ours | None = None) -> None:
        left[0] -= ".gone-" in path
        if left[0] == 0:
            (self._root / path / MANIFEST).unlink()
            raise Killed
        remove(self, path, ours=ours)

    remove, b = LocalFiles.remove, make("b")
    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "remove", die)
        with pytest.raises(Killed):
            compact_remote(remote, b)
    assert [*(tmp_path / "shared").rglob(".gone-*")]
    ended(remote, b, make)


def test_the_half_sent_segments_of_others_stay(make: Make) -> None:
    remote = fakes.memory()
    push(make("a", [0, 1], [2], [3]), remote)
    d, b = make("d", [7, 8]), make("b")
    deeds: list[Callable[[Remote], object]] = [
        lambda dying: push(d, dying),
        lambda dying: compact_remote(dying, b),
    ]
    for deed in deeds:
        with pytest.raises(Killed):
            deed(Dying(remote, lambda method, key: method == "create" and key.endswith(MANIFEST)))
    assert survey(remote).unfinished == 2
    compact_remote(remote, b)
    assert survey(remote).unfinished == 1
