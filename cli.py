"""The command line: each command parses, calls one library function and prints what it returns.

Here stand the commands in which the two stages meet; those that keep a cache are in
`embedcache/commands.py`. Nothing imports this module. Heavy imports stand inside the commands, so
that `--help` and `info` answer at once. Data goes to stdout, progress and warnings to stderr. Exit
status: 0 done, 1 a user's error, 2 wrong usage, 130 interrupted (what was done until then is kept).
"""

import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from embedcache.commands import (
    BackboneOption,
    IdColumn,
    JsonOption,
    PhotoColumn,
    commands,
    open_cache,
    print_result,
    read_photos,
)
from embedcache.errors import EmbedcacheError, InputError

if TYPE_CHECKING:
    from embedcache.outcome import Extraction
    from embedcache.photos import Photos
    from embedcache.store import Cache

DEFAULT_BACKBONE = "inception_v3.tf_in1k"
SYSTEM_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}

# What is true of a command that Ctrl-C cut; extract and study commit what is done and say so.
CUT = {
    "push": "Interrupted: what was sent is kept. Run the same command to go on.",
    "pull": "Interrupted: what came is kept. Run the same command to go on.",
    "info": "Interrupted. Run the same command again.",
    "verify": "Interrupted. Run the same command again.",
}


class Commands(TyperGroup):
    """The commands; Ctrl-C, which typer would end without a word, ends each with one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            told = CUT.get(ctx.invoked_subcommand, "Interrupted. Run the same command to go on.")
            print(told, file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="embedcache",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run frozen vision backbones once over a photo collection, share the vectors, and fit "
    "light heads on them in seconds.",
)

CacheOption = Annotated[Path, typer.Option("--cache", metavar="DIR", help="The cache's folder.")]
PhotosPath = Annotated[
    Path, typer.Argument(metavar="PHOTOS", help="A folder, or a .csv/.parquet photo table.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per forward pass.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads that read and decode.")]


Precision = Literal["float32", "bfloat16", "float16"]
Decode = Literal["full", "reduced"]
Compile = Literal["auto", "on", "off"]
Optimizer = Literal["adam", "sgd"]
Loss = Literal["auto", "mse", "log_loss", "binomial"]
Start = Literal["linear", "constant"]
Format = Literal["csv", "parquet"]


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
    precision: Annotated[Precision, typer.Option(help="Each is a spec of its own.")] = "float32",
    device: DeviceOption = "auto",
    workers: Workers = None,
    decode: Annotated[
        Decode,
        typer.Option(help="full: every pixel, as timm. reduced: large JPEGs faster; another spec."),
    ] = "full",
    compile_: Annotated[
        Compile,
        typer.Option("--compile", help="Compile the networks; auto: when the run is long enough."),
    ] = "auto",
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
    from embedcache.address import parse_address
    from embedcache.share import destination
    from embedcache.team import read_settings

    settings = read_settings()
    shared = {"none": None}.get(remote or "", remote or settings.remote or None)
    if shared is not None:
        parse_address(shared)  # a mistyped one is told of before any photo is read
    table = read_photos(photos, photo_column=photo_column, id_column=id_column)
    names = backbone or [DEFAULT_BACKBONE]
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "precision": precision,
        "decode": decode,
        "device": device,
        "workers": workers,
        "retry_failed": retry_failed,
    }
    if offer and shared is None:
        raise InputError("--offer needs to know where to: add --remote URL")
    offers = settings.offer if offer is None else offer
    if dry_run:
        from embedcache.display import progress_on
        from embedcache.forecast import forecast

        there = open_cache(cache) if cache.exists() else None
        with progress_on() as progress:
            told = forecast(
                *(table, there),
                backbone=names,
                remote=shared,
                offer=offers,
                progress=progress,
                **options,
            )
        print_result(told, json_)
        return
    with destination(cache) as opened:
        found = _extract(
            *(table, opened, names),
            compiling=compile_,
            strict=strict,
            remote=shared,
            offer=offers,
            writer=settings.writer,
            **options,
        )
    print_result(found, json_)
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

    print_result(build(users, swipes, out, keep_unswiped=keep_unswiped), json_)


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
    optimizer: Annotated[Optimizer, typer.Option()] = "adam",
    loss: Annotated[
        Loss, typer.Option(help="binomial: of ratios whose weights are their counts.")
    ] = "auto",
    dropout: Annotated[float, typer.Option(help="Of hidden units; 0 is none.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Decoupled; 0 is none.")] = 0.0,
    members: Annotated[int, typer.Option(min=1, help="Networks averaged per rate.")] = 1,
    patience: Annotated[
        int, typer.Option(min=0, help="Epochs without a better dev figure; 0: run them all.")
    ] = 4,
    start: Annotated[
        Start, typer.Option(help="What FC heads begin as: the linear baseline, or the constant.")
    ] = "linear",
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
        open_cache(cache, ref=ref),
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
        optimizer=optimizer,
        seed=seed,
        members=members,
        hidden=hidden,
        loss=loss,
        start=start,
        margin=margin,
        weight_decay=weight_decay,
        dropout=dropout,
        patience=patience or None,
        memory_bytes=memory_bytes,
        device=device,
    )
    fitted.save(out)
    print_result(fitted, json_)


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
    from embedcache.provenance import place_of
    from heads.predict import predict as apply

    opened = open_cache(cache, create=True)
    table = read_photos(photos, photo_column=photo_column, id_column=id_column)
    card = heads.load(head_dir).card

    def embed(_: object) -> None:
        place = backbone or place_of(opened, card["spec_digest"]) or card["backbone"]
        if _extract(table, opened, [place], device=device, workers=workers).interrupted:
            raise typer.Exit(130)

    predictions = apply(head_dir, table.ids, opened, scope=table.scope, embed=embed)
    predictions.write(out)
    print_result(predictions, json_)


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
    format_: Annotated[Format, typer.Option("--format")] = "csv",
    json_: JsonOption = False,
) -> None:
    """Write a simulated population with known truth, statistically like the paper's."""
    from heads import simulate as simulation

    suffix = f".{format_}"
    print_result(simulation.write(out, users=users, swipes=swipes, seed=seed, suffix=suffix), json_)


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


app.add_typer(commands)


def main() -> None:
    """Run a command: a user's error is one message and status 1, a bug keeps its traceback."""
    try:
        app()
    except EmbedcacheError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("Interrupted. Run the same command to go on.", file=sys.stderr)
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
    from embedcache.upkeep import pin
    from heads import report
    from heads import study as studies

    asked = studies.Study.read(toml)
    opened = open_cache(cache or out / "photos.cache", create=True)
    table = read_photos(
        asked.label_table(out), photo_column=asked.photo_column, id_column=asked.id_column
    )
    imported = {s.spec.architecture for s in opened.spaces() if s.spec.kind == "foreign"}
    wanted = [resolved(b.name, asked.folder) for b in asked.backbone if b.name not in imported]
    if wanted and _extract(table, opened, wanted, device=device).interrupted:
        raise typer.Exit(130)
    results = studies.run(
        asked,
        open_cache(opened.path, ref=pin(opened)),  # every row can name what it was fitted on
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


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
