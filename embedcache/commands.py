"""The commands that fill a cache, keep it and share it: stage one alone, each one library function.

`cli.py` adds them to its own (docs/decisions/004). What both need is here too: the options that
mean the same everywhere, and how a cache is opened, photos are read and a result is shown. Heavy
imports stand inside the commands.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

from embedcache.errors import EmbedcacheError, InputError

if TYPE_CHECKING:
    from embedcache.extraction.outcome import Extraction
    from embedcache.extraction.parts import WorkPart
    from embedcache.photos.table import Photos
    from embedcache.settings import ProjectSettings
    from embedcache.sharing.moved import Moved
    from embedcache.store.cache import Cache

commands = typer.Typer()
log = logging.getLogger(__name__)

DEFAULT_BACKBONE = "inception_v3.tf_in1k"
INTERRUPTED = 130
SHOWN_FAILURES = 5
Precision = Literal["float32", "bfloat16", "float16"]
Decode = Literal["full", "reduced"]
Compile = Literal["auto", "on", "off"]

CachePath = Annotated[Path, typer.Argument(metavar="DIR", help="The cache's folder.")]
BackboneOption = Annotated[
    str,
    typer.Option(
        "--backbone", metavar="NAME[@face]", help="The backbone to use; see 'embedcache info'."
    ),
]
PhotoColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="The table's column with the photo's path. [default: photo, image, path or file_name]",
    ),
]
IdColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="The table's column with the photo's id. [default: photo_id, user_id or id]",
    ),
]
Backbones = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone", metavar="NAME", help="Only this backbone's vectors; may be repeated."
    ),
]
CacheOption = Annotated[Path, typer.Option("--cache", metavar="DIR", help="The cache's folder.")]
PhotosPath = Annotated[
    Path, typer.Argument(metavar="PHOTOS", help="A folder, or a .csv/.parquet photo table.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Images per forward pass. [default: measured]")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Threads that read and decode. [default: measured]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


class Printable(Protocol):
    """What every library function returns here: text for people, a document for machines."""

    def document(self) -> dict[str, Any]: ...


def print_result(result: Printable, as_json: bool) -> None:
    """Print a result, for people or for machines."""
    print(json.dumps(result.document()) if as_json else printable(str(result)))


def printable(text: str) -> str:
    """Text without control characters: names and servers' answers may hold any."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def open_cache(path: Path, *, create: bool = False, ref: str | None = None) -> "Cache":
    """The cache in a folder, as a ref pins it where one is named."""
    from embedcache.store.cache import Cache

    return Cache.open(path, create=create, ref=ref)


def read_photos(path: Path, *, photo_column: str | None, id_column: str | None) -> "Photos":
    """A folder or table of photos; shows progress while a long folder is listed."""
    from embedcache.display import counts_on
    from embedcache.photos.table import Photos

    listed = counts_on("photos found")
    photos = Photos.read(path, photo_column=photo_column, id_column=id_column, progress=listed)
    for remark in photos.remarks:
        log.info("%s", remark)
    return photos


