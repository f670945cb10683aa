"""A cache on disk, as its users see it: open it, find vectors, write more.

    cache = Cache.open("faces.cache")
    vectors, found = cache.vectors("inception_v3.tf_in1k", ["a.jpg", "b.jpg"])   # (2, 2048), (2,)

A cache is a set of immutable segments (docs/format.md). Any number of processes and hosts may write
to one at the same time; none of them waits for another. Imports neither torch nor zarr.
"""

import contextlib
import errno
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedcache import disk
from embedcache.errors import CacheError, Damaged, NoSuchSpace, NotACache
from embedcache.spec import Json, Spec
from embedcache.store import memory
from embedcache.store.history import History
from embedcache.store.layout import (
    APART,
    GROUPS,
    check_group,
    check_root,
    create_root,
    describing,
    face_digest,
    not_a_cache,
    read_attributes,
    refuse_links,
)
from embedcache.store.manifest import HEX_DIGEST
from embedcache.store.naming import find_space, plain_name
from embedcache.store.photo_ids import PhotoIds, PhotoTable
from embedcache.store.refs import Pins, read_ref
from embedcache.store.segment import Segment
from embedcache.store.side_by_side import SideBySide, each_layer
from embedcache.store.space import SUMMARY, FaceSpace, Space
from embedcache.store.tombstones import content_mark, pair_mark
from embedcache.store.zarr_json import encode_document, group_document
from embedcache.store.zarr_view import ZarrSegment, zarr_segments
from embedcache.wording import html_table

if TYPE_CHECKING:
    import polars as pl

PLACES = "backbones.json"
MAX_PLACES_BYTES = 16 << 20


