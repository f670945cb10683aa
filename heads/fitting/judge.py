"""The one place where test rows are looked at: predicted first, then scored.

`predict_test` applies heads to the test rows of one split; `joined` pools those of several folds;
`judge` scores them, whatever they came from. Nothing that fits or chooses imports this module, and
nothing else asks a dataset for its test rows.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import LabelsError
from heads.dataset.rows import Dataset
from heads.fitting import calibration, intervals, metrics
from heads.fitting.intervals import FEW, Bootstrap, Difference, Sample
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
    """Test rows and what each head predicts for them: all that scoring needs.

    n rows: ids; truth (n,) or (n, k); weight (n,) or None; groups (n,); fold (n,), which of
    `n_folds` tested each (one split has none); group_of: per column, the value of each row.
    predictions: per head (n,) or (n, k); `BY` + column for the constants by group. counts, shares:
    see `Dataset`.
    """

    __test__ = False  # not a class of tests, whatever pytest makes of the name

    task: str
    target_names: tuple[str, ...]
    counts: bool
    shares: bool
    ids: tuple[str, ...]
    truth: Floats
    weight: Floats | None
    groups: NDArray[np.int64]
    fold: NDArray[np.int64]
    n_folds: int | None
    group_of: Mapping[str, tuple[str, ...]]
    predictions: Mapping[str, Floats]

    @property
    def sample(self) -> Sample:
        return Sample(self.weight, self.groups)

    def only(self, rows: NDArray[np.int64], heads: Collection[str]) -> "TestRows":
        """Some of the rows, with the predictions of some heads."""
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            truth=self.truth[rows],
            weight=None if self.weight is None else self.weight[rows],
            groups=self.groups[rows],
            fold=self.fold[rows],
            group_of={
                name: tuple(values[row] for row in rows) for name, values in self.group_of.items()
            },
            predictions={name: self.predictions[name][rows] for name in heads},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(TestRows):
    """Test rows with their figures.

    noise_floor: see `metrics.noise_floor`; NaN where it does not apply. n_effective: Kish's
    effective number of groups. n_comparisons: those that p_adjusted is for. n_single: rows with one
    trial, which say nothing of the noise floor.
    """

    figures: tuple[Figure, ...]
    by: tuple[GroupFigure, ...]
    noise_floor: float
    n_effective: float
    n_comparisons: int
    n_single: int
    reliability: Mapping[str, metrics.Reliability]


def predict_test(
    dataset: Dataset,
    heads: Mapping[str, Head],
    *,
    fold: int = 0,
    device: str = "cpu",
    memory_bytes: int | None = None,
) -> TestRows:
    """Apply heads to a dataset's test rows, and the constants of each column's groups.

    device: where heads predict. memory_bytes: see `Protocol`.
    """
    part = dataset.part("test")
    rows = part.rows
    if device == "cpu":
        predictions = predict_part(heads, part)
    else:
        from heads.fitting.on_device import moved

        predictions = predict_part(heads, *moved([part], device, memory_bytes))
    for column in dataset.by:
        if column != dataset.target:
            predictions[BY + column] = _constants(dataset, column, rows)
    return TestRows(
        task=dataset.task,
        target_names=dataset.target_names,
        counts=dataset.counts,
        shares=dataset.shares,
        ids=tuple(dataset.ids[row] for row in rows),
        truth=dataset.targets[rows],
        weight=part.weights,
        groups=part.groups,
        fold=np.full(len(rows), fold),
        n_folds=None,
        group_of={name: tuple(values[row] for row in rows) for name, values in dataset.by.items()},
        predictions=predictions,
    )


def joined(parts: Sequence[TestRows]) -> TestRows:
    """The rows of several folds as one."""
    first = parts[0]
    weights = [part.weight for part in parts if part.weight is not None]
    return replace(
        first,
        ids=tuple(name for part in parts for name in part.ids),
        truth=np.concatenate([part.truth for part in parts]),
        weight=np.concatenate(weights) if weights else None,
        groups=np.concatenate([part.groups for part in parts]),
        fold=np.concatenate([part.fold for part in parts]),
        n_folds=len(parts) if len(parts) > 1 else None,
        group_of={
            name: tuple(value for part in parts for value in part.group_of[name])
            for name in first.group_of
        },
        predictions={
            name: np.concatenate([part.predictions[name] for part in parts])
            for name in first.predictions
        },
    )


def judge(
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
    Differences, correlations and areas by folds are widened, see `intervals.widening`.
    """
    weight = tested.weight
    if weight is not None and not weight.any():
        raise LabelsError("all weights of the test rows are zero: no figure can be computed")
    scene = _Scene(tested, stayed, resamples, seed)
    figures, n_compared = _adjusted(scene.figures(reference=reference, baseline="const"))
    by = _by_group(scene)
    by_figures, _ = _adjusted([one.figure for one in by])
    return Judged(
        **{field.name: getattr(tested, field.name) for field in fields(tested)},
        figures=tuple(figures),
        by=tuple(replace(one, figure=f) for one, f in zip(by, by_figures, strict=True)),
        noise_floor=scene.floor,
        n_effective=tested.sample.n_effective,
        n_comparisons=n_compared,
        n_single=0 if weight is None or not tested.counts else int((weight == 1).sum()),
        reliability={
            name: metrics.reliability(scene.truth(0), seen, weight)
            for name, seen in tested.predictions.items()
            if seen.ndim == 1 and tested.shares
        },
    )


