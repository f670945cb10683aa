import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embedcache import texts
from embedcache.errors import PhotosError
from embedcache.photos import digests as digests_module
from embedcache.photos import rows
from embedcache.photos.memo import DigestMemo
from embedcache.photos.table import Photos

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
    digests = [found.digests(tmp_path / "memo") for found in (few[0], many[0], many[0])]
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
    for memo in (None, tmp_path / "memo.npz", tmp_path / "memo.npz"):
        digests = found.digests(memo)
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
    monkeypatch.setattr(digests_module, "MAX_FILE_BYTES", 8)
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
def test_a_damaged_memo_only_costs_time(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "in/a.jpg", b"one")
    memo = write(tmp_path / "memo.npz", content)
    table = Photos.read(tmp_path / "in")
    assert table.digests(memo).n_read == 1
    assert table.digests(memo).n_read == 0


def test_the_memo_keeps_names_of_any_encoding(tmp_path: Path) -> None:
    name = os.fsdecode(b"/caf\xe9.jpg")
    memo = DigestMemo(tmp_path / "memo.npz")
    memo.put(name, 5, 7, b"d" * 32, time.time_ns())
    memo.write()
    digests, known = look(
        DigestMemo(tmp_path / "memo.npz"), [name, "/other"], *sizes([5, 5], [7, 7])
    )
    assert digests[0].tobytes() == b"d" * 32
    assert known.tolist() == [True, False]


def test_the_memo_replaces_the_digest_of_a_changed_file(tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path / "memo.npz")
    now = time.time_ns()
    for name in ("a", "b", "c"):
        memo.put(f"/{name}", 5, 7, name.encode() * 32, now)
    memo.write()
    memo = DigestMemo(tmp_path / "memo.npz")
    memo.put("/b", 6, 8, b"B" * 32, now)
    memo.put("/d", 5, 7, b"d" * 32, now)
    memo.write()
    again = DigestMemo(tmp_path / "memo.npz")
    digests, known = look(again, ["/d", "/b", "/a", "/c"], *sizes([5, 6, 5, 5], [7, 8, 7, 7]))
    assert known.all()
    assert [row.tobytes()[:1] for row in digests] == [b"d", b"B", b"a", b"c"]
    for size, mtime in ((5, 8), (6, 7)):
        assert not look(again, ["/b"], *sizes([size], [mtime]))[1].any()


def test_processes_that_write_one_memo_keep_what_each_learned(tmp_path: Path) -> None:
    now = time.time_ns()
    memos = {name: DigestMemo(tmp_path / "memo.npz") for name in "abc"}
    for name, memo in memos.items():
        memo.put(f"/{name}", 5, 7, name.encode() * 32, now)
        memo.write()
    memos["a"].put("/d", 5, 7, b"d" * 32, now)
    memos["a"].write()
    digests, known = look(
        DigestMemo(tmp_path / "memo.npz"), ["/a", "/b", "/c", "/d"], *sizes([5] * 4, [7] * 4)
    )
    assert known.all()
    assert [row.tobytes()[:1] for row in digests] == [b"a", b"b", b"c", b"d"]


def test_a_kernel_file_that_gives_no_bytes_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    path = write(tmp_path / "in/log.jpg")

    class Silent(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:  # as /proc/kmsg answers
            return None  # type: ignore[return-value]

    monkeypatch.setattr(digests_module, "open", lambda fd, *_, **__: Silent(fd), raising=False)
    with pytest.raises(BlockingIOError) as caught:
        digests_module.read_file(str(path))
    assert digests_module.reason_of(caught.value) == "unreadable"
    assert Photos.read(tmp_path / "in").digests().reasons == {0: "unreadable"}


def test_a_file_longer_than_it_says_is_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "in/endless.jpg", b"x" * 100)
    monkeypatch.setattr(digests_module, "MAX_FILE_BYTES", 64)
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result([*real(fd)[:6], 0, *real(fd)[7:]]))
    with pytest.raises(OSError, match="too large") as caught:
        digests_module.read_file(str(path))
    assert digests_module.reason_of(caught.value) == "too_large_file"


