"""The photo table: which photos are wanted, under which ids, and the digest of each one's bytes.

    Photos.read(path)      a folder (searched recursively), or a .csv/.parquet table
    photos.digests(cache)  sha256 of every file; the cache remembers what has not changed

Scope. An id says which photo somebody means, and two collections may both hold `a.jpg`. So ids
belong to a scope, which is the folder or table they were read from: its name and eight digits of
the digest of its place (`users.csv-1a2b3c4d`). That tells collections apart without giving away
where they lie. Within one scope an id's newest content counts; the older vectors stay until they
are forgotten.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from embedcache.errors import PhotosError
from embedcache.photos import folder, rows
from embedcache.photos.digests import U8, Bool, Digests, InlinePhoto, Memory, digest_files
from embedcache.photos.folder import readable_name
from embedcache.photos.kinds import SUFFIXES
from embedcache.photos.memo import MEMO
from embedcache.tables import SUFFIXES as TABLE_SUFFIXES
from embedcache.tables import open_sheet
from embedcache.texts import some_of
from embedcache.wording import counted, html_table

SHOWN = 5
MOST = 0.5
"""Where more of a run's files are missing than this share, the folder or table is wrong."""


class Remembering(Protocol):
    """What remembers digests of files, and knows which photos were forgotten: a cache."""

    def remembered(self, name: str) -> Path: ...
    def remembering(self, path: Path) -> AbstractContextManager[None]: ...
    def dead_pairs(self, scope: str, ids: Sequence[str], digests: U8) -> Bool: ...