def _adjusted(figures: Sequence[Figure]) -> tuple[list[Figure], int]:
    """The figures of one table with p adjusted for all its comparisons, and their number."""
    p = [one.versus[1].p if one.versus else math.nan for one in figures]
    found = [
        replace(one, versus=(one.versus[0], replace(one.versus[1], p_adjusted=adjusted)))
        if one.versus
        else one
        for one, adjusted in zip(figures, intervals.holm(p), strict=True)
    ]
    return found, sum(map(math.isfinite, p))


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
    """Test rows to be scored: all of them, or one group's."""

    tested: TestRows
    stayed: Collection[str]
    resamples: int
    seed: int

    @cached_property
    def sample(self) -> Sample:
        return self.tested.sample

    @cached_property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(self.sample, self.resamples, self.seed)

    @property
    def widened(self) -> float:
        return intervals.widening(self.tested.n_folds)

    @property
    def floor(self) -> float:
        weight = self.tested.weight
        if not self.tested.counts or weight is None:
            return math.nan
        return metrics.noise_floor(self.truth(0), weight)

    def truth(self, k: int) -> Floats:
        """The k-th target of the rows."""
        truth = self.tested.truth
        return truth[:, k] if truth.ndim == 2 else truth

    def figures(self, *, reference: str, baseline: str) -> list[Figure]:
        """Every figure of every head, head by head; baseline: the constant of explained shares."""
        found: list[Figure] = []
        sample, task = self.sample, self.tested.task
        for k, target in enumerate(self.tested.target_names):
            truth = self.truth(k)
            seen = {name: self._column(p, k) for name, p in self.tested.predictions.items()}
            scores = {name: row_scores(task, truth, p) for name, p in seen.items()}
            for name in seen:
                for metric, rows in scores[name].items():
                    share = metric == "accuracy"
                    versus = None
                    if reference in seen and name not in (reference, *self.stayed):
                        gap = intervals.share_difference if share else intervals.difference
                        other = scores[reference][metric]
                        versus = (reference, gap(sample, rows, other, widened=self.widened))
                    within = intervals.share_interval if share else intervals.loss_interval
                    low, high = within(sample, rows)
                    moves = name not in ("const", baseline)
                    extra = self._extra(metric, truth, seen[name], seen[baseline], moves=moves)
                    if metric == "mse":
                        extra |= self._explained(truth, seen[baseline], seen[name])
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
        order = list(self.tested.predictions)
        return sorted(found, key=lambda figure: order.index(figure.head))

    def _column(self, values: Floats, k: int) -> Floats:
        """The column of one target among several; class probabilities stay together."""
        return values[:, k] if self.tested.truth.ndim == 2 and values.ndim == 2 else values

    def _extra(
        self, metric: str, truth: Floats, seen: Floats, constant: Floats, *, moves: bool
    ) -> dict[str, float]:
        """The further figures that stand in the same row.

        moves: whether the head says different things of different photos; by folds, in each of
        them. Correlations and areas are means over folds, see `intervals.over_folds`.
        """
        fold = self.tested.fold
        moves = moves and all(np.ptp(seen[fold == number]) > 0 for number in np.unique(fold))
        none = (math.nan, math.nan, math.nan)
        sample, weight = self.sample, self.tested.weight
        found: dict[str, tuple[float, float, float]] = {}
        if metric == "mse":
            error, spread = metrics.squared_error(truth, seen), (truth - sample.mean(truth)) ** 2
            r2 = metrics.r2(truth, seen, weight)
            low, high = intervals.ratio_interval(sample, error, spread)
            found["r2"] = (r2, 1 - high, 1 - low) if math.isfinite(r2) else none
            away = metrics.absolute_error(truth, seen)
            found["mae"] = (sample.mean(away), *intervals.loss_interval(sample, away))
            found["pearson"] = intervals.correlation(
                sample, truth, seen, fold, widened=self.widened
            )
            alone = Sample((sample.mass > 0).astype(float), sample.groups)
            first, second = (_ranks(values, alone.mass, fold) for values in (truth, seen))
            found["rank_correlation"] = intervals.correlation(
                alone, first, second, fold, widened=self.widened
            )
            line = calibration.line(
                sample, truth, seen, constant, chance=False, widened=self.widened
            )
        elif metric == "log_loss" and self.tested.task == "binary":
            found["auc"] = intervals.auc(sample, truth, seen, fold, widened=self.widened)
            line = calibration.line(
                sample, truth, seen, constant, chance=True, widened=self.widened
            )
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

    def _explained(self, truth: Floats, constant: Floats, seen: Floats) -> dict[str, float]:
        """The share of what the noise floor leaves to explain, at most 1.

        Constant, error and floor are resampled together, by whole groups.
        """
        sample, weight, floor = self.sample, self.tested.weight, self.floor
        if not math.isfinite(floor) or weight is None:
            return {}
        mass = np.where(sample.mass > 0, sample.mass, 1.0)
        error = metrics.squared_error(truth, seen)
        columns = np.column_stack(
            [
                metrics.squared_error(truth, constant),
                error,
                metrics.noise_terms(truth, weight) / mass[:, None],
                np.ones(len(truth)),
            ]
        )

        def share(sums: Floats) -> Floats:
            with np.errstate(invalid="ignore", divide="ignore"):
                floor = sums[:, 2] / sums[:, 3] * sums[:, 4]
                room = sums[:, 0] - floor
                return np.where(room > 0, (sums[:, 0] - sums[:, 1]) / room, np.nan)

        value = float(share(sample.sums(columns).sum(0)[None])[0])
        low = high = math.nan
        if sample.n_effective >= FEW:  # of fewer groups a bootstrap holds too seldom
            low, high = self.bootstrap.interval(columns, share)
        capped = [min(one, 1.0) if math.isfinite(one) else one for one in (value, low, high)]
        names = ("explainable_share", "explainable_share_low", "explainable_share_high")
        at_floor = float(sample.mean(error) <= floor)
        return dict(zip(names, capped, strict=True)) | {"at_floor": at_floor}


def _ranks(values: Floats, counts: Floats, fold: NDArray[np.int64]) -> Floats:
    """Ranks among the rows of the same fold that count (1, else 0)."""
    found = np.empty(len(values))
    for number in np.unique(fold):
        here = fold == number
        found[here] = metrics.ranks(values[here], counts[here])
    return found


def _by_group(scene: _Scene) -> list[GroupFigure]:
    """Figures in each group of each column, beside and compared with the group's own constant."""
    found: list[GroupFigure] = []
    for column, group_of in scene.tested.group_of.items():
        values = np.array(group_of)
        mine = BY + column
        heads = [name for name in scene.tested.predictions if not name.startswith(BY)]
        if mine in scene.tested.predictions:
            heads.append(mine)
        for value in sorted(set(group_of)):
            inside = np.flatnonzero(values == value)
            some = replace(scene, tested=scene.tested.only(inside, heads))
            if some.tested.weight is not None and not some.tested.weight.any():
                continue
            baseline = mine if mine in heads else "const"
            found += [
                GroupFigure(
                    column=column, group=value, n=len(inside), noise_floor=some.floor, figure=one
                )
                for one in some.figures(reference=mine, baseline=baseline)
            ]
    return found