def look(
    memo: DigestMemo, names: list[str], sizes: np.ndarray, mtimes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is remembered of files that have these sizes and times: (digests, which are known)."""
    found = memo.recall(names)
    return found.digests, (found.sizes == sizes) & (found.mtimes == mtimes)


def sizes(sizes: list[int], mtimes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(sizes, np.int64), np.array(mtimes, np.int64)


def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Photos:
    """3,000 small files, which take many ticks of the clock to read."""
    monkeypatch.setattr(digests_module, "_TICK_SECONDS", 0.01)
    for i in range(3000):
        write(tmp_path / f"in/{i:04}.jpg", b"%d" % i)
    return Photos.read(tmp_path / "in")


def test_reading_stops_when_asked_and_keeps_what_it_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, memo = many(tmp_path, monkeypatch), tmp_path / "memo.npz"
    shown: list[tuple[int, int]] = []
    found = table.digests(
        memo,
        workers=2,
        progress=lambda *now: shown.append(now),
        stop=lambda: len(shown) >= 2 and shown[-1][0] > 0,
    )
    assert found.stopped
    assert 0 < len(found.unread) == 3000 - found.readable.sum()
    assert not found.reasons
    assert not found.readable[found.unread].any()
    assert found.n_read == found.readable.sum() > 0
    assert shown[-1] == (found.n_read, 3000)
    again = table.digests(memo)
    assert again.n_read == len(found.unread)
    assert not again.stopped
    assert (again.value[found.readable] == found.value[found.readable]).all()
    for i in (0, 1500, 2999):
        assert again.value[i].tobytes() == hashlib.sha256(b"%d" % i).digest()


def test_reading_stops_in_the_middle_of_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in/a.jpg", b"small")
    with open(tmp_path / "in/large.jpg", "wb") as file:
        file.truncate(200 * 2**20)
    asked: list[float] = []

    monkeypatch.setattr(digests_module, "_BLOCK_BYTES", 256)  # many seconds at this size

    def stop() -> bool:
        asked.append(time.monotonic())
        return len(asked) > 1

    found = Photos.read(tmp_path / "in").digests(stop=stop)
    assert time.monotonic() - asked[-1] < 0.5
    assert found.unread.tolist() == [1]
    assert found.readable.tolist() == [True, False]


def test_progress_is_reported_while_one_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in/a.jpg", b"x")
    real = digests_module._digest

    def slowly(path: str, halt: threading.Event) -> tuple[bytes, int]:
        time.sleep(0.6)
        return real(path, halt)

    monkeypatch.setattr(digests_module, "_digest", slowly)
    shown: list[tuple[int, int]] = []
    Photos.read(tmp_path / "in").digests(progress=lambda *now: shown.append(now))
    assert shown[-1] == (1, 1)
    assert shown.count((0, 1)) >= 3


def test_an_exception_while_reading_keeps_what_was_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, memo = many(tmp_path, monkeypatch), tmp_path / "memo.npz"

    def interrupt(done: int, n: int) -> None:
        if done > 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.digests(memo, progress=interrupt)
    assert table.digests(memo).n_read <= 2500


def test_photos_made_for_tests_differ(make_photos: Callable[..., Path]) -> None:
    found = Photos.read(make_photos(3)).digests()
    assert len({row.tobytes() for row in found.value}) == 3


def test_a_data_frame_is_no_photo_table() -> None:
    frame = pl.DataFrame({"photo_id": ["a"], "photo": ["a.jpg"]})
    with pytest.raises(PhotosError, match=r"got a DataFrame. Write a DataFrame to a \.csv beside"):
        Photos.read(frame)  # type: ignore[arg-type]
