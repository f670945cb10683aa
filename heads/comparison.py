"""Two saved heads on the same test photos: which is better, and how sure that is.

    compare("heads/a", "heads/b")      the best head of each, or one head's own folder

Each head brings its test photos with what it predicted for them before it was saved, so that no
vector is read here. Photos that both tested are compared in pairs, over the groups that either fit
kept together.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import HeadError
from embedcache.wording import counted
from heads.dataset import split
from heads.fitting import intervals
from heads.fitting.intervals import Difference, Sample
from heads.fitting.scores import row_scores
from heads.head import Head
from heads.saved import load

Floats = NDArray[np.float64]
_MAX_BYTES = 1 << 30
_BETTER = {"mse": "lower", "log_loss": "lower", "accuracy": "higher"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """One metric of one target of two heads, and first - second with its 95 % interval."""

    target: str
    metric: str
    first: float
    second: float
    difference: Difference

    @property
    def verdict(self) -> str:
        """ "first", "second", or "undecided" where the interval holds 0 or there is none."""
        gap = self.difference
        if not (gap.low > 0 or gap.high < 0):
            return "undecided"
        return "first" if (gap.value < 0) == (_BETTER[self.metric] == "lower") else "second"

    def document(self) -> dict[str, Any]:
        own = {"target": self.target, "metric": self.metric}
        gap = asdict(self.difference)
        del gap["p_adjusted"]
        numbers = {
            "first": self.first,
            "second": self.second,
            "difference": gap.pop("value"),
            **gap,
        }
        known = {k: v if np.isfinite(v) else None for k, v in numbers.items()}
        return {**own, **known, "verdict": self.verdict}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two heads on the n test photos of both.

    first, second: their names, "FOLDER: ridge from NAME".  alone: test photos of one head only.
    n_groups: persons, or whatever the fits kept together, among the n.
    """

    first: str
    second: str
    n: int
    n_groups: int
    alone: tuple[int, int]
    rows: tuple[Paired, ...]
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The JSON object that `embedcache compare` prints."""
        return {
            "first": self.first,
            "second": self.second,
            "n": self.n,
            "n_groups": self.n_groups,
            "only_first": self.alone[0],
            "only_second": self.alone[1],
            "rows": [row.document() for row in self.rows],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        groups = f" ({counted(self.n_groups, 'group')})" if self.n_groups < self.n else ""
        lines = [
            f"first:  {self.first}",
            f"second: {self.second}",
            f"{counted(self.n, 'test photo')} of both{groups}",
        ]
        for row in self.rows:
            gap, about = (
                row.difference,
                f"{row.target}, {row.metric} ({_BETTER[row.metric]} is better)",
            )
            within = "no interval: too few groups"
            if np.isfinite((gap.low, gap.high)).all():
                within = f"95 % interval {gap.low:.4g} to {gap.high:.4g}, p {gap.p:.2g}"
            says = {"first": "the first is better", "second": "the second is better"}
            lines.append(
                f"{about}: {row.first:.4g} against {row.second:.4g}, first - second "
                f"{gap.value:.4g} ({within}): {says.get(row.verdict, 'undecided')}"
            )
        return "\n".join([*lines, *self.notes])


def compare(first: str | Path, second: str | Path) -> Compared:
    """Compare the heads of two folders on the test photos that both have, by id.

    By folds the interval is widened for the training photos that folds share, see
    `intervals.widening`. HeadError where a folder is no head, has no test predictions, or the two
    do not predict the same labels.
    """
    heads = [load(first), load(second)]
    tested = [
        _tested(Path(place), head) for place, head in zip((first, second), heads, strict=True)
    ]
    _require_one_task(heads, (first, second))
    at = {name: i for i, name in enumerate(tested[1].ids)}
    mine = np.array([i for i, name in enumerate(tested[0].ids) if name in at], np.int64)
    if not mine.size:
        raise HeadError(f"{first} and {second} have no test photo in common: split by the same ids")
    theirs = np.array([at[tested[0].ids[i]] for i in mine], np.int64)
    ours, other = tested[0].only(mine), tested[1].only(theirs)
    if not np.array_equal(ours.truth, other.truth):
        n = int((ours.truth != other.truth).any(axis=1).sum())
        have = "has" if n == 1 else "have"
        raise HeadError(f"{counted(n, 'photo')} of both {have} another label in the other fit")
    notes = []
    if not np.allclose(ours.weight, other.weight):
        notes.append(f"the weights differ; those of {first} are used")
    groups = split.join_groups([ours.groups, other.groups])[0]
    sample = Sample(ours.weight, groups)
    folds = [head.card.get("folds") for head in heads]
    widened = max(intervals.widening(k) for k in folds)
    if not all(one.grouped for one in tested):
        notes.append("an older version saved no groups: each photo counts as a group of its own")
    notes += _beside_a_constant(heads, (Path(first), Path(second)))
    return Compared(
        first=_name(first, heads[0]),
        second=_name(second, heads[1]),
        n=len(mine),
        n_groups=sample.n_groups,
        alone=(len(tested[0].ids) - len(mine), len(tested[1].ids) - len(mine)),
        rows=tuple(_paired(heads[0], ours, other, sample, widened)),
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Tested:
    """The n test rows of a saved head: truth (n, k), predicted (n, m), weight (n,), groups (n,)."""

    ids: Sequence[str]
    truth: Floats
    predicted: Floats
    weight: Floats
    groups: Sequence[str]
    grouped: bool

    def only(self, rows: NDArray[np.int64]) -> "_Tested":
        places = rows.tolist()
        return _Tested(
            [self.ids[i] for i in places],
            self.truth[rows],
            self.predicted[rows],
            self.weight[rows],
            [self.groups[i] for i in places],
            self.grouped,
        )


def _tested(folder: Path, head: Head) -> _Tested:
    """The test rows that were saved with a head."""
    place = (folder / head.name if _of_a_fit(folder) else folder) / "predictions.csv"
    try:
        text = disk.read_inside(place.parent, place.name, limit=_MAX_BYTES).decode()
        rows = list(csv.reader(io.StringIO(text)))
        titles, body = rows[0], rows[1:]
        truth_at = [k for k, name in enumerate(titles) if name.split("_")[0] == "truth"]
        guess_at = [k for k, name in enumerate(titles) if name.split("_")[0] == "prediction"]
        classes = {name: float(k) for k, name in enumerate(head.classes)}
        read = classes.__getitem__ if classes else float
        ids = [row[0] for row in body]
        group_at = titles.index("group") if "group" in titles else 0
        return _Tested(
            ids,
            np.array([[read(row[k]) for k in truth_at] for row in body], float),
            np.array([[float(row[k]) for k in guess_at] for row in body], float),
            np.array([float(row[titles.index("weight")]) for row in body]),
            [row[group_at] for row in body],
            group_at > 0,
        )
    except FileNotFoundError:
        raise HeadError(
            f"{folder} has no test predictions: it was fitted with dev rows only"
        ) from None
    except (LookupError, ValueError, csv.Error):
        raise HeadError(f"{place} is not what a fit wrote; fit again") from None


def _of_a_fit(folder: Path) -> bool:
    """Whether a folder holds a whole fit, whose best head is read, and not one head alone."""
    return (folder / "fit.json").is_file() and not (folder / "card.json").is_file()


def _beside_a_constant(heads: Sequence[Head], places: tuple[Path, Path]) -> list[str]:
    """What to compare where the best head of one fit is the constant, as a sentence or none."""
    constant = [head.name == "const" for head in heads]
    if sum(constant) != 1 or not all(map(_of_a_fit, places)):
        return []
    other = heads[constant.index(False)].name
    folders = [place / other for place in places]
    if not all((folder / "card.json").is_file() for folder in folders):
        return []
    sides = ("first", "second")
    where = " for the two backbones"
    if heads[0].card["backbone"] == heads[1].card["backbone"]:
        where = ""
    return [
        f"the {sides[constant.index(False)]}'s best head is {other}, the "
        f"{sides[constant.index(True)]}'s is the constant: compare {folders[0]} with "
        f"{folders[1]}{where}"
    ]


def _require_one_task(heads: Sequence[Head], places: Sequence[str | Path]) -> None:
    for key in ("task", "target", "classes"):
        first, second = (head.card[key] for head in heads)
        if first != second:
            raise HeadError(
                f"{places[0]} predicts {key} {first!r} and {places[1]} {second!r}: heads of one "
                "label are compared"
            )


def _paired(
    head: Head, ours: _Tested, other: _Tested, sample: Sample, widened: float
) -> list[Paired]:
    """Every target's metrics."""
    task, found = head.card["task"], []
    several = ours.truth.shape[1] > 1
    for k, target in enumerate(
        head.card["target"].split(",") if several else [head.card["target"]]
    ):
        mine, theirs = (
            row_scores(task, one.truth[:, k], _column(one.predicted, k, several=several))
            for one in (ours, other)
        )
        for metric, scores in mine.items():
            gap = intervals.share_difference if metric == "accuracy" else intervals.difference
            found.append(
                Paired(
                    target=target,
                    metric=metric,
                    first=sample.mean(scores),
                    second=sample.mean(theirs[metric]),
                    difference=gap(sample, scores, theirs[metric], widened=widened),
                )
            )
    return found


def _column(predicted: Floats, k: int, *, several: bool) -> Floats:
    """The predictions of one target: a column of several targets', or all probabilities."""
    if several:
        return predicted[:, k]
    return predicted[:, 0] if predicted.shape[1] == 1 else predicted


def _name(place: str | Path, head: Head) -> str:
    return f"{place}: {head.name} from {head.card['backbone'] or 'an array'}"
