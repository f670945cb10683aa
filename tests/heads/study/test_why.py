"""Pictures of why on a page: a few photos of each figure, drawn once, never called a cause."""

import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import heads
from embedcache.errors import WeightsError
from embedcache.spec import Spec
from embedcache.store.cache import Cache
from heads.head import Head
from heads.saliency import Score
from heads.study import report
from heads.study.gallery import all_galleries
from heads.study.results import Results
from heads.study.why import Why, explain, of_round
from tests.heads.study import studies


@pytest.fixture(scope="module")
def folder() -> Path:
    return studies.ran()[0] / "out"


class Eyes:
    """Networks that see every photo grey; what they were asked for."""

    def __init__(self, *, gone: Sequence[str] = (), error: Exception | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.gone, self.error = gone, error

    def __call__(
        self, specs: Sequence[tuple[str, Spec]], ids: Sequence[str]
    ) -> Iterator[tuple[str, Any]]:
        if self.error is not None:
            raise self.error
        pixels = np.full((32, 32, 3), 128, np.uint8)

        def moved(score: Score) -> Any:
            import torch

            slope = float(score(torch.ones(1, specs[0][1].dim))[0])
            found = np.zeros((32, 32), np.float32)
            found[8:16, 8:16] = slope
            return found

        for name in ids:
            self.asked.append((specs[0][0], name))
            yield name, "vanished" if name in self.gone else (pixels, moved)


def drawn(results: Results, folder: Path, eyes: Eyes, **options: Any) -> Why:
    return explain(results, folder, seen_by=eyes, **{"version": 1} | options)


def test_a_handful_of_the_photos_of_each_figure_is_drawn(
    results: Results, folder: Path, tmp_path: Path
) -> None:
    counts: list[tuple[int, int]] = []
    eyes = Eyes()
    why = drawn(results, folder, eyes, version=10, progress=lambda *now: counts.append(now))
    galleries = {one.name: one for one in all_galleries(results)}
    assert set(why.drawn) == set(galleries)
    assert not why.missing
    for name, pairs in why.drawn.items():
        shown = [p.photo_id for strip in galleries[name].strips for p in strip.pictures]
        mine = [pair.shown.photo_id for pair in pairs]
        assert set(mine) <= set(shown)
        assert mine[0] == shown[0]
        assert len(mine) == (6 if galleries[name].ranked else 4)
        assert (mine[-1] == shown[-1]) == galleries[name].ranked
        for pair in pairs:
            with Image.open(io.BytesIO(pair.jpeg)) as small:
                assert (small.format, small.height) == ("JPEG", 176)
                assert not small.getexif()
            assert len(pair.jpeg) < 20_000
    n = sum(map(len, why.drawn.values()))
    assert counts == [(k, n) for k in range(1, n + 1)]


def test_a_second_run_draws_nothing_and_another_version_all(results: Results, folder: Path) -> None:
    first = drawn(results, folder, Eyes(), version=20)
    again = Eyes()
    second = drawn(results, folder, again, version=20)
    assert not again.asked
    assert second == first
    newer = Eyes()
    drawn(results, folder, newer, version=21)
    assert len(newer.asked) == sum(map(len, first.drawn.values()))
    for path in folder.glob("fits/why-*.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    repaired = Eyes()
    assert drawn(results, folder, repaired, version=20) == first
    assert len(repaired.asked) == len(newer.asked)


def test_a_photo_that_is_gone_has_no_picture_and_the_others_have(
    results: Results, folder: Path
) -> None:
    gallery = all_galleries(results)[0]
    lost = gallery.strips[0].pictures[0].photo_id
    why = drawn(results, folder, Eyes(gone=[lost]), version=30)
    assert len(why.drawn[gallery.name]) == 5
    assert lost not in [pair.shown.photo_id for pair in why.drawn[gallery.name]]


def test_without_weights_the_page_says_so_and_names_no_folder(
    results: Results, folder: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    eyes = Eyes(error=WeightsError("no weights at /home/someone/net"))
    why = drawn(results, folder, eyes, version=40, say=said.append)
    assert not why.drawn
    assert "/home/someone/net" in said[0]
    page = unescape(report.write(results, tmp_path, why=why).page.read_text())
    assert "No pictures of why here: the weights of its network are not here" in page
    assert "/home/someone" not in page


def test_a_head_that_was_changed_is_said_and_never_drawn(
    results: Results, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "fits", tmp_path / "fits")
    for path in (tmp_path / "fits").glob("*/*/weights.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    eyes = Eyes()
    why = drawn(results, tmp_path, eyes, version=50)
    assert not eyes.asked
    assert set(why.missing.values()) == {"its head was changed after it was fitted"}


def test_the_page_shows_them_with_what_they_are_not(
    results: Results, folder: Path, tmp_path: Path
) -> None:
    why = drawn(results, folder, Eyes(), version=1)
    written = report.write(results, tmp_path / "a", why=why)
    page = written.page.read_text()
    n = sum(map(len, why.drawn.values()))
    assert page.count("Two pictures: a test photo as the network saw it") == n
    assert page.count("It is not a cause") == len(why.drawn)
    assert "of the round that had not seen the photo" in page
    sheets = [path for path in written.files if path.name.endswith("_why.png")]
    assert len(sheets) == len(why.drawn)
    linked = report.write(results, tmp_path / "b", why=why, link=True)
    assert len(list((tmp_path / "b" / "thumbnails").glob("why*.jpg"))) == n
    assert 'src="thumbnails/why0000.jpg"' in linked.page.read_text()
    for one in (page, linked.page.read_text()):
        assert not any(f'"{name}' in one or f">{name}" in one for name in results.fits[0].ids)


def test_a_page_without_photos_or_pictures_says_so(
    results: Results, folder: Path, tmp_path: Path
) -> None:
    why = drawn(results, folder, Eyes(), version=1)
    bare = report.write(results, tmp_path / "a", why=why, photos=False)
    assert "no picture of why" in bare.page.read_text()
    assert "<img" not in bare.page.read_text()
    assert not [path for path in bare.files if "why" in path.name]
    off = report.write(results, tmp_path / "b", why=Why(off="a demo has no time for them"))
    assert "Pictures of why are left out: a demo has no time" in off.page.read_text()


def test_the_head_of_a_round_is_the_one_that_predicted_there(
    results: Results, folder: Path
) -> None:
    """The pictures are of the prediction that the figure shows."""
    cache = Cache.open(folder.parent / "photos.cache")
    for fit in results.fits:
        head = heads.load(folder / "fits" / fit.key)
        name = {"Inception": "whole", "FaceNet": "net@face"}[fit.backbone]
        assert head.name == fit.best
        if head.name == "const":
            continue
        vectors, _ = cache.vectors(name, fit.ids)
        fold = np.array(fit.fold)
        for number in range(5):
            own = of_round(head, number, fit.folds)
            mine = fold == number
            np.testing.assert_allclose(
                own.predict(vectors[mine]), np.array(fit.predictions[fit.best])[mine], atol=2e-5
            )


def test_a_head_without_folds_is_itself(results: Results, folder: Path) -> None:
    head = heads.load(folder / "fits" / results.fits[0].key)
    assert of_round(head, 3, None) is head
    odd: Head = replace(head, layers=tuple(head.layers))
    assert of_round(odd, 0, 7) is odd
