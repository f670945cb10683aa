"""Apply a saved head to photos, through the cache that holds their vectors."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import HeadError, SpecMismatch
from embedcache.spec import Spec
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.store.space import Space
from heads.head import Head
from heads.saved import load


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

    def write(self, path: str | Path) -> None:
        """Write a CSV at once or not at all: photo_id, prediction; empty where there is none.

        A head of several outputs gets a column each: prediction_CLASS or prediction_TARGET.
        """
        path = Path(path)
        columns = ["prediction"]
        if self.values.ndim == 2:
            names = self.head.classes or self.head.card["target"].split(",")
            columns = [f"prediction_{name}" for name in names]
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["photo_id", *columns])
        for name, values in zip(self.ids, np.atleast_2d(self.values.T).T, strict=True):
            shown = ("" if np.isnan(value) else f"{value:.6g}" for value in values)
            writer.writerow([name, *shown])
        try:
            disk.replace(path, text.getvalue().encode())
        except OSError as error:
            raise HeadError(f"cannot write {path}: {error.strerror}") from None

    def __str__(self) -> str:
        lost = int((~self.found).sum())
        line = f"{int(self.found.sum())} photos predicted with the {self.head.name} head"
        return line + (f", {lost} without a vector" if lost else "")


def predict(
    head_dir: str | Path,
    ids: Sequence[str],
    cache: Cache,
    *,
    scope: str | None = None,
    embed: Callable[[Sequence[str]], None] | None = None,
) -> Predictions:
    """Predict for photos by id.

    cache: an open `embedcache.store.Cache`. embed: called with the ids that have no vector yet,
        to compute them into the cache; the command line hands in stage one.
    HeadError or SpecMismatch when the cache's vectors for this backbone are not those that the head
    was fitted on.
    """
    head = load(head_dir)
    if not head.card.get("spec"):
        raise HeadError(f"{head_dir} was fitted on an array: use heads.load(...).predict(vectors)")
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
    reasons: list[str | None] = [None if ok else "not in the cache" for ok in known]
    lost = np.flatnonzero(known & ~found)
    for place, reason in zip(lost, space.reasons(digests[lost]) if lost.size else [], strict=True):
        reasons[place] = reason or "not embedded yet"
    return Predictions(
        ids=tuple(asked), values=values, found=found, reasons=tuple(reasons), head=head
    )


def _space(head: Head, cache: Cache, *, may_be_missing: bool) -> Space | None:
    """The cache's vectors of exactly the head's spec; None when they may be missing."""
    backbone, wanted = head.card["backbone"], head.card["spec_digest"]
    for space in cache.spaces():
        if space.digest == wanted:
            return space
    if may_be_missing:
        return None
    other = cache.find(backbone)
    gaps = Spec.parse(head.card["spec"]).difference(other.spec)
    raise SpecMismatch(
        f"this head was fitted on {backbone}#{wanted[:8]}; {cache.path.name} holds "
        f"{backbone}#{other.digest[:8]}. Different (head, cache): {'; '.join(gaps)}. "
        f"Fit a head on the cache's vectors, or use the cache that the head came from"
    )


def _lacking(space: Space, cache: Cache, ids: list[str], scope: str | None) -> list[str]:
    digests, known = cache.digests_of(ids, scope=scope)
    held = known & (space.status(digests) == OK)
    return [name for name, ok in zip(ids, held, strict=True) if not ok]
