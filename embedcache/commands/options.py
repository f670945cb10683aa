"""What commands share: options, opening a cache, reading photos, showing a result."""

import json
import logging
import os
import re
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

from embedcache.wording import printable

if TYPE_CHECKING:
    from embedcache.photos.table import Photos
    from embedcache.store.cache import Cache

log = logging.getLogger(__name__)

DEFAULT_BACKBONE = "inception_v3.tf_in1k"
INTERRUPTED = 130
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
Decode = Literal["full", "reduced"]
DetectorName = Literal["mtcnn", "blazeface"]
Compile = Literal["auto", "on", "off"]

CachePath = Annotated[Path, typer.Argument(metavar="DIR", help="The cache's folder.")]
BackboneOption = Annotated[
    str,
    typer.Option(
        "--backbone",
        metavar="NAME[@face][#LAYER]",
        help="The backbone to use, or a layer of it; see 'embedcache info'.",
    ),
]
SeveralBackbones = Annotated[
    list[str],
    typer.Option(
        "--backbone",
        metavar="NAME[@face][#LAYER]",
        help="The backbone to use, or layers of it (#LAYER,LAYER); see 'embedcache info'. May be "
        "repeated: vectors stand side by side.",
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
PrecisionOption = Annotated[
    Precision, typer.Option(help="Of the forward pass. Vectors of two precisions never mix.")
]
RetryFailed = Annotated[bool, typer.Option(help="Try failed photos again.")]
MaxFailed = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, metavar="FRACTION", help="Exit 1 if more fail. [default: if all fail]"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]

OPTIONS: ContextVar[frozenset[str]] = ContextVar("OPTIONS", default=frozenset())
"""The options of the command that runs, as they are typed: --id-column, --json, ..."""
OPENED: ContextVar[tuple[tuple[Path, int], ...]] = ContextVar("OPENED", default=())
"""The folders of the caches that the command has opened."""
_PARAMETER = re.compile(r"`(\w+)(?:='?([^`']+)'?)?`")


class Printable(Protocol):
    """What every library function returns here: text for people, a document for machines."""

    def document(self) -> dict[str, Any]: ...


def as_typed(text: str) -> str:
    """The library's words, with its parameters as the command that runs has them.

    `device='cpu'` becomes --device cpu. A parameter that is no option of the command, such as a key
    of study.toml, keeps the library's spelling.
    """

    def typed(found: re.Match[str]) -> str:
        option = "--" + found[1].replace("_", "-")
        if option not in OPTIONS.get():
            return found[0]
        return f"{option} {found[2]}" if found[2] else option

    return _PARAMETER.sub(typed, text)


def print_result(result: Printable, as_json: bool) -> None:
    """Print a result, for people or for machines."""
    print(json.dumps(result.document()) if as_json else printable(as_typed(str(result))))


def open_cache(path: Path, *, create: bool = False, ref: str | None = None) -> "Cache":
    """The cache in a folder, as a ref pins it where one is named."""
    from embedcache.store.cache import Cache

    cache = Cache.open(path, create=create, ref=ref)
    at_work_in(cache.path)
    return cache


def at_work_in(folder: Path) -> None:
    """Note a cache that the command works in: it is missed where somebody renames it away."""
    place = folder.resolve()
    OPENED.set((*OPENED.get(), (place, os.open(place, os.O_RDONLY | os.O_DIRECTORY))))


def read_photos(path: Path, *, photo_column: str | None, id_column: str | None) -> "Photos":
    """A folder or table of photos; shows progress while a long folder is listed."""
    from embedcache.display import counts_on
    from embedcache.photos.table import Photos

    listed = counts_on("photos found")
    photos = Photos.read(path, photo_column=photo_column, id_column=id_column, progress=listed)
    for remark in photos.remarks:
        log.info("%s", remark)
    return photos
