"""A page that shows groups of near-duplicates with thumbnails, for people to look at.

It is one file that asks the network for nothing and runs no script. It shows photos and their ids,
so it belongs where the photos may be kept.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment
from PIL import Image

from embedcache import disk
from embedcache.alike.groups import Duplicates, Group
from embedcache.alike.linking import unit
from embedcache.alike.originals import read_original
from embedcache.errors import InputError
from embedcache.photos import images
from embedcache.store.cache import Cache
from embedcache.store.layout import cache_around
from embedcache.store.space import Space
from embedcache.wording import counted, plain

NAME = "duplicates.html"
MARK = b"<!doctype html>\n<!-- embedcache duplicates -->"
GROUPS = 200
PHOTOS = 24  # of a group
MOST_COMPARED = 1000  # of a group
SIDE = 192
QUALITY = 72


@dataclass(frozen=True, slots=True)
class _Photo:
    """id: of the photo. source: a data URL, "" for none. said: what stands below the id."""

    id: str
    source: str
    said: str


@dataclass(frozen=True, slots=True)
class _Shown:
    """A group as the page shows it; more: photos that are left out."""

    title: str
    mark: str
    photos: tuple[_Photo, ...]
    more: int


def place_of(out: Path) -> Path:
    """The file that a page goes to: `out` where it names an .html file, else one in that folder.

    Raises InputError, before any work, where a file of that name is no such page, or in a cache.
    """
    file = out if out.suffix.lower() in (".html", ".htm") and not out.is_dir() else out / NAME
    if file.is_symlink() or (file.exists() and not _is_page(file)):
        raise InputError(f"{file} is not a page of this command: name another file with `out`")
    if out.exists() and file != out and not out.is_dir():
        raise InputError(f"{out} is a file: name a folder, or a file that ends in .html")
    if (cache := cache_around(file.parent)) is not None:
        raise InputError(f"{file} would lie in the cache {cache}: name another place with `out`")
    return file


def write(
    found: Duplicates,
    cache: Cache,
    space: Space,
    file: Path,
    *,
    paths: Mapping[bytes, str],
    words: Callable[[str], str] = str,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> None:
    """Write the page of the first GROUPS groups to `file`, whole or not at all.

    paths: files of the photos by content; one that cannot be read has no thumbnail.
    words: turns the library's words into those of its caller, whose options have other names.
    progress: called with (groups done, groups).
    """
    groups = found.groups[:GROUPS]
    shown = []
    for number, group in enumerate(groups, 1):
        shown.append(_shown(group, number, space, paths))
        progress(number, len(groups))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("embedcache.alike").joinpath("page.html").read_text("utf-8")
    text = environment.from_string(template).render(
        title=f"{counted(len(found.groups), 'group')} of near-duplicates",
        cache=plain(cache.path.name),
        backbone=plain(next(iter(space.names), space.spec.architecture)),
        remarks=[words(line) for line in found.remarks],
        threshold=words(str(found.threshold)).splitlines(),
        groups=shown,
        more_groups=len(found.groups) - len(groups),
    )
    with disk.plain_errors("write", file):
        disk.make_folder(file.parent)
        disk.replace(file, text.encode("utf-8", "backslashreplace"))


def _is_page(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(MARK)) == MARK


def _shown(group: Group, number: int, space: Space, paths: Mapping[bytes, str]) -> _Shown:
    """The photos of a group, those first that are most alike; each beside its nearest."""
    some = slice(0, MOST_COMPARED)
    order, said = _compared(group.ids[some], group.contents[some], space)
    photos = tuple(
        _Photo(
            plain(group.ids[i]),
            _thumbnail(paths.get(group.contents[i]), group.contents[i]),
            said[i],
        )
        for i in order[:PHOTOS]
    )
    mark = "equal files" if group.exact else "" if group.whole else "a chain"
    title = f"Group {number}: {counted(len(group.ids), 'photo')}"
    return _Shown(title, mark, photos, len(group.ids) - len(photos))


def _compared(
    ids: Sequence[str], contents: Sequence[bytes], space: Space
) -> tuple[list[int], list[str]]:
    """An order of some photos, and of each in words which other is nearest."""
    rows, _ = space.read(np.frombuffer(b"".join(contents), np.uint8).reshape(-1, 32))
    rows = unit(rows)
    cosine = (rows @ rows.T).astype(np.float64)
    number = {content: i for i, content in enumerate(dict.fromkeys(contents))}
    same = np.array([number[content] for content in contents])
    cosine[same[:, None] == same] = 2
    np.fill_diagonal(cosine, -2)
    nearest = cosine.argmax(axis=1)
    best = cosine.max(axis=1)
    pair = [min(i, int(other)) for i, other in enumerate(nearest)]
    order = sorted(range(len(ids)), key=lambda i: (-round(float(best[i]), 6), pair[i], i))
    said = [
        f"the same file as {plain(ids[other])}" if x > 1 else f"{x:.3f} to {plain(ids[other])}"
        for other, x in zip(nearest.tolist(), best.tolist(), strict=True)
    ]
    return order, said


def _thumbnail(path: str | None, content: bytes) -> str:
    """A small JPEG of a whole photo as a data URL; "" where it cannot be read."""
    data = None if path is None else read_original(path, content)
    if data is None:
        return ""
    try:
        image = images.decode(data, at_least=SIDE)
    except images.DecodeError:
        return ""
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
