"""Fits of a study as they are kept, and several of them as the one that dev would have chosen.

A `KeptFit` is one target x subset x backbone with all its heads. It is stored under the digest of
everything that decides it, so that a study finds it again and never mistakes another for it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.store.cache import Cache
from heads.documents import read_kept
from heads.fitting import metrics
from heads.fitting.intervals import Sample
from heads.fitting.judge import BY, TestRows, judge
from heads.fitting.result import CHOICE, HeadRow, group_document
from heads.folders import remove_own
from heads.study.rows import CONST

Floats = NDArray[np.float64]
_MAX_BYTES = 1 << 30


class KeptFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One target, subset and backbone with all its heads.

    ids, truth, weight, groups: the n test photos (a group is one person, or one photo). fold (n,):
        which round tested each. others: by one split, the ids of train and dev. group_of: per
        column of `report_by`, the value of each.
    predictions: per head (n,), a probability of the second of `classes` when binary.
    rows, by: as `Fit.document` has them. curves: per head, (rate, epoch, train, dev) in order.
    inputs: everything that decides this fit, `key` its digest. best: the head that dev chose.
    protocol: "paper" or "warm", "" for fits of both. folds: K, or None for one split. n_effective:
        of the test rows. dev_of_choice: per round the dev loss of the head that dev chose there.
    """

    key: str
    inputs: dict[str, Any]
    target: str
    subset: str
    backbone: str
    face: bool
    task: str
    n: dict[str, int]
    noise_floor: float | None
    classes: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    by: tuple[dict[str, Any], ...]
    ids: tuple[str, ...]
    truth: tuple[float, ...]
    weight: tuple[float, ...] | None
    groups: tuple[int, ...]
    fold: tuple[int, ...]
    group_of: dict[str, tuple[str, ...]]
    counts: bool
    predictions: dict[str, tuple[float, ...]]
    curves: dict[str, tuple[tuple[float, int, float | None, float | None], ...]]
    dropped: dict[str, int]
    spec: str
    labels: str
    split: str
    ref: str | None
    seconds: float
    protocol: str
    folds: int | None
    best: str
    n_effective: float | None
    dev_of_choice: tuple[float, ...]
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Publish at once, so that an interrupted study leaves whole fits or none."""
        disk.replace(path, msgspec.json.encode(self))

    @classmethod
    def read(cls, path: Path, *, key: str) -> Self | None:
        """The fit kept at `path`; None when there is none with this key, or it is damaged."""
        found = read_kept(path, cls, limit=_MAX_BYTES)
        return found if found is not None and found.key == key else None

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.predictions)

    def chosen_head(self) -> str:
        """The head that dev chose, whose figures may be quoted: by folds, in each of them."""
        return CHOICE if CHOICE in self.predictions else self.best

    @property
    def n_photos(self) -> int:
        """Photos with a label and a vector."""
        return len(self.ids) if self.folds else sum(self.n.values())

    def sample(self) -> Sample:
        """The weights and groups of the test photos."""
        weight = None if self.weight is None else np.array(self.weight)
        return Sample(weight, np.array(self.groups, np.int64))

    def row(self, head: str) -> Mapping[str, Any]:
        """The row of a head with its main figure: MSE, or accuracy for classes."""
        metric = "mse" if self.task == "regression" else "accuracy"
        return next(r for r in self.rows if (r["head"], r["metric"]) == (head, metric))

    def dev(self, head: str) -> float:
        """The dev figure that chose a head's rate; infinite when there is none."""
        chooses = "mse" if self.task == "regression" else "log_loss"
        found = [row["dev"] for row in self.rows if (row["head"], row["metric"]) == (head, chooses)]
        return float(found[0]) if found and found[0] is not None else float("inf")

    def losses(self, head: str) -> Floats:
        """Per test photo what the table averages: squared error, or 1 for a wrong class."""
        truth, guess = np.array(self.truth), np.array(self.predictions[head])
        if self.task == "regression":
            return metrics.squared_error(truth, guess)
        return 1 - metrics.row_hit(truth, guess)


