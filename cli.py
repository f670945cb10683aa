"""The command line: each command parses, calls one library function and prints what it returns.

Here are the commands that fit heads or in which the two stages meet; those of stage one alone are
in `embedcache/commands/`, and so is what stands around each of them. Nothing imports this module
but `embedcache/__main__.py`, which runs it. Heavy imports stand inside the commands, so that
`--help` and `info` answer at once. Data goes to stdout, progress and warnings to stderr.
"""

import functools
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from embedcache.commands import (
    alike,
    caches,
    fit_options,
    options,
    pictures,
    shared_copies,
    shell,
    study_options,
)
from embedcache.commands.embedding import embed_photos, extract, reasons_of, upgrade
from embedcache.errors import InputError

if TYPE_CHECKING:
    from embedcache.photos.table import Photos
    from embedcache.store.cache import Cache
    from heads.predict import Predictions

log = logging.getLogger("embedcache")

app = typer.Typer(
    name="embedcache",
    cls=shell.Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run frozen vision backbones once over a photo collection, share the vectors, and fit "
    "light heads on them in seconds.",
)

app.callback()(shell.options)
app.command()(extract)  # of stage one alone, but first in the list


@app.command()
def labels(
    users: study_options.Users,
    swipes: study_options.Swipes,
    out: study_options.LabelsFile,
    keep_unswiped: study_options.KeepUnswiped = False,
    json_: options.JsonOption = False,
) -> None:
    """Turn a swipe log into a like ratio per photo."""
    from heads.labels.build import build

    options.print_result(build(users, swipes, out, keep_unswiped=keep_unswiped), json_)


