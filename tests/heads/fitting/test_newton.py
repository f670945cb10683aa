"""Several convex problems, minimised in lock step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from heads.dataset import rows
from heads.dataset.arrays import from_arrays
from heads.dataset.rows import Dataset, Part
from heads.fitting import linear, threads
from heads.fitting.log_loss import Rows
from heads.fitting.logistic import Losses, logistic, search
from heads.fitting.newton import Floats, Numbers, minimise

Sample = Callable[..., Dataset]


class Bowls:
    """sum of scale x (exp(x - middle) - x), a problem per line; least at the middle."""

    def __init__(self, middles: Floats, scale: Floats) -> None:
        self.middles, self.scale = middles[:, None], scale
        self.looked: list[list[int]] = []
        self.at = np.zeros_like(self.middles)

    def look(self, theta: Floats, which: Numbers, *, exact: bool) -> tuple[Floats, Floats]:
        self.looked.append(which.tolist())
        self.at[which] = theta
        with np.errstate(over="ignore"):
            rise = np.exp(theta - self.middles[which])
        return ((rise - theta) * self.scale).sum((1, 2)), (rise - 1) * self.scale

    def bend(self, direction: Floats, which: Numbers) -> Floats:
        return np.exp(self.at[which] - self.middles[which]) * self.scale * direction

    def ease(self, slope: Floats, which: Numbers) -> Floats:
        return slope / self.scale


def test_each_problem_ends_at_its_own_minimum() -> None:
    """Also where a first step is far too long: exp(8) from the middle."""
    middles = np.array([[0.0, 0.1], [3.0, -1.0], [-8.0, 8.0], [0.0, 0.0]])
    bowls = Bowls(middles, np.array([1.0, 40.0]))
    found = minimise(bowls, np.zeros((4, 1, 2)), tolerance=1e-10, exact=True)
    assert found[:, 0] == pytest.approx(middles, abs=1e-9)
    assert bowls.looked[0] == [0, 1, 2, 3]
    assert sum(2 in which for which in bowls.looked) > sum(0 in which for which in bowls.looked)


def test_a_problem_ends_where_it_ends_alone() -> None:
    middles = np.array([[0.4, 0.1], [3.0, -1.0], [-5.0, 2.0]])
    scale = np.array([1.0, 3.0])
    start = np.zeros((3, 1, 2))
    together = minimise(Bowls(middles, scale), start, tolerance=1e-6, exact=False)
    for place in range(3):
        some = slice(place, place + 1)
        alone = minimise(Bowls(middles[some], scale), start[some], tolerance=1e-6, exact=False)
        assert together[some] == pytest.approx(alone, abs=1e-12)


class _Counted:
    """Vectors that count how often each row was read."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors, self.shape, self.read = vectors, vectors.shape, 0

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        self.read += len(rows)
        return self.vectors[rows]


def _passes(data: Dataset, strengths: tuple[float, ...], *, scalings: int) -> float:
    """How often the train rows are read where they are not kept in memory."""
    whole = data.part("train")
    counted = _Counted(whole.read())
    part = replace(whole, vectors=counted, rows=np.arange(len(whole)), order=np.arange(len(whole)))
    standard = linear.fit_standard(part)
    counted.read = 0
    losses = Losses(part, 1, memory_bytes=4 * len(part) * 2 * len(strengths))
    standards = [standard, linear.centred(standard)][:scalings]
    search(losses, data.part("dev"), standards, strengths=strengths)
    return counted.read / len(part)


def test_all_strengths_and_both_scalings_share_the_passes_of_the_slowest(sample: Sample) -> None:
    data = sample(task="binary")
    strengths = (1e-3, 1e-2, 1e-1)
    alone = [_passes(data, (one,), scalings=1) for one in strengths]
    together = _passes(data, strengths, scalings=2)
    assert together <= max(alone) + 6  # a few are asked for by one of the columns alone
    assert together < sum(alone)


