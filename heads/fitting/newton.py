"""Newton's method for several convex problems over the same rows, in lock step.

What all problems need next, a value and a slope or a second derivative times a direction, they need
at the same time, and get it from one pass over the rows: a pass is bound by reading the rows, so
that it costs little more for many columns than for one. A problem that has converged drops out.

Steps are solved for by conjugate gradients, as far as the step is worth (Dembo, Eisenstat and
Steihaug 1982), and halved where the value would rise.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

_STEPS = 50
_INNER_STEPS = 200
_HALVINGS = 30
_ROUGH = 0.25  # the residual, relative to the slope, to which an early step is solved
_ENOUGH = 1e-4  # Armijo's share of the decrease that a slope promises


class Problems(Protocol):
    """Numbered convex problems. which: (some,), ascending; points and slopes: (some, k, d)."""

    def look(self, theta: Floats, which: Numbers, *, exact: bool) -> tuple[Floats, Floats]:
        """Values (some,) and slopes at some points; `bend` is then of these points."""

    def bend(self, direction: Floats, which: Numbers) -> Floats:
        """The second derivatives where each problem was last looked at, times directions."""

    def ease(self, slope: Floats, which: Numbers) -> Floats:
        """Slopes times about the inverse of the second derivatives."""


def minimise(problems: Problems, theta: Floats, *, tolerance: float, exact: bool) -> Floats:
    """The point of least value of each problem, from (n, k, d) on.

    tolerance: the length of the slope, as `ease` measures it, at which a problem is solved.
    exact: look in float64, and once more at what is found; otherwise the last step is believed
        where its error is the tolerance by all signs.
    """
    theta, which = theta.copy(), np.arange(len(theta))
    values, slopes = problems.look(theta, which, exact=exact)
    noise = 1e-14 if exact else 1e-6
    before = np.full(len(theta), np.inf)
    for _ in range(_STEPS):
        eased = problems.ease(slopes, which)
        length = np.sqrt(_dot(slopes, eased).clip(min=0))
        # Rounding, and not the last step, is what is left of a short slope that no longer halves.
        going = (length > tolerance) & ~((length < 1e-3) & (length > 0.5 * before))
        which, values, slopes, length = which[going], values[going], slopes[going], length[going]
        eased = eased[going]
        if not len(which):
            break
        share = np.maximum(np.sqrt(length), 0.5 * tolerance / length).clip(max=_ROUGH)
        steps = _steps(problems, slopes, eased, which, share)
        last = np.maximum(share, 10 * length) * length <= tolerance
        if exact:
            last[:] = False
        theta[which[last]] += steps[last]
        kept = ~last
        which, values, slopes, steps = which[kept], values[kept], slopes[kept], steps[kept]
        before = length[kept]
        if not len(which):
            break
        theta[which], values, slopes = _moved(
            problems, theta[which], values, slopes, steps, which, exact=exact, noise=noise
        )
    return theta


def _moved(
    problems: Problems,
    theta: Floats,
    values: Floats,
    slopes: Floats,
    steps: Floats,
    which: Numbers,
    *,
    exact: bool,
    noise: float,
) -> tuple[Floats, Floats, Floats]:
    """Points after their steps, each halved until the value falls; their values and slopes."""
    slack = noise * (1 + np.abs(values))
    promised = _ENOUGH * _dot(slopes, steps)
    ends, end_values = theta + steps, np.empty_like(values)
    end_slopes = np.empty_like(slopes)
    bad, size = np.arange(len(which)), 1.0
    for _ in range(_HALVINGS):
        ends[bad] = theta[bad] + size * steps[bad]
        end_values[bad], end_slopes[bad] = problems.look(ends[bad], which[bad], exact=exact)
        limit = values + size * promised + slack
        bad = bad[~(end_values[bad] <= limit[bad])]
        if not len(bad):
            break
        size /= 2
    return ends, end_values, end_slopes


def _steps(
    problems: Problems, slopes: Floats, eased: Floats, which: Numbers, share: Floats
) -> Floats:
    """Newton's steps by conjugate gradients, to a residual of `share` of each slope."""
    steps = np.zeros_like(slopes)
    here = np.arange(len(which))  # of those still going
    left, direction = -slopes, -eased
    size = _dot(left, direction)
    enough = share**2 * size
    for _ in range(_INNER_STEPS):
        bent = problems.bend(direction, which[here])
        curve = _dot(direction, bent)
        sound = curve > 0
        far = np.divide(size, curve, out=np.zeros_like(size), where=sound)[:, None, None]
        steps[here] += far * direction
        left = left - far * bent
        eased = problems.ease(left, which[here])
        after = _dot(left, eased)
        going = sound & (after > enough[here])
        if not going.any():
            break
        turn = (after[going] / size[going])[:, None, None]
        direction = eased[going] + turn * direction[going]
        here, left, size = here[going], left[going], after[going]
    return steps


def _dot(one: Floats, other: Floats) -> Floats:
    """Their inner product, per problem."""
    return np.asarray(np.einsum("ckd,ckd->c", one, other))
