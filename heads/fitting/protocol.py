"""How heads are fitted: the choices of one fit, checked once. Imports no torch.

    protocol_of({"epochs": 5})                  the warm protocol, the default of `fit-head`
    protocol_of({"epochs": 5}, name="paper")    the paper's (section 4.1)

Whatever takes such choices (the command, `heads.fit`, the estimators, a study's [fit] table) passes
its options here and holds one `Protocol`.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import msgspec

from embedcache.errors import InputError
from heads.documents import checked

NAMES = ("const", "ridge", "logistic", "0fc", "1fc", "2fc")  # simplest first
FC_NAMES = ("0fc", "1fc", "2fc")
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
PAPER_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
STARTS = ("linear", "constant", "random")
PRODUCTS = ("float32", "bfloat16")
LOSSES = ("auto", "mse", "log_loss", "binomial")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The choices of one fit.

    epochs, batch_size: at most so many passes, of so many rows a step.
    learning_rates: the sweep; each decays 100-fold, exponentially by step, until the last epoch.
    optimizer: "adam" (weight decay decoupled from the gradient) or "sgd" (momentum 0.9).
    members: networks per rate that differ in their random start; their predictions are averaged.
    hidden: width of each hidden layer.
    start: what FC heads are at epoch 0: "linear" is the ridge or logistic baseline, "constant" the
        constant with the hidden layers drawn, "random" PyTorch's own initialisation of every layer,
        with the output's bias at the mean.
    margin: an FC head leaves its start only for a dev gain of so many standard errors, more of
        them where dev has few groups, by Student's t.
    loss: "auto" is "mse" for a regression and "log_loss" for classes; "binomial" is the likelihood
        of ratios whose weights are counts.
    patience: stop a rate after so many epochs without a better dev figure, or once its mean gain in
        as many, kept up to the end, would leave it behind another rate; None never does.
    halving_steps: with a patience, keep the better half of the rates of 1FC and of 2FC, by dev, at
        the end of epochs 1, 2, 4, ... that come after this many steps, twice, four times as many,
        ...; None never does.
    products: of the first layers while FC heads train and dev chooses their rate and epoch:
        "bfloat16" rounds their factors and results to three digits, which is faster where the
        processor or the device multiplies such numbers itself; parameters, sums and the heads
        that come of it stay float32.
    memory_bytes: vectors held in memory at a time when they are read from a cache.
    device: of FC training; cpu, cuda, cuda:N, or auto.
    """

    epochs: int = 20
    batch_size: int = 256
    learning_rates: tuple[float, ...] = RATES
    optimizer: Literal["adam", "sgd"] = "adam"
    seed: int = 0
    members: int = 1
    hidden: int = 256
    loss: Literal["auto", "mse", "log_loss", "binomial"] = "auto"
    start: Literal["linear", "constant", "random"] = "linear"
    margin: float = 2.5
    weight_decay: float = 0.0
    dropout: float = 0.0
    patience: int | None = 4
    halving_steps: int | None = 32
    products: Literal["float32", "bfloat16"] = "float32"
    memory_bytes: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        whole = {"epochs": self.epochs, "batch_size": self.batch_size, "hidden": self.hidden}
        whole |= {"members": self.members}
        for name, value in whole.items():
            if value < 1:
                raise InputError(f"{name} must be 1 or more; got {value}")
        if not self.learning_rates or not all(0 < r < float("inf") for r in self.learning_rates):
            raise InputError(f"learning rates must be above zero; got {self.learning_rates}")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise InputError(f"a learning rate is given twice: {self.learning_rates}")
        if self.optimizer not in ("adam", "sgd"):
            raise InputError(f"optimizer must be adam or sgd; got {self.optimizer!r}")
        if self.loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}")
        if self.start not in STARTS:
            raise InputError(f"start must be one of {', '.join(STARTS)}; got {self.start!r}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be 0 or more and below 1; got {self.dropout}")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"weight_decay must be 0 or more; got {self.weight_decay}")
        if not 0 <= self.margin < float("inf"):
            raise InputError(f"margin must be 0 or more; got {self.margin}")
        if self.products not in PRODUCTS:
            raise InputError(
                f"products must be one of {', '.join(PRODUCTS)}; got {self.products!r}"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise InputError(f"device must be auto, cpu, cuda or cuda:N; got {self.device!r}")
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise InputError(f"memory_bytes must be 1 or more; got {self.memory_bytes}")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience must be 1 or more epochs; got {self.patience}")
        if self.halving_steps is not None and self.halving_steps < 1:
            raise InputError(f"halving_steps must be 1 or more; got {self.halving_steps}")

    @property
    def name(self) -> str:
        """ "paper" for FC heads trained from a random start, "warm" for the others."""
        return "paper" if self.start == "random" else "warm"

    def document(self) -> dict[str, Any]:
        """The JSON object that a head's card keeps."""
        return asdict(self) | {"learning_rates": list(self.learning_rates)}


OPTIONS = tuple(item.name for item in fields(Protocol))


PRESETS: dict[str, dict[str, Any]] = {
    "warm": {},
    "paper": {
        "start": "random",
        "margin": 0.0,
        "patience": None,
        "halving_steps": None,
        "learning_rates": list(PAPER_RATES),
    },
}


def protocol_of(options: Mapping[str, Any], *, name: str = "warm") -> Protocol:
    """A protocol with these options, and those of `name` elsewhere; InputError names a wrong one.

    name: "warm", where FC heads start from the linear head and leave it only for a clear gain on
        dev; or "paper", section 4.1: trained from scratch, all epochs, dev picks epoch and rate.
    """
    if name not in PRESETS:
        raise InputError(f"protocol must be one of {', '.join(PRESETS)}; got {name!r}")
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise InputError(f"a fit has no option {unknown[0]!r}; it has {', '.join(OPTIONS)}")
    given = {
        key: value for key, value in options.items() if (key, value) != ("learning_rates", None)
    }
    given = PRESETS[name] | msgspec.to_builtins(given)
    return checked(given, Protocol, where="options of the fit", error=InputError)
