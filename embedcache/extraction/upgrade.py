"""A new backbone beside an old one: embed with it every photo that the old one has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import PhotosError
from embedcache.extraction.clock import RunProgress
from embedcache.extraction.outcome import Extraction
from embedcache.extraction.run import extract
from embedcache.photos.digests import Memory, digest_files
from embedcache.photos.memo import MEMO, DigestMemo
from embedcache.photos.table import Photos
from embedcache.spec import Json
from embedcache.store.cache import Cache
from embedcache.store.columns import OK
from embedcache.wording import counted

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """What `upgrade` did. had: distinct photos of the old backbone.

    missing: of these, what the new backbone lacks now. unreadable: of those, the photos of which no
    file was found.
    """

    old: str
    new: str
    had: int
    unreadable: int
    missing: int
    extraction: Extraction

    def document(self) -> dict[str, Json]:
        return {
            "from": self.old,
            "to": self.new,
            "photos": self.had,
            "unreadable": self.unreadable,
            "missing": self.missing,
            **{k: v for k, v in self.extraction.document().items() if k != "photos"},
        }

    def __str__(self) -> str:
        lines = [f"{self.old} has {counted(self.had, 'photo')}", str(self.extraction)]
        if self.unreadable:
            lines.append(
                f"{counted(self.unreadable, 'photo')} could not be read: no file that runs on this "
                "machine remember holds them now (a forget empties that memory). Name the folder "
                "or table that holds them with `photos`"
            )
        if self.missing:
            lines.append(f"{self.new} lacks {self.missing:,} of {self.had:,}")
        return "\n".join(lines)


def upgrade(
    cache: Cache,
    *,
    old: str,
    new: str,
    photos: Photos | None = None,
    progress: Callable[[RunProgress], None] = lambda now: None,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Upgrade:
    """Embed with `new` every photo that `old` has in a cache. Running it again is the resume.

    old: a backbone of the cache, as `Cache.find` takes it.  new: as `extract` takes it.
    photos: where the files are; None for those that earlier runs on this machine have read. A file
        counts by its content: one that changed is not the photo that `old` has.
    options: those of `extract`. Ids stay as they are recorded.
    Raises PhotosError where not one photo can be read.
    """
    held = cache.find(old).digests()
    files, place = _files(cache, held, photos, progress, stop)
    if len(held) and not files and not stop():
        where = "PHOTOS" if photos is not None else "the files that runs on this machine have read"
        raise PhotosError(
            f"none of the {counted(len(held), 'photo')} of {old} was found among {where}. Name "
            "the folder or table that holds them with `photos`"
        )
    found = Photos(tuple(held[k].tobytes().hex() for k in place), tuple(files), "")
    extraction = extract(
        found, cache, backbone=new, record=False, progress=progress, stop=stop, **options
    )
    [space] = [one for one in cache.spaces() if one.digest == extraction.spaces[0].spec]
    lacks = space.status(held) != OK
    missing = int(lacks.sum())
    lacks[place] = False
    return Upgrade(
        old=old,
        new=extraction.spaces[0].backbone,
        had=len(held),
        unreadable=0 if stop() else int(lacks.sum()),
        missing=missing,
        extraction=extraction,
    )


def _files(
    cache: Cache,
    held: U8,
    photos: Photos | None,
    progress: Callable[[RunProgress], None],
    stop: Callable[[], bool],
) -> tuple[list[str], list[int]]:
    """One file for each content that has one now, and the content's place; looks at the bytes."""
    if photos is None:
        paths = [path for path, _ in DigestMemo(cache.remembered(MEMO)).files_of(held)]
    else:
        paths = list(photos.paths)

    def reading(n_done: int, n: int) -> None:
        progress(RunProgress(n_done, n, 0, 0.0, doing="reading"))

    memory = Memory(  # of contents, whatever their ids are
        lambda: cache.remembered(MEMO), cache.remembering, lambda _, digests: cache.dead(digests)
    )
    read = digest_files(paths, memory, workers=4, progress=reading, stop=stop)
    place = {row.tobytes(): k for k, row in enumerate(held)}
    chosen: dict[int, str] = {}
    for path, row, ok in zip(paths, read.value, read.readable, strict=True):
        if ok and row.tobytes() in place:
            chosen.setdefault(place[row.tobytes()], path)
    return list(chosen.values()), list(chosen)
