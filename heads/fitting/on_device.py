"""Vectors that lie on a CUDA device, and ridge and logistic regression by products there.

The strengths, the sums and the choice are those of `linear` and `logistic`. What takes time is done
on the device: products with the rows, and systems of dim x dim, in float64 where theirs are. Sums
in another order agree to rounding, so that dev may choose another strength only between two whose
figures agree to as much.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedcache.errors import InputError
from heads.dataset.rows import Part
from heads.fitting.linear import RIDGE_STRENGTHS, Linear, as_layer, figure, standard_of
from heads.fitting.log_loss import Frame, Rows
from heads.fitting.logistic import Losses
from heads.fitting.newton import Numbers
from heads.head import Head, Link, Standard

Floats = NDArray[np.float64]
_BLOCK_ROWS = 16_384


def resolved(asked: str) -> str:
    """The device that `auto` is here; InputError for one that this machine lacks."""
    n = torch.cuda.device_count()
    if asked == "auto":
        return "cuda" if n else "cpu"
    if asked.startswith("cuda") and int(asked.partition(":")[2] or 0) >= n:
        raise InputError(f"{n} CUDA devices here, and {asked} was asked for: use `device='cpu'`")
    return asked


class DeviceVectors:
    """The vectors of one part, read once: `tensor` float32 (n, dim) on a device, by place.

    Who asks for numpy's rows gets them from where the part has them.
    """

    def __init__(self, part: Part, device: str) -> None:
        self.part, self.shape = part, (len(part), part.vectors.shape[1])
        self.tensor = torch.empty(self.shape, device=device)
        for places, block in part.blocks():
            rows = torch.from_numpy(np.ascontiguousarray(block, np.float32)).to(device)
            self.tensor.index_copy_(0, torch.from_numpy(places).to(device), rows)

    def __getitem__(self, places: NDArray[np.int64], /) -> NDArray[np.float32]:
        return self.part.read(places)

    def predict(self, head: Head) -> Floats:
        """`head.predict` of all rows, by place: (n,), or (n, outputs) when there are several."""
        arrays = [head.standard.mean, head.standard.scale]
        arrays += [one for layer in head.layers for one in (layer.weight, layer.bias)]
        mean, scale, *layers = (
            torch.from_numpy(np.ascontiguousarray(one)).to(self.tensor.device) for one in arrays
        )
        blocks = []
        for block in torch.split(self.tensor, _BLOCK_ROWS):
            rows = (block - mean).div_(scale)
            total = rows.new_zeros(len(rows), head.outputs, dtype=torch.float64)
            for member in range(len(layers[0])):
                hidden = rows
                for depth, (weight, bias) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
                    hidden = hidden.clamp(min=0) if depth else hidden
                    hidden = torch.addmm(bias[member], hidden, weight[member].T)
                total += through(hidden.double(), head.link)
            blocks.append(total / len(layers[0]))
        found = torch.cat(blocks).cpu().numpy()
        return np.asarray(found[:, 0] if head.outputs == 1 else found)

    def take(self, places: NDArray[np.int64]) -> Tensor:
        """The rows at some places, a new tensor on the device."""
        return self.tensor[torch.from_numpy(places).to(self.tensor.device)]


def moved(parts: Sequence[Part], device: str, memory_bytes: int | None) -> list[Part]:
    """Parts with their vectors on a CUDA device; as they are elsewhere, and where they do not fit.

    Half of the device's free memory, and of `memory_bytes`, is left to those who work with them.
    """
    device = resolved(device)
    if device == "cpu":
        return list(parts)
    free, _ = torch.cuda.mem_get_info(device)
    limit = min(free, memory_bytes or free)
    if 2 * sum(4 * len(part) * part.vectors.shape[1] for part in parts) > limit:
        return list(parts)
    return [_moved(part, device) for part in parts]


def _moved(part: Part, device: str) -> Part:
    return replace(part, vectors=DeviceVectors(part, device), rows=np.arange(len(part)))


def through(outputs: Tensor, link: Link) -> Tensor:
    """Outputs (..., k) through the link."""
    if link == "identity":
        return outputs
    return outputs.sigmoid() if link == "sigmoid" else outputs.softmax(-1)


def held(part: Part) -> bool:
    """Whether a part's vectors lie on a device."""
    return isinstance(part.vectors, DeviceVectors)


