"""A row of a study's tables, and two of them compared."""

from dataclasses import dataclass

CONST = "const"
HEAD_NAMES = {"ridge": "ridge", "logistic": "logistic"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """One head on the test photos of one subset.

    metric: "mse" or "accuracy" (log-loss beside it). dev: MSE or log-loss on dev, which chose the
    rate. low, high: 95 % interval of value. best: the lowest dev of its target and subset.
    spec, labels, split: sha256 of what the row came from.
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
    best: bool = False

    @property
    def name(self) -> str:
        return name_of(self.backbone, self.head)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two backbones on the same test photos, each by its best head on dev.

    loss: of the second, in squared error or share of wrong classes. difference: that minus the
    loss of the first (positive: the first is better); low, high: its 95 % interval, paired.
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
    n: int

    @property
    def verdict(self) -> int:
        """1: the first is better beyond its interval, -1: the second, 0: undecided."""
        return int(self.low > 0) - int(self.high < 0)


def title_of(target: str) -> str:
    """A column's name as people write it: like_ratio is "Like ratio"."""
    words = target.replace("_", " ").strip() or target
    return words[0].upper() + words[1:]


def name_of(backbone: str, head: str) -> str:
    """As in the paper: Inception-1FC; the constant belongs to no backbone."""
    return "Const baseline" if head == CONST else f"{backbone}-{HEAD_NAMES.get(head, head.upper())}"
