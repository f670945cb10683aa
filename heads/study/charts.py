"""What each chart shows, computed; `heads.figures` draws it.

A chart is panels, a panel is series. Colours distinguish backbones, dashes distinguish heads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heads.fitting import metrics
from heads.fitting.judge import BY
from heads.study.kept import KeptFit
from heads.study.panels import Chart, Dash, Panel, Series
from heads.study.results import Results
from heads.study.rows import CONST, POOLED, StudyRow, name_of, title_of

TONES = ("accent", "plain", "third", "fourth")
_DASH: dict[str, Dash] = {"0fc": "dot", "1fc": "solid", "2fc": "dash"}
_MAX_POINTS = 1500


def tones(results: Results) -> dict[str, str]:
    """A colour per backbone: the accent for the first that sees faces (or the first at all)."""
    names = list(dict.fromkeys(fit.backbone for fit in results.fits))
    face = next((fit.backbone for fit in results.fits if fit.face), names[0])
    others = [name for name in names if name != face]
    return (
        {face: TONES[0]}
        | {name: TONES[1 + i % (len(TONES) - 1)] for i, name in enumerate(others)}
        | dict.fromkeys(POOLED, "ink")
    )


def all_charts(results: Results) -> list[Chart]:
    """Every chart that the study has the data for."""
    charts = []
    for target in results.targets():
        regression = results.fits_of(target)[0].task == "regression"
        charts.append(errors(results, target))
        charts.append(curves(results, target))
        charts.append(calibration(results, target))
        if regression:
            charts.append(scatter(results, target))
            if results.truth:
                charts.append(recovered(results, target))
        if any(fit.by for fit in results.fits_of(target)):
            charts.append(by_group(results, target))
    return [chart for chart in charts if any(panel.series for panel in chart.panels)]


def errors(results: Results, target: str) -> Chart:
    """The table as a picture: every head with its interval, the noise floor as a line."""
    colour = tones(results)
    panels = []
    rows = [r for r in results.rows() if r.target == target]
    ends = [end for r in rows for end in (r.value, r.low, r.high) if end is not None]
    ends += [r.noise_floor for r in rows if r.noise_floor is not None and r.metric == "mse"]
    for subset in results.subsets(target):
        rows = [r for r in results.rows() if (r.target, r.subset) == (target, subset)]
        rows = [r for i, r in enumerate(rows) if r.head != CONST or i == 0]
        rows = list({r.name: r for r in reversed(rows)}.values())[::-1]
        scale = 100 if rows[0].metric == "accuracy" else 1
        floor = rows[0].noise_floor
        series = []
        for tone in dict.fromkeys(("plain", *colour.values())):
            places = [
                i for i, r in enumerate(rows)
                if ("plain" if r.head == CONST or r.head.startswith(BY) else colour[r.backbone])
                == tone
            ]  # fmt: skip
            if places:
                series.append(
                    Series(
                        name=rows[places[-1]].backbone,
                        x=tuple(scale * rows[i].value for i in places),
                        y=tuple(map(float, places)),
                        low=tuple(scale * _or(rows[i].low, rows[i].value) for i in places),
                        high=tuple(scale * _or(rows[i].high, rows[i].value) for i in places),
                        mark="interval",
                        tone=tone,
                    )
                )
        what = "accuracy on test, %" if scale == 100 else "mean squared error on test"
        panels.append(
            Panel(
                title=subset,
                x_label=what,
                y_label="",
                series=tuple(series),
                names=tuple(_shown(r) for r in rows),
                lines=((floor, "noise floor"),) if floor is not None and scale == 1 else (),
                x_range=(scale * min(ends), scale * max(ends)),
            )
        )
    return Chart(
        name=f"errors_{target}",
        title=f"{title_of(target)}: every head, with its uncertainty",
        caption=(
            "Points are test figures, bars their 95 % intervals; ★ marks the head that dev chose. "
            + (
                "Nothing can be expected to pass left of the noise floor: finite swipes put it "
                "there."
                if any(panel.lines for panel in panels)
                else ""
            )
        ).strip(),
        alt=f"Dot plot of the test figures of all heads for {target}, same numbers as the table.",
        panels=tuple(panels),
    )


def curves(results: Results, target: str) -> Chart:
    """The dev figure by epoch at each FC head's chosen rate, linear heads as levels."""
    colour = tones(results)
    panels = []
    for subset in results.subsets(target):
        series, levels = [], []
        for fit in results.fits_of(target, subset):
            for head in fit.curves:
                if head in _DASH:
                    if (one := _curve(fit, head, colour[fit.backbone])) is not None:
                        series.append(one)
                elif head != CONST and np.isfinite(fit.dev(head)):
                    levels.append((fit.dev(head), name_of(fit.backbone, head, fit.protocol)))
        panels.append(
            Panel(
                title=subset,
                x_label="epoch",
                y_label="dev " + ("MSE" if fit.task == "regression" else "log-loss"),
                series=tuple(series),
                levels=tuple(levels),
            )
        )
    return Chart(
        name=f"learning_curves_{target}",
        title=f"{title_of(target)}: learning curves",
        caption="Dev figure after each epoch, at the learning rate that dev chose. The ringed "
        "epoch is the one kept; at epoch 0 no rate beat the head's linear start. Thin level lines "
        "are the linear heads.",
        alt=f"Line chart of dev figures by epoch for {target}.",
        panels=tuple(panels),
        legend=_legend(panels),
    )


