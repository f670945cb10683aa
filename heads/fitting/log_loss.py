"""The log-loss of train rows by several regressions at once, its slopes and second derivatives.

Every function is one pass over the rows, a block at a time, in memory or read again. Products with
the rows are in float32 but where a minimum is sought exactly, and are summed in float64.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from embedcache.machine import processors
from heads.dataset.rows import Part
from heads.fitting.linear import figure
from heads.fitting.moments import Moments, ahead
from heads.fitting.newton import Numbers
from heads.fitting.threads import Threads, threads
from heads.head import Layer, Link, Standard

Floats = NDArray[np.float64]
Matrix = NDArray[np.float32]
Block = tuple[Numbers, NDArray[np.floating[Any]]]
Piece = tuple[slice, NDArray[np.floating[Any]]]
_COLUMN_BYTES = 1 << 28  # of what is kept per row and column between passes


class Frame:
    """Coordinates in which the second moments of rows are diagonal.

    axes: float32 (width, width), None where the coordinates are the rows' own. moments: (width,).
    """

    def __init__(self, axes: NDArray[np.float32] | None, moments: Floats) -> None:
        self.axes, self.moments = axes, moments

    def ease(self, slope: Floats, curve: Floats, penalty: Floats) -> Floats:
        """Slopes (c, k, width) times the inverse of moments x curve (c, k) + penalty (c,)."""
        turned = self.turned(slope)
        turned /= curve[..., None] * self.moments + penalty[:, None, None]
        return self.turned(turned, back=True)

    def turned(self, slope: Floats, *, back: bool = False) -> Floats:
        """Slopes (c, k, width) in these coordinates, or from them in the rows' own; a new array."""
        if self.axes is None:
            return slope.copy()
        flat = slope.reshape(-1, slope.shape[-1]).astype(np.float32)
        found = flat @ (self.axes.T if back else self.axes)
        return found.reshape(slope.shape).astype(np.float64)


