"""Apply a saved head to photos, through the cache that holds their vectors."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import HeadError, SpecMismatch
from embedcache.spec import Spec
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.store.side_by_side import SideBySide
from embedcache.wording import counted
from heads.head import Head, instead_of_constant, parts_of
from heads.saved import load

_BEGINNING = b"photo_id,prediction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Per photo id, in the order asked for: values (n,) or (n, k), NaN where there is no vector.

    reasons: why, per photo; None where there is a prediction.
    """

    ids: tuple[str, ...]
    values: NDArray[np.float64]
    found: NDArray[np.bool_]
    reasons: tuple[str | None, ...]
    head: Head

    def document(self) -> dict[str, Any]:
        """Counts and, for the photos without a prediction, why."""
        return {
            "head": self.head.name,
            "photos": len(self.ids),
            "predicted": int(self.found.sum()),
            "missing": {
                i: reason for i, reason in zip(self.ids, self.reasons, strict=True) if reason
            },
        }

    def best_first(self) -> "Predictions":
        """The same photos with the highest value first, and those without one last.

        Photos of one value stay in their order. HeadError as `check_sortable` has it.
        """
        check_sortable(self.head)
        order = np.argsort(-self.values, kind="stable").tolist()  # NaN goes last
        return replace(
            self,
            ids=tuple(self.ids[i] for i in order),
            values=self.values[order],
            found=self.found[order],
            reasons=tuple(self.reasons[i] for i in order),
        )

    def write(self, path: str | Path) -> None:
        """Write a table whole or not at all: photo_id, prediction; empty where there is none.

        path: .csv, .parquet, or "-" for CSV on stdout.
        A head of several outputs gets a column each: prediction_CLASS, the probability P(CLASS), or
        prediction_TARGET. Of two classes there is P(second), called prediction. A classifier also
        gets the likeliest class, in the column class.
        """
        check_out(path)
        try:
            if str(path) == "-":
                sys.stdout.write(self._csv())
            elif Path(path).suffix.lower() == ".parquet":
                disk.replace(Path(path), self._parquet())
            else:
                disk.replace(Path(path), self._csv().encode())
        except OSError as error:
            raise HeadError(f"cannot write {path}: {error.strerror}") from None

    def warnings(self, backbone: str, *, imported: bool) -> list[str]:
        """What makes them useless, in sentences. imported: no network gives such vectors."""
        found = []
        if self.head.name == "const":
            found.append(
                "const was the best head on dev: every prediction is the same. "
                + instead_of_constant(self.head)
            )
        if not self.found.any():
            how = ": bring them with 'embedcache import'" if imported else ""
            n = len(self.ids)
            none = "the photo has no" if n == 1 else f"none of the {n:,} photos has a"
            found.append(f"{none} vector of {backbone}{how}")
        return found

    @property
    def likeliest(self) -> tuple[str | None, ...]:
        """The class of each photo, None without a prediction; empty for a regression."""
        classes = self.head.classes
        if not classes:
            return ()
        filled = np.where(self.found[:, None], np.atleast_2d(self.values.T).T, 0)
        chosen = filled.argmax(1) if self.values.ndim == 2 else (filled[:, 0] >= 0.5).astype(int)
        return tuple(
            classes[k] if ok else None for k, ok in zip(chosen.tolist(), self.found, strict=True)
        )

    def _columns(self) -> list[str]:
        if self.values.ndim == 1:
            return ["prediction"]
        return _columns_of(self.head)

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        kinds = self.likeliest
        writer.writerow(["photo_id", *self._columns(), *["class"] * bool(kinds)])
        for i, (name, values) in enumerate(
            zip(self.ids, np.atleast_2d(self.values.T).T, strict=True)
        ):
            shown = ("" if np.isnan(value) else f"{value:.6g}" for value in values)
            writer.writerow([name, *shown, *([kinds[i]] if kinds else [])])
        return text.getvalue()

    def _parquet(self) -> bytes:
        import polars as pl

        values = np.atleast_2d(self.values.T).T
        columns = {"photo_id": pl.Series(self.ids, dtype=pl.String)}
        for k, name in enumerate(self._columns()):
            columns[name] = pl.Series(values[:, k], dtype=pl.Float64).fill_nan(None)
        if self.likeliest:
            columns["class"] = pl.Series(self.likeliest, dtype=pl.String)
        packed = io.BytesIO()
        pl.DataFrame(columns).write_parquet(packed)
        return packed.getvalue()

    def __str__(self) -> str:
        lost = int((~self.found).sum())
        done = counted(int(self.found.sum()), "photo")
        line = f"{done} predicted with the {self.head.name} head"
        if lost:
            why = Counter(filter(None, self.reasons)).most_common()
            line += f", {lost:,} without a vector: "
            line += ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in why)
        if self.head.classes:
            names = self.head.classes if self.values.ndim == 2 else self.head.classes[1:]
            meant = (f"{c} is P({n})" for c, n in zip(self._columns(), names, strict=True))
            line += f"; column {', '.join(meant)}"
        return line


