"""The paper's tables as data, and the four ways to write one: text, Markdown, CSV and LaTeX.

table_of(rows, "like_ratio")      Table 2: heads down, subsets across, best on dev in bold
table1(counts)                    Table 1 from the document of `embedcache labels`
breakdown(counts)                 section 3.4
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heads.fitting.judge import BY
from heads.fitting.result import number
from heads.study.rows import CONST, POOLED, StudyRow, title_of

WARM = " (warm)"
BLOCK = "Warm heads: they start as the linear head"

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"\\": r"\textbackslash{}", "→": r"$\to$", "–": "--"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a table: text, what it sorts by, its interval, and whether it is the best."""

    text: str = "-"
    value: float | None = None
    low: str = ""
    high: str = ""
    best: bool = False

    def with_interval(self) -> str:
        return f"{self.text} [{self.low}, {self.high}]" if self.low else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedTable:
    """A titled grid. name: of its files. head: one title per column, the row titles' first."""

    name: str
    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def as_text(self) -> str:
        lines = [
            self.head,
            *([c.with_interval() + " *" * c.best for c in row] for row in self.rows),
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        body = (
            "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
        marked = any(cell.best for row in self.rows for cell in row)
        return "\n".join([self.title, *body, *["* what dev chose"] * marked, ""])

    def as_markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        def shown(cell: Cell) -> str:
            text = f"**{cell.text}**" if cell.best else cell.text
            return f"{text} [{cell.low}, {cell.high}]" if cell.low else text

        rule = "|" + "|".join([" --- ", *[" ---: "] * (len(self.head) - 1)]) + "|"
        rows = [line([shown(cell) for cell in row]) for row in self.rows]
        return "\n".join(
            [f"**{self.title}**", "", line(self.head), rule, *rows, "", self.caption, ""]
        )

    def as_csv(self) -> str:
        """One line per row; intervals and the mark of the best in columns of their own."""
        intervals = any(cell.low for row in self.rows for cell in row)
        extra = ("low", "high", "best") if intervals else ()
        head = [self.head[0]]
        for title in self.head[1:]:
            head += [title, *(f"{title} {name}" for name in extra)]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(head)
        for row in self.rows:
            line = [row[0].text]
            for cell in row[1:]:
                text = cell.text.replace(",", "") if cell.value is not None else ""
                line += [text, *((cell.low, cell.high, int(cell.best)) if extra else ())]
            writer.writerow(line)
        return out.getvalue()

    def as_latex(self) -> str:
        """A `tabular` in a `table`, with no package needed."""

        def shown(cell: Cell) -> str:
            text = cell.text.translate(_LATEX)
            text = rf"\textbf{{{text}}}" if cell.best else text
            return rf"{text} {{\small [{cell.low}, {cell.high}]}}" if cell.low else text

        title = re.sub(r"^Table \d+\. ", "", self.title)  # LaTeX counts its own tables
        lines = [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{title.translate(_LATEX)} {self.caption.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}",
            r"\hline",
            " & ".join(title.translate(_LATEX) for title in self.head) + r" \\",
            r"\hline",
            *(" & ".join(shown(cell) for cell in row) + r" \\" for row in self.rows),
            r"\hline",
            r"\end{tabular}",
            rf"\label{{tab:{self.name}}}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


def all_tables(rows: Sequence[StudyRow], counts: Mapping[str, Any] | None) -> list[PrintedTable]:
    """Every table of the study, in the order of the paper."""
    first = [breakdown(counts), table1(counts)] if counts else []
    return first + [
        table_of(rows, target, paper=bool(counts))
        for target in dict.fromkeys(row.target for row in rows)
    ]


def table_of(rows: Sequence[StudyRow], target: str, *, paper: bool = True) -> PrintedTable:
    """A target's table: constants, each backbone's heads as in the paper, then the warm ones.

    A column per subset. Warm heads are a block of their own: depths compare within a block.
    paper: number it 2 or 3, by the metric, as beside the paper's Table 1; otherwise targets count.
    """
    number = 1 + [*dict.fromkeys(row.target for row in rows)].index(target)
    rows = [row for row in rows if row.target == target]
    subsets = list(dict.fromkeys(row.subset for row in rows))
    at = {(row.name, row.subset): row for row in reversed(rows)}
    constants = [r.name for r in rows if r.head == CONST] + [
        r.name for r in rows if r.head.startswith(BY)
    ]
    warm = [r.name for r in rows if r.name.endswith(WARM) and r.backbone not in POOLED]
    pooled = dict.fromkeys(r.name for r in rows if r.backbone in POOLED)
    names = dict.fromkeys(constants)
    names |= dict.fromkeys(r.name for r in rows if r.name not in {*warm, *pooled})
    lines = [(Cell(name), *(_cell(at.get((name, s))) for s in subsets)) for name in names]
    if warm:
        if any(row.protocol == "paper" for row in rows):
            lines.append((Cell(BLOCK), *(Cell("") for _ in subsets)))
        for name in dict.fromkeys(warm):
            lines.append((Cell(name), *(_cell(at.get((name, s))) for s in subsets)))
    lines += [(Cell(name), *(_cell(at.get((name, s))) for s in subsets)) for name in pooled]
    accuracy = rows[0].metric == "accuracy"
    if paper:
        number = 3 if accuracy else 2
    kind = "classification accuracy on test, %." if accuracy else "MSE losses on test."
    return PrintedTable(
        name=f"table{number}_{_slug(target)}",
        title=f"Table {number}. {title_of(target)}: {kind}",
        caption=_caption(rows, subsets, accuracy=accuracy),
        head=("Model", *subsets),
        rows=tuple(lines),
    )


def _caption(rows: Sequence[StudyRow], subsets: Sequence[str], *, accuracy: bool) -> str:
    first = {subset: next(row for row in rows if row.subset == subset) for subset in subsets}
    weighted = " weighted by swipes" if rows[0].noise_floor is not None and not accuracy else ""
    floors = [
        f"{subset} {row.noise_floor:.4f}"
        for subset, row in first.items()
        if row.noise_floor is not None
    ]
    tests = ", ".join(f"{subset} {row.n_test:,}" for subset, row in first.items())
    folds = {row.folds for row in first.values()}
    unknown = any(row.low is None for row in rows)
    several = any(row.backbone in POOLED for row in rows)
    where = (
        "test photos chose nothing"
        if folds == {None}
        else "in each fold anew, so that no photo chose what it tests"
    )
    pooled = f" by {'/'.join(str(k) for k in folds if k)} folds" if folds != {None} else ""
    return (
        f"{'Share of photos classified right' if accuracy else 'Mean squared error' + weighted}"
        f", with 95 % intervals over photos (over persons where the study names them){pooled}. "
        f"Bold: what dev chose, of each backbone and "
        f"protocol the simplest head within one standard error of the lowest dev figure, and of "
        f"these the one with the lowest ({where}). "
        f"{'Where folds chose different vectors, the last row is what they chose. ' * several}"
        f'"= ridge" or "= logistic": a head that never left its linear start; "via sigmoid": with '
        f"figures of its own, because the sigmoid of ratios bends the line a little. "
        f"Test photos: {tests}."
        + (" A figure without an interval: too few photos or persons for one." if unknown else "")
        + (f" Noise floor of finite swipes: {', '.join(floors)}." if floors else "")
    )


def table1(counts: Mapping[str, Any]) -> PrintedTable:
    """Table 1: senders down, recipients across."""
    rates: Mapping[str, Mapping[str, float | None]] = counts["table1"]
    recipients = list(next(iter(rates.values()), {}))
    return PrintedTable(
        name="table1",
        title="Table 1. Like ratios by sender's and recipient's gender.",
        caption="Likes / swipes, pooled over all kept swipes of senders of known gender.",
        head=("", *(f"→ {name}" for name in recipients)),
        rows=tuple(
            (
                Cell(f"{sender} →"),
                *(Cell(f"{rate:.3f}", rate) if (rate := row[r]) is not None else Cell()
                  for r in recipients),
            )
            for sender, row in rates.items()
        ),
    )  # fmt: skip


def breakdown(counts: Mapping[str, Any]) -> PrintedTable:
    """Section 3.4: users and swipes by gender, before and after the filters."""
    groups: Mapping[str, Mapping[str, int]] = counts["by_gender"]
    lines = (
        ("Users", "users", counts["users"]),
        ("Users with a photo", "users_with_photo", counts["users_with_photo"]),
        ("Users with a label", "users_labelled", counts["users_labelled"]),
        ("Swipes made", "swipes_made", counts["swipes"]),
        ("Swipes made, kept", "swipes_made_kept", counts["swipes_kept"]),
        ("Swipes received", "swipes_received", counts["swipes"]),
        ("Swipes received, kept", "swipes_received_kept", counts["swipes_kept"]),
    )
    removed = ", ".join(
        f"{n:,} {name.replace('_', ' ')}" for name, n in counts["swipes_removed"].items() if n
    )
    return PrintedTable(
        name="breakdown",
        title="Dataset breakdown by gender.",
        caption=f"Swipes removed: {removed or 'none'}.",
        head=("", "All", *groups),
        rows=tuple(
            (
                Cell(title),
                Cell(f"{total:,}", total),
                *(Cell(f"{group[key]:,}", group[key]) for group in groups.values()),
            )
            for title, key, total in lines
        ),
    )


def _cell(row: StudyRow | None) -> Cell:
    if row is None:
        return Cell()

    def shown(value: float | None) -> str:
        if value is None:
            return ""
        return f"{100 * value:.1f}" if row.metric == "accuracy" else number(value)

    if row.same_as:
        return Cell(f"= {row.same_as}", row.value, best=row.best)
    return Cell(shown(row.value), row.value, shown(row.low), shown(row.high), row.best)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())
