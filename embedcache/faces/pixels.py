"""What the detector asks of the pixels of a batch, wherever they lie.

`host` answers on processors, with numpy; `on_device` with torch tensors on a CUDA device. Both give
the networks the same float32 values.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

CELL, STRIDE = 12, 2  # a P-network cell sees 12 x 12 pixels, one every 2


@dataclass(frozen=True, slots=True)
class Level:
    """One level of one photo's pyramid: which photo, which level, its scale and size in pixels."""

    photo: int
    number: int
    scale: float
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells of the P-network that passed; those of a level are in reading order.

    level: (k,) index of the level;  y, x: (k,);  score: (k,);  shift: (k, 4).
    """

    level: I64
    y: I64
    x: I64
    score: F32
    shift: F32


class Pixels(Protocol):
    """The photos of one batch.

    sizes: (n, 2) width and height of each photo.
    """

    sizes: I64

    def cells(self, levels: list[Level], threshold: float) -> Cells:
        """P-network cells of all levels whose score is at least the threshold."""
        ...

    def look(self, photo: I64, corners: I64, size: int) -> tuple[F32, ...]:
        """Outputs of the R-network (size 24) or O-network (48) for parts of photos.

        photo: (k,) ascending.  corners: (k, 4) left, top, right, bottom inside it, not empty.
        """
        ...


def in_bands(level: Level, most: int) -> list[tuple[int, int]]:
    """First row and past-the-end row of each band of a level of more than `most` pixels.

    Cell y sees only the pixel rows 2 y to 2 y + 11, so bands have the same cells as the whole.
    """
    cells = (level.height - 1) // STRIDE - 4
    step = -(-cells // -(-level.height * level.width // most))
    return [
        (
            STRIDE * start,
            level.height if start + step >= cells else STRIDE * (start + step - 1) + CELL,
        )
        for start in range(0, cells, step)
    ]
