"""A study: backbones x subsets x targets x heads, from one small TOML file to result rows.

    study = Study.read("study.toml")
    results = run(study, Cache.open("photos.cache"), embed, "out")

A fit is kept under OUT/fits by the digest of everything that decides it (labels, contents, vectors,
spec, split, protocol, this package's code), so that running a study again repeats no finished work
and a changed input is never mistaken for the old one.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from embedcache.errors import CacheError, LabelsError
from embedcache.machine import versions
from embedcache.spec import canonical_json
from embedcache.store.cache import Cache
from embedcache.wording import counted
from heads import dataset
from heads.dataset.split import SUBSETS
from heads.documents import PACKAGES
from heads.fitting.fit import fit
from heads.fitting.result import Fit
from heads.labels.simulate import TRUTH
from heads.saved import MARKER
from heads.study.design import (
    NamedBackbone,
    Study,
    Subset,
    Target,
    code,
    read_labels_memo,
    sha256,
)
from heads.study.joined import common, files_of, labelled, where
from heads.study.kept import KeptFit, remove_unknown
from heads.study.parted import numbers, partition, with_remarks
from heads.study.results import Results
from heads.study.tastes import try_tastes

Counting = Callable[[str], Callable[[int, int], None]]
Alike = Callable[[], Mapping[bytes, int]]


def run(
    study: Study,
    cache: Cache,
    embed: Callable[[str], None],
    out: str | os.PathLike[str],
    *,
    progress: Callable[[str], None] | None = None,
    counting: Counting = lambda _: lambda _done, _n: None,
    alike: Alike | None = None,
) -> Results:
    """Embed what is missing, fit what is not fitted yet, and gather the results.

    cache: open for writing, if `embed` writes to it.
    embed: called once per backbone; afterwards the cache holds every vector of these photos that
        can be computed. It is not called for imported vectors, which cannot be computed here.
    progress: called with one line per fit, and with what to do after Ctrl-C.
    counting: given what is counted ("epochs of ..."), what to call with (done, in all) in a fit.
    alike: gives the number of the group of each content that has near-duplicates; they stay on one
        side where the study says so, and otherwise a fit that parts some gets a note.
    LabelsError where the study keeps near-duplicates together and nothing tells them.
    """
    began, out = time.perf_counter(), Path(out)
    say = progress or (lambda _line: None)
    (out / "fits").mkdir(parents=True, exist_ok=True)
    labels_path = study.label_table(out)
    study, table, how = labelled(study, labels_path, cache)
    if how:
        say(how)
    names = tuple(dict.fromkeys(name for b in study.backbone for name in b.names))
    imported = tuple(name for name in names if _is_foreign(cache, name))
    for name in names:
        if name not in imported:
            embed(name)
    labels_digest = sha256(labels_path)
    tasks = list(_tasks(study, table, cache))
    near, together = _near(study, alike)
    fits, skipped, reused = _fit_all(tasks, cache, out, together, say=say, counting=counting)
    options: dict[str, Any] = {"say": say, "counting": counting}
    tastes, untried, _ = try_tastes(study, cache, table, out, together, **options)
    fits = _remarked(study, cache, table, fits, near, say=say)
    fits = [msgspec.structs.replace(one, labels=labels_digest) for one in fits]
    if n := remove_unknown(out / "fits", cache, scope=study.scope):
        say(f"removed {counted(n, 'fit')} of earlier runs, of photos that are not in the cache now")
    if not fits:
        raise LabelsError(f"no fit could be made: {'; '.join(skipped.values())}")
    memo = read_labels_memo(out / "labels.json") if study.labels is None else None
    return Results(
        title=study.title,
        study=study.document(),
        fits=tuple(fits),
        **_about_photos(study, table, labels_path.parent, cache),
        label_counts=memo.document if memo else None,
        simulated=study.simulated or TRUTH in table.columns,
        seconds=time.perf_counter() - began,
        reused=reused,
        versions=versions(PACKAGES),
        imported=imported,
        skipped=skipped | untried,
        tastes=tuple(tastes),
    )


def _remarked(
    study: Study,
    cache: Cache,
    table: pl.DataFrame,
    fits: list[KeptFit],
    near: Mapping[bytes, int],
    *,
    say: Callable[[str], None],
) -> list[KeptFit]:
    """The fits, each with what is to be said of it."""
    ids = table[study.id_column].drop_nulls().to_list()
    digests, _ = cache.digests_of(ids, scope=study.scope)
    fits, warnings = with_remarks(fits, numbers(ids, digests, near))
    for line in warnings:
        say(f"warning: {line}")
    return fits


def _near(study: Study, alike: Alike | None) -> tuple[Mapping[bytes, int], Mapping[bytes, int]]:
    """The groups of near-duplicates, and those of them that stay on one side."""
    if study.keep_together and alike is None:
        raise LabelsError("`keep_together` needs near-duplicates: 'embedcache study' finds them")
    near = {} if alike is None else alike()
    return near, near if study.keep_together else {}


def _about_photos(study: Study, table: pl.DataFrame, folder: Path, cache: Cache) -> dict[str, Any]:
    """What the page says of each photo, by id: its file, the truth where known, its caption.

    Where the table names no files they are those that this machine read for the cache.
    """
    caption = next((name for name in ("gender", *study.report_by) if name in table.columns), "")
    photos = _values(table, study.id_column, study.photo_column)
    if study.photo_column not in table.columns:
        photos = files_of(study, cache, table)
    return {
        "photos": {name: folder / str(photo) for name, photo in photos.items()},
        "truth": _values(table, study.id_column, TRUTH),
        "captions": {n: str(v) for n, v in _values(table, study.id_column, caption).items()},
    }


def _fit_all(
    tasks: Sequence[tuple["_Task", pl.DataFrame, dict[str, int]]],
    cache: Cache,
    out: Path,
    together: Mapping[bytes, int],
    *,
    say: Callable[[str], None],
    counting: Counting,
) -> tuple[list[KeptFit], dict[str, str], int]:
    """The fits, why others could not be made, and how many were made by an earlier run."""
    fits: list[KeptFit] = []
    skipped: dict[str, str] = {}
    reused = 0
    for number, (task, rows, left_out) in enumerate(tasks, 1):
        try:
            found, fresh = task.fit(rows, cache, out, together, counting=counting)
        except LabelsError as error:  # one class only, say: the other cells can still be filled
            skipped[task.name] = str(error)
            say(f"{task.name}: left out: {error}")
            continue
        except KeyboardInterrupt:
            say(f"{len(fits)} of {len(tasks)} fits are kept; the same command goes on from there")
            raise
        fits.append(msgspec.structs.replace(found, dropped=left_out | found.dropped))
        reused += not fresh
        took = f"in {found.seconds:.1f} s" if fresh else "before"
        say(f"{task.name}: fitted {took} ({number} of {len(tasks)})")
    return fits, skipped, reused


def _tasks(
    study: Study, table: pl.DataFrame, cache: Cache
) -> Iterator[tuple["_Task", pl.DataFrame, dict[str, int]]]:
    """Each fit of the study with its rows, and why other rows are left out."""
    for number, subset in enumerate(study.subset):
        backbones = [b for b in study.backbone if study.fits_on(b, subset)]
        chosen, left_out = common(where(table, subset), cache, backbones, study)
        for target in study.target:
            known, here = chosen.filter(pl.col(target.column).is_not_null()), dict(left_out)
            if known.height < chosen.height:
                here |= {f"no {target.column}": chosen.height - known.height}
            for backbone in backbones:
                for protocol in study.protocols_run():
                    task = _Task(study, target, subset, backbone, protocol, study.seed + number)
                    yield task, known, here


def _values(table: pl.DataFrame, id_column: str, name: str) -> dict[str, Any]:
    """A column by photo id, without its missing values; empty when there is no such column."""
    if name not in table.columns:
        return {}
    known = table.select(id_column, name).drop_nulls()
    return dict(zip(known[id_column], known[name], strict=True))


@dataclass(frozen=True, slots=True)
class _Task:
    """One fit of the study, kept by an earlier run or made now."""

    study: Study
    target: Target
    subset: Subset
    backbone: NamedBackbone
    protocol: str
    seed: int

    @property
    def name(self) -> str:
        where = f"{self.target.column} on {self.subset.name} from {self.backbone.shown}"
        return f"{where}, {self.protocol} protocol"

    def fit(
        self,
        table: pl.DataFrame,
        cache: Cache,
        out: Path,
        together: Mapping[bytes, int],
        *,
        counting: Counting,
    ) -> tuple[KeptFit, bool]:
        """The fit, and whether it is fresh. together: contents that stay on one side."""
        study = self.study
        ids = table[study.id_column].to_list()
        digests, known = cache.digests_of(ids, scope=study.scope)
        columns = [self.target.column, self.target.weight, study.split_by, *study.report_by]
        used = table.select(study.id_column, *dict.fromkeys(filter(None, columns)))
        spaces = cache.side_by_side(self.backbone.names).spaces
        inputs: dict[str, Any] = {
            "code": code(),
            "target": msgspec.structs.asdict(self.target),
            "faces": self.subset.faces,
            "spec": [space.digest for space in spaces],
            "vectors": [
                hashlib.sha256(space.row_crcs(digests[known])[0].tobytes()).hexdigest()
                for space in spaces
            ],
            "rows": hashlib.sha256(used.write_csv().encode()).hexdigest(),
            "photos": hashlib.sha256(digests[known].tobytes() + known.tobytes()).hexdigest(),
            "split_by": study.split_by,
            "together": partition(digests, together),
            "seed": self.seed,
            "heads": sorted(study.heads),
            "protocol": study.protocol(self.protocol).document(),
            "folds": study.folds_for(len(ids)),
            "shown": [self.subset.name, self.backbone.shown, self.backbone.sees_face],
        }
        key = hashlib.sha256(canonical_json(inputs)).hexdigest()
        path = out / "fits" / f"{key}.json"
        head = out / "fits" / key
        if (kept := KeptFit.read(path, key=key)) is not None and (head / MARKER).is_file():
            return kept, False
        counter = counting(f"epochs of {self.name}")
        # Not in `out`, where another run of the same study may fit the same.
        with tempfile.TemporaryDirectory(prefix="embedcache-study-") as folder:
            rows = Path(folder, "rows.parquet")
            used.write_parquet(rows)
            made = self._fit(rows, cache, together, counter=counter)
        # Pictures of why need the head itself. It is there before the fit is.
        best = {made.best: made.heads[made.best]}
        replace(made, heads=best).save(head)
        found = _keep(made, key=key, inputs=inputs, task=self)
        found.write(path)
        return found, True

    def _fit(
        self,
        path: Path,
        cache: Cache,
        together: Mapping[bytes, int],
        *,
        counter: Callable[[int, int], None],
    ) -> Fit:
        study, target = self.study, self.target
        data = dataset.load(
            cache,
            self.backbone.names,
            path,
            target=target.column,
            id_column=study.id_column,
            weight=target.weight,
            task=target.task,
            faces=self.subset.faces,
            split_by=study.split_by,
            by=study.report_by,
            seed=self.seed,
            scope=study.scope,
            subset_name=self.subset.name,
            ref=cache.ref,
            keep_together=[together] if study.keep_together else (),
        )
        if data.task == "multiclass":
            raise LabelsError(
                f"{target.column!r} has {len(data.classes)} classes; a study's targets are numbers "
                "or two classes. 'embedcache fit-head' fits it"
            )
        # A study names heads for all its targets; each target takes those that fit its task.
        other = "logistic" if data.task == "regression" else "ridge"
        heads = [name for name in study.heads if name != other] or ["const"]
        return fit(
            data,
            heads=heads,
            protocol=study.protocol(self.protocol),
            folds=study.folds_for(len(data.ids)),
            progress=counter,
        )


def _keep(made: Fit, *, key: str, inputs: dict[str, Any], task: _Task) -> KeptFit:
    document, test, source = made.document(), made.test, made.dataset.provenance
    assert test is not None
    return KeptFit(
        key=key,
        inputs=inputs,
        target=task.target.column,
        subset=task.subset.name,
        backbone=task.backbone.shown,
        face=task.backbone.sees_face,
        task=document["task"],
        n=document["n"],
        noise_floor=document["noise_floor"],
        classes=made.dataset.classes,
        rows=tuple(document["rows"]),
        by=tuple(document["by"]),
        ids=tuple(test.ids),
        others=_others(made),
        truth=tuple(map(float, test.truth)),
        weight=None if test.weight is None else tuple(map(float, test.weight)),
        groups=tuple(map(int, test.groups)),
        fold=tuple(map(int, test.fold)),
        group_of=dict(test.group_of),
        counts=test.counts,
        predictions={name: tuple(map(float, seen)) for name, seen in test.predictions.items()},
        curves={
            name: tuple((p.rate, p.epoch, _finite(p.train), _finite(p.dev)) for p in curve)
            for name, curve in made.curves.items()
        },
        dropped=document["dropped"],
        spec=source.spec_digest,
        labels="",  # of the whole table, which may change where these rows do not: see `run`
        split=source.split,
        ref=source.ref,
        seconds=made.seconds,
        protocol=task.protocol,
        folds=made.folds,
        best=made.best,
        n_effective=document["n_effective"],
        dev_of_choice=made.dev_of_choice,
        notes=made.notes,
    )


def _others(made: Fit) -> tuple[str, ...]:
    """The ids that trained and chose; none by folds, where each photo is tested."""
    data = made.dataset
    if made.folds is not None:
        return ()
    tested = data.subset == SUBSETS.index("test")
    return tuple(name for name, test in zip(data.ids, tested.tolist(), strict=True) if not test)


def _is_foreign(cache: Cache, name: str) -> bool:
    try:
        return bool(cache.find(name).spec.kind == "foreign")
    except CacheError:
        return False


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