class _Rows:
    """The rows of a part on its device, standardised in float32 as `Standard.apply` has it."""

    def __init__(self, part: Part, standard: Standard) -> None:
        assert isinstance(part.vectors, DeviceVectors)
        self.raw = part.vectors.tensor
        self.mean, self.scale = (
            torch.from_numpy(one).to(self.raw.device) for one in (standard.mean, standard.scale)
        )

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """A slice of places, and float32 (some, dim)."""
        for start in range(0, len(self.raw), _BLOCK_ROWS):
            places = slice(start, start + _BLOCK_ROWS)
            yield places, (self.raw[places] - self.mean).div_(self.scale)

    def tensor(self, values: Floats) -> Tensor:
        """Float64 on the device."""
        return torch.tensor(values, dtype=torch.float64, device=self.raw.device)


def fit_standard(part: Part) -> Standard:
    """`linear.fit_standard` of a part on a device."""
    assert isinstance(part.vectors, DeviceVectors)
    blocks = torch.split(part.vectors.tensor, _BLOCK_ROWS)
    mean = torch.stack([one.double().sum(0) for one in blocks]).sum(0) / len(part)
    square = torch.zeros_like(mean)
    for block in blocks:
        square += (block - mean).square().sum(0)
    return standard_of(mean.cpu().numpy(), square.cpu().numpy() / len(part))


def ridge(
    train: Part,
    dev: Part,
    standard: Standard,
    *,
    strengths: tuple[float, ...] = RIDGE_STRENGTHS,
) -> Linear:
    """`linear.ridge` of parts on a device."""
    began = time.perf_counter()
    system = _Ridge(train, standard)
    solved: list[tuple[float, Tensor]] = []
    for strength in sorted(strengths, reverse=True):
        if (found := system.solve(strength)) is None:
            break
        solved.append((strength, found))
    k = train.targets.shape[1]
    stacked = torch.cat([coefficients for _, coefficients in solved], 1)
    rows = _Rows(dev, standard)
    share, truth = rows.tensor(dev.share), rows.tensor(dev.targets)
    errors = torch.zeros_like(stacked[0])
    for places, block in rows.blocks():
        seen = ((block - system.centre) @ stacked).view(-1, len(solved), k) + system.middle
        errors += share[places] @ (truth[places, None] - seen).square().flatten(1)
    scores = errors.view(-1, k).mean(1).tolist()
    best = int(np.argmin(scores))
    strength, coefficients = solved[best]
    bias = system.middle - system.centre @ coefficients
    layer = as_layer(coefficients.T.cpu().numpy(), bias.cpu().numpy())
    curve = tuple((one, score) for (one, _), score in zip(solved, scores, strict=True))
    seconds = time.perf_counter() - began
    return Linear(layer, "identity", strength, scores[best], curve, seconds)


