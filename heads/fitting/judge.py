"""The one place where test rows are looked at.

`judge` takes fitted heads and returns everything that is said about the test set. Nothing that fits
or chooses imports this module, and nothing else asks a dataset for its test rows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import LabelsError
from heads.dataset.rows import Dataset, Part
from heads.fitting import metrics
from heads.fitting.intervals import Bootstrap, Difference, difference, interval
from heads.head import Head

Floats = NDArray[np.float64]
SECOND_RESAMPLES = 400


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
    predictions = predict_part(heads, part)
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


def predict_part(heads: Mapping[str, Head], part: Part) -> dict[str, Floats]:
    """What each head predicts for the rows of a part, which are read once, a few at a time."""
    found = {
        name: np.empty((len(part), head.outputs) if head.outputs > 1 else len(part))
        for name, head in heads.items()
    }
    for places, block in part.blocks():
        for name, head in heads.items():
            found[name][places] = head.predict(block)
    return found


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
            baseline = predictions["const"] if metric == "mse" and "const" in names else None
            second = _second(dataset.task, metric, truth, predictions[name], baseline, floor)
            extra = _with_intervals(second, weight, boot, groups)
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


def _second(
    task: str,
    metric: str,
    truth: Floats,
    prediction: Floats,
    baseline: Floats | None,
    floor: float,
) -> dict[str, Callable[[Floats, Floats], float]]:
    """The figures that stand in the same row, as functions of (weight, draws per row)."""
    if metric == "mse":
        found: dict[str, Callable[[Floats, Floats], float]] = {
            "r2": lambda weight, _: metrics.r2(truth, prediction, weight),
            "rank_correlation": lambda _, draws: metrics.rank_correlation(truth, prediction, draws),
        }
        if baseline is not None and math.isfinite(floor):
            # The floor is taken as known: its own uncertainty is not in the interval.
            found["explainable_share"] = lambda weight, _: metrics.explainable_share(
                metrics.mse(truth, baseline, weight),
                metrics.mse(truth, prediction, weight),
                floor,
            )
        return found
    if task == "binary" and metric == "log_loss":
        return {
            "auc": lambda weight, _: metrics.auc(truth, prediction, weight),
            "calibration_error": lambda weight, _: (
                metrics.reliability(truth, prediction, weight).error
            ),
        }
    return {}


def _with_intervals(
    second: Mapping[str, Callable[[Floats, Floats], float]],
    weight: Floats | None,
    boot: Bootstrap,
    groups: int,
) -> dict[str, float]:
    """NAME, NAME_low and NAME_high of each figure; fewer resamples, for each one is a sort."""
    few = replace(boot, resamples=min(boot.resamples, SECOND_RESAMPLES))
    base = np.ones(len(boot.groups)) if weight is None else weight
    found: dict[str, float] = {}
    for name, figure in second.items():
        found[name] = figure(base, np.ones(len(base)))
        drawn = few.each(partial(_drawn, figure, base))
        found[f"{name}_low"], found[f"{name}_high"] = interval(drawn, groups=groups)
    return found


def _drawn(figure: Callable[[Floats, Floats], float], base: Floats, draws: Floats) -> float:
    return figure(base * draws, draws)


def _by_group(
    dataset: Dataset,
    rows: NDArray[np.int64],
    weight: Floats | None,
    predictions: Mapping[str, Floats],
    boot: Bootstrap,
) -> list[GroupFigure]:
    found: list[GroupFigure] = []
    for column, group_of in dataset.by.items():
        values = np.array([group_of[row] for row in rows])
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
