"""`embedcache extract` and `upgrade`: photos in, vectors in a cache."""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcache.commands.options import (
    DEFAULT_BACKBONE,
    INTERRUPTED,
    BatchSize,
    CacheOption,
    CachePath,
    Compile,
    Decode,
    DetectorName,
    DeviceOption,
    IdColumn,
    JsonOption,
    MaxFailed,
    PhotoColumn,
    PhotosPath,
    PrecisionOption,
    RetryFailed,
    Workers,
    at_work_in,
    open_cache,
    print_result,
    read_photos,
)
from embedcache.errors import EmbedcacheError, InputError
from embedcache.wording import counted, plain

if TYPE_CHECKING:
    from embedcache.backbones.loading import Backbone
    from embedcache.extraction.forecast import Forecast
    from embedcache.extraction.outcome import Extraction
    from embedcache.photos.digests import Digests
    from embedcache.photos.table import Photos
    from embedcache.settings import ProjectSettings
    from embedcache.store.cache import Cache

log = logging.getLogger(__name__)

SHOWN_FAILURES = 5


def _address(ray: str | None) -> str | None:
    """The address of a Ray cluster, looked at before PHOTOS is missed; "" is this machine."""
    if ray and ray not in ("local", "auto") and Path(ray).exists():
        raise InputError(
            f"--ray took {plain(ray)} as the address of a cluster, and it is a file or folder. Put "
            "PHOTOS before --ray, or write --ray= for Ray on this machine"
        )
    return "local" if ray == "" else ray