def test_classes_that_a_line_parts_are_no_trouble(sample: Sample) -> None:
    """The losses then fall for ever, but for the penalty."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 4)).astype(np.float32)
    for truth in ((vectors[:, 0] > 0).astype(int), np.digitize(vectors[:, 0], [-0.5, 0.5])):
        task = "binary" if truth.max() == 1 else "multiclass"
        data = from_arrays(vectors, truth, groups=range(400), task=task)
        part, dev = data.part("train"), data.part("dev")
        outputs = 1 if task == "binary" else 3
        found = logistic(
            part, dev, linear.fit_standard(part), outputs=outputs, strengths=(1.0, 1e4)
        )
        assert found.strength == 1e4
        assert found.dev < 0.2


def test_columns_that_do_not_fit_in_memory_are_fitted_in_turn(sample: Sample) -> None:
    data = sample(task="classes")
    part, dev = data.part("train"), data.part("dev")
    standard = linear.fit_standard(part)
    scalings = [standard, linear.centred(standard)]
    whole, pieces = (
        search(Losses(part, 3, memory_bytes=limit), dev, scalings) for limit in (None, 1)
    )
    for one, other in zip(whole, pieces, strict=True):
        assert one.strength == other.strength
        n = min(len(one.curve), len(other.curve))
        assert np.array(one.curve[:n]) == pytest.approx(np.array(other.curve[:n]), rel=1e-4)


@pytest.mark.parametrize("task", ["binary", "classes"])
@pytest.mark.parametrize("n_processors", [1, 3, 64])
def test_threads_change_a_regression_by_rounding_alone(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, task: str, n_processors: int
) -> None:
    """Also more threads than there are blocks of rows, and BLAS whose threads cannot be bounded."""
    data = sample(task=task)
    part, dev = data.part("train"), data.part("dev")
    given = part, dev, linear.fit_standard(part)
    outputs = 1 if task == "binary" else 3
    monkeypatch.setattr(rows, "BLOCK_ROWS", 37)
    with monkeypatch.context() as bare:
        bare.setitem(sys.modules, "threadpoolctl", None)
        alone = logistic(*given, outputs=outputs)
    monkeypatch.setattr(threads, "processors", lambda: n_processors)
    found = logistic(*given, outputs=outputs)
    assert found.strength == alone.strength
    assert np.array(found.curve) == pytest.approx(np.array(alone.curve), rel=1e-5)
    assert found.layer.weight == pytest.approx(alone.layer.weight, abs=1e-6)


def test_an_error_in_a_thread_is_raised_and_blas_gets_its_threads_back() -> None:
    from threadpoolctl import threadpool_info

    def counts() -> list[int]:
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    def fail(_: object) -> None:
        assert set(counts()) == {1}
        raise ValueError("no such block")

    def run() -> None:
        with threads.threads() as found:
            assert found is not None
            found.map(fail, [1, 2])

    before = counts()
    with pytest.raises(ValueError, match="no such block"):
        run()
    assert counts() == before


@pytest.mark.parametrize("task", ["binary", "classes"])
def test_slopes_and_second_derivatives_are_those_of_the_values(sample: Sample, task: str) -> None:
    part: Part = sample(task=task).part("train")
    outputs = 1 if task == "binary" else 3
    held = Rows(part, linear.fit_standard(part), outputs, None)
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(2, held.outputs, held.width + 1)) * 0.3
    toward = rng.normal(size=theta.shape)
    both = np.arange(2)
    held.open(2)

    def at(step: float) -> Iterator[Floats]:
        values, slopes, _ = held.look(theta + step * toward, both, exact=True)
        yield values
        yield slopes

    (low, low_slope), (high, high_slope) = at(-1e-4), at(1e-4)
    _, slopes, _ = held.look(theta, both, exact=True)
    rise = (slopes * toward).sum((1, 2))
    assert (high - low) / 2e-4 == pytest.approx(rise, rel=1e-6)
    bent = (high_slope - low_slope) / 2e-4
    assert held.bend(toward, both) == pytest.approx(bent, rel=1e-3, abs=1e-4)
