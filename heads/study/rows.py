"""A row of a study's tables, and two of them compared."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from heads.fitting.judge import BY
from heads.fitting.protocol import FC_NAMES
from heads.fitting.result import CHOICE

CONST = "const"
HEAD_NAMES = {"ridge": "ridge", "logistic": "logistic", CHOICE: CHOICE}
ALL, FACE, WHOLE = "all", "face vectors", "whole-photo vectors"
POOLED = (ALL, FACE, WHOLE)  # backbones of rows for which each fold chose among several


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """One head on the test photos of one subset.

    metric: "mse" or "accuracy" (log-loss beside it). dev: MSE or log-loss on dev, which chose the
    rate. low, high: 95 % interval of value. best: what dev chose of its target and subset.
    protocol: "paper" or "warm". same_as: what an FC head is that never left its start.
    chosen: of dev's choice, how many folds chose each head, or each set of vectors.
    folds: K, or None for one split.
    spec, labels, split: sha256 of what the row came from; several specs where folds chose several.
    """

    target: str
    task: str
    subset: str
    backbone: str
    head: str
    metric: str
    value: float
    low: float | None
    high: float | None
    log_loss: float | None
    dev: float | None
    learning_rate: float | None
    epoch: int | None
    seconds: float | None
    n_train: int
    n_dev: int
    n_test: int
    noise_floor: float | None
    spec: str
    labels: str
    split: str
    ref: str | None
    protocol: str
    folds: int | None
    same_as: str | None
    chosen: Mapping[str, int] | None = None
    best: bool = False

    @property
    def name(self) -> str:
        return name_of(self.backbone, self.head, self.protocol)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two backbones on the same test photos, each by the head that dev chose.

    loss: of the second, in squared error or share of wrong classes. difference: that minus the
    loss of the first (positive: the first is better); low, high: its 95 % interval, paired.
    share, share_low, share_high: the difference as a share of `loss`. p_adjusted: by Holm, for all
    comparisons of the study. n, n_groups: test photos, and the persons or photos that they show.
    faces: the first is of face vectors and the second of whole photos, as in the paper; not where
        dev chose the constant of one.
    """

    target: str
    task: str
    subset: str
    first: str
    second: str
    loss: float
    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float
    share: float
    share_low: float
    share_high: float
    n: int
    n_groups: int
    protocol: str
    faces: bool

    @property
    def verdict(self) -> int:
        """1: the first is better beyond its interval, -1: the second, 0: undecided.

        Among several comparisons an interval may lie beyond 0 by luck: the adjusted p decides too.
        So does the interval of the share, which is found in another way.
        """
        if self.p_adjusted >= 0.05:  # NaN where there is one comparison only
            return 0
        better = self.low > 0 and not self.share_low <= 0  # NaN where the share has no interval
        worse = self.high < 0 and not self.share_high >= 0
        return int(better) - int(worse)


def said(c: Comparison) -> str:
    """Who won, in words."""
    if c.faces:
        return {
            1: "face vectors beat whole-photo vectors",
            -1: "whole-photo vectors beat face vectors",
            0: "undecided whether face or whole-photo vectors are better",
        }[c.verdict]
    return {
        1: f"{c.first} beats {c.second}",
        -1: f"{c.second} beats {c.first}",
        0: f"undecided whether {c.first} or {c.second} is better",
    }[c.verdict]


def measured(c: Comparison) -> str:
    """Both errors and their difference, in words: "0.0186 against 0.0230 MSE, a difference of"."""
    scale, unit, digits = (1, "MSE", 4) if c.task == "regression" else (100, "% wrong", 1)
    mine, theirs, gap = (
        f"{scale * x:.{digits}f}" for x in (c.loss - c.difference, c.loss, c.difference)
    )
    return f"{mine} against {theirs} {unit}, a difference of {gap}"


def within(c: Comparison) -> str:
    """The interval and adjusted p of a difference; "" where there is none."""
    if not np.isfinite((c.low, c.high, c.p)).all():
        return ""
    scale, digits = (1, 4) if c.task == "regression" else (100, 1)
    low, high = (f"{scale * x:.{digits}f}" for x in (c.low, c.high))
    adjusted = c.p_adjusted if np.isfinite(c.p_adjusted) else c.p
    p = "below 0.001" if adjusted < 0.001 else f"{adjusted:.3f}"
    return f"95 % interval {low} to {high}; p {p}"


def title_of(target: str) -> str:
    """A column's name as people write it: like_ratio is "Like ratio"."""
    words = target.replace("_", " ").strip() or target
    return words[0].upper() + words[1:]


def name_of(backbone: str, head: str, protocol: str) -> str:
    """As in the paper: Inception-1FC; a warm head says so; a constant belongs to no backbone."""
    if head == CONST:
        return "Const baseline"
    if head.startswith(BY):
        return head[0].upper() + head[1:]
    of = f"Dev's choice of {backbone}" if backbone in POOLED else ""
    name = of or f"{backbone}-{HEAD_NAMES.get(head, head.upper())}"
    return f"{name} (warm)" if protocol == "warm" and head in (*FC_NAMES, CHOICE) else name
