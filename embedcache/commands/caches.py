"""The commands that show, check and keep one cache."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedcache.commands.options import (
    CachePath,
    IdColumn,
    JsonOption,
    PhotoColumn,
    SeveralBackbones,
    at_work_in,
    open_cache,
    print_result,
    read_photos,
)
from embedcache.errors import InputError

if TYPE_CHECKING:
    from embedcache.store.cache import Cache

commands = typer.Typer()


@commands.command()
def info(
    cache: Annotated[str, typer.Argument(metavar="DIR|URL", help="A cache, or a shared copy.")],
    photos: Annotated[bool, typer.Option(help="Also list the photos, one line each.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="Also list the photos without a vector, with reasons.")
    ] = False,
    ref: Annotated[str | None, typer.Option(help="Read the cache as this ref pins it.")] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Show who writes at the moment, and how fast, every two seconds until Ctrl-C.",
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Show what a cache or a shared copy holds. No vector is downloaded."""
    if watch and ("://" in cache or photos or failed or ref is not None):
        raise InputError(
            "--watch needs a cache's folder, and excludes --photos, --failed and --ref"
        )
    if "://" in cache:
        from embedcache.sharing.survey import survey

        if photos or failed or ref is not None:
            raise InputError("--photos, --failed and --ref need a cache's folder, not a URL")
        print_result(survey(cache), json_)
        return
    if watch:
        from embedcache.display import shown_again
        from embedcache.extraction.watching import watch as writers_of

        shown_again(writers_of(open_cache(Path(cache))), as_json=json_)
        return
    from embedcache.upkeep.inventory import summarise

    opened = open_cache(Path(cache), ref=ref)
    print_result(summarise(opened, photos=photos, failed=failed), json_)


@commands.command()
def verify(
    cache: Annotated[str, typer.Argument(metavar="DIR|URL", help="A cache, or a shared copy.")],
    repair: Annotated[
        bool, typer.Option(help="Move damaged files to damaged/ and list what to extract again.")
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
    if "://" not in cache and Path(cache).exists():
        at_work_in(Path(cache))
    report = verify_remote(cache) if "://" in cache else check(cache, repair=repair)
    print_result(report, json_)
    if not report.clean:
        raise typer.Exit(1)


@commands.command()
def export(
    cache: CachePath,
    backbone: SeveralBackbones,
    out: Annotated[Path, typer.Option(metavar="F.npy|F.parquet", help="The file to write.")],
    ref: Annotated[str | None, typer.Option(help="Read the cache as this ref pins it.")] = None,
    all_ids: Annotated[
        bool,
        typer.Option("--all-ids", help="Write ids of every folder or table, not only of the last."),
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
        Path, typer.Argument(metavar="VECTORS.npy", help="A float matrix, one row per photo.")
    ],
    ids: Annotated[
        Path, typer.Option(metavar="ids.csv", help="CSV of the rows' photo ids, in order.")
    ],
    photos: Annotated[Path, typer.Option(metavar="PHOTOS", help="The photos they belong to.")],
    name: Annotated[str, typer.Option(help="The name for these vectors, as --backbone takes it.")],
    photo_column: PhotoColumn = None,
    id_column: IdColumn = None,
    json_: JsonOption = False,
) -> None:
    """Import vectors computed elsewhere. They never mix with computed vectors."""
    from embedcache.display import counts_on
    from embedcache.upkeep.exchange import import_vectors

    opened = open_cache(cache, create=True)
    table = read_photos(photos, photo_column=photo_column, id_column=id_column)
    digests = table.digests(opened, progress=counts_on("photos read"))
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
    """Copy rows that this cache lacks from other caches."""
    from embedcache.upkeep.merging import merge as join

    opened = open_cache(cache, create=True)
    print_result(join(opened, [open_cache(other) for other in others], with_ids=with_ids), json_)


@commands.command()
def compact(
    cache: CachePath,
    remote: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Join those of this shared copy instead: downloads all of it into CACHE/local, "
            "and needs permission to delete there.",
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Join small segments into larger ones."""
    if remote is not None:
        from embedcache.sharing.joining import compact_remote

        print_result(compact_remote(remote, open_cache(cache)), json_)
        return
    from embedcache.upkeep.compaction import compact as join

    print_result(join(open_cache(cache)), json_)


@commands.command()
def forget(
    cache: CachePath,
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID...",
            help="Photo ids, files of photos, or sha256 of photos as 'info --photos' shows them: "
            "12 to 64 digits.",
        ),
    ] = None,
    listed: Annotated[
        Path | None,
        typer.Option("--ids", metavar="ids.csv", help="CSV of more photo ids, one in each row."),
    ] = None,
    forgotten: Annotated[
        bool, typer.Option("--forgotten", help="Delete all photos named by a tombstone here.")
    ] = False,
    scope: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="The folder or table of the ids, if an id occurs in two."
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Free what this backbone takes here; photos and their ids stay."
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Delete photos for good: their vectors, faces, ids and entries in refs.

    With --space, delete all vectors of a backbone instead, in this cache only.
    """
    from embedcache.upkeep.exchange import read_ids
    from embedcache.upkeep.forgetting import digests_of, forget_forgotten
    from embedcache.upkeep.forgetting import forget as remove
    from embedcache.upkeep.freeing import forget_space

    if bool(ids or listed) + forgotten + (space is not None) != 1:
        raise InputError("name what to forget: photos by their ids, or --forgotten, or --space")
    if space is not None and scope is not None:
        raise InputError("--scope is the place of photo ids: leave it out with --space")
    opened = open_cache(cache)
    if space is not None:
        print_result(forget_space(opened, space), json_)
        return
    if forgotten:
        done = forget_forgotten(opened)
    else:
        names = [*digests_of(opened, ids or []), *(read_ids(listed) if listed else ())]
        if not names:
            raise InputError(f"{listed} lists no photo id")
        done = remove(opened, names, scope=scope)
    print_result(replace(done, notes=(*done.notes, *_still_shared(opened, cache))), json_)


def _still_shared(cache: "Cache", typed: Path) -> list[str]:
    """What to do about the shared copy that a cache has, or was pushed to; typed: its path."""
    from embedcache.settings import read_settings

    url = read_settings().remote
    if not url and not any((cache.path / "local" / "seen").glob("*.json")):
        return []
    return [
        f"{url or 'the shared copy'} may keep rows of forgotten photos until somebody purges it: "
        f"'embedcache push --purge {typed} {url or 'URL'}'"
    ]


@commands.command()
def ref(
    cache: CachePath,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="A new name; refs are write-once.")
    ],
    delete: Annotated[
        bool,
        typer.Option(
            "--delete", help="Delete the refs of these names. What they pin stays until 'compact'."
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Pin the cache under a name. Use it as --ref of info, export and fit-head."""
    from embedcache.upkeep.pinning import delete_refs, write_ref

    if delete:
        print_result(delete_refs(open_cache(cache), names), json_)
        return
    if len(names) > 1:
        raise InputError(f"a ref has one name; got {len(names)}. Several go with --delete only")
    print_result(write_ref(open_cache(cache), names[0]), json_)


@commands.command()
def doctor(
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="List this backbone's layers instead, for --backbone NAME#LAYER."
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Show versions, devices and weights, and how to get what is missing."""
    if layers is not None:
        from embedcache.backbones.listing import list_layers

        print_result(list_layers(layers), json_)
        return
    from embedcache.doctor import diagnose

    print_result(diagnose(), json_)