def embed_photos(
    photos: "Photos",
    cache: "Cache",
    names: list[str],
    *,
    batch_size: int | None = None,
    precision: Precision = "float32",
    decode: Decode = "full",
    device: str = "auto",
    workers: int | None = None,
    compiling: Compile = "auto",
    retry_failed: bool = False,
    again: bool = False,
    strict: bool = False,
    remote: str | None = None,
    offer: bool = False,
    writer: str = "",
    part: "WorkPart | None" = None,
) -> "Extraction":
    """Embed what the cache lacks, with progress, until it is done or a signal comes.

    Names on stderr the first few photos that failed, and what lists the others.
    """
    from embedcache.display import progress_on, stop_on_signal
    from embedcache.extraction.run import extract
    from embedcache.upkeep.inventory import failures_of

    with stop_on_signal() as stop, progress_on() as progress:
        found = extract(
            photos,
            cache,
            backbone=names,
            batch_size=batch_size,
            precision=precision,
            decode=decode,
            device=device,
            workers=workers,
            compiling=compiling,
            retry_failed=retry_failed,
            again=again,
            strict=strict,
            remote=remote,
            offer=offer,
            writer=writer,
            part=part,
            progress=progress,
            log=lambda line: log.info("%s", line),
            stop=stop,
        )
    if any(space.failed for space in found.spaces) and not found.interrupted:
        failures = failures_of(photos, cache, [space.spec for space in found.spaces])
        for name, reason in failures[:SHOWN_FAILURES]:
            log.info("no vector: %s (%s)", name, reason)
        if len(failures) > SHOWN_FAILURES:
            log.info(
                "... and %s more: 'embedcache info %s --failed' lists them",
                f"{len(failures) - SHOWN_FAILURES:,}",
                cache.path,
            )
    return found


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
    photo_column: PhotoColumn = None,
    id_column: IdColumn = None,
    batch_size: BatchSize = None,
    precision: Annotated[
        Precision, typer.Option(help="Of the network; each gives vectors of its own.")
    ] = "float32",
    device: DeviceOption = "auto",
    workers: Workers = None,
    decode: Annotated[
        Decode,
        typer.Option(
            help="full: every pixel, as timm. reduced: large JPEGs faster, vectors of their own."
        ),
    ] = "full",
    compile_: Annotated[
        Compile,
        typer.Option("--compile", help="Compile the networks; auto: in runs long enough to gain."),
    ] = "auto",
    retry_failed: Annotated[bool, typer.Option(help="Try failed photos again.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Embed these photos even if they were forgotten.")
    ] = False,
    strict: Annotated[bool, typer.Option(help="Stop at the first photo that fails.")] = False,
    max_failed: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Exit 1 if more fail. [default: only if all fail]"
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|auto",
            help="Only the I-th of N parts; auto: as Slurm, Kubernetes or EMBEDCACHE_PART and "
            "EMBEDCACHE_PARTS say.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and how long it takes.")
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
        typer.Option("--offer/--no-offer", help="Upload new vectors to the shared copy."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Embed every photo that the cache lacks. Rerun the command to resume."""
    from embedcache.extraction.parts import WorkPart
    from embedcache.settings import read_settings
    from embedcache.sharing.connecting import destination

    settings = read_settings()
    shared = _shared(remote, settings)
    mine = None if part is None else WorkPart.parse(part)
    table = read_photos(photos, photo_column=photo_column, id_column=id_column)
    table = table if mine is None else mine.of(table)
    if offer and shared is None:
        raise InputError("--offer needs a shared copy: add --remote URL")
    offers = settings.offer if offer is None else offer
    names = backbone or [DEFAULT_BACKBONE]
    if dry_run:
        from embedcache.display import progress_on
        from embedcache.extraction.forecast import forecast

        with progress_on() as progress:
            expected = forecast(
                table,
                open_cache(cache) if cache.exists() else None,
                backbone=names,
                batch_size=batch_size,
                precision=precision,
                decode=decode,
                device=device,
                workers=workers,
                retry_failed=retry_failed,
                remote=shared,
                offer=offers,
                progress=progress,
            )
        print_result(expected, json_)
        return
    with destination(cache) as opened:
        found = embed_photos(
            table,
            opened,
            names,
            batch_size=batch_size,
            precision=precision,
            decode=decode,
            device=device,
            workers=workers,
            compiling=compile_,
            retry_failed=retry_failed,
            again=again,
            strict=strict,
            remote=shared,
            offer=offers,
            writer=settings.writer,
            part=mine,
        )
    print_result(found, json_)
    if not json_:
        print(f"vectors are in {cache}")
    if found.interrupted:
        raise typer.Exit(INTERRUPTED)
    _refuse_failures(found, max_failed)


def _shared(remote: str | None, settings: "ProjectSettings") -> str | None:
    """The shared copy to read through, checked before any photo is read; None for none."""
    from embedcache.remotes.address import parse_address

    shared = None if remote == "none" else remote or settings.remote or None
    if shared is not None:
        parse_address(shared)
    return shared


def _refuse_failures(found: "Extraction", max_failed: float | None) -> None:
    """Raise where all photos failed, or more than the share that was asked for."""
    for space in found.spaces:
        if not space.wanted or not space.failed:
            continue
        share = space.failed / space.wanted
        if share == 1 or (max_failed is not None and share > max_failed):
            reason = max(space.failures.items(), key=lambda item: item[1])[0]
            raise EmbedcacheError(
                f"{space.failed:,} of {space.wanted:,} photos have no vector of {space.backbone}, "
                f"mostly {reason!r}. What was embedded is kept"
            )


@commands.command()
def info(
    cache: Annotated[str, typer.Argument(metavar="DIR|URL", help="A cache, or a shared copy.")],
    photos: Annotated[bool, typer.Option(help="Also list the photos, one line each.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also list the photos without a vector, with reasons.")
    ] = False,
    ref: Annotated[str | None, typer.Option(help="Read the cache as this ref pins it.")] = None,
    json_: JsonOption = False,
) -> None:
    """Show what a cache or a shared copy holds. No vector is downloaded."""
    if "://" in cache:
        from embedcache.sharing.survey import survey

        if photos or failed or ref is not None:
            raise InputError("--photos, --failed and --ref need a cache's folder, not a URL")
        print_result(survey(cache), json_)
        return
    from embedcache.upkeep.inventory import summarise

    opened = open_cache(Path(cache), ref=ref)
    print_result(summarise(opened, photos=photos, failed=failed), json_)


@commands.command()
def verify(
    cache: Annotated[str, typer.Argument(metavar="DIR|URL", help="A cache, or a shared copy.")],
    repair: Annotated[
        bool, typer.Option(help="Move damaged files aside, and say what to extract again.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Check every byte of a cache. Exit status 1 if anything is wrong."""
    from embedcache.sharing.survey import Checked, verify_remote
    from embedcache.upkeep.findings import Report
    from embedcache.upkeep.verify import verify as check

    if repair and "://" in cache:
        raise InputError("--repair needs a cache's folder; without it, verify checks the URL")
    report: Report | Checked
    report = verify_remote(cache) if "://" in cache else check(cache, repair=repair)
    print_result(report, json_)
    if not report.clean:
        raise typer.Exit(1)


@commands.command()
def export(
    cache: CachePath,
    backbone: BackboneOption,
    out: Annotated[Path, typer.Option(metavar="F.npy|F.parquet", help="The file to write.")],
    ref: Annotated[str | None, typer.Option(help="Read the cache as this ref pins it.")] = None,
    all_ids: Annotated[
        bool,
        typer.Option("--all-ids", help="A row for each folder or table that has a photo."),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Write vectors and photo ids to a .npy or Parquet file."""
    from embedcache.upkeep.exchange import export as write

    opened = open_cache(cache, ref=ref)
    print_result(write(opened, backbone, out, every_scope=all_ids), json_)


@commands.command("import")
def import_(
    cache: CachePath,
    vectors: Annotated[
        Path, typer.Argument(metavar="VECTORS.npy", help="Floats, a row per photo.")
    ],
    ids: Annotated[
        Path, typer.Option(metavar="ids.csv", help="Their photo ids, in the same order.")
    ],
    photos: Annotated[Path, typer.Option(metavar="PHOTOS", help="The photos they belong to.")],
    name: Annotated[str, typer.Option(help="The name for these vectors, as --backbone takes it.")],
    photo_column: PhotoColumn = None,
    id_column: IdColumn = None,
    json_: JsonOption = False,
) -> None:
    """Import vectors computed elsewhere. They are a set of their own."""
    from embedcache.display import counts_on
    from embedcache.upkeep.exchange import import_vectors

    opened = open_cache(cache, create=True)
    table = read_photos(photos, photo_column=photo_column, id_column=id_column)
    digests = table.digests(opened.local / "digests.npz", progress=counts_on("photos read"))
    known = [i for i, ok in zip(table.ids, digests.readable, strict=True) if ok]
    found = import_vectors(
        *(opened, vectors, ids),
        ids=known,
        digests=digests.value[digests.readable],
        name=name,
        scope=table.scope,
    )
    print_result(found, json_)


@commands.command()
def merge(
    cache: CachePath,
    others: Annotated[list[Path], typer.Argument(metavar="OTHER...", help="Other caches.")],
    with_ids: Annotated[bool, typer.Option(help="Take their photo ids too.")] = False,
    json_: JsonOption = False,
) -> None:
    """Copy the rows of other caches that this one lacks."""
    from embedcache.upkeep.merging import merge as join

    opened = open_cache(cache, create=True)
    print_result(join(opened, [open_cache(other) for other in others], with_ids=with_ids), json_)


@commands.command()
def push(
    cache: CachePath,
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="[default: that of embedcache.toml]")
    ] = None,
    backbone: Backbones = None,
    with_ids: Annotated[
        bool, typer.Option(help="Upload photo ids too; they may be private.")
    ] = False,
    purge: Annotated[
        bool, typer.Option(help="Also delete forgotten rows there; needs permission to delete.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would move.")] = False,
    json_: JsonOption = False,
) -> None:
    """Upload what a shared copy lacks. It is a folder, s3://, gs://, az:// or ssh://."""
    from embedcache.display import transfer_on
    from embedcache.sharing import share

    moved = share.push(
        open_cache(cache),
        _url(url),
        backbones=backbone or (),
        with_ids=with_ids,
        purge=purge,
        dry_run=dry_run,
        progress=transfer_on(),
    )
    _print_moved(moved, json_)


@commands.command()
def pull(
    url: Annotated[
        str, typer.Argument(metavar="[URL]", help="The shared copy. [default: embedcache.toml's]")
    ],
    cache: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="The cache's folder.", show_default=False)
    ] = None,
    backbone: Backbones = None,
    photos: Annotated[
        Path | None,
        typer.Option(metavar="PHOTOS", help="Only rows of these photos: a folder or a table."),
    ] = None,
    photo_column: PhotoColumn = None,
    id_column: IdColumn = None,
    ref: Annotated[
        str | None, typer.Option(metavar="NAME", help="Exactly the rows that this ref pins.")
    ] = None,
    with_ids: Annotated[bool, typer.Option(help="Download photo ids too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would move.")] = False,
    json_: JsonOption = False,
) -> None:
    """Download what this cache lacks. Every row is checked as it arrives."""
    from embedcache.display import counts_on, transfer_on
    from embedcache.sharing import share
    from embedcache.sharing.connecting import destination

    source, target = (_url(None), Path(url)) if cache is None else (url, cache)
    with destination(target, keep=not dry_run) as opened:
        digests = None
        if photos is not None:
            table = read_photos(photos, photo_column=photo_column, id_column=id_column)
            read = counts_on("photos read")
            found = table.digests(opened.local / "digests.npz", progress=read)
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
    _print_moved(moved, json_)


@commands.command()
def compact(cache: CachePath, json_: JsonOption = False) -> None:
    """Join small segments into larger ones."""
    from embedcache.upkeep.compaction import compact as join

    print_result(join(open_cache(cache)), json_)


@commands.command()
def forget(
    cache: CachePath,
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID...",
            help="Photo ids, or sha256 of photos as 'info --photos' shows them: 12 to 64 digits.",
        ),
    ] = None,
    forgotten: Annotated[
        bool, typer.Option("--forgotten", help="All photos that anyone has forgotten before.")
    ] = False,
    scope: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="Where the ids come from, if one names photos in two places."
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Remove photos for good. Their rows, faces, ids and entries in refs go."""
    from embedcache.upkeep.forgetting import forget as remove
    from embedcache.upkeep.forgetting import forget_forgotten

    if bool(ids) == forgotten:
        raise InputError("name the photos to forget: their ids, or --forgotten, not both")
    opened = open_cache(cache)
    found = forget_forgotten(opened) if forgotten else remove(opened, ids or [], scope=scope)
    print_result(found, json_)


@commands.command()
def ref(
    cache: CachePath,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new name; refs are write-once.")],
    json_: JsonOption = False,
) -> None:
    """Pin the cache under a name. Use it as --ref of info, export and fit-head."""
    from embedcache.upkeep.pinning import write_ref

    print_result(write_ref(open_cache(cache), name), json_)


@commands.command()
def doctor(json_: JsonOption = False) -> None:
    """Show versions, devices and weights. Says how to get what is missing."""
    from embedcache.doctor import diagnose

    print_result(diagnose(), json_)


def _print_moved(moved: "Moved", as_json: bool) -> None:
    """Print what moved; exit 1 where something was left out."""
    print_result(moved, as_json)
    if moved.problems:
        raise typer.Exit(1)


def _url(given: str | None) -> str:
    """The URL given, or that of the project's embedcache.toml."""
    from embedcache.settings import FILE, read_settings

    found = given or read_settings().remote
    if not found:
        raise InputError(f'name the shared copy: a URL, or remote = "URL" in {FILE} here or above')
    return found
