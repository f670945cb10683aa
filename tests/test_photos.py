import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from embedcache import photos as photos_module
from embedcache.errors import PhotosError
from embedcache.photos import Memo, Photos

LONG_AGO = time.time() - 3600


def write(path: Path, data: bytes = b"photo") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def test_a_folder_is_searched_recursively_and_ids_are_relative_paths(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/x.PNG", "c/x.PNG", "notes.txt", ".hidden.jpg", ".git/y.jpg"):
        write(tmp_path / name)
    found = Photos.read(tmp_path)
    assert found.ids == ("a/x.PNG", "b.jpg", "c/x.PNG")
    assert [Path(p) for p in found.paths] == [tmp_path / i for i in found.ids]


def test_a_symlink_loop_ends(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert Photos.read(tmp_path).ids == ("a/x.jpg",)


def test_a_linked_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "x.jpg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    assert Photos.read(tmp_path / "photos").ids == ("link/x.jpg",)


def test_a_name_that_is_no_unicode_gets_a_readable_id(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(path, "wb") as file:
        file.write(b"photo")
    found = Photos.read(tmp_path)
    assert found.ids == ("caf\\xe9.jpg",)
    assert found.digests().readable.all()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_gives_ids_and_paths_relative_to_itself(tmp_path: Path, suffix: str) -> None:
    table = pl.DataFrame({"user": ["007", "8", "9"], "pic": ["p/a.jpg", "p/b.jpg", None]})
    path = tmp_path / f"users{suffix}"
    if suffix == ".csv":
        table.write_csv(path)
    else:
        table.write_parquet(path)
    found = Photos.read(path, photo_column="pic", id_column="user")
    assert found.ids == ("007", "8")
    assert found.paths == (str(tmp_path / "p/a.jpg"), str(tmp_path / "p/b.jpg"))
    assert found.n_without_photo == 1


def test_two_places_have_two_scopes_which_do_not_tell_the_place(tmp_path: Path) -> None:
    write(tmp_path / "one" / "photos" / "a.jpg")
    write(tmp_path / "two" / "photos" / "a.jpg")
    one, two = (Photos.read(tmp_path / n / "photos").scope for n in ("one", "two"))
    assert one != two
    assert one.startswith("photos-")
    assert "/" not in one
    assert Photos.read(tmp_path / "one" / "photos" / "").scope == one


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ({"id": ["a"], "photo": ["a.jpg"]}, {}, "no column 'photo_id'; it has id, photo"),
        ({"photo_id": ["a"], "pic": ["a.jpg"]}, {}, "no column 'photo'"),
        ({"photo_id": ["a", "a"], "photo": ["a.jpg", "b.jpg"]}, {}, "more than one photo"),
        ({"photo_id": ["a", None], "photo": ["a.jpg", "b.jpg"]}, {}, "1 rows have no"),
        ({"photo_id": ["a"], "photo": [""]}, {}, "names no photo"),
        ({"photo_id": ["a"], "photo": ["a\0.jpg"]}, {}, "zero byte"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, rows: dict[str, list[str]], options: dict[str, str], words: str
) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame(rows).write_parquet(path)
    with pytest.raises(PhotosError, match=words):
        Photos.read(path, **options)


def test_empty_missing_and_unknown_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PhotosError, match="no photos in"):
        Photos.read(tmp_path)
    with pytest.raises(PhotosError, match="no such folder or table"):
        Photos.read(tmp_path / "nowhere")
    with pytest.raises(PhotosError, match="neither a folder nor a table"):
        Photos.read(write(tmp_path / "x.json"))
    with pytest.raises(PhotosError, match="cannot read the table"):
        Photos.read(write(tmp_path / "x.parquet", b"no parquet"))


def test_digests_are_of_the_bytes_and_remembered(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jpg", b"one")
    write(tmp_path / "in/b.jpg", b"two")
    table, memo = Photos.read(tmp_path / "in"), tmp_path / "memo.npz"
    first = table.digests(memo)
    assert first.n_read == 2
    assert [d.tobytes() for d in first.value] == [
        hashlib.sha256(data).digest() for data in (b"one", b"two")
    ]
    again = table.digests(memo)
    assert again.n_read == 0
    assert (again.value == first.value).all()


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "in/a.jpg", b"one")
    table, memo = Photos.read(tmp_path / "in"), tmp_path / "memo.npz"
    table.digests(memo)
    path.write_bytes(b"two")  # same size
    os.utime(path, (LONG_AGO + 5, LONG_AGO + 5))
    found = table.digests(memo)
    assert found.n_read == 1
    assert found.value[0].tobytes() == hashlib.sha256(b"two").digest()


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    path = write(tmp_path / "in/a.jpg", b"one")
    os.utime(path)
    table, memo = Photos.read(tmp_path / "in"), tmp_path / "memo.npz"
    table.digests(memo)
    path.write_bytes(b"two")  # perhaps within the same tick of the clock
    assert table.digests(memo).value[0].tobytes() == hashlib.sha256(b"two").digest()


def test_what_cannot_be_read_gets_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gone", "folder", "large", "pipe", "fine"):
        write(tmp_path / f"in/{name}.jpg", b"x" * (9 if name == "large" else 1))
    table = Photos.read(tmp_path / "in")
    (tmp_path / "in/gone.jpg").unlink()
    (tmp_path / "in/folder.jpg").unlink()
    (tmp_path / "in/folder.jpg").mkdir()
    (tmp_path / "in/pipe.jpg").unlink()
    os.mkfifo(tmp_path / "in/pipe.jpg")
    monkeypatch.setattr(photos_module, "MAX_FILE_BYTES", 8)
    found = table.digests()
    by_id = {table.ids[i]: reason for i, reason in found.reasons.items()}
    assert by_id == {
        "gone.jpg": "vanished",
        "folder.jpg": "unreadable",
        "large.jpg": "too_large_file",
        "pipe.jpg": "unreadable",
    }
    assert found.readable.sum() == 1


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_a_damaged_memo_costs_time_and_nothing_else(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "in/a.jpg", b"one")
    memo = write(tmp_path / "memo.npz", content)
    table = Photos.read(tmp_path / "in")
    assert table.digests(memo).n_read == 1
    assert table.digests(memo).n_read == 0


def test_the_memo_keeps_names_of_any_encoding(tmp_path: Path) -> None:
    name = os.fsdecode(b"/caf\xe9.jpg")
    status = os.stat(write(tmp_path / "x.jpg"))
    memo = Memo.read(tmp_path / "memo.npz")
    memo.put(name, status, b"d" * 32, time.time_ns())
    memo.write()
    assert Memo.read(tmp_path / "memo.npz").get(name, status) == b"d" * 32


def test_photos_made_for_tests_differ(make_photos: Callable[..., Path]) -> None:
    found = Photos.read(make_photos(3)).digests()
    assert len({row.tobytes() for row in found.value}) == 3
