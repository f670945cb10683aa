"""Charts hold the study's figures, galleries the right photos, and drawing warns of nothing."""

import io
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from heads.fitting import metrics
from heads.study import charts, figures, gallery
from heads.study.panels import Chart
from heads.study.results import Results


def chart(results: Results, name: str) -> Chart:
    return next(one for one in charts.all_charts(results) if one.name == name)


def test_there_is_a_chart_for_everything_the_study_knows(results: Results) -> None:
    kinds = ("errors", "learning_curves", "calibration", "error_by_group")
    expected = {f"{kind}_{target}" for kind in kinds for target in ("like_ratio", "gender")}
    expected |= {"predicted_vs_true_like_ratio", "recovered_truth_like_ratio"}
    assert {one.name for one in charts.all_charts(results)} == expected
    without = replace(results, truth={})
    assert {one.name for one in charts.all_charts(without)} == expected - {
        "recovered_truth_like_ratio"
    }


def test_the_error_chart_holds_the_rows_of_the_table(results: Results) -> None:
    for panel in chart(results, "errors_like_ratio").panels:
        drawn = {
            panel.names[int(y)].removesuffix(" ★").partition(" = ")[0]: x
            for series in panel.series
            for x, y in zip(series.x, series.y, strict=True)
        }
        rows = [r for r in results.rows() if (r.target, r.subset) == ("like_ratio", panel.title)]
        assert drawn == {row.name: row.value for row in reversed(rows)}
        assert panel.lines == ((rows[0].noise_floor, "noise floor"),)


def test_a_learning_curve_ends_where_the_row_says(results: Results) -> None:
    for panel in chart(results, "learning_curves_gender").panels:
        for series in panel.series:
            row = next(r for r in results.rows() if (r.target, r.subset, r.name) == (
                "gender", panel.title, series.name))  # fmt: skip
            assert len(series.x) >= 2
            if row.learning_rate is not None:
                assert series.chosen is not None
                assert series.x[series.chosen] == row.epoch
                assert series.y[series.chosen] == pytest.approx(row.dev, rel=1e-3)


def test_the_noise_band_holds_its_share_of_perfect_predictions() -> None:
    rng = np.random.default_rng(0)
    p, n = rng.uniform(0.1, 0.9, 4000), 60
    votes = rng.binomial(n, p) / n
    reach = 1.96 * np.sqrt(p * (1 - p) / n)
    assert np.mean(np.abs(votes - p) <= reach) == pytest.approx(0.95, abs=0.02)


def test_the_scatter_shows_the_best_heads_test_photos(results: Results) -> None:
    panel = chart(results, "predicted_vs_true_like_ratio").panels[0]
    best = results.best("like_ratio", "ALL")
    assert panel.series[0].x == best.predictions[best.chosen_head()]
    assert panel.series[0].y == best.truth
    assert panel.band is not None


def test_the_accent_belongs_to_the_face_backbone(results: Results) -> None:
    tones = charts.tones(results)
    assert (tones["FaceNet"], tones["Inception"], tones["all"]) == (
        "accent",
        "plain",
        "ink",
    )


def test_figure_1_ranks_by_prediction_in_rows_of_nearly_the_same_value(results: Results) -> None:
    fit = results.best("like_ratio", "ALL")
    found = gallery.ranked(results, fit, rows=4, columns=6)
    values = [[float(p.prediction) for p in strip.pictures] for strip in found.strips]
    assert [len(row) for row in values] == [6, 6, 6, 6]
    flat = [value for row in values for value in row]
    assert flat == sorted(flat, reverse=True)
    for row in values:
        assert max(row) - min(row) < 0.25 * (flat[0] - flat[-1])
    paths = [p.path for strip in found.strips for p in strip.pictures]
    assert len(set(paths)) == 24
    assert all(path is not None and path.is_file() for path in paths)
    names = {path.stem for path in paths if path}
    assert names <= set(fit.ids)
    one = found.strips[0].pictures[0]
    assert one.path is not None
    i = fit.ids.index(one.path.stem)
    assert one.truth == f"{fit.truth[i]:.2f} {results.captions[fit.ids[i]]}"


def test_figure_1_of_few_photos_shows_each_once(results: Results) -> None:
    fit = results.best("like_ratio", "ALL")
    few = msgspec.structs.replace(
        fit, ids=fit.ids[:5], truth=fit.truth[:5],
        predictions={name: seen[:5] for name, seen in fit.predictions.items()},
    )  # fmt: skip
    found = gallery.ranked(results, few)
    assert [len(strip.pictures) for strip in found.strips] == [5]


