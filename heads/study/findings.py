"""The few sentences that sum a study up, each with the number it rests on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embedcache.wording import counted
from heads.fitting import intervals
from heads.study.kept import KeptFit
from heads.study.results import Results
from heads.study.rows import CONST, Comparison, measured, name_of, said, title_of, within
from heads.study.taste_shown import enough, said_of_tastes
from heads.study.tastes import KeptTaste
from heads.taste.trial import COMMON_BIAS


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One thing a reader should take away. figure: the number in large type, or ""."""

    figure: str
    label: str
    text: str


def findings(results: Results) -> list[Headline]:
    """The few sentences that sum a study up, each with the number it rests on."""
    found = []
    for target in results.targets():
        subset = results.subsets(target)[-1]
        found.append(_headline(results, target, subset))
    compared = results.comparisons()
    known = sum(bool(np.isfinite(one.p)) for one in compared)
    found += [versus(one, simulated=results.simulated, n_comparisons=known) for one in compared]
    return found + [_of_taste(one) for one in results.tastes]


def _of_taste(kept: KeptTaste) -> Headline:
    name = enough(kept, COMMON_BIAS)
    return Headline(
        figure=name or "≈",
        label=f"ratings of a viewer show a taste on {kept.backbone}"
        if name
        else f"One taste per viewer on {kept.backbone}: no clear gain over the viewer's bias",
        text=said_of_tastes(kept),
    )


def _headline(results: Results, target: str, subset: str) -> Headline:
    fit = results.best(target, subset)
    found = _judged_headline(fit, target, subset)
    if fit.key:
        return found
    chosen = fit.row(fit.chosen_head())["chosen"].items()
    which = ", ".join(f"{name} ({n})" for name, n in sorted(chosen, key=lambda one: -one[1]))
    return replace(found, text=f"{found.text} Chosen by dev in the folds: {which}.")


def _judged_headline(fit: KeptFit, target: str, subset: str) -> Headline:
    head = fit.chosen_head()
    row, constant = fit.row(head), fit.row(CONST)
    name = name_of(fit.backbone, head, fit.protocol)
    n = len(fit.ids)
    if fit.task == "binary":
        if row["low"] is None:
            return Headline(
                figure="",
                label=f"{title_of(target)} on {subset}: no interval",
                text=f"{name} is right on {percent(row['value'])} of {n:,} test photos, the "
                f"constant on {percent(constant['value'])}. {_too_few(fit.sample().n_groups)}, "
                f"so nothing follows for other photos.",
            )
        return Headline(
            figure=f"{100 * row['value']:.1f} %",
            label=f"{title_of(target)} predicted correctly on {subset}",
            text=f"{name} on {n:,} test photos, 95 % interval "
            f"{percent(row['low'])} to {percent(row['high'])}; the constant gets "
            f"{percent(constant['value'])}.",
        )
    low, high = intervals.ratio_interval(fit.sample(), fit.losses(CONST), fit.losses(head))
    times = constant["value"] / row["value"]
    if not np.isfinite((low, high)).all():  # no multiple without its interval
        return Headline(
            figure="",
            label=f"{title_of(target)} on {subset}: no interval",
            text=f"{name} has a mean squared error of {row['value']:.4f} on {n:,} test photos, the "
            f"constant {constant['value']:.4f}. {_too_few(fit.sample().n_groups)}, so that "
            f"nothing follows for other photos.",
        )
    if not low > 1:  # a multiple whose interval holds 1 is no finding
        return Headline(
            figure="≈",
            label=f"{title_of(target)} on {subset}: no clear gain over the constant",
            text=f"{name} has a mean squared error of {row['value']:.4f} on {n:,} test photos, the "
            f"constant {constant['value']:.4f}; the ratio's 95 % interval, "
            f"{low:.1f}× to {high:.1f}×, holds 1.",
        )
    return Headline(
        figure=f"{times:.1f}×",
        label=f"lower error than the constant on {subset} "
        f"(95 % interval {low:.1f}× to {high:.1f}×)",
        text=f"{name} predicts the {target.replace('_', ' ')} with a mean squared error of "
        f"{row['value']:.4f} on {n:,} test photos; always saying the mean gives "
        f"{constant['value']:.4f}.{_explained_text(row)}",
    )


def _too_few(n_groups: int) -> str:
    """Why there is no interval."""
    if n_groups < 2:
        return "All test photos belong to one group"
    return f"The test photos belong to {n_groups} groups, too few for an interval"


def _explained_text(row: Mapping[str, Any]) -> str:
    """What share of the explainable variance a head explains, with its interval; "" if unknown."""
    names = [f"explainable_share{end}" for end in ("", "_low", "_high")]
    share, low, high = (row.get(name) for name in names)
    if share is None or low is None or high is None:
        return ""
    if row.get("at_floor"):
        return (
            f" Its error is not told apart from the noise floor of finite swipes: it explains "
            f"{100 * low:.0f} to {100 * high:.0f} % of what they leave to explain."
        )
    return (
        f" It explains {100 * share:.0f} % of the variance that finite swipes leave to explain "
        f"(95 % interval {100 * low:.0f} to {100 * high:.0f} %)."
    )


def versus(c: Comparison, *, simulated: bool, n_comparisons: int) -> Headline:
    verdict = said(c)
    if c.faces and not simulated:  # simulated data agree because they were made so: no finding
        verdict = {1: "as in the paper, ", -1: "opposite to the paper, ", 0: ""}[
            c.verdict
        ] + verdict
    interval = within(c)
    if interval:
        interval += f", adjusted by Holm for {counted(n_comparisons, 'comparison')}"
    else:
        verdict = "undecided: one group" if c.n_groups < 2 else f"undecided: {c.n_groups} groups"
        interval = f"no interval and no p. {_too_few(c.n_groups)}"
    first, second = ("face vectors", "whole-photo vectors") if c.faces else (c.first, c.second)
    figure, label = "≈", f"{title_of(c.target)}: {first} and {second} on {c.subset}"
    if c.verdict:  # a large figure over an interval that holds zero would mislead
        sign = 1 if c.verdict > 0 else -1
        ends = sorted((100 * sign * c.share_low, 100 * sign * c.share_high))
        figure = f"{100 * sign * c.share:.0f} %"
        label = f"{title_of(c.target)}: {'less' if sign > 0 else 'more'} error with {first} on "
        label += c.subset
        if np.isfinite(ends).all():
            label += f" (95 % interval {ends[0]:.0f} to {ends[1]:.0f} %)"
    return Headline(
        figure=figure,
        label=label,
        text=f"{title_of(c.target)}, {c.protocol} protocol: {verdict}. {c.first} against "
        f"{c.second} on the same {c.n:,} test photos: {measured(c)} ({interval}).",
    )


def percent(share: float | None) -> str:
    """A share as it is printed."""
    return "-" if share is None else f"{100 * share:.1f} %"
