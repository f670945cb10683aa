"""The command line: each command parses, calls one library function and prints what it returns.

Nothing imports this module. Heavy imports stand inside the commands, so that `--help` and `info`
answer at once. Data goes to stdout, progress and warnings to stderr. Exit status: 0 done, 1 a
user's error, 2 wrong usage, 130 interrupted (what was done until then is kept).
"""

import errno
import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Protocol

import typer

from embedcache.errors import EmbedcacheError, InputError

if TYPE_CHECKING:
    from embedcache.outcome import Extraction
    from embedcache.photos import Photos
    from embedcache.store import Cache

DEFAULT_BACKBONE = "inception_v3.tf_in1k"
SYSTEM_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}

app = typer.Typer(
    name="embedcache",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run frozen vision backbones once over a photo collection, share the vectors, and fit "
    "light heads on them in seconds.",
)

CachePath = Annotated[Path, typer.Argument(metavar="DIR", help="The cache's folder.")]
CacheOption = Annotated[Path, typer.Option("--cache", metavar="DIR", help="The cache's folder.")]
PhotosPath = Annotated[
    Path, typer.Argument(metavar="PHOTOS", help="A folder, or a .csv/.parquet photo table.")
]
BackboneOption = Annotated[
    str,
    typer.Option("--backbone", metavar="NAME[@face]", help="Whose vectors; see 'embedcache info'."),
]
PhotoColumn = Annotated[str, typer.Option(help="The table's column with the photo's path.")]
IdColumn = Annotated[str, typer.Option(help="The table's column with the photo's id.")]
Backbones = Annotated[
    list[str] | None,
    typer.Option("--backbone", metavar="NAME", help="Only vectors of this; may be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per forward pass.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads that read and decode.")]


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Decode(StrEnum):
    full = "full"
    reduced = "reduced"


class Compile(StrEnum):
    auto = "auto"
    on = "on"
    off = "off"


class Optimizer(StrEnum):
    adam = "adam"
    sgd = "sgd"


class Loss(StrEnum):
    auto = "auto"
    mse = "mse"
    log_loss = "log_loss"
    binomial = "binomial"


class Start(StrEnum):
    linear = "linear"
    constant = "constant"


class Format(StrEnum):
    csv = "csv"
    parquet = "parquet"


class Printable(Protocol):
    """What every library function returns here: text for people, a document for machines."""

    def document(self) -> dict[str, Any]: ...


