"""What killed processes left on a shared folder: its URL shows it, and the next push clears it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedcache import disk
from embedcache.sharing.share import push
from embedcache.sharing.survey import verify_remote
from embedcache.store.layout import OLD_FORMAT, root_document
from embedcache.store.zarr_json import encode_document
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from embedcache.upkeep.verify import verify
from tests.sharing.members import SPEC, Make
from tests.stores import photos

HERE = Path(__file__).parents[2]


def killed(code: str, *arguments: Path | str) -> str:
    """What a process prints that is killed at the end of `code`."""
    lines = ["import os, sys", "from pathlib import Path", "from embedcache import disk", code]
    code = "\n".join([*lines, "sys.stdout.flush()", "os.kill(os.getpid(), 9)"])
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=HERE).stdout.strip()


def left_beside(place: Path) -> Path:
    """A temporary name beside `place` of a process that was killed."""
    code = "path = disk.temporary_beside(Path(sys.argv[1])); path.write_bytes(b'half'); print(path)"
    return Path(killed(code, place))


@pytest.mark.parametrize("name", ["zarr.json", "refs/paper.json", "spaces/x/segments/y.json"])
def test_what_a_killed_process_left_is_found_by_the_folder_and_by_its_url(
    name: str, tmp_path: Path, make: Make
) -> None:
    folder = tmp_path / "shared"
    write_ref(a := make("a", [0, 1]), "paper")
    push(a, str(folder))
    place = folder / name.replace("/x/", f"/{SPEC.digest}/")
    left = left_beside(place).relative_to(folder).as_posix()
    mine = disk.temporary_beside(place)  # of a process that is alive
    mine.write_bytes(b"half")
    assert [found.path for found in verify(folder).findings] == [left]
    [finding] = verify_remote(f"file://{folder}").findings
    assert finding.startswith(f"{left} was left by a process that has ended")
    assert f"'embedcache push DIR {folder}' removes it" in finding
    push(a, str(folder))
    assert not (folder / left).exists()
    assert mine.exists()
    assert verify(folder).clean
    assert verify_remote(f"file://{folder}").clean


def test_the_push_of_another_member_clears_what_a_killed_one_left_in_every_place(
    tmp_path: Path, make: Make
) -> None:
    folder = tmp_path / "shared"
    a, b = make("a", [0, 1]), make("b", [1, 2])
    a.record_photos("f", ["p0"], photos(0))
    forget(a, ["p0"])
    push(a, str(folder))
    left = []
    for name in ("refs/r.json", "forgotten/t.json", "remembered/l.json", "photos/zarr.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        left.append(left_beside(folder / name))
    code = (
        "from embedcache.remotes.folder import LocalFiles\n"
        "from embedcache.remotes.files import FilesRemote\n"
        "LocalFiles.rename = lambda self, path, target: os.kill(os.getpid(), 9)\n"
        "remote = FilesRemote(LocalFiles(Path(sys.argv[1])), 'x', staging='0123abcd')\n"
        "remote.create_once('removed/00000001/entry.json', b'half')"
    )
    killed(code, folder)
    claim = left[0].with_name(left[0].name.replace(".r.", ".s."))
    claim.mkdir()
    (claim / "s.json").write_bytes(b"half")
    (claim / "claimed").write_bytes(b"")
    entries = list((folder / "removed").glob(".entry-*"))
    assert len(entries) == 1
    assert len(verify_remote(f"file://{folder}").findings) == len(left) + 2
    push(b, str(folder))
    assert not any(path.exists() for path in (*left, *entries, claim))
    assert verify_remote(f"file://{folder}").clean


def test_a_push_leaves_names_of_others_and_what_may_hold_rows(tmp_path: Path, make: Make) -> None:
    folder = tmp_path / "shared"
    a = make("a", [0, 1])
    push(a, str(folder))
    refs, segments = folder / "refs", folder / "spaces" / SPEC.digest / "segments"
    refs.mkdir(exist_ok=True)
    mark = left_beside(refs / "r.json").name.removeprefix(".r.json.")
    draft = segments / f".draft-20260101T000000000000-0123abcd-{mark}"
    draft.mkdir()
    stays = [refs / ".git", refs / f".notes.txt.{mark}", refs / f".r.json.{mark[:8]}", draft]
    for path in stays[:3]:
        path.write_text("theirs")
    push(a, str(folder))
    assert all(path.exists() for path in stays)
    [finding] = verify_remote(f"file://{folder}").findings
    assert f"'embedcache compact {folder}' keeps its rows" in finding


def test_what_was_left_elsewhere_is_cleared_once_it_is_an_hour_old(
    tmp_path: Path, make: Make
) -> None:
    """By the clock of the file system: whether its maker lives cannot be seen from here."""
    folder = tmp_path / "shared"
    a = make("a", [0, 1])
    push(a, str(folder))
    (folder / "refs").mkdir(exist_ok=True)
    old, young = (folder / "refs" / f".r.json.{n}-00000000-7-7" for n in ("0123abcd", "0123abce"))
    for path, age in ((old, 3700), (young, 60)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    push(a, str(folder))
    assert not old.exists()
    assert young.exists()


def test_a_shared_folder_of_format_1_is_brought_over_inside_it(tmp_path: Path, make: Make) -> None:
    folder = tmp_path / "shared"
    a = make("a", [0, 1])
    push(a, str(folder))
    (folder / "zarr.json").write_bytes(encode_document(root_document(OLD_FORMAT)))
    a.record_photos("f", ["p0"], photos(0))
    forget(a, ["p0"])
    assert not push(a, str(folder), purge=True).problems
    assert (folder / "zarr.json").read_bytes() == encode_document(root_document())
    assert verify(folder).clean
