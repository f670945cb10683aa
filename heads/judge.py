"""The one place where test rows are looked at.

`judge` takes fitted heads and returns everything that is said about the test set. Nothing that fits
or chooses imports this module, and nothing else asks a dataset for its test rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import LabelsError
from heads import metrics
from heads.dataset import Dataset
from heads.head import Head
from heads.intervals import Bootstrap, Difference, difference, interval

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of one head on the test rows, with its 95 % interval."""

    head: str
    target: str
    metric: str
    value: float
    low: float
    high: float
    extra: Mapping[str, float] = field(default_factory=dict)
    versus: tuple[str, Difference] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFigure:
    """One head's figure on the test rows with one value of a column."""

    column: str
    group: str
    n: int
    figure: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The test rows, what each head said of them, and the figures.

    truth (n,) or (n, k), weight (n,) or None, groups (n,); predictions per head, shaped as the
    head predicts. noise_floor: see `metrics.noise_floor`; NaN where it does not apply.
    """

    ids: tuple[str, ...]
    truth: Floats
    weight: Floats | None
    groups: NDArray[np.int64]
    predictions: Mapping[str, Floats]
    figures: tuple[Figure, ...]
    by: tuple[GroupFigure, ...]
    noise_floor: float
    reliability: Mapping[str, metrics.Reliability]


def judge(
    dataset: Dataset,
    heads: Mapping[str, Head],
    *,
    reference: str,
    resamples: int = 2000,
    seed: int = 0,
) -> Judged:
    """Apply every head to the test rows and say how good it is.

    reference: the head that the others are compared with, pair by pair.
    """
    part = dataset.part("test")
    if part.weights is not None and not part.weights.any():
        raise LabelsError("all weights of the test rows are zero: there is nothing to judge by")
    vectors = part.read()
    predictions = {name: head.predict(vectors) for name, head in heads.items()}
    boot = Bootstrap(part.groups, resamples, seed)
    floor = math.nan
    if dataset.counts and part.weights is not None:
        floor = metrics.noise_floor(part.targets[:, 0], part.weights)
    figures: list[Figure] = []
    for k, target in enumerate(dataset.target_names):
        seen = {n: p[:, k] if dataset.targets.ndim == 2 and p.ndim == 2 else p
                for n, p in predictions.items()}  # fmt: skip
        figures += _figures(
            dataset, part.targets[:, k], seen, part.weights, boot, target, reference, floor
        )
    rows = part.rows
    return Judged(
        ids=tuple(dataset.ids[row] for row in rows),
        truth=dataset.targets[rows],
        weight=part.weights,
        groups=part.groups,
        predictions=predictions,
        figures=tuple(figures),
        by=tuple(_by_group(dataset, rows, part.weights, predictions, boot)),
        noise_floor=floor,
        reliability={
            name: metrics.reliability(part.targets[:, 0], seen, part.weights)
            for name, seen in predictions.items()
            if seen.ndim == 1 and (dataset.task == "binary" or heads[name].link == "sigmoid")
        },
    )


def row_scores(task: str, truth: Floats, prediction: Floats) -> dict[str, Floats]:
    """Per metric of a task, the score of each row; the metric is their weighted mean."""
    if task == "regression":
        return {"mse": metrics.squared_error(truth, prediction)}
    return {
        "accuracy": metrics.row_hit(truth, prediction),
        "log_loss": metrics.row_log_loss(truth, prediction),
    }


def _figures(
    dataset: Dataset,
    truth: Floats,
    predictions: Mapping[str, Floats],
    weight: Floats | None,
    boot: Bootstrap,
    target: str,
    reference: str,
    floor: float,
) -> list[Figure]:
    names = list(predictions)
    scores = [row_scores(dataset.task, truth, predictions[name]) for name in names]
    groups = len(np.unique(boot.groups))
    figures: list[Figure] = []
    for metric in scores[0]:
        columns = np.stack([score[metric] for score in scores], 1)
        values = [metrics.mean(column, weight) for column in columns.T]
        drawn = boot.means(columns, weight)
        for place, name in enumerate(names):
            low, high = interval(drawn[:, place], groups=groups)
            versus = None
            if reference in names and name != reference:
                at = names.index(reference)
                gap = drawn[:, place] - drawn[:, at]
                versus = (reference, difference(values[place] - values[at], gap, groups=groups))
            extra = _extra(
                dataset.task, metric, truth, predictions[name], weight, values, place, names, floor
            )
            figures.append(
                Figure(
                    head=name,
                    target=target,
                    metric=metric,
                    value=values[place],
                    low=low,
                    high=high,
                    extra=extra,
                    versus=versus,
                )
            )
    return sorted(figures, key=lambda figure: names.index(figure.head))


def _extra(
    task: str,
    metric: str,
    truth: Floats,
    prediction: Floats,
    weight: Floats | None,
    values: Sequence[float],
    place: int,
    names: Sequence[str],
    floor: float,
) -> dict[str, float]:
    """The second-rank figures that stand in the same row."""
    if metric == "mse":
        extra = {
            "r2": metrics.r2(truth, prediction, weight),
            "rank_correlation": metrics.rank_correlation(truth, prediction),
        }
        if "const" in names:
            constant = values[names.index("const")]
            extra["explainable_share"] = metrics.explainable_share(constant, values[place], floor)
        return extra
    if task == "binary" and metric == "log_loss":
        return {
            "auc": metrics.auc(truth, prediction, weight),
            "calibration_error": metrics.reliability(truth, prediction, weight).error,
        }
    return {}


def _by_group(
    dataset: Dataset,
    rows: NDArray[np.int64],
    weight: Floats | None,
    predictions: Mapping[str, Floats],
    boot: Bootstrap,
) -> list[GroupFigure]:
    found: list[GroupFigure] = []
    for column, told in dataset.by.items():
        values = np.array([told[row] for row in rows])
        for value in sorted(set(values.tolist())):
            inside = np.flatnonzero(values == value)
            some = Bootstrap(boot.groups[inside], boot.resamples, boot.seed)
            mass = None if weight is None else weight[inside]
            for k, target in enumerate(dataset.target_names):
                seen = {name: _one(dataset, p[inside], k) for name, p in predictions.items()}
                truth = _one(dataset, dataset.targets[rows[inside]], k)
                found += [
                    GroupFigure(column=column, group=value, n=len(inside), figure=figure)
                    for figure in _figures(dataset, truth, seen, mass, some, target, "", math.nan)
                ]
    return found


def _one(dataset: Dataset, values: Floats, k: int) -> Floats:
    """The column of one target among several; class probabilities stay together."""
    return values[:, k] if dataset.targets.ndim == 2 and values.ndim == 2 else values
