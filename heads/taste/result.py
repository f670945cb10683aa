"""What a fit of tastes found: the taste, its comparison, and the table that it prints."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedcache.wording import columns, counted
from heads.fitting.result import number
from heads.taste.model import Taste
from heads.taste.ratings import Ratings
from heads.taste.trial import MODELS, SEES_OTHERS, SHOWN, TASTE, Trial

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class TasteFit:
    """What a fit found. `print(fit)` is the table; `fit.save(folder)` keeps the taste.

    taste: learned from every viewer's ratings of train photos.  trial: how well that goes with
    viewers and photos that were not seen.  chosen: what dev chose.
    """

    ratings: Ratings
    taste: Taste
    trial: Trial
    chosen: dict[str, Any]
    seconds: float
    writer: "Callable[[TasteFit, Path], Path]" = field(repr=False)

    def save(self, folder: str | Path) -> Path:
        """Write the taste to a folder, in place of an earlier one there; returns the folder."""
        return self.writer(self, Path(folder))

    def rows(self) -> list[dict[str, Any]]:
        """The table, see `rows_of`."""
        return rows_of(self.trial)

    def document(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "rows": self.rows(),
            "raters": len(self.ratings.raters),
            "n": self.ratings.n,
            "dropped": dict(self.ratings.provenance.dropped),
            "chosen": self.chosen,
            "notes": list(self.ratings.notes),
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        names = [_name(shown) for shown in SHOWN]
        lines = [["mse by ratings shown", *names]]
        viewers: list[str] = []
        for row in self.rows():
            cells = [_joined(printed(row, name)) for name in names]
            mark = " *" if row["model"] in SEES_OTHERS else ""
            title = f"taste - {row['versus']}" if "versus" in row else f"{row['model']}{mark}"
            lines.append([title, *cells])
            viewers = viewers or ["viewers", *(str(row["viewers"][n]) for n in names)]
        n = self.ratings.n
        about = (
            f"{counted(len(self.ratings.raters), 'rater')}; "
            + ", ".join(
                f"{counted(count['photos'], f'{side} photo')} "
                f"({counted(count['ratings'], 'rating')})"
                for side, count in n.items()
            )
            + f"; rank {self.chosen['rank']}; {self.seconds:.1f} s"
        )
        dropped = self.ratings.provenance.dropped
        left_out = ", ".join(f"{n:,} with {why}" for why, n in dropped.items())
        return "\n".join(
            [
                about,
                *([f"ratings left out: {left_out}"] if left_out else []),
                *columns([*lines[: len(MODELS) + 1], viewers, *lines[len(MODELS) + 1 :]]),
                "* uses other viewers' ratings of the same photo, which a new photo does not have",
                "Every viewer counts once; intervals (95 %) are over viewers, for these photos.",
            ]
        )


def rows_of(trial: Trial) -> list[dict[str, Any]]:
    """The table of a trial: errors, then the differences of the taste from each other model."""
    found = []
    for model in MODELS:
        figures = {_name(shown): trial.figure(model, shown) for shown in SHOWN}
        row = {"model": model, "metric": "mse", **_cells(figures)}
        row["viewers"] = {name: figure.n_viewers for name, figure in figures.items()}
        row["sees_other_ratings_of_the_photo"] = model in SEES_OTHERS
        found.append(row)
    for other in MODELS[1:]:
        gaps = {_name(shown): trial.difference(TASTE, other, shown) for shown in SHOWN}
        row = {"model": TASTE, "metric": "mse difference", "versus": other, **_cells(gaps)}
        row["p"] = {name: plain(gap.p) for name, gap in gaps.items()}
        found.append(row)
    return found


def _name(shown: int | None) -> str:
    return ALL if shown is None else str(shown)


def _cells(figures: dict[str, Any]) -> dict[str, Any]:
    """Value and interval of all ratings, and of each number of them."""
    whole = figures[ALL]
    return {
        "value": plain(whole.value),
        "low": plain(whole.low),
        "high": plain(whole.high),
        "by_ratings": {name: plain(figure.value) for name, figure in figures.items()},
        "by_ratings_interval": {
            name: [plain(figure.low), plain(figure.high)] for name, figure in figures.items()
        },
    }


def plain(value: float) -> float | None:
    """A number for JSON: None where it is not defined."""
    return float(value) if math.isfinite(value) else None


def printed(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A figure of a row and the ends of its interval, as tables print them.

    name: how many ratings are shown. () for no figure, (figure,) where there is no interval.
    """
    value, (low, high) = row["by_ratings"][name], row["by_ratings_interval"][name]
    if value is None:
        return ()
    if low is None or high is None or low == high:
        return (number(value),)
    return number(value), number(low), number(high)


def _joined(texts: tuple[str, ...]) -> str:
    value, *ends = texts or ("-",)
    return f"{value} ({' to '.join(ends)})" if ends else value
