"""What a study says of tastes: the table, the picture and the sentence of each trial."""

from collections.abc import Mapping, Sequence
from typing import Any

from embedcache.wording import counted
from heads.fitting.result import number
from heads.study.panels import Chart, Panel, Series
from heads.study.tables import Cell, PrintedTable
from heads.study.tastes import KeptTaste
from heads.taste.result import ALL, printed
from heads.taste.trial import BOTH_BIASES, COMMON, COMMON_BIAS, OWN_HEAD, PHOTO_MEAN, TASTE
from heads.taste.trial import VIEWER_MEAN as MEAN

_TITLES = {
    TASTE: "Taste",
    COMMON: "Common part alone",
    COMMON_BIAS: "Common part and bias",
    OWN_HEAD: "A head for each viewer",
    MEAN: "The viewer's mean",
    PHOTO_MEAN: "The photo's mean (*)",
    BOTH_BIASES: "Both biases (*)",
}
_DRAWN = ((TASTE, "accent"), (COMMON_BIAS, "plain"), (COMMON, "third"))


def table_of_tastes(kept: KeptTaste) -> PrintedTable:
    """Models down, ratings shown across; below them what the taste differs by."""
    names = list(kept.rows[0]["by_ratings"])
    lines = [(Cell(title), *_cells(kept.row(model), names)) for model, title in _TITLES.items()]
    viewers = kept.row(TASTE)["viewers"]
    lines.append((Cell("Viewers"), *(Cell(f"{viewers[n]:,}", viewers[n]) for n in names)))
    lines += [
        (Cell(f"Taste less {_TITLES[other].lower()}"), *_cells(kept.row(TASTE, other), names))
        for other in (COMMON, COMMON_BIAS)
    ]
    train, test = kept.n["train"], kept.n["test"]
    return PrintedTable(
        name=f"tastes_{''.join(c if c.isalnum() else '_' for c in kept.backbone.lower())}",
        title=f"One taste per viewer, {kept.backbone}: mean squared error by ratings shown.",
        caption=(
            f"Of {counted(kept.raters, 'viewer')}; learned from "
            f"{counted(train['ratings'], 'rating')} of {counted(train['photos'], 'train photo')}, "
            f"judged on {counted(test['ratings'], 'rating')} of "
            f"{counted(test['photos'], 'test photo')}. What is learned comes from other viewers "
            "than those judged; each of these shows so many ratings of train photos, and counts "
            "once in the columns for which there are enough. 95 % intervals are over viewers, for "
            "these photos. (*) These use other viewers' ratings of the same photo, which a new "
            "photo does not have."
        ),
        head=("Ratings shown", *names),
        rows=tuple(lines),
    )


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[Cell]:
    found = []
    for name in names:
        text, low, high = (*printed(row, name), "", "", "")[:3]
        found.append(Cell(text or "-", row["by_ratings"][name], low, high))
    return found


def chart_of_tastes(kept: Sequence[KeptTaste]) -> Chart:
    """Errors by ratings shown, a panel per backbone: the taste beside what it falls back on."""
    panels = [
        Panel(
            title=one.backbone,
            x_label="mean squared error on test photos",
            y_label="",
            names=tuple(
                f"{name} ratings ({counted(count, 'viewer')})"
                for name, count in one.row(TASTE)["viewers"].items()
            ),
            series=tuple(
                _series(one.row(model), _TITLES[model], tone, shift=0.22 * place - 0.22)
                for place, (model, tone) in enumerate(_DRAWN)
            ),
        )
        for one in kept
    ]
    return Chart(
        name="tastes_of_viewers",
        title="One taste per viewer, by ratings shown",
        caption="The taste beside the common part, alone and with the viewer's bias, for viewers "
        "who show so many ratings, with 95 % intervals over viewers.",
        alt="Dot plot of the error of a taste per viewer by the number of ratings shown.",
        panels=tuple(panels),
        legend=tuple({s.name: s for panel in panels for s in panel.series}.values()),
    )


def _series(row: Mapping[str, Any], name: str, tone: str, *, shift: float) -> Series:
    known = [(at, n) for at, n in enumerate(row["by_ratings"]) if row["by_ratings"][n] is not None]
    values = [row["by_ratings"][n] for _, n in known]
    ends = [row["by_ratings_interval"][n] for _, n in known]
    return Series(
        name=name,
        x=tuple(values),
        y=tuple(at + shift for at, _ in known),
        low=tuple(v if low is None else low for v, (low, _) in zip(values, ends, strict=True)),
        high=tuple(v if high is None else high for v, (_, high) in zip(values, ends, strict=True)),
        mark="interval",
        tone=tone,
    )


def enough(kept: KeptTaste, versus: str) -> str:
    """From how many ratings on the taste has a lower error than another model: the first number
    for which, and for every larger one, the interval of the difference lies below 0; "" for none.
    """
    ends = kept.row(TASTE, versus)["by_ratings_interval"]
    found = ""
    for name in reversed(ends):
        high = ends[name][1]
        if high is None or high >= 0:
            break
        found = name
    return found


def said_of_tastes(kept: KeptTaste) -> str:
    """What the trial means for this data, in a sentence or two."""
    for versus, what in (
        (COMMON_BIAS, "the common part with the viewer's bias"),
        (COMMON, "the common part alone"),
    ):
        if name := enough(kept, versus):
            gap, errors = kept.row(TASTE, versus), kept.row(TASTE)
            low, high = (-end for end in reversed(gap["by_ratings_interval"][name]))
            when = "With all of a viewer's ratings" if name == ALL else f"From {name} ratings on"
            sentence = (
                f"{when}, one taste per viewer on {kept.backbone} predicts better than {what}: "
                f"with {name} ratings a mean squared error of {number(errors['by_ratings'][name])} "
                f"against {number(kept.row(versus)['by_ratings'][name])}, a difference of "
                f"{number(-gap['by_ratings'][name])} (95 % interval {number(low)} to "
                f"{number(high)}; {counted(errors['viewers'][name], 'viewer')})."
            )
            if versus == COMMON:
                sentence += (
                    " Most of it may be how high each viewer rates: it is not shown to be better "
                    "than the common part with the viewer's bias."
                )
            return sentence
    return (
        f"On {kept.backbone} these ratings do not show that one taste per viewer predicts better "
        "than the common part: the interval of the difference holds 0."
    )
