"""A fitted head: numbers, and how they turn vectors into predictions. Numpy only.

Every kind of head is the same thing: standardise, apply layers with a rectifier between them, apply
the link. The constant is a layer of zeros with a bias, ridge and logistic are one layer, and an FC
head of several members is that many networks whose predictions are averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import HeadError
from embedcache.spec import Spec

Link = Literal["identity", "sigmoid", "softmax"]
LINKS = ("identity", "sigmoid", "softmax")
Matrix = NDArray[np.float32]
_BLOCK = 8192


@dataclass(frozen=True, slots=True)
class Standard:
    """Mean and scale per float of a vector, of the training rows only; a flat one has scale 1."""

    mean: Matrix
    scale: Matrix

    def apply(self, vectors: Matrix) -> Matrix:
        """(vectors - mean) / scale, a new float32 array."""
        out = np.subtract(vectors, self.mean, dtype=np.float32)
        out /= self.scale
        return out


@dataclass(frozen=True, slots=True)
class Layer:
    """weight float32 (members, out, in) and bias float32 (members, out)."""

    weight: Matrix
    bias: Matrix


@dataclass(frozen=True, slots=True)
class Head:
    """A head that predicts.

    name: const, ridge, logistic, 0fc, 1fc or 2fc. link: what the last layer passes through.
    card: the JSON document that stands beside the weights (spec, labels, split, protocol, figures).
    """

    name: str
    link: Link
    standard: Standard
    layers: tuple[Layer, ...]
    card: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        target = f" of {self.card['target']}" if "target" in self.card else ""
        said = f", of classes {', '.join(self.classes)}" if self.classes else ""
        return f"<Head: {self.name}{target}, from {self.dim:,} floats{said}>"

    @property
    def dim(self) -> int:
        """Floats per vector."""
        return len(self.standard.mean)

    @property
    def outputs(self) -> int:
        """Numbers per photo: 1, or one per class or target."""
        return int(self.layers[-1].bias.shape[1])

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of their numbers; empty for a regression."""
        return tuple(self.card.get("classes", ()))

    def predict(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Predict for vectors (n, dim): float64 (n,), or (n, outputs) when there are several.

        A binary head gives the probability of the second of `classes`. A row with a NaN gives NaN.
        HeadError when the vectors have another length.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise HeadError(
                f"this {self.name} head takes vectors of {self.dim} floats; "
                f"got an array of shape {vectors.shape}"
            )
        out = np.empty((len(vectors), self.outputs))
        for start in range(0, len(vectors), _BLOCK):
            block = vectors[start : start + _BLOCK].astype(np.float32, copy=False)
            out[start : start + _BLOCK] = self._predict(self.standard.apply(block))
        return out[:, 0] if self.outputs == 1 else out

    def _predict(self, block: Matrix) -> NDArray[np.float64]:
        total = np.zeros((len(block), self.outputs))
        members = len(self.layers[0].weight)
        for member in range(members):
            hidden = block
            for depth, layer in enumerate(self.layers):
                if depth:
                    hidden = np.maximum(hidden, 0)
                hidden = hidden @ layer.weight[member].T + layer.bias[member]
            total += linked(hidden.astype(np.float64), self.link)
        return total / members


def instead_of_constant(head: Head) -> str:
    """What to name in place of a constant head, in a sentence."""
    other = "logistic" if head.classes else "ridge"
    return f"The folder of another head, such as HEAD_DIR/{other}, can be named instead"


def parts_of(card: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(backbone, spec digest, spec) of each backbone whose vectors a head takes, in their order.

    card: its card. None of a head that was fitted on an array.
    """
    if card.get("together"):
        return [(one["backbone"], one["spec_digest"], one["spec"]) for one in card["together"]]
    return [(card["backbone"], card["spec_digest"], card["spec"])] if card.get("spec") else []


def specs_of(card: Mapping[str, Any]) -> list[tuple[str, Spec]]:
    """Each backbone whose vectors a head takes, by name, with its spec; as `parts_of`."""
    return [(name, Spec.parse(spec)) for name, _, spec in parts_of(card)]


def rebased(layer: Layer, old: Standard, new: Standard) -> Layer:
    """The first layer of a head on `old`, written for vectors standardised by `new`."""
    weight = layer.weight.astype(np.float64) * (new.scale.astype(np.float64) / old.scale)
    shift = (new.mean.astype(np.float64) - old.mean) / old.scale
    bias = layer.bias + layer.weight.astype(np.float64) @ shift
    return Layer(weight.astype(np.float32), bias.astype(np.float32))


def merged(heads: Sequence[Head]) -> Head:
    """One head whose prediction is the mean of several of one kind, as members side by side."""
    if len(heads) == 1:
        return heads[0]
    means = np.stack([head.standard.mean for head in heads]).mean(0, dtype=np.float64)
    scales = np.stack([head.standard.scale for head in heads]).mean(0, dtype=np.float64)
    standard = Standard(np.asarray(means, np.float32), np.asarray(scales, np.float32))
    stacks = [
        (rebased(head.layers[0], head.standard, standard), *head.layers[1:]) for head in heads
    ]
    layers = tuple(
        Layer(
            np.concatenate([layer.weight for layer in depth]),
            np.concatenate([layer.bias for layer in depth]),
        )
        for depth in zip(*stacks, strict=True)
    )
    return Head(heads[0].name, heads[0].link, standard, layers, heads[0].card)


def linked(values: NDArray[np.float64], link: Link) -> NDArray[np.float64]:
    """Pass (..., outputs) through the link."""
    if link == "identity":
        return values
    if link == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * values)))
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))
