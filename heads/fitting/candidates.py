"""Every head of one task, fitted on train rows and chosen on dev rows. No test row is seen here."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedcache.errors import InputError
from heads.dataset.rows import Dataset, Part
from heads.fitting import linear, metrics
from heads.fitting.judge import predict_part, row_scores
from heads.fitting.logistic import logistic
from heads.fitting.protocol import FC_NAMES, NAMES, Protocol
from heads.fitting.result import CurvePoint
from heads.head import Head, Layer, Link, Standard


@dataclass(frozen=True, slots=True)
class Candidate:
    """One head as train and dev made it.

    rate: the learning rate that dev chose, NaN for a linear head. epoch: None for a linear head.
    dev: the dev figure by target and metric.
    """

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
    fitting = tuple(name for name in NAMES if name in ("const", base, *FC_NAMES))
    asked = set(fitting) if "all" in heads else {name.lower() for name in heads}
    if unknown := sorted(asked - set(NAMES)):
        raise InputError(f"no head {unknown[0]!r}; choose from all, {', '.join(NAMES)}")
    if other := sorted(asked - set(fitting)):
        raise InputError(f"{other[0]} does not fit a {task} task; choose from {', '.join(fitting)}")
    return tuple(name for name in fitting if name in asked | {"const", base})


def fit_candidates(
    train: Part, dev: Part, names: Sequence[str], *, dataset: Dataset, protocol: Protocol
) -> dict[str, Candidate]:
    """Fit the named heads on train and dev rows alone.

    dataset: for the task, the classes and the names of the targets; its rows are not read.
    """
    link = _link(train, dataset.task)
    loss = _loss(protocol, dataset, link)
    standard = linear.fit_standard(train)
    found = _fit_linear(train, dev, names, standard, link, dataset=dataset, protocol=protocol)
    if deep := [name for name in names if name in FC_NAMES]:
        # OpenMP threads that wait for each other by spinning lose most of the machine as soon as
        # something else runs on it. Without effect once torch is loaded (docs/decisions/030).
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        from heads.fitting.train import train as train_fc

        began = time.perf_counter()
        trained = train_fc(
            deep,
            train,
            dev,
            standard=standard,
            link=link,
            loss=loss,
            start=_start(found, train, link, protocol),
            protocol=protocol,
        )
        seconds = time.perf_counter() - began
        for name in deep:
            best = trained[name]
            head = Head(name, link, standard, best.layers, {"classes": list(dataset.classes)})
            curve = tuple(CurvePoint(p.rate, p.epoch, p.train, p.dev) for p in best.curve)
            diverged = sorted({p.rate for p in best.curve if not math.isfinite(p.dev)})
            found[name] = Candidate(
                head,
                best.rate if best.epoch else math.nan,
                best.epoch,
                _dev(head, dev, dataset),
                curve,
                seconds,
                tuple(f"{name}: learning rate {rate:g} diverged" for rate in diverged),
            )
    return found


def _fit_linear(
    train: Part,
    dev: Part,
    names: Sequence[str],
    standard: Standard,
    link: Link,
    *,
    dataset: Dataset,
    protocol: Protocol,
) -> dict[str, Candidate]:
    """The constant, ridge and logistic regression, as far as they are named."""
    outputs = len(dataset.classes) if dataset.task == "multiclass" else train.targets.shape[1]
    found: dict[str, Candidate] = {}
    for name in names:
        if name == "const":
            plain: Link = "identity" if dataset.task == "regression" else link
            one = linear.constant(train, dev, dim=len(standard.mean), link=plain, outputs=outputs)
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
        found[name] = Candidate(head, math.nan, None, _dev(head, dev, dataset), curve, one.seconds)
    return found


def _start(fitted: Mapping[str, Candidate], train: Part, link: Link, protocol: Protocol) -> Layer:
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