@app.command()
def fit_head(
    cache: options.CacheOption,
    backbone: options.SeveralBackbones,
    labels: fit_options.LabelTable,
    target: fit_options.Targets,
    out: fit_options.HeadFolder,
    id_column: options.IdColumn = None,
    weight: fit_options.WeightColumn = None,
    task: fit_options.Task = "auto",
    head: fit_options.HeadNames = None,
    faces: fit_options.FaceCount = None,
    split_by: fit_options.SplitBy = None,
    split_column: fit_options.SplitColumn = None,
    keep_together: fit_options.KeepTogether = None,
    stratify: fit_options.Stratify = False,
    by: fit_options.By = None,
    folds: fit_options.Folds = None,
    dev_only: fit_options.DevOnly = False,
    protocol: fit_options.ProtocolOption = "warm",
    hidden: fit_options.Hidden = None,
    epochs: fit_options.Epochs = None,
    batch_size: fit_options.TrainBatch = None,
    learning_rate: fit_options.LearningRates = None,
    optimizer: fit_options.OptimizerOption = None,
    loss: fit_options.LossOption = None,
    dropout: fit_options.Dropout = None,
    weight_decay: fit_options.WeightDecay = None,
    members: fit_options.Members = None,
    patience: fit_options.Patience = None,
    halving_steps: fit_options.HalvingSteps = None,
    products: fit_options.ProductsOption = None,
    start: fit_options.StartOption = None,
    margin: fit_options.Margin = None,
    drop_missing: fit_options.DropMissing = False,
    memory_mb: fit_options.MemoryLimit = None,
    seed: fit_options.Seed = 0,
    device: fit_options.FitDevice = "cpu",
    ref: fit_options.RefOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Fit heads on cached vectors. The test set is used once.

    const is the mean (or the class shares), ridge and logistic are linear. 0fc, 1fc and 2fc are
    networks of so many fully connected layers before the output, as in the paper: 0fc is linear
    too, but trained step by step. docs/heads.md explains the options that are rarely used.
    """
    import heads
    from embedcache.display import counts_on
    from heads.dataset.join import load
    from heads.dataset.split import near_duplicates
    from heads.fitting.protocol import protocol_of
    from heads.saved import check_out

    memory_bytes = None if memory_mb is None else memory_mb * 1_000_000
    typed: dict[str, Any] = {
        "hidden": hidden,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rates": learning_rate,
        "optimizer": optimizer,
        "loss": loss,
        "dropout": dropout,
        "weight_decay": weight_decay,
        "members": members,
        "start": start,
        "margin": margin,
        "products": products,
        "memory_bytes": memory_bytes,
    }
    given = {name: value for name, value in typed.items() if value is not None}
    counts = {"patience": patience, "halving_steps": halving_steps}
    given |= {name: n or None for name, n in counts.items() if n is not None}  # 0: never
    replaces = check_out(out)
    opened = options.open_cache(cache, ref=ref)
    together = []
    if keep_together is not None:
        cosine = near_duplicates(keep_together)
        together.append(alike.near_duplicates(opened, backbone[0], threshold=cosine, device=device))
    dataset = load(
        opened,
        backbone[0] if len(backbone) == 1 else backbone,
        labels,
        target=target[0] if len(target) == 1 else target,
        id_column=id_column,
        weight=weight,
        task=task,
        faces=faces,
        split_by=split_by,
        split_column=split_column,
        stratify=stratify,
        by=by or (),
        seed=seed,
        ref=ref,
        memory_bytes=memory_bytes,
        drop_missing=drop_missing,
        keep_together=together,
    )
    for note in dataset.notes:
        log.info("%s", note)
    if dataset.classes:
        log.info("classes: %s", ", ".join(f"{k} ({n:,})" for k, n in dataset.class_counts.items()))
    chosen = protocol_of(given | {"seed": seed, "device": device}, name=protocol)
    fitted = heads.fit(
        dataset,
        heads=tuple(head or ["all"]),
        protocol=chosen,
        folds=folds,
        dev_only=dev_only,
        progress=counts_on("epochs"),
    )
    fitted.save(out)
    options.print_result(fitted, json_)
    log.info("wrote %s%s", out, ", in place of an earlier fit" if replaces else "")


@app.command()
def fit_taste(
    cache: options.CacheOption,
    backbone: fit_options.OneBackbone,
    ratings: fit_options.Ratings,
    out: fit_options.TasteFolder,
    rater_column: fit_options.RaterColumn = None,
    id_column: fit_options.RatedColumn = None,
    rating_column: fit_options.RatingColumn = None,
    seed: fit_options.TasteSeed = 0,
    ref: fit_options.RefOption = None,
    json_: options.JsonOption = False,
) -> None:
    """Fit one taste per viewer. A new photo needs only its vector.

    Each viewer's ratings are a part that all share, a bias, and a taste in a few directions of the
    vectors; a viewer with few ratings falls back on the shared part. The table compares it with
    simpler models, by how many ratings a viewer has shown, on photos and viewers that it has not
    seen. docs/heads.md explains it.
    """
    from embedcache.display import counts_on
    from heads.taste import fit as tastes
    from heads.taste.ratings import load
    from heads.taste.saved import check_out

    if len(backbone) > 1:
        raise InputError("fit-taste takes one backbone; a study tries tastes on several")
    replaces = check_out(out)
    joined = load(
        options.open_cache(cache, ref=ref),
        backbone[0],
        ratings,
        rater_column=rater_column,
        id_column=id_column,
        rating_column=rating_column,
        seed=seed,
        ref=ref,
    )
    for note in joined.notes:
        log.info("%s", note)
    fitted = tastes.fit(joined, seed=seed, progress=counts_on("fits"))
    fitted.save(out)
    options.print_result(fitted, json_)
    log.info("wrote %s%s", out, ", in place of an earlier taste" if replaces else "")


@app.command()
def predict(
    head_dir: fit_options.HeadOrTaste,
    photos: options.PhotosPath,
    cache: options.CacheOption,
    out: fit_options.PredictionsFile,
    photo_column: options.PhotoColumn = None,
    id_column: options.IdColumn = None,
    backbone: fit_options.MovedBackbones = None,
    explain: fit_options.PictureFolder = None,
    sort: fit_options.BestFirst = False,
    viewer: fit_options.Viewer = None,
    device: options.DeviceOption = "auto",
    workers: options.Workers = None,
    json_: options.JsonOption = False,
) -> None:
    """Apply a fitted head, or a taste, to photos. Photos that the cache lacks are embedded.

    A head of two classes writes the probability of the second one as prediction, one of several a
    column prediction_CLASS with P(CLASS) each; both also write the likeliest class. --explain shows
    what the network and the head react to in a photo, not why people would; see docs/heads.md.
    """
    from heads.head import specs_of
    from heads.predict import check_out, check_sortable
    from heads.predict import predict as apply
    from heads.saliency import check_explainable
    from heads.taste.viewer import load_for

    check_out(out)
    head = load_for(head_dir, viewer)
    if explain is not None:
        check_explainable(head, explain)
    if sort:
        check_sortable(head)
    if out == "-" and json_:
        raise InputError("--out - and --json would both write to stdout: choose one")
    if not cache.exists():
        log.info("%s is a new cache", cache)
    opened = options.open_cache(cache, create=True)
    table = options.read_photos(photos, photo_column=photo_column, id_column=id_column)

    def embed(_: object) -> None:
        from embedcache.extraction.respec import backbones_of

        wanted = [(name, spec) for name, spec in specs if spec.kind != "foreign"]
        own = backbones_of(wanted, opened, names=backbone, device=device)
        if embed_photos(table, opened, own, device=device, workers=workers).interrupted:
            raise typer.Exit(options.INTERRUPTED)

    specs = specs_of(head.card)
    imported = bool(specs) and all(spec.kind == "foreign" for _, spec in specs)
    if imported:  # no network gives these vectors: what the cache lacks stays without a prediction
        digests = table.digests(opened)
        kept = [name for name, ok in zip(table.ids, digests.readable, strict=True) if ok]
        opened.record_photos(table.scope, kept, digests.value[digests.readable])
    predictions = apply(
        head,
        table.ids,
        opened,
        scope=table.scope,
        embed=None if imported else embed,
        why=reasons_of(table, opened),
    )
    (predictions.best_first() if sort else predictions).write(out)
    if out == "-":
        log.info("%s", predictions)
    else:
        options.print_result(predictions, json_)
        log.info("wrote %s", out)
    for line in predictions.warnings(head.card["backbone"], imported=imported):
        log.warning("%s", line)
    if explain is not None:
        _explain(predictions, table, opened, explain, names=backbone, device=device)


@app.command()
def compare(
    first: fit_options.FittedHead,
    second: fit_options.OtherHead,
    json_: options.JsonOption = False,
) -> None:
    """Say which of two heads is better. Paired, on the test photos of both, with an interval."""
    from heads.comparison import compare as paired

    options.print_result(paired(first, second), json_)


@app.command()
def study(
    study_toml: study_options.StudyFile = Path("study.toml"),
    out: study_options.PageFolder = None,
    cache: study_options.StudyCache = None,
    init: study_options.Init = False,
    labels: study_options.InitLabels = None,
    photos: study_options.ShowPhotos = True,
    link: study_options.LinkPhotos = False,
    explain: study_options.Explain = True,
    device: options.DeviceOption = "auto",
    json_: options.JsonOption = False,
) -> None:
    """Fit many heads and write a page. Targets x subsets x backbones x heads."""
    from heads.outputs import refuse_photos
    from heads.study import design

    if init:
        print(f"wrote {design.init(study_toml, labels=labels)}")
        return
    if labels is not None:
        raise InputError("--labels goes with --init: STUDY.toml names the labels of a study")
    if out is None:
        raise InputError("name the folder for the page: --out DIR")
    refuse_photos(out)
    show = {"photos": photos, "link": link}
    off = "" if explain else "the study was run without them"
    _study(study_toml, out, cache=cache, show=show, off=off, device=device, json_=json_)


@app.command()
def simulate(
    out: study_options.SimulatedFolder,
    users: study_options.NumberOfUsers = 85_000,
    swipes: study_options.NumberOfSwipes = 40_000_000,
    seed: study_options.Seed = 0,
    format_: study_options.TableFormat = "csv",
    json_: options.JsonOption = False,
) -> None:
    """Write simulated users and swipes. The true like ratios are known."""
    from heads.labels import simulate as simulation

    suffix = f".{format_}"
    options.print_result(
        simulation.write(out, users=users, swipes=swipes, seed=seed, suffix=suffix), json_
    )


@app.command()
def demo(
    out: study_options.DemoFolder,
    photos: study_options.DemoPhotos = 600,
    seed: study_options.Seed = 0,
    json_: options.JsonOption = False,
) -> None:
    """Run everything on an example. Photos, vectors, heads and a page; offline."""
    import polars as pl

    from embedcache import example
    from heads.labels import simulate as simulation

    made = example.make(out / "data", n_photos=photos, seed=seed)
    print(made, file=sys.stderr)
    truth = pl.read_csv(made.truth).rename({"like_probability": "probability"})
    simulation.swipes(truth, seed=seed).write_csv(made.folder / "swipes.csv")
    example.write_lite0(out / "weights" / "efficientnet_lite0")
    toml = out / "study.toml"
    toml.write_text(_demo_study(), "utf-8")
    off = "a demo has no time for them; the command below, 'embedcache study', draws them"
    _study(toml, out, cache=None, show={}, off=off, device="auto", json_=json_)


app.command()(upgrade)
app.add_typer(caches.commands)
app.add_typer(alike.commands)
app.add_typer(shared_copies.commands)


def main() -> None:
    """Run a command."""
    shell.run(app)


def _explain(
    predictions: "Predictions",
    table: "Photos",
    cache: "Cache",
    folder: Path,
    *,
    names: list[str] | None,
    device: str,
) -> None:
    """Draw for every predicted photo what moved its prediction."""
    from embedcache.display import counts_on
    from heads.head import specs_of
    from heads.saliency import draw

    head, done = predictions.head, predictions.found.tolist()
    places = [i for i, predicted in enumerate(done) if predicted]
    specs = specs_of(head.card)
    seen = pictures.seen_by(specs, table, cache, places, names=names, device=device)
    drawn = draw(
        head,
        ((table.ids[i], predictions.values[i], one) for i, one in seen),
        folder,
        progress=counts_on("photos explained"),
    )
    pictures.report(drawn.pictures, drawn.lost, folder)


def _study(
    toml: Path,
    out: Path,
    *,
    cache: Path | None,
    show: dict[str, bool],
    off: str,
    device: str,
    json_: bool,
) -> None:
    """Run a study file, embedding for all its backbones at once, and print table and page.

    off: why the page has no pictures of why, "" for a page with them.
    """
    from embedcache.backbones.names import resolved
    from embedcache.display import counts_on
    from embedcache.upkeep.pinning import pin
    from heads.study import joined, report, vectors
    from heads.study import run as studies
    from heads.study.design import Study
    from heads.study.why import Why, explain

    asked = Study.read(toml)
    opened = options.open_cache(cache or out / "photos.cache", create=True)
    path = asked.label_table(out)
    # A wrong column name is told before hours of work.
    asked, rows, _ = joined.labelled(asked, path, opened)
    columns = {"photo_column": asked.photo_column, "id_column": asked.id_column}
    read = functools.partial(options.read_photos, path, **columns)
    table = vectors.photos_of(asked, opened, path, rows, read=read, say=log.info)
    if table is None:
        show = show | {"photos": False}
    else:
        wanted = [resolved(name, asked.folder) for name in vectors.to_embed(asked, opened, rows)]
        if wanted and embed_photos(table, opened, wanted, device=device).interrupted:
            raise typer.Exit(options.INTERRUPTED)
    results = studies.run(
        asked,
        # Every row can name what it was fitted on.
        options.open_cache(opened.path, ref=pin(opened)),
        lambda _: None,
        out,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
        counting=counts_on,
        alike=lambda: alike.near_duplicates(opened, device=device, **vectors.alike_by(asked)),
    )
    why = Why(off=off)
    if table is not None and show.get("photos", True) and not off:
        why = explain(
            results,
            out,
            seen_by=pictures.seen_by_id(table, opened, device=device),
            version=pictures.version(),
            say=lambda line: log.warning("%s", line),
            progress=counts_on("pictures of why"),
        )
    written = report.write(results, out, why=why, **show)
    document = results.document() | written.document()
    print(json.dumps(document) if json_ else f"{results}\n{written}")


def _demo_study() -> str:
    """The demo's study.toml: with rows for the paper's networks, or a note on how to get them."""
    from embedcache import doctor, example
    from heads.study import design

    wanted = {"Inception": options.DEFAULT_BACKBONE, "FaceNet": "facenet:casia-webface"}
    here, notes = doctor.networks_here(wanted)
    return design.demo({k: wanted[k] for k in here}, notes=[example.CONCLUSIONS, *notes])


if __name__ == "__main__":
    main()
