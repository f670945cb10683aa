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
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from embedcache.wording import counted
from heads.fitting import metrics
from heads.outputs import Outputs
from heads.study import charts, figures, gallery, tables
from heads.study.findings import findings, percent
from heads.study.panels import Chart
from heads.study.results import Results
from heads.study.rows import title_of
from heads.study.taste_shown import chart_of_tastes, said_of_tastes, table_of_tastes
from heads.study.why import Why


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenReport:
    """Where everything was written."""

    page: Path
    files: tuple[Path, ...]

    def document(self) -> dict[str, Any]:
        return {"report": str(self.page), "files": [str(path) for path in self.files]}

    def __str__(self) -> str:
        return f"wrote {self.page} and {counted(len(self.files), 'file')} beside it"


def write(
    results: Results,
    out: str | os.PathLike[str],
    *,
    photos: bool = True,
    link: bool = False,
    why: Why | None = None,
) -> WrittenReport:
    """Write report.html, results.json, tables (.md, .csv, .tex) and figures (.png) into `out`.

    What an earlier run wrote there is replaced, and removed where this one does not write it; any
    other file stays, and one whose name is needed gets ours beside it (`report-1.html`).
    photos: show photos of the test set, as thumbnails of about 6 kB.
    why: pictures of why, see `heads.study.why`; they are photos too, and left out with them.
    link: keep the thumbnails as files in OUT/thumbnails instead of inside the page.
    """
    outputs = Outputs(Path(out))
    shown = tables.all_tables(results.rows(), results.label_counts)
    drawn = charts.all_charts(results)
    viewers = [chart_of_tastes(results.tastes)] if results.tastes else []
    tastes = [table_of_tastes(one) for one in results.tastes]
    galleries = gallery.all_galleries(results) if photos and results.photos else []
    small = _thumbnails(galleries)
    why = Why() if why is None or not galleries else why
    files: list[Path] = []
    for table in [*shown, *tastes]:
        for suffix, text in (
            (".md", table.as_markdown()),
            (".csv", table.as_csv()),
            (".tex", table.as_latex()),
        ):
            files.append(outputs.write(f"tables/{_slug(table.name)}{suffix}", text.encode()))
    for chart in [*drawn, *viewers]:
        path = outputs.place(f"figures/{_slug(chart.name)}.png")
        figures.png(chart, path)
        files.append(outputs.wrote(path))
    for one in galleries:
        path = outputs.place(f"figures/{_slug(one.name)}.png")
        figures.gallery_png(one, small, path)
        files.append(outputs.wrote(path))
        if pairs := why.drawn.get(one.name):
            path = outputs.place(f"figures/{_slug(one.name)}_why.png")
            figures.pairs_png([pair.jpeg for pair in pairs], path)
            files.append(outputs.wrote(path))
    document = json.dumps(_plain(results.document()), indent=1) + "\n"
    files.append(outputs.write("results.json", document.encode()))
    sources = _sources(small, outputs, link=link)
    pairs_of = {name: [one.jpeg for one in pairs] for name, pairs in why.drawn.items()}
    pairs_at = _sources(
        {(name, k): jpeg for name, jpegs in pairs_of.items() for k, jpeg in enumerate(jpegs)},
        outputs,
        link=link,
        name="why",
    )
    page = _page(results, shown, drawn, galleries, sources, why=why, pairs_at=pairs_at)
    written = outputs.write("report.html", page.encode())
    outputs.finish()
    return WrittenReport(page=written, files=tuple(files))


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


def _page(
    results: Results,
    shown: Sequence[tables.PrintedTable],
    drawn: Sequence[Chart],
    galleries: Sequence[gallery.Gallery],
    sources: dict[Path, str],
    *,
    why: Why,
    pairs_at: dict[tuple[str, int], str],
) -> str:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
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
        tastes=[(said_of_tastes(one), table_of_tastes(one)) for one in results.tastes],
        viewers=[chart_of_tastes(results.tastes)] if results.tastes else [],
        svg=lambda panel, alt: Markup(figures.svg(panel, alt=alt)),
        ranked=[one for one in galleries if one.ranked],
        worst=[one for one in galleries if not one.ranked],
        source=lambda path: sources.get(path, "") if path else "",
        why=why,
        pair_source=lambda name, k: pairs_at[name, k],
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
    if taste := study.get("taste"):
        given = {"ratings": taste} if isinstance(taste, str) else taste
        options = " ".join(f"--{key.replace('_', '-')} {item}" for key, item in given.items())
        lines.append(
            f"embedcache fit-taste --cache photos.cache --backbone {together[0][0]} \\\n"
            f"  {options} --seed {study.get('seed', 0)} --out taste"
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
    named = [key for key in ("taste", "fit") if isinstance(document.get(key), Mapping)]
    found = lines({k: v for k, v in document.items() if k not in tables_of and k not in named})
    for key, items in tables_of.items():
        for item in items:
            found += ["", f"[[{key}]]", *lines(item)]
    for key in named:
        found += ["", f"[{key}]", *lines(document[key])]
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


def _sources(
    small: Mapping[Any, bytes], outputs: Outputs, *, link: bool, name: str = ""
) -> dict[Any, str]:
    """By the key of each picture what stands in its src: data inside the page, or a file whose name
    is a number and no photo's."""
    if not link:
        return {
            key: "data:image/jpeg;base64," + base64.b64encode(data).decode()
            for key, data in small.items()
        }
    sources = {}
    for number, (key, data) in enumerate(small.items()):
        written = outputs.write(f"thumbnails/{name}{number:04d}.jpg", data)
        sources[key] = f"thumbnails/{written.name}"
    return sources


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


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
