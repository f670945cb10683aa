"""The rows, the loss and the link of one task, as the training loop sees them.

Vectors are standardised as they are read. Those that fit the memory limit are held for the whole
training, others are read again in each epoch: blocks of neighbouring rows in a shuffled order, as
many as fit, and the rows of these blocks shuffled. The order depends on the limit, and not on where
the vectors lie, so that a streamed training is the same training.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.dataset.rows import BLOCK_ROWS as READ_ROWS
from heads.dataset.rows import Part
from heads.fitting.choice import errors
from heads.fitting.fc import Bank
from heads.fitting.intervals import Sample
from heads.fitting.on_device import DeviceVectors, through
from heads.fitting.protocol import Protocol
from heads.head import Layer, Link, Standard

BLOCK_ROWS = 2048
_DEV_ROWS = 1024
_DEV_ROWS_ON_DEVICE = 8192


class Objective:
    """What all members of a bank learn from and are chosen by."""

    def __init__(
        self,
        train_part: Part,
        dev_part: Part,
        standard: Standard,
        link: Link,
        loss: str,
        start: Layer,
        protocol: Protocol,
    ) -> None:
        self.outputs = start.bias.shape[1]
        self.link, self.loss, self.protocol, self.standard = link, loss, protocol, standard
        self.device = protocol.device
        self.part, self.dev = train_part, dev_part
        targets = train_part.targets
        weights = np.ones(len(targets)) if train_part.weights is None else train_part.weights
        share = weights / weights.sum()
        self.centre, self.spread = np.zeros(self.outputs), np.ones(self.outputs)
        if link == "identity":
            self.centre = share @ targets
            spread = np.sqrt(share @ (targets - self.centre) ** 2)
            self.spread = np.where(spread > 0, spread, 1.0)
        self.start = (
            self._tensor(start.weight[0] / self.spread[:, None]),
            self._tensor((start.bias[0] - self.centre) / self.spread),
        )
        k = targets.shape[1]  # one column of class numbers may have several outputs
        centre, scale = self.centre[:k], self.spread[:k]
        self.targets = self._tensor((targets - centre) / scale)
        self.weights = self._tensor(weights / weights.mean())[:, None]
        dev_weights = np.ones(len(dev_part)) if dev_part.weights is None else dev_part.weights
        if not dev_weights.any():
            dev_weights = np.ones(len(dev_part))
        self.dev_targets = self._tensor((dev_part.targets - centre) / scale)
        self.dev_share = self._tensor(dev_weights / dev_weights.sum())
        sample = Sample(dev_weights, dev_part.groups)
        self.margin = errors(protocol.margin, sample)
        self._dev_units = self._tensor(self.spread**2)
        self._dev_order = torch.from_numpy(dev_part.order).to(self.device)
        self._dev_place = torch.from_numpy(sample.place.clip(min=0)).to(self.device)
        self._dev_rest = self._tensor(1 - sample.group_mass / sample.group_mass.sum())
        self.groups = self._group_rows()
        held = self.groups >= len(train_part)
        # What the first layers' products take is rounded once, and not in each step.
        self.kind = getattr(torch, protocol.products)
        places = np.arange(len(train_part))
        self.inputs = self._read(train_part, places, self.kind) if held else None
        self._stored = torch.from_numpy(train_part.order)
        size, k = protocol.batch_size, self.targets.shape[1]
        shapes = ((size, len(standard.mean)), (size, k), (size, 1))
        kinds = self.kind, torch.float32, torch.float32
        self._batch = [
            torch.empty(shape, dtype=kind, device=self.device)
            for shape, kind in zip(shapes, kinds, strict=True)
        ]
        self.dev_inputs = self._read(dev_part, dev_part.order, self.kind) if held else None
        lengths = [len(order) for order in self._order(0)]
        self.steps_per_epoch = sum(-(-length // size) for length in lengths)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _read(
        self, part: Part, places: NDArray[np.int64], kind: torch.dtype = torch.float32
    ) -> Tensor:
        """The standardised rows at some places, read in this order, on the device.

        They are standardised there, by the same two roundings, and then rounded to `kind`.
        """
        mean, scale = (
            torch.from_numpy(one).to(self.device)
            for one in (self.standard.mean, self.standard.scale)
        )
        if isinstance(part.vectors, DeviceVectors):
            return part.vectors.take(part.rows[places]).sub_(mean).div_(scale).to(kind)
        found = torch.empty(len(places), len(mean), dtype=kind, device=self.device)
        for start in range(0, len(places), READ_ROWS):
            rows = np.ascontiguousarray(part.read(places[start : start + READ_ROWS]), np.float32)
            standardised = (torch.from_numpy(rows).to(self.device) - mean).div_(scale)
            found[start : start + READ_ROWS] = standardised
        return found

    def _group_rows(self) -> int:
        """How many training rows are held at a time: all, or what half the memory limit allows.

        The other half is for the vectors as they were read, if they are in memory too. On a
        CUDA device its free memory is a limit too.
        """
        limit, n = self.protocol.memory_bytes, len(self.part)
        if self.device.startswith("cuda"):
            free, _ = torch.cuda.mem_get_info(self.device)
            limit = min(free, limit or free)
        row_bytes = 4 * len(self.standard.mean)
        if limit is None or 2 * row_bytes * (n + len(self.dev)) <= limit:
            return n
        return max(BLOCK_ROWS, limit // (2 * row_bytes) // BLOCK_ROWS * BLOCK_ROWS)

    def _order(self, epoch: int) -> list[Tensor]:
        """The rows of one epoch, shuffled: blocks of neighbours first, then inside each group.

        Numbers count in `Part.order`, the order in which rows lie in the cache.
        """
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
        """Inputs (rows, dim), targets (rows, k) and weights (rows, 1) of each step.

        All full batches lie in the same three tensors: use a step's before asking for the next.
        """
        size = self.protocol.batch_size
        for order in self._order(epoch):
            rows = self._stored[order]
            held, place = self.inputs, rows
            if held is None:
                near, place = order.sort()
                held = self._read(self.part, self.part.order[near.numpy()], self.kind)
                place = place.argsort()
            rows, place = rows.to(self.device), place.to(self.device)
            for start in range(0, len(rows), size):
                step = slice(start, start + size)
                inputs, targets, weights = (one[: len(rows) - start] for one in self._batch)
                torch.index_select(held, 0, place[step], out=inputs)
                torch.index_select(self.targets, 0, rows[step], out=targets)
                torch.index_select(self.weights, 0, rows[step], out=weights)
                yield inputs, targets, weights
            del held  # before the next group is read

    def linked(self, outputs: Tensor) -> Tensor:
        """Outputs (..., k) through the link."""
        return through(outputs, self.link)

    def slope(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The loss per member (members,) and its slope by the outputs (members, rows, k)."""
        seen = self.linked(outputs)
        rows, k = targets.shape
        if self.link == "softmax":
            truth = (targets == torch.arange(self.outputs, device=targets.device)).float()
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

    def dev_scores(self, bank: Bank, averaged: Sequence[Sequence[int]]) -> Tensor:
        """The squared error (for classes the log-loss) of each dev row, (len(averaged), n_dev).

        averaged: per line of the result, the members whose predictions are averaged.
        """
        scores = torch.empty(len(averaged), len(self.dev), device=self.device)
        size = _DEV_ROWS if scores.device.type == "cpu" else _DEV_ROWS_ON_DEVICE
        for start in range(0, len(self.dev), size):
            rows = self._dev_order[start : start + size]
            if self.dev_inputs is None:
                inputs = self._read(self.dev, self.dev.order[start : start + size], self.kind)
            else:
                inputs = self.dev_inputs[start : start + size]
            seen = self.linked(bank.forward(inputs, training=True)[0])
            truth = self.dev_targets[rows]
            for place, members in enumerate(averaged):
                mean = seen[members[0] : members[-1] + 1].mean(0)  # neighbours, by `Bank`
                if self.link == "softmax":
                    each = -mean.clamp(min=1e-12).gather(1, truth.long()).log()
                elif self.loss == "log_loss":
                    mean = mean.clamp(1e-7, 1 - 1e-7)
                    each = -(truth * mean.log() + (1 - truth) * (-mean).log1p())
                else:
                    each = (mean - truth).square() * self._dev_units
                scores[place, rows] = each.mean(1)
        return scores

    def clear(self, gain: Tensor) -> Tensor:
        """Whether the mean of a gain per dev row (n_dev,) is `margin` standard errors or more.

        The error is `Sample.error`'s: the jackknife over groups. Of one group nothing is clear. The
        answer is a tensor, which leaves it on the device.
        """
        mean = gain @ self.dev_share
        n = len(self._dev_rest)
        if n < 2:
            return torch.zeros_like(mean, dtype=torch.bool)
        parts = (gain - mean) * self.dev_share
        sums = torch.zeros(n, device=self.device).index_add_(0, self._dev_place, parts)
        error = (sums / self._dev_rest).square().sum().mul((n - 1) / n).sqrt()
        return mean > self.margin * error

    def unscale(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Convert the last layer to the target's own units."""
        *below, last = layers
        weight = last.weight * self.spread[:, None]
        bias = last.bias * self.spread + self.centre
        return (*below, Layer(weight.astype(np.float32), bias.astype(np.float32)))
