import hashlib
import os
from pathlib import Path

import polars as pl
import pytest

from embedcache import texts
from embedcache.errors import PhotosError
from embedcache.photos import digests as digests_module
from embedcache.photos import rows
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from tests.photos.files import write


def test_a_folder_is_searched_recursively_and_ids_are_relative_paths(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/x.PNG", "c/x.PNG", "notes.txt", ".hidden.jpg", ".git/y.jpg"):
        write(tmp_path / name)
    found = Photos.read(tmp_path)
    assert found.ids == ("a/x.PNG", "b.jpg", "c/x.PNG")
    assert [Path(p) for p in found.paths] == [tmp_path / i for i in found.ids]


def test_ids_are_sorted_as_whole_paths_whatever_the_folders_are_called(tmp_path: Path) -> None:
    names = ["a-b.jpg", "a.jpg", "a/b.jpg", "a/-/c.jpg", "a0/x.jpg", "A/z.jpg", "a /y.jpg"]
    names += ["a!/b/c.jpg", "a!/b.jpg", "a!/b0.jpg", "ä/x.jpg", "日本/x.jpg", "z.jpg", "😀/x.jpg"]
    for name in names:
        write(tmp_path / name)
    assert Photos.read(tmp_path).ids == tuple(sorted(names))


def test_many_photos_are_listed_and_read_like_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"a/x.jpg", b"caf\xe9.jpg", b"caf\\xe9.jpg", b"y.jpg", b"y.txt"):
        path = os.path.join(os.fsencode(tmp_path / "photos"), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(name)
    table = "photo_id,photo\nu1,photos/y.jpg\nu2,\nu3,/else/z.jpg\nu1,photos/y.jpg\n"
    (tmp_path / "t.csv").write_text(table)
    few = [Photos.read(tmp_path / name) for name in ("photos", "t.csv")]
    monkeypatch.setattr(texts, "MANY", 0)
    monkeypatch.setattr(rows, "BLOCK_ROWS", 2)
    many = [Photos.read(tmp_path / name) for name in ("photos", "t.csv")]
    for one, other in zip(few, many, strict=True):
        assert isinstance(one.ids, tuple)
        assert isinstance(other.ids, texts.Texts)
        assert one == other
        at = [len(one) - 1, 0]
        assert other.subset(at) == one.subset(at)
        some = Photos(other.ids[:2], other.paths[:2], other.scope)
        assert some.paths == [*one.paths[:2]]
    cache = Cache.open(tmp_path / "cache", create=True)
    digests = [found.digests(cache) for found in (few[0], many[0], many[0])]
    assert (digests[0].value == digests[1].value).all()
    assert (digests[2].value == digests[1].value).all()
    (tmp_path / "t.csv").write_text(f"{table}u3,other.jpg\n")
    with pytest.raises(PhotosError, match="1 id names more than one photo, the first is 'u3'"):
        Photos.read(tmp_path / "t.csv")


def test_a_symlink_loop_ends(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert Photos.read(tmp_path).ids == ("a/x.jpg",)


def test_a_linked_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "x.jpg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    assert Photos.read(tmp_path / "photos").ids == ("link/x.jpg",)


def test_a_name_that_is_not_unicode_gets_a_readable_id(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(path, "wb") as file:
        file.write(b"photo")
    found = Photos.read(tmp_path)
    assert found.ids == ("caf\\xe9.jpg",)
    assert found.digests().readable.all()


def test_two_names_never_share_an_id(tmp_path: Path) -> None:
    names = [b"caf\xe9.jpg", b"caf\\xe9.jpg", "café.jpg".encode(), "cafe\u0301.jpg".encode()]
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(name)
    found = Photos.read(tmp_path)
    by_path = {
        os.path.basename(os.fsencode(p)): i for i, p in zip(found.ids, found.paths, strict=True)
    }
    assert by_path[b"caf\\xe9.jpg"] == "caf\\xe9.jpg"
    assert len(set(found.ids)) == 4
    digests = found.digests().value
    for name, digest in zip((os.fsencode(p) for p in found.paths), digests, strict=True):
        assert digest.tobytes() == hashlib.sha256(os.path.basename(name)).digest()


def test_links_to_themselves_and_folders_that_cannot_be_listed_are_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.jpg")
    write(tmp_path / "closed/b.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    real = os.scandir

    def scandir(path: str) -> object:
        if "closed" in path:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = Photos.read(tmp_path)
    assert found.ids == ("a.jpg", "closed/", "loop.jpg")
    assert found.digests().reasons == {1: "unreadable", 2: "unreadable"}


def test_listing_a_large_folder_reports_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedcache.photos import folder

    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
        write(tmp_path / name)
    monkeypatch.setattr(folder, "_TICK_SECONDS", 0.0)
    shown: list[int] = []
    Photos.read(tmp_path, progress=shown.append)
    assert shown[-1] == 3
    assert shown == sorted(shown)


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


def test_two_folders_have_two_scopes_which_do_not_reveal_their_paths(tmp_path: Path) -> None:
    write(tmp_path / "one" / "photos" / "a.jpg")
    write(tmp_path / "two" / "photos" / "a.jpg")
    one, two = (Photos.read(tmp_path / n / "photos").scope for n in ("one", "two"))
    assert one != two
    assert one.startswith("photos-")
    assert "/" not in one
    assert Photos.read(tmp_path / "one" / "photos" / "").scope == one


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"name": ["a"], "photo": ["a.jpg"]}, "no column photo_id, user_id or id; it has name, ph"),
        ({"photo_id": ["a"], "pic": ["a.jpg"]}, "no column 'photo'"),
        ({"photo_id": ["a", "a"], "photo": ["a.jpg", "b.jpg"]}, "more than one photo"),
        ({"photo_id": ["a", None], "photo": ["a.jpg", "b.jpg"]}, "1 row without 'photo_id'"),
        ({"photo_id": ["a"], "photo": [""]}, "names no photo"),
        ({"photo_id": ["a"], "photo": ["a\0.jpg"]}, "zero byte"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, rows: dict[str, list[str]], words: str
) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame(rows).write_parquet(path)
    with pytest.raises(PhotosError, match=words):
        Photos.read(path)


def test_empty_missing_and_unknown_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PhotosError, match="no photos in"):
        Photos.read(tmp_path)
    with pytest.raises(PhotosError, match="no such folder or table"):
        Photos.read(tmp_path / "nowhere")
    with pytest.raises(PhotosError, match="neither a folder nor a table"):
        Photos.read(write(tmp_path / "x.json"))
    with pytest.raises(PhotosError, match="cannot be read as Parquet"):
        Photos.read(write(tmp_path / "x.parquet", b"no parquet"))


def test_files_without_a_known_suffix_are_sniffed_and_others_counted(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(300)
    for name in ("noext", "a.jpg_large", "b.jpg?width=100", "c.weird"):
        write(tmp_path / name, png)
    for name in ("raw.dng", "notes.txt", "more.txt", "d.jxl", "README"):
        write(tmp_path / name, b"II*\0" if name == "raw.dng" else b"no picture")
    found = Photos.read(tmp_path)
    assert found.ids == ("a.jpg_large", "b.jpg?width=100", "c.weird", "noext")
    assert found.ignored == {".dng": 1, ".txt": 2, ".jxl": 1, "": 1}
    (remark,) = found.remarks
    assert remark.startswith("ignored 5 other files (2 .txt, ")
    assert "1 without suffix" in remark


def test_a_folder_of_other_files_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    with pytest.raises(PhotosError, match=r"no photos in .*Found 1 other file \(1 \.txt\)"):
        Photos.read(tmp_path)


def test_columns_are_found_by_their_usual_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,file_name,user_id\nx,a.jpg,u1\n")
    found = Photos.read(tmp_path / "t.csv")
    assert (found.ids, found.column) == (("u1",), "file_name")
    assert found.remarks == ("t.csv: the ids are in column 'user_id'",)
    assert Photos.read(tmp_path / "t.csv", id_column="id").remarks == ()


def test_missing_photos_in_every_spelling_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("photo_id,photo\na,x.jpg\nb,NA\nc,\nd,nan\n\n# end\n")
    found = Photos.read(tmp_path / "t.csv")
    assert (found.ids, found.n_without_photo) == (("a",), 3)


def test_urls_are_refused_by_name_and_file_urls_are_paths(tmp_path: Path) -> None:
    for url in ("https://example.org/a.jpg", "s3://bucket/a.jpg", "data:x"):
        (tmp_path / "t.csv").write_text(f"photo_id,photo\na,{url}\n")
        with pytest.raises(PhotosError, match=r"holds addresses such as .*download them"):
            Photos.read(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("photo_id,photo\na,file:///x/a%20b.jpg\n")
    assert Photos.read(tmp_path / "t.csv").paths == ("/x/a b.jpg",)


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("with_ids", [True, False])
def test_photos_that_a_table_holds_are_read_from_it(tmp_path: Path, with_ids: bool) -> None:
    write(tmp_path / "c.jpg", b"on disk")
    image = [
        {"bytes": PNG + b"one", "path": "a.png"},
        {"bytes": None, "path": "c.jpg"},
        {"bytes": PNG + b"two", "path": "d.png"},
        {"bytes": None, "path": None},
    ]
    columns: dict[str, object] = {"image": image, "label": [1, 0, 1, 0]}
    if with_ids:
        columns["id"] = ["u1", "u2", "u3", "u4"]
    pl.DataFrame(columns).write_parquet(tmp_path / "t.parquet")
    found = Photos.read(tmp_path / "t.parquet")
    assert found.ids == (("u1", "u2", "u3") if with_ids else ("a.png", "c.jpg", "d.png"))
    assert found.n_without_photo == 1
    contents = [PNG + b"one", b"on disk", PNG + b"two"]
    assert [digests_module.read_file(path) for path in found.paths] == contents
    cache = Cache.open(tmp_path / "cache", create=True)
    for memory in (None, cache, cache):
        digests = found.digests(memory)
        assert digests.readable.all()
        assert [d.tobytes() for d in digests.value] == [
            hashlib.sha256(content).digest() for content in contents
        ]


def test_bytes_are_photos_or_paths(tmp_path: Path) -> None:
    table = pl.DataFrame({"photo_id": ["a", "b"], "photo": [PNG + b"one", b"x/c.jpg"]})
    table.write_parquet(tmp_path / "t.parquet")
    found = Photos.read(tmp_path / "t.parquet")
    assert digests_module.read_file(found.paths[0]) == PNG + b"one"
    assert found.paths[1] == str(tmp_path / "x/c.jpg")


def test_more_photos_than_memory_should_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.photos.rows.MAX_INLINE_BYTES", 10)
    table = pl.DataFrame({"photo_id": ["a"], "photo": [PNG + b"one"]})
    table.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(PhotosError, match="split it, or write the photos to files"):
        Photos.read(tmp_path / "t.parquet")


def test_a_table_whose_files_are_mostly_missing_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    rows = "".join(f"{name},{name}.jpg\n" for name in "abcd")
    (tmp_path / "t.csv").write_text(f"photo_id,photo\n{rows}")
    with pytest.raises(PhotosError, match=r"3 of 4 files not found .*b\.jpg.*column 'photo'"):
        Photos.read(tmp_path / "t.csv").digests()
    for name in "bc":
        write(tmp_path / f"{name}.jpg")
    assert Photos.read(tmp_path / "t.csv").digests().reasons == {3: "vanished"}


def test_a_data_frame_is_no_photo_table() -> None:
    frame = pl.DataFrame({"photo_id": ["a"], "photo": ["a.jpg"]})
    with pytest.raises(PhotosError, match=r"got a DataFrame. Write a DataFrame to a \.csv beside"):
        Photos.read(frame)  # type: ignore[arg-type]