def calibration(results: Results, target: str) -> Chart:
    """Predicted against observed means in ten bins, for each backbone's best head."""
    colour = tones(results)
    panels = []
    for subset in results.subsets(target):
        series = []
        for fit in results.fits_of(target, subset):
            head = fit.chosen_head()
            guess = np.array(fit.predictions[head])
            truth = np.array(fit.truth)
            if min(truth.min(), guess.min()) < -0.2 or max(truth.max(), guess.max()) > 1.2:
                continue  # not a share: bins from 0 to 1 do not apply
            weight = None if fit.weight is None else np.array(fit.weight)
            found = metrics.reliability(truth, np.clip(guess, 0, 1), weight)
            series.append(
                Series(
                    name=fit.backbone,
                    x=tuple(found.predicted.tolist()),
                    y=tuple(found.observed.tolist()),
                    size=tuple(found.share.tolist()),
                    mark="dots",
                    tone=colour[fit.backbone],
                )
            )
        panels.append(
            Panel(
                title=subset,
                x_label="predicted",
                y_label="observed",
                series=tuple(series),
                square=True,
            )
        )
    return Chart(
        name=f"calibration_{target}",
        title=f"{title_of(target)}: calibration",
        caption="Mean prediction against mean truth in ten bins of the prediction, by each "
        "backbone's best head on dev; the larger the point, the more of the test weight it holds. "
        "On the diagonal, predictions mean what they say.",
        alt=f"Calibration plot for {target}: predicted against observed means.",
        panels=tuple(panels),
        legend=_legend(panels),
    )


def scatter(results: Results, target: str) -> Chart:
    """Predicted against true, with the band that finite swipes alone would fill."""
    panels = [
        _cloud(
            best,
            np.array(best.truth),
            title=f"{subset}: {name_of(best.backbone, best.chosen_head(), best.protocol)}",
            y_label=f"true {target.replace('_', ' ')}",
            tone=tones(results)[best.backbone],
            band=True,
        )
        for subset in results.subsets(target)
        for best in [results.best(target, subset)]
    ]
    return Chart(
        name=f"predicted_vs_true_{target}",
        title=f"{title_of(target)}: predicted against true",
        caption="Each point is a test photo."
        + (
            " The band is where 95 % of photos would fall if every prediction were exactly right "
            "and only the finite number of swipes (the median photo's) scattered the ratios."
            if any(panel.band for panel in panels)
            else ""
        ),
        alt=f"Scatter of predicted against true {target} on test photos.",
        panels=tuple(panels),
    )


def recovered(results: Results, target: str) -> Chart:
    """Prediction against the simulated truth, which no real study knows."""
    panels = []
    for subset in results.subsets(target):
        best = results.best(target, subset)
        truth = np.array([results.truth.get(name, np.nan) for name in best.ids])
        panels.append(
            _cloud(
                best,
                truth,
                title=f"{subset}: {name_of(best.backbone, best.chosen_head(), best.protocol)}",
                y_label="simulated truth",
                tone=tones(results)[best.backbone],
                band=False,
            )
        )
    return Chart(
        name=f"recovered_truth_{target}",
        title="Predicted against the simulated truth",
        caption="Each point is a test photo: what the head predicted from noisy votes against the "
        "like probability that the simulation used. On the diagonal, the truth was found.",
        alt="Scatter of prediction against the simulated truth.",
        panels=tuple(panels),
    )