class _Ridge:
    """The normal equations of weighted, centred rows; of fewer rows than floats, their dual."""

    def __init__(self, train: Part, standard: Standard) -> None:
        rows = _Rows(train, standard)
        share, targets = rows.tensor(train.share), rows.tensor(train.targets)
        self.middle = share @ targets
        dim = len(standard.mean)
        self.centre = share.new_zeros(dim)
        for places, block in rows.blocks():
            self.centre += share[places] @ block.double()
        root = (share * len(train)).sqrt()[:, None]
        targets = (targets - self.middle) * root
        self.rows: Tensor | None = None
        if len(train) < dim:
            self.rows = torch.cat([block - self.centre for _, block in rows.blocks()]) * root
            self.gram, self.cross = self.rows @ self.rows.T, targets
        else:
            self.gram = share.new_zeros(dim, dim)
            self.cross = share.new_zeros(dim, targets.shape[1])
            for places, block in rows.blocks():
                weighted = (block - self.centre) * root[places]
                self.gram += weighted.T @ weighted
                self.cross += weighted.T @ targets[places]
        self.diagonal = self.gram.diagonal().clone()

    def solve(self, strength: float) -> Tensor | None:
        """Coefficients (dim, k); None where rounding leaves the system without a solution."""
        self.gram.diagonal().copy_(self.diagonal + strength)
        factor, failed = torch.linalg.cholesky_ex(self.gram)
        if int(failed):
            return None
        found = torch.cholesky_solve(self.cross, factor)
        return found if self.rows is None else self.rows.T @ found


class DeviceLosses(Losses):
    """`logistic.Losses` of a train part on a device; `moved` has seen to memory."""

    def rows(self, standard: Standard) -> "DeviceRows":
        """The rows by one standard."""
        return DeviceRows(self.train, standard, self.outputs)


