"""One task from a dataset to a table: every head fitted, chosen on dev, judged once on test.

A split is one round, K folds are K rounds: in round i fold i tests, the next one chooses and the
others train. The predictions of all rounds are pooled and then judged by the same code.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import LabelsError
from heads.dataset.rows import Dataset
from heads.fitting.candidates import Candidate, CurvePoint, chosen_names, fit_candidates
from heads.fitting.choice import simplest
from heads.fitting.intervals import Sample
from heads.fitting.judge import Figure, Judged, TestRows, joined, judge, predict_test
from heads.fitting.protocol import Protocol, protocol_of
from heads.fitting.result import CHOICE, Fit, HeadRow
from heads.fitting.soundness import counted, notes_on, require_sides
from heads.head import merged
from heads.saved import save

Floats = NDArray[np.float64]


def fit(
    dataset: Dataset,
    *,
    heads: str | Sequence[str] = "all",
    protocol: Protocol | None = None,
    folds: int | None = None,
    dev_only: bool = False,
    resamples: int = 2000,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Fit:
    """Fit heads on the train rows, choose by the dev rows, judge once on the test rows.

    heads: "all" that fit the task, or one or several of const, ridge, logistic, 0fc, 1fc, 2fc; the
        constant and the linear baseline always stand in the table.
    protocol: how to fit; or name the fields of `Protocol` that differ from its defaults as options.
    folds: K-fold in place of the dataset's split. Every row is tested once, by heads that never saw
        its group; a further row of the table, "dev's choice", takes in each fold the head that dev
        chose there. A saved head is the mean of the K.
    dev_only: look at no test row; for those who try many things.
    resamples: the number of bootstrap draws for explained shares.
    progress: called now and then with the epochs done, over all folds, and those in all.
    InputError for an unknown option. LabelsError when a side has no rows, or the train side one
    class only.
    """
    began = time.perf_counter()
    if protocol is not None and options:
        raise TypeError(f"give a protocol or options, not both; got {', '.join(options)}")
    protocol = protocol or protocol_of(options)
    names = chosen_names(heads, dataset.task)
    rounds = _rounds(dataset, names, protocol, folds, dev_only=dev_only, progress=progress)
    first = rounds[0].dataset
    judged = None if dev_only else _judged(rounds, resamples, protocol.seed)
    pooled = {name: _pooled(name, rounds) for name in rounds[0].found}
    if folds is not None:
        pooled[CHOICE] = _pooled_choice(rounds)
    return Fit(
        dataset=dataset,
        protocol=protocol,
        folds=folds,
        n=_sizes(rounds),
        rows=tuple(_rows(judged, pooled, first)),
        heads={name: merged([r.found[name].head for r in rounds]) for name in rounds[0].found},
        best=_most_chosen(rounds),
        dev_of_choice=tuple(one.dev for one in rounds),
        test=judged,
        curves={name: _mean_curve([r.found[name].curve for r in rounds]) for name in names},
        notes=_notes(rounds, judged, folds),
        seconds=time.perf_counter() - began,
        writer=save,
    )


def _rounds(
    dataset: Dataset,
    names: Sequence[str],
    protocol: Protocol,
    folds: int | None,
    *,
    dev_only: bool,
    progress: Callable[[int, int], None] | None,
) -> list["_Round"]:
    """Every split fitted, one after the other."""
    splits = _splits(dataset, folds, protocol.seed)
    total = len(splits) * protocol.epochs
    found = []
    for number, one in enumerate(splits):

        def tick(epoch: int, before: int = number * protocol.epochs) -> None:
            if progress is not None:
                progress(before + epoch, total)

        fold = None if folds is None else number
        found.append(_fit_round(one, names, protocol, fold=fold, dev_only=dev_only, tick=tick))
    return found


def _judged(rounds: Sequence["_Round"], resamples: int, seed: int) -> Judged:
    """The test rows of all rounds, scored as one."""
    tested = joined([one.tested for one in rounds if one.tested is not None])
    reference = "ridge" if tested.task == "regression" else "logistic"
    stayed = [name for name in rounds[0].found if all(one.found[name].same_as for one in rounds)]
    if len({one.choice for one in rounds}) == 1:
        stayed.append(CHOICE)  # it is that head, which stands there with its own comparison
    return judge(tested, reference=reference, stayed=stayed, resamples=resamples, seed=seed)


@dataclass(frozen=True, slots=True)
class _Round:
    """One split of the rows, the heads fitted on it and what they predict for its test rows.

    choice: the head that dev chose, dev: its loss there.
    """

    dataset: Dataset
    found: Mapping[str, Candidate]
    choice: str
    dev: float
    tested: TestRows | None


@dataclass(frozen=True, slots=True)
class _Pooled:
    """One head over all rounds. rounds: (rate, epoch) of each."""

    dev: Mapping[tuple[str, str], float]
    rounds: tuple[tuple[float, int | None], ...]
    seconds: float
    same_as: str | None = None
    chosen: Mapping[str, int] | None = None


def _splits(dataset: Dataset, count: int | None, seed: int) -> list[Dataset]:
    """The dataset as it is split, or one per fold."""
    if count is None:
        return [dataset]
    if dataset.provenance.split_rule.startswith("column "):
        raise LabelsError(
            f"the split is given by {dataset.provenance.split_rule}, and {count} folds were asked "
            f"for: leave one of them out"
        )
    fold = dataset.folds(count, seed=seed)
    return [dataset.fold(number, fold, count) for number in range(count)]


def _fit_round(
    dataset: Dataset,
    names: Sequence[str],
    protocol: Protocol,
    *,
    fold: int | None,
    dev_only: bool,
    tick: Callable[[int], None],
) -> _Round:
    require_sides(dataset, sides=("train", "dev") if dev_only else ("train", "dev", "test"))
    train, dev = dataset.part("train"), dataset.part("dev")
    found = fit_candidates(train, dev, names, dataset=dataset, protocol=protocol, tick=tick)
    scores = {name: one.dev_scores for name, one in found.items()}
    sample = Sample(dev.weights, dev.groups)
    choice = simplest(scores, sample)
    loss = sample.mean(scores[choice])
    if dev_only:
        return _Round(dataset, found, choice, loss, None)
    fitted = {name: one.head for name, one in found.items()}
    tested = predict_test(
        dataset, fitted, fold=fold or 0, device=protocol.device, memory_bytes=protocol.memory_bytes
    )
    if fold is not None:
        chosen = {CHOICE: tested.predictions[choice]}
        tested = replace(tested, predictions={**tested.predictions, **chosen})
    return _Round(dataset, found, choice, loss, tested)


def _pooled(name: str, rounds: Sequence[_Round]) -> _Pooled:
    found = [one.found[name] for one in rounds]
    same = [one.same_as or "" for one in found]
    return _Pooled(
        dev=_mean_dev([one.dev for one in found], rounds),
        rounds=tuple((one.rate, one.epoch) for one in found),
        seconds=sum(one.seconds for one in found),
        same_as=max(same, key=len) if all(same) else None,
    )


def _pooled_choice(rounds: Sequence[_Round]) -> _Pooled:
    """The head that dev chose in each round, as a head of its own."""
    found = [one.found[one.choice] for one in rounds]
    return _Pooled(
        dev=_mean_dev([one.dev for one in found], rounds),
        rounds=(),
        seconds=sum(c.seconds for one in rounds for c in one.found.values()),
        chosen=dict(Counter(one.choice for one in rounds)),
    )


def _mean_dev(
    figures: Sequence[Mapping[tuple[str, str], float]], rounds: Sequence[_Round]
) -> dict[tuple[str, str], float]:
    """Dev figures over the dev rows of all rounds, each by its weight."""
    mass = []
    for one in rounds:
        dev = one.dataset.part("dev")
        mass.append(len(dev) if dev.weights is None else dev.weights.sum())
    return {
        key: float(np.average([one[key] for one in figures], weights=mass)) for key in figures[0]
    }


def _most_chosen(rounds: Sequence[_Round]) -> str:
    """The head that dev chose, by folds in most of them; of equals the simplest.

    Dev figures pooled over folds would not do: every strength was chosen on the rows that they are
    taken from, and K times as many rows make so small a luck look certain.
    """
    counts = Counter(one.choice for one in rounds)
    return max(rounds[0].found, key=lambda name: counts[name])  # the first of equals


def _sizes(rounds: Sequence[_Round]) -> dict[str, int]:
    """Rows per side; with folds the mean that trained, and all that chose and tested."""
    sizes = [one.dataset.n for one in rounds]
    if len(rounds) == 1:
        return sizes[0]
    return {
        "train": round(sum(n["train"] for n in sizes) / len(sizes)),
        "dev": sum(n["dev"] for n in sizes),
        "test": sum(n["test"] for n in sizes),
    }


def _rows(judged: Judged | None, pooled: Mapping[str, _Pooled], dataset: Dataset) -> list[HeadRow]:
    """The lines of the table; without test rows their figures are NaN."""
    if judged is not None:
        return [_row(figure, pooled.get(figure.head)) for figure in judged.figures]
    bare = math.nan
    return [
        _row(Figure(head=name, target=target, metric=metric, value=bare, low=bare, high=bare), one)
        for name, one in pooled.items()
        for target, metric in one.dev
    ]


def _row(figure: Figure, one: _Pooled | None) -> HeadRow:
    if one is None:  # a constant by group, which dev never saw
        return HeadRow.of(figure, dev=math.nan, seconds=0.0)
    rates = {rate for rate, _ in one.rounds}
    epochs = {epoch for _, epoch in one.rounds}
    return HeadRow.of(
        figure,
        dev=one.dev[figure.target, figure.metric],
        seconds=one.seconds,
        learning_rate=rates.pop() if len(rates) == 1 else math.nan,
        epoch=epochs.pop() if len(epochs) == 1 else None,
        same_as=one.same_as,
        rounds=one.rounds if len(one.rounds) > 1 else (),
        chosen=one.chosen,
    )


def _mean_curve(curves: Sequence[tuple[CurvePoint, ...]]) -> tuple[CurvePoint, ...]:
    """The mean over the rounds, at the rates and epochs that all of them reached."""
    if len(curves) == 1:
        return curves[0]
    by_place = [{(p.rate, p.epoch): p for p in curve} for curve in curves]
    return tuple(
        CurvePoint(
            p.rate,
            p.epoch,
            float(np.mean([one[p.rate, p.epoch].train for one in by_place])),
            float(np.mean([one[p.rate, p.epoch].dev for one in by_place])),
        )
        for p in curves[0]
        if all((p.rate, p.epoch) in one for one in by_place)
    )


def _notes(rounds: Sequence[_Round], judged: Judged | None, folds: int | None) -> tuple[str, ...]:
    """What a reader should know: of the split, of the fits, of the test rows."""
    of_fits = [tuple(note for c in one.found.values() for note in c.notes) for one in rounds]
    on_test = [] if judged is None else _notes_on_test(judged)
    n_effective = None if judged is None else judged.n_effective
    on_rows = notes_on(rounds[0].dataset, n_folds=folds, n_effective=n_effective)
    return (*on_rows, *counted(of_fits), *on_test)


def _notes_on_test(judged: Judged) -> list[str]:
    notes = []
    if judged.n_single and math.isfinite(judged.noise_floor):
        notes.append(
            f"{judged.n_single} of {len(judged.ids)} test rows have one vote each: the noise floor "
            f"assumes that they are like the others"
        )
    if any(figure.extra.get("at_floor") for figure in judged.figures):
        notes.append(
            "a head at the floor is not told apart from one that explains all that is not noise of "
            "the votes; the interval of its share says what else it may be"
        )
    return notes
