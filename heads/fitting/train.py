"""One loop that trains every learning rate, depth and member of a task at once.

The rows of a step are shared by all members, so that the first layers of the whole sweep are one
matrix product (`fc.Bank`); `step.Steps` has what a step is. A member's start, rate and dropout
depend on nothing but its own depth, rate and seed, and no sum runs across members: a head trained
alone is the same head, up to the rounding of a product of another width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from heads.dataset.rows import Part
from heads.fitting.fc import DEPTHS, Bank, Member
from heads.fitting.objective import Objective
from heads.fitting.on_device import resolved
from heads.fitting.protocol import Protocol
from heads.fitting.step import Steps
from heads.head import Layer, Link, Standard


@dataclass(frozen=True, slots=True)
class Point:
    """One epoch of one rate: the training loss on the way, and the dev figure at its end."""

    rate: float
    epoch: int
    train: float
    dev: float


@dataclass(slots=True)
class Trained:
    """The best rate and epoch of one head by its dev figure; epoch 0 is what it starts as.

    layers: of that epoch, members stacked. dev: MSE, or log-loss for classes. curve: all rates.
    start: the dev scores of epoch 0, row by row.
    """

    name: str
    rate: float = math.nan
    epoch: int = 0
    dev: float = math.inf
    layers: tuple[Layer, ...] = ()
    curve: list[Point] = field(default_factory=list)
    start: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(slots=True)
class _Rate:
    """One (depth, rate): its members are judged together, by their averaged predictions."""

    name: str
    depth: int
    rate: float
    best: list[float] = field(default_factory=list)  # dev figure so far, epoch by epoch

    def may_win(self, record: float, *, left: int, patience: int) -> bool:
        """Whether to continue: not after `patience` epochs without a gain, nor if its mean gain in
        as many, kept up to the end, would leave it behind `record`, the best of its head's rates.
        """
        if not math.isfinite(self.best[-1]):
            return False
        if len(self.best) <= patience:
            return True
        gain = (self.best[-1 - patience] - self.best[-1]) / patience
        return gain > 0 and self.best[-1] - gain * left <= record


def train(
    names: Sequence[str],
    train_part: Part,
    dev_part: Part,
    *,
    standard: Standard,
    link: Link,
    loss: str,
    start: Layer,
    protocol: Protocol,
    tick: Callable[[int], None] = lambda _: None,
) -> dict[str, Trained]:
    """Train the heads `names` ("0fc", "1fc", "2fc"); the dev rows pick each one's rate and epoch.

    loss: "mse", "log_loss" or "binomial" (`fit` resolves "auto").
    start: the linear map, before the link, that every head is at epoch 0: weight (1, k, dim).
    tick: called with the number of each epoch when it is done.
    Returns a `Trained` per name. A rate that diverges drops out and disturbs no other.
    On a CUDA device products are summed in another order and dropout draws other units, so that dev
    figures differ from the CPU's by rounding, or with dropout by chance, and dev may choose another
    of two epochs that are equal but for that.
    """
    protocol = replace(protocol, device=resolved(protocol.device))
    with _full_products(protocol.device):
        task = Objective(train_part, dev_part, standard, link, loss, start, protocol)
        best = _Best(names, task, protocol)
        candidates = [
            _Rate(name, DEPTHS[name], rate)
            for name in sorted(set(names), key=DEPTHS.__getitem__)
            for rate in protocol.learning_rates
        ]
        steps = Steps(_bank(candidates, task, protocol), task, protocol)
        untrained = steps.bank.flat.new_full((len(steps.bank.members),), math.nan)
        best.judge(steps.bank, candidates, epoch=0, losses=untrained)
        patience = protocol.patience or protocol.epochs
        record = dict.fromkeys(best.found, math.inf)
        for epoch in range(1, protocol.epochs + 1):
            losses = steps.epoch(epoch)
            best.judge(steps.bank, candidates, epoch=epoch, losses=losses)
            tick(epoch)
            for one in candidates:
                record[one.name] = min(record[one.name], one.best[-1])
            left = protocol.epochs - epoch
            going = [
                c for c in candidates if c.may_win(record[c.name], left=left, patience=patience)
            ]
            going = _halved(going, epoch, steps.taken, protocol)
            if not going:
                break
            if len(going) < len(candidates):
                candidates = going
                steps.keep([place for one in going for place in _places(steps.bank, one)])
        return best.taken()


def _halved(going: Sequence[_Rate], epoch: int, taken: int, protocol: Protocol) -> list[_Rate]:
    """The better of each head's rates after an epoch and so many steps, see `Protocol`.

    0FC keeps all: its one row per rate costs nothing beside the hidden layers of the others.
    """
    if protocol.halving_steps is None or protocol.patience is None:
        return list(going)
    times = min(epoch, taken // protocol.halving_steps).bit_length()
    n_kept = -(-len(protocol.learning_rates) // 2**times)
    dropped: set[int] = set()
    for name in {one.name for one in going if one.depth}:
        ranked = sorted((one for one in going if one.name == name), key=lambda one: one.best[-1])
        dropped |= {id(one) for one in ranked[n_kept:]}
    return [one for one in going if id(one) not in dropped]


@contextmanager
def _full_products(device: str) -> Iterator[None]:
    """Products of float32 in float32 and not in TF32, which keeps three digits, on CUDA."""
    if not device.startswith("cuda"):
        yield
        return
    settings: Any = torch.backends.cuda.matmul
    # torch 2.9 renamed the setting, and refuses to read the old name where the new one was set.
    renamed = hasattr(settings, "fp32_precision")
    name, full = ("fp32_precision", "ieee") if renamed else ("allow_tf32", False)
    before = getattr(settings, name)
    setattr(settings, name, full)
    try:
        yield
    finally:
        setattr(settings, name, before)


def _bank(candidates: Sequence[_Rate], task: Objective, protocol: Protocol) -> Bank:
    """All members at their start."""
    bank = Bank(
        _members(candidates, protocol),
        dim=len(task.standard.mean),
        hidden=protocol.hidden,
        outputs=task.outputs,
        device=protocol.device,
        products=protocol.products,
    )
    weight, bias = task.start
    if protocol.start == "random":
        bank.initialise_at_random(seed=protocol.seed, bias=bias)
    else:
        bank.initialise(seed=protocol.seed, weight=weight, bias=bias)
    return bank


def _members(candidates: Sequence[_Rate], protocol: Protocol) -> list[Member]:
    # 0FC has nothing random: it starts as the linear map, and all seeds see the same batches.
    return [
        Member(candidate.depth, candidate.rate, seed)
        for candidate in candidates
        for seed in range(protocol.members if candidate.depth else 1)
    ]


def _places(bank: Bank, candidate: _Rate) -> list[int]:
    return [
        place
        for place, member in enumerate(bank.members)
        if (member.depth, member.rate) == (candidate.depth, candidate.rate)
    ]


class _Best:
    """The best rate and epoch of each head so far, by the dev rows.

    A head leaves its linear start only for a gain of `margin` standard errors or more: the smaller
    of two figures picked out of a hundred is often just the luckier one. A random start is no head:
    it is kept only until an epoch has a finite figure.
    """

    def __init__(self, names: Sequence[str], task: Objective, protocol: Protocol) -> None:
        self.found = {name: Trained(name) for name in names}
        self._task, self._linear = task, protocol.start != "random"
        self._held: dict[str, list[Tensor]] = {}  # on the device: weight, bias of each layer

    def judge(self, bank: Bank, candidates: Sequence[_Rate], *, epoch: int, losses: Tensor) -> None:
        """Score the dev rows after an epoch, and keep each head that is its best.

        losses: the mean train loss of each member. All figures come from the device at once.
        """
        averaged = [_places(bank, candidate) for candidate in candidates]
        scores = self._task.dev_scores(bank, averaged)
        figures = []
        for candidate, places, rows in zip(candidates, averaged, scores, strict=True):
            head = self.found[candidate.name]
            if epoch == 0:
                head.start = rows
            figures += [
                losses[places[0] : places[-1] + 1].mean(),
                rows @ self._task.dev_share,
                self._task.clear(head.start - rows).float(),
            ]
        table = torch.stack(figures).view(-1, 3).tolist()
        for candidate, places, row in zip(candidates, averaged, table, strict=True):
            self._take(bank, candidate, places, epoch, *row)

    def _take(
        self,
        bank: Bank,
        candidate: _Rate,
        places: Sequence[int],
        epoch: int,
        loss: float,
        figure: float,
        clear: float,
    ) -> None:
        head = self.found[candidate.name]
        head.curve.append(Point(candidate.rate, epoch, loss, figure))
        if not math.isfinite(figure):
            candidate.best.append(math.inf)
            return
        candidate.best.append(min([figure, *candidate.best[-1:]]))
        if figure < head.dev and (clear or epoch == 0 or not self._linear):
            head.dev = figure if epoch or self._linear else math.inf
            head.rate, head.epoch = candidate.rate, epoch
            views = [bank.parameters(place) for place in places]
            self._held[candidate.name] = [torch.stack(one) for one in zip(*views, strict=True)]

    def taken(self) -> dict[str, Trained]:
        """The heads, in the units of the targets."""
        for name, held in self._held.items():
            arrays = [tensor.cpu().numpy() for tensor in held]
            pairs = zip(arrays[::2], arrays[1::2], strict=True)
            layers = tuple(Layer(weight, bias) for weight, bias in pairs)
            self.found[name].layers = self._task.unscale(layers)
            self.found[name].start = self.found[name].start.cpu()
        return self.found
