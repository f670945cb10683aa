"""Ridge and logistic regression by a device's products are numpy's. Here the device is the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from heads.dataset.rows import Dataset, Part
from heads.fitting import candidates, linear, logistic, on_device
from heads.fitting.candidates import fit_candidates
from heads.fitting.protocol import Protocol
from tests.heads.fitting.test_train import gap, sweep

Sample = Callable[..., Dataset]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def parts(data: Dataset, device: str) -> tuple[Part, Part]:
    """Train and dev parts on a device, dev's rows stored in another order than their own."""
    train, dev = data.part("train"), data.part("dev")
    dev = replace(dev, order=np.random.default_rng(0).permutation(len(dev)))
    return on_device._moved(train, device), on_device._moved(dev, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [12, 400])
def test_ridge_and_standards_are_numpys(sample: Sample, device: str, dim: int) -> None:
    data = sample(dim=dim)
    targets = np.column_stack([data.targets, np.random.default_rng(0).random(len(data.ids))])
    data = replace(data, targets=targets)
    train, dev = data.part("train"), data.part("dev")
    there = parts(data, device)
    standard, mine = linear.fit_standard(train), on_device.fit_standard(there[0])
    assert mine.mean == pytest.approx(standard.mean, abs=1e-7)
    assert mine.scale == pytest.approx(standard.scale, rel=1e-6)
    here = linear.ridge(train, dev, standard)
    found = on_device.ridge(*there, standard)
    assert found.strength == here.strength
    assert found.dev == pytest.approx(here.dev, rel=1e-6)
    assert np.array(found.curve) == pytest.approx(np.array(here.curve), rel=1e-5)
    assert found.layer.weight == pytest.approx(here.layer.weight, abs=1e-6)
    assert found.layer.bias == pytest.approx(here.layer.bias, abs=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [12, 400])
@pytest.mark.parametrize("task", ["binary", "classes"])
def test_logistic_regression_is_numpys(sample: Sample, device: str, dim: int, task: str) -> None:
    data = sample(dim=dim, task=task)
    train, dev = data.part("train"), data.part("dev")
    standard, outputs = linear.fit_standard(train), 1 if task == "binary" else 3
    here = logistic.logistic(train, dev, standard, outputs=outputs)
    ticks: list[int] = []
    found = on_device.logistic(
        *parts(data, device), standard, outputs=outputs, tick=lambda: ticks.append(1)
    )
    assert len(ticks) == len(found.curve) == len(here.curve)
    assert found.strength == here.strength
    assert found.dev == pytest.approx(here.dev, rel=1e-6)
    assert found.layer.weight == pytest.approx(here.layer.weight, abs=1e-5)
    assert found.layer.bias == pytest.approx(here.layer.bias, abs=1e-5)


def test_a_class_without_a_train_row_is_about_impossible_there_too(sample: Sample) -> None:
    data = sample(task="classes")
    data = replace(data, subset=np.where(data.targets == 1, 1, data.subset).astype(np.uint8))
    train, dev = parts(data, "cpu")
    found = on_device.logistic(train, dev, linear.fit_standard(train), outputs=3)
    here = logistic.logistic(
        data.part("train"), data.part("dev"), linear.fit_standard(train), outputs=3
    )
    assert found.layer.bias[0, 1] == -30
    assert found.dev == pytest.approx(here.dev, rel=1e-5)


def test_fc_heads_train_alike_from_vectors_on_a_device(sample: Sample) -> None:
    data = sample()
    here = sweep(data, "1fc")["1fc"]
    moved = on_device.DeviceVectors(
        replace(data.part("train"), rows=np.arange(len(data.ids)), order=np.arange(len(data.ids))),
        "cpu",
    )
    there = sweep(replace(data, vectors=moved), "1fc")["1fc"]
    assert gap(here, there) == 0


@pytest.mark.parametrize("task", ["ratio", "binary", "classes"])
def test_every_head_of_a_fit_is_the_same_with_its_vectors_on_a_device(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    data = sample(task=task)
    base = "ridge" if task == "ratio" else "logistic"
    given: Any = (data.part("train"), data.part("dev"), ("const", base, "0fc", "1fc"))
    protocol = Protocol(epochs=4, hidden=16, batch_size=64, margin=0.0)
    here = fit_candidates(*given, dataset=data, protocol=protocol)
    monkeypatch.setattr(on_device, "resolved", lambda _: "cuda")
    monkeypatch.setattr(
        on_device, "moved", lambda both, *_: tuple(on_device._moved(one, "cpu") for one in both)
    )
    placed = candidates._placed(given[0], given[1], Protocol(device="cuda"))
    monkeypatch.setattr(candidates, "_placed", lambda *_: placed)
    there = fit_candidates(*given, dataset=data, protocol=protocol)
    assert on_device.held(placed[0])
    for name, one in here.items():
        assert there[name].epoch == one.epoch
        for key, figure in one.dev.items():
            assert there[name].dev[key] == pytest.approx(figure, rel=1e-4)


def test_vectors_that_a_device_has_no_room_for_stay_where_they_are(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sample()
    both = data.part("train"), data.part("dev")
    needed = 2 * 4 * 12 * (len(both[0]) + len(both[1]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (needed, 1 << 40))
    monkeypatch.setattr(on_device, "_moved", lambda part, _: (part, "moved"))
    assert on_device.moved(both, "cuda", None)[1] == (both[1], "moved")  # type: ignore[comparison-overlap]
    assert on_device.moved(both, "cuda", needed - 1) == both
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (needed - 1, 1 << 40))
    assert on_device.moved(both, "cuda", None) == both
