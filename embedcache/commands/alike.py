"""The commands that compare a cache with itself: what looks alike."""

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedcache.commands.options import (
    BackboneOption,
    CachePath,
    DeviceOption,
    IdColumn,
    JsonOption,
    PhotoColumn,
    as_typed,
    open_cache,
    print_result,
    read_photos,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from embedcache.store.cache import Cache

commands = typer.Typer()
log = logging.getLogger(__name__)

ELSEWHERE = {
    "`threshold`": "near-duplicates:X",
    "`photos`": "'embedcache duplicates --photos'",
}
"""What a threshold's parameters are to commands that only keep near-duplicates together."""
Scope = Annotated[
    str | None,
    typer.Option(metavar="PLACE", help="Only photos of this folder or table, as 'info' names it."),
]


@commands.command()
def similar(
    cache: CachePath,
    photo: Annotated[
        str, typer.Argument(metavar="PHOTO", help="A photo id of the cache, or an image file.")
    ],
    backbone: BackboneOption,
    top: Annotated[int, typer.Option(min=1, help="How many photos to list.")] = 10,
    scope: Scope = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """List the photos that look most like one photo. Nothing is written to the cache."""
    from embedcache.alike.nearest import similar as nearest
    from embedcache.display import counts_on

    opened = open_cache(cache)
    progress = counts_on("photos compared")
    print_result(
        nearest(opened, backbone, photo, top=top, scope=scope, device=device, progress=progress),
        json_,
    )


@commands.command()
def duplicates(
    cache: CachePath,
    backbone: BackboneOption,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="The cosine of near-duplicates. [default: measured on your photos]"
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            metavar="PHOTOS",
            help="The folder or table of the photos. [default: where 'extract' read them]",
        ),
    ] = None,
    photo_column: PhotoColumn = None,
    id_column: IdColumn = None,
    scope: Scope = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html|DIR",
            help="Write a page with thumbnails, which shows photos and ids.",
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the threshold again.")
    ] = False,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """List groups of photos that are copies of each other, exactly or nearly.

    The first time it embeds four changed copies of up to 300 of your photos, to measure from which
    cosine on photos are near-duplicates. --threshold X measures nothing.
    """
    from embedcache.alike.groups import duplicates as grouped
    from embedcache.alike.groups import with_vectors
    from embedcache.alike.page import place_of, write
    from embedcache.alike.threshold import threshold_of
    from embedcache.display import counts_on

    opened = open_cache(cache)
    space = with_vectors(opened, backbone)
    file = None if out is None else place_of(out)
    paths = paths_in(opened, photos, photo_column=photo_column, id_column=id_column)
    show = counts_on("photos changed and embedded, to measure the threshold")
    chosen = threshold_of(
        opened, space, given=threshold, paths=paths, again=measure, device=device, progress=show
    )
    show = counts_on("pairs of photos compared")
    found = grouped(opened, space, chosen, scope=scope, progress=show)
    if file is not None:
        show = counts_on("groups drawn")
        write(found, opened, space, file, paths=paths(), words=as_typed, progress=show)
    print_result(found, json_)
    if file is not None:
        log.info("wrote %s", file)


def near_duplicates(
    cache: "Cache",
    backbone: str,
    *,
    threshold: float | None = None,
    sample: int | None = None,
    device: str = "auto",
) -> "dict[bytes, int]":
    """By content, the number of its group of near-duplicates; contents without any are not in it.

    backbone: of several layers the last one tells.
    threshold: by default as it was measured, or is measured now with `sample` photos.
    Says on stderr which threshold was used and what it misses.
    """
    from embedcache.alike.groups import alike_contents
    from embedcache.alike.originals import ids_of
    from embedcache.alike.threshold import SAMPLE, threshold_of
    from embedcache.display import counts_on
    from embedcache.store.side_by_side import each_layer

    backbone = each_layer(backbone)[-1]
    space = cache.find(backbone)
    chosen = threshold_of(
        cache,
        space,
        given=threshold,
        paths=paths_in(cache, None),
        sample=sample or SAMPLE,
        device=device,
        progress=counts_on("photos changed and embedded, to measure near-duplicates"),
    )
    said = str(chosen)
    for parameter, words in ELSEWHERE.items():
        said = said.replace(parameter, words)
    log.info("near-duplicates by %s, %s", backbone, said)
    progress = counts_on("pairs of photos compared")
    contents = ids_of(cache.photo_table())
    return alike_contents(cache, space, chosen.value, contents=contents, progress=progress).keys()


def paths_in(
    cache: "Cache",
    photos: Path | None,
    *,
    photo_column: str | None = None,
    id_column: str | None = None,
) -> "Callable[[], Mapping[bytes, str]]":
    """Give what finds the files of a cache's photos, in a folder or table if one is named."""
    from embedcache.alike.originals import paths_of
    from embedcache.display import counts_on

    table = None
    if photos is not None:
        table = read_photos(photos, photo_column=photo_column, id_column=id_column)
    return functools.cache(lambda: paths_of(cache, table, progress=counts_on("photos read")))