def extract(
    photos: PhotosPath,
    cache: CacheOption,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[@face][#LAYER]",
            help="A timm name, hf-hub:ID, local-dir:FOLDER or facenet:NAME; may be repeated. "
            "#LAYER,LAYER: layers inside it, see 'doctor --layers'. "
            f"[default: {DEFAULT_BACKBONE}]",
        ),
    ] = None,
    photo_column: PhotoColumn = None,
    id_column: IdColumn = None,
    batch_size: BatchSize = None,
    precision: PrecisionOption = "float32",
    device: DeviceOption = "auto",
    workers: Workers = None,
    decode: Annotated[
        Decode,
        typer.Option(
            help="full: every pixel, as in timm. reduced: large JPEGs faster, as separate vectors."
        ),
    ] = "full",
    detector: Annotated[
        DetectorName,
        typer.Option(help="Of faces: mtcnn, as in the paper; blazeface: faster, as other spaces."),
    ] = "mtcnn",
    keep_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="SIZE",
            help="Also keep the decoded photos, SIZE x SIZE pixels as one of the backbones takes "
            "them, for later backbones with the same preprocessing. 'forget --space' frees them.",
        ),
    ] = None,
    compile_: Annotated[
        Compile,
        typer.Option("--compile", help="Compile the networks; auto: if the run is long enough."),
    ] = "auto",
    retry_failed: RetryFailed = False,
    again: Annotated[
        bool, typer.Option("--again", help="Embed these photos even if they were forgotten.")
    ] = False,
    strict: Annotated[bool, typer.Option(help="Stop at the first photo that fails.")] = False,
    max_failed: MaxFailed = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|auto",
            help="Only the I-th of N parts; auto: read from Slurm, Kubernetes, or EMBEDCACHE_PART "
            "and EMBEDCACHE_PARTS.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            callback=_address,
            help="On all machines of a Ray cluster; without an address, Ray on this one. Put "
            "PHOTOS first, or write --ray=.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report what would be done, and the time needed.")
    ] = False,
    remote: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Download what this shared copy has, compute the rest; 'none': use no remote. "
            "[default: from embedcache.toml]",
        ),
    ] = None,
    offer: Annotated[
        bool | None,
        typer.Option("--offer/--no-offer", help="Upload new vectors to the shared copy."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Embed every photo that the cache lacks. Rerun the command to resume."""
    from embedcache.backbones.names import Name
    from embedcache.extraction.parts import WorkPart
    from embedcache.settings import read_settings
    from embedcache.sharing.connecting import destination

    settings = read_settings()
    shared = _shared(remote, settings)
    if offer and shared is None:
        raise InputError("--offer needs a shared copy: add --remote URL")
    mine = None if part is None else WorkPart.parse(part)
    table = read_photos(photos, photo_column=photo_column, id_column=id_column)
    table = table if mine is None else mine.of(table)
    names = backbone or [DEFAULT_BACKBONE]
    if detector != "mtcnn" and all(Name.parse(name).select is None for name in names):
        raise InputError(
            "--detector finds faces for face crops, and no backbone here takes one: end its name "
            "in @face"
        )
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "precision": precision,
        "decode": decode,
        "detector": detector,
        "keep_pixels": keep_pixels,
        "device": device,
        "workers": workers,
        "retry_failed": retry_failed,
        "remote": shared,
        "offer": settings.offer if offer is None else offer,
    }
    if dry_run:
        print_result(_forecast(table, cache, names, options | {"part": mine}), json_)
        return
    options |= {"compiling": compile_, "again": again, "writer": settings.writer}
    if ray is None:
        options |= {"strict": strict, "part": mine}
    elif keep_pixels is not None:
        raise InputError("--keep-pixels and --ray do not go together: keep them on one machine")
    elif strict:
        raise InputError("--strict and --ray do not go together: the machines do not wait for one")
    else:
        del options["keep_pixels"]
        options["address"] = ray
    with destination(cache) as opened:
        at_work_in(opened.path)
        found = embed_photos(table, opened, names, **options)
    print_result(found, json_)
    if not json_:
        print(f"vectors are in {cache}")
    if found.interrupted:
        raise typer.Exit(INTERRUPTED)
    _refuse_failures(found, max_failed)


def upgrade(
    cache: CachePath,
    from_: Annotated[
        str, typer.Option("--from", metavar="NAME", help="The backbone whose photos are embedded.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="NAME[@face]", help="The backbone to embed them with.")
    ],
    photos: Annotated[
        Path | None,
        typer.Option(
            metavar="PHOTOS",
            help="A folder or table with the photos. [default: files that this machine knows]",
        ),
    ] = None,
    photo_column: PhotoColumn = None,
    id_column: IdColumn = None,
    batch_size: BatchSize = None,
    precision: PrecisionOption = "float32",
    device: DeviceOption = "auto",
    workers: Workers = None,
    retry_failed: RetryFailed = False,
    max_failed: MaxFailed = None,
    json_: JsonOption = False,
) -> None:
    """Embed with a new backbone what an old one has. Both stay readable.

    Photos are found by their content in the files that runs on this machine have read, or in
    PHOTOS. What cannot be read is counted. Rerun the command to resume.
    """
    from embedcache.display import progress_on, stop_on_signal
    from embedcache.extraction.upgrade import upgrade as embed

    given = None
    if photos is not None:
        given = read_photos(photos, photo_column=photo_column, id_column=id_column)
    opened = open_cache(cache)
    with stop_on_signal() as stop, progress_on() as progress:
        found = embed(
            opened,
            old=from_,
            new=to,
            photos=given,
            batch_size=batch_size,
            precision=precision,
            device=device,
            workers=workers,
            retry_failed=retry_failed,
            progress=progress,
            log=lambda line: log.info("%s", line),
            stop=stop,
        )
    print_result(found, json_)
    if found.extraction.interrupted:
        raise typer.Exit(INTERRUPTED)
    _refuse_failures(found.extraction, max_failed)


def _forecast(
    table: "Photos", cache: Path, names: list[str], options: dict[str, Any]
) -> "Forecast":
    """What a run would do."""
    from embedcache.display import progress_on
    from embedcache.extraction.forecast import forecast

    present = open_cache(cache) if cache.exists() else None
    with progress_on() as progress:
        return forecast(table, present, backbone=names, progress=progress, **options)


def _name_failures(photos: "Photos", cache: "Cache", specs: list[str]) -> None:
    """The first few photos that have no vector, and what lists the others, on stderr."""
    from embedcache.photos.kinds import in_words
    from embedcache.upkeep.inventory import failures_of

    failures = failures_of(photos, cache, specs)
    for name, reason in failures[:SHOWN_FAILURES]:
        log.info("no vector: %s (%s)", plain(name), in_words(reason))
    if len(failures) > SHOWN_FAILURES:
        log.info(
            "... and %s more: 'embedcache info %s --failed' lists all",
            f"{len(failures) - SHOWN_FAILURES:,}",
            cache.path,
        )


def _shared(remote: str | None, settings: "ProjectSettings") -> str | None:
    """The shared copy to read through, checked before any photo is read; None for none.

    What was typed is asked for, so that a misspelt place ends the command; one in embedcache.toml
    costs the runs that do not name it a warning.
    """
    from embedcache.remotes.address import parse_address
    from embedcache.sharing.connecting import require_place

    shared = None if remote == "none" else remote or settings.remote or None
    if shared is not None:
        parse_address(shared)
        if remote:
            require_place(shared)
    return shared


def _refuse_failures(found: "Extraction", max_failed: float | None) -> None:
    """Raise where photos were left, where all failed, or more than the share that was asked for."""
    from embedcache.photos.kinds import in_words

    for space in found.spaces:
        if space.left:
            raise EmbedcacheError(
                f"{space.left:,} of {counted(space.wanted, 'photo')} left: changed or gone "
                "meanwhile, or not seen by a machine of the cluster. Put them on a folder that all "
                "machines see under the same path, and run the command again. What was embedded "
                "is kept"
            )
        if not space.wanted or not space.failed:
            continue
        share = space.failed / space.wanted
        if share == 1 or (max_failed is not None and share > max_failed):
            reason = max(space.failures.items(), key=lambda item: item[1])[0]
            raise EmbedcacheError(
                f"{space.failed:,} of {counted(space.wanted, 'photo')} without a vector of "
                f"{space.backbone}, mostly: {in_words(reason)}. What was embedded is kept"
            )


def reasons_of(photos: "Photos", cache: "Cache") -> Callable[[str], str]:
    """Why a cache does not know a photo that it was given, by the photo's id."""

    @functools.cache
    def contents() -> tuple[dict[str, int], "Digests", list[bool]]:
        digests = photos.digests(cache)
        places = dict(zip(photos.ids, range(len(photos)), strict=True))
        dead = cache.dead(digests.value)
        dead |= cache.dead_pairs(photos.scope, photos.ids, digests.value)
        return places, digests, dead.tolist()

    def why(name: str) -> str:
        places, digests, forgotten = contents()
        place = places[name]
        if place in digests.reasons:
            return digests.reasons[place]
        return "forgotten" if forgotten[place] else "not in the cache"

    return why


def embed_photos(
    photos: "Photos", cache: "Cache", backbones: "Sequence[str | Backbone]", **options: Any
) -> "Extraction":
    """Embed what the cache lacks, with progress, until it is done or a signal comes.

    Names on stderr the first few photos that failed, and what lists the others.

    options: those of `embedcache.extract`; with an address those of `cluster.extract_on_ray`.
    """
    from embedcache.display import progress_on, stop_on_signal

    run: Callable[..., Extraction]
    if "address" in options:
        from embedcache.extraction.cluster import extract_on_ray as run
    else:
        from embedcache.extraction.run import extract as run

    with stop_on_signal() as stop, progress_on() as progress:
        found = run(
            photos,
            cache,
            backbone=backbones,
            progress=progress,
            log=lambda line: log.info("%s", line),
            stop=stop,
            **options,
        )
    if any(space.failed for space in found.spaces) and not found.interrupted:
        _name_failures(photos, cache, [space.spec for space in found.spaces])
    return found
