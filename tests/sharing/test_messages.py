"""What is said of a damaged shared copy or cache: the file, and one command to run next."""

import re
from pathlib import Path

import pytest

from embedcache.errors import Damaged, RemoteError
from embedcache.remotes.remote import Remote
from embedcache.sharing.joining import compact_remote
from embedcache.sharing.share import pull, push
from embedcache.sharing.survey import verify_remote
from embedcache.store.cache import Cache
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.verify import verify
from tests.sharing.members import SPEC, Make
from tests.sharing.test_damaged import flip
from tests.stores import DETECTOR, faces_of, photos


def test_a_compaction_of_a_damaged_copy_names_one_command(tmp_path: Path, make: Make) -> None:
    a, folder = make("a", [0, 1], [2]), tmp_path / "shared"
    push(a, str(folder))
    for segment in a.space(SPEC).segments():
        flip(folder / "spaces" / SPEC.digest / "segments" / segment.id / "embedding/c/0/0")
    with pytest.raises(RemoteError) as caught:
        compact_remote(str(folder), make("z"))
    text = str(caught.value)
    assert re.findall(r"'embedcache [^']*'", text) == [f"'embedcache verify file://{folder}'"]
    assert text.startswith("nothing was joined, for 2 problems: segment ")


def test_only_damage_is_advised_to_be_removed_and_pushed_again(tmp_path: Path, make: Make) -> None:
    a, folder = make("a", [0, 1], [2]), tmp_path / "shared"
    a.record_photos("f", ["1"], photos(1))
    push(a, str(folder))
    segment = a.space(SPEC).segments()[0]
    forget(a, ["1"])
    push(a, str(folder))
    found = verify_remote(str(folder))
    assert (len(found.findings), "To repair" in str(found)) == (1, False)
    push(a, str(folder), purge=True)
    place = next((folder / "spaces" / SPEC.digest / "segments").glob("2*"))
    (place / "extra").write_bytes(b"")
    for file in ("row_crc/c/0", "manifest.json"):
        raw = (place / file).read_bytes()
        flip(place / file)
        assert "To repair a segment, remove its folder there" in str(verify_remote(str(folder)))
        (place / file).write_bytes(raw)
    assert segment.id not in str(verify_remote(str(folder)))


@pytest.mark.parametrize("at", ["a key", "a value", "the end"])
@pytest.mark.parametrize("part", ["spaces", "faces"])
def test_a_changed_document_of_a_space_here_is_named_with_what_to_do(
    part: str, at: str, remote: Remote, make: Make
) -> None:
    a = make("a", [0, 1])
    with a.face_space(DETECTOR, create=True).writer(n_rows=1, about={}) as faces:
        faces.add(photos(0), faces_of([1]))
    push(a, remote)
    [path] = (a.path / part).glob("*/zarr.json")
    raw = path.read_bytes()
    words = {"a key": rb'"(dim|weights|mtcnn|kind)"', "a value": rb"0000000|\d", "the end": rb".\Z"}
    found = re.search(words[at], raw, re.DOTALL) or re.search(rb'"embedcache": \{\s+"(.)', raw)
    assert found
    flip(path, found.start() + 1 if at == "a key" else found.start())
    with pytest.raises(Damaged) as caught:
        pull(remote, Cache.open(a.path))
    assert str(path.parent) in str(caught.value)
    assert f"Run 'embedcache verify --repair {a.path}'" in str(caught.value)
    verify(a.path, repair=True)
    assert pull(remote, Cache.open(a.path)).problems == ()


@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "gone"])
@pytest.mark.parametrize("place", ["space", "segments", "root", "faces"])
def test_a_damaged_document_of_a_space_there_is_written_again(
    place: str, how: str, remote: Remote, make: Make
) -> None:
    a, b, c = make("a", [0, 1]), make("b", [2]), make("c")
    with a.face_space(DETECTOR, create=True).writer(n_rows=1, about={}) as faces:
        faces.add(photos(0), faces_of([1]))
    push(a, remote)
    [detector] = a.face_spaces()
    key = {
        "space": f"spaces/{SPEC.digest}/zarr.json",
        "segments": f"spaces/{SPEC.digest}/segments/zarr.json",
        "root": "spaces/zarr.json",
        "faces": f"faces/{detector.digest}/zarr.json",
    }[place]
    raw = b"".join(remote.blocks(key))
    remote.delete(key)
    wrong = {"flipped": raw.replace(b"3", b"2", 1), "cut": raw[:9], "longer": raw + b" "}
    if how != "gone":
        assert remote.create(key, wrong[how])
        assert verify_remote(remote).findings
    done = push(a, remote)
    assert done.notes == (
        () if how == "gone" else (f"{key} there was damaged: it is written again",)
    )
    assert b"".join(remote.blocks(key)) == raw
    assert verify_remote(remote).clean
    assert push(a, remote).notes == ()
    assert push(b, remote).problems == ()
    assert pull(remote, c).problems == ()


@pytest.mark.parametrize("what", ["link", "file"])
@pytest.mark.parametrize("part", ["faces", "refs", "photos", "forgotten", "removed"])
def test_what_stands_in_the_place_of_a_folder_there_is_found(
    part: str, what: str, tmp_path: Path, make: Make
) -> None:
    a, folder = make("a", [0, 1]), tmp_path / "shared"
    a.record_photos("f", ["1"], photos(1))
    push(a, str(folder))
    forget(a, ["1"])
    push(a, str(folder), purge=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / part).rename(tmp_path / "moved")
    if what == "link":
        (folder / part).symlink_to(tmp_path / "moved")
    else:
        (folder / part).write_bytes(b"")
    if part in ("forgotten", "removed"):
        with pytest.raises(RemoteError, match=part):
            verify_remote(str(folder))
    else:
        [finding] = verify_remote(str(folder)).findings
        assert finding.startswith(f"{part} of {folder} is left out: it is ")