@app.command()
def extract(
    photos: PhotosPath,
    cache: CacheOption,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[@face]",
            help="A timm name, hf-hub:ID, local-dir:FOLDER or facenet:NAME; may be repeated. "
            f"[default: {DEFAULT_BACKBONE}]",
        ),
    ] = None,
    photo_column: PhotoColumn = "photo",
    id_column: IdColumn = "photo_id",
    batch_size: BatchSize = None,
    precision: Annotated[Precision, typer.Option(help="Each is a spec of its own.")] = (
        Precision.float32
    ),
    device: DeviceOption = "auto",
    workers: Workers = None,
    decode: Annotated[
        Decode,
        typer.Option(help="full: every pixel, as timm. reduced: large JPEGs faster; another spec."),
    ] = Decode.full,
    compile_: Annotated[
        Compile,
        typer.Option("--compile", help="Compile the networks; auto: when the run is long enough."),
    ] = Compile.auto,
    retry_failed: Annotated[bool, typer.Option(help="Try failed photos again.")] = False,
    strict: Annotated[bool, typer.Option(help="Stop at the first photo that fails.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would do, how much, how long.")
    ] = False,
    remote: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Take what this shared copy has, compute the rest; 'none' for none. "
            "[default: that of embedcache.toml]",
        ),
    ] = None,
    offer: Annotated[
        bool | None,
        typer.Option("--offer/--no-offer", help="Give back to the shared copy as it goes."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Embed every photo that the cache lacks; running it again is the resume."""
    from embedcache.photos import Photos
    from embedcache.share import destination
    from embedcache.team import read_settings

    table = Photos.read(photos, photo_column=photo_column, id_column=id_column)
    names = backbone or [DEFAULT_BACKBONE]
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "precision": precision.value,
        "decode": decode.value,
        "device": device,
        "workers": workers,
        "retry_failed": retry_failed,
    }
    if dry_run:
        from embedcache.forecast import forecast

        _print(
            forecast(table, _open(cache) if cache.exists() else None, backbone=names, **options),
            json_,
        )
        return
    settings = read_settings()
    shared = {"none": None}.get(remote or "", remote or settings.remote or None)
    if offer and shared is None:
        raise InputError("--offer needs to know where to: add --remote URL")
    with destination(cache) as opened:
        found = _extract(
            *(table, opened, names),
            compiling=compile_.value,
            strict=strict,
            remote=shared,
            offer=settings.offer if offer is None else offer,
            writer=settings.writer,
            **options,
        )
    _print(found, json_)
    if found.interrupted:
        raise typer.Exit(130)


@app.command()
def labels(
    users: Annotated[Path, typer.Option(help="user_id, gender, photo [, photo_updated_at].")],
    swipes: Annotated[
        Path, typer.Option(help="recipient_id, liked [, sender_id, sender_gender, swiped_at].")
    ],
    out: Annotated[Path, typer.Option(help="The label table to write, .csv or .parquet.")],
    keep_unswiped: Annotated[
        bool, typer.Option(help="Also write users with a photo and no kept swipe.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Turn a swipe log into one like ratio and weight per photo."""
    from heads.labels import build

    _print(build(users, swipes, out, keep_unswiped=keep_unswiped), json_)


@app.command()
def fit_head(
    cache: CacheOption,
    backbone: BackboneOption,
    labels: Annotated[Path, typer.Option(help="A .csv/.parquet table with ids and labels.")],
    target: Annotated[
        list[str],
        typer.Option(metavar="COLUMN", help="What to predict; several numbers are fitted jointly."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the fitted heads go.")],
    id_column: IdColumn = "user_id",
    weight: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Weight of each row, such as swipes.")
    ] = None,
    task: Annotated[str, typer.Option(help="auto, regression, binary or multiclass.")] = "auto",
    head: Annotated[
        list[str] | None,
        typer.Option(help="all, const, ridge, logistic, 0fc, 1fc or 2fc; may be repeated."),
    ] = None,
    faces: Annotated[
        int | None, typer.Option(min=0, help="Keep only photos with exactly so many faces.")
    ] = None,
    split_by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Keep equal values on one side.")
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Use this train/dev/test as given.")
    ] = None,
    stratify: Annotated[
        bool, typer.Option("--stratify", help="Cut each class at the same shares.")
    ] = False,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Also tell the error by group; may be repeated."),
    ] = None,
    hidden: Annotated[int, typer.Option(min=1, help="Width of each hidden layer.")] = 256,
    epochs: Annotated[int, typer.Option(min=1, help="At most.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    learning_rate: Annotated[
        list[float] | None, typer.Option(help="May be repeated: the sweep; dev picks.")
    ] = None,
    optimizer: Annotated[Optimizer, typer.Option()] = Optimizer.adam,
    loss: Annotated[
        Loss, typer.Option(help="binomial: of ratios whose weights are their counts.")
    ] = Loss.auto,
    dropout: Annotated[float, typer.Option(help="Of hidden units; 0 is none.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Decoupled; 0 is none.")] = 0.0,
    members: Annotated[int, typer.Option(min=1, help="Networks averaged per rate.")] = 1,
    patience: Annotated[
        int, typer.Option(min=0, help="Epochs without a better dev figure; 0: run them all.")
    ] = 4,
    start: Annotated[
        Start, typer.Option(help="What FC heads begin as: the linear baseline, or the constant.")
    ] = Start.linear,
    margin: Annotated[
        float, typer.Option(help="Standard errors of dev gain for which they leave it.")
    ] = 1.0,
    memory_mb: Annotated[
        int | None, typer.Option(min=1, help="Megabytes of vectors held at a time. [default: all]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of the training.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")] = "cpu",
    ref: Annotated[str | None, typer.Option(help="Read the cache as this ref pins it.")] = None,
    json_: JsonOption = False,
) -> None:
    """Fit heads on cached vectors and print the table; the test set is touched once."""
    import heads
    from heads.dataset import load

    memory_bytes = None if memory_mb is None else memory_mb * 1_000_000
    dataset = load(
        _open(cache, ref=ref),
        backbone,
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
    )
    fitted = heads.fit(
        dataset,
        heads=tuple(head or ["all"]),
        epochs=epochs,
        batch_size=batch_size,
        learning_rates=learning_rate,
        optimizer=optimizer.value,
        seed=seed,
        members=members,
        hidden=hidden,
        loss=loss.value,
        start=start.value,
        margin=margin,
        weight_decay=weight_decay,
        dropout=dropout,
        patience=patience or None,
        memory_bytes=memory_bytes,
        device=device,
    )
    fitted.save(out)
    _print(fitted, json_)


@app.command()
def predict(
    head_dir: Annotated[Path, typer.Argument(metavar="HEAD_DIR", help="What fit-head wrote.")],
    photos: PhotosPath,
    cache: CacheOption,
    out: Annotated[Path, typer.Option(help="The predictions, .csv: photo_id, prediction.")],
    photo_column: PhotoColumn = "photo",
    id_column: IdColumn = "photo_id",
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[@face]", help="Where the backbone is, if this machine cannot know."
        ),
    ] = None,
    device: DeviceOption = "auto",
    workers: Workers = None,
    json_: JsonOption = False,
) -> None:
    """Apply a fitted head to photos, embedding those that the cache lacks."""
    import heads
    from embedcache.photos import Photos
    from embedcache.provenance import place_of
    from heads.predict import predict as apply

    opened = _open(cache, create=True)
    table = Photos.read(photos, photo_column=photo_column, id_column=id_column)
    card = heads.load(head_dir).card

    def embed(_: object) -> None:
        place = backbone or place_of(opened, card["spec_digest"]) or card["backbone"]
        if _extract(table, opened, [place], device=device, workers=workers).interrupted:
            raise typer.Exit(130)

    predictions = apply(head_dir, table.ids, opened, scope=table.scope, embed=embed)
    predictions.write(out)
    _print(predictions, json_)


