"""The remotes themselves, against real servers."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedcache.errors import RemoteError
from embedcache.remotes.opening import open_remote
from embedcache.remotes.patience import read_small
from embedcache.remotes.remote import UNSEEN, Remote, Unreachable
from embedcache.sharing.share import pull, push
from embedcache.store.cache import Cache
from embedcache.upkeep.verify import verify
from tests import fakes
from tests.remotes.servers import (
    Proxy,
    complete,
    two_segments,
)


def test_every_remote_keeps_the_protocol(remote: Remote) -> None:
    assert list(remote.list("spaces/")) == []
    assert remote.create("refs/a.json", b"first")
    assert not remote.create("refs/a.json", b"second")
    assert read_small(remote, "refs/a.json", limit=100) == b"first"
    with pytest.raises(RemoteError, match="over 3 bytes"):
        read_small(remote, "refs/a.json", limit=3)
    with pytest.raises(FileNotFoundError):
        read_small(remote, "refs/b.json", limit=3)
    big = os.urandom(10 << 20)
    remote.write("spaces/x/big", lambda: iter([big[:100], big[100:]]), size=len(big))
    assert b"".join(remote.blocks("spaces/x/big")) == big
    assert (
        b"".join(remote.blocks("spaces/x/big", start=5_000_000, length=77))
        == (big[5_000_000:5_000_077])
    )
    [entry] = remote.list("spaces/")
    assert (entry.key, entry.size) == ("spaces/x/big", len(big))
    remote.delete("spaces/x/big")
    remote.delete("spaces/x/big")
    assert list(remote.list("spaces/")) == []


def test_a_write_that_fails_at_its_end_leaves_nothing(remote: Remote) -> None:
    def blocks() -> Iterator[bytes]:
        yield bytes(9 << 20)
        raise RemoteError("not what was written")

    for size in (9 << 20, 100):
        with pytest.raises(RemoteError):
            remote.write("spaces/x", blocks, size=size)
    assert list(remote.list("spaces/")) == []
    with pytest.raises(FileNotFoundError):
        read_small(remote, "spaces/x", limit=10)


def test_push_and_pull_over_every_remote(remote: Remote, tmp_path: Path) -> None:
    a, b = two_segments(tmp_path / "a"), Cache.open(tmp_path / "b", create=True)
    assert push(a, remote).rows == 5
    assert pull(remote, b).rows == 5
    assert complete(b)
    assert verify(b).clean


def test_a_push_beside_foreign_files_is_refused_everywhere(remote: Remote, tmp_path: Path) -> None:
    a = two_segments(tmp_path / "a")
    remote.write("holiday/photo.jpg", lambda: iter([b"x"]), size=1)
    for dry_run in (True, False):
        with pytest.raises(RemoteError, match=r"neither empty nor .*holiday"):
            push(a, remote, dry_run=dry_run)
    assert list(remote.list("spaces/")) == []


def test_a_missing_bucket_is_one_message(s3: Proxy, tmp_path: Path) -> None:
    a = two_segments(tmp_path / "a")
    for work in (push, lambda cache, url: pull(url, cache)):
        with pytest.raises(RemoteError, match="there is no bucket absent") as caught:
            work(a, "s3://absent/x")
        assert "<" not in str(caught.value)


def test_a_push_to_a_place_where_no_folder_can_be_is_refused(ssh: str, tmp_path: Path) -> None:
    a = two_segments(tmp_path / "a")
    (tmp_path / "a.txt").write_text("x")
    for place in ("a.txt", "a.txt/b", "taem/faces"):
        for prefix in (f"{ssh}{tmp_path}", str(tmp_path)):
            for dry_run in (True, False):
                with pytest.raises(RemoteError, match=r"shared copy can|is not a folder") as caught:
                    push(a, f"{prefix}/{place}", dry_run=dry_run)
                assert "/" not in place or str(tmp_path / place.split("/")[0]) in str(caught.value)
    for prefix in (ssh, "file://"):
        with pytest.raises(RemoteError, match="/proc/xx"):
            push(a, f"{prefix}/proc/xx")
    assert not (tmp_path / "taem").exists()


def test_a_host_that_shows_another_key_is_refused(
    ssh: str, sshd: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, home = sshd
    kind, key = (home / "user.pub").read_text().split()[:2]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    monkeypatch.setenv("EMBEDCACHE_KNOWN_HOSTS", str(tmp_path / "known"))
    with pytest.raises(RemoteError, match="shows another key"):
        list(open_remote(f"{ssh}/x").list("spaces/"))


def test_a_missing_key_is_one_message(ssh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDCACHE_SSH_KEY", "/absent/key")
    with pytest.raises(RemoteError, match="EMBEDCACHE_SSH_KEY names /absent/key"):
        list(open_remote(f"{ssh}/x").list("spaces/"))
    monkeypatch.delenv("EMBEDCACHE_SSH_KEY")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("HOME", "/absent")
    with pytest.raises(RemoteError, match="you have no key for"):
        list(open_remote(f"{ssh}/x").list("spaces/"))


def test_an_unknown_host_is_refused(
    ssh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none").write_text("")
    monkeypatch.setenv("EMBEDCACHE_KNOWN_HOSTS", str(tmp_path / "none"))
    with pytest.raises(RemoteError, match="not in your known_hosts"):
        list(open_remote(f"{ssh}/x").list("spaces/"))


def test_an_unknown_key_is_refused(
    ssh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "other"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(command, check=True)
    monkeypatch.setenv("EMBEDCACHE_SSH_KEY", str(key))
    with pytest.raises(RemoteError, match="does not accept your key"):
        list(open_remote(f"{ssh}/x").list("spaces/"))


def test_an_interrupted_push_to_a_folder_leaves_no_half_segment(tmp_path: Path) -> None:
    a = two_segments(tmp_path / "a")
    broken = fakes.Flaky(fakes.folder(tmp_path / "shared"), fakes.since(20, "amid"))
    with pytest.raises(Unreachable):
        push(a, broken)
    assert verify(Cache.open(tmp_path / "shared")).clean
    push(a, str(tmp_path / "shared"))
    assert verify(Cache.open(tmp_path / "shared")).clean
    assert Cache.open(tmp_path / "shared").spaces()[0].digests().shape == (5, 32)


@pytest.mark.parametrize("what", ["link", "file"])
def test_what_stands_in_the_place_of_a_folder_is_listed_as_unseen(
    what: str, tmp_path: Path
) -> None:
    remote = fakes.folder(tmp_path / "shared")
    for key in ("faces/zarr.json", "spaces/x/segments/zarr.json", "refs/r.json"):
        remote.create(key, b"{}")
    for place in ("faces", "spaces/x", "refs"):
        path = tmp_path / "shared" / place
        path.rename(tmp_path / "moved")
        if what == "link":
            path.symlink_to(tmp_path / "moved")
        else:
            path.write_bytes(b"")
        for prefix in (f"{place}/", f"{place}/segments/"):
            [entry] = remote.list(prefix)
            assert (entry.key, entry.size) == (place, UNSEEN)
        for folder in (place, f"{place}/segments"):
            assert remote.leftovers(folder) == []
        path.unlink()
        (tmp_path / "moved").rename(path)
    assert [entry.key for entry in remote.list("faces/")] == ["faces/zarr.json"]
