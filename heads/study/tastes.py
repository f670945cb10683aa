"""One taste per viewer in a study: a trial for each backbone, kept like the fits.

    kept, skipped, reused = try_tastes(study, cache, table, out, together, ...)

Every backbone is tried on the same ratings, of the photos that have a vector of all of them. What
is kept is a table of errors: no id of a viewer or photo is in it.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import polars as pl

from embedcache import disk
from embedcache.errors import LabelsError
from embedcache.spec import canonical_json
from embedcache.store.cache import Cache
from heads.documents import read_kept
from heads.study.design import NamedBackbone, RatingsTable, Study, code
from heads.taste import trial
from heads.taste.ratings import Ratings, check, load
from heads.taste.result import rows_of

Counting = Callable[[str], Callable[[int, int], None]]
_MAX_BYTES = 16 << 20


class KeptTaste(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trial of a taste per viewer on the vectors of one backbone.

    rows: as `heads.taste.result.rows_of` has them. raters: viewers. n: photos and ratings per side.
    dropped: ratings left out, by reason. notes: how the table was read. spec: of the vectors, their
    digest. inputs: everything that decides the trial, `key` its digest.
    """

    key: str
    inputs: dict[str, Any]
    backbone: str
    rows: tuple[dict[str, Any], ...]
    raters: int
    n: dict[str, dict[str, int]]
    dropped: dict[str, int]
    notes: tuple[str, ...]
    spec: str
    seconds: float

    @classmethod
    def read(cls, path: Path, *, key: str) -> Self | None:
        """The trial kept at `path`; None when there is none with this key, or it is damaged."""
        found = read_kept(path, cls, limit=_MAX_BYTES)
        return found if found is not None and found.key == key else None

    def row(self, model: str, versus: str | None = None) -> Mapping[str, Any]:
        """The errors of a model, or what the taste differs from another by."""
        return next(
            row for row in self.rows if (row["model"], row.get("versus")) == (model, versus)
        )

    def document(self) -> dict[str, Any]:
        """The JSON object."""
        kept = ("backbone", "rows", "raters", "n", "dropped", "notes", "spec")
        return {name: getattr(self, name) for name in kept} | {"seconds": round(self.seconds, 3)}


def check_ratings(study: Study) -> None:
    """LabelsError where the study's table of ratings cannot be read or lacks a column."""
    if (rated := study.rated) is not None:
        check(study.folder / rated.ratings, **_columns(rated))


def try_tastes(
    study: Study,
    cache: Cache,
    table: pl.DataFrame,
    out: Path,
    together: Mapping[bytes, int],
    *,
    say: Callable[[str], None],
    counting: Counting,
) -> tuple[list[KeptTaste], dict[str, str], int]:
    """The trials, why others could not be made, and how many were made by an earlier run.

    table: the label table, for who is on which photo. together: contents on one side of the split.
    """
    kept: list[KeptTaste] = []
    skipped: dict[str, str] = {}
    reused = 0
    if (rated := study.rated) is None:
        return kept, skipped, reused
    disk.make_folder(out / "fits")
    for number, backbone in enumerate(study.backbone, 1):
        name = f"a taste per viewer from {backbone.shown}"
        try:
            joined = load(
                cache,
                backbone.names,
                study.folder / rated.ratings,
                **_columns(rated),
                seed=study.seed,
                scope=study.scope,
                among=[one.names for one in study.backbone],
                keep_together=[together, _persons(study, cache, table)],
            )
            found, fresh = _tried(joined, study, backbone, out, counting=counting)
        except LabelsError as error:
            skipped[name] = str(error)
            say(f"{name}: left out: {error}")
            continue
        kept.append(found)
        reused += not fresh
        took = f"in {found.seconds:.1f} s" if fresh else "before"
        say(f"{name}: tried {took} ({number} of {len(study.backbone)})")
    return kept, skipped, reused


def _columns(rated: RatingsTable) -> dict[str, str | None]:
    names = ("rater_column", "id_column", "rating_column")
    return {name: getattr(rated, name) for name in names}


def _persons(study: Study, cache: Cache, table: pl.DataFrame) -> dict[bytes, int]:
    """The number of the person on each content, where the study splits by persons."""
    if study.split_by is None:
        return {}
    known = table.select(study.id_column, study.split_by).drop_nulls()
    digests, there = cache.digests_of(known[study.id_column].to_list(), scope=study.scope)
    person = known[study.split_by].cast(pl.String).rank("dense").to_list()
    return {
        row.tobytes(): number for row, number, ok in zip(digests, person, there, strict=True) if ok
    }


def _tried(
    ratings: Ratings, study: Study, backbone: NamedBackbone, out: Path, *, counting: Counting
) -> tuple[KeptTaste, bool]:
    """The trial, and whether it is fresh."""
    source = ratings.provenance
    inputs: dict[str, Any] = {
        "code": code(),
        "ratings": _digest(ratings),
        "split": source.split,
        "spec": source.spec_digest,
        "seed": study.seed,
        "shown": backbone.shown,
    }
    key = hashlib.sha256(canonical_json({"taste": inputs})).hexdigest()
    path = out / "fits" / f"taste-{key}.json"
    if (kept := KeptTaste.read(path, key=key)) is not None:
        return kept, False
    began = time.perf_counter()
    progress = counting(f"fits of a taste per viewer from {backbone.shown}")
    found = trial.run(ratings, seed=study.seed, progress=progress)
    made = KeptTaste(
        key=key,
        inputs=inputs,
        backbone=backbone.shown,
        rows=tuple(rows_of(found)),
        raters=len(ratings.raters),
        n=ratings.n,
        dropped=dict(source.dropped),
        notes=ratings.notes,
        spec=source.spec_digest,
        seconds=time.perf_counter() - began,
    )
    disk.replace(path, msgspec.json.encode(made))
    return made, True


def _digest(ratings: Ratings) -> str:
    """sha256 of who rated which photo how, whatever the order of the rows."""
    digest = hashlib.sha256("\n".join(ratings.raters).encode("utf-8", "surrogatepass"))
    order = np.lexsort((ratings.value, ratings.photo, ratings.rater))
    for column in (ratings.rater, ratings.photo, ratings.value):
        digest.update(np.ascontiguousarray(column[order]).tobytes())
    return digest.hexdigest()
