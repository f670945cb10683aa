"""The sweep: members beside each other are members alone, and nothing depends on chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks import paper_protocol
from heads.dataset.rows import Dataset
from heads.fitting import linear
from heads.fitting.candidates import fit_candidates
from heads.fitting.fc import DEPTHS, Bank, Member
from heads.fitting.intervals import Sample as JudgedBy
from heads.fitting.objective import Objective
from heads.fitting.protocol import Protocol
from heads.fitting.train import Trained, _halved, _Rate, train
from heads.head import Layer

Sample = Callable[..., Dataset]


def sweep(data: Dataset, *names: str, loss: str = "mse", link: Any = None, **choices: Any) -> Any:
    choices = {"epochs": 4, "batch_size": 64, "hidden": 16, "margin": 0, "patience": None} | choices
    part, dev = data.part("train"), data.part("dev")
    found: dict[str, Trained] = train(
        names,
        part,
        dev,
        standard=linear.fit_standard(part),
        link=link or ("sigmoid" if data.targets.max() <= 1 else "identity"),
        loss=loss,
        start=Layer(
            np.zeros((1, part.targets.shape[1], data.dim), np.float32),
            np.zeros((1, part.targets.shape[1]), np.float32),
        ),
        protocol=Protocol(**choices),
    )
    return found


def gap(one: Trained, other: Trained) -> float:
    pairs = zip(one.layers, other.layers, strict=True)
    return max(float(np.abs(a.weight - b.weight).max()) for a, b in pairs)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_head_trained_alone_equals_the_same_head_in_the_sweep(
    sample: Sample, dropout: float
) -> None:
    data = sample()
    rates = (1e-4, 1e-3, 1e-2)
    options: dict[str, Any] = {"members": 2, "dropout": dropout}
    whole = sweep(data, "0fc", "1fc", "2fc", learning_rates=rates, **options)
    for name in ("0fc", "1fc", "2fc"):
        best = whole[name]
        alone = sweep(data, name, learning_rates=(best.rate,), **options)[name]
        assert alone.epoch == best.epoch
        assert alone.dev == pytest.approx(best.dev, rel=1e-5)
        assert gap(alone, best) < 1e-5


def test_two_runs_with_one_seed_agree_bit_for_bit_and_another_seed_does_not(
    sample: Sample,
) -> None:
    data = sample()
    first, second = (sweep(data, "2fc", dropout=0.2, members=2)["2fc"] for _ in range(2))
    assert gap(first, second) == 0
    assert first.curve == second.curve or repr(first.curve) == repr(second.curve)
    assert gap(first, sweep(data, "2fc", dropout=0.2, members=2, seed=1)["2fc"]) > 0


def test_the_written_gradient_is_the_one_that_autograd_finds() -> None:
    members = [Member(0, 1.0, 0), Member(1, 1.0, 0), Member(1, 1.0, 1), Member(2, 1.0, 0)]
    bank = Bank(members, dim=5, hidden=7, outputs=3)
    bank.initialise(seed=0, weight=torch.randn(3, 5), bias=torch.randn(3))
    bank.flat += 0.1 * torch.randn(bank.flat.shape)
    inputs, target = torch.randn(11, 5), torch.randn(4, 11, 3)
    outputs, kept = bank.forward(inputs)
    bank.backward(inputs, 2 * (outputs - target), kept)
    for place, member in enumerate(members):
        mine = [tensor.clone().requires_grad_() for tensor in bank.parameters(place)]
        hidden = inputs
        for depth in range(member.depth + 1):
            hidden = hidden @ mine[2 * depth].T + mine[2 * depth + 1]
            hidden = hidden.relu() if depth < member.depth else hidden
        assert torch.allclose(hidden, outputs[place], atol=1e-4)
        torch.autograd.backward((hidden - target[place]).square().sum())
        for slope, parameter in zip(bank.gradients(place), mine, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(slope, parameter.grad, atol=1e-3, rtol=1e-4)


def test_every_depth_starts_as_the_linear_map_it_is_given() -> None:
    members = [Member(0, 1.0, 0), Member(1, 1.0, 0), Member(2, 1.0, 3)]
    bank = Bank(members, dim=5, hidden=8, outputs=2)
    weight, bias = torch.randn(2, 5), torch.randn(2)
    bank.initialise(seed=4, weight=weight, bias=bias)
    inputs = torch.randn(9, 5)
    for outputs in bank.forward(inputs)[0]:
        assert torch.allclose(outputs, inputs @ weight.T + bias, atol=1e-5)


def test_a_rate_that_diverges_drops_out_and_disturbs_no_other(sample: Sample) -> None:
    data = sample(task="real")
    options: dict[str, Any] = {"optimizer": "sgd", "epochs": 6}
    both = sweep(data, "1fc", learning_rates=(1e-3, 1e9), **options)["1fc"]
    alone = sweep(data, "1fc", learning_rates=(1e-3,), **options)["1fc"]
    assert both.rate == 1e-3
    assert any(p.rate == 1e9 and not math.isfinite(p.dev) for p in both.curve)
    assert gap(both, alone) < 1e-5
    assert all(np.isfinite(layer.weight).all() for layer in both.layers)


def test_when_every_rate_diverges_the_head_is_what_it_started_as(sample: Sample) -> None:
    data = sample(task="real")
    found = sweep(data, "0fc", learning_rates=(1e12, 1e15), optimizer="sgd")["0fc"]
    assert found.epoch == 0
    assert (found.layers[0].weight == 0).all()


def test_0fc_with_mse_reaches_the_weighted_least_squares_solution(sample: Sample) -> None:
    data = sample(n=400, dim=6)
    part = data.part("train")
    found = sweep(
        data, "0fc", link="identity", epochs=300, batch_size=len(part), learning_rates=(0.3,)
    )["0fc"]
    standard = linear.fit_standard(part)
    rows = standard.apply(part.read()).astype(float)
    design = np.column_stack([rows, np.ones(len(rows))])
    assert part.weights is not None
    root = np.sqrt(part.weights)[:, None]
    exact, *_ = np.linalg.lstsq(design * root, part.targets * root, rcond=None)
    last = next(p for p in found.curve if p.epoch == 300)
    truth = part.targets[:, 0]
    mean = np.average(truth, weights=part.weights)
    least = np.average((truth - (design @ exact)[:, 0]) ** 2, weights=part.weights)
    # Inside, targets have variance 1; the reported loss is on that scale.
    spread = np.average((truth - mean) ** 2, weights=part.weights)
    assert last.train == pytest.approx(float(least / spread), rel=1e-4)


@pytest.mark.parametrize("memory_bytes", [1, 2 * 6 * 4 * 4096])
def test_rows_that_stay_in_the_cache_train_the_same_head(sample: Sample, memory_bytes: int) -> None:
    class Counting:
        """Vectors that remember how many rows were asked for at once."""

        def __init__(self, rows: NDArray[np.float32]) -> None:
            self.rows, self.most, self.shape = rows, 0, rows.shape

        def __getitem__(self, at: NDArray[np.int64]) -> NDArray[np.float32]:
            self.most = max(self.most, len(at))
            return np.asarray(self.rows[at])

    data = sample(n=9000, dim=6)
    counting = Counting(np.asarray(data.vectors[np.arange(9000)]))
    lazy = replace(data, vectors=counting)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 256, "memory_bytes": memory_bytes}
    streamed = sweep(lazy, "1fc", **options)["1fc"]
    held = sweep(data, "1fc", **options)["1fc"]
    assert counting.most <= 8192
    assert gap(streamed, held) == 0
    whole = sweep(data, "1fc", **(options | {"memory_bytes": None}))["1fc"]
    assert streamed.dev == pytest.approx(whole.dev, rel=0.02)


def test_patience_stops_rates_and_leaves_the_best_epoch_as_it_was(sample: Sample) -> None:
    data = sample(noise=3.0)
    options: dict[str, Any] = {"epochs": 12, "learning_rates": (1e-3, 3e-2), "hidden": 32}
    patient = sweep(data, "1fc", patience=3, **options)["1fc"]
    full = sweep(data, "1fc", **options)["1fc"]
    assert len(patient.curve) < len(full.curve)
    early = {(p.rate, p.epoch): p.dev for p in full.curve}
    assert all(early[p.rate, p.epoch] == pytest.approx(p.dev, rel=1e-4) for p in patient.curve)


@pytest.mark.parametrize(
    ("task", "loss"), [("ratio", "binomial"), ("binary", "auto"), ("classes", "auto")]
)
def test_every_loss_learns(sample: Sample, task: str, loss: Any) -> None:
    data = sample(n=900, task=task)
    base = "ridge" if task == "ratio" else "logistic"
    fitted = fit_candidates(
        data.part("train"),
        data.part("dev"),
        ("const", base, "0fc", "1fc", "2fc"),
        dataset=data,
        protocol=Protocol(loss=loss, hidden=32, start="constant", learning_rates=(1e-2, 1e-1)),
    )
    metric = "mse" if task == "ratio" else "log_loss"
    figures = {name: one.dev["target", metric] for name, one in fitted.items()}
    assert all(figures[name] < 0.7 * figures["const"] for name in ("0fc", "1fc", "2fc"))


def test_weights_decay_as_torchs_adamw_has_it_and_biases_do_not(sample: Sample) -> None:
    data = sample()
    part = data.part("train")
    options: dict[str, Any] = {"epochs": 2, "batch_size": 1000, "learning_rates": (0.03,)}
    decayed = sweep(data, "0fc", weight_decay=0.5, **options)["0fc"]
    standard = linear.fit_standard(part)
    layer = torch.nn.Linear(data.dim, 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW([layer.weight], weight_decay=0.5)
    free = torch.optim.AdamW([layer.bias], weight_decay=0.0)
    assert part.weights is not None
    weights = torch.tensor(part.weights / part.weights.mean(), dtype=torch.float32)
    inputs = torch.from_numpy(standard.apply(part.read()))
    truth = torch.tensor(part.targets[:, 0], dtype=torch.float32)
    for rate in (0.03, 0.003):  # half of the way to a hundredth
        for one in (optimizer, free):
            one.param_groups[0]["lr"] = rate
            one.zero_grad()
        loss = (weights * (layer(inputs)[:, 0].sigmoid() - truth).square()).mean()
        torch.autograd.backward(loss)
        optimizer.step()
        free.step()
    assert decayed.epoch == 2
    assert decayed.layers[0].weight[0] == pytest.approx(layer.weight.detach().numpy(), abs=1e-6)
    assert decayed.layers[0].bias[0, 0] == pytest.approx(layer.bias.item(), abs=1e-6)


def test_a_rate_goes_on_while_it_may_still_win() -> None:
    rate = _Rate("1fc", 1, 1e-3, [1.0, 0.99, 0.98, 0.97, 0.96])
    assert rate.may_win(0.90, left=10, patience=4)  # 0.01 an epoch would take it to 0.86
    assert not rate.may_win(0.80, left=10, patience=4)
    assert rate.may_win(0.80, left=10, patience=5)  # too early to say
    still = _Rate("1fc", 1, 1e-3, [1.0, 0.9, 0.9, 0.9, 0.9, 0.9])
    assert not still.may_win(0.9, left=10, patience=4)
    assert still.may_win(0.9, left=10, patience=5)
    assert not _Rate("1fc", 1, 1e-3, [1.0, math.inf]).may_win(0.9, left=10, patience=4)


@pytest.mark.parametrize("name", ["0fc", "1fc", "2fc"])
def test_the_papers_protocol_is_plain_adam_step_by_step(sample: Sample, name: str) -> None:
    data = sample(n=200)
    part = data.part("train")
    options: dict[str, Any] = {"epochs": 3, "batch_size": 1000, "learning_rates": (0.01,)}
    ours = sweep(data, name, start="random", hidden=8, link="identity", **options)[name]
    bank = Bank([Member(DEPTHS[name], 0.01, 0)], dim=data.dim, hidden=8, outputs=1)
    bank.initialise_at_random(seed=0, bias=torch.zeros(1))
    layers = [tensor.clone().requires_grad_() for tensor in bank.parameters(0)]
    for tensor in layers[:-1]:
        reach = (tensor if tensor.ndim == 2 else layers[0]).shape[-1] ** -0.5
        assert float(tensor.detach().abs().max()) <= max(reach, 8**-0.5)
    weights = part.share * len(part)
    mean = part.share @ part.targets[:, 0]
    spread = np.sqrt(part.share @ (part.targets[:, 0] - mean) ** 2)
    with torch.no_grad():
        layers[-1].fill_(float(-mean / spread))  # `sweep` starts from a bias of 0 in target units
    truth = torch.tensor((part.targets[:, 0] - mean) / spread, dtype=torch.float32)
    mass = torch.tensor(weights, dtype=torch.float32)
    inputs = torch.from_numpy(linear.fit_standard(part).apply(part.read()))
    optimizer = torch.optim.Adam(layers)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.01 ** (epoch / 3)
        optimizer.zero_grad()
        hidden = inputs
        for depth in range(DEPTHS[name] + 1):
            hidden = hidden @ layers[2 * depth].T + layers[2 * depth + 1]
            hidden = hidden.relu() if depth < DEPTHS[name] else hidden
        torch.autograd.backward((mass * (hidden[:, 0] - truth).square()).mean())
        optimizer.step()
    assert ours.epoch == 3
    # The last layer speaks in the target's own units, the others as they were trained.
    last, last_bias = (tensor.detach().numpy() * spread for tensor in layers[-2:])
    assert ours.layers[-1].weight[0] == pytest.approx(last, abs=2e-8)
    assert ours.layers[-1].bias[0] == pytest.approx(last_bias + mean, abs=2e-8)


@pytest.mark.parametrize("truth", ["linear", "mixed", "nonlinear"])
def test_the_papers_protocol_equals_a_plain_loop_in_distribution(truth: str) -> None:
    """The short form of benchmarks/paper_protocol.py: four seeds of one head."""
    mine, theirs, p = paper_protocol.compared(truth, "1fc", 4, n=500)
    assert p > 0.01
    assert 0.85 < mine.mean() / theirs.mean() < 1.15


@pytest.mark.parametrize("n_groups", [1, 4, 60])
def test_the_margin_counts_groups_by_students_t_and_one_group_shows_nothing(
    sample: Sample, n_groups: int
) -> None:
    data = sample(n=400, noise=2.0)
    dev = data.subset == 1
    groups = np.where(dev, np.cumsum(dev) % n_groups, 1000 + np.arange(400))
    assert data.weights is not None
    weights = np.where(np.arange(400) % 7 == 3, 0, data.weights)  # some rows weigh nothing
    data = replace(data, groups=np.unique(groups, return_inverse=True)[1], weights=weights)
    train, part = data.part("train"), data.part("dev")
    layer = Layer(np.zeros((1, 1, 12), np.float32), np.zeros((1, 1), np.float32))
    standard = linear.fit_standard(train)
    task = Objective(train, part, standard, "sigmoid", "mse", layer, Protocol(margin=2.0))
    gain = np.random.default_rng(0).normal(size=len(part))
    judged_by = JudgedBy(part.weights, part.groups)
    gain -= judged_by.mean(gain)
    if n_groups == 1:
        assert not task.clear(torch.tensor(gain + 1e6, dtype=torch.float32))
        return
    n = judged_by.n_effective
    needed = stats.t.ppf(stats.norm.cdf(2), n - 1) * judged_by.error(gain)
    for share, clear in ((0.98, False), (1.02, True)):
        assert task.clear(torch.tensor(gain + share * needed, dtype=torch.float32)) == clear
    if n_groups == 4:
        assert needed > 1.2 * 2 * judged_by.error(gain)


def test_at_random_each_rate_draws_a_start_of_its_own() -> None:
    members = [Member(1, 1e-3, 0), Member(1, 1e-2, 0), Member(1, 1e-2, 1)]
    bank = Bank(members, dim=4, hidden=6, outputs=1)
    bank.initialise_at_random(seed=0, bias=torch.zeros(1))
    first, second, third = (bank.parameters(place)[0].clone() for place in range(3))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    alone = Bank(members[1:2], dim=4, hidden=6, outputs=1)
    alone.initialise_at_random(seed=0, bias=torch.zeros(1))
    assert torch.equal(alone.parameters(0)[0], second)  # whatever else is trained beside it


def test_the_better_half_of_the_rates_goes_on_after_enough_steps_and_epochs() -> None:
    def going(epoch: int, taken: int, **choices: Any) -> dict[str, list[float]]:
        protocol = Protocol(**{"halving_steps": 10} | choices)
        rates = protocol.learning_rates  # five
        names = ("0fc", "1fc", "2fc")
        candidates = [
            _Rate(name, DEPTHS[name], rate, [1.0, abs(rate - rates[len(name) - 3 + k])])
            for k, name in enumerate(names)
            for rate in rates
        ]
        kept = _halved(candidates, epoch, taken, protocol)
        return {name: [one.rate for one in kept if one.name == name] for name in names}

    a, b, c, d, e = Protocol().learning_rates
    assert going(1, 9)["1fc"] == [a, b, c, d, e]
    assert going(1, 10)["1fc"] == [a, b, c]
    assert going(1, 10)["2fc"] == [a, b, c]
    assert going(1, 10)["0fc"] == [a, b, c, d, e]  # its rates cost nothing
    assert going(1, 1000)["1fc"] == [a, b, c]  # an epoch is needed each time, however long
    assert going(2, 1000)["1fc"] == [a, b]
    assert going(3, 1000)["1fc"] == [a, b]
    assert going(4, 1000)["1fc"] == [b]
    assert going(20, 39)["2fc"] == [b, c]
    assert going(20, 1000, halving_steps=None)["1fc"] == [a, b, c, d, e]
    assert going(20, 1000, patience=None)["1fc"] == [a, b, c, d, e]


def test_halving_leaves_the_rates_that_go_on_as_they_were(sample: Sample) -> None:
    data = sample(n=600, noise=3.0)
    options: dict[str, Any] = {"learning_rates": (1e-4, 1e-3, 3e-3, 1e-2), "epochs": 8}
    options |= {"patience": 8, "hidden": 32}
    halved = sweep(data, "0fc", "1fc", "2fc", halving_steps=4, **options)
    whole = sweep(data, "0fc", "1fc", "2fc", halving_steps=None, **options)
    for name, head in halved.items():
        every = {(p.rate, p.epoch): p.dev for p in whole[name].curve}
        assert all(every[p.rate, p.epoch] == pytest.approx(p.dev, rel=1e-4) for p in head.curve)
        last = {p.rate for p in head.curve if p.epoch == 8}
        assert len(last) == (4 if name == "0fc" else 1)


def test_products_in_bfloat16_round_the_first_layers_and_nothing_else(sample: Sample) -> None:
    members = [Member(0, 1.0, 0), Member(1, 1.0, 0), Member(2, 1.0, 0)]
    exact, rounded = (
        Bank(members, dim=300, hidden=16, outputs=2, products=kind)
        for kind in ("float32", "bfloat16")
    )
    inputs, slope = torch.randn(64, 300), torch.randn(3, 64, 2)
    gradients = []
    for bank in (exact, rounded):
        bank.initialise(
            seed=0,
            weight=torch.randn(2, 300, generator=torch.Generator().manual_seed(0)),
            bias=torch.ones(2),
        )
        outputs, kept = bank.forward(inputs, training=True)
        bank.backward(inputs, slope, kept)
        gradients.append((outputs, bank.flat_gradient))
    assert torch.equal(rounded.flat, exact.flat)
    assert torch.equal(rounded.forward(inputs)[0], exact.forward(inputs)[0])
    for mine, theirs in zip(*gradients, strict=True):
        off = float((mine - theirs).square().mean().sqrt() / mine.square().mean().sqrt())
        assert 1e-4 < off < 0.02


@pytest.mark.parametrize("task", ["ratio", "classes"])
def test_heads_from_rounded_products_are_as_good(sample: Sample, task: str) -> None:
    data = sample(n=900, task=task)
    options: dict[str, Any] = {"learning_rates": (1e-3, 1e-2), "hidden": 32, "start": "constant"}
    figures = []
    for products in ("float32", "bfloat16"):
        protocol = Protocol(products=products, **options)
        fitted = fit_candidates(
            data.part("train"),
            data.part("dev"),
            ("const", "ridge" if task == "ratio" else "logistic", "1fc", "2fc"),
            dataset=data,
            protocol=protocol,
        )
        metric = "mse" if task == "ratio" else "log_loss"
        figures.append([fitted[name].dev["target", metric] for name in ("1fc", "2fc")])
    assert figures[0] != figures[1]
    assert figures[1] == pytest.approx(figures[0], rel=0.03)
