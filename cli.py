"""The command line: each command parses, calls one library function and prints what it returns.

Nothing imports this module. Heavy imports stand inside the commands, so that `--help` and `info`
answer at once. Data goes to stdout, progress and warnings to stderr. Exit status: 0 done, 1 a
user's error, 2 wrong usage, 130 interrupted (what was done until then is kept).
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Protocol

import typer

from embedcache.errors import EmbedcacheError, InputError

if TYPE_CHECKING:
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
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per forward pass.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads that read and decode.")]


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
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16: another spec each.")
    ] = "float32",
    device: DeviceOption = "auto",
    workers: Workers = None,
    decode: Annotated[
        str, typer.Option(help="reduced: large JPEGs at a smaller scale. full: every pixel.")
    ] = "reduced",
    retry_failed: Annotated[bool, typer.Option(help="Try failed photos again.")] = False,
    strict: Annotated[bool, typer.Option(help="Stop at the first photo that fails.")] = False,
    json_: JsonOption = False,
) -> None:
    """Embed every photo that the cache lacks; running it again is the resume."""
    from embedcache.photos import Photos

    _one_of("--precision", precision, ("float32", "bfloat16", "float16"))
    _one_of("--decode", decode, ("reduced", "full"))
    table = Photos.read(photos, photo_column=photo_column, id_column=id_column)
    found = _extract(
        table,
        _open(cache, create=True),
        backbone or [DEFAULT_BACKBONE],
        batch_size=batch_size,
        precision=precision,
        decode=decode,
        device=device,
        workers=workers,
        retry_failed=retry_failed,
        strict=strict,
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
    target: Annotated[str, typer.Option(metavar="COLUMN", help="What to predict.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the fitted heads go.")],
    id_column: IdColumn = "user_id",
    weight: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Weight of each row, such as swipes.")
    ] = None,
    task: Annotated[str, typer.Option(help="auto, regression or binary.")] = "auto",
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
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    learning_rate: Annotated[
        list[float] | None, typer.Option(help="May be repeated: the sweep; dev picks.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adam or sgd.")] = "adam",
    seed: Annotated[int, typer.Option()] = 0,
    ref: Annotated[str | None, typer.Option(help="Read the cache as this ref pins it.")] = None,
    json_: JsonOption = False,
) -> None:
    """Fit heads on cached vectors and print the table; the test set is touched once."""
    import heads
    from heads.dataset import load

    dataset = load(
        _open(cache, ref=ref),
        backbone,
        labels,
        target=target,
        id_column=id_column,
        weight=weight,
        task=task,
        faces=faces,
        split_by=split_by,
        split_column=split_column,
        seed=seed,
    )
    fitted = heads.fit(
        dataset,
        heads=tuple(head or ["all"]),
        epochs=epochs,
        batch_size=batch_size,
        learning_rates=learning_rate,
        optimizer=optimizer,
        seed=seed,
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
    cache: CachePath,
    photos: Annotated[bool, typer.Option(help="Also list the photos, one line each.")] = False,
    json_: JsonOption = False,
) -> None:
    """Say what a cache holds."""
    from embedcache.summary import summarise

    _print(summarise(_open(cache), photos=photos), json_)


@app.command()
def doctor(json_: JsonOption = False) -> None:
    """Versions, devices, weights found, what is missing and the command that gets it."""
    from embedcache.doctor import diagnose

    _print(diagnose(), json_)


def main() -> None:
    """The console command: a user's error is one message and status 1, a bug keeps its traceback."""
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


def _extract(
    photos: "Photos",
    cache: "Cache",
    names: list[str],
    *,
    decode: str = "reduced",
    **options: Any,
) -> Any:
    from embedcache.display import progress_on
    from embedcache.extract import extract

    with _stop_on_signal() as stop, progress_on() as progress:
        return extract(
            photos, cache, backbone=names, decode=decode, progress=progress, stop=stop, **options
        )


def _open(path: Path, *, create: bool = False, ref: str | None = None) -> "Cache":
    from embedcache.store import Cache

    return Cache.open(path, create=create, ref=ref)


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; a second one acts as ever."""
    asked = False

    def ask(number: int, _: object) -> None:
        nonlocal asked
        asked = True
        for signal_, old in before.items():
            signal.signal(signal_, old)
        print("stopping: committing what is done ...", file=sys.stderr, flush=True)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for signal_, old in before.items():
            signal.signal(signal_, old)


def _print(result: Printable, as_json: bool) -> None:
    print(json.dumps(result.document()) if as_json else str(result))


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{option} is one of {', '.join(allowed)}; got {value!r}")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
