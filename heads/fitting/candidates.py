"""Every head of one task, fitted on train rows and chosen on dev rows. No test row is seen here."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import InputError
from heads.dataset.rows import Dataset, Part
from heads.fitting import linear, metrics
from heads.fitting.linear import Linear
from heads.fitting.logistic import Losses, Search, search
from heads.fitting.protocol import FC_NAMES, NAMES, Protocol
from heads.fitting.scores import predict_part, row_scores
from heads.head import Head, Layer, Link, Standard, rebased

if TYPE_CHECKING:
    from heads.fitting.train import Trained

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A point of a learning curve: strength or rate, epoch (0 for linear heads), figures."""

    rate: float
    epoch: int
    train: float
    dev: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One head as train and dev made it.

    rate: the learning rate that dev chose, NaN for a linear head. epoch: None for a linear head.
    dev: the dev figure by target and metric. dev_scores (n_dev,): the loss of each dev row, by
    which heads are chosen; those of the linear head for a head that never left it. same_as: that
    head, "ridge via sigmoid" where the link makes their figures differ, or None.
    """

    head: Head
    rate: float
    epoch: int | None
    dev: Mapping[tuple[str, str], float]
    dev_scores: Floats
    curve: tuple[CurvePoint, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    same_as: str | None = None


def chosen_names(heads: str | Sequence[str], task: str) -> tuple[str, ...]:
    """The heads to fit, in table order; InputError for an unknown one or one of another task."""
    heads = [heads] if isinstance(heads, str) else heads
    base = "ridge" if task == "regression" else "logistic"
    fitting = tuple(name for name in NAMES if name in ("const", base, *FC_NAMES))
    asked = set(fitting) if "all" in heads else {name.lower() for name in heads}
    if unknown := sorted(asked - set(NAMES)):
        raise InputError(f"unknown head {unknown[0]!r}; choose from all, {', '.join(NAMES)}")
    if other := sorted(asked - set(fitting)):
        raise InputError(f"a {task} task has no head {other[0]}; choose from {', '.join(fitting)}")
    return tuple(name for name in fitting if name in asked | {"const", base})


def fit_candidates(
    train: Part,
    dev: Part,
    names: Sequence[str],
    *,
    dataset: Dataset,
    protocol: Protocol,
    tick: Callable[[int], None] = lambda _: None,
) -> dict[str, Candidate]:
    """Fit the named heads on train and dev rows alone.

    dataset: for the task, the classes, and the widths and targets' names; its rows are not read.
    tick: called with the epochs done: 0 while linear heads are fitted.
    """
    link = _link(dataset)
    loss = _loss(protocol, dataset, link)
    # OpenMP threads that wait for each other by spinning lose most of the machine as soon as
    # something else runs on it. Without effect once torch is loaded (docs/decisions/030).
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
    train, dev, solvers = _placed(train, dev, protocol)
    standard = solvers.fit_standard(train)
    found = _fit_linear(
        train, dev, names, standard, link, solvers, dataset=dataset, protocol=protocol, tick=tick
    )
    if deep := [name for name in names if name in FC_NAMES]:
        from heads.fitting.train import train as train_fc

        began = time.perf_counter()
        base = _start_from(found, protocol)
        trained = train_fc(
            deep,
            train,
            dev,
            standard=standard,
            link=link,
            loss=loss,
            start=_start(found[base].head, standard, train, link),
            protocol=protocol,
            tick=tick,
        )
        seconds = time.perf_counter() - began
        for name in deep:
            head = Head(name, link, standard, trained[name].layers, found[base].head.card)
            found[name] = _trained(
                head, trained[name], dev, found[base], dataset=dataset, protocol=protocol,
                seconds=seconds,
            )  # fmt: skip
    return found


@dataclass(frozen=True, slots=True)
class _Solvers:
    """What fits linear heads: for parts in memory or in a cache, or for parts on a device."""

    fit_standard: Callable[[Part], Standard]
    ridge: Callable[[Part, Part, Standard], Linear]
    losses: Callable[[int], Losses]  # of the train part, for so many outputs


def _placed(train: Part, dev: Part, protocol: Protocol) -> tuple[Part, Part, _Solvers]:
    """The parts, with their vectors on the CUDA device that trains if one does and has the room."""
    here = _Solvers(
        linear.fit_standard,
        partial(linear.ridge, known=linear.Equations(train)),
        partial(Losses, train, memory_bytes=protocol.memory_bytes),
    )
    if protocol.device == "cpu":
        return train, dev, here
    from heads.fitting import on_device

    train, dev = on_device.moved((train, dev), protocol.device, protocol.memory_bytes)
    if not on_device.held(train):
        return train, dev, here
    there = _Solvers(
        on_device.fit_standard,
        on_device.ridge,
        partial(on_device.DeviceLosses, train),
    )
    return train, dev, there


def _trained(
    head: Head,
    best: "Trained",
    dev: Part,
    base: Candidate,
    *,
    dataset: Dataset,
    protocol: Protocol,
    seconds: float,
) -> Candidate:
    """An FC head as training left it; base: the head that it started from."""
    figures, scores = _dev(head, dev, dataset)
    same_as, outputs = None, best.layers[-1].bias.shape[-1]
    narrow = len(best.layers) > 1 and 2 * outputs > protocol.hidden  # see `Bank.initialise`
    if best.epoch == 0 and protocol.start != "random" and not narrow:
        same_as, scores = _stayed(base, head, scores), base.dev_scores
    rates = sorted({p.rate for p in best.curve if not math.isfinite(p.dev) and p.epoch})
    return Candidate(
        head=head,
        rate=best.rate if best.epoch else math.nan,
        epoch=best.epoch,
        dev=figures,
        dev_scores=scores,
        curve=tuple(CurvePoint(p.rate, p.epoch, p.train, p.dev) for p in best.curve),
        seconds=seconds,
        notes=(
            *(f"{head.name}: learning rate {rate:g} diverged" for rate in rates),
            *_narrow(head.name, outputs, protocol, narrow=narrow),
            *_edges(head.name, best.rate, best.epoch, protocol),
        ),
        same_as=same_as,
    )


def _narrow(name: str, outputs: int, protocol: Protocol, *, narrow: bool) -> tuple[str, ...]:
    """What to say of hidden layers that cannot carry the linear head."""
    if not narrow or protocol.start == "random":
        return ()
    return (
        f"{name}: its hidden layers of {protocol.hidden:,} are too narrow to start as the linear "
        f"head, and start from the intercepts alone; for {outputs:,} outputs they need "
        f"{2 * outputs:,} (`hidden`)",
    )


def _stayed(base: Candidate, head: Head, scores: Floats) -> str:
    """What to call a head that never left its start, by what it says of the dev rows.

    A ridge of ratios seen through the sigmoid is no longer quite that ridge.
    """
    same = base.head.link == head.link or np.allclose(scores, base.dev_scores, rtol=0, atol=1e-6)
    return base.head.name if same else f"{base.head.name} via {head.link}"


def _fit_linear(
    train: Part,
    dev: Part,
    names: Sequence[str],
    standard: Standard,
    link: Link,
    solvers: _Solvers,
    *,
    dataset: Dataset,
    protocol: Protocol,
    tick: Callable[[int], None],
) -> dict[str, Candidate]:
    """The constant, ridge and logistic regression, as far as they are named.

    Dev chooses the strength of the penalty, and between standardised and centred vectors.
    """
    outputs = len(dataset.classes) if dataset.task == "multiclass" else train.targets.shape[1]
    plain: Link = "identity" if dataset.task == "regression" else link

    def constant(one: Standard) -> Linear:
        return linear.constant(train, dev, dim=len(one.mean), link=plain, outputs=outputs)

    def ridge(scalings: Sequence[Standard]) -> list[Linear]:
        return [solvers.ridge(train, dev, one) for one in scalings]

    def logit(scalings: Sequence[Standard]) -> list[Search]:
        return search(solvers.losses(outputs), dev, scalings, tick=lambda: tick(0))

    fits: dict[str, Callable[[], tuple[Linear, Standard]]] = {
        "const": lambda: (constant(standard), standard),
        "ridge": lambda: linear.best_scaling(ridge, standard, dataset.widths),
        "logistic": lambda: linear.best_scaling(logit, standard, dataset.widths),
    }
    found: dict[str, Candidate] = {}
    for name in names:
        if name not in fits:
            continue
        one, scaled = fits[name]()
        tick(0)
        head = Head(name, one.link, scaled, (one.layer,), {"classes": list(dataset.classes)})
        figures, scores = _dev(head, dev, dataset)
        found[name] = Candidate(
            head=head,
            rate=math.nan,
            epoch=None,
            dev=figures,
            dev_scores=scores,
            curve=tuple(CurvePoint(strength, 0, math.nan, score) for strength, score in one.curve),
            seconds=one.seconds,
        )
    return found


def _edges(name: str, rate: float, epoch: int, protocol: Protocol) -> list[str]:
    """Notes on a choice at the edge of what was tried: a better one may lie beyond."""
    notes = []
    rates = protocol.learning_rates
    if epoch and len(rates) > 1 and rate in (min(rates), max(rates)):
        which = "lowest" if rate == min(rates) else "highest"
        notes.append(f"{name}: the chosen learning rate, {rate:g}, is the {which} tried")
    if epoch == protocol.epochs and epoch > 1:
        notes.append(f"{name}: the chosen epoch, {epoch}, is the last: try more `epochs`")
    return notes


def _start_from(found: Mapping[str, Candidate], protocol: Protocol) -> str:
    """The linear head that FC heads start as, or whose bias they start with."""
    if protocol.start != "linear":
        return "const"
    return "ridge" if "ridge" in found else "logistic"


def _start(head: Head, standard: Standard, train: Part, link: Link) -> Layer:
    """The linear map that FC heads start from, before the link, on standardised vectors.

    A ridge for ratios predicts probabilities; seen through a sigmoid it is, to first order around
    the mean, the same line divided by the sigmoid's slope there.
    """
    layer = rebased(head.layers[0], head.standard, standard)
    if head.link == link:
        return layer
    weights = np.ones(len(train)) if train.weights is None else train.weights
    mean = np.clip(weights @ train.targets / weights.sum(), 0.01, 0.99)
    slope = mean * (1 - mean)
    if not layer.weight.any():  # a constant needs no line: it is itself through the sigmoid
        mean = np.clip(layer.bias[0].astype(np.float64), 1e-6, 1 - 1e-6)
        return Layer(layer.weight, np.log(mean / (1 - mean))[None].astype(np.float32))
    bias = np.log(mean / (1 - mean)) + (layer.bias[0] - mean) / slope
    weight = layer.weight[0] / slope[:, None]
    return Layer(weight[None].astype(np.float32), bias[None].astype(np.float32))


def _link(dataset: Dataset) -> Link:
    """Softmax for classes, sigmoid for what lies between 0 and 1 by what it is, else none."""
    if dataset.task == "multiclass":
        return "softmax"
    return "sigmoid" if dataset.shares else "identity"


def _loss(protocol: Protocol, dataset: Dataset, link: Link) -> str:
    if protocol.loss == "auto":
        return "mse" if dataset.task == "regression" else "log_loss"
    if protocol.loss == "binomial" and not dataset.counts:
        raise InputError(
            "the binomial loss needs ratios between 0 and 1 and, as weights, the counts they come "
            "from (`weight`)"
        )
    if protocol.loss == "log_loss" and link == "identity":
        raise InputError("log_loss needs targets between 0 and 1; use mse")
    if protocol.loss == "mse" and dataset.task != "regression":
        raise InputError(f"mse is the loss of a regression; a {dataset.task} task uses log_loss")
    return protocol.loss


def _dev(head: Head, dev: Part, dataset: Dataset) -> tuple[dict[tuple[str, str], float], Floats]:
    """The dev figures of a head by target and metric, and the loss of each row."""
    seen = predict_part({head.name: head}, dev)[head.name]
    figures: dict[tuple[str, str], float] = {}
    total = np.zeros(len(dev))
    for k, target in enumerate(dataset.target_names):
        mine = seen[:, k] if dataset.targets.ndim == 2 and seen.ndim == 2 else seen
        for metric, scores in row_scores(dataset.task, dev.targets[:, k], mine).items():
            figures[target, metric] = metrics.mean(scores, dev.weights)
            if metric != "accuracy":
                total += scores
    return figures, total
