"""How often the 95 % intervals of a fit's table hold the truth, by simulation.

    python -m benchmarks.coverage                  20, 50, 100 and 400 rows, 2,000 trials each
    python -m benchmarks.coverage --trials 400     quicker

A trial draws test rows from a known population: scores of one head, or of two, with weights and
groups. Rows are alone, in equal groups of three, or in unequal groups (one to six rows); weights
are equal or heavy-tailed (log-normal, sigma 1: the heaviest of 100 rows weighs as much as 12 median
ones). Rows of a group share half of their variance.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from heads.fitting import intervals
from heads.fitting.intervals import Sample

Floats = NDArray[np.float64]
SIZES = (20, 50, 100, 400)
SHARED = 0.5  # of the variance of a row is its group's


@dataclass(frozen=True, slots=True)
class Design:
    """How rows come: groups "alone", "equal" or "unequal"; heavy: whether weights have a tail."""

    groups: str
    heavy: bool

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Sample, Floats]:
        """n rows, and for each a standard normal (n, 3) that rows of a group share in part."""
        sizes = [1] * n
        if self.groups == "equal":
            sizes = [3] * (n // 3) + [1] * (n % 3)
        elif self.groups == "unequal":
            sizes = []
            while sum(sizes) < n:
                sizes.append(min(int(rng.choice([1, 1, 1, 2, 2, 3, 4, 6])), n - sum(sizes)))
        groups = np.repeat(np.arange(len(sizes)), sizes)
        weight = np.exp(rng.normal(size=n)) if self.heavy else None
        theirs = rng.normal(size=(len(sizes), 3))[groups]
        mixed = np.sqrt(SHARED) * theirs + np.sqrt(1 - SHARED) * rng.normal(size=(n, 3))
        return Sample(weight, groups), mixed

    def __str__(self) -> str:
        rows = {"alone": "rows alone", "equal": "groups of 3", "unequal": "groups of 1 to 6"}
        return f"{rows[self.groups]}, {'heavy' if self.heavy else 'equal'} weights"


DESIGNS = tuple(Design(g, heavy) for g in ("alone", "equal", "unequal") for heavy in (False, True))
Trial = Callable[[Sample, Floats], tuple[float, float]]


def squared(normal: Floats, *, tail: float = 0.0) -> Floats:
    """Squared errors of mean 1; tail: how much their size differs from row to row."""
    return np.asarray(normal[:, 0] ** 2 * np.exp(tail * normal[:, 1] - tail**2 / 2))


def hits(normal: Floats, share: float) -> Floats:
    """1 where a row is right."""
    return np.asarray(normal[:, 0] < stats.norm.ppf(share), np.float64)


def classes(normal: Floats) -> tuple[Floats, Floats]:
    """Truth (40 % positive) and a score with an area of Phi(2 / sqrt 2) = 0.921."""
    truth = np.asarray(normal[:, 0] < stats.norm.ppf(0.4), np.float64)
    return truth, np.asarray(2 * truth + normal[:, 1])


def pair(normal: Floats) -> tuple[Floats, Floats]:
    """Squared errors of two heads that agree for the most part, the second 10 % worse."""
    return squared(normal), 1.1 * np.asarray((0.8 * normal[:, 0] + 0.6 * normal[:, 2]) ** 2)


def right_pair(normal: Floats) -> tuple[Floats, Floats]:
    """Right or wrong of two heads, 90 and 85 %, mostly on the same rows."""
    other = 0.8 * normal[:, 0] + 0.6 * normal[:, 1]
    return hits(normal, 0.90), np.asarray(other < stats.norm.ppf(0.85), np.float64)


def _share_gap(sample: Sample, normal: Floats) -> tuple[float, float]:
    found = intervals.share_difference(sample, *right_pair(normal))
    return found.low, found.high


def _gap(sample: Sample, normal: Floats) -> tuple[float, float]:
    found = intervals.difference(sample, *pair(normal))
    return found.low, found.high


def _r(sample: Sample, normal: Floats) -> tuple[float, float]:
    second = 0.7 * normal[:, 0] + np.sqrt(0.51) * normal[:, 1]
    return intervals.correlation(sample, normal[:, 0], second)[1:]


# What is measured, with its true value.
FIGURES: dict[str, tuple[Trial, float]] = {
    "mse": (lambda s, z: intervals.loss_interval(s, squared(z)), 1.0),
    "mse, uneven errors": (lambda s, z: intervals.loss_interval(s, squared(z, tail=0.5)), 1.0),
    "mse difference": (_gap, -0.1),
    "mse ratio": (lambda s, z: intervals.ratio_interval(s, *pair(z)), 1 / 1.1),
    "accuracy 0.80": (lambda s, z: intervals.share_interval(s, hits(z, 0.80)), 0.80),
    "accuracy 0.97": (lambda s, z: intervals.share_interval(s, hits(z, 0.97)), 0.97),
    "accuracy difference": (_share_gap, 0.05),
    "auc 0.92": (
        lambda s, z: intervals.auc(s, *classes(z))[1:],
        float(stats.norm.cdf(2 / np.sqrt(2))),
    ),
    "correlation 0.7": (_r, 0.7),
}


def covered(figure: str, design: Design, n: int, *, trials: int, seed: int = 0) -> float:
    """The share of trials whose interval holds the truth; one that is not known claims nothing."""
    trial, truth = FIGURES[figure]
    rng = np.random.default_rng([seed, n, *map(ord, figure + str(design))])
    found = 0
    for _ in range(trials):
        low, high = trial(*design.draw(n, rng))
        found += bool(np.isnan(low)) or low <= truth <= high
    return found / trials


def brief(lines: Sequence[str]) -> Iterator[str]:
    """The lowest and the highest coverage of all designs, a line per figure of `table`."""
    found: dict[str, list[list[float]]] = {}
    for line in lines[2:]:
        figure, _, *shares = (cell.strip() for cell in line.strip("| ").split("|"))
        found.setdefault(figure, []).append([float(share) for share in shares])
    for figure, rows in found.items():
        columns = zip(*rows, strict=True)
        ends = " | ".join(f"{min(column):.1f} to {max(column):.1f}" for column in columns)
        yield f"| {figure} | {ends} |"


def table(
    trials: int, *, sizes: tuple[int, ...] = SIZES, figures: tuple[str, ...] | None = None
) -> Iterator[str]:
    """The lines of a Markdown table: a row per figure and design, coverage in % per size."""
    yield "| figure | rows | " + " | ".join(f"n = {n}" for n in sizes) + " |"
    yield "| --- | --- |" + " ---: |" * len(sizes)
    for figure in figures or FIGURES:
        for design in DESIGNS:
            shares = [100 * covered(figure, design, n, trials=trials) for n in sizes]
            yield f"| {figure} | {design} | " + " | ".join(f"{s:.1f}" for s in shares) + " |"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--figure", help="only this one")
    chosen = parser.parse_args()
    lines = []
    for line in table(chosen.trials, figures=(chosen.figure,) if chosen.figure else None):
        print(line, flush=True)
        lines.append(line)
    print("\nlowest to highest of the designs:")
    for line in brief(lines):
        print(line)


if __name__ == "__main__":
    main()
