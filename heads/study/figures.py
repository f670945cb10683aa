"""Drawing: charts as PNG files and as SVG that follows the page's colours; galleries as PNG.

Nothing is computed here beyond where ink goes. Matplotlib is used without pyplot: no global state,
no display.
"""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from heads.study.gallery import Gallery
from heads.study.panels import Chart, Panel, Series

COLOURS = {
    "ink": "#1c1917",
    "muted": "#6b625b",
    "line": "#ddd6ce",
    "paper": "#fffdfa",
    "accent": "#c2410c",
    "plain": "#44607c",
    "third": "#8a7a3f",
    "fourth": "#7d5a86",
}
# On the page the style sheet decides: each colour is drawn as a code that becomes a variable.
_CODES = {name: f"#0001{i:02x}" for i, name in enumerate(COLOURS)}
_DASHES = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.6))}
_STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "embedcache",
    "font.family": ["DejaVu Sans"],
}
_PANEL = (4.6, 3.6)  # inches
TITLE_WIDTH = 34  # characters that fit above the axes of a panel whose rows have long names


def png(chart: Chart, path: Path) -> None:
    """Draw all panels side by side, with a legend, at 160 dots per inch."""
    with rc_context(_STYLE):
        n = len(chart.panels)
        height = max(_height(panel) for panel in chart.panels)
        figure = Figure((_PANEL[0] * n, height + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.set_facecolor(COLOURS["paper"])
        for axes, panel in zip(figure.subplots(1, n, squeeze=False)[0], chart.panels, strict=True):
            draw(axes, panel, COLOURS)
        if len(chart.legend) > 1:
            handles, names = [], []
            for axes in figure.axes:
                for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                    if name not in names:
                        handles.append(handle)
                        names.append(name)
            figure.legend(
                handles,
                names,
                loc="outside lower center",
                ncols=min(4, len(names)),
                frameon=False,
                labelcolor=COLOURS["ink"],
            )
        figure.savefig(path, dpi=160)


def svg(panel: Panel, *, alt: str) -> str:
    """One panel as an <svg> element in the page's own colours (--ink, --accent, ...)."""
    with rc_context(_STYLE):
        figure = Figure((_PANEL[0], _height(panel)), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        draw(figure.subplots(), panel, _CODES)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    for name, code in _CODES.items():
        text = text.replace(code, f"var(--{name})")
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def gallery_png(gallery: Gallery, thumbnails: Mapping[Path, bytes], path: Path) -> None:
    """Draw a gallery: a strip per row, the truth (and what was predicted) under each photo."""
    columns = max(len(strip.pictures) for strip in gallery.strips)
    two = len(gallery.strips) == 1
    with rc_context(_STYLE):
        step = 1.45 if two else 1.3
        left = 0.0 if two else 1.0
        figure = Figure((0.95 * (columns + left), 0.95 * step * len(gallery.strips)))
        FigureCanvasAgg(figure)
        figure.set_facecolor(COLOURS["paper"])
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for row, strip in enumerate(gallery.strips):
            top = -row * step
            axes.text(
                -0.08, top - 0.5, strip.title, ha="right", va="center", color=COLOURS["muted"]
            )
            for column, picture in enumerate(strip.pictures):
                small = thumbnails.get(picture.path) if picture.path else None
                place = (column + 0.02, column + 0.98, top - 0.98, top - 0.02)
                if small is None:
                    axes.fill_between(place[:2], place[2], place[3], color=COLOURS["line"])
                else:
                    axes.imshow(np.asarray(Image.open(io.BytesIO(small))), extent=place)
                caption = f"{picture.prediction}\nis {picture.truth}" if two else picture.truth
                axes.text(
                    column + 0.5, top - 1.02, caption, ha="center", va="top", fontsize=7,
                    color=COLOURS["ink"],
                )  # fmt: skip
        axes.set_xlim(-left, columns)
        axes.set_ylim(-step * len(gallery.strips), 0)
        axes.set_aspect("equal")
        figure.savefig(path, dpi=160)


def pairs_png(pairs: Sequence[bytes], path: Path, *, columns: int = 2) -> None:
    """Lay pictures of why (JPEGs of one height) in rows on one sheet."""
    images = [Image.open(io.BytesIO(data)) for data in pairs]
    gap = 12
    width, height = (max(image.size[k] for image in images) for k in (0, 1))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    size = columns * (width + gap) + gap, rows * (height + gap) + gap
    sheet = Image.new("RGB", size, COLOURS["paper"])
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    sheet.save(path, "PNG")


def _height(panel: Panel) -> float:
    if panel.names:
        return 0.85 + 0.27 * max(3, len(panel.names))
    return _PANEL[1] + (0.5 if panel.square else 0)


def draw(axes: Axes, panel: Panel, colour: Mapping[str, str]) -> None:
    """Draw one panel of a chart."""
    axes.set_facecolor("none")
    axes.set_title(textwrap.fill(panel.title, TITLE_WIDTH), color=colour["ink"])
    axes.set_xlabel(panel.x_label, color=colour["muted"])
    axes.set_ylabel(panel.y_label, color=colour["muted"])
    axes.tick_params(color=colour["line"], labelcolor=colour["muted"], length=3)
    for spine in axes.spines.values():
        spine.set_color(colour["line"])
    axes.grid(
        visible=True, axis="x" if panel.names else "both", color=colour["line"], linewidth=0.6
    )
    if panel.band is not None:
        axes.fill_between(*panel.band, color=colour["muted"], alpha=0.14, linewidth=0)
    if panel.square:
        _square(axes, panel, colour)
    for x, name in panel.lines:
        axes.axvline(x, color=colour["muted"], linewidth=1, linestyle=(0, (3, 2)))
        axes.annotate(
            f" {name}", (x, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8,
            color=colour["muted"],
        )  # fmt: skip
    for y, _name in panel.levels:
        axes.axhline(y, color=colour["muted"], linewidth=0.8, alpha=0.7)
    for series in panel.series:
        _series(axes, series, colour)
    if any(series.mark == "line" for series in panel.series):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # epochs
    if panel.x_range is not None:
        room = 0.05 * (panel.x_range[1] - panel.x_range[0]) or 0.01
        axes.set_xlim(panel.x_range[0] - room, panel.x_range[1] + room)
    if panel.names:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_yticks(range(len(panel.names)), panel.names)
        axes.tick_params(axis="y", labelcolor=colour["ink"], length=0)
        axes.set_ylim(len(panel.names) - 0.4, -1.1 if panel.lines else -0.6)
        axes.spines["left"].set_visible(False)


def _square(axes: Axes, panel: Panel, colour: Mapping[str, str]) -> None:
    values = [v for series in panel.series for v in (*series.x, *series.y)] or [0.0, 1.0]
    low, high = min(0.0, *values), max(*values, 0.05)
    high = 1.0 if 0.6 < high <= 1 else high
    room = 0.04 * (high - low)
    axes.plot([low, high], [low, high], color=colour["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(low - room, high + room)
    axes.set_aspect("equal")


def _series(axes: Axes, series: Series, colour: Mapping[str, str]) -> None:
    ink = colour[series.tone]
    x, y = np.array(series.x), np.array(series.y)
    if series.mark == "interval":
        axes.hlines(y, series.low, series.high, color=ink, linewidth=2, alpha=0.45)
        axes.plot(x, y, "o", color=ink, markersize=5.5, label=series.name)
    elif series.mark == "cloud":
        axes.plot(x, y, "o", color=ink, markersize=3.2, alpha=0.45, markeredgewidth=0)
    elif series.mark == "dots":
        axes.plot(x, y, color=ink, linewidth=1, alpha=0.6)
        size = 14 + 260 * np.array(series.size)
        axes.scatter(x, y, s=size, color=ink, alpha=0.85, linewidth=0, label=series.name)
    else:
        axes.plot(x, y, color=ink, linewidth=1.5, linestyle=_DASHES[series.dash], label=series.name)
        if series.chosen is not None:
            axes.plot(
                x[series.chosen], y[series.chosen], "o", markersize=7, markerfacecolor="none",
                markeredgecolor=ink,
            )  # fmt: skip