@app.command()
def info(
    cache: Annotated[str, typer.Argument(metavar="DIR|URL", help="A cache, or a shared copy.")],
    photos: Annotated[bool, typer.Option(help="Also list the photos, one line each.")] = False,
    ref: Annotated[str | None, typer.Option(help="Read the cache as this ref pins it.")] = None,
    json_: JsonOption = False,
) -> None:
    """Say what a cache holds, or a shared copy, of which no vector is fetched."""
    if "://" in cache:
        from embedcache.survey import survey

        _print(survey(cache), json_)
        return
    from embedcache.summary import summarise

    _print(summarise(_open(Path(cache), ref=ref), photos=photos), json_)


@app.command()
def study(
    study_toml: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="See --init.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the page goes.")] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The cache. [default: OUT/photos.cache]")
    ] = None,
    init: Annotated[
        bool, typer.Option("--init", help="Write a commented STUDY.toml to begin with.")
    ] = False,
    photos: Annotated[
        bool, typer.Option(help="Show photos on the page; without, it can be shared freely.")
    ] = True,
    link: Annotated[
        bool, typer.Option("--link", help="Keep thumbnails as files beside the page.")
    ] = False,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Run targets x subsets x backbones x heads and write the page, tables and figures."""
    from heads import design

    if init:
        print(f"wrote {design.init(study_toml)}")
        return
    if out is None:
        raise InputError("say where the page goes: --out DIR")
    show = {"photos": photos, "link": link}
    _study(study_toml, out, cache=cache, show=show, device=device, json_=json_)


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where users and swipes go.")],
    users: Annotated[int, typer.Option(min=1, help="Users before any filter.")] = 85_000,
    swipes: Annotated[int, typer.Option(min=1, help="Swipes before any filter.")] = 40_000_000,
    seed: Annotated[int, typer.Option()] = 0,
    format_: Annotated[Format, typer.Option("--format")] = Format.csv,
    json_: JsonOption = False,
) -> None:
    """Write a simulated population with known truth, statistically like the paper's."""
    from heads import simulate as simulation

    suffix = f".{format_.value}"
    _print(simulation.write(out, users=users, swipes=swipes, seed=seed, suffix=suffix), json_)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")],
    photos: Annotated[int, typer.Option(min=60, help="Photos to derive.")] = 600,
    seed: Annotated[int, typer.Option()] = 0,
    json_: JsonOption = False,
) -> None:
    """The whole path on an embedded example, offline: photos, vectors, heads and a page."""
    import polars as pl

    from embedcache import example, weights
    from heads import simulate as simulation

    made = example.make(out / "data", n_photos=photos, seed=seed)
    print(made, file=sys.stderr)
    truth = pl.read_csv(made.truth).rename({"like_probability": "probability"})
    simulation.swipes(truth, seed=seed).write_csv(made.folder / "swipes.csv")
    weights.write_lite0(out / "weights" / "efficientnet_lite0")
    toml = out / "study.toml"
    toml.write_text(_demo_study(), "utf-8")
    _study(toml, out, cache=None, show={}, device="auto", json_=json_)