def _columns_of(head: Head) -> list[str]:
    """The columns of a head with several outputs."""
    return [f"prediction_{name}" for name in head.classes or head.card["target"].split(",")]


def check_sortable(head: Head) -> None:
    """HeadError for a head whose predictions have no order: it gives several scores."""
    if head.outputs > 1:
        raise HeadError(
            f"this head gives {head.outputs} scores a photo: {', '.join(_columns_of(head))}. Sort "
            "the predictions by one of these columns yourself"
        )


def check_out(path: str | Path) -> None:
    """Refuse, before any work, a path that predictions cannot be written to."""
    if str(path) == "-":
        return
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise HeadError(
            f"predictions are a .csv or .parquet file, or - for stdout; got {path.name!r}"
        )
    if not path.parent.is_dir():
        raise HeadError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not _holds_predictions(path):
        raise HeadError(f"{path} holds something other than predictions: name another file")


def _holds_predictions(path: Path) -> bool:
    """Whether a file may be replaced: it is empty, or a table that `Predictions.write` made."""
    try:
        if not path.stat().st_size:
            return True
        if path.suffix.lower() == ".csv":
            with path.open("rb") as file:
                return file.read(len(_BEGINNING)) == _BEGINNING
        import polars as pl

        names = list(pl.read_parquet_schema(path))
    except Exception:  # whatever polars raises on what is no Parquet file
        return False
    return names[:1] == ["photo_id"] and any(name.startswith("prediction") for name in names)


def predict(
    head_dir: str | Path | Head,
    ids: Sequence[str],
    cache: Cache,
    *,
    scope: str | None = None,
    embed: Callable[[Sequence[str]], None] | None = None,
    why: Callable[[str], str] = lambda _id: "not in the cache",
) -> Predictions:
    """Predict for photos by id.

    head_dir: a folder that `fit-head` wrote, or a head that was read before.
    cache: an open `embedcache.store.Cache`. embed: called with the ids that have no vector yet,
        to compute them into the cache; the command line hands in stage one. why: why the cache
        does not know a photo, by its id.
    HeadError or SpecMismatch when the cache's vectors for this backbone are not those that the head
    was fitted on.
    """
    head = head_dir if isinstance(head_dir, Head) else load(head_dir)
    if not head.card.get("spec_digest"):
        raise HeadError("this head was fitted on an array: use heads.load(...).predict(vectors)")
    asked = list(ids)
    space = _space(head, cache, may_be_missing=embed is not None)
    if embed is not None:
        lacking = asked if space is None else _lacking(space, cache, asked, scope)
        if lacking:
            embed(lacking)
            space = _space(head, cache, may_be_missing=False)
    assert space is not None
    digests, known = cache.digests_of(asked, scope=scope)
    shape = (len(asked), head.outputs) if head.outputs > 1 else (len(asked),)
    values, found = np.full(shape, np.nan), np.zeros(len(asked), bool)
    vectors, found[known] = space.read(digests[known])
    values[found] = head.predict(vectors[found[known]])
    reasons = [None if ok else why(name) for name, ok in zip(asked, known.tolist(), strict=True)]
    lost = np.flatnonzero(known & ~found)
    for place, reason in zip(lost, space.reasons(digests[lost]) if lost.size else [], strict=True):
        reasons[place] = reason or space.absent
    return Predictions(
        ids=tuple(asked), values=values, found=found, reasons=tuple(reasons), head=head
    )


def _space(head: Head, cache: Cache, *, may_be_missing: bool) -> SideBySide | None:
    """The cache's vectors of exactly the head's specs; None when they may be missing."""
    held = {space.digest: space for space in cache.spaces()}
    parts = parts_of(head.card)
    if all(digest in held for _, digest, _ in parts):
        spaces = tuple(held[digest] for _, digest, _ in parts)
        return SideBySide(spaces, tuple(name for name, _, _ in parts))
    if may_be_missing:
        return None
    backbone, wanted, spec = next(part for part in parts if part[1] not in held)
    other = cache.find(backbone)
    gaps = Spec.parse(spec).difference(other.spec)
    raise SpecMismatch(
        f"this head was fitted on {backbone}#{wanted[:8]}; {cache.path.name} holds "
        f"{backbone}#{other.digest[:8]}. Different (head, cache): {'; '.join(gaps)}. "
        f"Fit a head on the cache's vectors, or use the cache that the head came from"
    )


def _lacking(space: SideBySide, cache: Cache, ids: list[str], scope: str | None) -> list[str]:
    digests, known = cache.digests_of(ids, scope=scope)
    held = known & (space.status(digests) == OK)
    return [name for name, ok in zip(ids, held, strict=True) if not ok]
