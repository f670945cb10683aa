"""A study's page and files: report.html, tables, figures, results.json.

    write(results, "out")                  the page with thumbnails inside it
    write(results, "out", photos=False)    one that shows no photo and can be shared freely

The page is one file that asks the network for nothing; it works without scripts, which only add
sorting and tabs. No id and no path of a photo is on it.
"""

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from embedcache.wording import counted
from heads.fitting import intervals, metrics
from heads.outputs import Outputs
from heads.study import charts, figures, gallery, tables
from heads.study.kept import KeptFit
from heads.study.results import Results
from heads.study.rows import CONST, Comparison, measured, name_of, said, title_of, within


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One thing a reader should take away. figure: the number in large type, or ""."""

    figure: str
    label: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenReport:
    """Where everything was written."""

    page: Path
    files: tuple[Path, ...]

    def document(self) -> dict[str, Any]:
        return {"report": str(self.page), "files": [str(path) for path in self.files]}

    def __str__(self) -> str:
        return f"wrote {self.page} and {len(self.files)} files beside it"


def write(
    results: Results,
    out: str | os.PathLike[str],
    *,
    photos: bool = True,
    link: bool = False,
) -> WrittenReport:
    """Write report.html, results.json, tables (.md, .csv, .tex) and figures (.png) into `out`.

    What an earlier run wrote there is replaced, and removed where this one does not write it; any
    other file stays, and one whose name is needed gets ours beside it (`report-1.html`).
    photos: show photos of the test set, as thumbnails of about 6 kB.
    link: keep the thumbnails as files in OUT/thumbnails instead of inside the page.
    """
    outputs = Outputs(Path(out))
    shown = tables.all_tables(results.rows(), results.label_counts)
    drawn = charts.all_charts(results)
    galleries = gallery.all_galleries(results) if photos and results.photos else []
    small = _thumbnails(galleries)
    files: list[Path] = []
    for table in shown:
        for suffix, text in (
            (".md", table.as_markdown()),
            (".csv", table.as_csv()),
            (".tex", table.as_latex()),
        ):
            files.append(outputs.write(f"tables/{_slug(table.name)}{suffix}", text.encode()))
    for chart in drawn:
        path = outputs.place(f"figures/{_slug(chart.name)}.png")
        figures.png(chart, path)
        files.append(outputs.wrote(path))
    for one in galleries:
        path = outputs.place(f"figures/{_slug(one.name)}.png")
        figures.gallery_png(one, small, path)
        files.append(outputs.wrote(path))
    document = json.dumps(_plain(results.document()), indent=1) + "\n"
    files.append(outputs.write("results.json", document.encode()))
    sources = _sources(small, outputs, link=link)
    page = _page(results, shown, drawn, galleries, sources)
    written = outputs.write("report.html", page.encode())
    outputs.finish()
    return WrittenReport(page=written, files=tuple(files))


def findings(results: Results) -> list[Headline]:
    """The few sentences that sum a study up, each with the number it rests on."""
    found = []
    for target in results.targets():
        subset = results.subsets(target)[-1]
        found.append(_headline(results, target, subset))
    compared = results.comparisons()
    known = sum(bool(np.isfinite(one.p)) for one in compared)
    found += [_versus(one, simulated=results.simulated, n_comparisons=known) for one in compared]
    return found


def recovery(results: Results) -> list[tuple[str, str, float, float, float, float]]:
    """How much of a simulated truth the best heads found, on test photos.

    Per target and subset: target, subset, rank correlation of the prediction with the truth, of
    the votes with the truth, share of the truth's variance that the prediction explains, and the
    share of the explainable variance of the votes.
    """
    lines = []
    for target in results.targets():
        for subset in results.subsets(target):
            fit = results.best(target, subset)
            if fit.task != "regression" or not results.truth:
                continue
            truth = np.array([results.truth.get(name, np.nan) for name in fit.ids])
            known = np.isfinite(truth)
            guess = np.array(fit.predictions[fit.chosen_head()])[known]
            votes = np.array(fit.truth)[known]
            lines.append(
                (
                    target,
                    subset,
                    metrics.rank_correlation(truth[known], guess),
                    metrics.rank_correlation(truth[known], votes),
                    metrics.r2(truth[known], guess),
                    _or_nan(fit.row(fit.chosen_head()).get("explainable_share")),
                )
            )
    return lines


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
                text=f"{name} is right on {_percent(row['value'])} of {n:,} test photos, the "
                f"constant on {_percent(constant['value'])}. {_too_few(fit.sample().n_groups)}, "
                f"so nothing follows for other photos.",
            )
        return Headline(
            figure=f"{100 * row['value']:.1f} %",
            label=f"{title_of(target)} predicted correctly on {subset}",
            text=f"{name} on {n:,} test photos, 95 % interval "
            f"{_percent(row['low'])} to {_percent(row['high'])}; the constant gets "
            f"{_percent(constant['value'])}.",
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


def _versus(c: Comparison, *, simulated: bool, n_comparisons: int) -> Headline:
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


def _page(
    results: Results,
    shown: Sequence[tables.PrintedTable],
    drawn: Sequence[charts.Chart],
    galleries: Sequence[gallery.Gallery],
    sources: dict[Path, str],
) -> str:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = _percent
    environment.filters["title_of"] = title_of
    folder = resources.files("heads.study").joinpath("templates")
    names = ("page.css", "page.js", "page.html")
    style, script, template = (folder.joinpath(name).read_text("utf-8") for name in names)
    by_target = {
        target: [chart for chart in drawn if chart.name.endswith(f"_{target}")]
        for target in results.targets()
    }
    text = environment.from_string(template).render(
        results=results,
        style=Markup(style),
        script=Markup(script),
        findings=findings(results),
        data_tables=[t for t in shown if t.name in ("breakdown", "table1")],
        tables=dict(zip(results.targets(), shown[-len(results.targets()) :], strict=True)),
        charts=by_target,
        svg=lambda panel, alt: Markup(figures.svg(panel, alt=alt)),
        ranked=[one for one in galleries if one.ranked],
        worst=[one for one in galleries if not one.ranked],
        source=lambda path: sources.get(path, "") if path else "",
        rows=results.rows(),
        recovery=recovery(results),
        notes={
            f"{fit.target}, {fit.subset}, {fit.backbone}, {fit.protocol}": fit.notes
            for fit in results.fits
            if fit.notes
        },
        study=_toml(results.study),
        commands=_commands(results),
    )
    return re.sub(r"\n\s*\n+", "\n", text)


def _commands(results: Results) -> str:
    """The study's steps one by one, for the first of its rows."""
    study = results.study
    id_column = study.get("id_column", "user_id")
    table = study.get("labels", "labels.csv")
    lines = []
    if "users" in study:
        lines.append(
            f"embedcache labels --users {study['users']} --swipes {study['swipes']} --out {table}"
        )
    together = [
        [backbone["name"]] if isinstance(backbone["name"], str) else backbone["name"]
        for backbone in study["backbone"]
    ]
    names = list(dict.fromkeys(name for several in together for name in several))
    first = results.fits[0]
    options = f" --protocol {first.protocol}" + (f" --folds {first.folds}" if first.folds else "")
    options += "".join(f" --by {column}" for column in study.get("report_by") or ())
    if computed := [name for name in names if name not in results.imported]:
        lines.append(
            f"embedcache extract {table} --id-column {id_column} --cache photos.cache \\\n  "
            + " ".join(f"--backbone {name}" for name in computed)
        )
    lines += [f"embedcache import photos.cache VECTORS --name {name}" for name in results.imported]
    first_names = " ".join(f"--backbone {name}" for name in together[0])
    for target in study["target"]:
        weight = f" --weight {target['weight']}" if target.get("weight") else ""
        lines.append(
            f"embedcache fit-head --cache photos.cache {first_names} --labels {table} \\\n"
            f"  --target {target['column']}{weight} --seed {study.get('seed', 0)}{options} "
            f"--out head_{_slug(target['column'])}"
        )
    return "\n".join(lines)


