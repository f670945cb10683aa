"""What a study found: fits kept as JSON, their rows, and which row stands out.

A `KeptFit` is one target x subset x backbone with all its heads. It is stored under the digest of
everything that decides it, so that a study finds it again and never mistakes another for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from heads.fitting import intervals, metrics
from heads.fitting.intervals import Sample
from heads.fitting.protocol import FC_NAMES
from heads.fitting.result import CHOICE
from heads.study.rows import Comparison, StudyRow, name_of
from heads.study.tables import table_of

Floats = NDArray[np.float64]
_MAX_BYTES = 1 << 30


class KeptFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One target, subset and backbone with all its heads.

    ids, truth, weight, groups: the n test photos (a group is one person, or one photo).
    predictions: per head (n,), a probability of the second of `classes` when binary.
    rows, by: as `Fit.document` has them. curves: per head, (rate, epoch, train, dev) in order.
    inputs: everything that decides this fit, `key` its digest. best: the head that dev chose.
    protocol: "paper" or "warm". folds: K, or None for one split. n_effective: of the test rows.
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
    notes: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Publish at once, so that an interrupted study leaves whole fits or none."""
        disk.replace(path, msgspec.json.encode(self))

    @classmethod
    def read(cls, path: Path, *, key: str) -> Self | None:
        """The fit kept at `path`; None when there is none with this key, or it is damaged."""
        try:
            if path.stat().st_size > _MAX_BYTES:
                return None
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError, RecursionError):
            return None
        return found if found.key == key else None

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.predictions)

    def best_head(self) -> str:
        """The head that dev chose: the simplest within one standard error of the lowest figure."""
        return self.best

    def judged_head(self) -> str:
        """The head whose figures may be quoted: with folds, dev's choice inside each of them."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All fits of a study, with what the page needs to know about the photos.

    photos, truth, captions: per photo id its path, (simulated data only) its true like ratio, and
        what its caption says (its gender, as in the paper).
    label_counts: the document of `embedcache labels` where the study began from the swipe log.
    reused: fits found from an earlier run. skipped: fits that could not be made, and why.
    """

    title: str
    study: Mapping[str, Any]
    fits: tuple[KeptFit, ...]
    photos: Mapping[str, Path]
    truth: Mapping[str, float]
    captions: Mapping[str, str]
    label_counts: Mapping[str, Any] | None
    simulated: bool
    seconds: float
    reused: int
    versions: Mapping[str, str]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[StudyRow]:
        """Every head of every fit, in the order of the study, what dev chose in each column marked.

        Constants and linear heads are the same under both protocols and stand once.
        """
        best = {
            (fit.key, fit.best_head())
            for target in self.targets()
            for subset in self.subsets(target)
            for fit in [self.best(target, subset)]
        }
        found, seen = [], set()
        for fit in self.fits:
            for head in fit.heads:
                trained = head in FC_NAMES or head == CHOICE
                protocol = fit.protocol if trained else ""
                at = (fit.target, fit.subset, fit.backbone, head, protocol)
                if at not in seen:
                    marked = (fit.key, head) in best
                    if not trained:  # whichever of the two fits dev chose it from
                        same = [f for f in self.fits_of(fit.target, fit.subset)
                                if f.backbone == fit.backbone]  # fmt: skip
                        marked = any((f.key, head) in best for f in same)
                    found.append(_row(fit, head, best=marked))
                seen.add(at)
        return found

    def fits_of(self, target: str, subset: str | None = None) -> list[KeptFit]:
        return [f for f in self.fits if f.target == target and subset in (None, f.subset)]

    def targets(self) -> list[str]:
        return list(dict.fromkeys(fit.target for fit in self.fits))

    def subsets(self, target: str) -> list[str]:
        return list(dict.fromkeys(fit.subset for fit in self.fits_of(target)))

    def best(self, target: str, subset: str) -> KeptFit:
        """The fit whose chosen head has the lowest dev figure; the first of equals."""
        fits = self.fits_of(target, subset)
        return min(fits, key=lambda fit: round(fit.dev(fit.judged_head()), 6))

    def comparisons(self) -> list[Comparison]:
        """Face vectors against whole-photo ones, wherever a subset has both, by protocol."""
        found = []
        for target in self.targets():
            for subset in self.subsets(target):
                for protocol in dict.fromkeys(fit.protocol for fit in self.fits):
                    fits = sorted(
                        (f for f in self.fits_of(target, subset) if f.protocol == protocol),
                        key=lambda fit: fit.dev(fit.judged_head()),
                    )
                    face = next((fit for fit in fits if fit.face), None)
                    whole = next((fit for fit in fits if not fit.face), None)
                    if face and whole:
                        found.append(compare(face, whole))
        adjusted = intervals.holm([one.p for one in found])
        return [replace(one, p_adjusted=p) for one, p in zip(found, adjusted, strict=True)]

    def document(self) -> dict[str, Any]:
        """The JSON object of results.json: no id and no path of a photo is in it."""
        return {
            "title": self.title,
            "simulated": self.simulated,
            "seconds": self.seconds,
            "fits": len(self.fits),
            "fits_reused": self.reused,
            "rows": [asdict(row) | {"name": row.name} for row in self.rows()],
            "comparisons": [
                asdict(comparison) | {"verdict": comparison.verdict}
                for comparison in self.comparisons()
            ],
            "labels": {k: v for k, v in (self.label_counts or {}).items() if k != "labels"},
            "skipped": dict(self.skipped),
            "versions": dict(self.versions),
            "study": dict(self.study),
        }

    def __str__(self) -> str:
        lines = ["SIMULATED DATA\n"] if self.simulated else []
        rows = self.rows()
        for target in self.targets():
            lines.append(table_of(rows, target, paper=bool(self.label_counts)).as_text())
        lines += [f"left out: {name}: {reason}" for name, reason in self.skipped.items()]
        lines.append(
            f"{len(self.fits)} fits ({self.reused} found from an earlier run), {self.seconds:.1f} s"
        )
        return "\n".join(lines)


