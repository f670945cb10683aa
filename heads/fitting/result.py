"""What a fit is: its rows, its curves, its heads, and the table it prints."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.errors import InputError
from heads.dataset.rows import Dataset
from heads.fitting import metrics
from heads.fitting.intervals import Bootstrap, Difference, difference
from heads.fitting.judge import Judged, row_scores
from heads.fitting.protocol import Protocol
from heads.head import Head


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A point of a learning curve: strength or rate, epoch (0 for linear heads), figures."""

    rate: float
    epoch: int
    train: float
    dev: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRow:
    """One line of the table. A figure that is not defined is NaN here and null in JSON."""

    head: str
    target: str
    metric: str
    value: float
    low: float
    high: float
    dev: float
    learning_rate: float
    epoch: int | None
    seconds: float
    extra: Mapping[str, float]
    versus: Mapping[str, Any] | None

    def document(self) -> dict[str, Any]:
        """The row's JSON object."""
        values = {
            "head": self.head,
            "target": self.target,
            "metric": self.metric,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "dev": self.dev,
            "learning_rate": self.learning_rate,
            "epoch": self.epoch,
            "seconds": round(self.seconds, 3),
            **self.extra,
            "versus": self.versus,
        }
        return {name: plain(value) for name, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a fit found. `print(fit)` is the table; `fit.save(folder)` keeps the heads.

    heads: by name, in the order of the rows. best: the head with the best dev figure.
    test: the test rows with every head's predictions. curves: per head.
    writer: what `save` calls, handed in by `fit`, so that a result knows nothing of files.
    """

    dataset: Dataset
    protocol: Protocol
    rows: tuple[HeadRow, ...]
    heads: Mapping[str, Head]
    best: str
    test: Judged
    curves: Mapping[str, tuple[CurvePoint, ...]]
    notes: tuple[str, ...]
    seconds: float
    writer: "Callable[[Fit, Path], Path]" = field(repr=False)

    def document(self) -> dict[str, Any]:
        """The JSON object that `embedcache fit-head --json` prints."""
        dataset = self.dataset
        return {
            "task": dataset.task,
            "target": dataset.target,
            "classes": list(dataset.classes),
            "backbone": dataset.provenance.backbone,
            "subset": dataset.provenance.subset_name,
            "n": dataset.n,
            "dropped": dict(dataset.provenance.dropped),
            "noise_floor": plain(self.test.noise_floor),
            "best": self.best,
            "seconds": round(self.seconds, 3),
            "rows": [row.document() for row in self.rows],
            "by": [
                {
                    "column": one.column,
                    "group": one.group,
                    "n": one.n,
                    "head": one.figure.head,
                    "target": one.figure.target,
                    "metric": one.figure.metric,
                    "value": plain(one.figure.value),
                    "low": plain(one.figure.low),
                    "high": plain(one.figure.high),
                }
                for one in self.test.by
            ],
            "notes": list(self.notes),
        }

    def compare(self, first: str, second: str, *, metric: str | None = None) -> Difference:
        """first - second on the test rows, paired and resampled by group; negative error is good.

        metric: mse, or accuracy or log_loss (the default for classes). One target only.
        """
        if lost := [name for name in (first, second) if name not in self.heads]:
            raise InputError(f"no {lost[0]} head in this fit; it has {', '.join(self.heads)}")
        test = self.test
        scores = [
            row_scores(self.dataset.task, test.truth, test.predictions[name])
            for name in (first, second)
        ]
        metric = metric or ("mse" if self.dataset.task == "regression" else "log_loss")
        columns = np.stack([score[metric] for score in scores], 1)
        values = [metrics.mean(column, test.weight) for column in columns.T]
        drawn = Bootstrap(test.groups, seed=self.protocol.seed).means(columns, test.weight)
        gap = drawn[:, 0] - drawn[:, 1]
        return difference(values[0] - values[1], gap, groups=len(np.unique(test.groups)))

    def __str__(self) -> str:
        return table(self)

    def save(self, folder: str | Path) -> Path:
        """Write every head, its card, curves and test predictions under `folder`.

        The same as `heads.save(fit, folder)`, which says what is replaced and what is refused.
        """
        return self.writer(self, Path(folder))


def plain(value: Any) -> Any:
    """A value as JSON takes it: NaN and infinity are null, numpy numbers are numbers."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


_SECOND = {
    "r2": "R²",
    "rank_correlation": "rank",
    "explainable_share": "explained",
    "auc": "AUC",
    "calibration_error": "calib",
}


def table(fit: "Fit") -> str:
    """Rows with intervals and what chose them, then what a reader must know to believe them."""
    data = fit.dataset
    head = f"{data.target} ({data.task})"
    if data.provenance.backbone:
        head += f" from {data.provenance.backbone}, {data.provenance.subset_name}"
    sides = ", ".join(f"{count} {side}" for side, count in data.n.items())
    lines = [head, sides]
    if data.provenance.dropped:
        reasons = ", ".join(f"{n} {why}" for why, n in sorted(data.provenance.dropped.items()))
        lines[-1] += f"; left out: {reasons}"
    several = len(data.target_names) > 1
    extras = [name for name in _SECOND if any(name in row.extra for row in fit.rows)]
    titles = ["head", *(["target"] if several else []), "metric", "test", "95 % interval", "dev"]
    titles += ["rate", "epoch", *(_SECOND[name] for name in extras)]
    cells = [titles]
    for row in fit.rows:
        cells.append(_cells(row, extras, several=several))
    widths = [max(len(line[k]) for line in cells) for k in range(len(titles))]
    for line in cells:
        lines.append(
            "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()
        )
    if math.isfinite(fit.test.noise_floor):
        lines.append(f"noise floor of the test MSE: {fit.test.noise_floor:.4g}")
    lines += _by_group(fit, several=several)
    lines.append(f"best on dev: {fit.best}; {fit.seconds:.1f} s")
    return "\n".join([*lines, *fit.notes])


def _by_group(fit: "Fit", *, several: bool) -> list[str]:
    """A line per group and metric with every head's figure; the intervals are in fit.json."""
    lines: dict[str, list[str]] = {}
    for one in fit.test.by:
        figure = one.figure
        of = f" of {figure.target}" if several else ""
        title = f"{figure.metric}{of} for {one.column} {one.group} ({one.n} test rows)"
        lines.setdefault(title, []).append(f"{figure.head} {_number(figure.value)}")
    return [f"{title}: {', '.join(figures)}" for title, figures in lines.items()]


def _cells(row: "HeadRow", extras: list[str], *, several: bool) -> list[str]:
    low, high = _number(row.low), _number(row.high)
    cells = [row.head, *([row.target] if several else []), row.metric, _number(row.value)]
    cells += [f"{low} to {high}" if low != "-" else "-", _number(row.dev)]
    cells += [f"{row.learning_rate:g}" if math.isfinite(row.learning_rate) else "-"]
    cells += [str(row.epoch) if row.epoch is not None else "-"]
    return cells + [_number(row.extra.get(name, math.nan)) for name in extras]


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"
