"""One task from a dataset to a table: every head fitted, chosen on dev, judged once on test."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embedcache.errors import LabelsError
from heads.dataset.rows import Dataset
from heads.fitting.candidates import Candidate, chosen_names, fit_candidates
from heads.fitting.judge import Figure, judge
from heads.fitting.protocol import Protocol, protocol_of
from heads.fitting.result import Fit, HeadRow
from heads.saved import save


def fit(
    dataset: Dataset,
    *,
    heads: Sequence[str] = ("all",),
    protocol: Protocol | None = None,
    resamples: int = 2000,
    **options: Any,
) -> Fit:
    """Fit heads on the train rows, choose by the dev rows, judge once on the test rows.

    heads: "all" that fit the task, or names out of const, ridge, logistic, 0fc, 1fc, 2fc; the
        constant and the linear baseline always stand in the table.
    protocol: how to fit; or name the fields of `Protocol` that differ from its defaults as options.
    resamples: the number of bootstrap draws.
    InputError for an unknown option. LabelsError when a side has no rows, or the train side one
    class only.
    """
    began = time.perf_counter()
    if protocol is None:
        protocol = protocol_of(options)
    elif options:
        raise TypeError(f"give a protocol or options, not both; got {', '.join(options)}")
    names = chosen_names(heads, dataset.task)
    _check(dataset)
    train, dev = dataset.part("train"), dataset.part("dev")
    found = fit_candidates(train, dev, names, dataset=dataset, protocol=protocol)
    judged = judge(
        dataset,
        {name: one.head for name, one in found.items()},
        reference="ridge" if dataset.task == "regression" else "logistic",
        resamples=resamples,
        seed=protocol.seed,
    )
    return Fit(
        dataset=dataset,
        protocol=protocol,
        rows=tuple(_row(figure, found[figure.head]) for figure in judged.figures),
        heads={name: one.head for name, one in found.items()},
        best=_best(found, dataset),
        test=judged,
        curves={name: one.curve for name, one in found.items()},
        notes=tuple(note for one in found.values() for note in one.notes),
        seconds=time.perf_counter() - began,
        writer=save,
    )


def _row(figure: Figure, one: Candidate) -> HeadRow:
    versus = None
    if figure.versus is not None:
        other, gap = figure.versus
        versus = {"head": other, "difference": gap.value, "low": gap.low, "high": gap.high}
        versus |= {"p": gap.p}
    return HeadRow(
        head=figure.head,
        target=figure.target,
        metric=figure.metric,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        dev=one.dev[figure.target, figure.metric],
        learning_rate=one.rate,
        epoch=one.epoch,
        seconds=one.seconds,
        extra=figure.extra,
        versus=versus,
    )


def _best(found: Mapping[str, Candidate], dataset: Dataset) -> str:
    """The head with the lowest dev figure, added over the targets."""
    metric = "mse" if dataset.task == "regression" else "log_loss"
    return min(found, key=lambda n: sum(found[n].dev[t, metric] for t in dataset.target_names))


def _check(dataset: Dataset) -> None:
    n = dataset.n
    least = {"train": 2, "dev": 1, "test": 1}
    if any(n[side] < least[side] for side in least):
        sizes = ", ".join(f"{count} {side}" for side, count in n.items())
        raise LabelsError(
            f"{len(dataset.ids)} labelled photos make {sizes}: too few to fit, choose and judge. "
            f"Label more photos, use another seed, or give the split with --split-column"
        )
    for side in ("train", "dev"):
        part = dataset.part(side)
        if part.weights is not None and not part.weights.any():
            raise LabelsError(f"all weights of the {side} rows are zero")
        if side == "train" and dataset.task != "regression":
            seen = np.unique(part.targets)
            if len(seen) < 2 and len(np.unique(dataset.targets)) > 1:
                raise LabelsError(
                    f"all {n['train']} train rows are {dataset.classes[int(seen[0])]!r}; a "
                    f"classifier needs two classes there. Label more photos, or stratify the split"
                )
