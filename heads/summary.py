"""A fit's table for people, as plain text."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heads.fit import Fit, Row

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
        told = ", ".join(f"{n} {why}" for why, n in sorted(data.provenance.dropped.items()))
        lines[-1] += f"; left out: {told}"
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
        told = f" of {figure.target}" if several else ""
        title = f"{figure.metric}{told} for {one.column} {one.group} ({one.n} test rows)"
        lines.setdefault(title, []).append(f"{figure.head} {_number(figure.value)}")
    return [f"{title}: {', '.join(told)}" for title, told in lines.items()]


def _cells(row: "Row", extras: list[str], *, several: bool) -> list[str]:
    low, high = _number(row.low), _number(row.high)
    cells = [row.head, *([row.target] if several else []), row.metric, _number(row.value)]
    cells += [f"{low} to {high}" if low != "-" else "-", _number(row.dev)]
    cells += [f"{row.learning_rate:g}" if math.isfinite(row.learning_rate) else "-"]
    cells += [str(row.epoch) if row.epoch is not None else "-"]
    return cells + [_number(row.extra.get(name, math.nan)) for name in extras]


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"
