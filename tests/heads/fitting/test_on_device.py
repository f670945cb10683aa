"""Ridge and logistic regression by a device's products are numpy's. Here the device is the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from heads.dataset.rows import Dataset, Part
from heads.fitting import candidates, linear, logistic, on_device, step, train
from heads.fitting.candidates import fit_candidates
from heads.fitting.fit import fit
from heads.fitting.protocol import Protocol
from heads.fitting.scores import predict_part
from heads.fitting.step import Steps
from tests.heads.fitting.test_step import Recorded
from tests.heads.fitting.test_train import gap, sweep

Sample = Callable[..., Dataset]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def parts(data: Dataset, device: str) -> tuple[Part, Part]:
    """Train and dev parts on a device, dev's rows stored in another order than their own."""
    part, dev = data.part("train"), data.part("dev")
    dev = replace(dev, order=np.random.default_rng(0).permutation(len(dev)))
    return on_device._moved(part, device), on_device._moved(dev, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [12, 400])
def test_ridge_and_standards_are_numpys(sample: Sample, device: str, dim: int) -> None:
    data = sample(dim=dim)
    targets = np.column_stack([data.targets, np.random.default_rng(0).random(len(data.ids))])
    data = replace(data, targets=targets)
    part, dev = data.part("train"), data.part("dev")
    there = parts(data, device)
    standard, mine = linear.fit_standard(part), on_device.fit_standard(there[0])
    assert mine.mean == pytest.approx(standard.mean, abs=1e-7)
    assert mine.scale == pytest.approx(standard.scale, rel=1e-6)
    here = linear.ridge(part, dev, standard)
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
    part, dev = data.part("train"), data.part("dev")
    standard, outputs = linear.fit_standard(part), 1 if task == "binary" else 3
    here = logistic.logistic(part, dev, standard, outputs=outputs)
    ticks: list[int] = []
    there, their_dev = parts(data, device)
    losses = on_device.DeviceLosses(there, outputs)
    found = logistic.search(losses, their_dev, [standard], tick=lambda: ticks.append(1))[0].exact()
    assert len(ticks) == len(found.curve) == len(here.curve)
    assert found.strength == here.strength
    assert found.dev == pytest.approx(here.dev, rel=1e-6)
    assert found.layer.weight == pytest.approx(here.layer.weight, abs=1e-5)
    assert found.layer.bias == pytest.approx(here.layer.bias, abs=1e-5)


def test_a_class_without_a_train_row_is_about_impossible_there_too(sample: Sample) -> None:
    data = sample(task="classes")
    data = replace(data, subset=np.where(data.targets == 1, 1, data.subset).astype(np.uint8))
    part, dev = parts(data, "cpu")
    losses = on_device.DeviceLosses(part, 3)
    found = logistic.search(losses, dev, [linear.fit_standard(part)])[0].exact()
    here = logistic.logistic(
        data.part("train"), data.part("dev"), linear.fit_standard(part), outputs=3
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
        on_device, "moved", lambda parts, *_: [on_device._moved(one, "cpu") for one in parts]
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
    monkeypatch.setattr(on_device, "resolved", lambda asked: asked)
    monkeypatch.setattr(on_device, "_moved", lambda part, _: f"{len(part)} moved")
    assert list(map(str, on_device.moved(both, "cuda", None))) == [f"{len(p)} moved" for p in both]
    assert on_device.moved(both, "cuda", needed - 1) == list(both)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (needed - 1, 1 << 40))
    assert on_device.moved(both, "cuda", None) == list(both)
    assert on_device.moved(both, "cpu", None) == list(both)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("task", ["ratio", "binary", "classes"])
def test_predictions_on_a_device_are_the_heads_own(sample: Sample, device: str, task: str) -> None:
    data = sample(task=task)
    found = fit(data, epochs=3, members=2, hidden=8, margin=0.0, resamples=10)
    part = data.part("test")
    there = predict_part(found.heads, on_device._moved(part, device))
    for name, seen in predict_part(found.heads, part).items():
        assert there[name].shape == seen.shape
        assert there[name] == pytest.approx(seen, abs=1e-6)


def test_a_fit_on_a_device_has_the_figures_of_one_on_the_cpu(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the device itself: vectors, linear heads, graphs of steps, predictions."""
    here = fit(sample(), epochs=4, hidden=16, batch_size=32, margin=0.0, resamples=50)
    moves: list[int] = []

    def moved(parts: Sequence[Part], *_: Any) -> list[Part]:
        moves.append(len(parts))
        return [on_device._moved(part, "cpu") for part in parts]

    monkeypatch.setattr(on_device, "moved", moved)
    monkeypatch.setattr(train, "resolved", lambda _: "cpu")
    monkeypatch.setattr(train, "Steps", partial(Steps, on_device=True))
    monkeypatch.setattr(step, "captured", Recorded())
    there = fit(
        sample(), epochs=4, hidden=16, batch_size=32, margin=0.0, resamples=50, device="cuda"
    )
    assert moves == [2, 1]
    for mine, theirs in zip(here.rows, there.rows, strict=True):
        assert theirs.epoch == mine.epoch
        assert theirs.value == pytest.approx(mine.value, rel=1e-4)
