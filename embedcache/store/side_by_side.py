"""Vectors of several spaces side by side: what a head on several backbones reads.

both = cache.side_by_side(["facenet:casia-webface#repeat_1,repeat_2", "inception_v3.tf_in1k"])
vectors, found = both.read(digests)      # (n, 256 + 896 + 2048), found in all of them
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from embedcache.spec import split_layers
from embedcache.store.columns import ABSENT, FAILED, OK
from embedcache.store.space import Space

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Spaces whose vectors stand side by side, in this order, read as one space is.

    names: what the caller calls each of them.
    """

    spaces: tuple[Space, ...]
    names: tuple[str, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Floats of each."""
        return tuple(space.dim for space in self.spaces)

    @property
    def dim(self) -> int:
        """Floats of all together."""
        return sum(self.widths)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of a row as it is given away: (dim,), or (height, width, 3) of pixels."""
        spec = self.spaces[0].spec
        if spec.kind == "pixels" and spec.preprocessing is not None:
            return (*spec.preprocessing.size, 3)
        return (self.dim,)

    @property
    def absent(self) -> str:
        """Why a photo that no space has failed has no vector."""
        imported = all(space.spec.kind == "foreign" for space in self.spaces)
        return self.spaces[0].absent if imported else "not embedded yet"

    def status(self, digests: U8) -> U8:
        """OK where every space has a vector of (n, 32) digests, FAILED where one has failed."""
        found = np.stack([space.status(digests) for space in self.spaces])
        failed = np.where((found == FAILED).any(0), np.uint8(FAILED), np.uint8(ABSENT))
        return np.where((found == OK).all(0), np.uint8(OK), failed).astype(np.uint8)

    def reasons(self, digests: U8) -> list[str | None]:
        """Why a photo has no vector of the first space that has failed it; None for no failure."""
        each = [space.reasons(digests) for space in self.spaces]
        return [next(filter(None, found), None) for found in zip(*each, strict=True)]

    def read(self, digests: U8, *, out: F32 | None = None) -> tuple[F32, Bool]:
        """The vectors ((n, dim), which were found in all); rows not found are NaN, as in `Space`.

        out: filled and returned instead of a new array.
        """
        if len(self.spaces) == 1:
            only = self.spaces[0]
            return only.read(digests) if out is None else only.read(digests, out=out)
        if out is None:
            out = np.empty((len(digests), self.dim), dtype=np.float32)
        found = np.ones(len(digests), np.bool_)
        edges = pairwise(accumulate((0, *self.widths)))
        for space, (first, last) in zip(self.spaces, edges, strict=True):
            out[:, first:last], there = space.read(digests)
            found &= there
        out[~found] = np.nan
        return out, found


def each_layer(backbones: str | Sequence[str]) -> list[str]:
    """The names of single spaces in one name or several: NAME#a,b is NAME#a and NAME#b.

    A name that stands there twice is given twice.
    """
    found = []
    for name in [backbones] if isinstance(backbones, str) else backbones:
        body, layers = split_layers(name)
        found += [f"{body}#{layer}" for layer in layers] if len(layers) > 1 else [name]
    return found
