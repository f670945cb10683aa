"""What a chart is: panels under one title, and in each panel series of points. Numbers only."""

from dataclasses import dataclass
from typing import Literal

Dash = Literal["solid", "dash", "dot"]
Mark = Literal["line", "dots", "cloud", "interval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points that belong together. low, high: ends of intervals (mark "interval"), along x."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    size: tuple[float, ...] = ()
    mark: Mark = "line"
    tone: str = "plain"
    dash: Dash = "solid"
    chosen: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes. names: of the places 0, 1, ... down the y axis, in place of numbers.

    lines: (x, what it is), drawn upright. band: (x, low, high) of a shaded region.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    names: tuple[str, ...] = ()
    lines: tuple[tuple[float, str], ...] = ()
    levels: tuple[tuple[float, str], ...] = ()
    band: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None = None
    square: bool = False
    x_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Panels under one title. alt: the description for readers who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]
    legend: tuple[Series, ...] = ()
