"""Which vectors are close: the fast way against all cosines at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from embedcache.alike import linking
from embedcache.alike.linking import Links, link, unit

F32 = NDArray[np.float32]


def planted(n: int, dim: int, seed: int, *, positive: bool = False) -> F32:
    """Random vectors, some of them near-copies of others at all distances, two of them unusable."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, dim)).astype(np.float32)
    if positive:  # as a network's last layer: all in one corner, cosines far above 0
        rows = np.maximum(rows @ rng.standard_normal((dim, dim)).astype(np.float32) / 4 + 3, 0)
    for _ in range(n // 10):
        one, other = rng.integers(0, n, 2)
        noise = rng.standard_normal(dim) * np.linalg.norm(rows[other]) / np.sqrt(dim)
        rows[one] = rows[other] + noise * rng.uniform(0, 0.6)
    rows[n // 2] = 0
    rows[n // 3] = np.nan
    return rows


def linked(rows: F32, threshold: float) -> Links:
    n, dim = rows.shape
    return link(lambda start, stop: rows[start:stop].copy(), n, dim, threshold=threshold)


def check(rows: F32, threshold: float) -> int:
    """Compare with the whole matrix, at a threshold with no cosine within rounding of it."""
    whole = unit(rows.copy()).astype(np.float64)
    cosine = whole @ whole.T
    np.fill_diagonal(cosine, 0)
    while (np.abs(cosine - threshold) < 1e-6).any():
        threshold -= 2.5e-6
    close = cosine >= threshold
    found = linked(rows, threshold)
    assert found.degree.tolist() == close.sum(axis=1).tolist()
    n_parts, part = connected_components(close, directed=False)
    assert len({*zip(part.tolist(), found.label.tolist(), strict=True)}) == n_parts
    assert len({*found.label.tolist()}) == n_parts
    return int(close.sum()) // 2


@pytest.mark.parametrize("threshold", [0.3, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("positive", [False, True])
def test_the_fast_way_finds_exactly_what_all_cosines_say(
    monkeypatch: pytest.MonkeyPatch, threshold: float, positive: bool
) -> None:
    monkeypatch.setattr(linking, "FEW_ROWS", 0)
    monkeypatch.setattr(linking, "BLOCK_ROWS", 70)
    monkeypatch.setattr(linking, "PANEL_BYTES", 200 * 4 * 128)  # several panels of several blocks
    assert check(planted(601, 128, 1, positive=positive), threshold)


@given(n=st.integers(1, 90), dim=st.integers(1, 70), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_any_number_of_vectors_of_any_size(n: int, dim: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linking, "FEW_ROWS", 0)
        check(planted(n, dim, seed), 0.85)


def test_most_pairs_are_decided_without_their_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "FEW_ROWS", 0)
    rows = planted(1500, 256, 2)
    basis = linking._basis(lambda a, b: rows[a:b].copy(), 1500, 256, 0.95)
    assert basis is not None
    assert basis.shape[1] <= 96


def test_equal_vectors_are_close_at_any_threshold() -> None:
    rows = np.tile(np.array([0.1, 0.2, 0.7], np.float32), (300, 1))
    found = linked(rows, 1.0)
    assert {*found.label.tolist()} == {0}
    assert {*found.degree.tolist()} == {299}


def test_a_chain_is_one_group_whose_ends_are_not_close() -> None:
    angles = np.radians([0, 10, 20, 90])
    found = linked(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), 0.97)
    assert found.label.tolist() == [0, 0, 0, 3]
    assert found.degree.tolist() == [1, 2, 1, 0]


def test_progress_ends_at_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "BLOCK_ROWS", 64)
    monkeypatch.setattr(linking, "PANEL_BYTES", 64 * 4 * 8)
    rows = planted(500, 8, 3)
    seen: list[tuple[int, int]] = []
    link(lambda a, b: rows[a:b].copy(), 500, 8, threshold=0.9, progress=lambda *x: seen.append(x))
    assert seen[-1] == (500 * 499 // 2, 500 * 499 // 2)
    assert seen == sorted(seen)
