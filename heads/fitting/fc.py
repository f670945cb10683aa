"""Fully connected heads: 0FC, 1FC and 2FC (paper, section 3.2), many of them side by side.

A `Bank` holds any number of members, each with its own depth, learning rate and seed, in one flat
tensor. The first layers of all members are the rows of one matrix, so that one matrix product
serves every member; deeper layers are batched products. Forward and backward are written out: the
gradient of the first layer is one product too, and nothing is kept for inputs that need none.

    member of depth 0:  outputs        depth 1:  hidden -> outputs      depth 2:  h -> h -> outputs
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DEPTHS = {"0fc": 0, "1fc": 1, "2fc": 2}


@dataclass(frozen=True, slots=True)
class Member:
    """One network of the bank."""

    depth: int
    rate: float
    seed: int


class Bank:
    """The parameters of all members and their gradients, each one flat tensor.

    members: sorted by depth, so that a depth's members are adjacent.
    dim, hidden, outputs: floats in, per hidden layer and out.
    products: "bfloat16" rounds what the first layers' products take and give while they train and
        are chosen; the parameters stay float32, and so does what `forward` gives otherwise.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        dim: int,
        hidden: int,
        outputs: int,
        device: str = "cpu",
        products: str = "float32",
    ) -> None:
        self.members = tuple(members)
        assert list(self.members) == sorted(self.members, key=lambda member: member.depth)
        self.dim, self.hidden, self.outputs, self.products = dim, hidden, outputs, products
        self.count = tuple(sum(member.depth == depth for member in members) for depth in range(3))
        m0, m1, m2 = self.count
        # Spare rows, always zero, keep the hidden columns of `first` aligned, and the strides of
        # 2FC off powers of two, where caches collide: batched products then run twice as fast.
        spare = -(m0 * outputs) % 16 or (16 if m2 else 0)
        wide = m0 * outputs + spare
        self.cuts = (wide, wide + m1 * hidden, wide + (m1 + m2) * hidden)
        self._shapes = {
            "first": (self.cuts[2], dim),
            "first_bias": (self.cuts[2],),
            "middle": (m2, hidden, hidden),
            "middle_bias": (m2, 1, hidden),
            "last": (m1 + m2, outputs, hidden),
            "last_bias": (m1 + m2, 1, outputs),
        }
        self._sizes = [torch.Size(shape).numel() for shape in self._shapes.values()]
        self.flat = torch.zeros(sum(self._sizes), device=device)
        self.flat_gradient = torch.zeros(sum(self._sizes), device=device)
        self._value, self._slope = self._pieces(self.flat), self._pieces(self.flat_gradient)
        self._rounded = self._value["first"].to(getattr(torch, products))

    def _pieces(self, flat: Tensor) -> dict[str, Tensor]:
        pieces = zip(torch.split(flat, self._sizes), self._shapes.items(), strict=True)
        return {name: tensor.view(shape) for tensor, (name, shape) in pieces}

    def smaller(self, places: Sequence[int]) -> "Bank":
        """A bank for some of the members, all its parameters zero."""
        return Bank(
            [self.members[place] for place in places],
            dim=self.dim,
            hidden=self.hidden,
            outputs=self.outputs,
            device=str(self.flat.device),
            products=self.products,
        )

    def parameters(self, member: int) -> list[Tensor]:
        """Views of one member's parameters: weight, bias of each layer, in order."""
        return self._views(self._value, member)

    def gradients(self, member: int) -> list[Tensor]:
        """Views of one member's gradients, shaped as its parameters."""
        return self._views(self._slope, member)

    def views(self, flat: Tensor, member: int) -> list[Tensor]:
        """Views of one member's share of a tensor laid out as `flat`, shaped as its parameters."""
        return self._views(self._pieces(flat), member)

    def _views(self, held: dict[str, Tensor], member: int) -> list[Tensor]:
        m0, m1, _ = self.count
        depth = self.members[member].depth
        width = self.outputs if depth == 0 else self.hidden
        start = member * width if depth == 0 else self.cuts[0] + (member - m0) * width
        rows = slice(start, start + width)
        views = [held["first"][rows], held["first_bias"][rows]]
        if depth == 2:
            views += [held["middle"][member - m0 - m1], held["middle_bias"][member - m0 - m1, 0]]
        if depth:
            views += [held["last"][member - m0], held["last_bias"][member - m0, 0]]
        return views

    def initialise(self, *, seed: int, weight: Tensor, bias: Tensor) -> None:
        """Start every member as the linear map `weight` (outputs, dim), `bias` (outputs,).

        Two rectifiers make a line, relu(z) - relu(-z) = z: a hidden layer's first 2 x outputs units
        carry the map, the others get He's normal weights, and the last layer ignores them at first.
        Draws follow from (seed, the member's seed, its depth) alone, not from other members. Where
        a hidden layer is narrower than 2 x outputs, the start is the bias alone.
        """
        k = self.outputs if 2 * self.outputs <= self.hidden else 0
        both = torch.cat([torch.eye(k), -torch.eye(k)]).to(weight.device)
        for place, member in enumerate(self.members):
            source = torch.Generator().manual_seed(
                seed * 1_000_003 + member.seed * 10 + member.depth
            )
            *hidden, last, last_bias = self.parameters(place)
            for depth, (inner, offset) in enumerate(zip(hidden[::2], hidden[1::2], strict=True)):
                drawn = torch.randn(inner.shape, generator=source)
                inner.copy_(drawn * (2 / inner.shape[1]) ** 0.5)
                offset.zero_()
                if depth == 0:
                    inner[: 2 * k] = both @ weight[:k]
                else:
                    inner[: 2 * k] = 0
                    inner[: 2 * k, : 2 * k] = torch.eye(2 * k)
            last.zero_()
            if member.depth:
                last[:k, : 2 * k] = both.T
            else:
                last.copy_(weight)
            last_bias.copy_(bias)

    def initialise_at_random(self, *, seed: int, bias: Tensor) -> None:
        """Start every member as torch.nn.Linear does: uniform in 1 / sqrt(floats in), either side.

        bias (outputs,): of the last layer, the mean of the targets before the link. Each rate draws
        a start of its own, as separate runs would: the best of them is then the best of as many.
        """
        for place, member in enumerate(self.members):
            rate = int(np.float64(member.rate).view(np.uint64))
            drawn_from = np.random.SeedSequence([seed, member.seed, member.depth, rate])
            source = torch.Generator().manual_seed(int(drawn_from.generate_state(1, np.uint64)[0]))
            views = self.parameters(place)
            for weight, offset in zip(views[::2], views[1::2], strict=True):
                reach = weight.shape[1] ** -0.5
                for tensor in (weight, offset):
                    drawn = torch.rand(tensor.shape, generator=source)
                    tensor.copy_((2 * drawn - 1) * reach)
            views[-1].copy_(bias)

    def forward(
        self, inputs: Tensor, masks: Sequence[Tensor] | None = None, *, training: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Outputs (members, rows, outputs) for inputs (rows, dim), before the link.

        masks: for dropout, see `train`; factors for the hidden layer of depth 1, and the first and
        second of depth 2. training: by the products that the bank trains with. Also returns what
        `backward` needs.
        """
        value, (m0, m1, m2), (a, b, c) = self._value, self.count, self.cuts
        rows = len(inputs)
        if training and self.products != "float32":
            self._rounded.copy_(value["first"])
            first = torch.mm(inputs.to(self._rounded.dtype), self._rounded.T).float()
            first += value["first_bias"]
        else:
            first = torch.addmm(value["first_bias"], inputs, value["first"].T)
        outputs = torch.empty(len(self.members), rows, self.outputs, device=inputs.device)
        linear = first[:, : m0 * self.outputs].view(rows, m0, self.outputs)
        outputs[:m0] = linear.transpose(0, 1)
        first[:, a:].clamp_(min=0)
        one = first[:, a:b].view(rows, m1, self.hidden).transpose(0, 1)
        two = first[:, b:c].view(rows, m2, self.hidden).transpose(0, 1)
        if masks is not None:
            one.mul_(masks[0])
            two.mul_(masks[1])
        last, last_bias = value["last"].transpose(1, 2), value["last_bias"]
        second = torch.empty(0, device=inputs.device)
        if m1:
            outputs[m0 : m0 + m1] = torch.baddbmm(last_bias[:m1], one, last[:m1])
        if m2:
            second = torch.baddbmm(value["middle_bias"], two, value["middle"].transpose(1, 2))
            second.clamp_(min=0)
            if masks is not None:
                second.mul_(masks[2])
            outputs[m0 + m1 :] = torch.baddbmm(last_bias[m1:], second, last[m1:])
        return outputs, [first, one, two, second]

    def backward(
        self,
        inputs: Tensor,
        slope: Tensor,
        kept: Sequence[Tensor],
        masks: Sequence[Tensor] | None = None,
    ) -> None:
        """Fill the gradients from d loss / d outputs `slope` (members, rows, outputs).

        kept: what `forward` returned.
        """
        value, grad, (m0, m1, m2), (a, b, c) = self._value, self._slope, self.count, self.cuts
        first, one, two, second = kept
        rows = len(inputs)
        down = torch.empty_like(first)
        down[:, m0 * self.outputs : a] = 0
        linear = down[:, : m0 * self.outputs].view(rows, m0, self.outputs)
        linear.copy_(slope[:m0].transpose(0, 1))
        if m1:
            upper = slope[m0 : m0 + m1]
            torch.bmm(upper.transpose(1, 2), one, out=grad["last"][:m1])
            torch.sum(upper, 1, keepdim=True, out=grad["last_bias"][:m1])
            target = down[:, a:b].view(rows, m1, self.hidden).transpose(0, 1)
            target.copy_(torch.bmm(upper, value["last"][:m1]))
            if masks is not None:
                target.mul_(masks[0])
        if m2:
            upper = slope[m0 + m1 :]
            torch.bmm(upper.transpose(1, 2), second, out=grad["last"][m1:])
            torch.sum(upper, 1, keepdim=True, out=grad["last_bias"][m1:])
            between = torch.bmm(upper, value["last"][m1:])
            if masks is not None:
                between.mul_(masks[2])
            _through_rectifier(between, second)
            torch.bmm(between.transpose(1, 2), two, out=grad["middle"])
            torch.sum(between, 1, keepdim=True, out=grad["middle_bias"])
            target = down[:, b:c].view(rows, m2, self.hidden).transpose(0, 1)
            target.copy_(torch.bmm(between, value["middle"]))
            if masks is not None:
                target.mul_(masks[1])
        _through_rectifier(down[:, a:], first[:, a:])
        if self.products == "float32":
            torch.mm(down.T, inputs, out=grad["first"])
        else:
            kind = self._rounded.dtype
            grad["first"].copy_(torch.mm(down.to(kind).T, inputs.to(kind)))
        torch.sum(down, 0, out=grad["first_bias"])


def _through_rectifier(slope: Tensor, passed: Tensor) -> None:
    """Set a slope by what a rectifier gave to the slope by what it took."""
    torch.ops.aten.threshold_backward(slope, passed, 0, grad_input=slope)
