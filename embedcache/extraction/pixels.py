"""Pixels that a cache keeps, so that a later network of the same input reads no photo.

    backbones += pixel_backbones(backbones, size=299)         what a run fills: bytes for each photo
    kept = KeptPixels(cache, backbones, ...)            what it reads in place of files

A space of pixels is that of a backbone whose network is the identity: its row is the input, uint8
(height, width, 3), before the normalisation. It serves every network whose preprocessing is the
same up to there, bit for bit, and no other (docs/decisions/108).
"""

import shutil
import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from embedcache.backbones.forward import Network
from embedcache.backbones.loading import Backbone, leaders_of
from embedcache.errors import CacheError, Damaged, InputError
from embedcache.spec import pixels, shape_of
from embedcache.store.cache import Cache
from embedcache.store.space import Space
from embedcache.wording import counted

U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
Reader = Callable[[], U8 | None]


def pixel_backbones(backbones: Sequence[Backbone], size: int) -> list[Backbone]:
    """The identities whose rows are what these backbones get of whole photos of `size` x `size`.

    One for each preprocessing, so that two rules of resizing give two. They come without a network:
    `open` is never called. InputError where no backbone takes photos of this size.
    """
    whole = [b for b in backbones if b.spec.face is None and b.spec.kind == "computed"]
    fitting = [b for b in whole if b.preprocessing.size == (size, size)]
    if not fitting:
        raise InputError(f"`keep_pixels={size}`: {_sizes(backbones, whole)}")
    specs = dict.fromkeys(pixels(b.preprocessing) for b in fitting)
    return [
        Backbone(name=f"pixels:{size}", place="", spec=spec, open=partial(_no_network, spec.digest))
        for spec in specs
    ]


def is_pixels(backbone: Backbone) -> bool:
    """Whether a backbone is the identity."""
    return backbone.spec.kind == "pixels"


def require_room(
    cache: Cache, backbones: Sequence[Backbone], wanted: Bool, *, log: Callable[[str], None]
) -> None:
    """Say how much disk the pixels of a plan will take; CacheError where there is less.

    wanted: (m, k), which of the k backbones lack each of m contents.
    """
    needed = 0
    for k, backbone in enumerate(backbones):
        if is_pixels(backbone) and (n := int(wanted[:, k].sum())):
            n_bytes = n * backbone.spec.row_bytes
            needed += n_bytes
            log(
                f"keeping {shape_of(backbone.spec)} of {counted(n, 'photo')} as {backbone.name}: "
                f"{n_bytes / 1e9:,.3f} GB"
            )
    free = shutil.disk_usage(cache.path).free
    if needed > free:
        raise CacheError(
            f"the pixels take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free for "
            f"{cache.path}",
            advice="Free some space, or extract without `keep_pixels`",
        )


class KeptPixels:
    """Which photos of a run need no decoding, because the cache has what its networks get of them.

    digests, wanted: the contents of the run, (m, 32), and which of k backbones lack them, (m, k).
    Says once for each network whether kept pixels serve it, and if not, why.
    """

    def __init__(
        self,
        cache: Cache,
        backbones: Sequence[Backbone],
        digests: U8,
        wanted: Bool,
        *,
        log: Callable[[str], None],
    ) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._n_damaged = 0
        self._spaces: dict[int, Space] = {}
        kept = [s for s in cache.spaces() if s.spec.kind == "pixels" and self._usable(s)]
        leaders = np.array(leaders_of(backbones))
        for b in np.unique(leaders).tolist() if kept else ():
            mine = wanted[:, leaders == b].any(axis=1)
            if is_pixels(backbones[b]) or not mine.any():
                continue
            if (space := _serving(backbones[b], kept)) is None:
                log(f"{backbones[b].name}: {_why_not(backbones[b], kept)}; its photos are decoded")
            elif n := int((space.status(digests[mine]) == 1).sum()):
                self._spaces[b] = space
                log(
                    f"{backbones[b].name}: {n:,} of {counted(int(mine.sum()), 'photo')} are read "
                    f"as pixels from {space.names[0]} and not decoded"
                )

    def readers(self, digests: U8) -> dict[int, list[Reader | None]]:
        """For each network that is served, what reads its input for each of (n, 32) digests.

        None stands for a photo without pixels. What reads may be called on any thread; it gives
        None where the row is damaged or was removed meanwhile: then the photo is decoded.
        """
        found: dict[int, list[Reader | None]] = {}
        for b, space in self._spaces.items():
            assert space.spec.preprocessing is not None
            shape = (*space.spec.preprocessing.size, 3)
            try:
                rows = space.readers(digests)
            except Damaged as error:
                self._say(error)
                continue
            found[b] = [None if row is None else partial(self._read, row, shape) for row in rows]
        return found

    def _usable(self, space: Space) -> bool:
        """Whether a space has pixels; damage, of which verify says more, makes them no pixels."""
        try:
            return bool(len(space.digests()))
        except Damaged as error:
            self._say(error)
            return False

    def _read(self, row: Callable[[], U8], shape: tuple[int, int, int]) -> U8 | None:
        try:
            return row().reshape(shape)
        except Damaged as error:
            self._say(error)
            return None

    def _say(self, error: Damaged) -> None:
        with self._lock:
            first, self._n_damaged = not self._n_damaged, self._n_damaged + 1
        if first:
            self._log(f"kept pixels cannot be read, and such photos are decoded: {error}")


def _no_network(spec: str) -> Network:
    raise AssertionError(f"pixels pass through no network (spec {spec})")


def _serving(backbone: Backbone, kept: Sequence[Space]) -> Space | None:
    """The space that holds exactly what a backbone gets of whole photos."""
    if backbone.spec.face is not None:
        return None
    wanted = pixels(backbone.preprocessing).digest
    return next((space for space in kept if space.digest == wanted), None)


def _why_not(backbone: Backbone, kept: Sequence[Space]) -> str:
    """Why kept pixels do not serve a backbone, by the space that comes nearest."""
    if backbone.spec.face is not None:
        return "it takes face crops, and kept pixels are of whole photos"
    wanted = pixels(backbone.preprocessing)
    gaps = {space: wanted.difference(space.spec) for space in kept}
    nearest = min(kept, key=lambda space: len(gaps[space]))
    fields = [gap.removeprefix("preprocessing.") for gap in gaps[nearest]]
    shown = "; ".join(gap for gap in fields if not gap.startswith("dim:"))
    name = next(iter(nearest.names), shape_of(nearest.spec))
    return f"the pixels of {name} are not its own (its own, theirs: {shown})"


def _sizes(backbones: Sequence[Backbone], whole: Sequence[Backbone]) -> str:
    """What sizes could be kept instead."""
    if not whole:
        return (
            f"{backbones[0].name} takes face crops, and pixels are kept of whole photos only: add "
            "a backbone without @face"
        )
    sizes = dict.fromkeys((b.preprocessing.size, b.name) for b in whole)
    shown = ", ".join(f"{name} takes {h} x {w}" for (h, w), name in sizes)
    square = sorted({size[0] for size, _ in sizes if size[0] == size[1]})
    advice = f"; use {' or '.join(map(str, square))}" if square else ""
    return f"no backbone here takes photos of this size: {shown}{advice}"
