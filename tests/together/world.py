"""The small world that every schedule begins with: a cache, a colleague's, their remote, photos.

Every photo has vectors of its own in two spaces, whose bytes nothing else holds: a search of
all files finds them.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedcache.backbones.loading import Backbone
from embedcache.photos.table import Photos
from embedcache.sharing.share import push
from embedcache.spec import foreign
from embedcache.store.cache import Cache
from embedcache.store.space import Space
from embedcache.upkeep.forgetting import forget
from embedcache.upkeep.pinning import write_ref
from tests import stand_in
from tests.together import clocks

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Row = tuple[str, int]
"""A space, by NET or FOREIGN, and a photo's number."""

NET: Final = "net"
FOREIGN: Final = "elsewhere"
DIM: Final = 8
N_PHOTOS: Final = 13
TWICE: Final = 3  # the photo that two ids name

# What the committed segments of each place hold at the beginning.
HELD: Final[dict[str, frozenset[Row]]] = {
    "cache": frozenset([*((NET, n) for n in (0, 1, 2, 3, 4)), (FOREIGN, 0), (FOREIGN, 6)]),
    "other": frozenset((NET, n) for n in (1, 6, 7)),
    "remote": frozenset((NET, n) for n in (0, 1, 6, 8)),
}
DRAFT: Final = (5, 1)  # rows of a dead writer in the cache, whose clock was a day ahead
FORGOTTEN: Final = 9  # in the cache; `other`, the remote and the folder of photos still have it
IN_FOLDER: Final = (0, 1, 2, 3, 4, 5, 6, FORGOTTEN, 10)
IMPORTED: Final = (4, 5, 7)


def ids_of(n: int) -> tuple[str, ...]:
    """The ids of a photo: its files' names."""
    return tuple(f"photo-{n:02}{twin}.png" for twin in (("a", "b") if n == TWICE else ("",)))


class Places:
    """The three folders of a world: a cache, a colleague's, their remote."""

    __slots__ = ()
    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def other(self) -> Path:
        return self.folder / "other"

    @property
    def remote(self) -> Path:
        return self.folder / "remote"


@dataclass(frozen=True, slots=True)
class World(Places):
    """One copy of the world. `photos`, the folder, is shared by all copies: nobody writes to it."""

    folder: Path
    photos: Path

    @property
    def import_files(self) -> tuple[Path, Path]:
        """The matrix and its ids."""
        return self.photos.with_name("rows.npy"), self.photos.with_name("rows.csv")

    def copy(self) -> "World":
        target = Path(tempfile.mkdtemp(dir=self.folder.parent))
        for name in ("cache", "other", "remote"):
            shutil.copytree(self.folder / name, target / name)
        return World(target, self.photos)

    def damage(self, album: "Album", row: Row) -> None:
        """Change one byte of a row in the first segment of the cache that holds it."""
        raw = album.bytes_of(row)
        for path in sorted((self.cache / "spaces").glob("*/segments/2*/embedding/c/0/0")):
            whole = path.read_bytes()
            if (at := whole.find(raw)) >= 0:
                path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
                return
        raise AssertionError(f"no segment holds {row}")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def picture(n: int) -> U8:
    """The pixels of photo `n`, exactly as the stand-in network sees them."""
    size = (stand_in.SIZE, stand_in.SIZE, 3)
    return np.random.default_rng([7, n]).integers(0, 256, size, dtype=np.uint8)


def backbone() -> Backbone:
    return stand_in.backbone(NET, dim=DIM)


