"""One loop that trains every learning rate, depth and member of a task at once.

The rows of a step are shared by all members, so that the first layers of the whole sweep are one
matrix product (`fc.Bank`). A member's start, rate and dropout depend on nothing but its own depth,
rate and seed, and no sum runs across members: a head trained alone is the same head, up to the
rounding of a product of another width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from heads.dataset import Part
from heads.fc import DEPTHS, Bank, Member
from heads.head import Layer, Link, Standard
from heads.protocol import Protocol

BLOCK_ROWS = 2048
_MOMENTUM = 0.9
_DECAY = 0.01


@dataclass(frozen=True, slots=True)
class Point:
    """One epoch of one rate: the training loss on the way, and the dev figure at its end."""

    rate: float
    epoch: int
    train: float
    dev: float


@dataclass(slots=True)
class Trained:
    """The best rate and epoch of one head by its dev figure; epoch 0 is the constant it starts as.

    layers: of that epoch, members stacked. dev: MSE, or log-loss for classes. curve: all rates.
    """

    name: str
    rate: float = math.nan
    epoch: int = 0
    dev: float = math.inf
    layers: tuple[Layer, ...] = ()
    curve: list[Point] = field(default_factory=list)


@dataclass(slots=True)
class _Candidate:
    """One (depth, rate): its members stand or fall together, by their averaged predictions."""

    name: str
    depth: int
    rate: float
    best: float = math.inf
    stale: int = 0


def train(
    names: Sequence[str],
    train_part: Part,
    dev_part: Part,
    *,
    standard: Standard,
    link: Link,
    loss: str,
    outputs: int,
    protocol: Protocol,
) -> dict[str, Trained]:
    """Train the heads `names` ("0fc", "1fc", "2fc"); the dev rows pick each one's rate and epoch.

    loss: "mse", "log_loss" or "binomial" (`fit` resolves "auto").
    Returns a `Trained` per name. A rate that diverges drops out and disturbs no other.
    """
    task = _Task(train_part, dev_part, standard, link, loss, outputs, protocol)
    found = {name: Trained(name) for name in names}
    candidates = [
        _Candidate(name, DEPTHS[name], rate)
        for name in sorted(set(names), key=DEPTHS.__getitem__)
        for rate in protocol.learning_rates
    ]
    bank = Bank(
        _members(candidates, protocol),
        dim=len(standard.mean),
        hidden=protocol.hidden,
        outputs=task.outputs,
        device=protocol.device,
    )
    bank.initialise(seed=protocol.seed, bias=task.bias)
    optimizer = _optimizer(bank, protocol)
    _judge(
        task, bank, candidates, found, epoch=0, losses=torch.full((len(bank.members),), math.nan)
    )
    steps = 0
    for epoch in range(1, protocol.epochs + 1):
        total, seen = torch.zeros(len(bank.members), device=protocol.device), 0
        for inputs, targets, weights in task.batches(epoch):
            for group in optimizer.param_groups:
                share = steps / (task.steps_per_epoch * protocol.epochs)
                group["lr"] = group["start"] * _DECAY**share
            masks = _masks(bank, len(inputs), protocol, steps)
            given, kept = bank.forward(inputs, masks)
            losses, slope = task.slope(given, targets, weights)
            bank.backward(inputs, slope, kept, masks)
            optimizer.step()
            total += losses * len(inputs)
            seen += len(inputs)
            steps += 1
        _judge(task, bank, candidates, found, epoch=epoch, losses=total / seen)
        patience = protocol.patience or protocol.epochs
        going = [c for c in candidates if math.isfinite(c.best) and c.stale < patience]
        if not going:
            break
        if len(going) < len(candidates):
            candidates = going
            bank, optimizer = _keep(bank, optimizer, candidates, protocol)
    for one in found.values():
        one.layers = task.unscale(one.layers)
    return found


class _Task:
    """The rows, the loss and the link, shared by all members."""

    def __init__(
        self,
        train_part: Part,
        dev_part: Part,
        standard: Standard,
        link: Link,
        loss: str,
        outputs: int,
        protocol: Protocol,
    ) -> None:
        self.outputs = outputs
        self.link, self.loss, self.protocol, self.standard = link, loss, protocol, standard
        self.device = protocol.device
        self.part, self.dev = train_part, dev_part
        targets = train_part.targets
        weights = np.ones(len(targets)) if train_part.weights is None else train_part.weights
        share = weights / weights.sum()
        self.centre, self.spread = np.zeros(targets.shape[1]), np.ones(targets.shape[1])
        if link == "softmax":
            rate = np.bincount(targets[:, 0].astype(int), share, self.outputs)
            start = np.log(np.clip(rate, 1e-6, 1))
        elif link == "sigmoid":
            rate = np.clip(share @ targets, 1e-6, 1 - 1e-6)
            start = np.log(rate / (1 - rate))
        else:
            self.centre = share @ targets
            spread = np.sqrt(share @ (targets - self.centre) ** 2)
            self.spread = np.where(spread > 0, spread, 1.0)
            start = np.zeros(self.outputs)
        self.bias = self._tensor(start)
        self.targets = self._tensor((targets - self.centre) / self.spread)
        self.weights = self._tensor(weights / weights.mean())[:, None]
        dev_weights = np.ones(len(dev_part)) if dev_part.weights is None else dev_part.weights
        if not dev_weights.any():
            dev_weights = np.ones(len(dev_part))
        self.dev_targets = self._tensor((dev_part.targets - self.centre) / self.spread)
        self.dev_share = self._tensor(dev_weights / dev_weights.sum())[:, None]
        self.groups = self._group_rows()
        held = self.groups >= len(train_part)
        self.inputs = self._read(train_part, np.arange(len(train_part))) if held else None
        self.dev_inputs = self._read(dev_part, np.arange(len(dev_part))) if held else None
        size = protocol.batch_size
        lengths = [len(order) for order in self._order(0)]
        self.steps_per_epoch = sum(-(-length // size) for length in lengths)

    def _tensor(self, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _read(self, part: Part, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        vectors = self.standard.apply(part.vectors[part.rows[rows]])
        return torch.from_numpy(vectors).to(self.device)

    def _group_rows(self) -> int:
        """How many training rows are held at a time: all, or what the memory limit allows."""
        limit, n = self.protocol.memory_bytes, len(self.part)
        row_bytes = 4 * len(self.standard.mean)
        # Read rows and their standardised copy exist at the same time.
        if limit is None or 2 * row_bytes * (n + len(self.dev)) <= limit:
            return n
        return max(BLOCK_ROWS, limit // (2 * row_bytes) // BLOCK_ROWS * BLOCK_ROWS)

    def _order(self, epoch: int) -> list[Tensor]:
        """The rows of one epoch, shuffled: blocks of neighbours first, then inside each group."""
        source = torch.Generator().manual_seed(self.protocol.seed * 1_000_003 + epoch)
        n = len(self.part)
        if self.groups >= n:
            return [torch.randperm(n, generator=source)]
        starts = torch.randperm(-(-n // BLOCK_ROWS), generator=source) * BLOCK_ROWS
        groups = []
        for some in torch.split(starts, self.groups // BLOCK_ROWS):
            rows = torch.cat([torch.arange(s, min(s + BLOCK_ROWS, n)) for s in some.tolist()])
            groups.append(rows[torch.randperm(len(rows), generator=source)])
        return groups

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs (rows, dim), targets (rows, k) and weights (rows, 1) of each step."""
        for order in self._order(epoch):
            if self.inputs is not None:
                held, place = self.inputs, order
            else:
                near, place = order.sort()
                held, place = self._read(self.part, near.numpy()), place.argsort()
            for rows, at in zip(
                torch.split(order, self.protocol.batch_size),
                torch.split(place, self.protocol.batch_size),
                strict=True,
            ):
                yield held[at.to(self.device)], self.targets[rows], self.weights[rows]

    def linked(self, outputs: Tensor) -> Tensor:
        """Outputs (..., k) through the link."""
        if self.link == "identity":
            return outputs
        return outputs.sigmoid() if self.link == "sigmoid" else outputs.softmax(-1)

    def slope(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The loss per member (members,) and its slope by the outputs (members, rows, k)."""
        seen = self.linked(outputs)
        rows, k = targets.shape
        if self.link == "softmax":
            truth = torch.nn.functional.one_hot(targets[:, 0].long(), self.outputs).float()
            losses = -(outputs.log_softmax(-1) * truth).sum(-1) * weights[:, 0]
            return losses.mean(1), (seen - truth) * (weights / rows)
        gap = seen - targets
        if self.loss == "mse":
            losses = gap.square() * weights
            slope = gap * (weights * (2 / (rows * k)))
            if self.link == "sigmoid":
                slope = slope * seen * (1 - seen)
        else:
            losses = torch.nn.functional.softplus(outputs) - targets * outputs
            losses = losses * weights
            slope = gap * (weights / (rows * k))
        return losses.mean((1, 2)), slope

    def dev_figures(self, bank: Bank, candidates: Sequence[_Candidate]) -> list[float]:
        """Per candidate the dev MSE (log-loss for classes) of its members' mean prediction."""
        totals = torch.zeros(len(candidates), device=self.device)
        for start in range(0, len(self.dev), 4096):
            rows = np.arange(start, min(start + 4096, len(self.dev)))
            inputs = (
                self.dev_inputs[start : start + 4096]
                if self.dev_inputs is not None
                else self._read(self.dev, rows)
            )
            seen = self.linked(bank.forward(inputs)[0])
            truth, share = self.dev_targets[rows], self.dev_share[rows]
            for place, candidate in enumerate(candidates):
                mean = seen[_places(bank, candidate)].mean(0)
                if self.link == "softmax":
                    mean = mean.clamp(min=1e-12)
                    each = -mean.gather(1, truth.long()).log()
                elif self.loss == "log_loss":
                    mean = mean.clamp(1e-7, 1 - 1e-7)
                    each = -(truth * mean.log() + (1 - truth) * (-mean).log1p())
                else:
                    each = (mean - truth).square() * self._tensor(self.spread**2)
                totals[place] += (each.mean(1, keepdim=True) * share).sum()
        return [float(total) for total in totals]

    def unscale(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Let the last layer speak in the target's own units."""
        *below, last = layers
        weight = last.weight * self.spread[:, None]
        bias = last.bias * self.spread + self.centre
        return (*below, Layer(weight.astype(np.float32), bias.astype(np.float32)))


def _members(candidates: Sequence[_Candidate], protocol: Protocol) -> list[Member]:
    # 0FC starts at zero and sees the same batches whatever its seed: one member says it all.
    return [
        Member(candidate.depth, candidate.rate, seed)
        for candidate in candidates
        for seed in range(protocol.members if candidate.depth else 1)
    ]


def _places(bank: Bank, candidate: _Candidate) -> list[int]:
    return [
        place
        for place, member in enumerate(bank.members)
        if (member.depth, member.rate) == (candidate.depth, candidate.rate)
    ]


def _judge(
    task: _Task,
    bank: Bank,
    candidates: Sequence[_Candidate],
    found: dict[str, Trained],
    *,
    epoch: int,
    losses: Tensor,
) -> None:
    """Look at the dev figures after an epoch; remember each head's best."""
    figures = task.dev_figures(bank, candidates)
    for candidate, figure in zip(candidates, figures, strict=True):
        places, head = _places(bank, candidate), found[candidate.name]
        head.curve.append(Point(candidate.rate, epoch, float(losses[places].mean()), figure))
        if not math.isfinite(figure):
            candidate.best = math.inf
            continue
        candidate.stale = 0 if figure < candidate.best else candidate.stale + 1
        candidate.best = min(candidate.best, figure)
        if figure < head.dev:
            head.dev, head.rate, head.epoch = figure, candidate.rate, epoch
            views = [bank.parameters(place) for place in places]
            stacked = [torch.stack(one).cpu().numpy() for one in zip(*views, strict=True)]
            pairs = zip(stacked[::2], stacked[1::2], strict=True)
            head.layers = tuple(Layer(weight, bias) for weight, bias in pairs)


def _optimizer(bank: Bank, protocol: Protocol) -> torch.optim.Optimizer:
    """One optimizer; per rate a group of weights and one of biases, which never decay."""
    groups = []
    for rate in protocol.learning_rates:
        mine = [place for place, member in enumerate(bank.members) if member.rate == rate]
        for kind, decay in ((0, protocol.weight_decay), (1, 0.0)):
            tensors = []
            for place in mine:
                values, slopes = bank.parameters(place)[kind::2], bank.gradients(place)[kind::2]
                for value, slope in zip(values, slopes, strict=True):
                    value.grad = slope
                    tensors.append(value)
            if tensors:
                groups.append({"params": tensors, "start": rate, "weight_decay": decay})
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=_MOMENTUM, fused=True)
    return torch.optim.AdamW(groups, lr=1.0, fused=True)


def _masks(bank: Bank, rows: int, protocol: Protocol, step: int) -> list[Tensor] | None:
    """Dropout factors (members of a depth, rows, hidden): rates share them, seeds do not."""
    if not protocol.dropout:
        return None
    keep = 1 - protocol.dropout
    drawn: dict[tuple[int, int], Tensor] = {}
    for member in bank.members:
        key = (member.depth, member.seed)
        if member.depth and key not in drawn:
            place = (protocol.seed * 1_000_003 + step) * 1009 + member.seed * 10 + member.depth
            source = torch.Generator().manual_seed(place)
            noise = torch.rand(member.depth, rows, bank.hidden, generator=source)
            drawn[key] = ((noise < keep) / keep).to(bank.flat.device)
    layers = []
    for depth, layer in ((1, 0), (2, 0), (2, 1)):
        mine = [drawn[depth, m.seed][layer] for m in bank.members if m.depth == depth]
        layers.append(torch.stack(mine) if mine else torch.empty(0))
    return layers


def _keep(
    bank: Bank,
    optimizer: torch.optim.Optimizer,
    candidates: Sequence[_Candidate],
    protocol: Protocol,
) -> tuple[Bank, torch.optim.Optimizer]:
    """A smaller bank of the members that go on, with their optimizer's state."""
    places = [place for candidate in candidates for place in _places(bank, candidate)]
    smaller = Bank(
        [bank.members[place] for place in places],
        dim=bank.dim,
        hidden=bank.hidden,
        outputs=bank.outputs,
        device=str(bank.flat.device),
    )
    state: dict[int, dict[str, Tensor]] = {}
    old_state = {tensor.data_ptr(): value for tensor, value in optimizer.state.items()}
    for new, old in enumerate(places):
        pairs = zip(smaller.parameters(new), bank.parameters(old), strict=True)
        for mine, theirs in pairs:
            mine.copy_(theirs)
            state[mine.data_ptr()] = old_state[theirs.data_ptr()]
    fresh = _optimizer(smaller, protocol)
    for group in fresh.param_groups:
        for tensor in group["params"]:
            fresh.state[tensor] = {
                name: value.clone() for name, value in state[tensor.data_ptr()].items()
            }
    return smaller, fresh
