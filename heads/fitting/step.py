"""The training steps of a bank: its optimizer, its dropout, and on a CUDA device one graph.

A step is a callable over one batch: forward, loss, backward, optimizer. On the CPU it is a handful
of library calls. On a CUDA device it is some sixty kernels, most of which take less time than their
launch: there rates, dropout and the sum of losses live on the device too, so that a step reads
nothing from the host, and after a few steps one is captured as a CUDA graph and replayed for every
full batch. The last, shorter batch of an epoch, and all steps where a capture fails, run kernel by
kernel.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# What is behind torch.optim: its classes load torch._dynamo, which takes seconds, and its functions
# add a quarter to what AdamW's kernel takes (docs/decisions/109).
from torch import _fused_adamw_ as adamw
from torch.optim.sgd import sgd

from heads.fitting.fc import Bank
from heads.fitting.objective import Objective
from heads.fitting.protocol import Protocol

_MOMENTUM = 0.9
_DECAY = 0.01
_BEFORE_CAPTURE = 3  # libraries load their kernels and take their workspaces meanwhile


@dataclass(frozen=True, slots=True)
class _Group:
    """The tensors of one rate and weight decay: values, their slopes and their moments."""

    rate: float
    decay: float
    values: list[Tensor]
    slopes: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]


class Optimizer:
    """AdamW, or SGD with momentum, over the members of a bank, each at its own rate.

    moments: two tensors laid out as `bank.flat`; what a smaller bank goes on with is copied there.
    on_device: rates are computed on the device, from a clock that counts steps there.
    total: the steps of the whole training, over which each rate decays 100-fold.
    """

    def __init__(
        self, bank: Bank, protocol: Protocol, *, total: int, taken: int, on_device: bool
    ) -> None:
        self.kind, self.total, self.on_device = protocol.optimizer, total, on_device
        self.moments = (torch.zeros_like(bank.flat), torch.zeros_like(bank.flat))
        self._clock = bank.flat.new_full((), taken, dtype=torch.float64)
        self._steps = bank.flat.new_full((), taken)  # as AdamW counts them
        self._groups = self._grouped(bank, protocol.weight_decay)
        self._starts = bank.flat.new_tensor([one.rate for one in self._groups], dtype=torch.float64)
        self._rates = self._starts.float()

    def _grouped(self, bank: Bank, weight_decay: float) -> list[_Group]:
        """A group per rate; a second one of biases, where weights decay."""
        found: dict[tuple[float, float], _Group] = {}
        for place, member in enumerate(bank.members):
            flats = (bank.flat, bank.flat_gradient, *self.moments)
            for kind, tensors in enumerate(
                zip(*(bank.views(f, place) for f in flats), strict=True)
            ):
                key = member.rate, 0.0 if kind % 2 else weight_decay
                group = found.setdefault(key, _Group(*key, [], [], [], []))
                held = (group.values, group.slopes, group.first, group.second)
                for one, tensor in zip(held, tensors, strict=True):
                    one.append(tensor)
        return list(found.values())

    def step(self, taken: int) -> None:
        """Move every value by its slope, at its rate after `taken` steps."""
        rates: Sequence[float | Tensor]
        if self.on_device:
            self._rates.copy_(self._starts * torch.pow(_DECAY, self._clock / self.total))
            self._clock += 1
            rates = self._rates.unbind()
        else:
            rates = [one.rate * _DECAY ** (taken / self.total) for one in self._groups]
        self._steps += 1
        for group, rate in zip(self._groups, rates, strict=True):
            if self.kind == "sgd":
                sgd(
                    group.values, group.slopes, list(group.first), fused=True, lr=rate,
                    weight_decay=group.decay, momentum=_MOMENTUM, dampening=0.0, nesterov=False,
                    maximize=False,
                )  # fmt: skip
            else:
                steps = [self._steps] * len(group.values)
                adamw(
                    group.values, group.slopes, group.first, group.second, [], steps, lr=rate,
                    weight_decay=group.decay, beta1=0.9, beta2=0.999, eps=1e-8, amsgrad=False,
                    maximize=False,
                )  # fmt: skip


class _Dropout:
    """Dropout factors. Those of a member follow from its depth, its seed and the step alone.

    On the host each step seeds a generator of its own. On a device each (depth, seed) has one
    generator that goes on from step to step, since a captured graph cannot be given a seed.
    """

    def __init__(self, bank: Bank, protocol: Protocol, *, on_device: bool) -> None:
        self.rate, self.seed, self.on_device = protocol.dropout, protocol.seed, on_device
        self.sources: dict[tuple[int, int], torch.Generator] = {}
        if self.rate and on_device:
            self.restart(bank, taken=0)

    def _place(self, depth: int, member: int, taken: int) -> int:
        return (self.seed * 1_000_003 + taken) * 1009 + member * 10 + depth

    def restart(self, bank: Bank, *, taken: int) -> None:
        """New generators on the device, which owe nothing to the old ones' state."""
        for member in bank.members:
            if member.depth and self.rate:
                source = torch.Generator(bank.flat.device)
                source.manual_seed(self._place(member.depth, member.seed, taken))
                self.sources[member.depth, member.seed] = source

    def factors(self, bank: Bank, rows: int, taken: int) -> list[Tensor] | None:
        """Per hidden layer (members of a depth, rows, hidden): rates share them, seeds do not."""
        if not self.rate:
            return None
        keep = 1 - self.rate
        drawn: dict[tuple[int, int], Tensor] = {}
        for member in bank.members:
            key = (member.depth, member.seed)
            if member.depth and key not in drawn:
                source = self.sources.get(key)
                if source is None:
                    source = torch.Generator().manual_seed(self._place(*key, taken))
                shape = (member.depth, rows, bank.hidden)
                noise = torch.rand(shape, generator=source, device=source.device)
                drawn[key] = ((noise < keep) / keep).to(bank.flat.device)
        layers = []
        for depth, layer in ((1, 0), (2, 0), (2, 1)):
            mine = [drawn[depth, m.seed][layer] for m in bank.members if m.depth == depth]
            layers.append(torch.stack(mine) if mine else bank.flat.new_empty(0, rows, bank.hidden))
        return layers


