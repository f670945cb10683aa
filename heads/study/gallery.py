"""Which photos a page shows and why, and thumbnails of them.

ranked(results, fit)   Figure 1: rows are quantiles of the prediction, columns near-equal ones
worst(results, fit)    Figures 2 and 3: the test photos with the highest log-loss
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from heads.fitting import metrics
from heads.study.kept import KeptFit
from heads.study.results import Results
from heads.study.rows import name_of, title_of

ROWS, COLUMNS, WORST = 8, 8, 8
_MAX_PIXELS = 120_000_000
_QUALITY = 72


@dataclass(frozen=True, slots=True)
class Picture:
    """One test photo. truth, prediction: as the caption says them; why: the reason it is shown.

    photo_id: for who looks it up; it is never printed.
    """

    photo_id: str
    path: Path | None
    truth: str
    prediction: str
    why: str


@dataclass(frozen=True, slots=True)
class Strip:
    """A row of pictures. title: what they have in common."""

    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Strips of photos under one title. name: of its file; tab: its short name among others.

    ranked: by prediction, as in Figure 1; else the worst first. fit: whose predictions are shown,
        or where folds chose among several fits, the one with the lowest dev loss.
    """

    name: str
    ranked: bool
    tab: str
    title: str
    caption: str
    strips: tuple[Strip, ...]
    fit: KeptFit


def ranked(results: Results, fit: KeptFit, *, rows: int = ROWS, columns: int = COLUMNS) -> Gallery:
    """Test photos by predicted value, highest first; `rows` quantiles of `columns` photos each."""
    head = fit.chosen_head()
    guess = np.array(fit.predictions[head])
    order = np.argsort(-guess, kind="stable")
    columns = min(columns, len(order))
    rows = max(1, min(rows, len(order) // columns))
    words = fit.target.replace("_", " ")
    strips = []
    for row in range(rows):
        middle = (row + 0.5) / rows * len(order)
        first = int(np.clip(round(middle - columns / 2), 0, len(order) - columns))
        chosen = order[first : first + columns]
        quantile = 1 - (row + 0.5) / rows
        title = f"about {np.median(guess[chosen]):.2f}"
        strips.append(
            Strip(
                title,
                tuple(
                    Picture(
                        fit.ids[i],
                        results.photos.get(fit.ids[i]),
                        f"{fit.truth[i]:.2f} {results.captions.get(fit.ids[i], '')}".strip(),
                        f"{guess[i]:.2f}",
                        f"near the {100 * quantile:.0f} % quantile of the predictions",
                    )
                    for i in chosen
                ),
            )
        )
    return Gallery(
        ranked=True,
        name=f"figure1_{fit.subset}_{fit.target}",
        tab=fit.subset,
        title=f"Figure 1. Test photos ranked by predicted {words} ({fit.subset})",
        caption=(
            f"Predictions of {name_of(fit.backbone, head, fit.protocol)}, highest at the top. "
            "Rows are quantiles of the prediction, columns are photos of nearly the same "
            f"prediction; under each photo its true {words}"
            + (" and gender." if results.captions else ".")
        ),
        strips=tuple(strips),
        fit=fit if fit.key else _lowest(results.fits_of(fit.target, fit.subset)),
    )


def worst(results: Results, fit: KeptFit, *, number: int = 2, n: int = WORST) -> Gallery:
    """The test photos that a classifier was most wrong about, worst first."""
    head = fit.chosen_head()
    guess = np.array(fit.predictions[head])
    loss = metrics.row_log_loss(np.array(fit.truth), guess)
    pictures = []
    for i in np.argsort(-loss, kind="stable")[:n]:
        said = int(guess[i] > 0.5)
        sure = guess[i] if said else 1 - guess[i]
        pictures.append(
            Picture(
                fit.ids[i],
                results.photos.get(fit.ids[i]),
                fit.classes[int(fit.truth[i])],
                f"{fit.classes[said]} {100 * sure:.0f} %",
                f"log-loss {loss[i]:.2f}",
            )
        )
    name = name_of(fit.backbone, head, fit.protocol)
    return Gallery(
        ranked=False,
        name=f"figure{number}_{fit.subset}_{fit.target}_{fit.backbone}",
        tab=f"{fit.backbone}, {fit.subset}",
        title=f"Figure {number}. {title_of(fit.target)}: highest log-loss of {name} ({fit.subset})",
        caption=(
            f"The {len(pictures)} test photos that {name} was most wrong about, worst first: what "
            "it said and how sure it was, the label, and the log-loss. Mislabelled photos and "
            "photos of several people often end up here."
        ),
        strips=(Strip("", tuple(pictures)),),
        fit=fit,
    )


def all_galleries(results: Results) -> list[Gallery]:
    """Figure 1 per subset of each ratio; the next ones per backbone of each binary target."""
    found = []
    for target in results.targets():
        for subset in results.subsets(target):
            best = results.best(target, subset)
            if best.task == "regression":
                found.append(ranked(results, best))
    number = int(bool(found))  # Figure 2 is the first of classes in the paper
    for target in results.targets():
        for fit in _largest(results.fits_of(target)):
            if fit.task == "binary":
                number += 1
                found.append(worst(results, fit, number=number))
    return found


def _lowest(fits: list[KeptFit]) -> KeptFit:
    """The fit with the lowest dev loss, over its rounds."""
    return min(fits, key=lambda fit: float(np.mean(fit.dev_of_choice)))


def _largest(fits: list[KeptFit]) -> list[KeptFit]:
    """One fit per backbone: the first subset it was fitted on, as in the paper."""
    return list({fit.backbone: fit for fit in reversed(fits)}.values())[::-1]


def thumbnail(path: Path | None, *, side: int = 144) -> bytes | None:
    """A square JPEG of a photo's middle, upright; None for an unreadable or oversized photo."""
    if path is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as photo:
                if photo.width * photo.height > _MAX_PIXELS:
                    return None
                photo.draft("RGB", (2 * side, 2 * side))
                small = ImageOps.fit(ImageOps.exif_transpose(photo).convert("RGB"), (side, side))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning):
        return None
    out = io.BytesIO()
    small.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return out.getvalue()
