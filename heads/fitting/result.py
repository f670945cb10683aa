"""What a fit is: its rows, its curves, its heads, and the table it prints."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import InputError
from embedcache.wording import counted
from heads.dataset.rows import Dataset
from heads.fitting import intervals
from heads.fitting.candidates import CurvePoint
from heads.fitting.intervals import Difference
from heads.fitting.judge import BY, Figure, GroupFigure, Judged
from heads.fitting.protocol import Protocol
from heads.fitting.scores import row_scores
from heads.head import Head

CHOICE = "dev's choice"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRow:
    """One line of the table. A figure that is not defined is NaN here and null in JSON.

    head: a head's name; with folds also "dev's choice"; "const by COLUMN" for groups' constants.
    learning_rate, epoch: None or NaN where folds differ; rounds: (rate, epoch) of each fold.
    extra: further figures by name, with NAME_low and NAME_high. versus: the paired difference from
    the linear baseline. same_as: the linear head that an FC head never left ("ridge via sigmoid"
    where the link makes its figures differ).
    chosen: for "dev's choice", how many folds chose each head.
    """

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
    same_as: str | None = None
    rounds: tuple[tuple[float, int | None], ...] = ()
    chosen: Mapping[str, int] | None = None

    @classmethod
    def of(cls, figure: Figure, *, dev: float, seconds: float, **fields: Any) -> "HeadRow":
        """The row of a figure. fields: what else is known of the head, by name."""
        versus = None
        if figure.versus is not None:
            other, gap = figure.versus
            versus = {"head": other, "difference": gap.value, "low": gap.low, "high": gap.high}
            versus |= {"p": gap.p, "p_adjusted": gap.p_adjusted}
        known = {"learning_rate": math.nan, "epoch": None} | fields
        return cls(
            head=figure.head,
            target=figure.target,
            metric=figure.metric,
            value=figure.value,
            low=figure.low,
            high=figure.high,
            dev=dev,
            seconds=seconds,
            extra=figure.extra,
            versus=versus,
            **known,
        )

    def document(self) -> dict[str, Any]:
        """The row's JSON object."""
        values: dict[str, Any] = {
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
            "same_as": self.same_as,
        }
        if self.rounds:
            values["rounds"] = [
                {"learning_rate": plain(rate), "epoch": epoch} for rate, epoch in self.rounds
            ]
        if self.chosen:
            values["chosen"] = dict(self.chosen)
        return {name: plain(value) for name, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a fit found. `print(fit)` is the table; `fit.save(folder)` keeps the heads.

    folds: K, or None for one split. n: rows per side; with folds every row chooses and tests once.
    heads: by name, in the order of the rows; with folds the mean of the K. best: the simplest head
    within one standard error of the lowest dev figure; with folds the one so chosen most often.
    dev_of_choice: in each round, the dev loss of the head that dev chose.
    test: the test rows with every head's predictions, None for a fit that looks at dev only.
    curves: per head. writer: what `save` calls, handed in by `fit`, so that a result knows nothing
    of files.
    """

    dataset: Dataset
    protocol: Protocol
    folds: int | None
    n: Mapping[str, int]
    rows: tuple[HeadRow, ...]
    heads: Mapping[str, Head]
    best: str
    dev_of_choice: tuple[float, ...]
    test: Judged | None
    curves: Mapping[str, tuple[CurvePoint, ...]]
    notes: tuple[str, ...]
    seconds: float
    writer: "Callable[[Fit, Path], Path]" = field(repr=False)

    @property
    def class_counts(self) -> dict[str, int]:
        """Rows per class, empty for a regression."""
        codes = Counter(self.dataset.targets.ravel().astype(int).tolist())
        return {name: codes[code] for code, name in enumerate(self.dataset.classes)}

    @property
    def noise_floor(self) -> float:
        """The test MSE that a perfect head would show; NaN where it does not apply."""
        return self.test.noise_floor if self.test else math.nan

    def document(self) -> dict[str, Any]:
        """The JSON object that `embedcache fit-head --json` prints."""
        dataset = self.dataset
        return {
            "task": dataset.task,
            "target": dataset.target,
            "classes": self.class_counts,
            "backbone": dataset.provenance.backbone,
            "subset": dataset.provenance.subset_name,
            "protocol_name": self.protocol.name,
            "folds": self.folds,
            "n": dict(self.n),
            "n_effective": plain(self.test.n_effective) if self.test else None,
            "n_comparisons": self.test.n_comparisons if self.test else 0,
            "dropped": dict(dataset.provenance.dropped),
            "noise_floor": plain(self.noise_floor),
            "best": self.best,
            "seconds": round(self.seconds, 3),
            "rows": [row.document() for row in self.rows],
            "by": [group_document(one) for one in (self.test.by if self.test else ())],
            "notes": list(self.notes),
        }

    def compare(self, first: str, second: str, *, metric: str | None = None) -> Difference:
        """first - second on the test rows, paired, over groups; a negative error is good.

        metric: mse, or accuracy or log_loss (the default for classes). One target only.
        """
        test = self.test
        if test is None:
            raise InputError("this fit looked at dev rows only: there are no test rows to compare")
        if test.truth.ndim == 2:
            raise InputError("heads of several targets are compared target by target: see `rows`")
        if lost := [name for name in (first, second) if name not in test.predictions]:
            held = ", ".join(test.predictions)
            raise InputError(f"no {lost[0]} head in this fit; it has {held}")
        metric = metric or ("mse" if self.dataset.task == "regression" else "log_loss")
        each = [
            row_scores(self.dataset.task, test.truth, test.predictions[name])
            for name in (first, second)
        ]
        if metric not in each[0]:
            raise InputError(f"heads are compared by {' or '.join(each[0])}; got {metric!r}")
        scores = [one[metric] for one in each]
        gap = intervals.share_difference if metric == "accuracy" else intervals.difference
        return gap(test.sample, *scores, widened=intervals.widening(self.folds))

    def predict(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Vectors (n, dim) -> the best head's predictions (n,) or (n, k), see `Head.predict`."""
        return self.heads[self.best].predict(vectors)

    def __str__(self) -> str:
        return table(self)

    def __repr__(self) -> str:
        data, how = self.dataset, f"{self.folds} folds" if self.folds else "one split"
        heads = ", ".join(self.heads)
        return f"<Fit: {data.target} ({data.task}), {how}; {heads}; best {self.best}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the printed table."""
        first, *lines = (tuple(map(escape, line)) for line in _grid(self))
        titles = "".join(f"<th>{cell}</th>" for cell in first)
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
        above, below = ("<br>".join(map(escape, part)) for part in (_above(self), _under(self)))
        return (
            f"<p>{above}</p><table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
            f"<p>{below}</p>"
        )

    def save(self, folder: str | Path) -> Path:
        """Write every head, its card, curves and test predictions under `folder`.

        The same as `heads.save(fit, folder)`, which says what is replaced and what is refused.
        """
        return self.writer(self, Path(folder))


def group_document(one: GroupFigure) -> dict[str, Any]:
    """The JSON object of a figure of one group."""
    figure = one.figure
    found: dict[str, Any] = {
        "column": one.column,
        "group": one.group,
        "n": one.n,
        "noise_floor": one.noise_floor,
        "head": figure.head,
        "target": figure.target,
        "metric": figure.metric,
        "value": figure.value,
        "low": figure.low,
        "high": figure.high,
    }
    for name in ("explainable_share", "explainable_share_low", "explainable_share_high"):
        if name in figure.extra:
            found[name] = figure.extra[name]
    if figure.versus is not None:
        head, gap = figure.versus
        found["versus"] = {"head": head, "difference": gap.value, "low": gap.low}
        found["versus"] |= {"high": gap.high, "p": gap.p, "p_adjusted": gap.p_adjusted}
    return {name: plain(value) for name, value in found.items()}


def plain(value: Any) -> Any:
    """A value as JSON takes it: NaN and infinity are null, numpy numbers are numbers."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


_EXTRA = {
    "r2": "R²",
    "pearson": "r",
    "rank_correlation": "rank",
    "mae": "MAE",
    "explainable_share": "explained",
    "auc": "AUC",
    "calibration_slope": "slope",
}


def table(fit: "Fit") -> str:
    """Rows with intervals and what chose them, then what a reader must know to believe them."""
    cells = _grid(fit)
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    lines = _above(fit)
    for line in cells:
        padded = (f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join([*lines, *_under(fit)])


def _above(fit: "Fit") -> list[str]:
    """What was fitted, and on what."""
    data = fit.dataset
    title = f"{data.target} ({data.task}), {fit.protocol.name} protocol"
    if data.provenance.backbone:
        title += f", from {data.provenance.backbone}"
        if (data.provenance.spec or {}).get("kind") == "foreign":
            title += " (imported vectors)"
    sides = ", ".join(f"{count} {side}" for side, count in fit.n.items())
    if fit.folds:
        sides = (
            f"{fit.folds} folds: each of {fit.n['test']} rows tested once, {fit.n['train']} train"
        )
    if data.provenance.dropped:
        reasons = ", ".join(f"{n} {why}" for why, n in sorted(data.provenance.dropped.items()))
        sides += f"; left out: {reasons}"
    return [title, sides]


def _grid(fit: "Fit") -> list[list[str]]:
    """The cells of the table, titles first."""
    several = len(fit.dataset.target_names) > 1
    extras = [name for name in _EXTRA if any(name in row.extra for row in fit.rows)]
    titles = ["head", *(["target"] if several else []), "metric", "test", "95 % interval", "dev"]
    titles += ["rate", "epoch", *(_EXTRA[name] for name in extras), "p (Holm)"]
    return [titles, *(_cells(row, extras, fit, several=several) for row in fit.rows)]


def _under(fit: "Fit") -> list[str]:
    """The lines under the table, and the notes."""
    return [*_below(fit, several=len(fit.dataset.target_names) > 1), *fit.notes]


def _below(fit: "Fit", *, several: bool) -> list[str]:
    """The lines under the table."""
    lines = []
    if math.isfinite(fit.noise_floor):
        lines.append(f"noise floor of the test MSE: {fit.noise_floor:.4g}")
    if fit.test:
        lines.append(f"effective number of test rows (Kish, by group): {fit.test.n_effective:.0f}")
        if n := fit.test.n_comparisons:
            other = "ridge" if fit.dataset.task == "regression" else "logistic"
            of = counted(n, "comparison")
            lines.append(f"p: paired difference from {other}, adjusted for {of} (Holm)")
        lines += _by_group(fit, several=several)
    choice = next((row.chosen for row in fit.rows if row.chosen), None)
    if choice:
        counts = ", ".join(f"{head} in {n}" for head, n in choice.items())
        lines.append(f"{CHOICE}, fold by fold: {counts}")
    rule = "the simplest head within one standard error of the lowest dev figure"
    if fit.folds:
        rule = "chosen most often: in each fold " + rule
    lines.append(f"best: {fit.best}, {rule}; {fit.seconds:.1f} s")
    if fit.best == "const" and len(fit.heads) > 1:
        lines.append(
            "const predicts one value for every photo: label more photos, use `folds`, or predict "
            "with the folder of another head"
        )
    return lines


def _by_group(fit: "Fit", *, several: bool) -> list[str]:
    """A line per group and metric with every head's figure; the intervals are in fit.json."""
    lines: dict[str, list[str]] = {}
    stayed = {row.head for row in fit.rows if row.same_as}
    for one in fit.test.by if fit.test else ():
        figure = one.figure
        if figure.head in stayed:
            continue
        of = f" of {figure.target}" if several else ""
        title = f"{figure.metric}{of} for {one.column} {one.group} ({one.n} test rows)"
        if math.isfinite(one.noise_floor):
            title = title.removesuffix(")") + f", noise floor {number(one.noise_floor)})"
        share = figure.extra.get("explainable_share", math.nan)
        name = "its own mean" if figure.head.startswith(BY) else figure.head
        known = math.isfinite(share + figure.extra.get("explainable_share_low", math.nan))
        explained = _share(figure) if known and not figure.head.startswith(BY) else ""
        lines.setdefault(title, []).append(f"{name} {number(figure.value)}{explained}")
    return [f"{title}: {', '.join(figures)}" for title, figures in lines.items()]


def _share(figure: Figure) -> str:
    extra = figure.extra
    low, high = extra["explainable_share_low"], extra["explainable_share_high"]
    if extra.get("at_floor"):
        return f" (at the floor; {100 * low:.0f} to {100 * high:.0f} % explained)"
    return (
        f" (explains {100 * extra['explainable_share']:.0f} %, {100 * low:.0f} to {100 * high:.0f})"
    )


def _cells(row: "HeadRow", extras: list[str], fit: "Fit", *, several: bool) -> list[str]:
    cells = [row.head, *([row.target] if several else []), row.metric]
    if row.same_as:
        cells += [f"= {row.same_as}", "-"]
    else:
        unknown = f"not known at n = {fit.test.sample.n_groups}" if fit.test else "-"
        known = math.isfinite(row.low) and math.isfinite(row.high)
        within = f"{number(row.low)} to {number(row.high)}" if known else unknown
        cells += [number(row.value), within]
    cells += [number(row.dev)]
    cells += [f"{row.learning_rate:g}" if math.isfinite(row.learning_rate) else "-"]
    epochs = sorted({epoch for _, epoch in row.rounds if epoch is not None})
    cells += [str(row.epoch) if row.epoch is not None else _range(epochs)]
    for name in extras:
        value = math.nan if row.same_as else row.extra.get(name, math.nan)
        if name == "explainable_share" and row.extra.get("at_floor"):
            low = row.extra["explainable_share_low"]
            cells.append("at the floor" + (f" (from {low:.2f})" if math.isfinite(low) else ""))
        else:
            cells.append(number(value))
    p = math.nan if row.same_as or not row.versus else row.versus["p_adjusted"]
    return [*cells, "-" if not math.isfinite(p) else "<0.001" if p < 0.001 else f"{p:.3f}"]


def _range(values: list[int]) -> str:
    return f"{values[0]}-{values[-1]}" if values else "-"


def number(value: float) -> str:
    """A figure as tables print it: four decimals, or four digits where these would not show it."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.4g}"
