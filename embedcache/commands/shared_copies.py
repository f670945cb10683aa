"""The commands that move rows between a cache and a shared copy of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedcache.commands.options import (
    Backbones,
    CachePath,
    IdColumn,
    JsonOption,
    PhotoColumn,
    at_work_in,
    open_cache,
    print_result,
    read_photos,
)
from embedcache.errors import InputError

if TYPE_CHECKING:
    from embedcache.sharing.moved import Moved

commands = typer.Typer()


@commands.command()
def push(
    cache: CachePath,
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="A URL. [default: from embedcache.toml]")
    ] = None,
    backbone: Backbones = None,
    with_ids: Annotated[
        bool, typer.Option(help="Upload photo ids too; they may be private.")
    ] = False,
    purge: Annotated[
        bool, typer.Option(help="Also delete forgotten rows there; needs permission to delete.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report what would be moved.")] = False,
    json_: JsonOption = False,
) -> None:
    """Upload what a shared copy lacks. URL: a folder, s3://, gs://, az:// or ssh://."""
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
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[URL] DIR",
            help="The shared copy, unless it is that of embedcache.toml; then the cache's folder.",
        ),
    ],
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report what would be moved.")] = False,
    json_: JsonOption = False,
) -> None:
    """Download what this cache lacks. Every row is checked as it arrives."""
    from embedcache.display import counts_on, transfer_on
    from embedcache.sharing import share
    from embedcache.sharing.connecting import destination

    if len(places) > 2:
        raise typer.BadParameter(f"at most a URL and a folder; got {len(places)} words")
    source = _url(places[0] if len(places) == 2 else None)
    with destination(Path(places[-1]), keep=not dry_run) as opened:
        at_work_in(opened.path)
        digests = None
        if photos is not None:
            table = read_photos(photos, photo_column=photo_column, id_column=id_column)
            read = counts_on("photos read")
            found = table.digests(opened, progress=read)
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
