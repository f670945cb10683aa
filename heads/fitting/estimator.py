"""FC heads as scikit-learn estimators, for `cross_val_score`, `Pipeline` and the like.

They are fitted by the same code as `heads.fit`: a part of the rows given to `fit` (whole groups) is
held back to choose the epoch and the rate. The caller keeps a test set.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from embedcache.errors import InputError
from heads.dataset import split
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import Dataset
from heads.fitting.candidates import chosen_names, fit_candidates
from heads.fitting.protocol import OPTIONS, Protocol, protocol_of
from heads.head import merged

DEFAULT = Protocol()
Groups = Sequence[object] | Sequence[Sequence[object]] | NDArray[Any]


class _Heads(BaseEstimator):  # type: ignore[misc]
    """head: its name. dev_share: the share of the groups that chooses epoch and rate.

    widths: floats of each backbone where several stand side by side in the rows of X, as
        `Cache.side_by_side(...).widths` has them: each is standardised for itself.
    folds: K heads in place of one, each with another fold to choose by; they predict their mean.
    `fit` takes `groups`; `set_fit_request(groups=True)` asks scikit-learn's routing for them, so
        that `cross_val_score` and grids hand each fit its own.
    Fitted: `head_`, and per head `epochs_` and `learning_rates_`.
    protocol: None for the warm one. Its fields are parameters too, for `set_params` and grids:
    `protocol__hidden`.
    scikit-learn's `check_estimator` passes but for what docs/how-to/scikit-learn.md names.
    """

    def __init__(
        self,
        *,
        head: str = "1fc",
        protocol: Protocol | None = None,
        dev_share: float = 0.15,
        folds: int | None = None,
        widths: Sequence[int] | None = None,
    ) -> None:
        self.head = head
        self.widths = widths
        self.folds = folds
        self.protocol = protocol
        self.dev_share = dev_share

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; with `deep`, the protocol's fields as `protocol__NAME`."""
        found: dict[str, Any] = super().get_params(deep=deep)
        chosen = DEFAULT if self.protocol is None else self.protocol
        if deep and isinstance(chosen, Protocol):
            found |= {f"protocol__{name}": getattr(chosen, name) for name in OPTIONS}
        return found

    def set_params(self, **params: Any) -> Self:
        """Set arguments by name, or single fields of the protocol (`protocol__hidden=64`)."""
        fields = {name: value for name, value in params.items() if name.startswith("protocol__")}
        super().set_params(**{name: v for name, v in params.items() if name not in fields})
        if fields:
            given = {name.removeprefix("protocol__"): value for name, value in fields.items()}
            self.protocol = protocol_of((self.protocol or DEFAULT).document() | given)
        return self

    def _fit(
        self,
        inputs: NDArray[np.float32],
        targets: NDArray[Any],
        *,
        task: str,
        weights: ArrayLike | None,
        groups: Groups | None,
    ) -> Dataset:
        if not 0 < self.dev_share < 1:
            raise InputError(f"dev_share must be between 0 and 1; got {self.dev_share}")
        if weights is not None:
            weights = _weights(weights, len(inputs))
        keys = _joined(groups, len(inputs))
        if len(set(keys)) < 2:
            raise InputError(f"{len(inputs)} rows in one group cannot be split into train and dev")
        data = from_arrays(
            inputs, targets, weights=weights, groups=keys, task=task, widths=self.widths or ()
        )
        names = chosen_names(self.head, data.task)
        protocol = self.protocol or DEFAULT
        chosen = []
        for dev in self._dev_sides(data, keys, protocol.seed):
            side = replace(data, subset=np.where(dev, split.DEV, split.TRAIN).astype(np.uint8))
            found_heads = fit_candidates(
                side.part("train"), side.part("dev"), names, dataset=side, protocol=protocol
            )
            chosen.append(found_heads[self.head])
        self.head_ = merged([one.head for one in chosen])
        self.epochs_ = [one.epoch for one in chosen]
        self.learning_rates_ = [one.rate for one in chosen]
        return data

    def _dev_sides(self, data: Dataset, keys: Sequence[str], seed: int) -> list[NDArray[np.bool_]]:
        """Which rows choose, once or fold by fold: whole groups, never all of them."""
        if self.folds is not None:
            fold = data.folds(self.folds, seed=seed)
            return [fold == number for number in range(self.folds)]
        groups = sorted(set(keys))
        count = min(len(groups) - 1, max(1, round(self.dev_share * len(groups))))
        picked = np.random.default_rng(seed).permutation(len(groups))[:count]
        dev = {groups[place] for place in picked}
        return [np.array([key in dev for key in keys])]

    def _predict(self, inputs: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        rows = validate_data(self, inputs, dtype=np.float32, reset=False)
        return self.head_.predict(rows)


def _joined(groups: Groups | None, n: int) -> list[str]:
    """The group of each of n rows as a key; rows without a group stand alone.

    InputError for groups of another number of rows.
    """
    if groups is None:
        return [f"row {i}" for i in range(n)]
    columns = np.asarray(groups, object)
    if columns.ndim not in (1, 2) or len(columns) != n:
        raise InputError(f"groups are ({n},) or ({n}, k) for {n} rows; got shape {columns.shape}")
    kinds = columns.reshape(n, -1).T
    number, names = split.join_groups([split.keys_of(kind) for kind in kinds])
    return [names[one] for one in number.tolist()]


def _weights(given: ArrayLike, n: int) -> NDArray[np.float64]:
    """Sample weights (n,); scikit-learn expects a ValueError for others, here and for X and y."""
    found = np.asarray(given, np.float64)
    if found.shape != (n,):
        raise ValueError(f"sample_weight has shape {found.shape}; {n} rows need ({n},)")
    if not found.any():
        raise ValueError("all sample weights are zero")
    return found


class HeadRegressor(RegressorMixin, _Heads):  # type: ignore[misc]
    """An FC head for numbers or ratios; head is 0fc, 1fc, 2fc, ridge or const."""

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: Groups | None = None,
    ) -> "HeadRegressor":
        """X (n, dim), y (n,) or (n, k); rows with equal `groups` stand on one side.

        groups: (n,), or (n, k) for k kinds of groups, such as near-duplicates and persons: rows
            that share a value of any kind, or are joined by others, stand on one side. None, NaN
            and "" join nothing. `heads.dataset.load(...).groups` are those of photos, of
            `split_by` and of `keep_together`.
        """
        rows, targets = validate_data(
            self, X, y, dtype=np.float32, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        self._fit(rows, targets, task="regression", weights=sample_weight, groups=groups)
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

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
        groups: Groups | None = None,
    ) -> "HeadClassifier":
        """X (n, dim), y (n,) of any labels; rows with equal `groups` stand on one side.

        groups: (n,), or (n, k) for k kinds of groups, such as near-duplicates and persons: rows
            that share a value of any kind, or are joined by others, stand on one side. None, NaN
            and "" join nothing. `heads.dataset.load(...).groups` are those of photos, of
            `split_by` and of `keep_together`.
        """
        rows, labels = validate_data(self, X, y, dtype=np.float32, ensure_min_samples=2)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"all labels are {labels[0]!r}: a classifier needs two classes")
        task = "binary" if len(self.classes_) == 2 else "multiclass"
        self._fit(rows, codes, task=task, weights=sample_weight, groups=groups)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probability per class, (n, classes), in the order of `classes_`."""
        seen = self._predict(X)
        return seen if seen.ndim == 2 else np.column_stack([1 - seen, seen])

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most likely class per row."""
        chances = self.predict_proba(X)
        return np.asarray(self.classes_[chances.argmax(1)])
