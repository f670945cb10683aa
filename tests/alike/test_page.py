"""The page of near-duplicates, as a browser shows it and as a file."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.alike import copies
from tests.heads.study.browser import CHROMIUM, browser

Run = Callable[..., tuple[int, str, str]]
HOSTILE = '"><script>alert(1)<script>.jpg'


@pytest.fixture
def filled(run: Run, tiny_weights: Path, tmp_path: Path) -> tuple[Path, str, Path]:
    """A cache with two exact copies, one of them with a hostile name."""
    photos = tmp_path / "photos"
    made = copies.make(photos, 24)
    (photos / HOSTILE).write_bytes(made[3].read_bytes())
    copies.recompressed(made[4], photos / "again.jpg")
    cache, name = tmp_path / "c.cache", f"local-dir:{tiny_weights}"
    assert run("extract", photos, "--cache", cache, "--backbone", name)[0] == 0
    return cache, name, photos


def write(run: Run, filled: tuple[Path, str, Path], out: Path, *more: str) -> tuple[int, str, str]:
    cache, name, photos = filled
    return run(*("duplicates", cache, "--backbone", name, "--photos", photos, "--out", out, *more))


def test_the_page_holds_thumbnails_and_nothing_of_the_outside(
    run: Run, filled: tuple[Path, str, Path], tmp_path: Path
) -> None:
    status, _, err = write(run, filled, tmp_path / "out" / "page.html", "--threshold", "1")
    assert status == 0, err
    assert os.listdir(tmp_path / "out") == ["page.html"]
    text = (tmp_path / "out" / "page.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 2
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert not re.search(r"https?://", text)
    assert str(tmp_path) not in text


def test_a_folder_gets_a_file_and_a_second_run_replaces_it(
    run: Run, filled: tuple[Path, str, Path], tmp_path: Path
) -> None:
    for _ in range(2):
        assert write(run, filled, tmp_path / "out", "--threshold", "1")[0] == 0
    assert os.listdir(tmp_path / "out") == ["duplicates.html"]


def test_another_file_is_not_replaced(
    run: Run, filled: tuple[Path, str, Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.html").write_text("mine")
    status, _, err = write(run, filled, tmp_path / "notes.html")
    assert status == 1
    assert "is not a page of this command: name another file with --out" in err
    (tmp_path / "link.html").symlink_to(tmp_path / "elsewhere.html")
    assert write(run, filled, tmp_path / "link.html")[0] == 1
    assert (tmp_path / "notes.html").read_text() == "mine"
    assert not (tmp_path / "elsewhere.html").exists()


def test_photos_that_are_gone_have_no_thumbnail(
    run: Run, filled: tuple[Path, str, Path], tmp_path: Path
) -> None:
    cache, name, photos = filled
    Image.new("RGB", (50, 50)).save(photos / HOSTILE, "JPEG")  # another photo by now
    os.unlink(photos / "p003.jpg")
    shutil.rmtree(cache / "local" / "memory", ignore_errors=True)
    words = ("duplicates", cache, "--backbone", name, "--photos", photos, "--threshold", 1)
    assert run(*words, "--out", tmp_path / "page.html")[0] == 0
    text = (tmp_path / "page.html").read_text()
    assert text.count("not readable here") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_fits_a_phone_and_asks_the_network_for_nothing(
    run: Run, filled: tuple[Path, str, Path], tmp_path: Path
) -> None:
    assert write(run, filled, tmp_path / "page.html")[0] == 0
    with browser() as tab:
        tab.resize(375)
        tab.open(tmp_path / "page.html")
        assert tab.run("document.documentElement.scrollWidth") <= 375
        assert tab.run("[...document.images].every(i => i.loading == 'lazy' || i.complete)")
        colours = set()
        for scheme in ("light", "dark"):
            tab.scheme(scheme)
            colours.add(tab.run("getComputedStyle(document.body).backgroundColor"))
        assert len(colours) == 2
        assert tab.errors == []
        assert {one.partition(":")[0] for one in tab.requests} <= {"file", "data"}


def test_no_page_is_written_into_a_cache(run: Run, filled: tuple[Path, str, Path]) -> None:
    cache, _, _ = filled
    for place in (cache, cache / "local" / "page.html", cache / "spaces" / "new"):
        status, _, err = write(run, filled, place)
        assert status == 1
        assert "would lie in the cache" in err
        assert "name another place with --out" in err