class Rows:
    """Train rows by a standard: the mean weighted log-loss of several thetas, and its derivatives.

    width: floats of a vector, or the coordinates along which fewer rows than that lie.
    present: the classes with a train row; the others have no line in theta.
    """

    def __init__(
        self, train: Part, standard: Standard, outputs: int, memory_bytes: int | None
    ) -> None:
        self.begin(train, standard, outputs, train.order)
        n, limit = len(train), memory_bytes or 1 << 62
        self.held: list[Block] | None = None
        if 2 * 4 * n * self.dim <= limit:
            self.held = list(self._read())
        if n < self.dim and 4 * 8 * n * self.dim <= limit:
            self.held = self._turn()
        self.width = self.dim if self.basis is None else self.basis.shape[1]

    def begin(self, train: Part, standard: Standard, outputs: int, order: Numbers) -> None:
        """What does not depend on where the rows lie. order: that of `truth` and `share`."""
        self.train, self.standard, self.all_outputs = train, standard, outputs
        self.link: Link = "sigmoid" if outputs == 1 else "softmax"
        self.dim = len(standard.mean)
        truth = train.targets[:, 0].astype(np.int64)
        self.present = np.array([0]) if outputs == 1 else np.unique(truth)
        self.outputs = len(self.present)
        truth = truth if outputs == 1 else np.searchsorted(self.present, truth)
        self.truth, self.share = truth[order], train.share[order]
        # Floats of a vector per coordinate, (dim, coordinates); None where both are the same.
        self.basis: Floats | None = None
        self._frames: list[tuple[Standard, Frame]] = []
        self._threads: Threads | None = None

    def _turn(self) -> list[Block]:
        """The rows in coordinates along which they lie, at most one per row; sets `basis`.

        The axes are at right angles, so that a penalty on coefficients is the same in both.
        """
        rows = np.empty((len(self.train), self.dim))
        for places, block in self.blocks():
            rows[places] = block
        values, axes = eigh(rows @ rows.T, driver="evd", check_finite=False)
        kept = values > 1e-12 * values[-1]
        lengths = np.sqrt(values[kept])
        self.basis = rows.T @ (axes[:, kept] / lengths)
        turned = axes[:, kept] * lengths
        return [(places, turned[places]) for places, _ in self.blocks()]

    def _read(self) -> Iterator[Block]:
        for places, block in self.train.blocks():
            yield places, self.standard.apply(block)

    def blocks(self) -> Iterable[Block]:
        """Standardised rows, in their coordinates, from memory or read again."""
        return self._read() if self.held is None else self.held

    def _slices(self) -> Iterator[Piece]:
        """Where blocks stand in the order of blocks, and their rows."""
        start = 0
        for _, block in self.blocks():
            yield slice(start, start + len(block)), block
            start += len(block)

    @contextmanager
    def in_threads(self) -> Iterator[None]:
        """Passes over rows in memory run on all processors meanwhile, see `threads`."""
        with threads() as found:
            self._threads = found
            try:
                yield
            finally:
                self._threads = None

    def share_out(self, work: Callable[[int], None], parts: Sequence[int]) -> None:
        """Work on each part, on all processors inside `in_threads`."""
        if self._threads is None:
            for part in parts:
                work(part)
        else:
            self._threads.each(work, parts)

    def _summed(self, work: Callable[[Piece], list[Floats]]) -> list[Floats]:
        """The sums of what `work` makes of each block; one pass over the rows."""

        def total(some: Iterable[Piece]) -> list[Floats]:
            sums: list[Floats] = []
            for piece in some:
                found = work(piece)
                sums = sums or [np.zeros(one.shape) for one in found]
                for mine, one in zip(sums, found, strict=True):
                    mine += one
            return sums

        if self._threads is None or self.held is None:
            return total(self._slices())
        first, *others = self._threads.map(total, list(self._slices()))
        for other in others:
            for mine, one in zip(first, other, strict=True):
                mine += one
        return first

    def columns(self, memory_bytes: int | None) -> int:
        """How many columns are fitted at once, by the memory that they take."""
        limit = min(_COLUMN_BYTES, memory_bytes or _COLUMN_BYTES)
        return max(1, limit // (4 * len(self.train) * self.outputs))

    def ratios(self, standards: Sequence[Standard]) -> Floats | None:
        """What coefficients by each standard are multiplied with for these rows, (c, width)."""
        if all(one is self.standard for one in standards):
            return None
        mine = self.standard.scale.astype(np.float64)
        return np.stack([mine / one.scale for one in standards])

    def frame(self, standard: Standard) -> Frame:
        """The coordinates in which the second moments of the rows by a standard are diagonal."""
        return next(frame for known, frame in self._frames if known is standard)

    def find_frames(self, standards: Sequence[Standard]) -> None:
        """Make ready what `frame` gives for some standards."""
        known = [id(one) for one, _ in self._frames]
        missing = [one for one in standards if id(one) not in known]
        if not missing:
            return
        if self.width > len(self.train) or self.basis is not None:
            squares = np.zeros(self.width)
            for places, block in self._slices():
                squares += self.share[places] @ np.square(block)
            for one in missing:
                ratio = self.ratios([one])
                moments = squares if ratio is None else squares * ratio[0] ** 2
                self._frames.append((one, Frame(None, moments)))
            return
        grams = self._grams(missing)
        with threads() if processors() <= 2 * len(grams) else nullcontext() as pool:
            found = map(_framed, grams) if pool is None else pool.each(_framed, grams)
            self._frames += zip(missing, found, strict=True)

    def _grams(self, standards: Sequence[Standard]) -> list[Matrix]:
        """The second moments by each standard, float32 (width, width).

        They only ease slopes: float32 takes half the time and memory.
        """
        moments = Moments(self.width, np.float32)
        root = np.sqrt(self.share).astype(np.float32)[:, None]
        for rows in ahead(block * root[places] for places, block in self._slices()):
            moments.add(rows)
        total: Matrix = moments.whole()
        found = []
        for one in standards:
            ratio = self.ratios([one])
            scale = None if ratio is None else ratio[0].astype(np.float32)
            found.append(total if scale is None else total * scale * scale[:, None])
        return found

    def constant(self) -> Floats:
        """Theta (k, width + 1) of the regression that knows the classes' shares alone."""
        theta = np.zeros((self.outputs, self.width + 1))
        shares = np.bincount(self.truth, self.share, max(2, self.outputs)).clip(min=1e-6)
        logs = np.log(shares)
        theta[:, -1] = logs[1] - logs[0] if self.link == "sigmoid" else logs
        return theta

    def layer(self, theta: Floats) -> Layer:
        """Theta (k, width + 1) as a head's layer, with lines for all classes."""
        weight, bias = self._lines(theta[None])
        return Layer(weight.astype(np.float32), bias.astype(np.float32))

    def _lines(self, theta: Floats) -> tuple[Floats, Floats]:
        weight = np.zeros((len(theta), self.all_outputs, self.dim))
        bias = np.full((len(theta), self.all_outputs), -30.0)
        found = theta[..., :-1] if self.basis is None else theta[..., :-1] @ self.basis.T
        weight[:, self.present], bias[:, self.present] = found, theta[..., -1]
        return weight, bias

    def lines(self, theta: Floats, standards: Sequence[Standard]) -> tuple[Matrix, Floats]:
        """Thetas by their standards (c, k, width + 1) as lines for all classes, by these rows':
        float32 (c, outputs, dim) and (c, outputs)."""
        weight, bias = self._lines(theta)
        ratio = self.ratios(standards)
        if ratio is not None:
            weight *= ratio[:, None]
        return weight.astype(np.float32), bias

    def open(self, columns: int) -> None:
        """Make room for so many columns."""
        self._kept = np.empty((len(self.train), columns, self.outputs), np.float32)

    def look(self, theta: Floats, which: Numbers, *, exact: bool) -> tuple[Floats, Floats, Floats]:
        """Mean losses (c,), slopes, and the mean curvature by each output (c, k), at theta.

        exact: products with the rows in float64, else in float32; sums are in float64.
        """
        kind: type[np.floating[Any]] = np.float64 if exact else np.float32
        c, k, _ = theta.shape
        weight = np.ascontiguousarray(theta[..., :-1].reshape(c * k, -1), kind)
        bias = theta[..., -1].astype(kind)
        judge = _two_classes if self.link == "sigmoid" else _classes

        def work(piece: Piece) -> list[Floats]:
            places, rows = piece[0], piece[1].astype(kind, copy=False)
            seen = (rows @ weight.T).reshape(-1, c, k)
            seen += bias
            share = self.share[places]
            losses, gap, chance = judge(seen, self.truth[places])
            self._kept[places, which] = chance
            curve = np.tensordot(share, chance * (1 - chance), 1)
            gap *= share.astype(kind)[:, None, None]
            across = gap.reshape(len(rows), -1).T @ rows
            return [share @ losses, curve, across, gap.sum(0, dtype=np.float64)]

        values, curve, across, bent = self._summed(work)
        slope = np.concatenate([across.reshape(c, k, -1), bent[..., None]], 2)
        return values, slope, curve

    def bend(self, direction: Floats, which: Numbers) -> Floats:
        """The second derivatives of the mean losses where they were last looked at, times those."""
        c, k, _ = direction.shape
        weight = np.ascontiguousarray(direction[..., :-1].reshape(c * k, -1), np.float32)
        bias = direction[..., -1].astype(np.float32)

        def work(piece: Piece) -> list[Floats]:
            places, rows = piece[0], piece[1].astype(np.float32, copy=False)
            seen: Any = (rows @ weight.T).reshape(-1, c, k)
            seen += bias
            chance = self._kept[places, which]
            if self.link == "softmax":
                seen -= (chance * seen).sum(2, keepdims=True)
                seen *= chance
            else:
                seen *= chance * (1 - chance)
            seen *= self.share[places].astype(np.float32)[:, None, None]
            across: Any = seen.reshape(len(rows), -1).T @ rows
            return [across, seen.sum(0, dtype=np.float64)]

        across, bent = self._summed(work)
        return np.concatenate([across.reshape(c, k, -1), bent[..., None]], 2)

    def dev_figures(self, dev: Part, theta: Floats, standards: Sequence[Standard]) -> list[float]:
        """The log-loss of the dev rows by each theta (c, k, width + 1) and its standard."""
        weight, bias = self.lines(theta, standards)
        c, k, _ = weight.shape
        flat = weight.reshape(c * k, -1)
        outputs = np.empty((len(dev), c, k))
        for places, block in dev.blocks():
            outputs[places] = (self.standard.apply(block) @ flat.T).reshape(-1, c, k) + bias
        return [figure(dev, outputs[:, column], self.link) for column in range(c)]


def _framed(gram: Matrix) -> Frame:
    values, axes = np.linalg.eigh(gram)  # scipy's keeps other threads waiting
    return Frame(np.ascontiguousarray(axes), values.astype(np.float64).clip(min=0))


def _two_classes(seen: Any, truth: Numbers) -> tuple[Any, Any, Any]:
    """Losses (rows, c), slopes by and probabilities of the second class (rows, c, 1)."""
    known = truth[:, None].astype(seen.dtype)
    logs = seen[:, :, 0]
    small = np.exp(-np.abs(logs))
    whole = 1 + small
    losses = np.log(whole) + np.maximum(logs, 0) - known * logs
    chance = np.where(logs >= 0, 1, small) / whole
    return losses, (chance - known)[:, :, None], chance[:, :, None]


def _classes(seen: Any, truth: Numbers) -> tuple[Any, Any, Any]:
    """Losses (rows, c), slopes by and probabilities of all classes (rows, c, k)."""
    seen = seen - seen.max(2, keepdims=True)
    chance = np.exp(seen)
    whole = chance.sum(2, keepdims=True)
    here = np.arange(len(seen)), slice(None), truth
    losses = np.log(whole[:, :, 0]) - seen[here]
    chance /= whole
    gap = chance.copy()
    gap[here] -= 1
    return losses, gap, chance