@app.command()
def verify(
    cache: Annotated[str, typer.Argument(metavar="DIR|URL", help="A cache, or a shared copy.")],
    repair: Annotated[
        bool, typer.Option(help="Move what is damaged aside and say what to extract again.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Check every file, checksum and row of a cache; status 1 if anything is wrong."""
    from embedcache.audit import verify as check
    from embedcache.findings import Report
    from embedcache.survey import Checked, verify_remote

    if repair and "://" in cache:
        raise InputError("--repair is for caches; without it, verify says what is wrong at the URL")
    report: Report | Checked
    report = verify_remote(cache) if "://" in cache else check(cache, repair=repair)
    _print(report, json_)
    if not report.clean:
        raise typer.Exit(1)


@app.command()
def export(
    cache: CachePath,
    backbone: BackboneOption,
    out: Annotated[Path, typer.Option(metavar="F.npy|F.parquet", help="The file to write.")],
    ref: Annotated[str | None, typer.Option(help="Read the cache as this ref pins it.")] = None,
    json_: JsonOption = False,
) -> None:
    """Write vectors and photo ids to one .npy or Parquet file."""
    from embedcache.exchange import export as write

    _print(write(_open(cache, ref=ref), backbone, out), json_)


@app.command("import")
def import_(
    cache: CachePath,
    vectors: Annotated[Path, typer.Argument(metavar="VECTORS.npy", help="Floats, (n, dim).")],
    ids: Annotated[Path, typer.Option(metavar="ids.csv", help="n photo ids, in the same order.")],
    photos: Annotated[Path, typer.Option(metavar="PHOTOS", help="The photos that they are of.")],
    name: Annotated[str, typer.Option(help="What to call these vectors.")],
    photo_column: PhotoColumn = "photo",
    id_column: IdColumn = "photo_id",
    json_: JsonOption = False,
) -> None:
    """Take vectors computed elsewhere; they never mix with computed ones."""
    from embedcache.exchange import import_vectors
    from embedcache.photos import Photos

    opened = _open(cache, create=True)
    table = Photos.read(photos, photo_column=photo_column, id_column=id_column)
    digests = table.digests(opened.local / "digests.npz")
    known = [i for i, ok in zip(table.ids, digests.readable, strict=True) if ok]
    found = import_vectors(
        *(opened, vectors, ids),
        ids=known,
        digests=digests.value[digests.readable],
        name=name,
        scope=table.scope,
    )
    _print(found, json_)


@app.command()
def merge(
    cache: CachePath,
    others: Annotated[list[Path], typer.Argument(metavar="OTHER...", help="Other caches.")],
    with_ids: Annotated[bool, typer.Option(help="Take their photo ids too.")] = False,
    json_: JsonOption = False,
) -> None:
    """Take every row of other caches that this one lacks."""
    from embedcache.upkeep import merge as join

    opened = _open(cache, create=True)
    _print(join(opened, [_open(other) for other in others], with_ids=with_ids), json_)


@app.command()
def push(
    cache: CachePath,
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="[default: that of embedcache.toml]")
    ] = None,
    backbone: Backbones = None,
    with_ids: Annotated[bool, typer.Option(help="Send photo ids too; they may be private.")] = (
        False
    ),
    purge: Annotated[
        bool, typer.Option(help="Remove what was forgotten there too; needs the right to delete.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would move.")] = False,
    json_: JsonOption = False,
) -> None:
    """Send to a shared copy (a folder, s3://, gs://, az://, ssh://) what it lacks."""
    from embedcache import share
    from embedcache.display import transfer_on

    moved = share.push(
        _open(cache),
        _url(url),
        backbones=backbone or (),
        with_ids=with_ids,
        purge=purge,
        dry_run=dry_run,
        progress=transfer_on(),
    )
    _print(moved, json_)
    if moved.problems:
        raise typer.Exit(1)


@app.command()
def pull(
    url: Annotated[str, typer.Argument(metavar="[URL]", help="May stand in embedcache.toml.")],
    cache: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="The cache's folder.", show_default=False)
    ] = None,
    backbone: Backbones = None,
    photos: Annotated[
        Path | None,
        typer.Option(metavar="PHOTOS", help="Only rows of these photos: a folder or a table."),
    ] = None,
    photo_column: PhotoColumn = "photo",
    id_column: IdColumn = "photo_id",
    ref: Annotated[
        str | None, typer.Option(metavar="NAME", help="Exactly what this ref pins.")
    ] = None,
    with_ids: Annotated[bool, typer.Option(help="Take photo ids too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would move.")] = False,
    json_: JsonOption = False,
) -> None:
    """Take from a shared copy what this cache lacks, checked as it arrives."""
    from embedcache import share
    from embedcache.display import transfer_on
    from embedcache.photos import Photos

    source, target = (_url(None), Path(url)) if cache is None else (url, cache)
    with share.destination(target, keep=not dry_run) as opened:
        digests = None
        if photos is not None:
            table = Photos.read(photos, photo_column=photo_column, id_column=id_column)
            found = table.digests(opened.local / "digests.npz")
            digests = found.value[found.readable]
        moved = share.pull(
            source,
            opened,
            backbones=backbone or (),
            photos=digests,
            ref=ref,
            with_ids=with_ids,
            dry_run=dry_run,
            progress=transfer_on(),
        )
    _print(moved, json_)
    if moved.problems:
        raise typer.Exit(1)