class _Photos(msgspec.Struct):
    """The photos of a kept fit; whatever else it holds is not read."""

    ids: tuple[str, ...]
    others: tuple[str, ...] = ()


def remove_unknown(folder: Path, cache: Cache, *, scope: str | None) -> int:
    """Remove the kept fits with a photo that the cache does not know, such as a forgotten one.

    folder: where a study keeps its fits. Returns how many were removed.
    """
    found = {
        path: read_kept(path, _Photos, limit=_MAX_BYTES) for path in folder.glob("?" * 64 + ".json")
    }
    removed = 0
    for path, photos in sorted(found.items()):
        if photos and not cache.digests_of([*photos.ids, *photos.others], scope=scope)[1].all():
            remove_own(path.with_suffix(""))
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def chosen(fits: Sequence[KeptFit], name: str) -> KeptFit:
    """The fit that dev chose among several of the same photos.

    By one split it is the one whose chosen head has the lowest dev loss. By folds the choice is
    made in each fold by the dev loss there: rows that test a fold have not chosen what they test.
    Where the folds do not agree on a fit, the result is one by the `name` of what was chosen from,
    with dev's choice and the constants as its heads, and the specs of all that were chosen.
    """
    dev = np.array([fit.dev_of_choice for fit in fits])  # (fits, folds)
    # A millionth of the loss: heads that say the same are the same, and the first is taken.
    winner = (dev <= dev.min(0) + 1e-6 * np.abs(dev.min(0))).argmax(0)
    if len(set(winner.tolist())) == 1:
        return fits[int(winner[0])]
    first = fits[0]
    assert all((fit.ids, fit.fold) == (first.ids, first.fold) for fit in fits)
    fold = np.array(first.fold)
    guess = np.stack([fit.predictions[CHOICE] for fit in fits])[winner[fold], np.arange(len(fold))]
    constants = {k: v for k, v in first.predictions.items() if k == CONST or k.startswith(BY)}
    pooled = {**constants, CHOICE: tuple(guess.tolist())}
    judged = judge(_test_rows(first, pooled), reference="")
    lowest = dev.min(0)
    mass = np.roll(np.bincount(fold, first.sample().mass), -1)  # the next fold chooses
    loss = float(np.average(lowest, weights=mass))
    seconds = sum(fit.seconds for fit in fits)
    won = Counter(f"{fits[at].backbone}, {fits[at].protocol} protocol" for at in winner)
    protocols = {fit.protocol for fit in fits}
    found: KeptFit = msgspec.structs.replace(
        first,
        key="",
        backbone=name,
        protocol=protocols.pop() if len(protocols) == 1 else "",
        rows=tuple(
            HeadRow.of(
                one,
                dev=loss if one.head == CHOICE else nan,
                seconds=seconds,
                chosen=won if one.head == CHOICE else None,
            ).document()
            for one in judged.figures
        ),
        by=tuple(group_document(one) for one in judged.by),
        predictions=pooled,
        curves={},
        spec=" ".join(dict.fromkeys(fits[at].spec for at in winner)),
        dev_of_choice=tuple(lowest.tolist()),
        notes=(),
    )
    return found


def _test_rows(fit: KeptFit, predictions: Mapping[str, Sequence[float]]) -> TestRows:
    """The test photos of a fit with these predictions of them, to be judged."""
    return TestRows(
        task=fit.task,
        target_names=(fit.target,),
        counts=fit.counts,
        shares=False,
        ids=fit.ids,
        truth=np.array(fit.truth),
        weight=fit.sample().weight,
        groups=np.array(fit.groups),
        fold=np.array(fit.fold),
        n_folds=fit.folds,
        group_of=fit.group_of,
        predictions={name: np.array(seen) for name, seen in predictions.items()},
    )
