"""How often does a study tell backbones apart that are equally good?

    python -m benchmarks.equal_backbones [TRIALS]

Each trial draws a target, and per backbone the same truth seen through noise of its own. The study
then compares what dev chose of the first k backbones with what it chose of the last one. Not more
than 5 % of the verdicts may say that there is a difference. The peer is the plain paired t over
rows, which knows nothing of the rows that folds share for training.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from heads import fit
from heads.dataset.arrays import from_arrays
from heads.fitting import intervals
from heads.fitting.result import Fit
from heads.study.kept import KeptFit, chosen
from heads.study.results import compare
from heads.study.rows import FACE

CASES = ((None, 1), (None, 6), (5, 1), (5, 6))  # folds, backbones that the first side has


def kept(made: Fit, name: str, *, face: bool) -> KeptFit:
    """A fit as a study keeps it, without what a comparison does not read."""
    test, document = made.test, made.document()
    assert test is not None
    return KeptFit(
        key=name,
        inputs={},
        target="y",
        subset="ALL",
        backbone=name,
        face=face,
        task=document["task"],
        n=document["n"],
        noise_floor=None,
        classes=(),
        rows=tuple(document["rows"]),
        by=(),
        ids=test.ids,
        truth=tuple(test.truth.tolist()),
        weight=None,
        groups=tuple(test.groups.tolist()),
        fold=tuple(test.fold.tolist()),
        group_of={},
        counts=False,
        predictions={head: tuple(seen.tolist()) for head, seen in test.predictions.items()},
        curves={},
        dropped={},
        spec=name,
        labels="",
        split="",
        ref=None,
        seconds=0.0,
        protocol="warm",
        folds=made.folds,
        best=made.best,
        n_effective=None,
        dev_of_choice=made.dev_of_choice,
    )


def fits(seed: int, *, folds: int | None, n_backbones: int, n: int) -> list[KeptFit]:
    """Fits of equally good backbones."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, 8))
    target = 0.5 * truth @ rng.normal(size=8) + rng.normal(size=n)
    found = []
    for number in range(n_backbones):
        seen = [truth + 1.5 * rng.normal(size=truth.shape), rng.normal(size=(n, 8))]
        data = from_arrays(np.hstack(seen), target, groups=range(n), task="regression", seed=seed)
        made = fit(data, heads=["ridge"], folds=folds, resamples=10, seed=seed)
        found.append(kept(made, f"b{number}", face=number < n_backbones - 1))
    return found


def verdicts(trials: Sequence[int], *, folds: int | None, k: int, n: int) -> tuple[float, float]:
    """The share of trials with a verdict, and with a plain t below 0.05."""
    said, plain = 0, 0
    for seed in trials:
        *face, whole = fits(seed, folds=folds, n_backbones=k + 1, n=n)
        first = chosen(face, FACE)
        said += compare(first, whole).verdict != 0
        losses = (one.losses(one.chosen_head()) for one in (whole, first))
        plain += intervals.difference(first.sample(), *losses).p < 0.05
    return said / len(trials), plain / len(trials)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trials", nargs="?", type=int, default=200)
    trials = range(parser.parse_args().trials)
    print(f"{len(trials)} trials of 300 rows")
    print("| judged by | equal backbones | told apart, % | by a plain t, % |")
    print("| --- | --- | ---: | ---: |")
    for folds, k in CASES:
        said, plain = verdicts(trials, folds=folds, k=k, n=300)
        how = "one split" if folds is None else f"{folds} folds"
        print(f"| {how} | {k} against 1 | {100 * said:.1f} | {100 * plain:.1f} |")


if __name__ == "__main__":
    main()