@app.command()
def compact(cache: CachePath, json_: JsonOption = False) -> None:
    """Join small segments into larger ones with the same rows."""
    from embedcache.upkeep import compact as join

    _print(join(_open(cache)), json_)


@app.command()
def forget(
    cache: CachePath,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Photo ids.")],
    json_: JsonOption = False,
) -> None:
    """Really remove photos: rows, faces, ids, and what refs claim of them."""
    from embedcache.upkeep import forget as remove

    _print(remove(_open(cache), ids), json_)


@app.command()
def ref(
    cache: CachePath,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new name; refs are write-once.")],
    json_: JsonOption = False,
) -> None:
    """Pin the cache as it is now under a name, for --ref of info, export and fit-head."""
    from embedcache.upkeep import write_ref

    _print(write_ref(_open(cache), name), json_)


@app.command()
def doctor(json_: JsonOption = False) -> None:
    """Versions, devices, weights found, what is missing and the command that gets it."""
    from embedcache.doctor import diagnose

    _print(diagnose(), json_)


def main() -> None:
    """Run a command: a user's error is one message and status 1, a bug keeps its traceback."""
    try:
        app()
    except EmbedcacheError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted; run the same command to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `embedcache info ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        _fail(f"{error.strerror}: {error.filename or 'while writing'}")


def _study(
    toml: Path, out: Path, *, cache: Path | None, show: dict[str, bool], device: str, json_: bool
) -> None:
    """Run a study file, embedding for all its backbones at once, and print table and page."""
    from embedcache.backbones import resolved
    from embedcache.photos import Photos
    from embedcache.upkeep import pin
    from heads import report
    from heads import study as studies

    asked = studies.Study.read(toml)
    opened = _open(cache or out / "photos.cache", create=True)
    table = Photos.read(
        asked.label_table(out), photo_column=asked.photo_column, id_column=asked.id_column
    )
    imported = {s.spec.architecture for s in opened.spaces() if s.spec.kind == "foreign"}
    wanted = [resolved(b.name, asked.folder) for b in asked.backbone if b.name not in imported]
    if wanted and _extract(table, opened, wanted, device=device).interrupted:
        raise typer.Exit(130)
    results = studies.run(
        asked,
        _open(opened.path, ref=pin(opened)),  # every row can name what it was fitted on
        lambda _: None,
        out,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    written = report.write(results, out, **show)
    if json_:
        print(json.dumps(results.document() | written.document()))
    else:
        print(f"{results}\n{written}")


def _demo_study() -> str:
    """The demo's study.toml: with rows for the paper's networks, or a note on how to get them."""
    from embedcache import backbones, weights
    from heads import design

    rows, notes = "", []
    for name, label in ((DEFAULT_BACKBONE, "Inception"), ("facenet:vggface2", "FaceNet")):
        try:
            backbones.load(name)
            rows += f'\n[[backbone]]\nname = "{name}"\nlabel = "{label}"\n'
        except EmbedcacheError:
            notes.append(
                f"{label} has no row because its weights are not on this machine; where there is "
                f"internet, this gets them: {weights.command_for(name)}"
            )
    note = f'note = "{". ".join(notes)}"\n' if notes else ""
    return note + design.template("demo.toml") + rows


def _extract(
    photos: "Photos",
    cache: "Cache",
    names: list[str],
    **options: Any,
) -> "Extraction":
    from embedcache.display import progress_on, stop_on_signal
    from embedcache.extraction import extract

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with stop_on_signal() as stop, progress_on() as progress:
        return extract(
            photos, cache, backbone=names, progress=progress, tell=tell, stop=stop, **options
        )


def _open(path: Path, *, create: bool = False, ref: str | None = None) -> "Cache":
    from embedcache.store import Cache

    return Cache.open(path, create=create, ref=ref)


def _url(given: str | None) -> str:
    """The URL given, or that of the project's embedcache.toml."""
    from embedcache.team import FILE, read_settings

    found = given or read_settings().remote
    if not found:
        raise InputError(
            f'say where the shared copy is: a URL, or remote = "URL" in {FILE} here or above'
        )
    return found


def _print(result: Printable, as_json: bool) -> None:
    print(json.dumps(result.document()) if as_json else str(result))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