def _toml(document: Mapping[str, Any]) -> str:
    """The study as the file that `embedcache study` reads."""

    def value(item: Any) -> str:
        if isinstance(item, list | tuple):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item, ensure_ascii=False)

    def lines(items: Mapping[str, Any]) -> list[str]:
        return [f"{key} = {value(item)}" for key, item in items.items() if item not in (None, "")]

    tables_of = {
        key: item for key, item in document.items() if key in ("target", "subset", "backbone")
    }
    found = lines({k: v for k, v in document.items() if k not in tables_of and k != "fit"})
    for key, items in tables_of.items():
        for item in items:
            found += ["", f"[[{key}]]", *lines(item)]
    if document.get("fit"):
        found += ["", "[fit]", *lines(document["fit"])]
    return "\n".join(found)


def _thumbnails(galleries: Sequence[gallery.Gallery]) -> dict[Path, bytes]:
    paths = {
        picture.path
        for one in galleries
        for strip in one.strips
        for picture in strip.pictures
        if picture.path
    }
    made = ((path, gallery.thumbnail(path)) for path in sorted(paths))
    return {path: small for path, small in made if small is not None}


def _sources(small: dict[Path, bytes], outputs: Outputs, *, link: bool) -> dict[Path, str]:
    """What stands in src: data inside the page, or files numbered without a name."""
    if not link:
        return {
            path: "data:image/jpeg;base64," + base64.b64encode(data).decode()
            for path, data in small.items()
        }
    sources = {}
    for number, (path, data) in enumerate(small.items()):
        written = outputs.write(f"thumbnails/{number:04d}.jpg", data)
        sources[path] = f"thumbnails/{written.name}"
    return sources


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_")


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
