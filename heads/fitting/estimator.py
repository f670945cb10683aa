"""FC heads as scikit-learn estimators, for `cross_val_score`, `Pipeline` and the like.

They are fitted by the same code as `heads.fit`: a part of the rows given to `fit` (whole groups) is
held back to choose the epoch and the rate. The test set is the caller's affair here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from embedcache.errors import InputError
from heads.dataset import split
from heads.dataset.join import from_arrays
from heads.dataset.rows import Dataset
from heads.fitting.fit import chosen_names, fit_parts
from heads.fitting.protocol import RATES, Protocol


class _Heads(BaseEstimator):  # type: ignore[misc]
    """Arguments are those of `heads.fit`; dev_share of the groups chooses epoch and rate."""

    def __init__(
        self,
        *,
        head: str = "1fc",
        epochs: int = 20,
        batch_size: int = 256,
        learning_rates: Sequence[float] = RATES,
        optimizer: str = "adam",
        seed: int = 0,
        members: int = 1,
        hidden: int = 256,
        loss: str = "auto",
        start: str = "linear",
        margin: float = 1.0,
        weight_decay: float = 0.0,
        dropout: float = 0.0,
        patience: int | None = 4,
        dev_share: float = 0.15,
    ) -> None:
        self.head = head
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rates = learning_rates
        self.optimizer = optimizer
        self.seed = seed
        self.members = members
        self.hidden = hidden
        self.loss = loss
        self.start = start
        self.margin = margin
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.patience = patience
        self.dev_share = dev_share

    def _fit(
        self,
        inputs: NDArray[np.float32],
        targets: NDArray[Any],
        *,
        task: str,
        weights: ArrayLike | None,
        groups: Sequence[object] | None,
    ) -> Dataset:
        protocol = Protocol(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rates=tuple(self.learning_rates),
            optimizer=self.optimizer,  # type: ignore[arg-type]
            seed=self.seed,
            members=self.members,
            hidden=self.hidden,
            loss=self.loss,  # type: ignore[arg-type]
            start=self.start,  # type: ignore[arg-type]
            margin=self.margin,
            weight_decay=self.weight_decay,
            dropout=self.dropout,
            patience=self.patience,
        )
        if not 0 < self.dev_share < 1:
            raise InputError(f"dev_share is between 0 and 1; got {self.dev_share}")
        keys = [str(key) for key in (range(len(inputs)) if groups is None else groups)]
        if len(set(keys)) < 2:
            raise InputError(f"{len(inputs)} rows in one group cannot be parted into train and dev")
        dev = self._dev_rows(keys)
        subset = np.where(dev, split.DEV, split.TRAIN).astype(np.uint8)
        data = from_arrays(inputs, targets, weights=weights, groups=keys, subset=subset, task=task)
        names = chosen_names((self.head,), data.task)
        fitted = fit_parts(
            data.part("train"), data.part("dev"), names, dataset=data, protocol=protocol
        )
        self.head_ = fitted[self.head].head
        self.epoch_, self.learning_rate_ = fitted[self.head].epoch, fitted[self.head].rate
        return data

    def _dev_rows(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        """At least one group, and at most all but one, at random."""
        groups = sorted(set(keys))
        count = min(len(groups) - 1, max(1, round(self.dev_share * len(groups))))
        picked = np.random.default_rng(self.seed).permutation(len(groups))[:count]
        chosen = {groups[place] for place in picked}
        return np.array([key in chosen for key in keys])

    def _predict(self, inputs: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        rows = validate_data(self, inputs, dtype=np.float32, reset=False)
        return self.head_.predict(rows)


class HeadRegressor(RegressorMixin, _Heads):  # type: ignore[misc]
    """An FC head for numbers or ratios; head is 0fc, 1fc, 2fc, ridge or const."""

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: Sequence[object] | None = None,
    ) -> "HeadRegressor":
        """X (n, dim), y (n,) or (n, k); rows with equal `groups` stand on one side."""
        rows, targets = validate_data(
            self, X, y, dtype=np.float32, multi_output=True, y_numeric=True
        )
        self._fit(rows, targets, task="regression", weights=sample_weight, groups=groups)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Predictions, shaped as y."""
        return self._predict(X)


class HeadClassifier(ClassifierMixin, _Heads):  # type: ignore[misc]
    """An FC head for two or more classes; head is 0fc, 1fc, 2fc, logistic or const."""

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: Sequence[object] | None = None,
    ) -> "HeadClassifier":
        """X (n, dim), y (n,) of any labels; rows with equal `groups` stand on one side."""
        rows, labels = validate_data(self, X, y, dtype=np.float32)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        task = "binary" if len(self.classes_) == 2 else "multiclass"
        self._fit(rows, codes, task=task, weights=sample_weight, groups=groups)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probability per class, (n, classes), in the order of `classes_`."""
        seen = self._predict(X)
        return seen if seen.ndim == 2 else np.column_stack([1 - seen, seen])

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest class per row."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])