class DeviceRows(Rows):
    """`logistic.Rows` of parts on a device."""

    def __init__(self, train: Part, standard: Standard, outputs: int) -> None:
        self.begin(train, standard, outputs, np.arange(len(train)))
        rows = _Rows(train, standard)
        self.rows = torch.cat([block for _, block in rows.blocks()])
        if len(train) < self.dim:
            self.rows = self._turned(self.rows.double())
        self.width = self.rows.shape[1]
        self.weight = rows.tensor(self.share)
        self.known = torch.from_numpy(self.truth).to(self.rows.device)

    def _places(self) -> list[slice]:
        starts = range(0, len(self.rows), _BLOCK_ROWS)
        return [slice(start, start + _BLOCK_ROWS) for start in starts]

    def _turned(self, rows: Tensor) -> Tensor:
        values, axes = torch.linalg.eigh(rows @ rows.T)
        kept = values > 1e-12 * values[-1]
        lengths = values[kept].sqrt()
        self.basis = (rows.T @ (axes[:, kept] / lengths)).cpu().numpy()
        turned: Tensor = axes[:, kept] * lengths
        return turned

    def find_frames(self, standards: Sequence[Standard]) -> None:
        """See `Rows.find_frames`."""
        moments: Tensor | None = None
        for standard in standards:
            if any(known is standard for known, _ in self._frames):
                continue
            if moments is None:
                moments = self._moments()
            ratio = self.ratios([standard])
            scale = moments.new_ones(()) if ratio is None else torch.from_numpy(ratio[0])
            scale = scale.to(moments)
            if moments.ndim == 1:
                found = Frame(None, (moments * scale.square()).double().cpu().numpy())
            else:
                values, axes = torch.linalg.eigh(moments * scale * scale.view(-1, 1))
                found = _DeviceFrame(axes, values.double().clamp(min=0).cpu().numpy())
            self._frames.append((standard, found))

    def _moments(self) -> Tensor:
        """The second moments of the rows; of fewer rows than floats, of each coordinate alone."""
        if self.basis is not None:
            return self.weight @ self.rows.square()
        root = self.weight.sqrt().float()[:, None]
        total = self.rows.new_zeros(self.width, self.width)
        for places in self._places():
            weighted = self.rows[places] * root[places]
            total += weighted.T @ weighted
        return total

    @contextmanager
    def in_threads(self) -> Iterator[None]:
        """Nothing to share out: the device does that."""
        yield

    def open(self, columns: int) -> None:
        """See `Rows.open`."""
        shape = len(self.rows), columns, self.outputs
        self.chance = torch.empty(shape, device=self.rows.device)

    def _sent(self, theta: Floats, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        """Coefficients (c x k, width) and intercepts (c, k) on the device."""
        given = torch.from_numpy(np.ascontiguousarray(theta)).to(self.rows.device, kind)
        return given[..., :-1].flatten(0, 1), given[..., -1]

    def look(self, theta: Floats, which: Numbers, *, exact: bool) -> tuple[Floats, Floats, Floats]:
        """See `Rows.look`."""
        kind = torch.float64 if exact else torch.float32
        c, k, _ = theta.shape
        weight, bias = self._sent(theta, kind)
        columns = torch.from_numpy(which).to(self.rows.device)
        total = self.weight.new_zeros(c)
        curve, slope = self.weight.new_zeros(c, k), self.weight.new_zeros(theta.shape)
        for places in self._places():
            rows, truth, share = self.rows[places].to(kind), self.known[places], self.weight[places]
            seen = (rows @ weight.T).view(-1, c, k) + bias
            if self.link == "sigmoid":
                one, known = seen[..., 0], truth[:, None].to(kind)
                losses = torch.nn.functional.softplus(one, threshold=50) - known * one
                chance = one.sigmoid()[..., None]
                gap = chance - known[..., None]
            else:
                logs = seen.log_softmax(2)
                here = truth[:, None, None].expand(-1, c, 1)
                losses = -logs.gather(2, here)[..., 0]
                chance = logs.exp()
                gap = chance.scatter_add(2, here, chance.new_full(here.shape, -1.0))
            total += share @ losses.double()
            self.chance[places, columns] = chance.float()
            curve += torch.tensordot(share, (chance * (1 - chance)).double(), 1)
            gap = gap * share.to(kind)[:, None, None]
            slope[..., :-1] += (gap.flatten(1).T @ rows).view(c, k, -1)
            slope[..., -1] += gap.sum(0)
        flat = torch.cat([total, curve.flatten(), slope.flatten()]).cpu().numpy()  # one copy
        values, curves, slopes = np.split(flat, [c, c + c * k])
        return values, slopes.reshape(theta.shape), curves.reshape(c, k)

    def bend(self, direction: Floats, which: Numbers) -> Floats:
        """See `Rows.bend`."""
        c, k, _ = direction.shape
        weight, bias = self._sent(direction, torch.float32)
        columns = torch.from_numpy(which).to(self.rows.device)
        found = self.weight.new_zeros(direction.shape)
        for places in self._places():
            rows = self.rows[places].float()
            seen = (rows @ weight.T).view(-1, c, k) + bias
            chance = self.chance[places, columns]
            if self.link == "sigmoid":
                seen *= chance * (1 - chance)
            else:
                seen = chance * (seen - (chance * seen).sum(2, keepdim=True))
            seen *= self.weight[places].float()[:, None, None]
            found[..., :-1] += (seen.flatten(1).T @ rows).view(c, k, -1)
            found[..., -1] += seen.sum(0)
        return np.asarray(found.cpu().numpy())

    def dev_figures(self, dev: Part, theta: Floats, standards: Sequence[Standard]) -> list[float]:
        """See `Rows.dev_figures`."""
        rows = _Rows(dev, self.standard)
        weight, bias = self.lines(theta, standards)
        c, k, _ = weight.shape
        given = torch.from_numpy(weight.reshape(c * k, -1)).to(rows.raw.device)
        offset = rows.tensor(bias)
        outputs = torch.cat(
            [(block @ given.T).view(-1, c, k).double() + offset for _, block in rows.blocks()]
        )
        seen = outputs.cpu().numpy()
        return [figure(dev, seen[:, column], self.link) for column in range(c)]


class _DeviceFrame(Frame):
    """See `logistic.Frame`; axes: float32 (width, width), on a device."""

    def __init__(self, axes: Tensor, moments: Floats) -> None:
        self._axes, self.moments = axes, moments

    def turned(self, slope: Floats, *, back: bool = False) -> Floats:
        given = torch.from_numpy(np.ascontiguousarray(slope)).to(self._axes)
        return np.asarray((given @ (self._axes.T if back else self._axes)).double().cpu().numpy())