class Steps:
    """The training steps of a bank, counted over the whole training.

    on_device: see the module; the same figures as without, up to rounding and the draws of dropout.
    """

    def __init__(
        self, bank: Bank, task: Objective, protocol: Protocol, *, on_device: bool | None = None
    ) -> None:
        self.bank, self.task, self.protocol = bank, task, protocol
        self.on_device = bank.flat.is_cuda if on_device is None else on_device
        self.taken, self._may_capture = 0, self.on_device
        self._dropout = _Dropout(bank, protocol, on_device=self.on_device)
        self._optimizer = self._prepare()

    def _prepare(self) -> Optimizer:
        """What belongs to the bank of the moment: its optimizer, its losses, and no graph yet."""
        self._losses = self.bank.flat.new_zeros(len(self.bank.members))
        self._replay: Callable[[], None] | None = None
        self._eager = 0
        total = self.task.steps_per_epoch * self.protocol.epochs
        return Optimizer(
            self.bank, self.protocol, total=total, taken=self.taken, on_device=self.on_device
        )

    def epoch(self, number: int) -> Tensor:
        """One pass over the train rows: the mean loss per member."""
        self._losses.zero_()
        seen = 0
        for inputs, targets, weights in self.task.batches(number):
            self(inputs, targets, weights)
            seen += len(inputs)
        return self._losses / seen

    def __call__(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> None:
        """One step on one batch; the tensors of all full batches must be the same ones."""
        full = len(inputs) == self.protocol.batch_size
        if full and self._may_capture and self._eager >= _BEFORE_CAPTURE and not self._replay:
            self._capture(inputs, targets, weights)
        if full and self._replay is not None:
            self._replay()
        else:
            self._work(inputs, targets, weights)
            self._eager += 1
        self.taken += 1

    def _work(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> None:
        masks = self._dropout.factors(self.bank, len(inputs), self.taken)
        given, kept = self.bank.forward(inputs, masks, training=True)
        losses, slope = self.task.slope(given, targets, weights)
        self.bank.backward(inputs, slope, kept, masks)
        self._optimizer.step(self.taken)
        self._losses += losses * len(inputs)

    def _capture(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Record a step without running it; where that fails, warn once and go on without."""
        try:
            self._replay = captured(
                lambda: self._work(inputs, targets, weights),
                self.bank.flat.device,
                tuple(self._dropout.sources.values()),
            )
        except Exception as error:  # whatever it is, the step itself runs
            self._may_capture = False
            self._dropout.restart(self.bank, taken=self.taken)
            warnings.warn(
                f"a training step cannot be captured as a CUDA graph ({error}): steps are launched "
                f"kernel by kernel, which gives the same heads more slowly",
                RuntimeWarning,
                stacklevel=2,
            )

    def keep(self, places: Sequence[int]) -> Bank:
        """Go on with these members alone, in a smaller bank, with their optimizer's state."""
        old, moments = self.bank, self._optimizer.moments
        self.bank = old.smaller(places)
        self._optimizer = self._prepare()
        pairs = zip((self.bank.flat, *self._optimizer.moments), (old.flat, *moments), strict=True)
        for mine, theirs in pairs:
            for new, place in enumerate(places):
                views = self.bank.views(mine, new), old.views(theirs, place)
                for tensor, value in zip(*views, strict=True):
                    tensor.copy_(value)
        return self.bank


def captured(
    work: Callable[[], None], device: torch.device, generators: Sequence[torch.Generator]
) -> Callable[[], None]:
    """Record the kernels of `work` on a CUDA device, without running them; the result runs them.

    generators: those that `work` draws from; each replay goes on from their state.
    Raises where something in `work` cannot be recorded, mostly RuntimeError.
    """
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        for one in generators:
            graph.register_generator_state(one)
        now, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            # Another thread's calls to CUDA, such as a lane's, are no reason to fail.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        now.wait_stream(aside)
    replay: Callable[[], None] = graph.replay
    return replay
