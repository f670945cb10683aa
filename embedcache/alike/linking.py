"""Which of n vectors are closer than a threshold: every pair is decided, few are computed whole.

    links = link(read, n, dim, threshold=0.95)

For unit vectors x and y, an orthonormal basis W of a few directions, and r(x), the length of what W
leaves over of x, the cosine is at most Wx.Wy + r(x) r(y) (Cauchy and Schwarz). Wx with r(x) as one
more number is a short vector, so that the bounds of a block are one small product of matrices.
Pairs whose bound is below the threshold are done; the others are computed whole. W holds the
principal directions of a sample, as many as cost least on it; where no few of them tell vectors
apart, all pairs are computed. The result is the same in each case (docs/decisions/101).

Vectors come in blocks through `read`. One panel of PANEL_BYTES is held while all blocks after it
pass by, whatever n is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Read = Callable[[int, int], F32]

PANEL_BYTES = 256 << 20
BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 2048
SAMPLE_ROWS = 2048
FEW_ROWS = 8192
"""Fewer rows than this are compared whole in the time that directions take to be found."""
SAMPLE_RUN = 32  # rows of the sample that lie side by side
MOST_DIRECTIONS = 512
PAIR_COST = 50
"""Two rows that are fetched for one pair cost as much as so many pairs of a product of matrices."""
ROUNDING = 4e-6
"""Above what float32 may lose of the square of r: it is added, so that no bound is too low."""
SLACK = 1e-5
"""The same for the sum of products that a bound is."""


@dataclass(frozen=True, slots=True)
class Links:
    """How n vectors hang together.

    label: int64 (n,), equal for vectors that a chain of close pairs joins.
    degree: int64 (n,), how many others each is close to.
    """

    label: I64
    degree: I64


def link(
    read: Read,
    n: int,
    dim: int,
    *,
    threshold: float,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Links:
    """Join the vectors whose cosine is `threshold` or more.

    read: gives the rows from one position to before another as a new array, float32 (k, dim). A
        row that is not finite, or zeros, is close to nothing.
    threshold: above 0; one so near to 1 that rounding decides is lowered by a millionth.
    progress: called with (pairs decided, pairs) now and then.
    """
    label, degree = np.arange(n, dtype=np.int64), np.zeros(n, np.int64)
    threshold = min(threshold, 1 - 1e-6)
    basis = _basis(read, n, dim, threshold)
    done, n_pairs = 0, n * (n - 1) // 2
    for (start, here), (other, there) in _tiles(read, n, dim, basis):
        i, j = here.close(there, threshold)
        if start == other:
            i, j = i[i < j], j[i < j]
        label = _joined(label, start + i, other + j)
        degree[start : start + len(here)] += np.bincount(i, minlength=len(here))
        degree[other : other + len(there)] += np.bincount(j, minlength=len(there))
        size = len(here)
        done += size * (size - 1) // 2 if start == other else size * len(there)
        progress(done, n_pairs)
    return Links(label, degree)


def unit(rows: F32) -> F32:
    """Rows (k, dim) at length 1, in place; those that are not finite become zeros."""
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    usable = np.isfinite(length) & (length > 0)
    rows[~usable] = 0
    rows /= np.where(usable, length, 1).astype(np.float32)[:, None]
    return rows


def block_rows(dim: int) -> int:
    """Rows of a block."""
    return max(16, min(BLOCK_ROWS, BLOCK_BYTES // (4 * dim)))


@dataclass(frozen=True, slots=True)
class _Block:
    """Unit vectors (k, dim), and their short forms (k, m + 1); None: all pairs are computed."""

    rows: F32
    short: F32 | None

    def __len__(self) -> int:
        return len(self.rows)

    def close(self, other: "_Block", threshold: float) -> tuple[I64, I64]:
        """The positions here and there of all pairs with this cosine or more."""
        if self.short is None or other.short is None:
            return self._all_close(other, threshold)
        at = np.flatnonzero(self.short @ other.short.T >= threshold - SLACK)
        if len(at) * PAIR_COST > len(self) * len(other):
            return self._all_close(other, threshold)
        i, j = np.divmod(at, len(other))
        step = max(1, BLOCK_BYTES // (4 * self.rows.shape[1]))
        near = np.empty(len(at), np.bool_)
        for start in range(0, len(at), step):
            some = slice(start, start + step)
            pairs = np.einsum("ij,ij->i", self.rows[i[some]], other.rows[j[some]])
            near[some] = pairs >= threshold
        return i[near], j[near]

    def _all_close(self, other: "_Block", threshold: float) -> tuple[I64, I64]:
        at = np.flatnonzero(self.rows @ other.rows.T >= threshold)
        i, j = np.divmod(at, len(other))
        return i, j


def _tiles(
    read: Read, n: int, dim: int, basis: F32 | None
) -> Iterator[tuple[tuple[int, _Block], tuple[int, _Block]]]:
    """Every pair of blocks once, each with the position of its first row; the first comes first."""
    step = block_rows(dim)
    panel = step * max(1, PANEL_BYTES // (4 * dim * step))
    for first in range(0, n, panel):
        held: list[tuple[int, _Block]] = []
        for start in range(first, n, step):
            rows = unit(read(start, min(n, start + step)))
            now = (start, _Block(rows, None if basis is None else _short(rows, basis)))
            for before in held:
                yield before, now
            if start < first + panel:
                yield now, now
                held.append(now)


def _short(rows: F32, basis: F32) -> F32:
    """The short forms (k, m + 1) of unit vectors (k, dim)."""
    short = np.empty((len(rows), basis.shape[1] + 1), np.float32)
    np.matmul(rows, basis, out=short[:, :-1])
    kept = np.einsum("ij,ij->i", short[:, :-1], short[:, :-1], dtype=np.float64)
    short[:, -1] = np.sqrt(np.maximum(1 - kept, 0) + ROUNDING)
    return short


def _basis(read: Read, n: int, dim: int, threshold: float) -> F32 | None:
    """The directions (dim, m) by which a sample's pairs are decided at the least cost."""
    if n < FEW_ROWS:
        return None
    sample = _sample(read, n, dim)
    # Directions fit the rows that they were made from better than others: these judge them.
    making, judging = sample[::2], sample[1::2]
    if len(judging) < SAMPLE_RUN or dim < SAMPLE_RUN:
        return None
    most = min(MOST_DIRECTIONS, len(making) - 1, dim // 2)
    around = making - making.mean(axis=0)
    values, vectors = np.linalg.eigh((around @ around.T).astype(np.float64))
    best = np.argsort(values)[::-1][:most]
    basis = np.linalg.qr(around.T @ vectors[:, best].astype(np.float32))[0]
    different = ~(judging @ judging.T >= threshold)  # near-duplicates are computed in any case
    cheapest, chosen = float(dim), None
    for m in (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512):
        if m > basis.shape[1]:
            break
        directions = np.ascontiguousarray(basis[:, :m])
        short = _short(judging, directions)
        open_ = (short @ short.T >= threshold - SLACK) & different
        cost = m + dim * PAIR_COST * float(open_.mean())
        if cost < cheapest:
            cheapest, chosen = cost, directions
    return chosen


def _sample(read: Read, n: int, dim: int) -> F32:
    """Unit vectors from all over, (k, dim): runs of neighbours, at equal distances."""
    most = max(SAMPLE_RUN, min(SAMPLE_ROWS, 4 * BLOCK_BYTES // (4 * dim)))
    runs = max(1, min(n, most) // SAMPLE_RUN)
    starts = np.linspace(0, max(0, n - SAMPLE_RUN), runs).astype(int)
    rows = np.concatenate([read(s, min(n, s + SAMPLE_RUN)) for s in sorted({*starts.tolist()})])
    return unit(rows)


def _joined(label: I64, i: I64, j: I64) -> I64:
    """The labels once the rows of each pair (i, j) have the same; the smallest of them stays."""
    mine, theirs = label[i], label[j]
    apart = mine != theirs
    if not apart.any():
        return label
    roots, place = np.unique(np.stack([mine[apart], theirs[apart]]), return_inverse=True)
    ends = place.reshape(2, -1)
    edges = coo_array(
        (np.ones(ends.shape[1], np.int8), (ends[0], ends[1])), shape=(len(roots),) * 2
    )
    _, part = connected_components(edges, directed=False)
    first = np.full(part.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, part, roots)
    renamed = np.arange(len(label))
    renamed[roots] = first[part]
    joined: I64 = renamed[label]
    return joined