class Cache:
    """An open cache. Holds no lock; use `Cache.open`."""

    def __init__(self, path: Path, *, pins: Pins | None = None) -> None:
        self.path = path
        self.history = History(path)
        self._pins = pins
        self._spaces: dict[str, Space] = {}
        self._face_spaces: dict[str, FaceSpace] = {}
        self._photos = PhotoIds(
            path / "photos", history=self.history, pins=None if pins is None else pins.photos
        )

    @classmethod
    def open(cls, path: Path | str, *, create: bool = False, ref: str | None = None) -> "Cache":
        """Open the cache in folder `path`.

        create: make it where there is nothing, or an empty folder.
        ref: read the cache as `embedcache ref` named it: nothing written since is seen, and
            nothing can be written.
        Raises NotACache for a folder that is missing, that is something else, or that a later
        version wrote.
        """
        path = Path(path)
        with disk.plain_errors("open", path):
            if path.is_symlink() and not path.exists():
                raise NotACache(
                    f"{path} is a link to {os.readlink(path)}, which does not exist: make that "
                    "folder, or remove the link"
                )
            if not (path / "zarr.json").exists():
                if not create:
                    raise NotACache(not_a_cache(path))
                create_root(path)
            path = path.resolve()
            refuse_links(path)
            check_root(path)
            for part in GROUPS:
                check_group(path / part, group_document({}))
        return cls(path, pins=None if ref is None else read_ref(path, ref))

    def __repr__(self) -> str:
        return f"<Cache: {self.path}" + (f" at ref {self.ref}>" if self.ref else ">")

    def _repr_html_(self) -> str:
        rows = [space.summary() for space in self.spaces()]
        return html_table(repr(self)[1:-1], SUMMARY, rows)

    @property
    def ref(self) -> str | None:
        """The ref that this cache was opened at."""
        return None if self._pins is None else self._pins.name

    @property
    def local(self) -> Path:
        """A folder for what stays on this machine and is never shared."""
        folder = self.path / "local"
        with disk.plain_errors("write to", folder):
            folder.mkdir(exist_ok=True)
        return folder

    def remembered(self, name: str) -> Path:
        """A file of what this machine remembers of photos here (`memory`): another one as soon as a
        photo is forgotten, or lifted."""
        return memory.folder_now(self.path) / name

    def remembering(self, path: Path) -> AbstractContextManager[None]:
        """While such a file is written: see `memory.writing`."""
        return memory.writing(path)

    def places(self) -> dict[str, str]:
        """By spec digest, the backbone's name with the path of its weights on this machine."""
        try:
            raw = disk.read_kept(self.path / "local" / PLACES, limit=MAX_PLACES_BYTES) or b"{}"
            found = json.loads(raw)
        except (ValueError, RecursionError):
            return {}
        items = found.items() if isinstance(found, dict) else ()
        return {spec: place for spec, place in items if isinstance(place, str)}

    def remember_places(self, places: Mapping[str, str]) -> None:
        """Keep, on this machine only, the name with its path for each spec digest."""
        known = self.places()
        if any(known.get(spec) != place for spec, place in places.items()):
            text = json.dumps(known | dict(places), indent=1)
            disk.replace(self.local / PLACES, text.encode())

    @property
    def writable(self) -> bool:
        """Whether this cache was opened as it is now, in a place that can be written."""
        return self._pins is None and os.access(self.path, os.W_OK)

    def spaces(self) -> list[Space]:
        """The spaces of vectors, in the order of their digests."""
        for digest, folder in self._space_folders().items():
            if digest not in self._spaces:
                with describing(folder, cache=self.path):
                    spec = Spec.parse(read_attributes(folder).get("spec"))
                    if spec.digest != digest:
                        raise Damaged(f"{folder} holds a spec with digest {spec.digest}: refused")
                self._spaces[digest] = Space(
                    folder,
                    spec,
                    given=plain_name(self.places().get(digest, "")),
                    history=self.history,
                    pins=self._pinned("spaces", digest),
                )
        return [self._spaces[digest] for digest in sorted(self._spaces)]

    def find(self, backbone: str, *, pixels: bool = False) -> Space:
        """The space of vectors that a user calls `backbone`.

        A backbone's name as recorded by its writers (of `local-dir:` and `facenet:` paths the last
        part counts), with its layer where it is of one (NAME#LAYER); either with the first digits
        of the spec digest, six or more (NAME#PREFIX); or only those digits.
        pixels: also a space of kept pixels; otherwise none is found or offered.
        Raises NoSuchSpace where none or several fit.
        """
        return find_space(self.spaces(), backbone, held_by=self.path, pixels=pixels)

    def side_by_side(self, backbone: str | Sequence[str], *, pixels: bool = False) -> SideBySide:
        """The spaces that a user calls `backbone`, one or several, in the order given.

        A name may hold several layers with commas between: NAME#LAYER,LAYER. Raises NoSuchSpace as
        `find` does, and for a space that is named twice.

        pixels: also kept pixels, where nothing else is named.
        """
        names = each_layer(backbone)
        spaces = tuple(self.find(name, pixels=pixels and len(names) == 1) for name in names)
        digests = [space.digest for space in spaces]
        if twice := next((d for d in digests if digests.count(d) > 1), None):
            pairs = zip(names, digests, strict=True)
            same = list(dict.fromkeys(name for name, digest in pairs if digest == twice))
            if len(same) == 1:
                raise NoSuchSpace(f"{same[0]!r} is named twice: name it once")
            raise NoSuchSpace(f"{' and '.join(same)} are the same vectors: name them once")
        return SideBySide(spaces, tuple(names))

    def space(self, spec: Spec, *, create: bool = False) -> Space:
        """The space of exactly `spec`; with `create`, a new one where there is none."""
        self.spaces()
        if spec.digest not in self._spaces:
            if not create:
                raise NoSuchSpace(
                    f"{self.path} has no vectors of {spec.architecture}#{spec.digest[:8]}"
                )
            apart = spec.apart and (self.path / APART).is_dir()
            part = APART if apart else "spaces"
            self._create_space(part, spec.digest, {"spec": spec.document()})
            self.spaces()
        return self._spaces[spec.digest]

    def face_spaces(self) -> list[FaceSpace]:
        """The spaces of faces, one for each detector, in the order of their digests."""
        for digest in self._listed("faces"):
            if digest not in self._face_spaces:
                folder = self.path / "faces" / digest
                with describing(folder, cache=self.path):
                    document = read_attributes(folder).get("detector")
                    if not isinstance(document, dict) or face_digest(document) != digest:
                        raise Damaged(f"{folder} is not named after its detector: refused")
                pins = self._pinned("faces", digest)
                self._face_spaces[digest] = FaceSpace(
                    folder, document, digest, history=self.history, pins=pins
                )
        return [self._face_spaces[digest] for digest in sorted(self._face_spaces)]

    def face_space(self, detector: dict[str, Json], *, create: bool = False) -> FaceSpace:
        """The space of the detector with this document; with `create`, maybe a new one."""
        digest = face_digest(detector)
        self.face_spaces()
        if digest not in self._face_spaces:
            if not create:
                raise NoSuchSpace(
                    f"{self.path} has no faces of detector {digest[:8]}. Run 'embedcache extract' "
                    "with a backbone ending in @face"
                )
            self._create_space("faces", digest, {"detector": detector})
            self.face_spaces()
        return self._face_spaces[digest]

    def record_photos(
        self,
        scope: str,
        ids: Sequence[str],
        digests: NDArray[np.uint8],
        *,
        which: NDArray[np.bool_] | None = None,
    ) -> None:
        """Record which content, (n, 32), each of n ids of `scope` has now.

        which: (n,), those to record; all by default.
        What was forgotten stays forgotten: it is left out, unless it was lifted first.
        """
        self._refuse_at_ref()
        self._photos.record(scope, ids, digests, which=which)

    def digests_of(
        self, ids: Sequence[str], *, scope: str | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The newest content of each id: ((n, 32), which ids are known).

        scope: where the ids come from; None looks everywhere, and raises CacheError for an id that
        stands for different photos in two places.
        """
        return self._photos.newest(ids, scope=scope)

    def photo_table(self) -> PhotoTable:
        """All ids ever recorded and not forgotten, with their contents."""
        return self._photos.table()

    @property
    def photo_ids(self) -> PhotoIds:
        """The photo ids as a set of segments."""
        return self._photos

    def photo_segments(self) -> list[Segment]:
        """The segments that hold ids, oldest first."""
        return self._photos.segments()

    def sets(self) -> list[Space | FaceSpace | PhotoIds]:
        """All sets of segments of this cache: of vectors, of faces, and the ids last."""
        return [*self.stores(), self._photos]

    def stores(self) -> list[Space | FaceSpace]:
        """The spaces of vectors and of faces."""
        return [*self.spaces(), *self.face_spaces()]

    def dead(self, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which of (n, 32) contents were forgotten here, or where this cache merged from."""
        return self.history.dead().of(digests)

    def dead_pairs(
        self, scope: str, ids: Sequence[str], digests: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """Which of n ids of a scope, with contents (n, 32), were forgotten, (n,)."""
        return self.history.dead().of_pairs(scope, ids, digests)

    def tombstones(self) -> frozenset[str]:
        """The names of all tombstones: another one for each photo that is forgotten."""
        return frozenset(self.history.dead().tombstones)

    def lift(
        self, digests: NDArray[np.uint8], *, scope: str | None = None, ids: Sequence[str] = ()
    ) -> int:
        """Let contents (n, 32) that were forgotten be embedded and recorded again, on purpose.

        scope, ids: also the n ids that have these contents.
        Returns how many tombstones' marks this lifted. A later `forget` forgets them again.
        """
        self._refuse_at_ref()
        if not self.history.dead():
            self.history.note()  # what a run that was killed has lifted
            return 0
        contents = [row.tobytes() for row in np.ascontiguousarray(digests, dtype=np.uint8)]
        marks = {content_mark(content) for content in contents}
        if scope is not None:
            marks |= {pair_mark(scope, *pair) for pair in zip(ids, contents, strict=True)}
        n_lifted = self.history.lift(marks)
        self._leave_memory()
        return n_lifted

    def adopt(self, *, lifts: Mapping[str, bytes], tombstones: Mapping[str, bytes]) -> int:
        """Take over another copy's lifts and tombstones, as `History.files` gives them.

        A photo that has an id here which nobody forgot stays. Returns how many were new.
        """
        self._refuse_at_ref()
        n_new = self.history.adopt(lifts=lifts, tombstones=tombstones, left_to=self._photos.left_to)
        self._leave_memory()
        return n_new

    def _leave_memory(self) -> None:
        """Delete what was remembered until now; what cannot be is named by `verify`."""
        with contextlib.suppress(OSError):
            memory.delete_outdated(self.path)

    def some_ids(self, n: int) -> list[str]:
        """A few of the ids that are recorded, for messages."""
        return [*self.photo_table().ids[:n]]

    def vectors(
        self, backbone: str | Sequence[str], ids: Sequence[str], *, scope: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors of photos by id: ((n, dim), which were found); rows not found are NaN.

        backbone: one as in `find`, or several, whose vectors stand side by side in this order.
        """
        digests, known = self.digests_of(ids, scope=scope)
        space = self.side_by_side(backbone)
        vectors = np.full((len(ids), space.dim), np.nan, dtype=np.float32)
        if known.all():
            return space.read(digests, out=vectors)
        rows, there = space.read(digests[known])
        vectors[known] = rows
        known[known] = there
        return vectors, known

    def frame(
        self, backbone: str, *, scope: str | None = None, every_scope: bool = False
    ) -> "pl.DataFrame":
        """The vectors of a backbone as a polars DataFrame, a row per photo id that has one.

        Columns: photo_id; place, the folder or table that the id comes from; vector, a
        pl.Array(pl.Float32, dim). `frame.to_pandas()` gives a pandas DataFrame whose vectors are
        numpy arrays (it needs the packages pandas and pyarrow).

        scope: only the ids of this place, as `photo_table().scopes` names it. every_scope: a photo
            once for each folder or table that it was read from, and not only for the last one.
        """
        import polars as pl

        space, table = self.find(backbone), self.photo_table()
        at = np.array(table.current(scope=scope, every_scope=every_scope), np.int64)
        vectors, found = space.read(table.digests[at])
        kept = at[found].tolist()
        columns = {
            "photo_id": pl.Series([table.ids[i] for i in kept], dtype=pl.String),
            "place": pl.Series([table.scopes[i] for i in kept], dtype=pl.String),
            "vector": pl.Series(vectors[found], dtype=pl.Array(pl.Float32, space.dim)),
        }
        return pl.DataFrame(columns)

    def zarr(self, backbone: str) -> list[ZarrSegment]:
        """The segments of a backbone's vectors as read-only zarr arrays (`zarr_view`)."""
        return zarr_segments(self.find(backbone, pixels=True))

    def _space_folders(self) -> dict[str, Path]:
        """Where the space of each spec digest lies; a shared folder keeps face crops apart."""
        if self._pins is not None:
            found = {}
            for digest in sorted(self._pins.spaces):
                places = [self.path / part / digest for part in ("spaces", APART)]
                found[digest] = next((p for p in places if p.is_dir()), places[0])
            return found
        found = {digest: self.path / "spaces" / digest for digest in self._listed("spaces")}
        if (self.path / APART).is_dir():
            for digest in self._listed(APART):
                if digest in found:
                    raise Damaged(f"{self.path} holds {digest} under spaces/ and under {APART}/")
                found[digest] = self.path / APART / digest
        return found

    def _pinned(self, part: str, digest: str) -> Mapping[str, str] | None:
        return None if self._pins is None else self._pins.of(part, digest)

    def _listed(self, part: str) -> list[str]:
        """The digests that have a space under `part`, or those that the ref pins."""
        if self._pins is not None:
            return sorted(getattr(self._pins, part))
        found = []
        with os.scandir(self.path / part) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "zarr.json":
                    continue
                if not HEX_DIGEST.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
                    raise Damaged(f"{entry.path} does not belong in a cache: move it elsewhere")
                found.append(entry.name)
        return sorted(found)

    def _create_space(self, part: str, digest: str, attributes: dict[str, Json]) -> None:
        """Make an empty space under a hidden name, then give it its own."""
        self._refuse_at_ref()
        folder = self.path / part / digest
        hidden = folder.with_name(f".new-{disk.mark_of_process()}")
        with disk.plain_errors("write to", self.path):
            hidden.mkdir()
            (hidden / "segments").mkdir()
            document = encode_document(group_document({"embedcache": attributes}))
            disk.write_new(hidden / "zarr.json", document)
            disk.write_new(hidden / "segments" / "zarr.json", encode_document(group_document({})))
            disk.sync_tree(hidden)
            try:
                hidden.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                disk.remove_folder(hidden)  # another writer made the same space meanwhile
            disk.sync_folder(folder.parent)

    def _refuse_at_ref(self) -> None:
        if self._pins is not None:
            raise CacheError(
                f"{self.path} was opened at a ref, and is read-only: open it without ref to write"
            )