def by_group(results: Results, target: str) -> Chart:
    """In each group of the report_by columns, dev's choice beside the group's own mean."""
    panels = []
    for subset in results.subsets(target):
        fit = results.best(target, subset)
        head, metric = fit.chosen_head(), "mse" if fit.task == "regression" else "accuracy"
        scale = 100 if metric == "accuracy" else 1
        mine = [r for r in fit.by if (r["head"], r["metric"]) == (head, metric)]
        own = [r for r in fit.by if r["head"].startswith(BY) and r["metric"] == metric]
        name = name_of(fit.backbone, head, fit.protocol)
        tone = tones(results)[fit.backbone]
        places = {(r["column"], r["group"]): float(at) for at, r in enumerate(mine)}
        panels.append(
            Panel(
                title=f"{subset}: {name}",
                x_label="accuracy on test, %" if scale == 100 else "mean squared error on test",
                y_label="",
                names=tuple(f"{r['column']} {r['group']} (n = {r['n']:,})" for r in mine),
                series=tuple(
                    _dots(rows, places, name=title, scale=scale, tone=colour, shift=shift)
                    for rows, title, colour, shift in (
                        (mine, name, tone, 0.0),
                        (own, "the group's own mean", "plain", 0.25),
                    )
                    if rows
                ),
            )
        )
    return Chart(
        name=f"error_by_group_{target}",
        title=f"{title_of(target)}: error by group",
        caption="What dev chose, judged in each group apart, beside the constant that says the "
        "group's own mean (learnt from train photos), with 95 % intervals.",
        alt=f"Dot plot of the test figure of {target} by group.",
        panels=tuple(panel for panel in panels if panel.series),
        legend=_legend(panels),
    )


def _dots(
    rows: Sequence[Mapping[str, Any]],
    places: Mapping[tuple[str, str], float],
    *,
    name: str,
    scale: int,
    tone: str,
    shift: float,
) -> Series:
    rows = [r for r in rows if r["value"] is not None]
    return Series(
        name=name,
        x=tuple(scale * r["value"] for r in rows),
        y=tuple(places[r["column"], r["group"]] + shift for r in rows),
        low=tuple(scale * _or(r["low"], r["value"]) for r in rows),
        high=tuple(scale * _or(r["high"], r["value"]) for r in rows),
        mark="interval",
        tone=tone,
    )


def _cloud(
    fit: KeptFit, truth: np.ndarray, *, title: str, y_label: str, tone: str, band: bool
) -> Panel:
    guess = np.array(fit.predictions[fit.chosen_head()])
    known = np.flatnonzero(np.isfinite(truth))
    if len(known) > _MAX_POINTS:
        known = np.random.default_rng(0).choice(known, _MAX_POINTS, replace=False)
    region = None
    if band and fit.noise_floor is not None and fit.weight is not None:
        p = np.linspace(0, 1, 101)
        reach = 1.96 * np.sqrt(p * (1 - p) / np.median(fit.weight))
        region = tuple(p), tuple(np.clip(p - reach, 0, 1)), tuple(np.clip(p + reach, 0, 1))
    return Panel(
        title=title,
        x_label="predicted",
        y_label=y_label,
        series=(
            Series(
                name="test photos",
                x=tuple(guess[known].tolist()),
                y=tuple(truth[known].tolist()),
                mark="cloud",
                tone=tone,
            ),
        )
        if len(known)
        else (),
        band=region,
        square=True,
    )


def _curve(fit: KeptFit, head: str, tone: str) -> Series | None:
    """The curve of the rate that dev chose; of the best rate where none beat the head's start."""
    row = next(row for row in fit.rows if row["head"] == head)
    points = [(rate, epoch, dev) for rate, epoch, _, dev in fit.curves[head] if dev is not None]
    if not points:
        return None
    rate = row["learning_rate"] or min(points, key=lambda point: point[2])[0]
    ours = [(epoch, dev) for at, epoch, dev in points if at == rate]
    epochs = [epoch for epoch, _ in ours]
    return Series(
        name=name_of(fit.backbone, head, fit.protocol),
        x=tuple(map(float, epochs)),
        y=tuple(float(dev) for _, dev in ours),
        tone=tone,
        dash=_DASH[head],
        chosen=epochs.index(row["epoch"]) if row["epoch"] in epochs else None,
    )


def _shown(row: StudyRow) -> str:
    """A row's name, what it is equal to, and whether dev chose it."""
    same = f" = {row.same_as}" if row.same_as else ""
    return row.name + same + (" ★" if row.best else "")


def _legend(panels: Sequence[Panel]) -> tuple[Series, ...]:
    return tuple({s.name: s for panel in panels for s in panel.series}.values())


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
