"""The one place where test rows are looked at: predicted first, then scored.

`predict_test` applies heads to the test rows of one split; `joined` pools those of several folds;
`judge` scores them, whatever they came from. Nothing that fits or chooses imports this module, and
nothing else asks a dataset for its test rows.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import LabelsError
from heads.dataset.rows import Dataset
from heads.fitting import calibration, intervals, metrics
from heads.fitting.intervals import Bootstrap, Difference, Sample
from heads.fitting.scores import predict_part, row_scores
from heads.head import Head

Floats = NDArray[np.float64]
BY = "const by "  # and the column: the mean of each of its groups, learnt from train rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of one head on the test rows, with its 95 % interval.

    extra: further figures by name, each with NAME_low and NAME_high. versus: the head that it is
    compared with, and the paired difference.
    """

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
    """One head's figure on the test rows with one value of a column, and their noise floor."""

    column: str
    group: str
    n: int
    noise_floor: float
    figure: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class TestRows:
    """Test rows and what each head predicts for them, before anything is scored.

    rows (n,): their places in the dataset. predictions: per head (n,) or (n, k); `BY` + column for
    the constants by group.
    """

    __test__ = False  # not a class of tests, whatever pytest makes of the name

    rows: NDArray[np.int64]
    predictions: Mapping[str, Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The test rows, what each head predicts, and the figures.

    truth (n,) or (n, k), weight (n,) or None, groups (n,); predictions per head, shaped as the
    head predicts. noise_floor: see `metrics.noise_floor`; NaN where it does not apply.
    n_effective: Kish's effective number of groups. n_comparisons: those that p_adjusted is for.
    n_single: rows with one trial, which say nothing of the noise floor.
    """

    ids: tuple[str, ...]
    truth: Floats
    weight: Floats | None
    groups: NDArray[np.int64]
    predictions: Mapping[str, Floats]
    figures: tuple[Figure, ...]
    by: tuple[GroupFigure, ...]
    noise_floor: float
    n_effective: float
    n_comparisons: int
    n_single: int
    reliability: Mapping[str, metrics.Reliability]

    @property
    def sample(self) -> Sample:
        """The weights and groups, for further figures on these rows."""
        return Sample(self.weight, self.groups)


def predict_test(dataset: Dataset, heads: Mapping[str, Head]) -> TestRows:
    """Apply heads to a dataset's test rows, and the constants of each column's groups."""
    part = dataset.part("test")
    predictions = predict_part(heads, part)
    for column in dataset.by:
        if column != dataset.target:
            predictions[BY + column] = _constants(dataset, column, part.rows)
    return TestRows(rows=part.rows, predictions=predictions)


def joined(parts: Sequence[TestRows]) -> TestRows:
    """The rows of several folds as one."""
    return TestRows(
        rows=np.concatenate([part.rows for part in parts]),
        predictions={
            name: np.concatenate([part.predictions[name] for part in parts])
            for name in parts[0].predictions
        },
    )


def judge(
    dataset: Dataset,
    tested: TestRows,
    *,
    reference: str,
    stayed: Collection[str] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> Judged:
    """Score predictions of test rows.

    reference: the head that the others are compared with, pair by pair; but not those that
        `stayed`, heads that never left their linear start and are no result of their own.
    """
    rows = tested.rows
    weight = None if dataset.weights is None else dataset.weights[rows]
    if weight is not None and not weight.any():
        raise LabelsError("all weights of the test rows are zero: no figure can be computed")
    scene = _Scene(dataset, rows, weight, resamples, seed)
    figures = [
        replace(one, versus=None) if one.head in stayed else one
        for one in scene.figures(tested.predictions, reference=reference, baseline="const")
    ]
    by = _by_group(scene, tested.predictions)
    compared = [one for one in figures if one.versus is not None]
    adjusted = intervals.holm([one.versus[1].p for one in compared if one.versus is not None])
    figures = [
        replace(one, versus=(one.versus[0], replace(one.versus[1], p_adjusted=adjusted.pop(0))))
        if one.versus is not None
        else one
        for one in figures
    ]
    return Judged(
        ids=tuple(dataset.ids[row] for row in rows),
        truth=dataset.targets[rows],
        weight=weight,
        groups=dataset.groups[rows],
        predictions=tested.predictions,
        figures=tuple(figures),
        by=tuple(by),
        noise_floor=scene.floor,
        n_effective=scene.sample.n_effective,
        n_comparisons=len(compared),
        n_single=0 if weight is None or not dataset.counts else int((weight == 1).sum()),
        reliability={
            name: metrics.reliability(scene.truth(0), seen, weight)
            for name, seen in tested.predictions.items()
            if seen.ndim == 1 and dataset.shares
        },
    )


def _constants(dataset: Dataset, column: str, rows: NDArray[np.int64]) -> Floats:
    """Per test row, the weighted mean of the train rows with its value of `column`.

    Class shares for several classes; the mean of all train rows for a value that none of them has.
    """
    train = dataset.part("train")
    values = np.array(dataset.by[column])
    targets, share = train.targets, train.share
    if dataset.task == "multiclass":
        targets = np.eye(len(dataset.classes))[targets[:, 0].astype(int)]
    found = np.tile(share @ targets, (len(rows), 1))
    for value in np.unique(values[train.rows]):
        inside = values[train.rows] == value
        if (total := share[inside].sum()) > 0:
            found[values[rows] == value] = share[inside] @ targets[inside] / total
    return found[:, 0] if found.shape[1] == 1 and dataset.targets.ndim == 1 else found


@dataclass(frozen=True)
class _Scene:
    """Some test rows of a dataset, to be scored: all of them, or one group's."""

    dataset: Dataset
    rows: NDArray[np.int64]
    weight: Floats | None
    resamples: int
    seed: int

    @property
    def sample(self) -> Sample:
        return Sample(self.weight, self.dataset.groups[self.rows])

    @property
    def floor(self) -> float:
        if not self.dataset.counts or self.weight is None:
            return math.nan
        return metrics.noise_floor(self.truth(0), self.weight)

    def truth(self, k: int) -> Floats:
        """The k-th target of the rows."""
        targets = self.dataset.targets[self.rows]
        return targets[:, k] if targets.ndim == 2 else targets

    def figures(
        self, predictions: Mapping[str, Floats], *, reference: str, baseline: str
    ) -> list[Figure]:
        """Every figure of every head, head by head; baseline: the constant of explained shares."""
        found: list[Figure] = []
        sample = self.sample
        for k, target in enumerate(self.dataset.target_names):
            truth = self.truth(k)
            seen = {name: self._column(p, k) for name, p in predictions.items()}
            scores = {n: row_scores(self.dataset.task, truth, p) for n, p in seen.items()}
            for name in seen:
                for metric, rows in scores[name].items():
                    versus = None
                    if reference in seen and name != reference:
                        other = scores[reference][metric]
                        compare = (
                            intervals.share_difference
                            if metric == "accuracy"
                            else intervals.difference
                        )
                        versus = (reference, compare(sample, rows, other))
                    within = (
                        intervals.share_interval
                        if metric == "accuracy"
                        else intervals.loss_interval
                    )
                    low, high = within(sample, rows)
                    extra = self._extra(metric, truth, seen[name], moves=name != "const")
                    if metric == "mse" and baseline in seen:
                        extra |= self._explained(truth, seen[baseline], seen[name], sample)
                    found.append(
                        Figure(
                            head=name,
                            target=target,
                            metric=metric,
                            value=sample.mean(rows),
                            low=low,
                            high=high,
                            extra=extra,
                            versus=versus,
                        )
                    )
        order = list(predictions)
        return sorted(found, key=lambda figure: order.index(figure.head))

    def _column(self, values: Floats, k: int) -> Floats:
        """The column of one target among several; class probabilities stay together."""
        return values[:, k] if self.dataset.targets.ndim == 2 and values.ndim == 2 else values

    def _extra(self, metric: str, truth: Floats, seen: Floats, *, moves: bool) -> dict[str, float]:
        """The further figures that stand in the same row.

        moves: whether the head says different things of different photos; a constant moves only
        from fold to fold, and an order or a line of its predictions would say nothing.
        """
        none = (math.nan, math.nan, math.nan)
        sample, weight = self.sample, self.weight
        found: dict[str, tuple[float, float, float]] = {}
        if metric == "mse":
            error, spread = metrics.squared_error(truth, seen), (truth - sample.mean(truth)) ** 2
            low, high = intervals.ratio_interval(sample, error, spread)
            found["r2"] = (metrics.r2(truth, seen, weight), 1 - high, 1 - low)
            away = metrics.absolute_error(truth, seen)
            found["mae"] = (sample.mean(away), *intervals.loss_interval(sample, away))
            linear = intervals.correlation_interval(sample, truth, seen)
            found["pearson"] = (metrics.pearson(truth, seen, weight), *linear)
            alone = Sample(None, sample.groups)
            ranks = (metrics.ranks(truth), metrics.ranks(seen))
            ranked = intervals.correlation_interval(alone, *ranks)
            found["rank_correlation"] = (metrics.rank_correlation(truth, seen), *ranked)
            line = calibration.line(sample, truth, seen, chance=False)
        elif metric == "log_loss" and self.dataset.task == "binary":
            area = intervals.auc_interval(sample, truth, seen)
            found["auc"] = (metrics.auc(truth, seen, weight), *area)
            line = calibration.line(sample, truth, seen, chance=True)
        else:
            return {}
        found |= {"calibration_slope": line.slope, "calibration_intercept": line.intercept}
        if not moves:
            fixed = {"r2": found["r2"], "mae": found["mae"]} if metric == "mse" else {}
            found = dict.fromkeys(found, none) | fixed
        named: dict[str, float] = {}
        for name, (value, low, high) in found.items():
            named |= {name: value, f"{name}_low": low, f"{name}_high": high}
        return named

    def _explained(
        self, truth: Floats, constant: Floats, seen: Floats, sample: Sample
    ) -> dict[str, float]:
        """The share of what the noise floor leaves to explain, at most 1.

        Constant, error and floor are resampled together, by whole groups.
        """
        if not math.isfinite(self.floor) or self.weight is None:
            return {}
        mass = np.where(sample.mass > 0, sample.mass, 1.0)
        columns = np.column_stack(
            [
                metrics.squared_error(truth, constant),
                metrics.squared_error(truth, seen),
                metrics.noise_terms(truth, self.weight) / mass[:, None],
                np.ones(len(truth)),
            ]
        )

        def share(sums: Floats) -> Floats:
            with np.errstate(invalid="ignore", divide="ignore"):
                floor = sums[:, 2] / sums[:, 3] * sums[:, 4]
                room = sums[:, 0] - floor
                return np.where(room > 0, (sums[:, 0] - sums[:, 1]) / room, np.nan)

        value = float(share(sample.sums(columns).sum(0)[None])[0])
        low, high = Bootstrap(sample, self.resamples, self.seed).interval(columns, share)
        capped = [min(one, 1.0) if math.isfinite(one) else one for one in (value, low, high)]
        return dict(
            zip(
                ("explainable_share", "explainable_share_low", "explainable_share_high"),
                capped,
                strict=True,
            )
        ) | {"at_floor": float(value >= 1)}


def _by_group(scene: _Scene, predictions: Mapping[str, Floats]) -> list[GroupFigure]:
    """Figures in each group of each column, beside and compared with the group's own constant."""
    found: list[GroupFigure] = []
    for column, group_of in scene.dataset.by.items():
        values = np.array([group_of[row] for row in scene.rows])
        mine = BY + column
        heads = {n: p for n, p in predictions.items() if not n.startswith(BY) or n == mine}
        for value in sorted(set(values.tolist())):
            inside = np.flatnonzero(values == value)
            weight = None if scene.weight is None else scene.weight[inside]
            if weight is not None and not weight.any():
                continue
            some = replace(scene, rows=scene.rows[inside], weight=weight)
            seen = {name: p[inside] for name, p in heads.items()}
            figures = some.figures(seen, reference=mine, baseline=mine)
            found += [
                GroupFigure(
                    column=column, group=value, n=len(inside), noise_floor=some.floor, figure=one
                )
                for one in figures
            ]
    return found
