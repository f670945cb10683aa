"""A shared copy that is damaged or incomplete: reported, left out, repaired."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import RemoteError
from embedcache.remotes.folder import LocalFiles
from embedcache.remotes.patience import Patient
from embedcache.remotes.remote import Remote
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.upkeep.pinning import write_ref
from tests import fakes
from tests.sharing.members import SPEC, Make, held
from tests.stores import photos


@pytest.mark.parametrize("some", [False, True])
def test_a_damaged_segment_is_not_counted_and_its_rows_come_from_another(
    some: bool, tmp_path: Path, make: Make
) -> None:
    a, b, c = make("a", [0, 1, 2], [9]), make("b", [1, 2, 3]), make("c")
    folder = tmp_path / "shared"
    push(a, str(folder))
    [theirs] = b.space(SPEC).segments()  # as if both had pushed at the same moment
    space = folder / "spaces" / SPEC.digest / "segments"
    shutil.copytree(theirs.folder, space / theirs.id)
    [damaged] = [s for s in a.space(SPEC).segments() if s.manifest.n_ok == 3]
    shard = space / damaged.id / "embedding" / "c" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    raw[:96] = bytes(byte ^ 1 for byte in raw[:96])
    shard.write_bytes(raw)
    wanted = photos(0, 1, 2, 9) if some else None
    came = pull(str(folder), c, photos=wanted)
    assert held(c) == ({1, 2, 9} if some else {1, 2, 3, 9})
    assert came.rows == len(held(c))
    assert came.segments == (2 if some else 3)
    assert [damaged.id in problem for problem in came.problems] == [True]
    again = pull(str(folder), c, photos=wanted)
    assert (again.rows, again.segments, again.bytes) == (0, 0, 0)


def test_a_damaged_ref_is_reported_as_damaged(tmp_path: Path, make: Make) -> None:
    a, b, folder = make("a", [0, 1]), make("b"), tmp_path / "shared"
    write_ref(a, "paper")
    push(a, str(folder))
    assert pull(str(folder), b, ref="paper").rows == 2
    assert pull(str(folder), b, ref="paper").already_there == 2
    path = folder / "refs" / "paper.json"
    path.write_text(path.read_text().replace("paper", "paxer"))
    with pytest.raises(RemoteError, match=r"refs/paper\.json .* is left out"):
        pull(str(folder), make("c"), ref="paper")


@pytest.mark.parametrize("what", ["folder", "manifest", "link"])
def test_unreadable_segments_are_named_and_the_rest_comes(
    what: str, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, folder = make("a", [0, 1], [2]), make("b"), tmp_path / "shared"
    push(a, str(folder))
    [closed] = [s for s in a.space(SPEC).segments() if s.manifest.n_ok == 2]
    place = folder / "spaces" / SPEC.digest / "segments" / closed.id
    if what == "link":
        place.rename(tmp_path / "moved")
        place.symlink_to(tmp_path / "moved")
    refused = place / "manifest.json" if what == "manifest" else place

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *more: Any, **options: Any) -> Any:
            folder_fd = options.get("dir_fd")
            within = "" if folder_fd is None else os.readlink(f"/proc/self/fd/{folder_fd}")
            if what != "link" and not isinstance(path, int) and Path(within, path) == refused:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *more, **options)

        return call

    monkeypatch.setattr(os, "open", guarded(os.open))
    monkeypatch.setattr(os, "scandir", guarded(os.scandir))
    found = verify_remote(str(folder))
    assert not found.clean
    assert found.segments == 1
    assert closed.id in str(found)
    came = pull(str(folder), b)
    assert held(b) == {2}
    assert [closed.id in problem for problem in came.problems] == [True]


def test_the_next_push_adds_a_missing_file(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1, 2]), make("b")
    push(a, remote)
    [shard] = [e.key for e in remote.list("spaces/") if "/embedding/c/" in e.key]
    if isinstance(remote, Patient):
        remote.delete(shard)
    else:
        _remove(remote, shard)
    assert pull(remote, b).problems
    assert "lacked 1 file" in str(push(a, remote))
    came = pull(remote, b)
    assert (came.rows, came.problems) == (3, ())


def test_a_segment_there_that_lost_its_manifest_is_pushed_again(remote: Remote, make: Make) -> None:
    a, b = make("a", [0, 1, 2]), make("b")
    push(a, remote)
    [manifest] = [e.key for e in remote.list("spaces/") if e.key.endswith("manifest.json")]
    if isinstance(remote, Patient):
        remote.delete(manifest)
    else:
        _remove(remote, manifest)
    assert pull(remote, b).rows == 0
    lost = verify_remote(remote)
    assert (lost.segments, lost.unfinished, lost.clean) == (0, 1, True)
    push(a, remote)
    came = pull(remote, b)
    assert (came.rows, came.problems) == (3, ())
    assert verify_remote(remote).clean


def _remove(remote: Remote, key: str) -> None:
    path = Path(remote.name) / key
    if path.exists():
        path.unlink()
    else:
        remote.delete(key)


def flip(path: Path, at: int = 5) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


# The vectors, a column, and the two documents that other files are checked by.
FILES = ("embedding/c/0/0", "digest/c/0/0", "zarr.json", "manifest.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("forgets_what_it_saw", [False, True])
def test_a_push_heals_a_damaged_segment_of_a_folder(
    file: str, forgets_what_it_saw: bool, tmp_path: Path, make: Make
) -> None:
    a, b, folder = make("a", [0, 1, 2], [9]), make("b"), tmp_path / "shared"
    a.record_photos("f", ["p0"], photos(0))
    push(a, str(folder), with_ids=True)
    segment = a.space(SPEC).segments()[0]
    flip(folder / "spaces" / SPEC.digest / "segments" / segment.id / file)
    [ids] = a.photo_segments()
    flip(folder / "photos" / "segments" / ids.id / "id_text" / "c" / "0")
    if forgets_what_it_saw:
        shutil.rmtree(a.local)
    planned = push(a, str(folder), with_ids=True, dry_run=True)
    done = push(a, str(folder), with_ids=True)
    assert planned.notes == done.notes
    assert sorted(done.notes) == sorted(
        f"segment {one.id} there had 1 file with wrong bytes" for one in (segment, ids)
    )
    assert verify_remote(f"file://{folder}").clean
    assert done.segments == 0
    assert pull(str(folder), b).problems == ()
    assert held(b) == {0, 1, 2, 9}
    assert push(a, str(folder), with_ids=True).notes == ()


def test_a_push_that_sent_or_fetched_a_segment_reads_it_no_more(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, folder = make("a", [0, 1, 2], [9]), make("b"), tmp_path / "shared"
    push(a, str(folder))
    pull(str(folder), b)
    read: list[str] = []
    whole = LocalFiles.read

    def noted(self: LocalFiles, path: str, start: int) -> Iterator[bytes]:
        read.append(path)
        return whole(self, path, start)

    monkeypatch.setattr(LocalFiles, "read", noted)
    for cache in (a, b):
        push(cache, str(folder))
    assert [path for path in read if "/embedding/" in path] == []
    shutil.rmtree(b.local)
    push(b, str(folder))
    n_read = len(read)
    assert len([path for path in read if "/embedding/c/" in path]) == 2
    push(b, str(folder))
    assert [path for path in read[n_read:] if "/segments/" in path] == []


def test_a_push_heals_elsewhere_what_is_listed_otherwise_than_when_it_was_sent(make: Make) -> None:
    pytest.importorskip("obstore")
    a, remote = make("a", [0, 1, 2]), fakes.memory()
    push(a, remote)
    push(a, remote)  # the documents of the space are read, and remembered
    counted = fakes.counted(remote)
    push(a, counted)
    assert counted.n_requests <= 9
    [segment] = a.space(SPEC).segments()
    key = f"spaces/{SPEC.digest}/segments/{segment.id}/row_crc/c/0"
    raw = bytearray(b"".join(remote.blocks(key)))
    raw[0] ^= 1
    remote.write(key, lambda: iter([bytes(raw)]), size=len(raw))
    assert push(a, remote).notes == (f"segment {segment.id} there had 1 file with wrong bytes",)
    assert verify_remote(remote).clean
    shutil.rmtree(a.local)  # what was never seen is believed: it may be far away
    counted = fakes.counted(remote)
    push(a, counted)
    assert counted.n_requests <= 16


def test_another_segment_of_the_same_id_is_refused_and_stays(tmp_path: Path, make: Make) -> None:
    a, b, folder = make("a", [0, 1, 2]), make("b", [3, 4]), tmp_path / "shared"
    push(a, str(folder))
    [mine], [other] = a.space(SPEC).segments(), b.space(SPEC).segments()
    path = folder / "spaces" / SPEC.digest / "segments" / mine.id / "manifest.json"
    raw = (other.folder / "manifest.json").read_bytes()
    path.write_bytes(raw)
    [problem] = push(a, str(folder)).problems
    assert "another segment here has the same id" in problem
    assert path.read_bytes() == raw
