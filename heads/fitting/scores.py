"""Predictions of many rows, and the score of each row that a figure is the mean of."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from heads.dataset.rows import Part
from heads.fitting import metrics
from heads.head import Head

Floats = NDArray[np.float64]


@runtime_checkable
class Predicting(Protocol):
    """Vectors of one part that put heads on themselves."""

    def predict(self, head: Head) -> Floats: ...


def predict_part(heads: Mapping[str, Head], part: Part) -> dict[str, Floats]:
    """What each head predicts for the rows of a part, which are read once, a few at a time.

    Where the vectors lie on a device they predict there, see `on_device.DeviceVectors`.
    """
    if isinstance(part.vectors, Predicting):
        return {name: part.vectors.predict(head) for name, head in heads.items()}
    found = {
        name: np.empty((len(part), head.outputs) if head.outputs > 1 else len(part))
        for name, head in heads.items()
    }
    for places, block in part.blocks():
        for name, head in heads.items():
            found[name][places] = head.predict(block)
    return found


def row_scores(task: str, truth: Floats, prediction: Floats) -> dict[str, Floats]:
    """Per metric of a task, the score of each row; the metric is their weighted mean."""
    if task == "regression":
        return {"mse": metrics.squared_error(truth, prediction)}
    return {
        "accuracy": metrics.row_hit(truth, prediction),
        "log_loss": metrics.row_log_loss(truth, prediction),
    }