def test_figures_2_and_3_are_the_highest_log_losses_worst_first(results: Results) -> None:
    found = [one for one in gallery.all_galleries(results) if one.name.startswith("figure")]
    assert [one.name.split("_")[0] for one in found] == ["figure1", "figure1", "figure2", "figure3"]
    fit = results.fits_of("gender", "ALL")[0]
    loss = metrics.row_log_loss(np.array(fit.truth), np.array(fit.predictions[fit.chosen_head()]))
    worst = gallery.worst(results, fit)
    shown = [p.path.stem for p in worst.strips[0].pictures if p.path]
    assert shown == [fit.ids[i] for i in np.argsort(-loss, kind="stable")[:8]]
    assert worst.strips[0].pictures[0].why == f"log-loss {loss.max():.2f}"


def test_figures_are_counted_from_1_and_the_tenth_is_not_the_first(results: Results) -> None:
    gender = results.fits_of("gender", "ALL")[0]
    many = tuple(msgspec.structs.replace(gender, backbone=f"net{k}", key=str(k)) for k in range(11))
    found = gallery.all_galleries(replace(results, fits=many))
    assert [one.name.split("_")[0] for one in found] == [f"figure{k}" for k in range(1, 12)]
    assert not any(one.ranked for one in found)


def test_every_chart_and_gallery_draws_without_a_warning(results: Results, tmp_path: Path) -> None:
    for one in charts.all_charts(results)[:5]:
        figures.png(one, tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as drawn:
            assert drawn.width > 600
            assert len(drawn.convert("RGB").getcolors(1 << 20) or []) > 20
    for shown in gallery.all_galleries(results)[1:3]:
        paths = [p.path for strip in shown.strips for p in strip.pictures]
        small = {path: data for path in paths if path and (data := gallery.thumbnail(path))}
        figures.gallery_png(shown, small, tmp_path / "gallery.png")
        assert (tmp_path / "gallery.png").stat().st_size > 10_000


def test_an_svg_is_well_formed_takes_the_pages_colours_and_says_what_it_shows(
    results: Results,
) -> None:
    panel = chart(results, "calibration_gender").panels[-1]
    text = figures.svg(panel, alt='a "quoted" <label>')
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == 'a "quoted" <label>'
    assert root.get("width") is None
    assert "var(--accent)" in text
    assert "#0001" not in text
    assert "metadata" not in text
    assert text == figures.svg(panel, alt='a "quoted" <label>')


@pytest.mark.parametrize("size", [(400, 300), (30, 500), (1, 1)])
def test_a_thumbnail_is_a_small_square(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    found = gallery.thumbnail(tmp_path / "a.png")
    assert found is not None
    assert Image.open(io.BytesIO(found)).size == (144, 144)
    assert len(found) < 10_000


def test_a_thumbnail_stands_upright_and_keeps_nothing_of_the_files_metadata(tmp_path: Path) -> None:
    photo = Image.new("RGB", (200, 200), "red")
    photo.paste("blue", (0, 0, 200, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left side is up
    exif[0x010E] = "somebody's name"
    photo.save(tmp_path / "a.jpg", exif=exif)
    found = gallery.thumbnail(tmp_path / "a.jpg")
    assert found is not None
    assert b"somebody" not in found
    small = Image.open(io.BytesIO(found))
    right, left = small.getpixel((140, 72)), small.getpixel((4, 72))
    assert isinstance(right, tuple)
    assert isinstance(left, tuple)
    assert right[2] > 200 > left[2]


@pytest.mark.parametrize("content", [b"", b"no photo", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_file_that_is_not_a_photo_has_no_thumbnail(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert gallery.thumbnail(tmp_path / "a.png") is None
    assert gallery.thumbnail(tmp_path / "missing.png") is None
    assert gallery.thumbnail(None) is None


def test_a_decompression_bomb_has_no_thumbnail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(gallery, "_MAX_PIXELS", 80_000)
    assert gallery.thumbnail(tmp_path / "bomb.png") is None


def test_a_long_title_stays_inside_its_panel() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from heads.study.figures import COLOURS, draw
    from heads.study.panels import Panel

    figure = Figure((4.6, 3.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    names = tuple(f"light of a long name, cool {i} (n = 36)" for i in range(3))
    draw(
        axes := figure.subplots(),
        Panel(
            title="1BBOX: EfficientNet on the face-logistic, warm",
            x_label="accuracy on test, %",
            y_label="",
            names=names,
            series=(),
        ),
        COLOURS,
    )
    canvas.draw()  # type: ignore[no-untyped-call]
    for text in (axes._left_title, *axes.get_yticklabels()):  # type: ignore[attr-defined]
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
