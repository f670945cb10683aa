"""What a study found: fits kept as JSON, their rows, and which row stands out.

A `KeptFit` is one target x subset x backbone with all its heads. It is stored under the digest of
everything that decides it, so that a study finds it again and never mistakes another for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from heads.fitting import metrics
from heads.fitting.intervals import Bootstrap, difference
from heads.study.rows import CONST, Comparison, StudyRow, name_of
from heads.study.tables import table_of

Floats = NDArray[np.float64]
_MAX_BYTES = 1 << 30


class KeptFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One target, subset and backbone with all its heads.

    ids, truth, weight, groups: the n test photos (a group is one person, or one photo).
    predictions: per head (n,), a probability of the second of `classes` when binary.
    rows, by: as `Fit.document` has them. curves: per head, (rate, epoch, train, dev) in order.
    inputs: everything that decides this fit, `key` its digest.
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
        """The head with the lowest dev figure, the constant aside unless it stands alone."""
        dev = {head: self.dev(head) for head in self.heads if head != CONST}
        # To a millionth, so that of heads that say the same the simplest stands out.
        return min(dev, key=lambda head: round(dev[head], 6)) if dev else self.heads[0]

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
    reused: fits found from an earlier run.
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

    def rows(self) -> list[StudyRow]:
        """Every head of every fit, in the order of the study, the best of each column marked.

        Where several heads tie on dev, the first of them, which is the simplest, is the best.
        """
        best = {
            (fit.key, fit.best_head())
            for target in self.targets()
            for subset in self.subsets(target)
            for fit in [self.best(target, subset)]
        }
        return [
            _row(fit, head, best=(fit.key, head) in best) for fit in self.fits for head in fit.heads
        ]

    def fits_of(self, target: str, subset: str | None = None) -> list[KeptFit]:
        return [f for f in self.fits if f.target == target and subset in (None, f.subset)]

    def targets(self) -> list[str]:
        return list(dict.fromkeys(fit.target for fit in self.fits))

    def subsets(self, target: str) -> list[str]:
        return list(dict.fromkeys(fit.subset for fit in self.fits_of(target)))

    def best(self, target: str, subset: str) -> KeptFit:
        """The fit whose best head has the lowest dev figure."""
        return min(self.fits_of(target, subset), key=lambda fit: round(fit.dev(fit.best_head()), 6))

    def comparisons(self) -> list[Comparison]:
        """Face vectors against whole-photo ones, wherever a subset has both."""
        found = []
        for target in self.targets():
            for subset in self.subsets(target):
                fits = sorted(
                    self.fits_of(target, subset), key=lambda fit: fit.dev(fit.best_head())
                )
                face = next((fit for fit in fits if fit.face), None)
                whole = next((fit for fit in fits if not fit.face), None)
                if face and whole:
                    found.append(compare(face, whole))
        return found

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
            "versions": dict(self.versions),
            "study": dict(self.study),
        }

    def __str__(self) -> str:
        lines = ["SIMULATED DATA\n"] if self.simulated else []
        rows = self.rows()
        for target in self.targets():
            lines.append(table_of(rows, target).as_text())
        lines.append(
            f"{len(self.fits)} fits ({self.reused} found from an earlier run), {self.seconds:.1f} s"
        )
        return "\n".join(lines)


def compare(first: KeptFit, second: KeptFit) -> Comparison:
    """Pair two fits of one target by test photo; the interval resamples persons (seeded)."""
    at = {name: i for i, name in enumerate(second.ids)}
    mine = np.array([i for i, name in enumerate(first.ids) if name in at], np.int64)
    theirs = np.array([at[first.ids[i]] for i in mine], np.int64)
    heads = first.best_head(), second.best_head()
    loss = second.losses(heads[1])[theirs]
    gap = loss - first.losses(heads[0])[mine]
    weight = None if first.weight is None else np.array(first.weight)[mine]
    groups = np.array(first.groups, np.int64)[mine]
    drawn = Bootstrap(groups).means(gap[:, None], weight)[:, 0] if len(gap) else gap
    found = difference(metrics.mean(gap, weight), drawn, groups=len(np.unique(groups)))
    return Comparison(
        target=first.target,
        task=first.task,
        subset=first.subset,
        first=name_of(first.backbone, heads[0]),
        second=name_of(second.backbone, heads[1]),
        loss=metrics.mean(loss, weight),
        difference=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        n=len(gap),
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
        best=best,
    )