@dataclass(frozen=True, slots=True)
class Photos:
    """n photos: `ids[i]` is the photo in the file `paths[i]`.

    ids: unique text, as the table has them, or paths relative to the folder ("/" between parts);
        a tuple, or where there are more than a million a sequence that makes each `str` when it is
        asked for (`texts`).
    paths: as opened; whether a file is there shows when it is read. A photo that is stored in the
        table itself has a path that carries its bytes (`digests.InlinePhoto`).
    scope: where the ids come from (see the module's text).
    n_without_photo: rows of the table whose photo column is empty; they are left out.
    ignored: files of a folder that are no photos, by suffix.
    column: the table's photo column, "" for a folder.  notes: how the table was read.
    """

    ids: Sequence[str]
    paths: Sequence[str]
    scope: str
    n_without_photo: int = 0
    ignored: Mapping[str, int] = field(default_factory=dict)
    column: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Photos: {len(self):,} from {self.scope.rpartition('-')[0]}>"

    def _repr_html_(self) -> str:
        some = [[*pair] for pair in zip(self.ids[:SHOWN], self.paths[:SHOWN], strict=True)]
        more = [["...", f"{len(self) - SHOWN:,} more"]] if len(self) > SHOWN else []
        place = self.scope.rpartition("-")[0]
        title = f"{counted(len(self), 'photo')} from {place}"
        return html_table("; ".join([title, *self.remarks]), ["photo id", "file"], some + more)

    @classmethod
    def read(
        cls,
        path: Path | str,
        *,
        photo_column: str | None = None,
        id_column: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Self:
        """Read a folder of photos or a photo table.

        path: a folder, or a .csv/.parquet file with a photo column (paths relative to the table's
            own folder, or the photos' bytes as Hugging Face datasets store them) and an id column.
        photo_column, id_column: by default the first that the table has of photo, image, path,
            file_name, and of photo_id, user_id, id.
        progress: called with the photos found so far, at most ten times a second, while a folder
            is listed.
        Raises PhotosError when there is no such file or column, nothing in it, or when one id names
        two photos.
        """
        if not isinstance(path, str | os.PathLike):
            raise PhotosError(
                f"photos are a folder or a .csv or .parquet table; got a {type(path).__name__}. "
                "Write a DataFrame to a .csv beside its photos, and give its path"
            )
        path = Path(path)
        if path.is_dir():
            listed = folder.photos_below(path, progress)
            if not listed.ids:
                raise PhotosError(
                    f"no photos in {path}: searched it and its subfolders for files named "
                    f"{', '.join(sorted(SUFFIXES))}, and read the first bytes of others"
                    + (f". Found {_ignored(listed.ignored)}" if listed.ignored else "")
                )
            return cls(listed.ids, listed.paths, scope_of(path), ignored=listed.ignored)
        if not path.exists():
            raise PhotosError(f"no such folder or table: {path}")
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise PhotosError(
                f"{path} is neither a folder nor a table: give a folder of photos, or a .csv or "
                f".parquet file with the columns photo and photo_id"
            )
        sheet = open_sheet(path, error=PhotosError, kind="photo table")
        found = rows.photos_in(sheet, photo_column, id_column)
        return cls(
            found.ids,
            found.paths,
            scope_of(path),
            n_without_photo=found.n_without_photo,
            column=found.column,
            notes=found.notes,
        )

    def any_here(self) -> bool:
        """Whether one photo at least can be read: from its file, or from the table itself."""
        return any(isinstance(path, InlinePhoto) or os.path.exists(path) for path in self.paths)

    def digests(
        self,
        cache: Remembering | None = None,
        *,
        workers: int = 4,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Digests:
        """sha256 of every file's bytes.

        cache: it remembers digests by path, size and mtime_ns, but of no forgotten photo; what is
            new is written there atomically, where that can be done.
        progress: called ten times a second, in the calling thread, with (files looked at, files),
            and once at the end.
        stop: asked ten times a second; True ends the reading, also within a large file. What was
            learned is remembered, and the files that were not reached are `unread`.
        A file that cannot be read gets a reason instead. Raises PhotosError when most of the files
        do not exist, since then the table or its photo column is wrong.
        """
        memory = None if cache is None else self._memory_in(cache)
        found = digest_files(self.paths, memory, workers=workers, progress=progress, stop=stop)
        gone = [i for i, reason in sorted(found.reasons.items()) if reason == "vanished"]
        if gone and len(gone) > MOST * (len(self) - len(found.unread)):
            raise PhotosError(
                f"{len(gone):,} of {counted(len(self), 'file')} not found (first: "
                f"{readable_name(self.paths[gone[0]])})"
                + (
                    f": column {self.column!r} should hold paths relative to the table's folder. "
                    "Name another column with `photo_column`, or move the table beside its photos"
                    if self.column
                    else ": were they moved, or is a disk not mounted?"
                )
            )
        return found

    def _memory_in(self, cache: Remembering) -> Memory:
        def forgotten(positions: Sequence[int], digests: U8) -> Bool:
            ids = some_of(self.ids, np.array(positions, np.int64))
            return cache.dead_pairs(self.scope, ids, digests)

        return Memory(lambda: cache.remembered(MEMO), cache.remembering, forgotten)

    def subset(self, at: "list[int] | np.ndarray[tuple[int], np.dtype[np.int64]]") -> Self:
        """The photos at some positions, under the same scope."""
        rows = np.asarray(at, np.int64)
        ids, paths = some_of(self.ids, rows), some_of(self.paths, rows)
        return type(self)(ids, paths, self.scope, column=self.column)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of how these photos were found, in sentences."""
        ignored = (f"ignored {_ignored(self.ignored)}",) if self.ignored else ()
        return (*self.notes, *ignored)


def scope_of(path: Path) -> str:
    """The scope of ids read from this folder or table."""
    place = path.resolve()
    mark = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]
    return f"{readable_name(place.name or 'root')}-{mark}"


def is_table(scope: str) -> bool:
    """Whether ids of this scope come from a table, by its name."""
    return Path(scope.rpartition("-")[0]).suffix.lower() in TABLE_SUFFIXES


def _ignored(by_suffix: Mapping[str, int]) -> str:
    """`5 other files (3 .txt, 1 .jxl, 1 without suffix)`."""
    common = Counter(by_suffix).most_common()
    shown = [f"{n:,} {suffix or 'without suffix'}" for suffix, n in common[:5]]
    if rest := sum(n for _, n in common[5:]):
        shown.append(f"{rest:,} more")
    total = sum(by_suffix.values())
    return f"{counted(total, 'other file')} ({', '.join(shown)})"
