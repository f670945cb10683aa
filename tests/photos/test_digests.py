"""Content digests of photos, and what is remembered of them."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedcache.photos import digests as digests_module
from embedcache.photos.memo import MEMO, DigestMemo
from embedcache.photos.table import Photos
from embedcache.store.cache import Cache
from tests.photos.files import LONG_AGO, write


def cache_in(folder: Path) -> Cache:
    return Cache.open(folder / "cache", create=True)


def test_digests_are_of_the_bytes_and_remembered(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jpg", b"one")
    write(tmp_path / "in/b.jpg", b"two")
    table, cache = Photos.read(tmp_path / "in"), cache_in(tmp_path)
    first = table.digests(cache)
    assert first.n_read == 2
    assert [d.tobytes() for d in first.value] == [
        hashlib.sha256(data).digest() for data in (b"one", b"two")
    ]
    again = table.digests(cache)
    assert again.n_read == 0
    assert (again.value == first.value).all()


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "in/a.jpg", b"one")
    table, cache = Photos.read(tmp_path / "in"), cache_in(tmp_path)
    table.digests(cache)
    path.write_bytes(b"two")  # same size
    os.utime(path, (LONG_AGO + 5, LONG_AGO + 5))
    found = table.digests(cache)
    assert found.n_read == 1
    assert found.value[0].tobytes() == hashlib.sha256(b"two").digest()


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    path = write(tmp_path / "in/a.jpg", b"one")
    os.utime(path)
    table, cache = Photos.read(tmp_path / "in"), cache_in(tmp_path)
    table.digests(cache)
    path.write_bytes(b"two")  # perhaps within the same tick of the clock
    assert table.digests(cache).value[0].tobytes() == hashlib.sha256(b"two").digest()


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
    cache = cache_in(tmp_path)
    write(cache.remembered(MEMO), content)
    table = Photos.read(tmp_path / "in")
    assert table.digests(cache).n_read == 1
    assert table.digests(cache).n_read == 0


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
    table, cache = many(tmp_path, monkeypatch), cache_in(tmp_path)
    shown: list[tuple[int, int]] = []
    found = table.digests(
        cache,
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
    again = table.digests(cache)
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
    table, cache = many(tmp_path, monkeypatch), cache_in(tmp_path)

    def interrupt(done: int, n: int) -> None:
        if done > 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.digests(cache, progress=interrupt)
    assert table.digests(cache).n_read <= 2500


def test_photos_made_for_tests_differ(make_photos: Callable[..., Path]) -> None:
    found = Photos.read(make_photos(3)).digests()
    assert len({row.tobytes() for row in found.value}) == 3