def compare(first: KeptFit, second: KeptFit) -> Comparison:
    """Pair two fits of one target by test photo; standard errors are over persons."""
    at = {name: i for i, name in enumerate(second.ids)}
    mine = np.array([i for i, name in enumerate(first.ids) if name in at], np.int64)
    theirs = np.array([at[first.ids[i]] for i in mine], np.int64)
    heads = first.judged_head(), second.judged_head()
    ours, loss = first.losses(heads[0])[mine], second.losses(heads[1])[theirs]
    whole = first.sample()
    sample = Sample(None if whole.weight is None else whole.weight[mine], whole.groups[mine])
    gap = intervals.difference if first.task == "regression" else intervals.share_difference
    found = gap(sample, loss, ours)
    low, high = intervals.ratio_interval(sample, ours, loss)
    other = sample.mean(loss)
    return Comparison(
        target=first.target,
        task=first.task,
        subset=first.subset,
        first=name_of(first.backbone, heads[0], first.protocol),
        second=name_of(second.backbone, heads[1], second.protocol),
        loss=other,
        difference=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        p_adjusted=float("nan"),
        share=found.value / other if other > 0 else float("nan"),
        share_low=1 - high,
        share_high=1 - low,
        n=len(mine),
        n_groups=sample.n_groups,
        protocol=first.protocol,
    )


def _row(fit: KeptFit, head: str, *, best: bool) -> StudyRow:
    figures: Sequence[Mapping[str, Any]] = [row for row in fit.rows if row["head"] == head]
    metric = "mse" if fit.task == "regression" else "accuracy"
    main = next(row for row in figures if row["metric"] == metric)
    other = next((row for row in figures if row["metric"] == "log_loss"), None)
    return StudyRow(
        target=fit.target,
        task=fit.task,
        subset=fit.subset,
        backbone=fit.backbone,
        head=head,
        metric=metric,
        value=main["value"],
        low=main["low"],
        high=main["high"],
        log_loss=other["value"] if other else None,
        dev=(other or main)["dev"],
        learning_rate=main["learning_rate"],
        epoch=main["epoch"],
        seconds=main["seconds"],
        n_train=fit.n["train"],
        n_dev=fit.n["dev"],
        n_test=fit.n["test"],
        noise_floor=fit.noise_floor,
        spec=fit.spec,
        labels=fit.labels,
        split=fit.split,
        ref=fit.ref,
        protocol=fit.protocol,
        folds=fit.folds,
        same_as=main.get("same_as"),
        best=best,
    )
