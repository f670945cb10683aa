"""One task from a dataset to a table: every head fitted, chosen on dev, judged once on test."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from embedcache.errors import InputError, LabelsError
from heads.dataset.rows import Dataset, Part
from heads.fitting import linear, metrics
from heads.fitting.judge import judge, predict_part, row_scores
from heads.fitting.logistic import logistic
from heads.fitting.protocol import NAMES, RATES, Protocol
from heads.fitting.result import CurvePoint, Fit, Row
from heads.head import Head, Layer, Link
from heads.saved import save

_FC = ("0fc", "1fc", "2fc")


def fit(
    dataset: Dataset,
    *,
    heads: Sequence[str] = ("all",),
    epochs: int = 20,
    batch_size: int = 256,
    learning_rates: Sequence[float] | None = None,
    optimizer: Literal["adam", "sgd"] = "adam",
    seed: int = 0,
    members: int = 1,
    hidden: int = 256,
    loss: Literal["auto", "mse", "log_loss", "binomial"] = "auto",
    start: Literal["linear", "constant"] = "linear",
    margin: float = 1.0,
    weight_decay: float = 0.0,
    dropout: float = 0.0,
    patience: int | None = 4,
    memory_bytes: int | None = None,
    resamples: int = 2000,
    device: str = "cpu",
) -> Fit:
    """Fit heads on the train rows, choose by the dev rows, judge once on the test rows.

    heads: "all" that fit the task, or names out of const, ridge, logistic, 0fc, 1fc, 2fc; the
        constant and the linear baseline always stand in the table.
    The other options are those of `Protocol`; resamples is the number of bootstrap draws.
    LabelsError when a side has no rows, or the train side one class only.
    """
    began = time.perf_counter()
    protocol = Protocol(
        epochs=epochs,
        batch_size=batch_size,
        learning_rates=RATES if learning_rates is None else tuple(learning_rates),
        optimizer=optimizer,
        seed=seed,
        members=members,
        hidden=hidden,
        loss=loss,
        start=start,
        margin=margin,
        weight_decay=weight_decay,
        dropout=dropout,
        patience=patience,
        memory_bytes=memory_bytes,
        device=device,
    )
    names = chosen_names(heads, dataset.task)
    _check(dataset)
    train, dev = dataset.part("train"), dataset.part("dev")
    fitted = fit_parts(train, dev, names, dataset=dataset, protocol=protocol)
    judged = judge(
        dataset,
        {name: one.head for name, one in fitted.items()},
        reference="ridge" if dataset.task == "regression" else "logistic",
        resamples=resamples,
        seed=seed,
    )
    rows = []
    for figure in judged.figures:
        one = fitted[figure.head]
        versus = None
        if figure.versus is not None:
            other, gap = figure.versus
            versus = {"head": other, "difference": gap.value, "low": gap.low, "high": gap.high}
            versus |= {"p": gap.p}
        rows.append(
            Row(
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
        )
    first = "mse" if dataset.task == "regression" else "log_loss"
    return Fit(
        dataset=dataset,
        protocol=protocol,
        rows=tuple(rows),
        heads={name: one.head for name, one in fitted.items()},
        best=min(fitted, key=lambda n: sum(fitted[n].dev[t, first] for t in dataset.target_names)),
        test=judged,
        curves={name: one.curve for name, one in fitted.items()},
        notes=tuple(note for one in fitted.values() for note in one.notes),
        seconds=time.perf_counter() - began,
        writer=save,
    )


@dataclass(frozen=True, slots=True)
class Fitted:
    """One head as train and dev made it; no test row has been seen."""

    head: Head
    rate: float
    epoch: int | None
    dev: Mapping[tuple[str, str], float]
    curve: tuple[CurvePoint, ...]
    seconds: float
    notes: tuple[str, ...] = ()


def chosen_names(heads: Sequence[str], task: str) -> tuple[str, ...]:
    """The heads to fit, in table order; InputError for an unknown one or one of another task."""
    base = "ridge" if task == "regression" else "logistic"
    fitting = tuple(name for name in NAMES if name in ("const", base, *_FC))
    asked = set(fitting) if "all" in heads else {name.lower() for name in heads}
    if unknown := sorted(asked - set(NAMES)):
        raise InputError(f"no head {unknown[0]!r}; there are all, {', '.join(NAMES)}")
    if other := sorted(asked - set(fitting)):
        raise InputError(f"{other[0]} does not fit a {task} task; there are {', '.join(fitting)}")
    return tuple(name for name in fitting if name in asked | {"const", base})


def fit_parts(
    train: Part, dev: Part, names: Sequence[str], *, dataset: Dataset, protocol: Protocol
) -> dict[str, Fitted]:
    """Fit the named heads on train and dev rows alone.

    dataset: for the task, the classes and the names of the targets; its rows are not read.
    """
    task, outputs = dataset.task, train.targets.shape[1]
    if task == "multiclass":
        outputs = len(dataset.classes)
    link = _link(train, task)
    loss = _loss(protocol, dataset, link)
    standard = linear.fit_standard(train)
    plain_link: Link = "identity" if task == "regression" else link
    fitted: dict[str, Fitted] = {}
    for name in names:
        if name == "const":
            one = linear.constant(
                train, dev, dim=len(standard.mean), link=plain_link, outputs=outputs
            )
        elif name == "ridge":
            one = linear.ridge(train, dev, standard)
        elif name == "logistic":
            one = logistic(
                train, dev, standard, outputs=outputs, memory_bytes=protocol.memory_bytes
            )
        else:
            continue
        head = Head(name, one.link, standard, (one.layer,), {"classes": list(dataset.classes)})
        curve = tuple(CurvePoint(strength, 0, math.nan, score) for strength, score in one.curve)
        fitted[name] = Fitted(head, math.nan, None, _dev(head, dev, dataset), curve, one.seconds)
    if deep := [name for name in names if name in _FC]:
        # OpenMP threads that wait for each other by spinning lose most of the machine as soon as
        # something else runs on it. Without effect once torch is loaded (docs/decisions/030).
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        from heads.fitting.train import train as train_fc

        start = _start(fitted, train, link, protocol)
        began = time.perf_counter()
        trained = train_fc(
            deep, train, dev, standard=standard, link=link, loss=loss, start=start,
            protocol=protocol,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        for name in deep:
            best = trained[name]
            head = Head(name, link, standard, best.layers, {"classes": list(dataset.classes)})
            curve = tuple(CurvePoint(p.rate, p.epoch, p.train, p.dev) for p in best.curve)
            bad = sorted({p.rate for p in best.curve if not math.isfinite(p.dev)})
            notes = tuple(f"{name}: learning rate {rate:g} diverged" for rate in bad)
            rate = best.rate if best.epoch else math.nan
            fitted[name] = Fitted(
                head, rate, best.epoch, _dev(head, dev, dataset), curve, seconds, notes
            )
    return fitted


def _start(fitted: Mapping[str, Fitted], train: Part, link: Link, protocol: Protocol) -> Layer:
    """The linear map that FC heads start from, before the link.

    A ridge for ratios speaks of probabilities; seen through a sigmoid it is, to first order around
    the mean, the same line divided by the sigmoid's slope there.
    """
    name = "const" if protocol.start == "constant" else "ridge" if "ridge" in fitted else "logistic"
    head = fitted[name].head
    layer = head.layers[0]
    if head.link == link:
        return layer
    weights = np.ones(len(train)) if train.weights is None else train.weights
    mean = np.clip(weights @ train.targets / weights.sum(), 0.01, 0.99)
    slope = mean * (1 - mean)
    bias = np.log(mean / (1 - mean)) + (layer.bias[0] - mean) / slope
    weight = layer.weight[0] / slope[:, None]
    return Layer(weight[None].astype(np.float32), bias[None].astype(np.float32))


def _link(train: Part, task: str) -> Link:
    """Sigmoid for what lies between 0 and 1 in training, softmax for classes."""
    if task == "multiclass":
        return "softmax"
    inside = train.targets.min() >= 0 and train.targets.max() <= 1
    return "sigmoid" if task == "binary" or inside else "identity"


def _loss(protocol: Protocol, dataset: Dataset, link: Link) -> str:
    if protocol.loss == "auto":
        return "mse" if dataset.task == "regression" else "log_loss"
    if protocol.loss == "binomial" and not dataset.counts:
        raise InputError(
            "the binomial loss needs ratios between 0 and 1 and, as weights, the counts they come "
            "from (--weight swipes)"
        )
    if protocol.loss == "log_loss" and link == "identity":
        raise InputError("log_loss needs targets between 0 and 1; use mse")
    if protocol.loss == "mse" and dataset.task != "regression":
        raise InputError(f"mse is the loss of a regression; a {dataset.task} task has log_loss")
    return protocol.loss


def _dev(head: Head, dev: Part, dataset: Dataset) -> dict[tuple[str, str], float]:
    """The dev figures of a head, by target and metric."""
    seen = predict_part({head.name: head}, dev)[head.name]
    figures = {}
    for k, target in enumerate(dataset.target_names):
        mine = seen[:, k] if dataset.targets.ndim == 2 and seen.ndim == 2 else seen
        for metric, scores in row_scores(dataset.task, dev.targets[:, k], mine).items():
            figures[target, metric] = metrics.mean(scores, dev.weights)
    return figures


def _check(dataset: Dataset) -> None:
    n = dataset.n
    least = {"train": 2, "dev": 1, "test": 1}
    if any(n[side] < least[side] for side in least):
        told = ", ".join(f"{count} {side}" for side, count in n.items())
        raise LabelsError(
            f"{len(dataset.ids)} labelled photos make {told}: too few to fit, choose and judge. "
            f"Label more photos, use another seed, or give the split with --split-column"
        )
    for side in ("train", "dev"):
        part = dataset.part(side)
        if part.weights is not None and not part.weights.any():
            raise LabelsError(f"all weights of the {side} rows are zero")
        if side == "train" and dataset.task != "regression":
            seen = np.unique(part.targets)
            if len(seen) < 2:
                raise LabelsError(
                    f"all {n['train']} train rows are {dataset.classes[int(seen[0])]!r}; a "
                    f"classifier needs two classes there. Label more photos, or stratify the split"
                )
