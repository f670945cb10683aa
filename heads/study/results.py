"""What a study found: its fits, their rows, which row stands out, and what is compared."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.wording import counted
from heads.fitting import intervals
from heads.fitting.intervals import Sample
from heads.fitting.protocol import FC_NAMES
from heads.fitting.result import CHOICE
from heads.study.kept import KeptFit, chosen
from heads.study.rows import (
    ALL,
    CONST,
    FACE,
    WHOLE,
    Comparison,
    StudyRow,
    measured,
    name_of,
    said,
    title_of,
    within,
)
from heads.study.tables import table_of
from heads.study.taste_shown import said_of_tastes, table_of_tastes
from heads.study.tastes import KeptTaste

PAIRED_BELOW = 4
"""Of more backbones than this each is compared with the first only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All fits of a study, with what the page needs to know about the photos.

    photos, truth, captions: per photo id its path, (simulated data only) its true like ratio, and
        what its caption says (its gender, as in the paper).
    label_counts: the document of `embedcache labels` where the study began from the swipe log.
    imported: backbones whose vectors came by `embedcache import`.
    reused: fits found from an earlier run. skipped: fits that could not be made, and why.
    tastes: the trials of one taste per viewer, one for each backbone.
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
    imported: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    tastes: tuple[KeptTaste, ...] = ()
    _best: dict[tuple[str, str], KeptFit] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def rows(self) -> list[StudyRow]:
        """Every head of every fit, in the order of the study, what dev chose in each column marked.

        Constants and linear heads are the same under both protocols and stand once. Where folds
        chose among different fits, a row of its own stands for what they chose.
        """
        best = {
            (target, subset): self.best(target, subset)
            for target in self.targets()
            for subset in self.subsets(target)
        }
        found, seen = [], set()
        for fit in self.fits:
            mine = best[fit.target, fit.subset]
            for head in fit.heads:
                trained = head in FC_NAMES or head == CHOICE
                protocol = fit.protocol if trained else ""
                at = (fit.target, fit.subset, fit.backbone, head, protocol)
                if at not in seen:
                    # A linear head is marked whichever of its two fits dev chose it from.
                    same = fit.key == mine.key or (not trained and fit.backbone == mine.backbone)
                    found.append(_row(fit, head, best=same and head == mine.chosen_head()))
                seen.add(at)
        return found + [_row(one, CHOICE, best=True) for one in best.values() if not one.key]

    def fits_of(self, target: str, subset: str | None = None) -> list[KeptFit]:
        return [f for f in self.fits if f.target == target and subset in (None, f.subset)]

    def targets(self) -> list[str]:
        return list(dict.fromkeys(fit.target for fit in self.fits))

    def subsets(self, target: str) -> list[str]:
        return list(dict.fromkeys(fit.subset for fit in self.fits_of(target)))

    def best(self, target: str, subset: str) -> KeptFit:
        """What dev chose of all fits, see `chosen`."""
        if (target, subset) not in self._best:
            self._best[target, subset] = chosen(self.fits_of(target, subset), ALL)
        return self._best[target, subset]

    def comparisons(self) -> list[Comparison]:
        """Face vectors against whole-photo ones, wherever a subset has both, by protocol; elsewhere
        each backbone against each other, or where there are many against the first.

        Each side is what dev chose of it, by folds in each of them.
        """
        found = []
        for target in self.targets():
            for subset in self.subsets(target):
                for protocol in dict.fromkeys(fit.protocol for fit in self.fits):
                    fits = [f for f in self.fits_of(target, subset) if f.protocol == protocol]
                    face = [fit for fit in fits if fit.face]
                    whole = [fit for fit in fits if not fit.face]
                    if face and whole:
                        found.append(compare(chosen(face, FACE), chosen(whole, WHOLE)))
                    else:
                        pairs = combinations(fits, 2)
                        few = len(fits) <= PAIRED_BELOW
                        found += [compare(a, b) for a, b in pairs if few or a is fits[0]]
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
            "taste": [one.document() | {"said": said_of_tastes(one)} for one in self.tastes],
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
        for one in self.comparisons():
            where = f"{title_of(one.target)} on {one.subset}, {one.protocol} protocol"
            gap = within(one) or "no interval: too few groups"
            lines.append(f"{where}: {said(one)}: {measured(one)} ({gap})")
        for taste in self.tastes:
            lines += ["", table_of_tastes(taste).as_text(), said_of_tastes(taste), ""]
        lines += [f"left out: {name}: {reason}" for name, reason in self.skipped.items()]
        done = f"{counted(len(self.fits), 'fit')} ({self.reused} found from an earlier run)"
        lines.append(f"{done}, {self.seconds:.1f} s")
        return "\n".join(lines)


def compare(first: KeptFit, second: KeptFit) -> Comparison:
    """Pair two fits of one target by test photo; standard errors are over persons.

    By folds they are widened for the training photos that folds share, see `intervals.widening`.
    """
    at = {name: i for i, name in enumerate(second.ids)}
    mine = np.array([i for i, name in enumerate(first.ids) if name in at], np.int64)
    theirs = np.array([at[first.ids[i]] for i in mine], np.int64)
    heads = first.chosen_head(), second.chosen_head()
    ours, loss = first.losses(heads[0])[mine], second.losses(heads[1])[theirs]
    whole = first.sample()
    sample = Sample(None if whole.weight is None else whole.weight[mine], whole.groups[mine])
    gap = intervals.difference if first.task == "regression" else intervals.share_difference
    widened = intervals.widening(first.folds)
    found = gap(sample, loss, ours, widened=widened)
    low, high = intervals.ratio_interval(sample, ours, loss, widened=widened)
    share_low, share_high = 1 - high, 1 - low
    if found.low <= 0 <= found.high:  # two methods, one story
        share_low, share_high = min(share_low, 0.0), max(share_high, 0.0)
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
        share_low=share_low,
        share_high=share_high,
        n=len(mine),
        n_groups=sample.n_groups,
        protocol=first.protocol,
        faces=first.face and not second.face and CONST not in heads,
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
        chosen=main.get("chosen"),
        best=best,
    )
