"""One loop that trains every learning rate, depth and member of a task at once.

The rows of a step are shared by all members, so that the first layers of the whole sweep are one
matrix product (`fc.Bank`). A member's start, rate and dropout depend on nothing but its own depth,
rate and seed, and no sum runs across members: a head trained alone is the same head, up to the
rounding of a product of another width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from embedcache.errors import InputError
from heads.dataset.rows import Part
from heads.fitting.fc import DEPTHS, Bank, Member
from heads.fitting.objective import Objective
from heads.fitting.protocol import Protocol
from heads.head import Layer, Link, Standard

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
    """
    protocol = replace(protocol, device=_device(protocol.device))
    task = Objective(train_part, dev_part, standard, link, loss, start, protocol)
    found = {name: Trained(name) for name in names}
    candidates = [
        _Rate(name, DEPTHS[name], rate)
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
    if protocol.start == "random":
        bank.initialise_at_random(seed=protocol.seed, bias=task.start[1])
    else:
        bank.initialise(seed=protocol.seed, weight=task.start[0], bias=task.start[1])
    optimizer = _optimizer(bank, protocol)
    untrained = torch.full((len(bank.members),), math.nan)
    _judge(task, bank, candidates, found, epoch=0, losses=untrained, protocol=protocol)
    steps, patience = 0, protocol.patience or protocol.epochs
    record = dict.fromkeys(found, math.inf)
    for epoch in range(1, protocol.epochs + 1):
        losses, steps = _epoch(task, bank, optimizer, epoch, steps, protocol)
        _judge(task, bank, candidates, found, epoch=epoch, losses=losses, protocol=protocol)
        tick(epoch)
        for one in candidates:
            record[one.name] = min(record[one.name], one.best[-1])
        left = protocol.epochs - epoch
        going = [c for c in candidates if c.may_win(record[c.name], left=left, patience=patience)]
        if not going:
            break
        if len(going) < len(candidates):
            candidates = going
            bank, optimizer = _keep(bank, optimizer, candidates, protocol)
    for head in found.values():
        head.layers = task.unscale(head.layers)
    return found


def _epoch(
    task: Objective,
    bank: Bank,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    steps: int,
    protocol: Protocol,
) -> tuple[Tensor, int]:
    """One pass over the train rows: the mean loss per member, and the steps taken so far."""
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
    return total / seen, steps


def _device(asked: str) -> str:
    """The device to train on; InputError for one that this machine lacks."""
    n = torch.cuda.device_count()
    if asked == "auto":
        return "cuda" if n else "cpu"
    if asked.startswith("cuda") and int(asked.partition(":")[2] or 0) >= n:
        raise InputError(f"{n} CUDA devices here, and {asked} was asked for: use `device='cpu'`")
    return asked


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


def _judge(
    task: Objective,
    bank: Bank,
    candidates: Sequence[_Rate],
    found: dict[str, Trained],
    *,
    epoch: int,
    losses: Tensor,
    protocol: Protocol,
) -> None:
    """Score the dev rows after an epoch; remember each head's best.

    A head leaves its linear start only for a gain of `margin` standard errors or more: the smaller
    of two figures picked out of a hundred is often just the luckier one. A random start is no head:
    it is kept only until an epoch has a finite figure.
    """
    linear = protocol.start != "random"
    averaged = [_places(bank, candidate) for candidate in candidates]
    scores = task.dev_scores(bank, averaged)
    for candidate, places, rows in zip(candidates, averaged, scores, strict=True):
        head, figure = found[candidate.name], float(rows @ task.dev_share)
        head.curve.append(Point(candidate.rate, epoch, float(losses[places].mean()), figure))
        if not math.isfinite(figure):
            candidate.best.append(math.inf)
            continue
        candidate.best.append(min([figure, *candidate.best[-1:]]))
        if epoch == 0:
            head.start = rows
        clear = epoch == 0 or not linear or task.clear(head.start - rows)
        if figure < head.dev and clear:
            head.dev = figure if epoch or linear else math.inf
            head.rate, head.epoch = candidate.rate, epoch
            views = [bank.parameters(place) for place in places]
            stacked = [torch.stack(one).cpu().numpy() for one in zip(*views, strict=True)]
            pairs = zip(stacked[::2], stacked[1::2], strict=True)
            head.layers = tuple(Layer(weight, bias) for weight, bias in pairs)


def _optimizer(bank: Bank, protocol: Protocol) -> torch.optim.Optimizer:
    """One optimizer with a group per rate; a second one of biases, where weights decay."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for place, member in enumerate(bank.members):
        pairs = zip(bank.parameters(place), bank.gradients(place), strict=True)
        for kind, (value, slope) in enumerate(pairs):
            value.grad = slope
            decay = 0.0 if kind % 2 else protocol.weight_decay
            groups.setdefault((member.rate, decay), []).append(value)
    found = [
        {"params": tensors, "start": rate, "weight_decay": decay}
        for (rate, decay), tensors in groups.items()
    ]
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(found, lr=1.0, momentum=_MOMENTUM, fused=True)
    return torch.optim.AdamW(found, lr=1.0, fused=True)


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
        layers.append(torch.stack(mine) if mine else bank.flat.new_empty(0, rows, bank.hidden))
    return layers


def _keep(
    bank: Bank,
    optimizer: torch.optim.Optimizer,
    candidates: Sequence[_Rate],
    protocol: Protocol,
) -> tuple[Bank, torch.optim.Optimizer]:
    """A smaller bank of the members that continue, with their optimizer's state."""
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
