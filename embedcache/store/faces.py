"""Faces of many photos as flat arrays: boxes, probabilities and landmarks, by offsets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """The faces found on n photos, F in all; those of photo i are offsets[i] to offsets[i + 1].

    offsets: (n + 1,) int64. box: (F, 4) float32, x0, y0, x1, y1 in pixels of the upright photo.
    probability: (F,) float32. landmark: (F, 5, 2) float32, x and y in the same pixels.
    """

    offsets: I64
    box: F32
    probability: F32
    landmark: F32

    def __post_init__(self) -> None:
        n_faces = int(self.offsets[-1]) if len(self.offsets) else -1
        if (
            n_faces < 0
            or self.offsets[0] != 0
            or bool((np.diff(self.offsets) < 0).any())
            or self.box.shape != (n_faces, 4)
            or self.probability.shape != (n_faces,)
            or self.landmark.shape != (n_faces, 5, 2)
        ):
            raise ValueError(
                f"offsets ending in {n_faces} do not fit boxes {self.box.shape}, probabilities "
                f"{self.probability.shape} and landmarks {self.landmark.shape}"
            )

    def __len__(self) -> int:
        """Photos, not faces."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> I64:
        """Faces on each photo, (n,) int64."""
        return np.diff(self.offsets)

    def of(self, photo: int) -> "Faces":
        """The faces of one photo, as `Faces` of length 1."""
        return self.take(np.array([photo]))

    def take(self, photos: I64) -> "Faces":
        """The faces of some photos, in the order given."""
        counts = self.counts[photos]
        offsets = np.zeros(len(photos) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        first = np.repeat(self.offsets[photos] - offsets[:-1], counts)
        rows = np.arange(offsets[-1]) + first
        return Faces(offsets, self.box[rows], self.probability[rows], self.landmark[rows])

    @classmethod
    def none(cls, n_photos: int = 0) -> "Faces":
        """No faces on each of `n_photos`."""
        return cls(
            np.zeros(n_photos + 1, np.int64),
            np.empty((0, 4), np.float32),
            np.empty(0, np.float32),
            np.empty((0, 5, 2), np.float32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Faces"]) -> "Faces":
        """The photos of all parts, one after the other."""
        parts = [cls.none(), *parts]
        offsets = np.zeros(sum(map(len, parts)) + 1, dtype=np.int64)
        np.cumsum(np.concatenate([part.counts for part in parts]), out=offsets[1:])
        return cls(
            offsets,
            np.concatenate([part.box for part in parts]),
            np.concatenate([part.probability for part in parts]),
            np.concatenate([part.landmark for part in parts]),
        )