class Album:
    """What is known of the photos beforehand: contents, and the right vectors."""

    def __init__(self, folder: Path) -> None:
        files = [folder / ids_of(n)[0] for n in range(N_PHOTOS)]
        self.contents = [sha256(path.read_bytes()).digest() for path in files]
        self.number = {content: n for n, content in enumerate(self.contents)}
        network = backbone().open()
        pixels = np.stack([picture(n) for n in range(N_PHOTOS)])
        [computed] = [lane(pixels) for lane in network.lanes]
        seeds = [np.random.default_rng([11, n]) for n in range(N_PHOTOS)]
        imported = np.array([seed.standard_normal(DIM, np.float32) for seed in seeds])
        self.vectors: dict[str, F32] = {NET: computed, FOREIGN: imported}
        self.spaces = {NET: backbone().spec.digest, FOREIGN: foreign(FOREIGN, DIM).digest}
        self.names = {digest: name for name, digest in self.spaces.items()}

    def digests(self, *numbers: int) -> U8:
        raw = b"".join(self.contents[n] for n in numbers)
        return np.frombuffer(raw, np.uint8).reshape(-1, 32)

    def bytes_of(self, row: Row) -> bytes:
        """The row as it lies in files."""
        return bytes(self.vectors[row[0]][row[1]].astype("<f4").data)


def build() -> tuple[World, Album]:
    """Make the template in memory, if this machine has a folder there."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    root = Path(tempfile.mkdtemp(prefix="together-", dir=memory if usable else None))
    everything = root / "everything"
    photos = root / "photos"
    for folder in (everything, photos):
        folder.mkdir()
    for n in range(N_PHOTOS):
        for name in ids_of(n):
            Image.fromarray(picture(n)).save(everything / name)
            os.utime(everything / name, (1.7e9, 1.7e9))
            if n in IN_FOLDER:
                shutil.copy2(everything / name, photos / name)
    world = World(root / "template", photos)
    world.folder.mkdir()
    album = Album(everything)
    matrix, listed = world.import_files
    np.save(matrix, album.vectors[FOREIGN][list(IMPORTED)])
    listed.write_text("photo_id\n" + "".join(f"{ids_of(n)[0]}\n" for n in IMPORTED))
    _fill_cache(world, album)
    _fill_colleagues(world, album)
    return world, album


def _fill_cache(world: World, album: Album) -> None:
    scope = Photos.read(world.photos).scope
    cache = Cache.open(world.cache, create=True)
    net, elsewhere = _spaces(cache)
    _record(cache, album, scope, range(8))
    _write(net, album, 0, 1, 2)
    write_ref(cache, "old")
    _write(net, album, 2, 3)
    _write(net, album, 4)
    _write(elsewhere, album, 0, name=FOREIGN)
    _write(elsewhere, album, 6, name=FOREIGN)
    _record(cache, album, scope, [FORGOTTEN])
    _write(net, album, FORGOTTEN)
    forget(cache, ids_of(FORGOTTEN))
    with clocks.shifted(timedelta(days=1)):
        writer = net.writer(n_rows=len(DRAFT), name=NET, about={})
        writer.add(album.digests(*DRAFT), album.vectors[NET][list(DRAFT)])
        writer.abandon()


def _fill_colleagues(world: World, album: Album) -> None:
    scope = Photos.read(world.photos).scope
    other = Cache.open(world.other, create=True)
    _write(_spaces(other)[0], album, 1, 7)
    _write(_spaces(other)[0], album, FORGOTTEN, 6)
    _record(other, album, scope, [1, TWICE, 6, 7, FORGOTTEN])
    far = Cache.open(world.folder / "colleague", create=True)
    _write(_spaces(far)[0], album, 0, 1, FORGOTTEN)
    _write(_spaces(far)[0], album, 6, 8)
    _record(far, album, scope, [0, 1, TWICE, 6, 8, FORGOTTEN])
    push(far, str(world.remote), with_ids=True)
    shutil.rmtree(world.folder / "colleague")


def _spaces(cache: Cache) -> tuple[Space, Space]:
    return cache.space(backbone().spec, create=True), cache.space(
        foreign(FOREIGN, DIM), create=True
    )


def _write(space: Space, album: Album, *numbers: int, name: str = NET) -> None:
    with space.writer(n_rows=len(numbers), name=name, about={"device": "cpu"}) as writer:
        writer.add(album.digests(*numbers), album.vectors[name][list(numbers)])


def _record(cache: Cache, album: Album, scope: str, numbers: range | list[int]) -> None:
    pairs = [(name, n) for n in numbers for name in ids_of(n)]
    cache.record_photos(scope, [name for name, _ in pairs], album.digests(*(n for _, n in pairs)))
